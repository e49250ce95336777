//! The balancer: flows, and the health of targets.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::node::Node;
use lab::raw::Raw;
use lab::region::{EDGES, Family, Region, StandIn};
use lab::topology::HOSTNAME;

const PORT: u16 = 31_000;
const BOTH: [&str; 2] = [EDGES[0].name, EDGES[1].name];

/// A socket of a client, connected to the balancer.
struct Probe(UdpSocket);

impl Probe {
    fn new(client: &Node, family: Family) -> Result<Self> {
        let socket = client.inside(move || {
            let (own, vip) = match family {
                Family::V4 => ("0.0.0.0", family.vip()),
                Family::V6 => ("::", family.vip()),
            };
            let socket = UdpSocket::bind((own, 0))?;
            socket.connect((vip, PORT))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(socket)
        });
        Ok(Self(socket.join().expect("the thread does not panic")?))
    }

    /// Who answers, and from where the node says the question came.
    fn ask(&self) -> Result<(String, String)> {
        self.0.send(b"who")?;
        let mut answer = [0; 128];
        let length = self.0.recv(&mut answer).context("no answer")?;
        let answer = str::from_utf8(&answer[..length])?;
        let (name, from) = answer.split_once(' ').context("no name")?;
        Ok((name.to_owned(), from.to_owned()))
    }

    fn target(&self) -> Result<String> {
        Ok(self.ask()?.0)
    }

    fn own(&self) -> Result<String> {
        Ok(self.0.local_addr()?.to_string())
    }
}

/// Lets every node answer with its name and the client's address.
struct Answering {
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<Result<()>>>,
}

impl Answering {
    fn start(region: &Region) -> Result<Self> {
        let mut answering = Self {
            stop: Arc::default(),
            servers: Vec::new(),
        };
        for (host, node) in region.hosts() {
            for family in Family::BOTH {
                let stop = Arc::clone(&answering.stop);
                let (listening, ready) = std::sync::mpsc::channel();
                let server = node.inside(move || {
                    let socket = UdpSocket::bind((family.address(&host), PORT))?;
                    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                    listening.send(())?;
                    let mut question = [0; 16];
                    while !stop.load(Relaxed) {
                        if let Ok((_, from)) = socket.recv_from(&mut question) {
                            socket.send_to(format!("{} {from}", host.name).as_bytes(), from)?;
                        }
                    }
                    Ok(())
                });
                answering.servers.push(server);
                ready.recv().context("a server does not listen")?;
            }
        }
        Ok(answering)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
    }
}

fn healthy(region: &Region) -> Result<[StandIn; 2]> {
    let [one, two] = &region.edges;
    let stand_ins = [StandIn::start(one)?, StandIn::start(two)?];
    region.balancer.await_healthy(&BOTH)?;
    Ok(stand_ins)
}

#[test]
fn flows_are_spread_and_each_stays_with_its_target() -> Result<()> {
    let region = Region::new()?;
    let _answering = Answering::start(&region)?;
    for family in Family::BOTH {
        let probes: Vec<Probe> = (0..32)
            .map(|_| Probe::new(&region.client_a, family))
            .collect::<Result<_>>()?;
        let mut targets = BTreeSet::new();
        for probe in &probes {
            let (target, from) = probe.ask()?;
            ensure!(from == probe.own()?, "{from} is not the client's address");
            for _ in 0..5 {
                ensure!(probe.target()? == target, "the flow moved");
            }
            let flows = region.balancer.flows(PORT)?;
            let own = flows.iter().find(|flow| flow.client.to_string() == from);
            let own = own.with_context(|| format!("no flow of {from} in {flows:?}"))?;
            ensure!(own.target == target, "{own:?}, but {target} answers");
            targets.insert(target);
        }
        ensure!(targets == BTreeSet::from(BOTH.map(str::to_owned)));
    }
    Ok(())
}

#[test]
fn flows_move_in_mid_session_when_they_are_told_to() -> Result<()> {
    let region = Region::new()?;
    let _answering = Answering::start(&region)?;
    let probes = Family::BOTH.map(|family| Probe::new(&region.client_b, family));
    for probe in probes {
        let probe = probe?;
        let first = probe.target()?;
        region.balancer.rehash()?;
        let second = probe.target()?;
        ensure!(second != first, "stayed with {first}");
        region.balancer.rehash()?;
        ensure!(probe.target()? == first, "did not come back");

        for name in [BOTH[0], BOTH[1], "worker-2"] {
            region.balancer.pin(&[name])?;
            ensure!(region.balancer.targets() == [name]);
            ensure!(probe.target()? == name, "not pinned to {name}");
            ensure!(region.balancer.targets_of(PORT)? == [name]);
        }
        region.balancer.unpin()?;
        ensure!(region.balancer.targets() == BOTH);
        ensure!(probe.target()? == "worker-2", "unpinning moved the flow");
        region.balancer.rehash()?;
        ensure!(BOTH.contains(&probe.target()?.as_str()));
    }
    Ok(())
}

