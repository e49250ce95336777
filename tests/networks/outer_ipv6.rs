//! Clients over IPv6 to gateways on the edge's own node.

use std::net::SocketAddrV6;

use anyhow::{Result, ensure};
use lab::client::Client;
use lab::edge::Edge;
use lab::message;
use lab::topology::{A, B, EDGE, Uplink};
use vpn_edge::wireguard::PublicKey;

use crate::raw6;
use crate::scene::{EDGE6, dropped, endpoint, grew, naming, number, small, turn_to};

#[test]
fn a_client_reaches_its_gateway_and_roams_between_the_versions_over_xdp() -> Result<()> {
    roams(Uplink::Veth)
}

#[test]
fn a_client_reaches_its_gateway_and_roams_between_the_versions_over_tc() -> Result<()> {
    roams(Uplink::Bridge)
}

fn roams(uplink: Uplink) -> Result<()> {
    let topology = small(uplink)?;
    let edge = Edge::start(&topology, uplink, &[])?;
    let by_tc = edge.log().contains("no native XDP");
    ensure!(by_tc == (uplink == Uplink::Bridge), "{}", edge.log());
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    let (node, port) = (&topology.client_a, tenant.port);
    let client = Client::up(node, &naming(&tenant.configuration, EDGE6))?;
    client.await_reach(A.server)?;
    ensure!(!client.reaches(B.server), "the gateway lets through all");
    let handshakes = || number(&edge.ports()?[&port], "/handshakes");
    let (before, own) = (handshakes()?, node.sh("wg show wg0 latest-handshakes")?);

    for (address, seen) in [(EDGE6, "[2001"), (EDGE, A.client), (EDGE6, "[2001")] {
        turn_to(node, port, address)?;
        let row = &edge.ports()?[&port];
        client.lose_nothing(A.server, 300, || Ok(()))?;
        let after = &edge.ports()?[&port];
        for path in ["/ingress/packets", "/egress/packets"] {
            grew(path, number(row, path)?, number(after, path)?, 300)?;
        }
        ensure!(after["dropped"] == row["dropped"], "{row}, then {after}");
        let at = endpoint(&edge.node, port)?;
        ensure!(at.starts_with(seen), "the gateway has the client at {at}");
    }
    ensure!(handshakes()? == before, "there was a new handshake");
    ensure!(node.sh("wg show wg0 latest-handshakes")? == own);
    Ok(())
}

#[test]
fn strangers_over_ipv6_are_dropped_for_what_they_lack() -> Result<()> {
    let topology = small(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    let port = tenant.port;
    let status = edge.tenant(&["status", &tenant.id])?;
    let key: PublicKey = status["server_public_key"]
        .as_str()
        .unwrap_or_default()
        .parse()?;
    let from = SocketAddrV6::new("2001:db8:bad::1".parse()?, 5000, 0, 0);
    let to = SocketAddrV6::new(EDGE6.parse()?, port, 0, 0);
    let send = |extended, payloads| raw6::send(&topology.router, from, to, extended, payloads);
    let good = message::initiation(1, key.as_bytes());
    let data = message::data(7, 128);

    for (reason, payloads) in [
        ("mac1", vec![message::initiation(1, &[9; 32]); 3]),
        ("unknown_session", vec![data.clone(); 3]),
        ("message_type", vec![vec![9; 64]; 3]),
        // The first is let in.
        ("replay", vec![good; 4]),
    ] {
        send(false, payloads)?;
        edge.await_ports(|ports| dropped(&ports[&port], reason) == 3)?;
    }
    let row = &edge.ports()?[&port];
    ensure!(number(row, "/ingress/packets")? == 1, "{row}");
    ensure!(number(row, "/dropped")? == 12, "{row}");

    // Behind another header it is no tenant's.
    send(true, vec![data; 3])?;
    topology.edge.await_sh(
        "curl -s 127.0.0.1:9096/metrics | grep 'reason=\"ip_options\"' | grep -q ' 3$'",
    )?;
    ensure!(number(&edge.ports()?[&port], "/ingress/packets")? == 1);
    Ok(())
}
