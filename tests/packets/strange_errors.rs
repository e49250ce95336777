//! ICMP that is no error about a packet that was steered: it reaches nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::icmp::IcmpError;
use lab::packet::extension::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
use lab::packet::{CLIENT, NODE};
use vpn_edge_common::Version;

use crate::errors::{Scene, Way, scenes};
use crate::hairpin::Place;
use crate::node::{
    CLOSED_PORT, FAR_PORT, GATEWAY, HOP_PORTS, OTHER_FAR_PORT, OTHER_PORT, PORT, UNKNOWN_PORT,
};

type Bend = fn(&mut IcmpError);

/// What no error about a steered packet has, whichever the packet was.
const BENDS: &[(&str, Bend)] = &[
    ("an echo request", |error| {
        error.kind = if is_v4(error) { 8 } else { 128 };
    }),
    ("another node's", |error| {
        error.outer.destination = elsewhere(error);
    }),
    ("about another node's packet", |error| {
        error.quoted.source = elsewhere(error);
    }),
    ("about a port of nobody's", |error| {
        error.quoted.ports.0 = UNKNOWN_PORT;
    }),
    ("about a packet to another address", |error| {
        error.quoted.destination = elsewhere(error);
    }),
    ("about a packet to another port", |error| {
        error.quoted.ports.1 ^= 1;
    }),
    ("about ports the wrong way round", |error| {
        let (source, destination) = error.quoted.ports;
        error.quoted.ports = (destination, source);
    }),
    ("about a packet to us", |error| {
        let quoted = &mut error.quoted;
        (quoted.source, quoted.destination) = (quoted.destination, quoted.source);
    }),
    ("about TCP", |error| error.quoted.protocol = 6),
    ("about an error", |error| {
        error.quoted.protocol = if is_v4(error) { 1 } else { 58 };
    }),
    ("the other version's ICMP", |error| {
        error.outer.protocol = if is_v4(error) { 58 } else { 1 };
    }),
    ("not ICMP", |error| error.outer.protocol = 6),
    ("three tags", |error| {
        error.outer.tags = vec![(0x8100, 7); 3]
    }),
];

const V4_BENDS: &[(&str, Bend)] = &[
    ("options", |error| error.outer.options = vec![1; 4]),
    ("quoted options", |error| error.quoted.options = vec![1; 4]),
    ("a first fragment", |error| {
        error.outer.more_fragments = true;
    }),
    ("a last fragment", |error| error.outer.fragment_offset = 4),
    ("about a later fragment", |error| {
        error.quoted.fragment_offset = 4;
    }),
];

const V6_BENDS: &[(&str, Bend)] = &[
    ("options", |error| {
        error.outer.extensions = options(HOP_BY_HOP);
    }),
    ("more options", |error| {
        error.outer.extensions = options(DESTINATION);
    }),
    ("a fragment", |error| {
        error.outer.extensions = options(FRAGMENT);
    }),
    ("quoted options", |error| {
        error.quoted.extensions = options(DESTINATION);
    }),
    ("quoted routing", |error| {
        error.quoted.extensions = options(ROUTING);
    }),
    ("about a fragment", |error| {
        error.quoted.extensions = options(FRAGMENT);
    }),
    ("to no address", |error| {
        error.outer.destination = Ipv6Addr::UNSPECIFIED.into();
    }),
    ("about a packet from no address", |error| {
        error.quoted.source = Ipv6Addr::UNSPECIFIED.into();
    }),
    ("to a mapped address", |error| {
        error.outer.destination = mapped(NODE);
    }),
    ("from a mapped address", |error| {
        error.outer.source = mapped(CLIENT);
    }),
    ("about a packet from a mapped address", |error| {
        error.quoted.source = mapped(NODE);
    }),
    ("about a packet to a mapped address", |error| {
        error.quoted.destination = mapped(CLIENT);
    }),
    ("about a packet to no address", |error| {
        error.quoted.destination = Ipv6Addr::UNSPECIFIED.into();
    }),
];

fn is_v4(error: &IcmpError) -> bool {
    error.outer.version() == Version::V4
}

fn elsewhere(error: &IcmpError) -> IpAddr {
    Place::Other.ip(error.outer.version())
}

fn mapped(v4: Ipv4Addr) -> IpAddr {
    v4.to_ipv6_mapped().into()
}

/// Eight bytes, which are all zero but for the next header's number.
fn options(number: u8) -> Vec<(u8, Vec<u8>)> {
    vec![(number, vec![0; 7])]
}

fn check(scene: &mut Scene, way: Way, what: &str, packet: Vec<u8>) {
    scene.leaves(packet, &format!("{way:?}: {what}"));
}

#[test]
fn nothing_but_errors_about_steered_packets_is_touched() {
    for mut scene in scenes() {
        let more = match scene.hairpin.version {
            Version::V4 => V4_BENDS,
            Version::V6 => V6_BENDS,
        };
        for way in Way::ALL {
            let error = scene.error(way);
            for (what, bend) in BENDS.iter().chain(more) {
                let bent = error.clone().with(bend);
                check(&mut scene, way, what, bent.bytes());
            }
            scene.steers(way, &error, "as it was");
        }
    }
}

