//! The program in the kernel and the host's build of the same code agree, and
//! a judge that shares nothing with either agrees with both on what is steered.
//!
//! Packets are valid ones of every kind, most of them bent by random mutations.
//! For each, both builds get the same state and are held to the same verdict,
//! reason, counters, packet out, charges, and what they remember; but routes
//! are the kernel's, and so are the Ethernet headers that follow from them. `VPN_EDGE_PACKETS` says how many
//! packets a hook gets, and `VPN_EDGE_SEED` where the generator starts:
//!
//! ```text
//! VPN_EDGE_PACKETS=1000000 cargo xtask test agreement
//! ```

mod generate;
mod judge;
mod world;

use std::collections::BTreeMap;
use std::env;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use generate::Generator;
use lab::programs::{Hook, Memory, Skb, parts, rates, run, ways};
use lab::sandbox::Sandbox;
use vpn_edge::datapath::{Datapath, ip};
use vpn_edge_common::{
    Counters, DropReason, Flow, Flows, NODE_SLOT, Sessions, Version, Word, mode, unmapped_words,
};
use vpn_edge_ebpf::flow::Client;
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::guard::{self, Admitted};
use vpn_edge_ebpf::parse::locate;
use vpn_edge_ebpf::steer::{self, NextHop, Refusal, decide};
use vpn_edge_ebpf::tables::Tables;
use vpn_edge_ebpf::{limit, rewrite, session};
use world::{CLIENTS, EDGE_NODES, SLOTS, State, TENANTS};

/// What CI has time for.
const PACKETS: u64 = 500_000;
/// Packets after which all counters are compared, and not one tenant's.
const SWEEP: u64 = 4096;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Pass,
    Drop(DropReason),
    Steer(Admitted),
    /// On to another node.
    Send(Admitted),
    /// Back to a client.
    Return,
}

