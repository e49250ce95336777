//! The table of shapes: what passes, what is dropped, and what comes out.

use std::net::Ipv4Addr;

use lab::message::{self, unsigned};
use lab::packet::{MESSAGE, Packet};
use lab::programs::{Hook, LEAST_SKB};
use vpn_edge_common::DropReason;

use crate::node::{
    CLOSED_PORT, GATEWAY, INDEX, KEY, Node, OTHER_GATEWAY, OTHER_INDEX, OTHER_KEY, OTHER_PORT,
    OTHER_SLOT, PORT, SLOT, TC_PORT, UNKNOWN_INDEX, UNKNOWN_PORT, Verdict, data, initiation,
};

struct Case {
    description: &'static str,
    packet: Vec<u8>,
    verdict: Verdict,
    /// The packet that leaves, where it is steered.
    out: Vec<u8>,
}

fn passes(description: &'static str, packet: Vec<u8>) -> Case {
    Case {
        description,
        packet,
        verdict: Verdict::Pass,
        out: Vec::new(),
    }
}

fn drops(description: &'static str, reason: DropReason, packet: Vec<u8>) -> Case {
    Case {
        description,
        packet,
        verdict: Verdict::Drop(reason),
        out: Vec::new(),
    }
}

fn steers(description: &'static str, packet: &Packet) -> Case {
    Case {
        description,
        packet: packet.bytes(),
        verdict: Verdict::Steer,
        out: packet.steered(&GATEWAY),
    }
}

