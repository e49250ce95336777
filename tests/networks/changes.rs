//! The node's network changes while the edge runs.

use anyhow::{Result, ensure};
use lab::client::Client;
use lab::edge::Edge;
use lab::node::Node;
use lab::topology::{A, EDGE, Uplink};

use crate::scene::{EDGE6, HOPS, Hairpin, endpoint, naming, small, turn_to};

#[test]
fn an_edge_follows_its_addresses_its_uplink_and_its_router() -> Result<()> {
    const NEW: &str = "198.51.100.9";
    const NEW6: &str = "2001:db8:100::9";
    let topology = small(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    let (node, port) = (&topology.client_a, tenant.port);
    let client = Client::up(node, &naming(&tenant.configuration, EDGE))?;
    client.await_reach(A.server)?;
    let steered = || -> Result<()> {
        client.await_reach(A.server)?;
        client.lose_nothing(A.server, 200, || Ok(()))?;
        let seen = endpoint(&edge.node, port)?;
        ensure!(
            seen.contains("192.0.2.2:") || seen.contains("2001:db8:a::2"),
            "{seen}"
        );
        Ok(())
    };

    // Other addresses.
    topology.edge.sh(&format!(
        "ip addr del {EDGE}/24 dev eth0; ip addr add {NEW}/24 dev eth0
         ip route replace default via 198.51.100.1
         ip addr add {NEW6}/64 dev eth0 nodad; ip addr del {EDGE6}/64 dev eth0
         ip -6 route replace default via 2001:db8:100::1"
    ))?;
    for address in [NEW, NEW6] {
        turn_to(node, port, address)?;
        steered()?;
    }

    // The router has another network card.
    let router = |mac: &str, node: &Node| -> Result<()> {
        node.sh(&format!(
            "ip link set edge down; ip link set edge address {mac}; ip link set edge up
             ip addr replace 2001:db8:100::1/64 dev edge nodad"
        ))?;
        topology.edge.sh("ip neigh flush dev eth0").map(drop)
    };
    router("02:00:00:00:00:77", &topology.router)?;
    steered()?;
    turn_to(node, port, NEW)?;
    steered()?;

    // So has the edge.
    topology.edge.sh("ip link del eth0")?;
    topology.edge.link("eth0", &topology.router, "edge")?;
    topology.router.sh(
        "ip addr add 198.51.100.1/24 dev edge; ip addr add 2001:db8:100::1/64 dev edge nodad",
    )?;
    topology.edge.sh(&format!(
        "ip addr add {EDGE}/24 dev eth0; ip route replace default via 198.51.100.1
         ip addr add {EDGE6}/64 dev eth0 nodad; ip -6 route replace default via 2001:db8:100::1"
    ))?;
    for address in [EDGE, EDGE6] {
        turn_to(node, port, address)?;
        steered()?;
    }
    ensure!(edge.ports()?[&port]["mode"] == "xdp");
    Ok(())
}

#[test]
fn an_edge_finds_its_next_hop_again() -> Result<()> {
    let scene = Hairpin::new(|_| Ok(()), &[])?;
    for address in HOPS {
        let client = scene.client(address)?;
        let worker = &scene.region.workers[0];
        let mac = format!("02:00:00:00:01:{:02x}", address.len());
        worker.sh(&format!("ip link set eth0 address {mac}"))?;
        // As a node that took over would tell its neighbours.
        for (_, node) in scene.region.hosts().take(1) {
            node.sh("ip neigh flush dev eth0")?;
        }
        scene.region.balancer.node.sh("ip neigh flush dev eth0")?;
        client.await_reach(A.server)?;
        client.lose_nothing(A.server, 500, || Ok(()))?;
        client.down()?;
    }
    Ok(())
}

#[test]
fn an_edge_that_sends_on_gets_its_uplink_back() -> Result<()> {
    let mut scene = Hairpin::new(|_| Ok(()), &[])?;
    let client = scene.client(HOPS[0])?;
    let [edge, _] = &scene.region.edges;
    let front = &scene.region.front;
    edge.sh("ip link del eth0")?;
    let port = &edge.name;
    edge.link("eth0", front, port)?;
    front.sh(&format!(
        "ethtool -K {port} gro on; ip link set dev {port} master br0"
    ))?;
    let [v4, v6] = HOPS;
    edge.sh(&format!(
        "ip addr add {v4}/24 dev eth0; ip route replace default via 198.51.100.1
         ip addr add {v6}/64 dev eth0 nodad; ip -6 route replace default via 2001:db8:100::1"
    ))?;
    scene.agent.await_health(200)?;
    for address in HOPS {
        scene.turn_to(address)?;
        client.await_reach(A.server)?;
        client.lose_nothing(A.server, 500, || Ok(()))?;
    }
    Ok(())
}
