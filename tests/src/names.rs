//! Name servers: dnsmasq on a node.

use anyhow::{Context, Result};

use crate::node::{Node, Process};

/// Serves `records` (name, address) on `addresses` of the node, and
/// answers that any other name does not exist.
///
/// # Errors
///
/// When it does not come up, with what it said.
pub fn serve(node: &Node, addresses: &[&str], records: &[(&str, &str)]) -> Result<Process> {
    let mut command = node.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--log-facility=-",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--no-hosts",
        "--no-resolv",
        "--bind-interfaces",
        "--address=/#/",
    ]);
    command.args(
        addresses
            .iter()
            .map(|address| format!("--listen-address={address}")),
    );
    command.args(
        records
            .iter()
            .map(|(name, address)| format!("--host-record={name},{address}")),
    );
    let server = node.start("dnsmasq", command)?;
    for address in addresses {
        let socket = match address.contains(':') {
            true => format!("[{address}]:53"),
            false => format!("{address}:53"),
        };
        node.await_sh(&format!("ss -Hlnu 'src {socket}' | grep -q ."))
            .with_context(|| format!("dnsmasq on {}:\n{}", node.name, server.log()))?;
    }
    Ok(server)
}
