//! Clients that move, and many of them, with the gateway elsewhere.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};
use lab::client::{Client, INTERFACE};
use lab::raw::Raw;
use lab::region::{EDGES, Family, VIP};
use lab::topology::{A, B};
use lab::transfer::{Length, Transfer};
use lab::{message, node::Node};
use vpn_edge_common::FLOWS;

use crate::running::{Running, clients, endpoint, handshake};
use crate::scene::allocation;

/// A running client whose flow is on the first edge.
fn pinned() -> Result<Running> {
    let running = Running::new(&[])?;
    running.region().balancer.pin(&[EDGES[0].name])?;
    running.client.await_reach(A.server)?;
    Ok(running)
}

#[test]
fn a_client_that_moves_keeps_its_session() -> Result<()> {
    let running = pinned()?;
    let (region, user) = (running.region(), &running.region().client_a);
    let length = Length::UntilFinished;
    let transfer = Transfer::start(user, &region.cluster, A.server, length)?;
    transfer.await_progress(512 << 10)?;
    let handshake = running.handshake()?;
    let mut ends = BTreeSet::from([running.endpoint()?]);

    user.sh(&format!("wg set {INTERFACE} listen-port 5555"))?;
    transfer.await_progress(1 << 20)?;
    ends.insert(running.endpoint()?);
    // A userspace client keeps to its old address until a handshake fails,
    // unless it gets another port too.
    region
        .balancer
        .node
        .sh("ip address add 192.0.2.9/30 dev client-a")?;
    user.sh(&format!(
        "ip address add 192.0.2.10/30 dev eth0
         ip route replace default via 192.0.2.9
         ip address del 192.0.2.2/30 dev eth0
         wg set {INTERFACE} listen-port 6666"
    ))?;
    transfer.await_progress(1 << 20)?;
    ends.insert(running.endpoint()?);
    transfer.finish()?;

    ensure!(running.handshake()? == handshake, "a new handshake");
    // The gateway sees one address, and a port for each place.
    ensure!(ends.len() == 3, "{ends:?}");
    let address = format!("{}:", EDGES[0].v4);
    ensure!(ends.iter().all(|end| end.starts_with(&address)), "{ends:?}");
    let places = clients(&running.scene.agents[0], running.row.port)?;
    for place in ["192.0.2.2:5555", "192.0.2.10:6666"] {
        ensure!(places.contains(place), "{place} is not in {places:?}");
    }
    let row = &running.scene.agents[0].ports()?[&running.row.port];
    ensure!(row["dropped"] == 0, "{row}");
    Ok(())
}

#[test]
fn a_client_may_move_more_often_than_there_are_places_for_it() -> Result<()> {
    let running = pinned()?;
    let user = &running.region().client_a;
    let handshake = running.handshake()?;
    for port in 5000..5000 + FLOWS + 12 {
        user.sh(&format!(
            "wg set {INTERFACE} listen-port {port}; ping -n -c 1 -W 5 {}",
            A.server
        ))
        .with_context(|| running.endpoint().unwrap_or_default())?;
    }
    ensure!(running.handshake()? == handshake, "a new handshake");
    running.client.lose_nothing(A.server, 500, || Ok(()))
}

/// Sends what names no known session to `port` from as many ports of `node`,
/// twice as many as there are places for.
fn strangers(node: &Node, port: u16) -> Result<()> {
    let sent = node.inside(move || {
        let raw = Raw::open()?;
        let to = SocketAddrV4::new(VIP.parse()?, port);
        for number in 0..2 * FLOWS as u16 {
            let from = SocketAddrV4::new(B.client.parse()?, 20_000 + number);
            raw.send(from, to, &message::data(7 << 16 | u32::from(number), 64))?;
        }
        Ok(())
    });
    sent.join().expect("the thread does not panic")
}

#[test]
fn any_number_of_strangers_pushes_out_nobody_who_is_answered() -> Result<()> {
    let running = pinned()?;
    let region = running.region();
    let other = running.worker.enabled(&B)?;
    running.worker.await_state(&other.id, "enabled")?;
    let node = running.row.node.clone();
    let mut row = allocation(&running.worker, &other, None)?;
    row.node = node;
    running.scene.tell(&[running.row.clone(), row])?;
    region.names(&region.client_b, &[Family::V4])?;
    let second = Client::up(&region.client_b, &other.configuration)?;
    second.await_reach(B.server)?;

    let ends = || -> Result<_> {
        let ends = [running.row.port, other.port];
        let [one, two] = ends.map(|port| endpoint(&running.worker.node, port));
        Ok([one?, two?])
    };
    let handshakes =
        || -> Result<_> { Ok([handshake(&region.client_a)?, handshake(&region.client_b)?]) };
    let before = (ends()?, handshakes()?);
    running.client.lose_nothing(A.server, 4000, || {
        second.lose_nothing(B.server, 2000, || {
            strangers(&region.client_b, running.row.port)
        })
    })?;
    let after = (ends()?, handshakes()?);
    ensure!(before == after, "{before:?} became {after:?}");
    // They did come: all places are taken, and none of the other tenant's.
    let agent = &running.scene.agents[0];
    let [many, one] = [running.row.port, other.port].map(|port| clients(agent, port));
    let (many, one) = (many?, one?);
    ensure!(many.len() > FLOWS / 2, "{}: {many:?}", many.len());
    ensure!(one.len() == 1, "{one:?}");
    let row = &running.scene.agents[0].ports()?[&running.row.port];
    ensure!(row["dropped"] == 0, "{row}");
    Ok(())
}