#[test]
fn an_unhealthy_target_gets_nothing_and_with_none_left_all_do() -> Result<()> {
    let region = Region::new()?;
    let _answering = Answering::start(&region)?;
    ensure!(region.balancer.targets() == BOTH, "not open from the start");
    let [one, two] = healthy(&region)?;

    let probes: Vec<Probe> = (0..16)
        .map(|flow| Probe::new(&region.client_a, Family::BOTH[flow % 2]))
        .collect::<Result<_>>()?;
    let targets = || probes.iter().map(Probe::target).collect::<Result<Vec<_>>>();
    let before = targets()?;
    let on_first = before.iter().filter(|target| *target == BOTH[0]).count();
    ensure!(on_first > 0 && on_first < probes.len(), "{before:?}");

    // As an edge that drains.
    one.answer(503);
    region.balancer.await_healthy(&[BOTH[1]])?;
    ensure!(region.balancer.targets() == [BOTH[1]]);
    ensure!(targets()?.iter().all(|target| target == BOTH[1]));

    // As one that is gone.
    drop(two);
    region.balancer.await_healthy(&[])?;
    ensure!(region.balancer.targets() == BOTH, "failed closed");
    ensure!(
        targets()?.iter().all(|target| target == BOTH[1]),
        "flows of the last target moved though no other is better"
    );
    let new = Probe::new(&region.client_b, Family::V4)?;
    ensure!(BOTH.contains(&new.target()?.as_str()));

    one.answer(200);
    region.balancer.await_healthy(&[BOTH[0]])?;
    ensure!(targets()?.iter().all(|target| target == BOTH[0]));
    Ok(())
}

#[test]
fn a_target_that_flaps_leaves_the_other_ones_flows_alone() -> Result<()> {
    let region = Region::new()?;
    let _answering = Answering::start(&region)?;
    let [one, _two] = healthy(&region)?;
    let probes: Vec<Probe> = (0..16)
        .map(|_| Probe::new(&region.client_a, Family::V6))
        .collect::<Result<_>>()?;
    let mut steady = Vec::new();
    for probe in &probes {
        if probe.target()? == BOTH[1] {
            steady.push(probe);
        }
    }
    ensure!(!steady.is_empty() && steady.len() < probes.len());
    for _ in 0..3 {
        one.answer(503);
        region.balancer.await_healthy(&[BOTH[1]])?;
        for probe in &steady {
            ensure!(probe.target()? == BOTH[1]);
        }
        one.answer(200);
        region.balancer.await_healthy(&BOTH)?;
        for probe in &steady {
            ensure!(probe.target()? == BOTH[1], "a target came back and took it");
        }
    }
    Ok(())
}

#[test]
fn a_late_answer_does_not_take_the_place_of_the_clients_flow() -> Result<()> {
    let region = Region::new()?;
    let _answering = Answering::start(&region)?;
    region.balancer.pin(&[BOTH[0]])?;
    let probe = Probe::new(&region.client_a, Family::V4)?;
    ensure!(probe.target()? == BOTH[0]);
    region.balancer.pin(&[BOTH[1]])?;
    // The first target still has something to say, before the client has.
    let SocketAddr::V4(client) = probe.0.local_addr()? else {
        unreachable!("an IPv4 probe")
    };
    let from = SocketAddrV4::new(EDGES[0].v4.parse()?, PORT);
    let late = region.edges[0].inside(move || Raw::open()?.send(from, client, b"late"));
    late.join().expect("the thread does not panic")?;
    region.edges[0].sh("ping -n -c 1 -W 5 192.0.2.2")?;

    region.balancer.pin(&[BOTH[0]])?;
    let (target, from) = probe.ask()?;
    ensure!(target == BOTH[0], "the flow has not come back");
    ensure!(from == probe.own()?, "the client became {from}");
    Ok(())
}

#[test]
fn clients_know_the_balancer_by_name() -> Result<()> {
    let region = Region::new()?;
    let lookup = format!("getent ahosts {HOSTNAME} | cut -d' ' -f1 | sort -u");
    let known = || region.client_a.sh(&lookup);
    ensure!(known()? == format!("{}\n{}", Family::V6.vip(), Family::V4.vip()));
    for family in Family::BOTH {
        region.names(&region.client_a, &[family])?;
        ensure!(known()? == family.vip(), "{}", known()?);
        let vip = family.vip();
        region.client_a.sh(&format!("ping -n -c 1 -W 5 {vip}"))?;
    }
    Ok(())
}
