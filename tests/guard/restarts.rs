//! Sessions over restarts of whatever is behind them, and over lost maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use lab::edge::Edge;
use lab::topology::{A, Uplink};
use vpn_edge::datapath::{DEFAULT_ROOT, folder};
use vpn_edge_common::{Address, map, mapped};

use crate::{Scene, User, counters, drops, on_maps};

#[test]
fn a_restarted_daemon_costs_neither_the_silent_nor_the_busy_a_packet() -> Result<()> {
    let mut scene = Scene::new(Uplink::Veth)?;
    let users = [&scene.a, &scene.b];
    let sessions = |users: [&User; 2]| Ok::<_, anyhow::Error>(users.map(User::handshake));
    let before = sessions(users)?;
    let edge = &mut scene.edge;
    // One client sends all the while, the other only when it is over.
    scene
        .b
        .client
        .lose_nothing(scene.b.side.server, 3_000, || {
            edge.kill()?;
            edge.restart()
        })?;
    let silent = &scene.a;
    silent.client.lose_nothing(A.server, 500, || Ok(()))?;
    let after = sessions([&scene.a, &scene.b])?;
    for (before, after) in before.into_iter().zip(after) {
        ensure!(before? == after?, "there was a new handshake");
    }
    for user in [&scene.a, &scene.b] {
        let drops = drops(&scene.edge, user.tenant.port)?;
        ensure!(drops.is_empty(), "{drops:?}");
    }
    Ok(())
}

#[test]
fn clients_find_gateways_that_were_killed() -> Result<()> {
    gateways_killed(|_| Ok(()), |_| Ok(()))
}

#[test]
fn clients_find_gateways_that_were_killed_together_with_the_daemon() -> Result<()> {
    gateways_killed(Edge::kill, Edge::restart)
}

/// Kills both gateways between `before` and `after`, while one client is silent
/// and the other sends.
fn gateways_killed(
    before: fn(&mut Edge) -> Result<()>,
    after: fn(&mut Edge) -> Result<()>,
) -> Result<()> {
    let mut scene = Scene::new(Uplink::Veth)?;
    let pids = |scene: &Scene| scene.edge.node.sh("pgrep -f '[v]pn-edge gateway'");
    let killed = pids(&scene)?;
    let mut pings = scene.b.node.command("ping");
    pings.args(["-n", "-q", "-i", "0.01", scene.b.side.server]);
    let mut pings = scene.b.node.start("pings", pings)?;

    before(&mut scene.edge)?;
    let list = killed.replace('\n', " ");
    scene.edge.node.sh(&format!("kill -9 {list}"))?;
    after(&mut scene.edge)?;
    let opened = |port: u16| {
        scene
            .edge
            .await_ports(|ports| ports.get(&port).is_some_and(|row| row["mode"] == "xdp"))
    };
    for user in [&scene.a, &scene.b] {
        opened(user.tenant.port)?;
        scene.edge.await_state(&user.tenant.id, "enabled")?;
    }
    for user in [&scene.a, &scene.b] {
        user.await_reach()?;
        let configuration = scene.edge.configuration(&user.tenant.id)?;
        ensure!(
            configuration == user.tenant.configuration,
            "keys or port changed"
        );
        let handshakes = counters(&scene.edge, user.tenant.port)?.handshakes;
        ensure!(handshakes >= 2, "{handshakes} handshakes");
        let drops = drops(&scene.edge, user.tenant.port)?;
        ensure!(
            drops.keys().all(|reason| reason == "no_gateway"),
            "{drops:?}"
        );
    }
    ensure!(pings.running(), "the client sent all the while");
    let made = pids(&scene)?;
    ensure!(
        made.lines()
            .all(|pid| killed.lines().all(|killed| killed != pid)),
        "{killed} {made}"
    );
    Ok(())
}

#[test]
fn a_session_outlives_the_maps_by_grace_which_ends() -> Result<()> {
    let mut scene = Scene::new(Uplink::Veth)?;
    let port = scene.a.tenant.port;
    let handshake = scene.a.handshake()?;
    ensure!(
        counters(&scene.edge, port)?.graced == 0,
        "there was grace before"
    );
    scene.edge.stop()?;
    scene.edge.node.sh(&format!("rm -r {DEFAULT_ROOT}"))?;
    // The kernel takes the programs off in its own time.
    scene
        .edge
        .node
        .await_sh("! ip link show dev eth0 | grep -q xdp")?;
    ensure!(!scene.a.reaches(), "what steers without programs?");
    scene.edge.restart()?;
    scene
        .edge
        .await_ports(|ports| ports.get(&port).is_some_and(|row| row["mode"] == "xdp"))?;

    scene.a.client.lose_nothing(A.server, 1_000, || Ok(()))?;
    ensure!(
        scene.a.handshake()? == handshake,
        "there was a new handshake"
    );
    let counted = counters(&scene.edge, port)?;
    ensure!(
        counted.graced >= 1_000 && counted.handshakes == 0,
        "{counted:?}"
    );
    let refused = drops(&scene.edge, port)?;
    ensure!(refused.is_empty(), "{refused:?}");

    end_grace(&scene.edge, port)?;
    ensure!(!scene.a.reaches(), "grace does not end");
    let refused = drops(&scene.edge, port)?;
    ensure!(refused.keys().eq(["unknown_session"]), "{refused:?}");
    // WireGuard's own way out: a handshake, after which the session is known.
    scene.a.await_reach()?;
    let graced = counters(&scene.edge, port)?.graced;
    scene.a.client.lose_nothing(A.server, 500, || Ok(()))?;
    ensure!(counters(&scene.edge, port)?.graced == graced);
    Ok(())
}

