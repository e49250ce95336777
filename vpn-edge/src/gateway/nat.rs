//! What peers may reach, and under which address.
//!
//! One nftables table of our own in the gateway's namespace, replaced in one
//! transaction. Text to `nft` rather than a typed mirror of it: the rule set is
//! fixed but for addresses and ports, which are typed here.

use std::fmt::Write;
use std::fs;
use std::io;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::GatewayConfig;

/// Lets the namespace forward between tunnel and link.
pub fn forward() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
}

/// Puts the rules in place.
pub async fn apply(config: &GatewayConfig) -> Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run `nft`: install the nftables package")?;
    let mut stdin = nft.stdin.take().expect("stdin is piped");
    stdin.write_all(rules(config).as_bytes()).await?;
    drop(stdin);
    let output = nft.wait_with_output().await?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The rule set.
///
/// NAT keeps clear of the gateway's own port: a client's packet that left with
/// it as its source would be taken for WireGuard traffic by the edge.
fn rules(config: &GatewayConfig) -> String {
    let GatewayConfig {
        port,
        interface,
        link,
        address,
        dns,
        networks,
        ..
    } = config;
    let tunnel = address.trunc();
    let sources = if *port < 32_768 {
        "32768-65535"
    } else {
        "1024-32767"
    };
    let mut reach = String::new();
    for network in networks {
        let _ = writeln!(reach, "    iifname \"{interface}\" ip daddr {network} accept");
    }
    format!(
        "table inet vpn-edge
delete table inet vpn-edge
table inet vpn-edge {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname \"lo\" accept
    iifname \"{link}\" udp dport {port} accept
    ct state established,related accept
    iifname \"{interface}\" icmp type echo-request accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn tcp option maxseg size set rt mtu
    ct state established,related accept
    iifname != \"{interface}\" drop
    ip saddr != {tunnel} drop
    ip daddr {dns} udp dport 53 accept
    ip daddr {dns} tcp dport 53 accept
{reach}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname \"{link}\" ip saddr {tunnel} meta l4proto {{ tcp, udp }} masquerade to :{sources}
    oifname \"{link}\" ip saddr {tunnel} masquerade
  }}
}}
"
    )
}
