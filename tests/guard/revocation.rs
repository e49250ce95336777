//! Whose access is taken away is out at once, whatever the gateway does.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use lab::edge::Edge;
use lab::node::Node;
use lab::raw::{Raw, Seen, Tap};
use lab::topology::{EDGE, Uplink};
use vpn_edge::datapath::{DEFAULT_ROOT, Reader};
use vpn_edge_common::mode;
use vpn_edge_common::wire::message;

use crate::gate::FORGED;
use crate::{Scene, between, drops};

/// Where a message has the number under which a [`Sender`] sent it: in what is
/// encrypted, which the edge does not look at.
const NUMBER: std::ops::Range<usize> = 16..24;

#[test]
fn from_the_answer_to_disable_on_no_packet_reaches_the_gateway() -> Result<()> {
    let revoked = Revoked::new("disable")?;
    let states = &revoked.states;
    // Closed until the gateway is gone, and then nobody's.
    let modes: Vec<u8> = states.iter().map(|state| state.mode).collect();
    let gateways: Vec<bool> = states.iter().map(|state| state.gateway).collect();
    ensure!(
        modes == [mode::XDP, mode::CLOSED, mode::NONE] && gateways == [true, true, false],
        "{states:?}"
    );
    ensure!(revoked.scene.b.reaches(), "the other tenant is cut off too");
    revoked.none_came_after_the_answer()
}

#[test]
fn from_the_answer_to_regenerate_on_no_packet_of_the_old_session_reaches_a_gateway() -> Result<()> {
    let revoked = Revoked::new("regenerate")?;
    let states = &revoked.states;
    let modes: Vec<u8> = states.iter().map(|state| state.mode).collect();
    ensure!(modes == [mode::XDP, mode::CLOSED, mode::XDP], "{states:?}");
    ensure!(
        states[2].generation == states[0].generation + 1,
        "{states:?}"
    );

    // The port is open again, and nothing of the old session is known.
    let (scene, port) = (&revoked.scene, revoked.scene.a.tenant.port);
    let new = Tap::new(&scene.edge.node, Some(&namespace(port)), port)?;
    let before = drops(&scene.edge, port)?;
    let sender = Sender::start(&scene.topology.router, port, &revoked.session);
    std::thread::sleep(Duration::from_millis(200));
    let sent = sender.stop()?.len() as u64;
    let refused = between(&before, &drops(&scene.edge, port)?);
    ensure!(
        refused.get("unknown_session") >= Some(&sent),
        "{sent} sent, {refused:?}"
    );
    ensure!(
        new.seen().iter().all(|seen| seen.from.port() != FORGED),
        "the new gateway gets the old session's packets"
    );
    revoked.none_came_after_the_answer()
}

/// A scene in which tenant A's access was taken away, while ten thousand packets
/// a second of its session came in.
struct Revoked {
    scene: Scene,
    /// A message of the session.
    session: Vec<u8>,
    /// When the API's answer was there.
    answer: SystemTime,
    /// What was sent, and when.
    sent: Vec<SystemTime>,
    /// What the gateway got of it.
    got: Vec<Seen>,
    /// What the port was, one after the other.
    states: Vec<State>,
}

impl Revoked {
    fn new(verb: &'static str) -> Result<Self> {
        let scene = Scene::new(Uplink::Veth)?;
        let (id, port) = (scene.a.tenant.id.clone(), scene.a.tenant.port);
        let router = &scene.topology.router;
        let session = {
            let tap = Tap::new(router, None, port)?;
            ensure!(scene.a.reaches());
            tap.wait_for(|seen| seen.kind() == message::TRANSPORT_DATA)?
                .payload
        };
        let gateway = Tap::new(&scene.edge.node, Some(&namespace(port)), port)?;
        let watch = Watch::start(&scene.edge, port);
        let sender = Sender::start(router, port, &session);
        gateway.wait_for(|seen| number(seen) == Some(1_000))?;

        let answer = call(&scene.edge, format!("/v1/tenants/{id}/vpn/{verb}"))?;
        match verb {
            "disable" => scene.edge.await_ports(|ports| !ports.contains_key(&port))?,
            _ => {
                scene.edge.await_state(&id, "enabled")?;
                scene
                    .edge
                    .await_ports(|ports| ports[&port]["mode"] == "xdp")?;
            }
        }
        let (sent, states) = (sender.stop()?, watch.stop()?);
        let got = std::mem::take(&mut *gateway.seen());
        Ok(Self {
            scene,
            session,
            answer,
            sent,
            got,
            states,
        })
    }

