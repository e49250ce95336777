//! The table of shapes: what passes, what is dropped, and what comes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::message::{self, unsigned};
use lab::packet::{Packet, VERSIONS};
use lab::programs::{Hook, LEAST_IPV6_SKB, LEAST_SKB};
use vpn_edge::datapath::EdgeNode;
use vpn_edge_common::{DropReason, NODE_SLOT, Version};

use crate::extensions;
use crate::node::{
    CLOSED_PORT, GATEWAY, INDEX, KEY, Node, OTHER_GATEWAY, OTHER_INDEX, OTHER_KEY, OTHER_PORT,
    OTHER_SLOT, PORT, SLOT, TC_PORT, UNKNOWN_INDEX, UNKNOWN_PORT, V4_PORT, Verdict, data,
    initiation_over,
};

pub struct Case {
    pub description: String,
    packet: Vec<u8>,
    pub verdict: Verdict,
    /// The packet that leaves, where it is steered.
    pub out: Vec<u8>,
    /// What its IP header says, where it is steered.
    ip_length: u64,
    handshake: bool,
}

impl Case {
    fn new(description: &str, verdict: Verdict, packet: Vec<u8>) -> Self {
        Self {
            description: description.into(),
            packet,
            verdict,
            out: Vec::new(),
            ip_length: 0,
            handshake: false,
        }
    }
}

pub fn passes(description: &str, packet: Vec<u8>) -> Case {
    Case::new(description, Verdict::Pass, packet)
}

pub fn drops(description: &str, reason: DropReason, packet: Vec<u8>) -> Case {
    Case::new(description, Verdict::Drop(reason), packet)
}

pub fn steers(description: &str, packet: &Packet) -> Case {
    Case {
        out: packet.steered(&GATEWAY),
        ip_length: packet.ip_length(),
        handshake: matches!(packet.message.first(), Some(1 | 2)),
        ..Case::new(description, Verdict::Steer, packet.bytes())
    }
}

/// What is the same over both IP versions.
fn cases(version: Version) -> Vec<Case> {
    let to = |port, message| Packet::over(version, port, message);
    let good = to(PORT, message::data(INDEX, 128));
    let with = |bend: fn(&mut Packet)| good.clone().with(bend);
    let tagged = |tags: &[(u16, u16)]| good.clone().with(|packet| packet.tags = tags.into());
    let elsewhere: IpAddr = match version {
        Version::V4 => Ipv4Addr::new(198, 51, 100, 3).into(),
        Version::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0xffff, 0xfe, 3).into(),
    };
    let away = |packet: Packet| packet.with(|packet| packet.destination = elsewhere);
    let mut cases = vec![
        steers("transport data", &good),
        steers(
            "a keepalive, the shortest message",
            &to(PORT, message::data(INDEX, 32)),
        ),
        steers(
            "data of an odd length",
            &to(PORT, message::data(INDEX, 1439)),
        ),
        steers("an initiation", &initiation_over(version)),
        steers("a response", &to(PORT, message::response(1, INDEX, &KEY))),
        steers("a cookie reply", &to(PORT, message::cookie_reply(INDEX))),
        steers(
            "no UDP checksum",
            &with(|packet| packet.udp_checksum = false),
        ),
        steers("a last hop", &with(|packet| packet.hop_limit = 1)),
        steers("a VLAN tag", &tagged(&[(0x8100, 100)])),
        steers("two VLAN tags", &tagged(&[(0x88a8, 7), (0x8100, 100)])),
        passes(
            "three VLAN tags",
            tagged(&[(0x88a8, 7), (0x8100, 8), (0x8100, 9)]).bytes(),
        ),
        passes(
            "a port that is not allocated",
            to(UNKNOWN_PORT, message::data(INDEX, 128)).bytes(),
        ),
        passes("port zero", to(0, message::data(INDEX, 128)).bytes()),
        passes("another address", away(good.clone()).bytes()),
        passes(
            "another address, and something else that would be dropped",
            away(to(PORT, unsigned(9, 20, &[]))).bytes(),
        ),
        passes(
            "TCP to the same port",
            with(|packet| packet.protocol = 6).bytes(),
        ),
        passes("ARP", good.patched(12, &[0x08, 0x06])),
        passes("an Ethernet header and no more", good.cut(14)),
        passes("a cut tag", tagged(&[(0x8100, 100)]).cut(17)),
        passes("cut in the IP header", good.cut(good.udp_at() - 1)),
        drops(
            "a port whose gateway is not there",
            DropReason::NoGateway,
            to(CLOSED_PORT, message::data(INDEX, 128)).bytes(),
        ),
    ];
    // Ethernet pads short frames; the IP length says where the packet ends.
    let mut padded = steers("a frame with padding", &good);
    padded.packet.extend([0; 18]);
    padded.out.extend([0; 18]);
    cases.push(padded);
    cases.extend(lengths(&good));
    cases.extend(messages(version));
    cases
}

