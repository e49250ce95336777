//! Rates: what passes at once, what passes then, and who pays.

use std::collections::BTreeSet;

use lab::message;
use lab::packet::Packet;
use lab::programs::{Hook, Memory, rates};
use vpn_edge_common::{DropReason, Rates};

use crate::node::{
    Burst, CLOSED_PORT, CLOSED_SLOT, GATEWAY, KEY, Node, OTHER_KEY, OTHER_PORT, PORT, SLOT,
    UNKNOWN_INDEX, Verdict, data, from_source, initiation, now,
};

const HOOKS: [Hook; 2] = [Hook::Xdp, Hook::Tc];

/// A limit in neither direction of nothing.
const UNLIMITED: Rates = Rates { packet: 0, byte: 0 };

/// Numbers of sources that share no bucket with another.
fn sources(node: &Node) -> impl Iterator<Item = u16> + use<> {
    let mut taken = BTreeSet::new();
    let numbers = (0..500).filter(|&number| {
        let packet = from_source(number, initiation());
        taken.insert(Memory::source_of(&node.datapath, &packet).unwrap())
    });
    numbers.collect::<Vec<_>>().into_iter()
}

fn ingress(hook: Hook) -> impl FnMut(&mut Node, &[u8]) -> (Verdict, Vec<u8>) {
    move |node, packet| node.ingress(hook, packet)
}

#[test]
fn a_source_may_send_twenty_handshake_messages_at_once_and_twenty_a_second() {
    for hook in HOOKS {
        let mut node = Node::new();
        let mut sources = sources(&node);
        let mut next = || sources.next().unwrap();
        let (one, other, third) = (next(), next(), next());
        let forged = Packet::to(PORT, message::initiation(1, &OTHER_KEY));

        let burst = node.burst(
            (0..1000).map(|_| from_source(one, initiation())),
            ingress(hook),
        );
        burst.assert(DropReason::SourceRate, 20, 20);
        let passes = from_source(other, initiation());
        assert_eq!(node.verdict(hook, &passes), Verdict::Steer, "{hook:?}");

        // Forged ones cost their sender as much, before any arithmetic.
        let mut sent = 0;
        while node.verdict(hook, &from_source(third, forged.clone()))
            == Verdict::Drop(DropReason::Mac1)
        {
            sent += 1;
            assert!(sent < 1000, "{hook:?}");
        }
        assert!(sent >= 20, "{hook:?}: {sent}");
        let expected = Verdict::Drop(DropReason::SourceRate);
        let refused = from_source(third, initiation());
        assert_eq!(node.verdict(hook, &refused), expected, "{hook:?}");
        let session = from_source(third, data());
        assert_eq!(node.verdict(hook, &session), Verdict::Steer, "{hook:?}");
    }
}

#[test]
fn a_gateway_gets_a_hundred_handshake_messages_at_once_and_a_hundred_a_second() {
    for hook in HOOKS {
        let mut node = Node::new();
        let mut sources = sources(&node);
        let packets: Vec<Packet> = sources
            .by_ref()
            .take(100)
            .flat_map(|source| (0..10).map(move |_| from_source(source, initiation())))
            .collect();
        let burst = node.burst(packets, ingress(hook));
        burst.assert(DropReason::HandshakeRate, 100, 100);
        assert_eq!(node.counters(SLOT).handshakes, burst.passed);

        let other = Packet::to(OTHER_PORT, message::initiation(1, &OTHER_KEY));
        let other = from_source(sources.next().unwrap(), other);
        assert_eq!(node.verdict(hook, &other), Verdict::Steer, "{hook:?}");
        assert_eq!(node.verdict(hook, &data()), Verdict::Steer, "{hook:?}");
    }
}

#[test]
fn forged_messages_use_up_nothing_of_the_gateways() {
    let mut node = Node::new();
    let forged = Packet::to(PORT, message::initiation(1, &OTHER_KEY));
    for source in sources(&node).take(20) {
        for _ in 0..10 {
            let packet = from_source(source, forged.clone());
            let expected = Verdict::Drop(DropReason::Mac1);
            assert_eq!(node.verdict(Hook::Xdp, &packet), expected);
        }
    }
    let limits = &node.memory.limits[usize::from(SLOT)];
    assert!(rates(limits).iter().all(|word| word.load() == 0));
}

