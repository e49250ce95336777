//! A gateway's answers from another node, back to the client.

use lab::message::{self, unsigned};
use lab::packet::{NODE, NODE6, Packet};
use lab::programs::Hook;
use vpn_edge_common::{DropReason, Rates, Version};

use crate::hairpin::{Hairpin, Place, each, index};
use crate::node::{
    FAR_PORT, FAR_SLOT, HOP_PORTS, KEY, Node, OTHER_FAR_PORT, OTHER_FAR_SLOT, PORT, UNKNOWN_INDEX,
    Verdict, edge, fresh, from_source,
};

/// What a client offers to be answered under, and what a gateway announces.
const OFFERED: u32 = 0xc11e_0001;
const ANNOUNCED: u32 = 0x6a7e_0001;

/// A client's packet that went on, so that there is a flow.
fn sent(hairpin: &mut Hairpin, message: Vec<u8>) -> Packet {
    let packet = hairpin.to(message);
    assert_eq!(hairpin.run(&packet).0, hairpin.back());
    packet
}

fn initiated(hairpin: &mut Hairpin) -> Packet {
    sent(hairpin, message::initiation(OFFERED, &KEY))
}

#[test]
fn an_answer_leaves_for_the_client_as_from_the_node() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        let messages = [
            (
                "a response",
                message::response(ANNOUNCED, OFFERED, &[1; 32]),
            ),
            ("an initiation", message::initiation(8, &[1; 32])),
            ("a cookie reply", message::cookie_reply(OFFERED)),
            ("data", message::data(OFFERED, 128)),
            ("data of an odd length", message::data(OFFERED, 1337)),
        ];
        for (what, message) in messages {
            for (checksum, limit, tags) in [
                (true, 60, vec![]),
                (false, 2, vec![(0x8100, 7)]),
                (true, 255, vec![(0x88a8, 7), (0x8100, 8)]),
            ] {
                let reply = hairpin.reply(&packet, message.clone()).with(|reply| {
                    reply.udp_checksum = checksum;
                    reply.hop_limit = limit;
                    reply.tags = tags;
                });
                let before = hairpin.node.counters(FAR_SLOT);
                let returned = hairpin.returned(&reply);
                hairpin.sends(&reply, &returned, what);
                let after = hairpin.node.counters(FAR_SLOT);
                let packets = after.egress_packets - before.egress_packets;
                let bytes = after.egress_bytes - before.egress_bytes;
                assert_eq!((packets, bytes), (1, reply.ip_length()), "{what}");
                assert_eq!(after.ingress_packets, before.ingress_packets);
            }
        }
    }
}

#[test]
fn a_response_to_what_the_client_offered_announces_the_gateways_session() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        assert!(!hairpin.knows(ANNOUNCED), "before");
        let wrong = message::response(ANNOUNCED, OFFERED + 1, &[1; 32]);
        let wrong = hairpin.reply(&packet, wrong);
        let returned = hairpin.returned(&wrong);
        hairpin.sends(&wrong, &returned, "to another index");
        assert!(!hairpin.knows(ANNOUNCED), "to another index");
        assert_eq!(hairpin.flow(&packet).proven, None);

        let right = message::response(ANNOUNCED, OFFERED, &[1; 32]);
        let right = hairpin.reply(&packet, right);
        assert_eq!(hairpin.run(&right).0, hairpin.back());
        assert!(hairpin.knows(ANNOUNCED), "to the client's");
        assert!(hairpin.flow(&packet).proven.is_some());
    }
}

#[test]
fn a_gateways_initiation_is_believed_where_it_has_answered_before() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        let initiation =
            |hairpin: &Hairpin| hairpin.reply(&packet, message::initiation(ANNOUNCED, &[1; 32]));
        let early = initiation(&hairpin);
        assert_eq!(hairpin.run(&early).0, hairpin.back());
        assert!(!hairpin.knows(ANNOUNCED), "not proven");
        let data = hairpin.reply(&packet, message::data(OFFERED, 32));
        assert_eq!(hairpin.run(&data).0, hairpin.back());
        let late = initiation(&hairpin);
        assert_eq!(hairpin.run(&late).0, hairpin.back());
        assert!(hairpin.knows(ANNOUNCED), "proven");
    }
}

#[test]
fn an_answer_with_data_makes_an_unknown_session_a_known_one() {
    for mut hairpin in each() {
        let packet = sent(&mut hairpin, message::data(UNKNOWN_INDEX, 128));
        assert_eq!(hairpin.node.counters(FAR_SLOT).relayed, 1);
        let cookie = hairpin.reply(&packet, message::cookie_reply(OFFERED));
        assert_eq!(hairpin.run(&cookie).0, hairpin.back());
        assert_eq!(
            hairpin.flow(&packet).proven,
            None,
            "a cookie proves nothing"
        );
        assert!(!hairpin.knows(UNKNOWN_INDEX));
        let data = hairpin.reply(&packet, message::data(OFFERED, 128));
        assert_eq!(hairpin.run(&data).0, hairpin.back());
        assert!(hairpin.flow(&packet).proven.is_some());
        assert!(hairpin.knows(UNKNOWN_INDEX));
    }
}

