//! What the demo runs, and where Debian has it.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::postgres;

/// Program and package; what every Debian system has is left out.
const TOOLS: &[(&str, &str)] = &[
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("pg_isready", "postgresql-client"),
    ("psql", "postgresql-client"),
    ("resolvconf", "openresolv"),
    ("ss", "iproute2"),
    ("wg", "wireguard-tools"),
    ("wg-quick", "wireguard-tools"),
    // Where the kernel has no WireGuard, wg-quick falls back on it.
    ("wireguard-go", "wireguard-go"),
];

/// Says which packages are missing, all at once.
///
/// # Errors
///
/// When any is.
pub fn check() -> Result<()> {
    let mut missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| *package)
        .collect();
    if postgres::programs().is_err() {
        missing.push("postgresql");
    }
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        bail!(
            "programs are missing: apt-get install {}",
            missing.join(" ")
        );
    }
    let resolvconf = Command::new("resolvconf")
        .arg("--version")
        .output()
        .context("cannot run resolvconf")?;
    ensure!(
        resolvconf.stdout.starts_with(b"openresolv"),
        "resolvconf is another package's, which needs its own service: apt-get install openresolv"
    );
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