fn cases() -> Vec<Case> {
    use DropReason::{
        Fragment, IpOptions, Mac1, MessageLength, MessageType, NoGateway, Truncated, UnknownSession,
    };
    let good = data();
    let mut cases = vec![
        steers("transport data", &good),
        steers(
            "a keepalive, the shortest message",
            &Packet::to(PORT, message::data(INDEX, 32)),
        ),
        steers(
            "data of an odd length",
            &Packet::to(PORT, message::data(INDEX, 1439)),
        ),
        steers("an initiation", &initiation()),
        steers(
            "a response",
            &Packet::to(PORT, message::response(1, INDEX, &KEY)),
        ),
        steers(
            "a cookie reply",
            &Packet::to(PORT, message::cookie_reply(INDEX)),
        ),
        steers(
            "no UDP checksum",
            &good.clone().with(|packet| packet.udp_checksum = false),
        ),
        steers(
            "a VLAN tag",
            &good
                .clone()
                .with(|packet| packet.tags = vec![(0x8100, 100)]),
        ),
        steers(
            "two VLAN tags",
            &good
                .clone()
                .with(|packet| packet.tags = vec![(0x88a8, 7), (0x8100, 100)]),
        ),
        passes(
            "three VLAN tags",
            good.clone()
                .with(|packet| packet.tags = vec![(0x88a8, 7), (0x8100, 8), (0x8100, 9)])
                .bytes(),
        ),
        passes(
            "a port that is not allocated",
            Packet::to(UNKNOWN_PORT, message::data(INDEX, 128)).bytes(),
        ),
        passes(
            "port zero",
            Packet::to(0, message::data(INDEX, 128)).bytes(),
        ),
        passes(
            "another address",
            good.clone()
                .with(|packet| packet.destination = Ipv4Addr::new(198, 51, 100, 3))
                .bytes(),
        ),
        passes(
            "another address, and something else that would be dropped",
            Packet::to(PORT, unsigned(9, 20, &[]))
                .with(|packet| packet.destination = Ipv4Addr::BROADCAST)
                .bytes(),
        ),
        passes(
            "TCP to the same port",
            good.clone().with(|packet| packet.protocol = 6).bytes(),
        ),
        passes(
            "a later fragment, which has no ports",
            good.clone()
                .with(|packet| packet.fragment_offset = 10)
                .bytes(),
        ),
        passes("ARP", good.patched(12, &[0x08, 0x06])),
        passes("IPv6", good.patched(12, &[0x86, 0xdd])),
        passes("an IP version that is not four", good.patched(14, &[0x65])),
        passes(
            "an IP header length below the least",
            good.patched(14, &[0x44]),
        ),
        passes("cut before the ports", good.cut(14 + 20 + 3)),
        passes("cut in the IP header", good.cut(14 + 19)),
        passes("an Ethernet header and no more", good.cut(14)),
        drops("cut after the ports", Truncated, good.cut(14 + 20 + 4)),
        drops("cut in the message", Truncated, good.cut(14 + 20 + 8 + 127)),
        drops(
            "cut before the shortest message ends",
            Truncated,
            good.cut(14 + 20 + 8 + 31),
        ),
        drops(
            "a UDP length beyond the IP packet",
            Truncated,
            good.patched(14 + 20 + 4, &137_u16.to_be_bytes()),
        ),
        drops(
            "a UDP length below its header",
            Truncated,
            good.patched(14 + 20 + 4, &7_u16.to_be_bytes()),
        ),
        drops(
            "an IP length beyond the frame",
            Truncated,
            good.patched(14 + 2, &157_u16.to_be_bytes()),
        ),
        drops(
            "an empty datagram",
            Truncated,
            Packet::to(PORT, vec![]).bytes(),
        ),
        drops(
            "four bytes",
            Truncated,
            Packet::to(PORT, unsigned(4, 4, &[])).bytes(),
        ),
        drops(
            "IP options",
            IpOptions,
            good.clone()
                .with(|packet| packet.options = vec![1; 4])
                .bytes(),
        ),
        drops(
            "as many IP options as there can be",
            IpOptions,
            good.clone()
                .with(|packet| packet.options = vec![1; 40])
                .bytes(),
        ),
        passes(
            "IP options before a port that is not allocated",
            Packet::to(UNKNOWN_PORT, message::data(INDEX, 128))
                .with(|packet| packet.options = vec![1; 12])
                .bytes(),
        ),
        drops(
            "a first fragment",
            Fragment,
            good.clone()
                .with(|packet| packet.more_fragments = true)
                .bytes(),
        ),
        drops(
            "type zero",
            MessageType,
            Packet::to(PORT, unsigned(0, 128, &[])).bytes(),
        ),
        drops(
            "type five",
            MessageType,
            Packet::to(PORT, unsigned(5, 128, &[])).bytes(),
        ),
        drops(
            "no WireGuard at all",
            MessageType,
            Packet::to(PORT, vec![b'A'; 64]).bytes(),
        ),
        drops(
            "an initiation too short",
            MessageLength,
            Packet::to(PORT, unsigned(1, 147, &[])).bytes(),
        ),
        drops(
            "an initiation too long",
            MessageLength,
            Packet::to(PORT, unsigned(1, 149, &[])).bytes(),
        ),
        drops(
            "a response too long",
            MessageLength,
            Packet::to(PORT, unsigned(2, 148, &[])).bytes(),
        ),
        drops(
            "a cookie reply too short",
            MessageLength,
            Packet::to(PORT, unsigned(3, 63, &[])).bytes(),
        ),
        drops(
            "an initiation to another gateway's key",
            Mac1,
            Packet::to(PORT, message::initiation(1, &OTHER_KEY)).bytes(),
        ),
        drops(
            "a response to another gateway's key",
            Mac1,
            Packet::to(PORT, message::response(1, INDEX, &OTHER_KEY)).bytes(),
        ),
        drops(
            "a response that answers nothing",
            UnknownSession,
            Packet::to(PORT, message::response(1, UNKNOWN_INDEX, &KEY)).bytes(),
        ),
        drops(
            "a response for which only its sender's index is known",
            UnknownSession,
            Packet::to(PORT, message::response(INDEX, UNKNOWN_INDEX, &KEY)).bytes(),
        ),
        drops(
            "data of an unknown session",
            UnknownSession,
            Packet::to(PORT, message::data(UNKNOWN_INDEX, 128)).bytes(),
        ),
        drops(
            "data of another gateway's session",
            UnknownSession,
            Packet::to(PORT, message::data(OTHER_INDEX, 128)).bytes(),
        ),
        drops(
            "data of session zero",
            UnknownSession,
            Packet::to(PORT, message::data(0, 128)).bytes(),
        ),
        drops(
            "a cookie reply to nobody",
            UnknownSession,
            Packet::to(PORT, message::cookie_reply(UNKNOWN_INDEX)).bytes(),
        ),
        drops(
            "a port whose gateway is not there",
            NoGateway,
            Packet::to(CLOSED_PORT, message::data(INDEX, 128)).bytes(),
        ),
    ];
    for at in 1..4 {
        let mut bent = message::data(INDEX, 128);
        bent[at] = 0x80;
        cases.push(drops(
            "a reserved byte that is not zero",
            MessageType,
            Packet::to(PORT, bent).bytes(),
        ));
    }
    // Ethernet pads short frames; the IP length says where the packet ends.
    let mut padded = steers("a frame with padding", &good);
    padded.packet.extend([0; 18]);
    padded.out.extend([0; 18]);
    cases.push(padded);
    cases
}