#[test]
fn of_all_types_only_errors_are_taken() {
    for mut scene in scenes() {
        let errors: &[u8] = match scene.hairpin.version {
            Version::V4 => &[3, 11, 12],
            Version::V6 => &[1, 2, 3, 4],
        };
        for way in Way::ALL {
            for kind in 0..=255 {
                let error = scene.error(way).with(|error| error.kind = kind);
                let what = format!("type {kind}");
                if errors.contains(&kind) {
                    scene.steers(way, &error, &what);
                } else {
                    check(&mut scene, way, &what, error.bytes());
                }
            }
        }
    }
}

#[test]
fn less_than_a_udp_header_is_not_enough() {
    for mut scene in scenes() {
        for way in Way::ALL {
            for length in 0..8 {
                let error = scene.error(way).with(|error| error.length = length);
                let mut bytes = error.bytes();
                check(&mut scene, way, &format!("{length} bytes"), bytes.clone());
                // Ethernet fills up short frames, with whatever it likes.
                let whole = scene.error(way).bytes();
                bytes.extend(&whole[bytes.len()..]);
                let what = format!("{length} bytes, and then others");
                check(&mut scene, way, &what, bytes);
            }
        }
    }
}

#[test]
fn an_error_that_is_not_all_there_is_left_alone() {
    for mut scene in scenes() {
        for way in Way::ALL {
            let error = scene.error(way).with(|error| error.length = 136);
            let whole = error.bytes();
            for missing in [1, 64, 128, 129, 136] {
                let cut = whole[..whole.len() - missing].to_vec();
                check(&mut scene, way, &format!("{missing} too few"), cut);
            }
            let (outer, quoted) = (error.outer.ip_at(), error.quoted_at());
            let (versions, other): (&[u8], _) = match scene.hairpin.version {
                Version::V4 => (&[0x65, 0x44, 0x46, 0x05], [0x86, 0xdd]),
                Version::V6 => (&[0x40, 0x50, 0x00, 0xf0], [0x08, 0x00]),
            };
            for &version in versions {
                for at in [outer, quoted] {
                    let patched = error.patched(at, &[version]);
                    check(&mut scene, way, &format!("{version:#x} at {at}"), patched);
                }
            }
            let patched = error.patched(12, &other);
            check(&mut scene, way, "by its Ethernet type alone", patched);
        }
    }
}

#[test]
fn a_flow_is_one_tenants_alone() {
    for mut scene in scenes() {
        for port in [OTHER_PORT, OTHER_FAR_PORT, CLOSED_PORT] {
            let error = scene.error(Way::Node).with(|error| {
                error.quoted.ports.0 = port;
            });
            check(
                &mut scene,
                Way::Node,
                &format!("from {port}"),
                error.bytes(),
            );
        }
        for port in [PORT, OTHER_FAR_PORT, CLOSED_PORT, UNKNOWN_PORT] {
            let error = scene.error(Way::Client).with(|error| {
                error.quoted.ports.1 = port;
            });
            check(
                &mut scene,
                Way::Client,
                &format!("to {port}"),
                error.bytes(),
            );
        }
        let gateway = scene.error(Way::Client).with(|error| {
            error.quoted.destination = GATEWAY.ip(error.outer.version());
            error.quoted.ports.1 = PORT;
        });
        check(
            &mut scene,
            Way::Client,
            "to a gateway here",
            gateway.bytes(),
        );
        for port in HOP_PORTS - 1..=HOP_PORTS + 128 {
            if port != scene.hop_port {
                let error = scene.error(Way::Client).with(|error| {
                    error.quoted.ports.0 = port;
                });
                check(&mut scene, Way::Client, &format!("{port}"), error.bytes());
            }
        }
        let (slot, error) = (Way::Gateway.slot(), scene.error(Way::Gateway));
        scene.hairpin.node.memory.forget_flows(slot);
        check(&mut scene, Way::Gateway, "no flow any more", error.bytes());
    }
}

#[test]
fn a_flow_of_one_ip_version_has_no_errors_of_the_other() {
    for mut scene in scenes() {
        let other = match scene.hairpin.version {
            Version::V4 => Version::V6,
            Version::V6 => Version::V4,
        };
        scene.hairpin.version = other;
        // The port is right, as a new client of the other version may have it
        // once the flow gave way.
        for way in Way::ALL {
            let error = scene.error(way);
            check(&mut scene, way, "of the other version", error.bytes());
            if other == Version::V6 && way != Way::Client {
                let error = error.with(|error| error.quoted.destination = mapped(CLIENT));
                check(&mut scene, way, "to the client, mapped", error.bytes());
            }
        }
    }
}

#[test]
fn a_gateway_without_an_address_of_the_version_has_no_errors() {
    for mut scene in scenes() {
        for (port, way) in [(PORT, Way::Gateway), (FAR_PORT, Way::Node)] {
            let maps = &scene.hairpin.node.datapath.maps;
            let mut allocation = maps.allocation(port).unwrap();
            match scene.hairpin.version {
                Version::V4 => allocation.gateway = [0; 16],
                Version::V6 => allocation.gateway6 = [0; 16],
            }
            scene.hairpin.node.publish(port, allocation);
            let error = scene.error(way);
            check(&mut scene, way, "no address", error.bytes());
        }
        let error = scene.error(Way::Client);
        check(&mut scene, Way::Client, "no address", error.bytes());
        // Which is how none is kept.
        let none = error.with(|error| match &mut error.quoted.destination {
            IpAddr::V4(v4) => *v4 = Ipv4Addr::UNSPECIFIED,
            IpAddr::V6(v6) => *v6 = Ipv6Addr::UNSPECIFIED,
        });
        check(&mut scene, Way::Client, "to no address", none.bytes());
    }
}