/// What says that it is longer than it is.
fn lengths(good: &Packet) -> Vec<Case> {
    use DropReason::Truncated;
    let udp = good.udp_at();
    let over = |message| Packet::over(good.version(), PORT, message);
    let mut cases = vec![
        drops(
            "a UDP length beyond the IP packet",
            Truncated,
            good.patched(udp + 4, &137_u16.to_be_bytes()),
        ),
        drops(
            "a UDP length below its header",
            Truncated,
            good.patched(udp + 4, &7_u16.to_be_bytes()),
        ),
        drops(
            "a UDP length of nothing",
            Truncated,
            good.patched(udp + 4, &[0, 0]),
        ),
        drops("an empty datagram", Truncated, over(vec![]).bytes()),
        drops("four bytes", Truncated, over(unsigned(4, 4, &[])).bytes()),
    ];
    for at in udp + 4..good.bytes().len() {
        let what = format!("cut at {at}");
        cases.push(drops(&what, Truncated, good.cut(at)));
    }
    cases
}

/// What is in the message.
fn messages(version: Version) -> Vec<Case> {
    use DropReason::{Mac1, MessageLength, MessageType, UnknownSession};
    let case = |description: &str, reason, message| {
        drops(
            description,
            reason,
            Packet::over(version, PORT, message).bytes(),
        )
    };
    let mut cases = vec![
        case("type zero", MessageType, unsigned(0, 128, &[])),
        case("type five", MessageType, unsigned(5, 128, &[])),
        case("no WireGuard at all", MessageType, vec![b'A'; 64]),
        case(
            "an initiation too short",
            MessageLength,
            unsigned(1, 147, &[]),
        ),
        case(
            "an initiation too long",
            MessageLength,
            unsigned(1, 149, &[]),
        ),
        case("a response too long", MessageLength, unsigned(2, 148, &[])),
        case(
            "a cookie reply too short",
            MessageLength,
            unsigned(3, 63, &[]),
        ),
        case(
            "an initiation to another gateway's key",
            Mac1,
            message::initiation(1, &OTHER_KEY),
        ),
        case(
            "a response to another gateway's key",
            Mac1,
            message::response(1, INDEX, &OTHER_KEY),
        ),
        case(
            "a response that answers nothing",
            UnknownSession,
            message::response(1, UNKNOWN_INDEX, &KEY),
        ),
        case(
            "a response for which only its sender's index is known",
            UnknownSession,
            message::response(INDEX, UNKNOWN_INDEX, &KEY),
        ),
        case(
            "data of an unknown session",
            UnknownSession,
            message::data(UNKNOWN_INDEX, 128),
        ),
        case(
            "data of another gateway's session",
            UnknownSession,
            message::data(OTHER_INDEX, 128),
        ),
        case(
            "data of session zero",
            UnknownSession,
            message::data(0, 128),
        ),
        case(
            "a cookie reply to nobody",
            UnknownSession,
            message::cookie_reply(UNKNOWN_INDEX),
        ),
    ];
    for at in 1..4 {
        let mut bent = message::data(INDEX, 128);
        bent[at] = 0x80;
        cases.push(case("a reserved byte that is not zero", MessageType, bent));
    }
    cases
}

