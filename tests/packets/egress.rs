//! Gateway to client: the node's address put back, and indexes learnt.

use lab::message::{self, unsigned};
use lab::packet::{Packet, VERSIONS, client, node as node_address};
use lab::programs::{Hook, Skb};
use vpn_edge_common::{Version, program};

use crate::node::{
    CLOSED_PORT, GATEWAY, INDEX, KEY, Node, PORT, SLOT, UNKNOWN_INDEX, UNKNOWN_PORT, Verdict,
};

fn reply(version: Version) -> Packet {
    Packet::reply(version, &GATEWAY, PORT, message::data(1, 128))
}

/// What a gateway could announce an index with, and does.
fn announcement(version: Version, index: u32) -> Packet {
    let initiation = message::initiation(index, &[1; 32]);
    Packet::reply(version, &GATEWAY, PORT, initiation)
}

fn knows(node: &mut Node, index: u32) -> bool {
    let packet = Packet::to(PORT, message::data(index, 128));
    node.verdict(Hook::Xdp, &packet) == Verdict::Steer
}

#[test]
fn egress_puts_the_nodes_address_back() {
    for (version, header) in [(Version::V4, 20), (Version::V6, 40)] {
        let mut node = Node::new();
        let before = node.counters(SLOT);
        for (what, checksum) in [("a reply", true), ("without UDP checksum", false)] {
            let packet = reply(version).with(|packet| packet.udp_checksum = checksum);
            let restored = packet
                .clone()
                .with(|packet| packet.source = node_address(version));
            let expected = (Verdict::Steer, restored.bytes());
            let out = node.egress(&packet.bytes());
            assert_eq!(out, expected, "{version:?} {what}");
        }
        let after = node.counters(SLOT);
        assert_eq!(after.egress_packets - before.egress_packets, 2);
        let bytes = after.egress_bytes - before.egress_bytes;
        assert_eq!(bytes, 2 * (header + 8 + 128));
        assert_eq!(after.announced, before.announced);
    }
}

/// Packets that are not the first gateway's traffic with the outside.
fn foreign(packet: &Packet) -> Vec<(&'static str, Vec<u8>)> {
    let with = |bend: fn(&mut Packet)| packet.clone().with(bend).bytes();
    vec![
        (
            "to the node itself",
            with(|packet| packet.destination = node_address(packet.version())),
        ),
        (
            "from another port",
            with(|packet| packet.ports.0 = UNKNOWN_PORT),
        ),
        (
            "from a closed port",
            with(|packet| packet.ports.0 = CLOSED_PORT),
        ),
        (
            "from another address",
            with(|packet| packet.source = client(packet.version())),
        ),
        ("tagged", with(|packet| packet.tags = vec![(0x8100, 7)])),
        ("no UDP", with(|packet| packet.protocol = 6)),
        ("cut before the ports", packet.cut(packet.udp_at() + 3)),
    ]
}

#[test]
fn what_is_not_the_gateways_traffic_with_the_outside_goes_on_untouched() {
    for version in VERSIONS {
        let mut node = Node::new();
        let before = node.counters(SLOT);
        for (what, packet) in foreign(&reply(version)) {
            let expected = (Verdict::Pass, packet.clone());
            assert_eq!(node.egress(&packet), expected, "{version:?} {what}");
        }
        assert_eq!(node.counters(SLOT), before);
    }
}

#[test]
fn egress_lets_no_gateway_speak_for_another() {
    for version in VERSIONS {
        let mut node = Node::new();
        // The port belongs to a gateway behind another interface.
        let mut other = node.datapath.maps.allocation(PORT).unwrap();
        other.ifindex = 4711;
        node.publish(PORT, other);
        let forged = reply(version).bytes();
        assert_eq!(node.egress(&forged), (Verdict::Pass, forged.clone()));
    }
}

#[test]
fn initiations_and_responses_of_a_gateway_announce_their_index() {
    for version in VERSIONS {
        let mut node = Node::new();
        let before = node.counters(SLOT).announced;
        let messages = [
            (101, message::initiation(101, &[1; 32])),
            (102, message::response(102, 7, &[1; 32])),
        ];
        for (index, message) in messages {
            assert!(!knows(&mut node, index), "{index} before");
            let packet = Packet::reply(version, &GATEWAY, PORT, message);
            assert_eq!(node.egress(&packet.bytes()).0, Verdict::Steer);
            assert!(knows(&mut node, index), "{index} after");
        }
        assert_eq!(node.counters(SLOT).announced - before, 2);
    }
}

#[test]
fn nothing_else_that_a_gateway_sends_announces_an_index() {
    for version in VERSIONS {
        let mut node = Node::new();
        let before = node.counters(SLOT).announced;
        let messages = [
            ("a cookie reply", message::cookie_reply(UNKNOWN_INDEX)),
            ("data", message::data(UNKNOWN_INDEX, 148)),
            ("a long initiation", unsigned(1, 149, &[UNKNOWN_INDEX])),
            ("a short response", unsigned(2, 91, &[UNKNOWN_INDEX])),
            ("another type", unsigned(5, 148, &[UNKNOWN_INDEX])),
        ];
        for (what, message) in messages {
            let packet = Packet::reply(version, &GATEWAY, PORT, message);
            assert_eq!(node.egress(&packet.bytes()).0, Verdict::Steer, "{what}");
            assert!(!knows(&mut node, UNKNOWN_INDEX), "{what}");
        }
        assert_eq!(node.counters(SLOT).announced, before);
    }
}

#[test]
fn what_is_not_from_the_gateway_announces_nothing() {
    for version in VERSIONS {
        let mut node = Node::new();
        for (what, packet) in foreign(&announcement(version, UNKNOWN_INDEX)) {
            assert_eq!(node.egress(&packet).0, Verdict::Pass, "{what}");
            assert!(!knows(&mut node, UNKNOWN_INDEX), "{what}");
        }
        let mine = node.datapath.maps.allocation(PORT).unwrap();
        let mut other = mine;
        other.ifindex = 4711;
        node.publish(PORT, other);
        let packet = announcement(version, UNKNOWN_INDEX).bytes();
        assert_eq!(node.egress(&packet).0, Verdict::Pass, "another interface");
        node.publish(PORT, mine);
        assert!(!knows(&mut node, UNKNOWN_INDEX), "another interface");
        assert!(knows(&mut node, INDEX), "what was announced before");
    }
}

#[test]
fn a_client_announces_nothing() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        let packet = Packet::to(PORT, message::initiation(UNKNOWN_INDEX, &KEY));
        assert_eq!(node.verdict(hook, &packet), Verdict::Steer);
        assert!(!knows(&mut node, UNKNOWN_INDEX), "{hook:?}");
    }
}

#[test]
fn a_reply_that_is_yet_to_be_segmented_counts_as_its_segments() {
    for version in VERSIONS {
        let mut node = Node::new();
        let before = node.counters(SLOT);
        let skb = Skb {
            gso_segs: 3,
            gso_size: 43,
            ..Skb::default()
        };
        let packet = reply(version).bytes();
        let (verdict, _) = node.run(program::EGRESS, &packet, skb);
        assert_eq!(verdict, Verdict::Steer);
        let after = node.counters(SLOT);
        assert_eq!(after.egress_packets - before.egress_packets, 3);
    }
}
