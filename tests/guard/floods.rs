//! Floods of every kind, while two tenants work.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::node::Node;
use lab::raw::{Raw, Tap};
use lab::topology::{A, EDGE, Uplink};
use lab::transfer::{Length, Transfer};
use vpn_edge_common::wire::message;

use crate::forger::Forger;
use crate::gate::{FORGED, Gate};
use crate::{Scene, between, drops};

/// Packets of each flood.
const PACKETS: u64 = 20_000;

/// Sent at once. Less than a veth's ring holds, so that the edge sees them all.
const BATCH: u64 = 50;

/// Whose address packets come from.
#[derive(Clone, Copy)]
enum Source {
    /// The attacker's own.
    One,
    /// Another with each packet.
    Any,
    /// The client's.
    Client,
}

/// What of a flood may pass: at once, and then a second.
type Allowed = Option<(u64, f64)>;
const OF_A_SOURCE: Allowed = Some((20, 20.0));
const OF_A_TENANT: Allowed = Some((100, 100.0));

struct Flood {
    name: &'static str,
    source: Source,
    /// From one of the client's own initiations.
    message: fn(&mut Forger, &[u8]) -> Vec<u8>,
    /// The reasons that refuse it, all of them.
    reasons: &'static [&'static str],
    allowed: Allowed,
}

const FLOODS: &[Flood] = &[
    Flood {
        name: "random bytes",
        source: Source::One,
        message: |forger, _| {
            let length = forger.random.number() % 1400;
            forger.random.bytes(length as usize)
        },
        reasons: &["message_type", "truncated"],
        allowed: None,
    },
    Flood {
        name: "initiations with a wrong mac1",
        source: Source::One,
        message: |forger, _| forger.forged_initiation(),
        reasons: &["mac1", "source_rate"],
        allowed: None,
    },
    Flood {
        name: "initiations with a wrong mac1 from anywhere",
        source: Source::Any,
        message: |forger, _| forger.forged_initiation(),
        reasons: &["mac1"],
        allowed: None,
    },
    Flood {
        name: "one good initiation again and again",
        source: Source::One,
        message: |_, captured| captured.to_vec(),
        reasons: &["replay", "source_rate"],
        allowed: None,
    },
    Flood {
        name: "one good initiation again and again from anywhere",
        source: Source::Any,
        message: |_, captured| captured.to_vec(),
        reasons: &["replay"],
        allowed: None,
    },
    Flood {
        name: "initiations with a right mac1",
        source: Source::One,
        message: |forger, _| forger.initiation(),
        reasons: &["source_rate"],
        allowed: OF_A_SOURCE,
    },
    Flood {
        name: "initiations with a right mac1 in the client's name",
        source: Source::Client,
        message: |forger, _| forger.initiation(),
        reasons: &["source_rate"],
        allowed: OF_A_SOURCE,
    },
    SPOOFED,
    Flood {
        name: "data of guessed sessions",
        source: Source::One,
        message: |forger, _| forger.data(),
        reasons: &["unknown_session"],
        allowed: None,
    },
    Flood {
        name: "data of guessed sessions from anywhere",
        source: Source::Any,
        message: |forger, _| forger.data(),
        reasons: &["unknown_session"],
        allowed: None,
    },
    Flood {
        name: "responses to nothing, with a right mac1",
        source: Source::Any,
        message: |forger, _| forger.response(),
        reasons: &["unknown_session"],
        allowed: None,
    },
    Flood {
        name: "cookie replies to nothing",
        source: Source::Any,
        message: |forger, _| forger.cookie_reply(),
        reasons: &["unknown_session"],
        allowed: None,
    },
];

const SPOOFED: Flood = Flood {
    name: "initiations with a right mac1 from anywhere",
    source: Source::Any,
    message: |forger, _| forger.initiation(),
    reasons: &["handshake_rate"],
    allowed: OF_A_TENANT,
};

#[test]
fn no_flood_reaches_a_gateway_or_disturbs_who_works() -> Result<()> {
    flooded(Uplink::Veth, FLOODS)
}

#[test]
fn no_flood_reaches_a_gateway_on_the_tc_hook_either() -> Result<()> {
    flooded(Uplink::Bridge, &[SPOOFED])
}