    fn none_came_after_the_answer(&self) -> Result<()> {
        let last = self.got.iter().filter_map(number).max().unwrap_or(0);
        let refused = self.sent.get(last as usize + 1);
        if let Some(&refused) = refused {
            let (sign, distance) = match refused.duration_since(self.answer) {
                Ok(after) => ("after", after),
                Err(error) => ("before", error.duration()),
            };
            println!("the first refused packet was sent {distance:?} {sign} the answer");
        }
        let late = self
            .got
            .iter()
            .filter(|seen| seen.from.port() == FORGED && seen.time > self.answer);
        let late = late.count();
        ensure!(late == 0, "{late} packets came after the answer");
        ensure!(self.sent.len() > last as usize + 100, "too few were sent");
        Ok(())
    }
}

fn number(seen: &Seen) -> Option<u64> {
    let number = seen.payload.get(NUMBER)?.try_into().ok()?;
    (seen.from.port() == FORGED).then(|| u64::from_le_bytes(number))
}

/// Calls the API, and says when the answer was there.
fn call(edge: &Edge, path: String) -> Result<SystemTime> {
    let token = edge.token().to_owned();
    let call = edge.node.inside(move || {
        let mut stream = TcpStream::connect("127.0.0.1:8080")?;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
        )?;
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer)?;
        let time = SystemTime::now();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 20"), "{answer}");
        Ok(time)
    });
    call.join().expect("the thread does not panic")
}

fn namespace(port: u16) -> PathBuf {
    Path::new("/run/netns").join(format!("vpn-edge-{port}"))
}

/// Sends a session's message 10,000 times a second, numbered.
struct Sender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<SystemTime>>>,
}

impl Sender {
    fn start(router: &Node, port: u16, session: &[u8]) -> Self {
        let (mut message, stop) = (session.to_vec(), Arc::<AtomicBool>::default());
        let ended = Arc::clone(&stop);
        let thread = router.inside(move || {
            let raw = Raw::open()?;
            let from = SocketAddrV4::new([198, 51, 100, 1].into(), FORGED);
            let to = SocketAddrV4::new(EDGE.parse()?, port);
            let mut sent = Vec::new();
            while !ended.load(Relaxed) {
                message[NUMBER].copy_from_slice(&(sent.len() as u64).to_le_bytes());
                sent.push(SystemTime::now());
                raw.send(from, to, &message)?;
                std::thread::sleep(Duration::from_micros(40));
            }
            Ok(sent)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<Vec<SystemTime>> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("the thread does not panic")
    }
}

/// What the maps say of a port, and whether it has a gateway.
#[derive(Clone, Debug, PartialEq)]
struct State {
    mode: u8,
    generation: u64,
    gateway: bool,
}

/// Follows a port's [`State`].
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<State>>>,
}

impl Watch {
    fn start(edge: &Edge, port: u16) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&stop);
        let thread = edge.node.inside(move || {
            let maps = Reader::open(Path::new(DEFAULT_ROOT))?;
            let mut states: Vec<State> = Vec::new();
            while !ended.load(Relaxed) {
                let allocation = maps.allocation(port).unwrap_or_default();
                if states.last().map(|state| state.mode) != Some(allocation.mode) {
                    states.push(State {
                        mode: allocation.mode,
                        generation: allocation.generation,
                        gateway: namespace(port).exists(),
                    });
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            Ok(states)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<Vec<State>> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("the thread does not panic")
    }
}