/// Puts the end of the port's grace into the past.
fn end_grace(edge: &Edge, port: u16) -> Result<()> {
    on_maps(edge, move |maps| {
        let slot = maps.allocation(port).context("not allocated")?.slot;
        let pin = folder(Path::new(DEFAULT_ROOT))
            .join("maps")
            .join(map::LIMITS);
        let data = MapData::from_pin(pin)?;
        let mut limits: Array<_, [u64; 8]> = Array::try_from(Map::Array(data))?;
        let mut words = limits.get(&u32::from(slot), 0)?;
        ensure!(words[2] > 1, "there is no grace");
        words[2] = 1;
        Ok(limits.set(u32::from(slot), words, 0)?)
    })
}

#[test]
fn a_build_of_another_schema_takes_over_without_losing_a_packet() -> Result<()> {
    let mut scene = Scene::new(Uplink::Veth)?;
    let (port, handshake) = (scene.a.tenant.port, scene.a.handshake()?);
    let links = links(&scene.edge)?;
    ensure!(
        links.len() == 4,
        "two on the uplink, one a gateway: {links:?}"
    );

    let edge = &mut scene.edge;
    scene.a.client.lose_nothing(A.server, 6_000, || {
        edge.stop()?;
        let own = folder(Path::new(DEFAULT_ROOT));
        edge.node
            .sh(&format!("mv {} {DEFAULT_ROOT}/v1", own.display()))?;
        edge.restart()?;
        let start = Instant::now();
        while edge.node.sh(&format!("ls {DEFAULT_ROOT}"))?.contains("v1") {
            ensure!(start.elapsed() < Duration::from_secs(10), "v1 stays");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })?;
    let moved = self::links(&scene.edge)?;
    ensure!(moved == links, "{links:?} became {moved:?}");
    ensure!(
        scene.a.handshake()? == handshake,
        "there was a new handshake"
    );
    let counted = counters(&scene.edge, port)?;
    ensure!(counted.graced > 0 && counted.handshakes == 0, "{counted:?}");
    let refused = drops(&scene.edge, port)?;
    ensure!(refused.is_empty(), "{refused:?}");
    ensure!(scene.b.reaches(), "the silent client's session is gone");
    Ok(())
}

#[test]
fn maps_of_a_build_without_the_set_of_edge_nodes_get_one_without_losing_a_packet() -> Result<()> {
    let mut scene = Scene::new(Uplink::Veth)?;
    let (port, handshake) = (scene.a.tenant.port, scene.a.handshake()?);
    let links = links(&scene.edge)?;
    let pin = folder(Path::new(DEFAULT_ROOT))
        .join("maps")
        .join(map::NODES);
    let edge = &mut scene.edge;
    edge.change(&[("--edge-node", "198.51.100.11,2001:db8::11")]);
    scene.a.client.lose_nothing(A.server, 3_000, || {
        edge.stop()?;
        edge.node.sh(&format!("rm {}", pin.display()))?;
        edge.vpn_edge(&["flows"])?;
        edge.restart()?;
        await_nodes(edge)
    })?;
    ensure!(self::links(&scene.edge)? == links, "other links");
    ensure!(scene.a.handshake()? == handshake, "a new handshake");
    let refused = drops(&scene.edge, port)?;
    ensure!(refused.is_empty(), "{refused:?}");
    ensure!(counters(&scene.edge, port)?.graced == 0, "there was grace");

    // What others change of it is put back.
    let emptied = scene.edge.node.inside(move || {
        let data = MapData::from_pin(pin)?;
        let mut nodes: HashMap<_, Address, u8> = HashMap::try_from(Map::HashMap(data))?;
        nodes.insert([7; 16], 1, 0)?;
        Ok::<_, anyhow::Error>(nodes.remove(&mapped([198, 51, 100, 11]))?)
    });
    emptied.join().expect("the thread does not panic")?;
    await_nodes(&scene.edge)
}

/// Waits until the edge's maps name the other edge nodes and nobody else.
fn await_nodes(edge: &Edge) -> Result<()> {
    let expected: BTreeSet<IpAddr> = ["198.51.100.11".parse()?, "2001:db8::11".parse()?].into();
    let start = Instant::now();
    loop {
        let nodes = on_maps(edge, |maps| Ok(maps.nodes()?))?;
        if nodes == expected {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "{nodes:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The kernel's numbers of the pinned links.
fn links(edge: &Edge) -> Result<BTreeMap<String, u32>> {
    let read = edge.node.inside(|| {
        let pins = std::fs::read_dir(folder(Path::new(DEFAULT_ROOT)).join("links"))?;
        pins.map(|pin| {
            let pin = pin?;
            let link: FdLink = PinnedLink::from_pin(pin.path())?.into();
            let id = link.info()?.id();
            Ok((pin.file_name().to_string_lossy().into_owned(), id))
        })
        .collect()
    });
    read.join().expect("the thread does not panic")
}