fn flooded(uplink: Uplink, floods: &[Flood]) -> Result<()> {
    let scene = Scene::new(uplink)?;
    let port = scene.a.tenant.port;
    let captured = captured_initiation(&scene)?;
    let gate = Gate::new(&scene.edge.node, port)?;
    let cluster = &scene.topology.cluster;
    let transfer = |user: &crate::User| {
        Transfer::start(&user.node, cluster, user.side.server, Length::UntilFinished)
    };
    let transfers = [transfer(&scene.a)?, transfer(&scene.b)?];
    for (flood, seed) in floods.iter().zip(1..) {
        let before = (drops(&scene.edge, port)?, gate.came()?);
        let lost = lost(&scene)?;
        let forger = Forger::new(&scene.a.tenant.configuration, seed)?;
        let sent = send(&scene.topology.router, port, flood, forger, &captured)?;

        let mut looks = 0;
        let (dropped, through) = loop {
            let dropped = between(&before.0, &drops(&scene.edge, port)?);
            let through = gate.came()? - before.1;
            looks += 1;
            if dropped.values().sum::<u64>() + through == PACKETS || looks == 20 {
                break (dropped, through);
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let name = flood.name;
        eprintln!("{name}: {dropped:?}, {through} came through in {sent:?}");
        let lost = self::lost(&scene)? - lost;
        let counted = dropped.values().sum::<u64>() + through;
        ensure!(
            counted <= PACKETS && PACKETS - counted <= lost,
            "{name}: {PACKETS} sent, {dropped:?} and {through} came through; {lost} lost on the way"
        );
        ensure!(
            dropped.keys().eq(flood.reasons),
            "{name}: refused for other reasons: {dropped:?}"
        );
        match flood.allowed {
            None => ensure!(through == 0, "{name}: {through} came through"),
            Some((burst, rate)) => {
                // Each CPU may serve one more.
                let most = burst + (rate * sent.as_secs_f64()) as u64 + 8;
                ensure!(
                    (1..=most).contains(&through),
                    "{name}: {through} came through, of {most} at most"
                );
            }
        }
        for transfer in &transfers {
            transfer.await_progress(128 << 10).context(name)?;
        }
    }
    for transfer in transfers {
        transfer.finish()?;
    }
    let spared = drops(&scene.edge, scene.b.tenant.port)?;
    ensure!(spared.is_empty(), "the other tenant has drops: {spared:?}");
    Ok(())
}

#[test]
fn a_client_connects_while_a_stranger_sends_from_the_ports_between_nodes() -> Result<()> {
    /// The default of --hop-ports.
    const PORTS: std::ops::Range<u16> = 61_000..61_128;
    let scene = Scene::new(Uplink::Veth)?;
    let (port, configuration) = (scene.a.tenant.port, &scene.a.tenant.configuration);
    let before = drops(&scene.edge, port)?;
    let mut forger = Forger::new(configuration, 1)?;
    let (sent, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
    let sender = scene.topology.router.inside(move || {
        let raw = Raw::open()?;
        let to = SocketAddrV4::new(EDGE.parse()?, port);
        let mut ports = PORTS.cycle();
        let start = Instant::now();
        // 1,500 a second.
        for batch in 1.. {
            for port in ports.by_ref().take(15) {
                let from = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), port);
                raw.send(from, to, &forger.initiation())?;
            }
            counted.fetch_add(15, Relaxed);
            if stopped.load(Relaxed) {
                break;
            }
            let next = start + batch * Duration::from_millis(10);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok::<_, anyhow::Error>(())
    });
    // What may be sent at once is used up by then.
    while sent.load(Relaxed) < 1_000 && !sender.is_finished() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let client = Client::up(&scene.a.node, configuration)?;
    let start = Instant::now();
    let mut reaches = client.reaches(A.server);
    while !reaches && start.elapsed() < Duration::from_secs(10) {
        reaches = client.reaches(A.server);
    }
    stop.store(true, Relaxed);
    sender.join().expect("the thread does not panic")?;
    let dropped = between(&before, &drops(&scene.edge, port)?);
    ensure!(reaches, "the client does not connect: {dropped:?}");
    ensure!(dropped.keys().eq(["source_rate"]), "{dropped:?}");
    Ok(())
}

/// The initiation of tenant A's client that brings up its next session.
fn captured_initiation(scene: &Scene) -> Result<Vec<u8>> {
    let tap = Tap::new(&scene.topology.router, None, scene.a.tenant.port)?;
    lab::client::Client::up(&scene.a.node, &scene.a.tenant.configuration)?;
    scene.a.await_reach()?;
    Ok(tap
        .wait_for(|seen| seen.kind() == message::INITIATION)?
        .payload)
}

/// Sends the flood from beyond the edge's uplink, and says how long it took.
fn send(
    router: &Node,
    port: u16,
    flood: &Flood,
    mut forger: Forger,
    captured: &[u8],
) -> Result<Duration> {
    let (source, message, captured) = (flood.source, flood.message, captured.to_vec());
    let sender = router.inside(move || {
        let raw = Raw::open()?;
        let to = SocketAddrV4::new(EDGE.parse()?, port);
        let start = Instant::now();
        for number in 0..PACKETS {
            let from = match source {
                Source::One => Ipv4Addr::new(198, 51, 100, 1),
                Source::Client => A.client.parse()?,
                Source::Any => {
                    let [a, b, c, d, ..] = forger.random.number().to_ne_bytes();
                    Ipv4Addr::new(20 + a % 64, b, c, d)
                }
            };
            let payload = message(&mut forger, &captured);
            raw.send(SocketAddrV4::new(from, FORGED), to, &payload)?;
            if number % BATCH == 0 {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        Ok(start.elapsed())
    });
    sender.join().expect("the thread does not panic")
}

/// Packets that the edge's uplink had no room for.
fn lost(scene: &Scene) -> Result<u64> {
    let counts = |node: &Node, files: &str| -> Result<u64> {
        let text = node.sh(&format!("cat {files}"))?;
        text.lines().map(|line| Ok(line.parse::<u64>()?)).sum()
    };
    Ok(counts(
        &scene.topology.router,
        "/sys/class/net/edge/statistics/tx_dropped",
    )? + counts(
        &scene.edge.node,
        "/sys/class/net/eth0/statistics/rx_dropped",
    )?)
}