/// What only IPv4 has.
fn v4_cases() -> Vec<Case> {
    let good = data();
    let with = |bend: fn(&mut Packet)| good.clone().with(bend).bytes();
    vec![
        passes(
            "a later fragment, which has no ports",
            with(|packet| packet.fragment_offset = 10),
        ),
        passes(
            "IPv6 by its Ethernet type alone",
            good.patched(12, &[0x86, 0xdd]),
        ),
        passes("an IP version that is not four", good.patched(14, &[0x65])),
        passes(
            "an IP header length below the least",
            good.patched(14, &[0x44]),
        ),
        passes("cut before the ports", good.cut(14 + 20 + 3)),
        drops(
            "an IP length beyond the frame",
            DropReason::Truncated,
            good.patched(14 + 2, &157_u16.to_be_bytes()),
        ),
        drops(
            "IP options",
            DropReason::IpOptions,
            with(|packet| packet.options = vec![1; 4]),
        ),
        drops(
            "as many IP options as there can be",
            DropReason::IpOptions,
            with(|packet| packet.options = vec![1; 40]),
        ),
        passes(
            "IP options before a port that is not allocated",
            Packet::to(UNKNOWN_PORT, message::data(INDEX, 128))
                .with(|packet| packet.options = vec![1; 12])
                .bytes(),
        ),
        drops(
            "a first fragment",
            DropReason::Fragment,
            with(|packet| packet.more_fragments = true),
        ),
    ]
}

/// What only IPv6 has, besides its extension headers.
fn v6_cases() -> Vec<Case> {
    let good = Packet::over(Version::V6, PORT, message::data(INDEX, 128));
    let mapped = Ipv4Addr::new(198, 51, 100, 2).to_ipv6_mapped();
    let from = |source: Ipv6Addr| good.clone().with(|packet| packet.source = source.into());
    let to = |to: Ipv6Addr| good.clone().with(|packet| packet.destination = to.into());
    let mut cases = vec![
        passes(
            "IPv4 by its Ethernet type alone",
            good.patched(12, &[0x08, 0x00]),
        ),
        passes("an IP version that is not six", good.patched(14, &[0x45])),
        passes("from a mapped address", from(mapped).bytes()),
        passes("to a mapped address", to(mapped).bytes()),
        passes("from no address", from(Ipv6Addr::UNSPECIFIED).bytes()),
        passes("to no address", to(Ipv6Addr::UNSPECIFIED).bytes()),
        passes(
            "to one node's upper half",
            to(Ipv6Addr::from(0x2001_0db8_0002_0000_u128 << 64)).bytes(),
        ),
        drops(
            "a gateway that has no IPv6 address",
            DropReason::NoGateway,
            Packet::over(Version::V6, V4_PORT, message::data(INDEX, 128)).bytes(),
        ),
        drops(
            "a payload length beyond the frame",
            DropReason::Truncated,
            good.patched(14 + 4, &137_u16.to_be_bytes()),
        ),
        drops(
            "a jumbogram's payload length",
            DropReason::Truncated,
            good.patched(14 + 4, &[0, 0]),
        ),
    ];
    cases.extend(extensions::cases());
    cases
}

fn all_cases(version: Version) -> Vec<Case> {
    let mut all = cases(version);
    all.extend(match version {
        Version::V4 => v4_cases(),
        Version::V6 => v6_cases(),
    });
    all
}

/// Runs the table, and holds verdict, reason, counters and packet to it.
fn check(hook: Hook, version: Version) {
    let mut node = Node::new();
    for case in all_cases(version) {
        // A test run makes no skb of less.
        let shortest = match (hook, case.packet.get(12..14)) {
            (Hook::Xdp, _) => 0,
            (Hook::Tc, Some([0x86, 0xdd])) => LEAST_IPV6_SKB,
            (Hook::Tc, _) => LEAST_SKB,
        };
        if case.packet.len() < shortest {
            continue;
        }
        let what = format!("{hook:?} {version:?}: {}", case.description);
        node.memory.forget_rates();
        let before = node.counters(SLOT);
        let (verdict, out) = node.ingress(hook, &case.packet);
        let after = node.counters(SLOT);
        assert_eq!(verdict, case.verdict, "{what}");
        let packets = after.ingress_packets - before.ingress_packets;
        let bytes = after.ingress_bytes - before.ingress_bytes;
        let handshakes = after.handshakes - before.handshakes;
        if verdict == Verdict::Steer {
            assert_eq!(out, case.out, "{what}");
            assert_eq!((packets, bytes), (1, case.ip_length), "{what}");
            assert_eq!(handshakes, u64::from(case.handshake), "{what}");
        } else {
            assert_eq!(out, case.packet, "{what}: left untouched");
            assert_eq!((packets, bytes, handshakes), (0, 0, 0), "{what}");
        }
        assert_eq!(after.graced, before.graced, "{what}");
    }
    let hidden = node.counters(NODE_SLOT).drops;
    let expected = match version {
        Version::V4 => 0,
        Version::V6 => extensions::hidden(hook == Hook::Tc),
    };
    assert_eq!(hidden[DropReason::IpOptions as usize], expected, "{hook:?}");
    assert_eq!(hidden.iter().sum::<u64>(), expected, "{hook:?}");
}

