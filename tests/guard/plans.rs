//! What plans allow, and that it is held to for those who have them.

use std::net::UdpSocket;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::edge::{Edge, Tenant};
use lab::topology::{A, B, Topology, Uplink};
use lab::transfer::{Length, Transfer};

use crate::{User, counters, drops};

/// Of the plan business, a second and each way.
const PACKETS: u64 = 2_000;
const BYTES: u64 = 1_000_000;

/// A limit may be run ahead of by a quarter of a second.
const AHEAD: f64 = 0.25;

#[test]
fn a_plans_limits_slow_its_tenants_down_and_no_others() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let limit = format!("business=packets:{PACKETS},bytes:{BYTES}");
    let edge = Edge::start(&topology, Uplink::Veth, &[("--limit", &limit)])?;
    let limited = User::connect(&edge, edge.enabled(&A)?, &topology.client_a, A)?;
    let free = User::connect(&edge, of_another_plan(&edge)?, &topology.client_b, B)?;
    let (port, start) = (limited.tenant.port, Instant::now());
    let before = counters(&edge, port)?;

    // Large packets, of which the bytes are too many.
    let (length, cluster) = (Length::Bytes(1_500_000), &topology.cluster);
    let slow = Transfer::start(&limited.node, cluster, A.server, length)?;
    let fast = Transfer::start(&free.node, cluster, B.server, length)?;
    fast.finish()?;
    slow.finish()?;
    let seconds = start.elapsed().as_secs_f64() + AHEAD;
    let after = counters(&edge, port)?;
    // Each CPU may serve one packet more; one to the client may be merged of
    // some that are segmented later.
    for (bytes, packets, slack) in [
        (
            after.ingress_bytes - before.ingress_bytes,
            after.ingress_packets - before.ingress_packets,
            16 << 10,
        ),
        (
            after.egress_bytes - before.egress_bytes,
            after.egress_packets - before.egress_packets,
            256 << 10,
        ),
    ] {
        let most = (BYTES as f64 * seconds) as u64 + slack;
        ensure!(bytes <= most, "{bytes} bytes in {seconds} s");
        let most = (PACKETS as f64 * seconds) as u64 + 64;
        ensure!(packets <= most, "{packets} packets in {seconds} s");
    }
    let refused = drops(&edge, port)?;
    ensure!(refused.keys().eq(["byte_rate"]), "{refused:?}");

    // Small packets, of which there are too many.
    for user in [&limited, &free] {
        let server = user.side.server;
        let burst = user.node.inside(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            // No one listens there, which the kernel may tell the socket.
            let refused =
                |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
            for _ in 0..4 * PACKETS {
                match socket.send_to(b"tick", (server, 9)) {
                    Err(error) if !refused(&error) => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(())
        });
        burst.join().expect("the thread does not panic")?;
    }
    edge.await_ports(|ports| ports[&port]["drops"]["packet_rate"].as_u64() > Some(0))?;
    limited.await_reach()?;
    let spared = drops(&edge, free.tenant.port)?;
    ensure!(spared.is_empty(), "the other plan has drops: {spared:?}");
    Ok(())
}

/// Tenant B, of a plan without limits.
fn of_another_plan(edge: &Edge) -> Result<Tenant> {
    let plan = ["--plan", "enterprise_cloud", "--ready"];
    let created = edge.tenant(
        &[
            &["create", "--organisation", B.organisation],
            &plan[..],
            &["--network", B.network],
        ]
        .concat(),
    )?;
    let id = created["id"].as_str().context("no id")?.to_owned();
    let port = edge.tenant(&["enable", &id])?["port"]
        .as_u64()
        .context("no port")?;
    Ok(Tenant {
        configuration: edge.configuration(&id)?,
        port: u16::try_from(port)?,
        id,
    })
}

#[test]
fn a_limit_that_cannot_be_is_refused_and_told_what_can() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    for (limit, says) in [
        ("business", "write PLAN=packets:N,bytes:N"),
        ("business=bits:1", "write PLAN=packets:N,bytes:N"),
        ("gold=packets:1", "it is one of developer, team, business"),
        ("business=packets:0", "use 1 to 100000000"),
        ("business=bytes:999", "use 1000 to 100000000000"),
    ] {
        let arguments = ["--uplink", "eth0", "--hostname", "vpn", "--limit", limit];
        let refused = edge.vpn_edge(&[&["standalone"], &arguments[..]].concat());
        let said = refused.unwrap_err().to_string();
        ensure!(
            said.contains("--limit") && said.contains(limit) && said.contains(says),
            "{limit}: {said}"
        );
    }
    Ok(())
}