impl Outcome {
    /// The verdict of either program.
    fn verdict(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop(_) => "drop",
            Self::Steer(_) | Self::Send(_) | Self::Return => "redirect",
        }
    }

    fn way(&self) -> judge::Way {
        match self {
            Self::Pass | Self::Drop(_) => judge::Way::Nowhere,
            Self::Steer(_) => judge::Way::Gateway,
            Self::Send(_) => judge::Way::Node,
            Self::Return => judge::Way::Client,
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// Both builds, side by side.
struct Pair {
    hook: Hook,
    datapath: Datapath,
    kernel: Memory,
    host: Tables,
    /// What every tenant's sessions are before a packet.
    sessions: Vec<u64>,
    /// Where the flow of each of [`CLIENTS`] is, and its address and key.
    flows: [(usize, [u64; 3]); CLIENTS.len()],
    /// The programs' tick, which is no older than this test.
    tick: u32,
    /// What the counters must come to, by slot.
    expected: BTreeMap<u16, Counters>,
    tally: BTreeMap<String, u64>,
    _sandbox: Sandbox,
}

impl Pair {
    fn new(hook: Hook) -> Self {
        let sandbox = Sandbox::enter().unwrap();
        let root = sandbox.bpffs();
        let mut datapath = Datapath::open(&root).unwrap();
        world::publish(&mut datapath);
        let kernel = Memory::open(&root).unwrap();
        world::announce(&mut datapath, &kernel);
        world::fill_sessions(&kernel);
        let mut host = datapath.maps.snapshot().unwrap();
        // No entry expires between this and the programs' own.
        host.tick = 1000;
        let tick = datapath.maps.tick();
        let counters = |slot| (slot, unsampled(datapath.maps.counters(slot).unwrap()));
        let expected = SLOTS.map(counters).into();
        // The node's own slot is no tenant's, but is looked at with the others.
        host.sessions.entry(NODE_SLOT).or_default();
        host.replays.entry(NODE_SLOT).or_default();
        host.limits.entry(NODE_SLOT).or_default();
        host.flows.entry(NODE_SLOT).or_default();
        Self {
            hook,
            sessions: ways(&host.sessions[&0]).map(Word::load).collect(),
            flows: CLIENTS.map(|client| place(host.edge.seed, &client)),
            tick,
            datapath,
            kernel,
            host,
            expected,
            tally: BTreeMap::new(),
            _sandbox: sandbox,
        }
    }

    /// Runs one packet through both, and holds the one to the other.
    fn check(&mut self, packet: &[u8], state: &State) -> Result<(), String> {
        let source = self.set(packet, state);
        self.host.now = world::now();

        let (outcome, slot, out) = self.decide(packet);
        let (verdict, kernels_out) = self.run(packet);
        same("verdict", &outcome.verdict(), &verdict)?;
        // Where routes decide, the kernel writes the Ethernet header.
        let from = match outcome {
            Outcome::Send(_) | Outcome::Return => 12,
            _ => 0,
        };
        same("packet out", &&out[from..], &&kernels_out[from..])?;
        if let Some(slot) = slot {
            self.count(slot, &outcome, packet);
            same(
                "counters",
                &self.expected[&slot],
                &unsampled(self.datapath.maps.counters(slot).unwrap()),
            )?;
            if slot != NODE_SLOT {
                self.compare_memory(slot)?;
            }
        }
        if let Some(flow) = &state.flow {
            self.forget(flow);
        }
        self.compare_charges(source, state)?;

        let judged = judge::way(packet, state, self.hook, |client| self.flows[client].0);
        same("way, as the judge sees it", &outcome.way(), &judged)?;
        *self.tally.entry(format!("{outcome:?}")).or_default() += 1;
        Ok(())
    }

    /// Gives both the state, and says which source the packet charges.
    fn set(&self, packet: &[u8], state: &State) -> usize {
        for slot in SLOTS {
            let host = &self.host.limits[&slot];
            for limits in [&self.kernel.limits[usize::from(slot)], host] {
                limits.grace.store(state.grace);
                for (word, value) in rates(limits).into_iter().zip(state.rates) {
                    word.store(value);
                }
            }
        }
        for slot in SLOTS {
            for replays in self.replays(slot) {
                ways(replays).for_each(|way| way.store(0));
                if let Some(mac1) = state.replayed {
                    let bucket = session::bucket(replays, mac1);
                    bucket.0[3].store(u64::from(mac1) << 32 | u64::from(u32::MAX));
                }
            }
        }
        if let Some(flow) = &state.flow {
            self.know(flow);
        }
        let source = self.source(packet);
        for sources in [&*self.kernel.sources, &self.host.sources] {
            sources[source].store(state.source);
        }
        source
    }

    /// Has the tenants whose gateways are elsewhere know a client.
    fn know(&self, known: &world::Flow) {
        let (place, words) = self.flows[known.client];
        let proven = |tick: u32| if known.proven { tick } else { 0 };
        let indexes = u64::from(known.wondered) << 32 | u64::from(known.offered);
        for tenant in TENANTS.iter().filter(|tenant| tenant.mode == mode::HOP) {
            let [kernel, host] = self.known(tenant.slot);
            for (flows, tick) in [(kernel, self.tick), (host, self.host.tick)] {
                let seen = u64::from(tick) << 32 | u64::from(proven(tick));
                let values = words.into_iter().chain([seen, indexes]);
                for (word, value) in parts(&flows.0[place]).zip(values) {
                    word.store(value);
                }
            }
        }
    }

    fn forget(&self, known: &world::Flow) {
        let (place, _) = self.flows[known.client];
        for tenant in TENANTS.iter().filter(|tenant| tenant.mode == mode::HOP) {
            for flows in self.known(tenant.slot) {
                parts(&flows.0[place]).for_each(|word| word.store(0));
            }
        }
    }

    fn known(&self, slot: u16) -> [&Flows; 2] {
        let kernel = &self.kernel.flows[usize::from(slot)];
        [kernel, &self.host.flows[&slot]]
    }

    /// Which source the packet charges.
    fn source(&self, packet: &[u8]) -> usize {
        let mut bytes = packet.to_vec();
        let Ok(located) = locate(&Frame::of(&mut bytes)) else {
            return 0;
        };
        let edge = &self.host.edge;
        let mut of = match located.version {
            Version::V4 => u64::from(unmapped_words(located.source)),
            Version::V6 => located.source[0],
        };
        let address = ip(vpn_edge_common::address(located.source));
        if guard::hop(edge, located.source_port).is_some() && EDGE_NODES.contains(&address) {
            of ^= u64::from(located.source_port) << 32;
        }
        limit::source(edge.seed, of) as usize
    }

    fn replays(&self, slot: u16) -> [&Sessions; 2] {
        let kernel = &self.kernel.replays[usize::from(slot)];
        [kernel, &self.host.replays[&slot]]
    }

    fn decide(&self, packet: &[u8]) -> (Outcome, Option<u16>, Vec<u8>) {
        let mut out = packet.to_vec();
        let frame = Frame::of(&mut out);
        let hook = match self.hook {
            Hook::Xdp => steer::Hook::Xdp,
            Hook::Tc => steer::Hook::Tc,
        };
        let (outcome, slot, tags) = match decide(&&self.host, &frame, hook) {
            Err(Refusal::Pass) => (Outcome::Pass, None, Some(0)),
            Err(Refusal::Drop { slot, reason }) => (Outcome::Drop(reason), Some(slot), Some(0)),
            Ok(steered) => {
                let slot = Some(steered.allocation.slot);
                match steered.next_hop {
                    NextHop::Gateway { admission, gateway } => {
                        let (located, addresses) = (&steered.located, steered.allocation.frame);
                        let tags = rewrite::to_gateway(&frame, located, gateway, addresses);
                        (Outcome::Steer(admission.by), slot, tags)
                    }
                    NextHop::Node {
                        admission,
                        forwarding,
                    } => {
                        let tags = rewrite::to_ends(&frame, forwarding);
                        (Outcome::Send(admission.by), slot, tags)
                    }
                    NextHop::Client { forwarding } => {
                        (Outcome::Return, slot, rewrite::to_ends(&frame, forwarding))
                    }
                }
            }
        };
        out.drain(..tags.expect("a frame with room for its own header"));
        (outcome, slot, out)
    }

    fn run(&mut self, packet: &[u8]) -> (&'static str, Vec<u8>) {
        let name = self.hook.ingress(&self.datapath);
        let (answer, out) = run(&mut self.datapath, name, packet, Skb::default()).unwrap();
        let verdict = match (self.hook, answer as i32) {
            (Hook::Xdp, 2) | (Hook::Tc, -1) => "pass",
            (Hook::Xdp, 1) | (Hook::Tc, 2) => "drop",
            (Hook::Xdp, 4) | (Hook::Tc, 7) => "redirect",
            _ => "an answer that the program never gives",
        };
        (verdict, out)
    }

    fn count(&mut self, slot: u16, outcome: &Outcome, packet: &[u8]) {
        let counters = self.expected.get_mut(&slot).expect("a slot of the world");
        match outcome {
            Outcome::Pass => {}
            Outcome::Drop(reason) => counters.drops[*reason as usize] += 1,
            Outcome::Return => {
                counters.egress_packets += 1;
                counters.egress_bytes += judge::ip_length(packet);
            }
            Outcome::Steer(admitted) | Outcome::Send(admitted) => {
                counters.ingress_packets += 1;
                counters.ingress_bytes += judge::ip_length(packet);
                match admitted {
                    Admitted::Session => {}
                    Admitted::Handshake => counters.handshakes += 1,
                    Admitted::Grace => counters.graced += 1,
                    Admitted::Relayed => counters.relayed += 1,
                }
            }
        }
    }

    /// Both builds learnt the same of sessions and clients, and forget it. When
    /// something was seen is a matter of two clocks.
    fn compare_memory(&self, slot: u16) -> Result<(), String> {
        let kernel = &self.kernel.sessions[usize::from(slot)];
        let host = &self.host.sessions[&slot];
        let alike = |(kernel, host): (&Word, &Word)| kernel.load() >> 32 == host.load() >> 32;
        if !ways(kernel).zip(ways(host)).all(alike) {
            return Err(format!(
                "sessions: {host:x?} on the host, {kernel:x?} otherwise"
            ));
        }
        for sessions in [kernel, host] {
            let changed = ways(sessions).zip(&self.sessions);
            changed.for_each(|(way, value)| way.store(*value));
        }
        let [kernel, host] = self.known(slot);
        for (at, (kernel, host)) in kernel.0.iter().zip(&host.0).enumerate() {
            if kernel.key.load() == 0 && host.key.load() == 0 {
                continue;
            }
            same(&format!("flow {at}"), &timeless(host), &timeless(kernel))?;
            parts(kernel)
                .chain(parts(host))
                .for_each(|word| word.store(0));
        }
        Ok(())
    }

    /// What one build charged the other did, and as much: their clocks were
    /// read one after the other.
    fn compare_charges(&self, source: usize, state: &State) -> Result<(), String> {
        const LATER: Duration = Duration::from_secs(2);
        let compare = |what: &str, before: u64, kernel: &Word, host: &Word| {
            let (kernel, host) = (kernel.load(), host.load());
            let alike = match (kernel == before, host == before) {
                (true, true) => true,
                (false, false) => kernel.abs_diff(host) < LATER.as_nanos() as u64,
                _ => false,
            };
            match alike {
                true => Ok(()),
                false => Err(format!("{what}: {before} became {kernel}, and {host} here")),
            }
        };
        let (kernel, host) = (&self.kernel.sources[source], &self.host.sources[source]);
        compare("the source's charge", state.source, kernel, host)?;
        kernel.store(0);
        host.store(0);
        for slot in SLOTS {
            let [kernel, host] = self.replays(slot);
            // When they expire is a matter of two clocks.
            let known = |replays| {
                ways(replays)
                    .map(|way| way.load() >> 32)
                    .collect::<Vec<_>>()
            };
            same("replays", &known(host), &known(kernel))?;
            let kernel = rates(&self.kernel.limits[usize::from(slot)]);
            let host = rates(&self.host.limits[&slot]);
            let pairs = kernel.into_iter().zip(host);
            for (at, ((kernel, host), before)) in pairs.zip(state.rates).enumerate() {
                compare(&format!("charge {at} of slot {slot}"), before, kernel, host)?;
            }
        }
        Ok(())
    }

    /// Nothing was counted or charged where nobody looked.
    fn sweep(&self) {
        for slot in SLOTS {
            let counters = unsampled(self.datapath.maps.counters(slot).unwrap());
            assert_eq!(counters, self.expected[&slot], "slot {slot}");
        }
        let sources = self.kernel.sources.iter().chain(&self.host.sources);
        assert_eq!(sources.filter(|word| word.load() != 0).count(), 0);
    }
}

/// Where the programs look for a client, and the first words of its flow.
fn place(seed: u64, client: &world::Client) -> (usize, [u64; 3]) {
    let address = match client.ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let address = vpn_edge_common::words(&address.octets());
    let flows = Flows::default();
    let at = Client::new(seed, address, client.port).touch(&flows, client.own, 1, 1);
    let flow = &flows.0[at];
    let [high, low] = &flow.address;
    (at, [high.load(), low.load(), flow.key.load()])
}

/// A flow without when it was seen, but with whether.
fn timeless(flow: &Flow) -> ([u64; 4], bool, bool) {
    let [high, low] = &flow.address;
    let words = [high, low, &flow.key, &flow.indexes].map(Word::load);
    let seen = flow.seen.load();
    (words, seen >> 32 != 0, seen as u32 != 0)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, host: &T, kernel: &T) -> Result<(), String> {
    match host == kernel {
        true => Ok(()),
        false => Err(format!(
            "{what}: {host:02x?} on the host and {kernel:02x?} otherwise"
        )),
    }
}

/// When a reason was sampled is the program's own business.
fn unsampled(counters: Counters) -> Counters {
    let mut sum = Counters::default();
    sum.add(&counters);
    sum
}

fn agree(hook: Hook) {
    let packets = number("VPN_EDGE_PACKETS", PACKETS);
    let seed = number("VPN_EDGE_SEED", 1);
    let mut pair = Pair::new(hook);
    let places = pair.flows.map(|(place, _)| place);
    let mut generator = Generator::new(seed, hook, places);
    let start = Instant::now();
    for count in 1..=packets {
        let (packet, state) = generator.next();
        if let Err(difference) = pair.check(&packet, &state) {
            panic!("packet {count} of seed {seed}: {difference}\n{state:?}\n{packet:02x?}");
        }
        if count % SWEEP == 0 {
            pair.sweep();
        }
    }
    pair.sweep();
    println!("{hook:?}: {packets} packets in {:.1?}", start.elapsed());
    for (outcome, packets) in &pair.tally {
        println!("{packets:>9} {outcome}");
    }
    if packets >= PACKETS {
        every_outcome_occurred(&pair);
    }
}

fn every_outcome_occurred(pair: &Pair) {
    // A parsed frame has room, and a test run's packet is merged only if told.
    // Every way leads somewhere, and is as wide as it can be.
    let never = [
        DropReason::Rewrite,
        DropReason::Merged,
        DropReason::NoRoute,
        DropReason::TooBig,
    ];
    let reasons = DropReason::ALL
        .iter()
        .filter(|reason| !never.contains(reason))
        .map(|&reason| Outcome::Drop(reason));
    let steered = [Admitted::Session, Admitted::Handshake, Admitted::Grace];
    let sent = [Admitted::Session, Admitted::Handshake, Admitted::Relayed];
    let expected = reasons
        .chain(steered.map(Outcome::Steer))
        .chain(sent.map(Outcome::Send))
        .chain([Outcome::Return, Outcome::Pass]);
    for outcome in expected.map(|outcome| format!("{outcome:?}")) {
        assert!(
            pair.tally.contains_key(&outcome),
            "{outcome} never occurred"
        );
    }
}

#[test]
fn xdp_in_the_kernel_and_the_hosts_build_agree_on_every_packet() {
    agree(Hook::Xdp);
}

#[test]
fn tc_in_the_kernel_and_the_hosts_build_agree_on_every_packet() {
    agree(Hook::Tc);
}
