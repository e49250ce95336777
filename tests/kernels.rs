//! The programs and kernel WireGuard on other kernels than this machine's.
//!
//! Debian's 6.1 attaches to clsact, 6.12 to tcx; both have the WireGuard module
//! that a cluster's nodes have. The guests hold no tun device, so that nothing
//! but the kernel's own WireGuard can carry the tunnel, at either end.

#[path = "src/kernels/mod.rs"]
mod kernels;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use kernels::guest::{Copy, boot};

const PACKETS: &str = "/suite/packets";
const LAB: &str = "/suite/lab";
const VPN_EDGE: &str = "/suite/vpn-edge";

/// The lab's shortest way through all of it, and what comes out otherwise where
/// tc programs are filters and not links.
const CASES: [&str; 3] = [
    "a_client_reaches_its_network_through_the_edge",
    "a_restarted_daemon_replaces_programs_in_place",
    "teardown_leaves_nothing_and_the_next_start_brings_all_back",
];

/// What tells programs apart that another kernel verifies, compiles and helps:
/// every way of a packet, and what is learnt on it. Each test loads the programs,
/// which takes a guest some twenty seconds.
const TABLES: [&str; 9] = [
    "verifier::",
    "table::xdp_",
    "table::tc_",
    "log::each_message_is_logged_at_its_level",
    "egress::egress_puts_the_nodes_address_back",
    "egress::initiations_and_responses_of_a_gateway_announce_their_index",
    "onward::a_packet_leaves_for_the_gateways_node",
    "back::an_answer_leaves_for_the_client",
    "rates::each_port_of_another_edge_node",
];

#[test]
fn the_packet_tables_hold_on_linux_6_1() -> Result<()> {
    packet_tables("6.1")
}

#[test]
fn the_packet_tables_hold_on_linux_6_12() -> Result<()> {
    packet_tables("6.12")
}

#[test]
fn kernel_wireguard_at_both_ends_reaches_its_network_on_linux_6_1() -> Result<()> {
    kernel_wireguard("6.1")
}

#[test]
fn kernel_wireguard_at_both_ends_reaches_its_network_on_linux_6_12() -> Result<()> {
    kernel_wireguard("6.12")
}

fn packet_tables(series: &str) -> Result<()> {
    let files = [Copy {
        from: suite("packets")?,
        to: PACKETS,
    }];
    run(series, &files, format!("{PACKETS} {}", TABLES.join(" ")))
}

fn kernel_wireguard(series: &str) -> Result<()> {
    let files = [
        Copy {
            from: suite("lab")?,
            to: LAB,
        },
        Copy {
            from: vpn_edge()?,
            to: VPN_EDGE,
        },
    ];
    run(
        series,
        &files,
        format!(
            "ip link add probe type wireguard && ip link del probe\n\
             export VPN_EDGE_BIN={VPN_EDGE}\n\
             {LAB} --test-threads 1 --nocapture --exact {}",
            CASES.join(" ")
        ),
    )
}

fn run(series: &str, files: &[Copy], script: String) -> Result<()> {
    let report = boot(series, files, &[("suite", format!("set -e\n{script}\n"))])?;
    let passed = report.passed()?;
    println!(
        "Linux {}: {passed} passed, {} s from power on to power off",
        report.release,
        report.took.as_secs()
    );
    Ok(())
}

/// A test executable of this package, built as cargo builds it for the host.
fn suite(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<Vec<(String, PathBuf)>, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    let built = built.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let found = built.iter().find(|(target, _)| target == name);
    Ok(found
        .with_context(|| format!("cargo built no test called {name}"))?
        .1
        .clone())
}

fn build() -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        // As xtask selects them, so that nothing is built twice.
        .args(["test", "--workspace", "--test", "packets", "--test", "lab"])
        .args(["--no-run", "--message-format", "json-render-diagnostics"])
        .current_dir(env::var_os("CARGO_MANIFEST_DIR").context("run this with cargo")?);
    // These describe this test; at another value ring is built again.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"];
        if prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the guests' tests do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let messages = String::from_utf8(output.stdout)?;
    Ok(messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?;
            let executable = message["executable"].as_str()?;
            Some((name.to_owned(), PathBuf::from(executable)))
        })
        .collect())
}

/// Where the lab looks for it too.
fn vpn_edge() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VPN_EDGE_BIN") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let built = own
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("/"))
        .join("vpn-edge");
    ensure!(
        built.exists(),
        "{} is missing: run `cargo build --bin vpn-edge`",
        built.display()
    );
    Ok(built)
}
