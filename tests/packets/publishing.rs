//! A port that goes from tenant to tenant while packets come in.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use lab::message;
use lab::packet::Packet;
use lab::programs::{self, Memory, Skb, rates};
use vpn_edge::datapath::Datapath;
use vpn_edge_common::{Allocation, DropReason, Rates};

use crate::node::{
    GATEWAY, INDEX, KEY, Node, OTHER_GATEWAY, OTHER_KEY, OTHER_PORT, OTHER_SLOT, PORT, SLOT, open,
};

/// How often the port changes hands.
const PUBLICATIONS: usize = 100;
/// Packets that either tenant gets at least before the port is the other's.
const EACH: u64 = 300;

/// What became of the packets.
#[derive(Debug, Default)]
struct Tally {
    /// Steered to either gateway.
    to: [u64; 2],
    dropped: u64,
}

/// The two tenants differ in every field but the port.
fn tenants() -> [Allocation; 2] {
    let one = open(&GATEWAY, &KEY, SLOT);
    let other = Allocation {
        ifindex: 4711,
        limited: 1,
        tenant: [0x07; 16],
        generation: 7,
        rates: Rates { packet: 1, byte: 1 },
        ..open(&OTHER_GATEWAY, &OTHER_KEY, OTHER_SLOT)
    };
    [one, other]
}

/// What the two threads tell each other.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    stop: AtomicBool,
}

/// Sends packets until told to stop. Each that comes out is wholly for one
/// gateway, and one that knows its key if it is a handshake.
fn send(root: PathBuf, progress: &Progress) -> Tally {
    let mut datapath = Datapath::open(&root).unwrap();
    let memory = Memory::open(&root).unwrap();
    let gateways = [GATEWAY, OTHER_GATEWAY];
    let packets = [
        (message::data(INDEX, 128), [true, true]),
        (message::initiation(1, &KEY), [true, false]),
        (message::initiation(1, &OTHER_KEY), [false, true]),
    ]
    .map(|(message, welcome)| (Packet::to(PORT, message), welcome))
    .map(|(packet, welcome)| {
        let steered = gateways.map(|gateway| packet.steered(&gateway));
        (packet.bytes(), steered, welcome)
    });
    let source = Memory::source_of(&datapath, &Packet::to(PORT, vec![])).unwrap();
    let mut tally = Tally::default();
    while !progress.stop.load(Ordering::Relaxed) {
        for (packet, steered, welcome) in &packets {
            progress.sent.fetch_add(1, Ordering::Relaxed);
            forget_rates(&memory, source);
            let name = datapath.xdp();
            let answer = programs::run(&mut datapath, name, packet, Skb::default()).unwrap();
            match answer {
                (1, _) => tally.dropped += 1,
                (4, out) => {
                    let to = steered.iter().position(|steered| *steered == out);
                    let to = to.unwrap_or_else(|| panic!("of neither: {out:02x?}"));
                    assert!(welcome[to], "a handshake for the other's key came in");
                    tally.to[to] += 1;
                }
                (verdict, _) => panic!("verdict {verdict}"),
            }
        }
    }
    tally
}

fn forget_rates(memory: &Memory, source: usize) {
    memory.sources[source].store(0);
    for slot in [SLOT, OTHER_SLOT] {
        memory.forget_replays(slot);
        for word in rates(&memory.limits[usize::from(slot)]) {
            word.store(0);
        }
    }
}

#[test]
fn a_packet_meets_a_port_as_it_was_or_as_it_is_to_be_and_never_a_part_of_both() {
    let mut node = Node::new();
    // One index for both, so that nothing but the allocation tells them apart.
    node.announce(&OTHER_GATEWAY, OTHER_PORT, INDEX);
    let progress = Progress::default();
    let root = node.root();
    let tally = thread::scope(|scope| {
        let sender = scope.spawn(|| send(root, &progress));
        for tenant in tenants().into_iter().cycle().take(PUBLICATIONS) {
            node.publish(PORT, tenant);
            let goal = progress.sent.load(Ordering::Relaxed) + EACH;
            while progress.sent.load(Ordering::Relaxed) < goal && !sender.is_finished() {
                thread::yield_now();
            }
        }
        progress.stop.store(true, Ordering::Relaxed);
        sender.join().expect("every packet was one tenant's")
    });

    let [one, other] = [SLOT, OTHER_SLOT].map(|slot| node.counters(slot));
    let steered = [one.ingress_packets, other.ingress_packets];
    assert_eq!(steered, tally.to, "counted where it was sent");
    let reasons = [DropReason::NoGateway, DropReason::Mac1];
    let dropped = reasons.map(|reason| reason as usize);
    let dropped = dropped.map(|at| one.drops[at] + other.drops[at]);
    assert_eq!(
        dropped.iter().sum::<u64>(),
        tally.dropped,
        "and for no other reason"
    );
    assert!(tally.to.iter().all(|&packets| packets > EACH), "{tally:?}");
}
