//! The way around the edge: a gateway's own address.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use lab::node::Node;
use lab::raw::Raw;
use lab::topology::{A, EDGE, Topology, Uplink};

use crate::forger::Forger;
use crate::gate::{FORGED, Gate};

#[test]
fn wireguard_takes_nothing_that_was_routed_past_the_edge() -> Result<()> {
    around(Uplink::Veth)
}

#[test]
fn wireguard_takes_nothing_that_was_routed_past_the_edge_on_the_tc_hook() -> Result<()> {
    around(Uplink::Bridge)
}

fn around(uplink: Uplink) -> Result<()> {
    let topology = Topology::new(uplink)?;
    let edge = lab::edge::Edge::start(&topology, uplink, &[])?;
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    let row = &edge.ports()?[&tenant.port];
    let address: Ipv4Addr = row["gateway"].as_str().context("no gateway")?.parse()?;
    let gate = Gate::new(&edge.node, tenant.port)?;
    // Past the guard they would be let in: each shows the gateway's key.
    let mut forger = Forger::new(&tenant.configuration, 1)?;
    let mut ten = |from: &Node, source: [u8; 4], to: Ipv4Addr| -> Result<()> {
        let messages: Vec<_> = (0..10).map(|_| forger.initiation()).collect();
        let (from_address, to) = (
            SocketAddrV4::new(source.into(), FORGED),
            SocketAddrV4::new(to, tenant.port),
        );
        let send = from.inside(move || {
            let raw = Raw::open()?;
            messages
                .iter()
                .try_for_each(|message| raw.send(from_address, to, message))
        });
        send.join().expect("the thread does not panic")
    };
    topology
        .router
        .sh(&format!("ip route add {address} via {EDGE}"))?;
    ten(&topology.router, [198, 51, 100, 1], EDGE.parse()?)?;
    edge.node.await_sh(&gate.has("arrived", 10))?;

    // From the uplink, from the cluster, and from the node itself.
    for (from, source) in [
        (&topology.router, [198, 51, 100, 1]),
        (&topology.cluster, [10, 200, 0, 2]),
        (&edge.node, [10, 200, 0, 1]),
    ] {
        let before = gate.came()?;
        ten(from, source, address)?;
        edge.node.await_sh(&gate.has("came", before + 10))?;
        let arrived = gate.arrived()?;
        ensure!(
            arrived == 10,
            "WireGuard got {} packets past the edge from {}",
            arrived - 10,
            from.name
        );
    }
    Ok(())
}
