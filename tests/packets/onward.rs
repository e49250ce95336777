//! Client to a gateway on another node.

use lab::message::{self, unsigned};
use lab::packet::Packet;
use lab::programs::Hook;
use vpn_edge_common::{DropReason, Version};

use crate::hairpin::{Hairpin, OTHER_MAC, OTHER_ROUTER_MAC, Place, each, index, ip};
use crate::node::{
    FAR_SLOT, KEY, OTHER_KEY, UNKNOWN_INDEX, Verdict, edge, fresh, from_source, now,
};

fn initiation() -> Vec<u8> {
    message::initiation(fresh(), &KEY)
}

fn data() -> Vec<u8> {
    message::data(UNKNOWN_INDEX, 128)
}

#[test]
fn a_packet_leaves_for_the_gateways_node_from_the_port_of_its_flow() {
    for mut hairpin in each() {
        let tagged =
            |tags: &[(u16, u16)]| hairpin.to(data()).with(|packet| packet.tags = tags.into());
        let packets = [
            ("an initiation", hairpin.to(initiation())),
            (
                "a response",
                hairpin.to(message::response(fresh(), 7, &KEY)),
            ),
            ("a cookie reply", hairpin.to(message::cookie_reply(7))),
            ("data", hairpin.to(data())),
            ("data of an odd length", hairpin.to(message::data(7, 1337))),
            ("a tag", tagged(&[(0x8100, 100)])),
            ("two tags", tagged(&[(0x88a8, 7), (0x8100, 100)])),
        ];
        for (what, packet) in packets {
            for checksum in [true, false] {
                let packet = packet.clone().with(|packet| packet.udp_checksum = checksum);
                hairpin.node.memory.forget_replays(FAR_SLOT);
                let before = hairpin.node.counters(FAR_SLOT);
                // The flow's port is known once there is a flow.
                let (verdict, out) = hairpin.run(&packet);
                assert_eq!(verdict, hairpin.back(), "{what}");
                let sent = hairpin.onward(&packet);
                assert_eq!(out, hairpin.framed(&packet, &sent), "{what}");
                let after = hairpin.node.counters(FAR_SLOT);
                let packets = after.ingress_packets - before.ingress_packets;
                let bytes = after.ingress_bytes - before.ingress_bytes;
                assert_eq!((packets, bytes), (1, packet.ip_length()), "{what}");
                let handshakes = after.handshakes - before.handshakes;
                let relayed = after.relayed - before.relayed;
                let initiation = u64::from(packet.message[0] == 1);
                assert_eq!(
                    (handshakes, relayed),
                    (initiation, 1 - initiation),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn a_packet_goes_no_further_than_sixteen_hops_and_one_less_than_it_may() {
    for mut hairpin in each() {
        for limit in [2, 3, 16, 17, 18, 64, 255] {
            let packet = hairpin.to(data()).with(|packet| packet.hop_limit = limit);
            let (verdict, out) = hairpin.run(&packet);
            assert_eq!(verdict, hairpin.back());
            let sent = hairpin.onward(&packet);
            assert_eq!(sent.hop_limit, (limit - 1).min(16));
            assert_eq!(out, hairpin.framed(&packet, &sent), "{limit}");
        }
        for limit in [0, 1] {
            let packet = hairpin.to(data()).with(|packet| packet.hop_limit = limit);
            let expected = Verdict::Drop(DropReason::HopLimit);
            assert_eq!(hairpin.run(&packet), (expected, packet.bytes()), "{limit}");
        }
    }
}

#[test]
fn xdp_sends_out_by_another_uplink() {
    for mut hairpin in each() {
        hairpin.place(Place::Other);
        let packet = hairpin.to(initiation());
        let (verdict, out) = hairpin.run(&packet);
        assert_eq!(verdict, Verdict::Steer);
        let sent = hairpin.onward(&packet).with(|sent| {
            sent.macs = (OTHER_MAC, OTHER_ROUTER_MAC);
            sent.destination = Place::Other.ip(sent.version());
        });
        assert_eq!(out, hairpin.framed(&packet, &sent));
    }
}

#[test]
fn what_xdp_cannot_send_tc_does_and_takes_for_no_replay() {
    for place in [Place::Unresolved, Place::Plain] {
        for version in [Version::V4, Version::V6] {
            let mut hairpin = Hairpin::new(Hook::Xdp, version);
            hairpin.place(place);
            for message in [initiation(), message::response(fresh(), 7, &KEY), data()] {
                let packet = hairpin.to(message);
                let before = hairpin.node.counters(FAR_SLOT);
                hairpin.hook = Hook::Xdp;
                let passed = (Verdict::Pass, packet.bytes());
                assert_eq!(hairpin.run(&packet), passed, "{place:?}");
                assert_eq!(hairpin.node.counters(FAR_SLOT), before, "{place:?}");
                hairpin.hook = Hook::Tc;
                let (verdict, out) = hairpin.run(&packet);
                assert_eq!(verdict, Verdict::Steer, "{place:?}");
                let sent = hairpin.onward(&packet).with(|sent| {
                    sent.destination = place.ip(version);
                });
                assert_eq!(out, hairpin.framed(&packet, &sent), "{place:?}");
                let after = hairpin.node.counters(FAR_SLOT);
                assert_eq!(after.ingress_packets - before.ingress_packets, 1);
            }
            // And but once.
            let packet = hairpin.to(initiation());
            assert_eq!(hairpin.run(&packet).0, Verdict::Steer);
            let expected = Verdict::Drop(DropReason::Replay);
            assert_eq!(hairpin.run(&packet).0, expected, "{place:?}");
            hairpin.hook = Hook::Xdp;
            assert_eq!(hairpin.run(&packet).0, expected, "{place:?}");
        }
    }
}

#[test]
fn what_has_no_way_to_the_gateway_is_dropped_and_not_counted_as_sent() {
    for mut hairpin in each() {
        let long = message::data(7, 1300);
        let cases = [
            (Place::Nowhere, DropReason::NoRoute, data()),
            (Place::Plain, DropReason::TooBig, long),
        ];
        for (place, reason, message) in cases {
            hairpin.place(place);
            let packet = hairpin.to(message);
            let (verdict, out) = hairpin.run(&packet);
            assert_eq!(verdict, Verdict::Drop(reason), "{:?}", hairpin.hook);
            assert_eq!(out, packet.bytes(), "left untouched");
            let counters = hairpin.node.counters(FAR_SLOT);
            assert_eq!(counters.ingress_packets, 0, "{:?} {reason:?}", hairpin.hook);
            assert_eq!(counters.relayed, 0);
        }
    }
}

#[test]
fn a_node_that_has_no_address_of_the_version_or_no_ports_sends_nothing_on() {
    for mut hairpin in each() {
        let up = index("near");
        let packet = hairpin.to(data());
        let mut without_ports = edge(up, &[up]);
        without_ports.hop_ports = 0;
        hairpin.node.datapath.set_edge(&without_ports).unwrap();
        let expected = Verdict::Drop(DropReason::NoRoute);
        assert_eq!(hairpin.run(&packet).0, expected);
        let mut one_version = edge(up, &[up]);
        let v4 = hairpin.version == Version::V4;
        one_version.own.retain(|(ip, _)| ip.is_ipv4() != v4);
        hairpin.node.datapath.set_edge(&one_version).unwrap();
        assert_eq!(hairpin.run(&packet).0, Verdict::Pass, "not the node's");
    }
}

#[test]
fn the_guard_stands_before_the_way_on() {
    for mut hairpin in each() {
        let cases = [
            (DropReason::MessageType, unsigned(9, 128, &[])),
            (DropReason::MessageLength, unsigned(1, 128, &[])),
            (DropReason::Mac1, message::initiation(1, &OTHER_KEY)),
            (DropReason::Mac1, message::response(1, 7, &OTHER_KEY)),
        ];
        for (reason, message) in cases {
            let packet = hairpin.to(message);
            assert_eq!(hairpin.run(&packet).0, Verdict::Drop(reason));
            assert_eq!(hairpin.find(&packet), None, "no flow of what is dropped");
        }
        let packet = hairpin.to(initiation());
        assert_eq!(hairpin.run(&packet).0, hairpin.back());
        let expected = Verdict::Drop(DropReason::Replay);
        assert_eq!(hairpin.run(&packet).0, expected);
    }
}

#[test]
fn unknown_sessions_are_sent_on_ten_thousand_a_second() {
    const COST: u64 = 100_000;
    const AHEAD: u64 = 1_999 * COST;
    const COARSE: u64 = 20_000_000;
    for mut hairpin in each() {
        let packet = hairpin.to(data());
        for (ahead, verdict, cost) in [
            (AHEAD - COARSE, hairpin.back(), COST),
            (AHEAD + COARSE, Verdict::Drop(DropReason::GraceRate), 0),
        ] {
            // Again if something came in between.
            let (answer, charged) = loop {
                let start = now();
                let at = usize::from(FAR_SLOT);
                hairpin.node.memory.limits[at].unknown.store(start + ahead);
                let (answer, _) = hairpin.run(&packet);
                let after = hairpin.node.memory.limits[at].unknown.load();
                if now() - start < COARSE / 2 {
                    break (answer, after - start - ahead);
                }
            };
            assert_eq!(answer, verdict);
            assert_eq!(charged, cost);
        }
        assert!(hairpin.node.counters(FAR_SLOT).relayed >= 1);
    }
}

#[test]
fn an_ipv6_source_is_its_upper_half() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut hairpin = Hairpin::new(hook, Version::V6);
        let node = &mut hairpin.node;
        let packet = |number, last| {
            let packet = Packet::over(Version::V6, crate::node::PORT, initiation());
            let packet = from_source(number, packet);
            packet.with(|packet| {
                if let std::net::IpAddr::V6(v6) = &mut packet.source {
                    *v6 = std::net::Ipv6Addr::from(u128::from(*v6) | last);
                }
            })
        };
        for last in 0..20 {
            let one = packet(1, last << 40);
            assert_eq!(node.verdict(hook, &one), Verdict::Steer, "{last}");
        }
        // Twenty a second: one or another may pass, if this takes its time.
        let refused = (0..40).any(|last| {
            let expected = Verdict::Drop(DropReason::SourceRate);
            node.verdict(hook, &packet(1, last << 3)) == expected
        });
        assert!(refused, "forty more of the same network");
        assert_eq!(node.verdict(hook, &packet(2, 0)), Verdict::Steer);
    }
}

#[test]
fn a_known_way_is_asked_for_anew_soon_and_for_what_is_longer() {
    for version in [Version::V4, Version::V6] {
        let mut hairpin = Hairpin::new(Hook::Xdp, version);
        let packet = hairpin.to(data());
        let (verdict, out) = hairpin.run(&packet);
        assert_eq!(verdict, Verdict::Back);
        assert_eq!(out, hairpin.framed(&packet, &hairpin.onward(&packet)));

        let gateway = Place::Here.ip(version);
        ip(&format!(
            "neighbour replace {gateway} lladdr 02:00:00:00:00:77 dev near nud permanent\n"
        ));
        passing();
        let (_, out) = hairpin.run(&packet);
        let sent = hairpin
            .onward(&packet)
            .with(|sent| sent.macs.1 = [2, 0, 0, 0, 0, 0x77]);
        assert_eq!(out, hairpin.framed(&packet, &sent));

        hairpin.place(Place::Other);
        ip("link set other mtu 1300\n");
        let (verdict, _) = hairpin.run(&packet);
        assert_eq!(verdict, Verdict::Steer);
        let long = hairpin.to(message::data(7, 1300));
        let expected = Verdict::Drop(DropReason::TooBig);
        assert_eq!(hairpin.run(&long).0, expected);
        ip("link set other down\n");
        passing();
        assert_ne!(hairpin.run(&packet).0, Verdict::Steer);
    }
}

/// Longer than a way is known.
fn passing() {
    std::thread::sleep(std::time::Duration::from_millis(200));
}
