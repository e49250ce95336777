//! Measures one subject at a time.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, DevMap, PerCpuArray};
use aya::programs::xdp::{XdpLinkId, XdpMode};
use aya::programs::{SchedClassifier, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, TestRun};
use lab::sandbox::Sandbox;
use vpn_edge::datapath::{Change, Datapath, EdgeNode, SlotState};
use vpn_edge_common::bench::{FRAME, gateway};
use vpn_edge_common::{Allocation, DropReason, mapped, mode, program};
use vpn_edge_ebpf::mac1;

use crate::clock::Clock;
use crate::messages::{self, FIRST_PORT, FLOOD, NODE, Traffic};
use crate::refill::Refill;
use crate::subjects::{Cell, Kind, MOST_PORTS, Subject, Way};
use crate::world::{self, World};

/// Of packets to other nodes.
pub const HOP_PORTS: u16 = 20_000;
/// Runs of a program in one round.
pub const RUNS: u32 = 100_000;
/// Times that one sample is tried.
const ATTEMPTS: u32 = 50;
/// Frames along a path in one round, so many that all flows get their turn.
const FRAMES: u32 = 3 * 65_536;
/// Frames through the kernel's stack, which takes longer for them.
const FRAMES_BY_KERNEL: u32 = 65_536;
/// First packets through a kernel that tracks flows, at least.
const FIRST_FRAMES: u32 = 5_000;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BENCH_EBPF"));

pub struct Rig {
    pub datapath: Datapath,
    pub ebpf: Ebpf,
    pub clock: Clock,
    paths: Vec<Path>,
    /// Where programs run over packets that are made anew.
    pub dual: Option<World>,
    sandbox: Sandbox,
}

/// A world, and what has been done in it.
struct Path {
    way: Way,
    rules: Option<Rules>,
    world: World,
    /// The program at the far end.
    pod: Option<(&'static str, XdpLinkId)>,
    /// Numbers of ports and flows that were shown to arrive.
    shown: Vec<(u16, u32)>,
}

/// What a world is made for, where the kernel tracks flows.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rules {
    ports: u16,
    /// Whether flows are forgotten before each round.
    forgets: bool,
}

impl Rig {
    pub fn new() -> Result<Self> {
        let clock = Clock::on_last_cpu()?;
        let sandbox = Sandbox::enter()?;
        let datapath = Datapath::open(&sandbox.bpffs())?;
        let mut ebpf = Ebpf::load(OBJECT)?;
        for (_, program) in ebpf.programs_mut() {
            <&mut Xdp>::try_from(program)?.load()?;
        }
        Ok(Self {
            datapath,
            ebpf,
            clock,
            paths: Vec::new(),
            dual: None,
            sandbox,
        })
    }

    /// Nanoseconds a packet.
    pub fn measure(&mut self, subject: &Subject) -> Result<f64> {
        match subject.kind {
            Kind::Program(name, packet) => self.program(name, &packet()),
            Kind::Renewed(scene) => self.renewed(scene),
            Kind::Path(way, cell) => self.path(way, cell),
        }
        .with_context(|| format!("cannot measure {}", subject.name))
    }

