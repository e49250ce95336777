//! The program in the kernel and the host's build of the same code agree, and
//! a judge that shares nothing with either agrees with both on what is steered.
//!
//! Packets are valid ones of every kind, most of them bent by random mutations.
//! For each, both builds get the same state and are held to the same verdict,
//! reason, counters, packet out, and charges. `VPN_EDGE_PACKETS` says how many
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
use std::time::{Duration, Instant};

use generate::Generator;
use lab::programs::{Hook, Memory, Skb, rates, run, ways};
use lab::sandbox::Sandbox;
use vpn_edge::datapath::Datapath;
use vpn_edge_common::{Counters, DropReason, Sessions, Word, program};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::guard::Admitted;
use vpn_edge_ebpf::parse::locate;
use vpn_edge_ebpf::steer::{Refusal, Rung, decide};
use vpn_edge_ebpf::tables::Tables;
use vpn_edge_ebpf::{limit, rewrite, session};
use world::{SLOTS, State};

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
        world::fill_sessions(&kernel);
        let mut host = datapath.maps.snapshot().unwrap();
        // No entry expires between this and the programs' own.
        host.tick = 1000;
        let counters = |slot| (slot, Counters::default());
        Self {
            hook,
            datapath,
            kernel,
            host,
            expected: SLOTS.map(counters).into(),
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
        let of_host = match outcome {
            Outcome::Pass => "pass",
            Outcome::Drop(_) => "drop",
            Outcome::Steer(_) => "steer",
        };
        same("verdict", &of_host, &verdict)?;
        same("packet out", &out, &kernels_out)?;
        if let Some(slot) = slot {
            self.count(slot, &outcome, packet);
            same(
                "counters",
                &self.expected[&slot],
                &unsampled(self.datapath.maps.counters(slot).unwrap()),
            )?;
        }
        self.compare_charges(source, state)?;

        let steered = matches!(outcome, Outcome::Steer(_));
        let judged = judge::steered(packet, state, self.hook);
        same("steered, as the judge sees it", &steered, &judged)?;
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
        let mut bytes = packet.to_vec();
        let source = locate(&Frame::of(&mut bytes)).map_or(0, |located| located.source);
        let source = limit::source(self.host.edge.seed, u64::from(source)) as usize;
        for sources in [&*self.kernel.sources, &self.host.sources] {
            sources[source].store(state.source);
        }
        source
    }

    fn replays(&self, slot: u16) -> [&Sessions; 2] {
        let kernel = &self.kernel.replays[usize::from(slot)];
        [kernel, &self.host.replays[&slot]]
    }

    fn decide(&self, packet: &[u8]) -> (Outcome, Option<u16>, Vec<u8>) {
        let mut out = packet.to_vec();
        let frame = Frame::of(&mut out);
        let rung = match self.hook {
            Hook::Xdp => Rung::Xdp,
            Hook::Tc => Rung::Tc,
        };
        let (outcome, slot, tags) = match decide(&&self.host, &frame, rung) {
            Err(Refusal::Pass) => (Outcome::Pass, None, 0),
            Err(Refusal::Drop { slot, reason }) => (Outcome::Drop(reason), Some(slot), 0),
            Ok(steered) => match rewrite::to_gateway(&frame, &steered) {
                None => panic!("a frame without room for its own header"),
                Some(tags) => {
                    let slot = steered.allocation.slot;
                    (Outcome::Steer(steered.admitted), Some(slot), tags)
                }
            },
        };
        out.drain(..tags);
        (outcome, slot, out)
    }

    fn run(&mut self, packet: &[u8]) -> (&'static str, Vec<u8>) {
        let name = match self.hook {
            Hook::Xdp => program::INGRESS,
            Hook::Tc => program::INGRESS_TC,
        };
        let (answer, out) = run(&mut self.datapath, name, packet, Skb::default()).unwrap();
        let verdict = match (self.hook, answer as i32) {
            (Hook::Xdp, 2) | (Hook::Tc, -1) => "pass",
            (Hook::Xdp, 1) | (Hook::Tc, 2) => "drop",
            (Hook::Xdp, 4) | (Hook::Tc, 7) => "steer",
            _ => "an answer that the program never gives",
        };
        (verdict, out)
    }

    fn count(&mut self, slot: u16, outcome: &Outcome, packet: &[u8]) {
        let counters = self.expected.get_mut(&slot).expect("a slot of the world");
        match outcome {
            Outcome::Pass => {}
            Outcome::Drop(reason) => counters.drops[*reason as usize] += 1,
            Outcome::Steer(admitted) => {
                counters.ingress_packets += 1;
                counters.ingress_bytes += judge::ip_length(packet);
                match admitted {
                    Admitted::Session => {}
                    Admitted::Handshake => counters.handshakes += 1,
                    Admitted::Grace => counters.graced += 1,
                }
            }
        }
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
    let mut generator = Generator::new(seed, hook);
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
    let never = [DropReason::Rewrite, DropReason::Merged];
    let reasons = DropReason::ALL
        .iter()
        .filter(|reason| !never.contains(reason))
        .map(|&reason| Outcome::Drop(reason));
    let admitted = [Admitted::Session, Admitted::Handshake, Admitted::Grace];
    let expected = reasons
        .chain(admitted.map(Outcome::Steer))
        .chain([Outcome::Pass]);
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
