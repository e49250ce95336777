//! A node with several addresses.

use std::net::IpAddr;

use lab::message;
use lab::packet::{NODE, NODE6, Packet, VERSIONS};
use lab::programs::Hook;
use vpn_edge::datapath::EdgeNode;
use vpn_edge_common::{Version, mapped};

use crate::node::{
    GATEWAY, INDEX, LO, Node, PORT, SLOT, Verdict, edge, from_source, initiation_over,
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The first two, and as many others as there is room for.
fn others() -> [IpAddr; 6] {
    [
        ip("198.51.100.3"),
        ip("2001:db8:2::3"),
        ip("192.0.2.4"),
        ip("2001:db8:ffff::4"),
        ip("10.0.0.5"),
        ip("fe80::5"),
    ]
}

fn with(others: &[IpAddr]) -> EdgeNode {
    let mut node = edge(LO, &[]);
    node.own.extend(others.iter().map(|&ip| (ip, LO)));
    node
}

fn version(ip: IpAddr) -> Version {
    if ip.is_ipv4() {
        Version::V4
    } else {
        Version::V6
    }
}

fn to(ip: IpAddr, message: Vec<u8>) -> Packet {
    let packet = Packet::over(version(ip), PORT, message);
    packet.with(|packet| packet.destination = ip)
}

/// The address that `packet`'s client is answered from.
fn answered(node: &mut Node, packet: &Packet) -> IpAddr {
    let version = packet.version();
    let reply = Packet::reply(version, &GATEWAY, PORT, message::data(1, 128));
    let reply = reply.with(|reply| {
        reply.destination = packet.source;
        reply.ports.1 = packet.ports.0;
    });
    let (verdict, out) = node.egress(&reply.bytes());
    assert_eq!(verdict, Verdict::Steer);
    let mut own = vec![ip("198.51.100.2"), NODE6.into()];
    own.extend(others());
    let own = own.into_iter().filter(|ip| self::version(*ip) == version);
    let mut from = own.filter(|&ip| {
        let restored = reply.clone().with(|reply| reply.source = ip);
        restored.bytes() == out
    });
    from.next().expect("from one of the node's addresses")
}

#[test]
fn packets_to_each_of_eight_addresses_are_steered_and_to_no_ninth() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        let mut edge = with(&others());
        let ninth = ip("198.51.100.99");
        edge.own.push((ninth, LO));
        node.datapath.set_edge(&edge).unwrap();
        for (at, (own, _)) in edge.own.iter().enumerate() {
            let packet = to(*own, message::data(INDEX, 128));
            let expected = match at {
                8.. => (Verdict::Pass, packet.bytes()),
                _ => (Verdict::Steer, packet.steered(&GATEWAY)),
            };
            assert_eq!(node.ingress(hook, &packet.bytes()), expected, "{own}");
        }
    }
}

#[test]
fn a_client_is_answered_from_the_address_that_it_sent_to_last() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        node.datapath.set_edge(&with(&others())).unwrap();
        for own in others().into_iter().chain([NODE.into(), NODE6.into()]) {
            let packet = to(own, message::data(INDEX, 128));
            assert_eq!(node.verdict(hook, &packet), Verdict::Steer);
            assert_eq!(answered(&mut node, &packet), own, "{hook:?}");
        }
        for version in VERSIONS {
            let packet = Packet::over(version, PORT, message::data(INDEX, 128));
            let stranger = from_source(9, packet);
            let primary = lab::packet::node(version);
            assert_eq!(answered(&mut node, &stranger), primary, "no flow");
            let port = stranger.with(|packet| packet.ports.0 = 1);
            assert_eq!(answered(&mut node, &port), primary, "no flow");
        }
    }
}

#[test]
fn a_client_of_an_address_that_is_gone_is_answered_from_the_first() {
    for own in others() {
        let mut node = Node::new();
        node.datapath.set_edge(&with(&others())).unwrap();
        let packet = to(own, message::data(INDEX, 128));
        assert_eq!(node.verdict(Hook::Xdp, &packet), Verdict::Steer);
        let rest: Vec<IpAddr> = others().into_iter().filter(|&ip| ip != own).collect();
        node.datapath.set_edge(&with(&rest)).unwrap();
        let primary = lab::packet::node(version(own));
        assert_eq!(answered(&mut node, &packet), primary);
        assert_eq!(node.verdict(Hook::Xdp, &packet), Verdict::Pass);
        // In its place one of the other version.
        let other = match version(own) {
            Version::V4 => ip("2001:db8:77::7"),
            Version::V6 => ip("10.7.7.7"),
        };
        let mut full = rest;
        full.push(other);
        node.datapath.set_edge(&with(&full)).unwrap();
        assert_eq!(answered(&mut node, &packet), primary);
    }
}

#[test]
fn addresses_keep_their_places_as_others_come_and_go() {
    let mut node = Node::new();
    let places = |node: &Node| {
        let own = node.datapath.maps.edge().unwrap().own;
        own.map(|own| vpn_edge::datapath::ip(own.address))
    };
    let [a, b, c, d, e, f] = others();
    let none = ip("::");
    node.datapath.set_edge(&with(&[a, b, c])).unwrap();
    let first = [NODE.into(), NODE6.into()];
    let expect = |others: [IpAddr; 6]| -> [IpAddr; 8] {
        let all: Vec<IpAddr> = first.into_iter().chain(others).collect();
        all.try_into().unwrap()
    };
    assert_eq!(places(&node), expect([a, b, c, none, none, none]));
    node.datapath.set_edge(&with(&[c, d, a])).unwrap();
    assert_eq!(places(&node), expect([a, d, c, none, none, none]));
    node.datapath.set_edge(&with(&[e, f, d, c, b])).unwrap();
    assert_eq!(places(&node), expect([e, d, c, f, b, none]));
    let edge = node.datapath.maps.edge().unwrap();
    assert_eq!(edge.several, 1);
    node.datapath.set_edge(&with(&[])).unwrap();
    assert_eq!(places(&node), expect([none; 6]));
    let alone = node.datapath.maps.edge().unwrap();
    assert_eq!((alone.several, alone.seed), (0, edge.seed));
    assert_eq!(alone.own[0].address, mapped(NODE.octets()));
}

#[test]
fn with_one_address_of_a_version_handshakes_alone_make_flows() {
    for version in VERSIONS {
        for hook in [Hook::Xdp, Hook::Tc] {
            let mut node = Node::new();
            let data = Packet::over(version, PORT, message::data(INDEX, 128));
            assert_eq!(node.verdict(hook, &data), Verdict::Steer);
            assert_eq!(node.datapath.maps.flows(SLOT).unwrap(), []);
            let handshake = initiation_over(version);
            assert_eq!(node.verdict(hook, &handshake), Verdict::Steer);
            let flows = node.datapath.maps.flows(SLOT).unwrap();
            assert_eq!(flows.len(), 1);
            let expected = (handshake.source, handshake.ports.0).into();
            assert_eq!(flows[0].client, expected);
            assert_eq!(flows[0].own, Some(lab::packet::node(version)));
            assert_eq!(flows[0].proven, None);
            // The gateway's answer proves it, its data need not.
            let response = message::response(9, 9, &[1; 32]);
            let reply = Packet::reply(version, &GATEWAY, PORT, response);
            assert_eq!(node.egress(&reply.bytes()).0, Verdict::Steer);
            let flows = node.datapath.maps.flows(SLOT).unwrap();
            assert!(flows[0].proven.is_some());
        }
    }
}
