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
use crate::link::EDGE_MAC;

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
/// What comes out of the tunnel is held to the networks packet by packet, not
/// once a connection: a network that is taken away is out of reach at once.
///
/// WireGuard takes packets from the edge alone: what the node's kernel routed
/// here has passed no guard.
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
    let [a, b, c, d, e, f] = EDGE_MAC;
    let edge = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let tunnel = address.trunc();
    let sources = if *port < 32_768 {
        "32768-65535"
    } else {
        "1024-32767"
    };
    let mut reach = String::new();
    for network in networks {
        let _ = writeln!(
            reach,
            "    iifname \"{interface}\" ip daddr {network} accept"
        );
    }
    format!(
        "table inet vpn-edge
delete table inet vpn-edge
table inet vpn-edge {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname \"lo\" accept
    iifname \"{link}\" udp dport {port} ether saddr {edge} accept
    iifname \"{link}\" udp dport {port} drop
    ct state established,related accept
    iifname \"{interface}\" icmp type echo-request accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn tcp option maxseg size set rt mtu
    iifname \"{link}\" ct state established,related accept
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::wireguard::PrivateKey;

    fn config(port: u16) -> GatewayConfig {
        GatewayConfig {
            tenant: Uuid::nil(),
            generation: 1,
            port,
            interface: "wg31001".into(),
            link: "eth0".into(),
            address: "10.42.128.1/24".parse().unwrap(),
            mtu: 1420,
            private_key: PrivateKey::from_bytes([7; 32]),
            peers: Vec::new(),
            dns: [10, 96, 0, 10].into(),
            networks: vec![
                "10.97.1.0/24".parse().unwrap(),
                "10.98.0.0/16".parse().unwrap(),
            ],
            status: "/run/status.sock".into(),
        }
    }

    #[test]
    fn a_tenant_reaches_dns_and_its_networks_and_nothing_else() {
        insta::assert_snapshot!(rules(&config(31_001)));
    }

    #[test]
    fn nat_never_takes_the_gateways_own_port() {
        for port in [1024, 31_001, 32_767, 32_768, 40_000, 65_535] {
            let rules = rules(&config(port));
            let range = rules.split("masquerade to :").nth(1).unwrap();
            let (first, last) = range
                .split_whitespace()
                .next()
                .unwrap()
                .split_once('-')
                .unwrap();
            let range = first.parse::<u16>().unwrap()..=last.parse().unwrap();
            assert!(!range.contains(&port), "{port} {range:?}");
        }
    }
}