#[test]
fn data_that_is_not_for_what_the_client_offered_proves_nothing() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        sent(&mut hairpin, message::data(UNKNOWN_INDEX, 128));
        let data = hairpin.reply(&packet, message::data(OFFERED + 1, 128));
        assert_eq!(hairpin.run(&data).0, hairpin.back());
        assert_eq!(hairpin.flow(&packet).proven, None);
        assert!(!hairpin.knows(UNKNOWN_INDEX));
    }
}

#[test]
fn what_no_gateways_node_sent_is_the_kernels() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        let reply = hairpin.reply(&packet, message::data(OFFERED, 128));
        let with = |bend: &dyn Fn(&mut Packet)| {
            let mut packet = reply.clone();
            bend(&mut packet);
            packet
        };
        let version = hairpin.version;
        let cases = [
            (
                "another address",
                with(&|reply| reply.source = Place::Other.ip(version)),
            ),
            ("a port of no tenant", with(&|reply| reply.ports.0 = 31_990)),
            (
                "a port of a gateway here",
                with(&|reply| reply.ports.0 = PORT),
            ),
            (
                "below the ports",
                with(&|reply| reply.ports.1 = HOP_PORTS - 1),
            ),
            (
                "above the ports",
                with(&|reply| reply.ports.1 = HOP_PORTS + 128),
            ),
            (
                "to another node",
                with(&|reply| reply.destination = Place::Here.ip(version)),
            ),
            ("no UDP", with(&|reply| reply.protocol = 6)),
        ];
        for (what, packet) in cases {
            let expected = (Verdict::Pass, packet.bytes());
            assert_eq!(hairpin.run(&packet), expected, "{what}");
        }
        assert_eq!(hairpin.node.counters(FAR_SLOT).egress_packets, 0);
        assert_eq!(hairpin.flow(&packet).proven, None);
    }
}

#[test]
fn an_answer_that_is_bent_or_has_no_flow_is_dropped() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        let port = hairpin.flow(&packet).hop_port;
        let reply = hairpin.reply(&packet, message::data(OFFERED, 128));
        let of = |message| hairpin.reply(&packet, message);
        let cases = [
            (
                DropReason::HopLimit,
                reply.clone().with(|reply| reply.hop_limit = 1),
            ),
            (
                DropReason::HopLimit,
                reply.clone().with(|reply| reply.hop_limit = 0),
            ),
            (DropReason::MessageType, of(unsigned(9, 128, &[]))),
            (DropReason::MessageLength, of(unsigned(2, 128, &[]))),
            (DropReason::Truncated, of(unsigned(4, 20, &[]))),
        ];
        for (reason, reply) in cases {
            let expected = (Verdict::Drop(reason), reply.bytes());
            assert_eq!(hairpin.run(&reply), expected);
        }
        for place in (0..128).filter(|place| HOP_PORTS + place != port) {
            let reply = hairpin.reply_to(HOP_PORTS + place, message::data(OFFERED, 128));
            let expected = Verdict::Drop(DropReason::UnknownFlow);
            assert_eq!(hairpin.run(&reply).0, expected, "{place}");
        }
        // Of the other IP version, the gateway's node would have no such flow.
        hairpin.version = match reply.version() {
            Version::V4 => Version::V6,
            Version::V6 => Version::V4,
        };
        let reply_across = hairpin.reply_to(port, message::data(OFFERED, 128));
        hairpin.version = reply.version();
        let expected = Verdict::Drop(DropReason::UnknownFlow);
        assert_eq!(hairpin.run(&reply_across).0, expected);
        // The flow is one tenant's, and no other's.
        let other = reply.clone().with(|reply| reply.ports.0 = OTHER_FAR_PORT);
        let expected = Verdict::Drop(DropReason::UnknownFlow);
        assert_eq!(hairpin.run(&other).0, expected);
        let drops = hairpin.node.counters(OTHER_FAR_SLOT).drops;
        assert_eq!(drops[DropReason::UnknownFlow as usize], 1);
        assert_eq!(hairpin.flow(&packet).proven, None);
    }
}

#[test]
fn an_answer_that_has_no_way_back_is_dropped_and_not_counted_as_sent() {
    for mut hairpin in each() {
        let packet = hairpin
            .to(message::data(UNKNOWN_INDEX, 128))
            .with(|packet| {
                packet.source = Place::Nowhere.ip(packet.version());
            });
        assert_eq!(hairpin.run(&packet).0, hairpin.back());
        let reply = hairpin.reply(&packet, message::data(OFFERED, 128));
        let expected = Verdict::Drop(DropReason::NoRoute);
        assert_eq!(hairpin.run(&reply).0, expected);
        assert_eq!(hairpin.node.counters(FAR_SLOT).egress_packets, 0);
    }
}