    fn program(&mut self, name: &str, packet: &[u8]) -> Result<f64> {
        self.enter(Way::Redirect, 1, None)?;
        // The gateway has the node's address, so that the rewritten packet,
        // which the next run sees, is as good as the first.
        self.allocate(1, |_| NODE)?;
        // Others on this machine may keep the buckets from being filled in time.
        for _ in 0..ATTEMPTS {
            let refill = Refill::start(&self.sandbox.bpffs())?;
            let before = self.datapath.maps.counters(0)?;
            let program = program_of(&mut self.datapath, &mut self.ebpf, name)?;
            let cost = self.clock.cost(RUNS, || {
                program.test_run(TestRunOptions {
                    data_in: Some(packet),
                    repeat: RUNS,
                    ..TestRunOptions::default()
                })?;
                Ok(())
            })?;
            refill.stop()?;
            // What a limit refused was not what is to be measured.
            let after = self.datapath.maps.counters(0)?;
            let refused: u64 = [
                DropReason::SourceRate,
                DropReason::HandshakeRate,
                DropReason::Replay,
            ]
            .map(|reason| after.drops[reason as usize] - before.drops[reason as usize])
            .iter()
            .sum();
            if refused < u64::from(RUNS / 10) {
                return Ok(cost);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("limits refused what was to be measured: the machine is too busy")
    }

    fn path(&mut self, way: Way, cell: Cell) -> Result<f64> {
        let ports = cell.ports;
        // Flows that are forgotten are shown by as many as there are ports.
        let (flows, forgets) = match cell.traffic {
            Traffic::Flows(flows) => (flows, false),
            Traffic::FirstPackets | Traffic::Flood(_) => {
                (u32::from(ports).next_power_of_two(), true)
            }
        };
        let rules = way.tracks().then_some(Rules { ports, forgets });
        let path = self.enter(way, ports, rules)?;
        if matches!(way, Way::Steered | Way::Hairpin) {
            self.allocate(ports, |port| gateway(port).to_be_bytes())?;
        }
        if way == Way::Hairpin {
            self.move_elsewhere(ports)?;
        }
        if !self.paths[path].shown.contains(&(ports, flows)) {
            self.introduce(path, ports, flows)?;
        }
        let frames = match rules {
            Some(Rules { forgets: true, .. }) => {
                world::forget_flows()?;
                // Every port gets as many as any other.
                FIRST_FRAMES.div_ceil(ports.into()) * u32::from(ports)
            }
            _ if way.is_kernel() => FRAMES_BY_KERNEL,
            _ => FRAMES,
        };
        let expected = match cell.traffic {
            Traffic::Flood(_) if way == Way::Steered => frames / FLOOD,
            _ => frames,
        };
        self.send(way, cell, frames, expected)
    }

    /// Has the pod answer a packet of each flow. So all are shown to arrive
    /// with their gateway's address, and a kernel that tracks flows has seen
    /// both directions of them, as it would have in earnest.
    fn introduce(&mut self, path: usize, ports: u16, flows: u32) -> Result<()> {
        let way = self.paths[path].way;
        if way != Way::Redirect {
            self.turn_pod(path, "reflect")?;
            if way.tracks() {
                world::check_sums(true)?;
            }
            let before = self.counted("REPLIES")?;
            let traffic = Traffic::Flows(flows);
            let cell = Cell { ports, traffic };
            self.send(way, cell, flows, flows)?;
            let replies = self.counted("REPLIES")? - before;
            let answered = way.is_kernel() || way == Way::Hairpin && cell.fits();
            ensure!(
                replies == u64::from(flows) || !answered,
                "{replies} of {flows} replies came back"
            );
            if way.tracks() {
                world::check_sums(false)?;
            }
        }
        self.turn_pod(path, "count_and_drop")?;
        self.paths[path].shown.push((ports, flows));
        Ok(())
    }

    /// Nanoseconds a frame, of which `expected` must come through.
    fn send(&mut self, way: Way, cell: Cell, frames: u32, expected: u32) -> Result<f64> {
        let template = messages::template(cell.traffic, cell.ports, way == Way::Routing);
        let map = self.ebpf.map_mut("TEMPLATE").context("no map")?;
        Array::try_from(map)?.set(0, template, 0)?;
        let before = self.counted("TAKEN")?;

        let packet = messages::data();
        let context = context(&packet, world::index("source")?);
        let generate = program_of(&mut self.datapath, &mut self.ebpf, "generate")?;
        let cost = self.clock.cost(frames, || {
            generate.test_run(TestRunOptions {
                data_in: Some(&packet),
                ctx_in: Some(&context),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::default()
            })?;
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(2));
        let through = self.counted("TAKEN")? - before;
        if through != u64::from(expected) {
            bail!(
                "{through} of {expected} frames came through; dropped: {:?}",
                self.datapath.maps.counters(0)?
            );
        }
        Ok(cost)
    }

    /// Moves into the path for `way`, which is made if need be.
    fn enter(&mut self, way: Way, ports: u16, rules: Option<Rules>) -> Result<usize> {
        let same = |path: &Path| path.way == way && path.rules == rules;
        if let Some(found) = self.paths.iter().position(same) {
            self.paths[found].world.enter()?;
            return Ok(found);
        }
        let world = World::new(way, ports)?;
        let xdp = self.datapath.xdp();
        let mut attach = |name, interface| -> Result<()> {
            let program = program_of(&mut self.datapath, &mut self.ebpf, name)?;
            program.attach(interface, XdpMode::Driver)?;
            Ok(())
        };
        attach("count_replies", "source")?;
        match way {
            Way::Redirect => attach("redirect", "uplink")?,
            Way::Steered => attach(xdp, "uplink")?,
            Way::Hairpin => {
                attach(xdp, "uplink")?;
                attach(xdp, "host")?;
            }
            // A veth takes in redirected frames by a program or by GRO. The
            // latter costs the kernel some 90 ns more.
            Way::Routing | Way::Nftables | Way::Iptables => {
                attach("empty", "uplink")?;
                attach("empty", "host")?;
            }
        }
        if way == Way::Redirect {
            let map = self.ebpf.map_mut("TARGETS").context("no map")?;
            DevMap::try_from(map)?.set(0, world::index("host")?, None, 0)?;
        }
        self.paths.push(Path {
            way,
            rules,
            world,
            pod: None,
            shown: Vec::new(),
        });
        Ok(self.paths.len() - 1)
    }

    /// Changes the program at the far end.
    fn turn_pod(&mut self, path: usize, name: &'static str) -> Result<()> {
        let pod = &mut self.paths[path].pod;
        if let Some((old, link)) = pod.take() {
            program_of(&mut self.datapath, &mut self.ebpf, old)?.detach(link)?;
        }
        let program = program_of(&mut self.datapath, &mut self.ebpf, name)?;
        *pod = Some((name, program.attach("pod", XdpMode::Driver)?));
        Ok(())
    }

    /// Gives each of the first `ports` ports to a tenant, whose gateway has
    /// the address that `gateway` tells and has announced the session of
    /// [`messages::data`]; and takes all others away.
    pub fn allocate(&mut self, ports: u16, gateway: impl Fn(u16) -> [u8; 4]) -> Result<()> {
        self.datapath.set_edge(&EdgeNode {
            own: vec![(NODE.into(), world::index("uplink")?)],
            xdp_uplinks: Some(vec![world::index("uplink")?, world::index("host")?]),
            hop_ports: HOP_PORTS,
        })?;
        let ifindex = world::index("host")?;
        let wanted = |slot: u16| {
            let port = FIRST_PORT + slot;
            let allocation = Allocation {
                mode: mode::XDP,
                slot,
                ifindex,
                frame: FRAME,
                gateway: mapped(gateway(port)),
                mac1: mac1::key(&messages::PUBLIC_KEY),
                ..Allocation::default()
            };
            (slot < ports).then_some(allocation)
        };
        let changes: Vec<Change> = (0..MOST_PORTS)
            .filter(|&slot| self.datapath.maps.allocation(FIRST_PORT + slot) != wanted(slot))
            .map(|slot| Change {
                port: FIRST_PORT + slot,
                allocation: wanted(slot).unwrap_or_default(),
                // Each port has a slot of its own: flows last from round to round.
                memory: SlotState::Keep,
                grace: false,
            })
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.datapath.maps.publish(&changes)?;
        let egress: &SchedClassifier = self
            .datapath
            .ebpf()
            .program(program::EGRESS)
            .context("no such program")?
            .try_into()?;
        // `struct __sk_buff`, of which only the interface matters.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        for change in changes
            .iter()
            .filter(|change| change.port < FIRST_PORT + ports)
        {
            let packet = messages::announcement(gateway(change.port), change.port);
            egress.test_run(TestRunOptions {
                data_in: Some(&packet),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })?;
        }
        Ok(())
    }

    /// Has the gateways be on another node, and their sessions known as before.
    pub fn move_elsewhere(&mut self, ports: u16) -> Result<()> {
        let changes: Vec<Change> = (FIRST_PORT..FIRST_PORT + ports)
            .filter_map(|port| Some((port, self.datapath.maps.allocation(port)?)))
            .map(|(port, allocation)| Change {
                port,
                allocation: Allocation {
                    mode: mode::HOP,
                    ..allocation
                },
                memory: SlotState::Keep,
                grace: false,
            })
            .collect();
        Ok(self.datapath.maps.publish(&changes)?)
    }

    fn counted(&self, map: &str) -> Result<u64> {
        let map = self.ebpf.map(map).context("no map")?;
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }
}

/// A program of the product or of the benchmarks.
pub fn program_of<'a>(
    datapath: &'a mut Datapath,
    benchmarks: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut Xdp> {
    let (object, name) = match name {
        // The one of the two that an uplink has.
        program::INGRESS | program::INGRESS_FRAGS => {
            let name = datapath.xdp();
            (datapath.ebpf(), name)
        }
        _ => (benchmarks, name),
    };
    let program = object.program_mut(name).context("no such program")?;
    Ok(program.try_into()?)
}

/// The context of a live run: `struct xdp_md` with the frame's length and the
/// interface that it seems to come in by.
pub fn context(packet: &[u8], ingress: u32) -> Vec<u8> {
    let length = u32::try_from(packet.len()).expect("frames are short");
    [0, length, 0, ingress, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}
