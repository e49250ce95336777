//! What the balancer's kernel is told, and asked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{EDGES, Family, Host, VIP, VIP6, WORKERS};

/// UDP ports that are balanced: the pool.
const PORTS: &str = "30000-32767";

/// A client's flow as the balancer remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub client: SocketAddr,
    /// That the client sends to.
    pub port: u16,
    /// Name of the node that gets its packets.
    pub target: String,
}

impl Flow {
    /// Reads a line of `conntrack -L`: the client's side, then the target's.
    pub(super) fn read(line: &str) -> Result<Self> {
        let all = |key: &str| {
            let words = line.split_whitespace();
            words
                .filter_map(|word| word.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
                .collect::<Vec<_>>()
        };
        let flow = || -> Option<Self> {
            let (sources, ports) = (all("src"), all("sport"));
            let client: IpAddr = sources.first()?.parse().ok()?;
            let target: IpAddr = sources.get(1)?.parse().ok()?;
            let named = EDGES.iter().chain(&WORKERS).find(|host| {
                let addresses = [host.v4, host.v6].map(|address| address.parse());
                addresses.contains(&Ok(target))
            });
            Some(Self {
                client: SocketAddr::new(client, ports.first()?.parse().ok()?),
                port: all("dport").first()?.parse().ok()?,
                target: named?.name.to_owned(),
            })
        };
        flow().with_context(|| format!("no flow of ours: {line}"))
    }
}

/// Gives new flows to `targets` from now on, beginning with the one at `shift`.
/// On a thread in the balancer.
///
/// What comes from the nodes without a flow is dropped. Were it let through, it
/// would be a flow of its own, and the client's next packet would get another
/// source port so that the two can be told apart.
pub(super) fn apply(targets: &[Host], shift: usize) -> Result<()> {
    let mut balance = String::new();
    for (family, ip, vip) in [(Family::V4, "ip", VIP), (Family::V6, "ip6", VIP6)] {
        let count = targets.len();
        let elements: Vec<String> = (0..count)
            .map(|hash| {
                let target = &targets[(hash + shift) % count];
                format!("{hash} : {}", family.address(target))
            })
            .collect();
        let _ = writeln!(
            balance,
            "    {ip} daddr {vip} udp dport {PORTS} dnat {ip} to \
             jhash {ip} saddr . udp sport . udp dport mod {count} seed 1 map {{ {} }}",
            elements.join(", ")
        );
    }
    let rules = format!(
        "table inet balancer
delete table inet balancer
table inet balancer {{
  chain balance {{
    type nat hook prerouting priority dstnat;
{balance}  }}
  chain replies {{
    type filter hook forward priority filter;
    iifname \"eth0\" meta l4proto udp ct state new drop
  }}
}}
"
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = nft.stdin.take().expect("stdin is piped");
    stdin.write_all(rules.as_bytes())?;
    drop(stdin);
    let output = nft.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft: {said}\n{rules}");
    Ok(())
}

/// Lets the next packet of every flow, or of those to `host`, be balanced anew.
/// On a thread in the balancer.
pub(super) fn forget(host: Option<&Host>) -> Result<()> {
    for (family, kind, vip) in [(Family::V4, "ipv4", VIP), (Family::V6, "ipv6", VIP6)] {
        let mut command = Command::new("conntrack");
        command.args(["-D", "-f", kind, "-p", "udp", "-d", vip]);
        if let Some(host) = host {
            command.args(["-r", family.address(host)]);
        }
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Having found none counts as a failure there.
        ensure!(said.contains("have been deleted"), "conntrack: {said}");
    }
    Ok(())
}