#[test]
fn xdp_ingress_treats_every_packet_as_the_table_says() {
    check(Hook::Xdp, Version::V4);
}

#[test]
fn tc_ingress_treats_every_packet_as_the_table_says() {
    check(Hook::Tc, Version::V4);
}

#[test]
fn xdp_ingress_treats_every_ipv6_packet_as_the_table_says() {
    check(Hook::Xdp, Version::V6);
}

#[test]
fn tc_ingress_treats_every_ipv6_packet_as_the_table_says() {
    check(Hook::Tc, Version::V6);
}

#[test]
fn a_port_on_the_tc_hook_passes_xdp_uncounted_and_is_steered_by_tc() {
    for version in VERSIONS {
        let mut node = Node::new();
        let packet = Packet::over(version, TC_PORT, message::data(INDEX, 128));
        let bytes = packet.bytes();
        assert_eq!(
            node.ingress(Hook::Xdp, &bytes),
            (Verdict::Pass, bytes.clone())
        );
        assert_eq!(node.counters(SLOT).ingress_packets, 0);
        let steered = (Verdict::Steer, packet.steered(&GATEWAY));
        assert_eq!(node.ingress(Hook::Tc, &bytes), steered);
        assert_eq!(node.counters(SLOT).ingress_packets, 1);
    }
}

#[test]
fn each_gateway_gets_its_own_packets() {
    for hook in [Hook::Xdp, Hook::Tc] {
        for version in VERSIONS {
            let mut node = Node::new();
            let packet = Packet::over(version, OTHER_PORT, message::data(OTHER_INDEX, 128));
            let steered = (Verdict::Steer, packet.steered(&OTHER_GATEWAY));
            assert_eq!(node.ingress(hook, &packet.bytes()), steered, "{hook:?}");
            assert_eq!(node.counters(OTHER_SLOT).ingress_packets, 1);
            assert_eq!(node.counters(SLOT).ingress_packets, 0);
        }
    }
}

#[test]
fn without_an_edge_address_everything_passes() {
    let mut node = Node::new();
    node.datapath.set_edge(&EdgeNode::default()).unwrap();
    for version in VERSIONS {
        let packet = Packet::over(version, PORT, message::data(INDEX, 128));
        assert_eq!(node.verdict(Hook::Xdp, &packet), Verdict::Pass);
        assert_eq!(node.verdict(Hook::Tc, &packet), Verdict::Pass);
    }
}

#[test]
fn the_expected_packets_are_what_an_independent_parser_takes_for_valid() {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    for case in VERSIONS.into_iter().flat_map(all_cases) {
        if case.verdict != Verdict::Steer {
            continue;
        }
        let what = case.description;
        let parsed = SlicedPacket::from_ethernet(&case.out).unwrap();
        let Some(TransportSlice::Udp(udp)) = parsed.transport else {
            panic!("{what}: no UDP");
        };
        let expected = match parsed.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                udp.to_header().calc_checksum_ipv4(&header, udp.payload())
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header().to_header();
                udp.to_header().calc_checksum_ipv6(&header, udp.payload())
            }
            _ => panic!("{what}: no IP"),
        };
        assert!([0, expected.unwrap()].contains(&udp.checksum()), "{what}");
    }
}
