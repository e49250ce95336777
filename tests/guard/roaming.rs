//! Clients that move.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lab::client::INTERFACE;
use lab::raw::Tap;
use lab::topology::{A, Uplink};
use lab::transfer::{Length, Transfer};
use vpn_edge_common::wire::message;

use crate::{Scene, counters, drops};

#[test]
fn a_client_that_moves_keeps_its_session_over_xdp() -> Result<()> {
    roam(Uplink::Veth)
}

#[test]
fn a_client_that_moves_keeps_its_session_over_tc() -> Result<()> {
    roam(Uplink::Bridge)
}

fn roam(uplink: Uplink) -> Result<()> {
    let scene = Scene::new(uplink)?;
    let (user, router) = (&scene.a, &scene.topology.router);
    let port = user.tenant.port;
    let tap = Tap::new(router, None, port)?;
    let length = Length::UntilFinished;
    let transfer = Transfer::start(&user.node, &scene.topology.cluster, A.server, length)?;
    transfer.await_progress(512 << 10)?;
    let (handshake, before) = (user.handshake()?, counters(&scene.edge, port)?);

    user.node
        .sh(&format!("wg set {INTERFACE} listen-port 5555"))?;
    tap.wait_for(|seen| seen.from.to_string() == "192.0.2.2:5555")?;
    transfer.await_progress(1 << 20)?;
    // A userspace client keeps to its old address until a handshake fails,
    // unless it gets another port too.
    router.sh("ip address add 192.0.2.9/30 dev client-a")?;
    user.node.sh(&format!(
        "ip address add 192.0.2.10/30 dev eth0
         ip route replace default via 192.0.2.9
         ip address del 192.0.2.2/30 dev eth0
         wg set {INTERFACE} listen-port 6666"
    ))?;
    tap.wait_for(|seen| seen.from.to_string() == "192.0.2.10:6666")?;
    transfer.await_progress(1 << 20)?;
    transfer.finish()?;

    let seen = tap.seen();
    let places: BTreeSet<_> = seen.iter().map(|seen| seen.from).collect();
    ensure!(places.len() == 3, "the client was at {places:?}");
    let indexes: BTreeSet<_> = seen
        .iter()
        .filter(|seen| seen.kind() == message::TRANSPORT_DATA)
        .map(|seen| seen.index())
        .collect();
    ensure!(indexes.len() == 1, "sessions: {indexes:?}");
    ensure!(user.handshake()? == handshake, "there was a new handshake");
    let after = counters(&scene.edge, port)?;
    ensure!(
        (after.handshakes, after.announced) == (before.handshakes, before.announced),
        "{before:?} {after:?}"
    );
    let drops = drops(&scene.edge, port)?;
    ensure!(drops.is_empty(), "{drops:?}");
    Ok(())
}