/// Runs the table, and holds verdict, reason, counters and packet to it.
/// Packets below `shortest` bytes are left out.
fn check(hook: Hook, shortest: usize) {
    let mut node = Node::new();
    for case in cases() {
        if case.packet.len() < shortest {
            continue;
        }
        let what = case.description;
        let before = node.counters(SLOT);
        let (verdict, out) = node.ingress(hook, &case.packet);
        let after = node.counters(SLOT);
        assert_eq!(verdict, case.verdict, "{what}");
        let packets = after.ingress_packets - before.ingress_packets;
        let bytes = after.ingress_bytes - before.ingress_bytes;
        let handshakes = after.handshakes - before.handshakes;
        if verdict == Verdict::Steer {
            assert_eq!(out, case.out, "{what}");
            // The frame less its Ethernet header and padding.
            let ip = u16::from_be_bytes([out[16], out[17]]);
            let handshake = out[MESSAGE] == 1 || out[MESSAGE] == 2;
            assert_eq!((packets, bytes), (1, u64::from(ip)), "{what}");
            assert_eq!(handshakes, u64::from(handshake), "{what}");
        } else {
            assert_eq!(out, case.packet, "{what}: left untouched");
            assert_eq!((packets, bytes, handshakes), (0, 0, 0), "{what}");
        }
        assert_eq!(after.graced, before.graced, "{what}");
    }
}

#[test]
fn xdp_ingress_treats_every_packet_as_the_table_says() {
    check(Hook::Xdp, 0);
}

#[test]
fn tc_ingress_treats_every_packet_as_the_table_says() {
    check(Hook::Tc, LEAST_SKB);
}

#[test]
fn a_port_on_the_tc_rung_passes_xdp_uncounted_and_is_steered_by_tc() {
    let mut node = Node::new();
    let packet = Packet::to(TC_PORT, message::data(INDEX, 128));
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

#[test]
fn each_gateway_gets_its_own_packets() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        let packet = Packet::to(OTHER_PORT, message::data(OTHER_INDEX, 128));
        let steered = (Verdict::Steer, packet.steered(&OTHER_GATEWAY));
        assert_eq!(node.ingress(hook, &packet.bytes()), steered, "{hook:?}");
        assert_eq!(node.counters(OTHER_SLOT).ingress_packets, 1);
        assert_eq!(node.counters(SLOT).ingress_packets, 0);
    }
}

#[test]
fn without_an_edge_address_everything_passes() {
    let mut node = Node::new();
    node.datapath.set_edge([0; 16], 0).unwrap();
    assert_eq!(node.verdict(Hook::Xdp, &data()), Verdict::Pass);
}

#[test]
fn the_expected_packets_are_what_an_independent_parser_takes_for_valid() {
    for case in cases() {
        if case.verdict == Verdict::Steer {
            let parsed = etherparse::SlicedPacket::from_ethernet(&case.out).unwrap();
            let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
                (parsed.net, parsed.transport)
            else {
                panic!("{}: no UDP over IPv4", case.description);
            };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let expected = udp
                .to_header()
                .calc_checksum_ipv4(&header, udp.payload())
                .unwrap();
            assert!(
                [0, expected].contains(&udp.checksum()),
                "{}",
                case.description
            );
        }
    }
}
