//! Tracked connections of ports that the edge takes over.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use lab::node::Node;
use tokio::runtime::Builder;
use vpn_edge::conntrack;

use super::Pair;

fn flush(node: &Node, ports: &[u16]) -> Result<usize> {
    let ports: BTreeSet<u16> = ports.iter().copied().collect();
    let flushed = node.inside(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(conntrack::flush(&ports))
    });
    flushed.join().expect("the thread does not panic")
}

/// Sends a datagram from each of the ports to the address.
fn send(node: &Node, from: &[u16], to: &str) -> Result<()> {
    let (from, to) = (from.to_vec(), to.to_owned());
    let sent = node.inside(move || {
        let any = if to.starts_with('[') {
            "[::]"
        } else {
            "0.0.0.0"
        };
        for port in from {
            let socket = UdpSocket::bind(format!("{any}:{port}"))?;
            socket.send_to(b"hello", &to).context(to.clone())?;
        }
        Ok(())
    });
    sent.join().expect("the thread does not panic")
}

/// What the kernel tracks, as "family protocol source destination zone".
fn tracked(node: &Node) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let list = node.sh(&format!("conntrack -L -f {family} 2>/dev/null || true"))?;
        for line in list.lines() {
            let field = |name: &str| {
                let mut fields = line.split_whitespace();
                fields
                    .find_map(|field| field.strip_prefix(name))
                    .unwrap_or("-")
            };
            let protocol = line.split_whitespace().next().context("a protocol")?;
            entries.push(format!(
                "{family} {protocol} {} {} {}",
                field("sport="),
                field("dport="),
                match field("zone=") {
                    "-" => field("zone-orig="),
                    zone => zone,
                }
            ));
        }
    }
    entries.sort();
    Ok(entries)
}

/// Datagrams to 31000 and 31001 are a service's, as kube-proxy would have it;
/// those to 7000 reach what listens on 31000; those to 31003 are in a zone.
const RULES: &str = "nft -f - <<.
table inet service {
    chain zones {
        type filter hook prerouting priority raw
        udp dport 31003 ct zone set 7
        udp dport 31004 ct original zone set 8
    }
    chain nodeports {
        type nat hook prerouting priority dstnat
        udp dport 31000-31001 redirect to :51820
        udp dport 7000 redirect to :31000
    }
}
.";

#[test]
fn entries_of_exactly_these_ports_are_flushed() -> Result<()> {
    let Pair { edge, far, _lab } = Pair::new()?;
    edge.sh(RULES)?;
    // Something that answers: what is refused ends by itself.
    let listening = |port: u16| {
        let bound = edge.inside(move || Ok(UdpSocket::bind(("::", port))?));
        bound.join().expect("the thread does not panic")
    };
    let _listening = [51_820, 31_000, 31_002, 31_003, 31_004, 7_001]
        .map(listening)
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for address in ["192.0.2.1", "[2001:db8::1]"] {
        for port in [31_000, 31_001, 31_002, 31_003, 31_004, 7_000] {
            send(&far, &[40_000, 40_001], &format!("{address}:{port}"))?;
        }
        // The client's own port does not count.
        send(&far, &[31_000], &format!("{address}:7001"))?;
    }
    edge.sh(
        "conntrack -I -p tcp -s 192.0.2.2 -d 192.0.2.1 --sport 40000 --dport 31000 \\
             --state ESTABLISHED --timeout 600",
    )?;
    let udp = |ports: &[(&str, &str)]| {
        let mut expected = vec![];
        for family in ["ipv4", "ipv6"] {
            for (port, zone) in ports {
                for source in [40_000, 40_001] {
                    expected.push(format!("{family} udp {source} {port} {zone}"));
                }
            }
            expected.push(format!("{family} udp 31000 7001 -"));
        }
        expected.push("ipv4 tcp 40000 31000 -".to_owned());
        expected.sort();
        expected
    };
    let others = [("31001", "-"), ("31002", "-"), ("31004", "8")];
    let mine = [("31000", "-"), ("7000", "-"), ("31003", "7")];
    let before = tracked(&edge)?;
    ensure!(before == udp(&[&others[..], &mine].concat()), "{before:#?}");

    ensure!(flush(&edge, &[])? == 0);
    ensure!(flush(&edge, &[30_999, 40_000])? == 0);
    ensure!(tracked(&edge)? == before);
    // To 31000, translated or not; from 31000, as 7000 is translated to; and
    // in a zone of their own.
    ensure!(flush(&edge, &[31_000, 31_003])? == 12);
    let left = tracked(&edge)?;
    ensure!(left == udp(&others), "{left:#?}");
    ensure!(flush(&edge, &[31_000, 31_003])? == 0);
    // A zone that only one way is in.
    ensure!(flush(&edge, &[31_004])? == 4);
    ensure!(tracked(&edge)? == udp(&others[..2]));
    Ok(())
}

#[test]
fn without_tracked_connections_there_is_nothing_to_flush() -> Result<()> {
    let Pair { edge, far, _lab } = Pair::new()?;
    send(&far, &[40_000], "192.0.2.1:31000")?;
    ensure!(tracked(&edge)?.is_empty());
    ensure!(flush(&edge, &[31_000])? == 0);
    Ok(())
}