#[test]
fn grace_is_ten_thousand_packets_a_second_run_ahead_of_by_two_thousand() {
    const COST: u64 = 100_000;
    const AHEAD: u64 = 1_999 * COST;
    // The programs' clock is coarser than the burst takes on a fast machine,
    // and a slow one sends less than the rate: so no packets are counted here.
    const COARSE: u64 = 20_000_000;
    let expected = [
        (AHEAD - COARSE, Verdict::Steer, COST),
        (AHEAD + COARSE, Verdict::Drop(DropReason::GraceRate), 0),
    ];
    let unknown = Packet::to(PORT, message::data(UNKNOWN_INDEX, 32));
    for hook in HOOKS {
        let mut node = Node::new();
        node.memory.limits[usize::from(SLOT)].grace.store(u64::MAX);
        for (ahead, verdict, cost) in expected {
            // Again if something came in between.
            let (answer, charged) = loop {
                let start = now();
                let at = usize::from(SLOT);
                node.memory.limits[at].unknown.store(start + ahead);
                let answer = node.verdict(hook, &unknown);
                let charged = node.memory.limits[at].unknown.load() - start - ahead;
                if now() - start < COARSE / 2 {
                    break (answer, charged);
                }
            };
            assert_eq!(answer, verdict, "{hook:?}: {ahead} ns ahead");
            assert_eq!(charged, cost, "{hook:?}: {ahead} ns ahead");
        }
        assert_eq!(node.verdict(hook, &data()), Verdict::Steer, "{hook:?}");
    }
}

/// Bursts of 128 bytes of data, in and out of a limited tenant.
fn bursts(node: &mut Node, hook: Hook) -> [Burst; 2] {
    let reply = Packet::from(&GATEWAY, PORT, message::data(1, 128));
    [
        node.burst((0..1000).map(|_| data()), ingress(hook)),
        node.burst((0..1000).map(|_| reply.clone()), |node, packet| {
            node.egress(packet)
        }),
    ]
}

#[test]
fn a_plan_limits_packets_in_each_direction_by_itself() {
    for hook in HOOKS {
        let mut node = Node::new();
        node.limit(Rates {
            packet: 10_000_000,
            ..UNLIMITED
        });
        // A hundred a second, a quarter of a second ahead.
        for burst in bursts(&mut node, hook) {
            burst.assert(DropReason::PacketRate, 26, 100);
        }
    }
}

#[test]
fn a_plan_limits_bytes_in_each_direction_by_itself() {
    for hook in HOOKS {
        let mut node = Node::new();
        // 156 bytes of IP packet cost 10 ms and a bit.
        node.limit(Rates {
            byte: 10_000_000 / 156 * 1024 + 1024,
            ..UNLIMITED
        });
        for burst in bursts(&mut node, hook) {
            burst.assert(DropReason::ByteRate, 25, 100);
        }
    }
}

#[test]
fn a_plan_without_limits_takes_nothing() {
    let mut node = Node::new();
    node.limit(UNLIMITED);
    for _ in 0..1000 {
        assert_eq!(node.verdict(Hook::Xdp, &data()), Verdict::Steer);
    }
    let limits = &node.memory.limits[usize::from(SLOT)];
    assert!(rates(limits).iter().all(|word| word.load() == 0));
}

#[test]
fn a_reply_beyond_the_plan_announces_nothing() {
    let mut node = Node::new();
    node.limit(Rates {
        packet: 10_000_000,
        ..UNLIMITED
    });
    let limits = &node.memory.limits[usize::from(SLOT)];
    limits.packets[1].store(u64::MAX / 2);
    let initiation = message::initiation(UNKNOWN_INDEX, &KEY);
    let packet = Packet::from(&GATEWAY, PORT, initiation).bytes();
    let expected = Verdict::Drop(DropReason::PacketRate);
    assert_eq!(node.egress(&packet).0, expected);
    assert_eq!(node.memory.entries(SLOT, UNKNOWN_INDEX).count(), 0);
}

#[test]
fn a_closed_port_drops_before_anything_is_charged() {
    for hook in HOOKS {
        let mut node = Node::new();
        node.memory.forget_rates();
        for message in [
            message::initiation(1, &KEY),
            message::response(1, 1, &KEY),
            message::data(1, 128),
        ] {
            let packet = Packet::to(CLOSED_PORT, message);
            let expected = Verdict::Drop(DropReason::NoGateway);
            assert_eq!(node.verdict(hook, &packet), expected, "{hook:?}");
        }
        let limits = &node.memory.limits[usize::from(CLOSED_SLOT)];
        assert!(rates(limits).iter().all(|word| word.load() == 0));
        assert!(node.memory.sources.iter().all(|word| word.load() == 0));
    }
}
