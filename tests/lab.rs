//! The whole system end to end, in the lab.

use anyhow::Result;
use lab::client::Client;
use lab::edge::Edge;
use lab::topology::{A, B, Topology, Uplink};

#[test]
fn a_client_reaches_its_network_through_the_edge() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    assert!(!client.reaches(B.server));
    println!("{}", edge.vpn_edge(&["ports"])?);
    println!("{}", edge.log());
    Ok(())
}
