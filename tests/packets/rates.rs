//! Rates: what passes at once, what passes then, and who pays.

use std::collections::BTreeSet;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::message;
use lab::packet::Packet;
use lab::programs::{Hook, Memory, rates};
use vpn_edge_common::{DropReason, Rates, Version};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::steer::{self, decide};

use crate::node::{
    Burst, CLOSED_PORT, CLOSED_SLOT, EDGE_NODE, EDGE_NODE6, GATEWAY, HOP_PORTS, KEY, Node,
    OTHER_KEY, OTHER_PORT, PORT, SLOT, UNKNOWN_INDEX, Verdict, data, from_source, initiation,
    initiation_over, now,
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

/// An initiation from an address and a port.
fn from(source: IpAddr, port: u16) -> Packet {
    let version = match source {
        IpAddr::V4(_) => Version::V4,
        IpAddr::V6(_) => Version::V6,
    };
    initiation_over(version).with(|packet| {
        packet.source = source;
        packet.ports.0 = port;
    })
}

/// Sends one initiation from each of the ports. Gives back the sources' buckets
/// that this charged, and those that it should.
fn charged(
    node: &mut Node,
    hook: Hook,
    source: IpAddr,
    first: u16,
    ports: u16,
) -> [BTreeSet<usize>; 2] {
    node.memory.forget_rates();
    let mut expected = BTreeSet::new();
    for port in first..first + ports {
        let packet = from(source, port);
        expected.insert(Memory::source_of(&node.datapath, &packet).unwrap());
        assert_eq!(node.verdict(hook, &packet), Verdict::Steer, "{source}");
        // As there are more than a gateway takes at once.
        let limits = &node.memory.limits[usize::from(SLOT)];
        limits.handshakes.store(0);
    }
    let sources = node.memory.sources.iter().enumerate();
    let charged = sources.filter(|(_, word)| word.load() != 0);
    [charged.map(|(at, _)| at).collect(), expected]
}

#[test]
fn each_port_of_another_edge_node_is_a_source_and_nobody_elses() {
    let strangers: [IpAddr; 4] = [
        Ipv4Addr::new(198, 51, 100, 12).into(),
        Ipv4Addr::new(203, 0, 113, 9).into(),
        // On the edge node's own network.
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 12).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 11).into(),
    ];
    for hook in HOOKS {
        let mut node = Node::new();
        let mut buckets = |source, first, ports| {
            let [charged, expected] = charged(&mut node, hook, source, first, ports);
            assert_eq!(charged, expected, "{hook:?}: {source}, {first}");
            charged.len()
        };
        for source in [IpAddr::V4(EDGE_NODE), EDGE_NODE6.into()] {
            // Two may share one.
            let each = buckets(source, HOP_PORTS, 128);
            assert!(each > 120, "{hook:?}: {source} is {each} sources");
            // Its other ports are its own.
            assert_eq!(buckets(source, HOP_PORTS - 10, 10), 1, "{source}");
            assert_eq!(buckets(source, HOP_PORTS + 128, 10), 1, "{source}");
        }
        for source in strangers {
            assert_eq!(buckets(source, HOP_PORTS, 20), 1, "{hook:?}: {source}");
        }
    }
}

/// How many of 20,000 initiations are let in that come from `source` within ten
/// seconds, each from the next port.
fn let_in(node: &Node, source: IpAddr, ports: std::ops::Range<u16>) -> usize {
    const TRIES: u64 = 20_000;
    const EVERY: u64 = 10_000_000_000 / TRIES;
    let mut tables = node.datapath.maps.snapshot().unwrap();
    let mut ports = ports.cycle();
    let passes = |_: &u64| {
        let packet = from(source, ports.next().unwrap());
        tables.now += EVERY;
        decide(&&tables, &Frame::of(&mut packet.bytes()), steer::Hook::Xdp).is_ok()
    };
    (0..TRIES).filter(passes).count()
}

#[test]
fn a_stranger_gets_no_more_from_the_ports_between_nodes_than_from_others() {
    let node = Node::new();
    let stranger = Ipv4Addr::new(203, 0, 113, 77).into();
    let of_one = 20 + 10 * 20;
    for first in [40_000, HOP_PORTS] {
        let passed = let_in(&node, stranger, first..first + 128);
        assert!((of_one - 1..=of_one).contains(&passed), "{first}: {passed}");
    }
    // Of an edge node all that the gateway takes.
    let passed = let_in(&node, EDGE_NODE.into(), HOP_PORTS..HOP_PORTS + 128);
    let of_tenant = 100 + 10 * 100;
    assert!(
        (of_tenant - 1..=of_tenant).contains(&passed),
        "of the edge node {passed}"
    );
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
