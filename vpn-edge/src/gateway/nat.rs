//! The gateway's nftables rules: what peers may reach, and under which address.
//!
//! One nftables table in the gateway's namespace, replaced in one transaction. It is
//! passed to `nft` as text: the rule set is fixed except for addresses and ports,
//! which are typed here.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::GatewayConfig;
use crate::datapath::EDGE_MAC;
use crate::domain::tunnel::{Fixed, Live};

/// Enables forwarding between tunnel and link in the namespace.
pub fn forward(config: &GatewayConfig) -> io::Result<()> {
    set("/proc/sys/net/ipv4/ip_forward", "1")?;
    if config.tunnel.fixed.has_ipv6() {
        set("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Writes a kernel setting, unless it has the value already: in a pod, only the init
/// container may write.
pub fn set(path: &str, value: &str) -> io::Result<()> {
    if fs::read_to_string(path)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value)
}

/// Applies the rules.
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
/// Packets from the tunnel are checked against the networks one by one, not once per
/// connection: a removed network becomes unreachable immediately.
///
/// Unless configured otherwise, WireGuard accepts packets only from the edge: packets
/// that the node's kernel routed here have not passed the guard. ICMP errors about
/// its own packets, such as "too big", are accepted as related. Our own links send no
/// neighbour solicitations, but those of pods do, and connection tracking does not
/// cover them.
///
/// NAT does not use the gateway's own port: the edge would take a client's packet
/// with that source port for WireGuard traffic.
fn rules(config: &GatewayConfig) -> String {
    let GatewayConfig {
        interface,
        link,
        only_edge,
        tunnel,
        ..
    } = config;
    let Fixed {
        port, addresses, ..
    } = &tunnel.fixed;
    let Live { networks, dns } = &tunnel.live;
    let wireguard = if *only_edge {
        let [a, b, c, d, e, f] = EDGE_MAC;
        format!(
            "    iifname \"{link}\" udp dport {port} ether saddr \
             {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} accept
    iifname \"{link}\" udp dport {port} drop\n"
        )
    } else {
        format!("    iifname \"{link}\" udp dport {port} accept\n")
    };
    let sources = if *port < 32_768 {
        "32768-65535"
    } else {
        "1024-32767"
    };
    let (mut ping, mut spoofed, mut reach, mut nat) = Default::default();
    for address in addresses {
        let (ip, icmp) = names(address.addr());
        let tunnel = address.trunc();
        line(
            &mut ping,
            &format!("iifname \"{interface}\" {icmp} type echo-request accept"),
        );
        line(&mut spoofed, &format!("{ip} saddr != {tunnel} drop"));
        let leaves = format!("oifname \"{link}\" {ip} saddr {tunnel}");
        line(
            &mut nat,
            &format!("{leaves} meta l4proto {{ tcp, udp }} masquerade to :{sources}"),
        );
        line(&mut nat, &format!("{leaves} masquerade"));
    }
    let (ip, _) = names(*dns);
    for protocol in ["udp", "tcp"] {
        line(
            &mut reach,
            &format!("{ip} daddr {dns} {protocol} dport 53 accept"),
        );
    }
    for network in networks {
        let (ip, _) = names(network.addr());
        line(
            &mut reach,
            &format!("iifname \"{interface}\" {ip} daddr {network} accept"),
        );
    }
    format!(
        "table inet vpn-edge
delete table inet vpn-edge
table inet vpn-edge {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname \"lo\" accept
{wireguard}    iifname \"{link}\" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ct state established,related accept
{ping}  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn tcp option maxseg size set rt mtu
    iifname \"{link}\" ct state established,related accept
    iifname != \"{interface}\" drop
{spoofed}{reach}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
{nat}  }}
}}
"
    )
}

/// The names that nft uses for IP and ICMP of the address's version.
fn names(address: IpAddr) -> (&'static str, &'static str) {
    match address {
        IpAddr::V4(_) => ("ip", "icmp"),
        IpAddr::V6(_) => ("ip6", "icmpv6"),
    }
}

fn line(chain: &mut String, rule: &str) {
    *chain += &format!("    {rule}\n");
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::TunnelSpec;
    use crate::domain::tunnel::Peer;
    use crate::wireguard::PrivateKey;

    fn config(port: u16) -> GatewayConfig {
        GatewayConfig {
            tenant: Uuid::nil(),
            tunnel: TunnelSpec {
                fixed: Fixed {
                    port,
                    generation: 1,
                    server_key: PrivateKey::from_bytes([7; 32]),
                    addresses: vec!["10.42.128.1/24".parse().unwrap()],
                    client: Peer {
                        public_key: PrivateKey::from_bytes([9; 32]).public(),
                        allowed_ips: vec!["10.42.128.2/32".parse().unwrap()],
                    },
                    mtu: Some(1420),
                },
                live: Live {
                    networks: vec![
                        "10.97.1.0/24".parse().unwrap(),
                        "10.98.0.0/16".parse().unwrap(),
                    ],
                    dns: IpAddr::from([10, 96, 0, 10]),
                },
            },
            interface: "wg31001".into(),
            link: "eth0".into(),
            status: "/run/status.sock".into(),
            only_edge: true,
        }
    }

    #[test]
    fn a_tenant_reaches_dns_and_its_networks_and_nothing_else() {
        insta::assert_snapshot!(rules(&config(31_001)));
    }

    fn dual_stack(port: u16) -> GatewayConfig {
        let mut config = config(port);
        let TunnelSpec { fixed, live } = &mut config.tunnel;
        fixed
            .addresses
            .push("fd12:3456:789a::1/64".parse().unwrap());
        live.networks.push("fd00:97:1::/64".parse().unwrap());
        config
    }

    #[test]
    fn with_ipv6_in_the_tunnel_the_same_holds_of_both_versions() {
        insta::assert_snapshot!(rules(&dual_stack(31_001)));
    }

    #[test]
    fn an_open_gateway_takes_wireguard_from_anyone() {
        let mut config = config(31_001);
        let shut = rules(&config);
        config.only_edge = false;
        let open = rules(&config);
        let differ = |a: &str, b: &str| -> Vec<String> {
            let rest = a
                .lines()
                .filter(|line| !b.lines().any(|other| other == *line));
            rest.map(|line| line.trim().to_owned()).collect()
        };
        assert_eq!(
            differ(&open, &shut),
            ["iifname \"eth0\" udp dport 31001 accept"]
        );
        assert_eq!(
            differ(&shut, &open),
            [
                "iifname \"eth0\" udp dport 31001 ether saddr 02:02:00:00:00:00 accept",
                "iifname \"eth0\" udp dport 31001 drop"
            ]
        );
    }

    #[test]
    fn nat_never_takes_the_gateways_own_port() {
        for port in [1024, 31_001, 32_767, 32_768, 40_000, 65_535] {
            let rules = rules(&dual_stack(port));
            let ranges: Vec<&str> = rules.split("masquerade to :").skip(1).collect();
            assert_eq!(ranges.len(), 2, "one an IP version");
            for range in ranges {
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
}
