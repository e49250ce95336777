//! Frames of 9000 bytes all the way.

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::edge::Edge;
use lab::node::Node;
use lab::topology::{A, EDGE, Uplink};

use crate::scene::{EDGE6, HOPS, Hairpin, bulk, naming, small};

/// Makes all links of these nodes as large.
fn enlarge(nodes: &[&Node]) -> Result<()> {
    nodes.iter().try_for_each(|node| {
        node.sh("for link in $(ls /sys/class/net); do
                     test $link = lo || ip link set $link mtu 9000
                 done")
            .map(drop)
    })
}

/// Large packets in the tunnel, there and back, none in pieces: as large as the
/// userspace gateway takes, which has 4096 bytes for one.
fn carries(client: &Client, node: &Node, cluster: &Node) -> Result<()> {
    node.sh("ip link set wg0 mtu 3900")?;
    client.await_reach(A.server)?;
    node.sh(&format!(
        "ping -n -q -i 0.01 -c 50 -W 2 -s 3872 -M do {}",
        A.server
    ))
    .context("large packets")?;
    for direction in ["", "--reverse"] {
        bulk(node, cluster, &format!("-n 5M {direction}"))?;
    }
    Ok(())
}

#[test]
fn large_frames_reach_a_gateway_of_this_node_by_xdp() -> Result<()> {
    let topology = small(Uplink::Veth)?;
    let [client_a, router] = [&topology.client_a, &topology.router];
    enlarge(&[client_a, router, &topology.edge, &topology.cluster])?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    for address in [EDGE, EDGE6] {
        let client = Client::up(client_a, &naming(&tenant.configuration, address))?;
        carries(&client, client_a, &topology.cluster)?;
        let row = &edge.ports()?[&tenant.port];
        ensure!(row["mode"] == "xdp" && row["dropped"] == 0, "{row}");
        client.down()?;
    }
    Ok(())
}

#[test]
fn large_frames_are_sent_on_to_other_nodes() -> Result<()> {
    let scene = Hairpin::new(
        |region| {
            let [edge, _] = &region.edges;
            let [worker, _] = &region.workers;
            let balancer = &region.balancer.node;
            enlarge(&[
                &region.client_a,
                balancer,
                &region.front,
                edge,
                worker,
                &region.cluster,
            ])
        },
        &[],
    )?;
    let log = scene.agent.log();
    ensure!(log.contains("attached XDP and tc"), "{log}");
    let region = &scene.region;
    for address in HOPS {
        let client = scene.client(address)?;
        carries(&client, &region.client_a, &region.cluster)?;
        let row = scene.port()?;
        ensure!(row["mode"] == "hop" && row["dropped"] == 0, "{row}");
        client.down()?;
    }
    Ok(())
}