#[test]
fn an_answer_whose_next_hop_is_unknown_is_sent_by_tc() {
    for version in [Version::V4, Version::V6] {
        let mut hairpin = Hairpin::new(Hook::Xdp, version);
        let packet = hairpin
            .to(message::data(UNKNOWN_INDEX, 128))
            .with(|packet| {
                packet.source = Place::Unresolved.ip(version);
            });
        assert_eq!(hairpin.run(&packet).0, Verdict::Back);
        let reply = hairpin.reply(&packet, message::data(OFFERED, 128));
        let passed = (Verdict::Pass, reply.bytes());
        assert_eq!(hairpin.run(&reply), passed);
        assert_eq!(hairpin.node.counters(FAR_SLOT).egress_packets, 0);
        hairpin.hook = Hook::Tc;
        let returned = hairpin.returned(&reply).with(|returned| {
            returned.destination = Place::Unresolved.ip(version);
        });
        hairpin.sends(&reply, &returned, "by tc");
        assert_eq!(hairpin.node.counters(FAR_SLOT).egress_packets, 1);
    }
}

#[test]
fn answers_are_held_to_the_plan() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        let reply = hairpin.reply(&packet, message::data(OFFERED, 128));
        let mut limited = hairpin.node.datapath.maps.allocation(FAR_PORT).unwrap();
        limited.limited = 1;
        limited.rates = Rates {
            packet: 1,
            byte: 1024,
        };
        hairpin.node.publish(FAR_PORT, limited);
        assert_eq!(hairpin.run(&reply).0, hairpin.back());
        let at = usize::from(FAR_SLOT);
        hairpin.node.memory.limits[at].bytes[1].store(u64::MAX / 2);
        let expected = Verdict::Drop(DropReason::ByteRate);
        assert_eq!(hairpin.run(&reply).0, expected);
        hairpin.node.memory.limits[at].packets[1].store(u64::MAX / 2);
        let expected = Verdict::Drop(DropReason::PacketRate);
        assert_eq!(hairpin.run(&reply).0, expected);
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_the_client_sent_to() {
    for mut hairpin in each() {
        let up = index("near");
        let several = |node: &mut Node, own: &[std::net::IpAddr]| {
            let mut edge = edge(up, &[up]);
            edge.own.extend(own.iter().map(|&ip| (ip, up)));
            node.datapath.set_edge(&edge).unwrap();
        };
        let second: std::net::IpAddr = match hairpin.version {
            Version::V4 => std::net::Ipv4Addr::new(198, 51, 100, 22).into(),
            Version::V6 => "2001:db8:2::22".parse().unwrap(),
        };
        several(&mut hairpin.node, &[second]);
        let packet = hairpin.to(message::initiation(fresh(), &KEY));
        let packet = packet.with(|packet| packet.destination = second);
        let (verdict, out) = hairpin.run(&packet);
        assert_eq!(verdict, hairpin.back());
        // On to the gateway from the first of the version all the same.
        assert_eq!(out, hairpin.framed(&packet, &hairpin.onward(&packet)));
        let reply = hairpin.reply(&packet, message::data(OFFERED, 128));
        let returned = hairpin
            .returned(&reply)
            .with(|returned| returned.source = second);
        hairpin.sends(&reply, &returned, "from the second");
        several(&mut hairpin.node, &[]);
        let expected = Verdict::Drop(DropReason::UnknownFlow);
        assert_eq!(hairpin.run(&reply).0, expected, "an address that is gone");
        assert_ne!(second, NODE);
        assert_ne!(second, NODE6);
    }
}

#[test]
fn a_flood_of_forged_clients_pushes_out_no_client_that_is_answered() {
    for mut hairpin in each() {
        let packet = initiated(&mut hairpin);
        let response = message::response(ANNOUNCED, OFFERED, &[1; 32]);
        let response = hairpin.reply(&packet, response);
        assert_eq!(hairpin.run(&response).0, hairpin.back());
        let (hook, version) = (hairpin.hook, hairpin.version);
        for number in 0..1000 {
            let initiation = message::initiation(fresh(), &KEY);
            for message in [initiation, message::data(fresh(), 32)] {
                hairpin.node.memory.forget_rates();
                let packet = from_source(number, Packet::over(version, FAR_PORT, message));
                assert_eq!(hairpin.node.verdict(hook, &packet), hairpin.back());
            }
        }
        let flows = hairpin.node.datapath.maps.flows(FAR_SLOT).unwrap();
        assert_eq!(flows.len(), 128);
        let others = hairpin.node.datapath.maps.flows(OTHER_FAR_SLOT).unwrap();
        assert_eq!(others, [], "another tenant's");
        let reply = hairpin.reply(&packet, message::data(OFFERED, 128));
        let returned = hairpin.returned(&reply);
        hairpin.sends(&reply, &returned, "after the flood");
    }
}
