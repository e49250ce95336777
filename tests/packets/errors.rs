//! ICMP errors about packets that were steered, to whom they are for.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{Ipv4HeaderSlice, NetSlice, SlicedPacket, TransportSlice};
use lab::icmp::IcmpError;
use lab::message;
use lab::packet::{CLIENT_PORT, Packet, VERSIONS, client, node as node_address};
use lab::programs::Hook;
use vpn_edge_common::Version;

use crate::hairpin::{Hairpin, Place, index};
use crate::node::{
    FAR, FAR_PORT, FAR_SLOT, GATEWAY, KEY, OTHER_FAR_SLOT, OTHER_SLOT, PORT, SLOT, TC_PORT,
    Verdict, edge, fresh,
};

/// Whom an error is for, by the packet that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A reply of a gateway here: for that gateway.
    Gateway,
    /// The same, of a gateway on the tc hook.
    TcGateway,
    /// A reply of a gateway on another node: for that node.
    Node,
    /// A packet to that node: for the client.
    Client,
}

/// A node with a client of a gateway here, and of one on another node.
pub struct Scene {
    pub hairpin: Hairpin,
    /// The port that stands for the client's flow to the other node.
    pub hop_port: u16,
}

pub fn scenes() -> impl Iterator<Item = Scene> {
    VERSIONS.into_iter().map(Scene::new)
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Gateway, Self::TcGateway, Self::Node, Self::Client];

    pub fn slot(self) -> u16 {
        match self {
            Self::Gateway | Self::TcGateway => SLOT,
            Self::Node | Self::Client => FAR_SLOT,
        }
    }

    /// Whether the error leaves the node again.
    pub fn leaves(self) -> bool {
        matches!(self, Self::Node | Self::Client)
    }
}

impl Scene {
    pub fn new(version: Version) -> Self {
        Self::on(Hairpin::new(Hook::Tc, version))
    }

    /// On a node that runs tc.
    pub fn on(hairpin: Hairpin) -> Self {
        let version = hairpin.version;
        let mut scene = Self {
            hairpin,
            hop_port: 0,
        };
        let near = Packet::over(version, PORT, message::initiation(fresh(), &KEY));
        assert_eq!(scene.hairpin.run(&near).0, Verdict::Steer);
        let far = scene.hairpin.to(message::initiation(fresh(), &KEY));
        assert_eq!(scene.hairpin.run(&far).0, Verdict::Steer);
        scene.hop_port = scene.hairpin.flow(&far).hop_port;
        scene
    }

    /// An error of a router somewhere on the packet's way.
    pub fn error(&self, way: Way) -> IcmpError {
        let version = self.hairpin.version;
        let quoted = Packet::over(version, 0, message::data(1, 128)).with(|quoted| {
            quoted.source = node_address(version);
            quoted.hop_limit = 3;
            (quoted.destination, quoted.ports) = match way {
                Way::Gateway => (client(version), (PORT, CLIENT_PORT)),
                Way::TcGateway => (client(version), (TC_PORT, CLIENT_PORT)),
                Way::Node => (client(version), (FAR_PORT, CLIENT_PORT)),
                Way::Client => (FAR.ip(version), (self.hop_port, FAR_PORT)),
            };
        });
        let router = match version {
            Version::V4 => Ipv4Addr::new(192, 0, 2, 254).into(),
            Version::V6 => "2001:db8:fe::fe".parse().expect("an address"),
        };
        IcmpError::too_big(router, quoted, 1400)
    }

    /// The error as it goes on. One that leaves gets its Ethernet header from
    /// the kernel, after the program.
    pub fn sent(&self, way: Way, error: &IcmpError) -> IcmpError {
        let version = self.hairpin.version;
        let own = node_address(version);
        error.clone().with(|IcmpError { outer, quoted, .. }| {
            outer.tags.clear();
            match way {
                Way::Gateway | Way::TcGateway => {
                    outer.macs = (GATEWAY.host_mac, GATEWAY.mac);
                    outer.destination = GATEWAY.ip(version);
                    quoted.source = GATEWAY.ip(version);
                }
                Way::Node => {
                    (outer.source, outer.destination) = (own, FAR.ip(version));
                    outer.hop_limit = (outer.hop_limit - 1).min(16);
                    (quoted.source, quoted.destination) = (FAR.ip(version), own);
                    quoted.ports.1 = self.hop_port;
                }
                Way::Client => {
                    (outer.source, outer.destination) = (own, client(version));
                    outer.hop_limit -= 1;
                    (quoted.source, quoted.destination) = (client(version), own);
                    quoted.ports.0 = CLIENT_PORT;
                }
            }
        })
    }

    pub fn steers(&mut self, way: Way, error: &IcmpError, what: &str) {
        let sent = self.sent(way, error);
        self.steers_as(way, error, &sent, what);
    }

    /// Holds verdict, counters and the whole packet to what is to come of it.
    fn steers_as(&mut self, way: Way, error: &IcmpError, sent: &IcmpError, what: &str) {
        let what = format!("{:?} {way:?}: {what}", self.hairpin.version);
        let node = &mut self.hairpin.node;
        let at = usize::from(way.slot());
        node.memory.limits[at].errors.store(0);
        let mut expected = node.counters(way.slot());
        expected.errors += 1;
        let (verdict, out) = node.ingress(Hook::Tc, &error.bytes());
        assert_eq!(verdict, Verdict::Steer, "{what}");
        assert_eq!(out, sent.bytes(), "{what}");
        assert_eq!(node.counters(way.slot()), expected, "{what}");
        assert!(node.memory.limits[at].errors.load() != 0, "{what}: free");
        assert_valid(&error.bytes(), &what);
        assert_valid(&out, &what);
    }

    /// Holds a packet that is none of ours to be passed on as it is, counted
    /// nowhere and charged to nobody.
    pub fn leaves(&mut self, packet: Vec<u8>, what: &str) {
        const SLOTS: [u16; 4] = [SLOT, OTHER_SLOT, FAR_SLOT, OTHER_FAR_SLOT];
        let node = &mut self.hairpin.node;
        for slot in SLOTS {
            node.memory.limits[usize::from(slot)].errors.store(0);
        }
        let before = SLOTS.map(|slot| node.counters(slot));
        let answer = node.ingress(Hook::Tc, &packet);
        let version = self.hairpin.version;
        assert_eq!(answer.0, Verdict::Pass, "{version:?} {what}");
        assert!(answer.1 == packet, "{version:?} {what}: touched");
        assert_eq!(SLOTS.map(|slot| node.counters(slot)), before, "{what}");
        for slot in SLOTS {
            let charged = node.memory.limits[usize::from(slot)].errors.load();
            assert_eq!(charged, 0, "{version:?} {what}: charged");
        }
    }
}

/// Every checksum of an error, summed up anew by somebody else's parser.
fn assert_valid(frame: &[u8], what: &str) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let quoted = match (packet.net, packet.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let sum = Sum16BitWords::new().add_slice(icmp.slice());
            assert_eq!(sum.ones_complement(), 0, "{what}: checksum");
            icmp.payload().to_vec()
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let header = ip.header();
            let valid = icmp.is_checksum_valid(header.source(), header.destination());
            assert!(valid, "{what}: checksum");
            return;
        }
        _ => panic!("{what}: no error"),
    };
    let header = Ipv4HeaderSlice::from_slice(&quoted).unwrap().to_header();
    let expected = header.calc_header_checksum();
    assert_eq!(header.header_checksum, expected, "{what}: quoted");
}

/// Types and codes of errors about packets.
fn kinds(version: Version) -> &'static [(u8, u8)] {
    match version {
        Version::V4 => &[(3, 4), (3, 0), (3, 3), (11, 0), (11, 1), (12, 0)],
        Version::V6 => &[(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 1)],
    }
}

#[test]
fn an_error_goes_to_whom_it_is_for() {
    for mut scene in scenes() {
        for way in Way::ALL {
            for &(kind, code) in kinds(scene.hairpin.version) {
                for tags in [vec![], vec![(0x8100, 7)], vec![(0x88a8, 7), (0x8100, 8)]] {
                    let what = format!("type {kind}, code {code}, {tags:x?}");
                    let error = scene.error(way).with(|error| {
                        (error.kind, error.code) = (kind, code);
                        error.outer.tags = tags;
                    });
                    scene.steers(way, &error, &what);
                }
            }
        }
    }
}

#[test]
fn the_ports_and_whatever_else_may_be_quoted() {
    for mut scene in scenes() {
        for way in Way::ALL {
            for length in [8, 9, 40, 136, 1345] {
                let error = scene.error(way).with(|error| {
                    error.quoted.message = message::data(1, 1337);
                    error.length = length;
                });
                scene.steers(way, &error, &format!("{length} bytes"));
            }
            for mtu in [0, 68, 1280, u16::MAX] {
                let error = scene.error(way).with(|error| error.rest = mtu.into());
                scene.steers(way, &error, &format!("an MTU of {mtu}"));
            }
            if scene.hairpin.version == Version::V4 {
                let first = scene.error(way).with(|error| {
                    error.quoted.more_fragments = true;
                });
                scene.steers(way, &first, "about a first fragment");
            }
        }
    }
}

#[test]
fn a_wrong_checksum_is_not_corrected() {
    for mut scene in scenes() {
        for way in Way::ALL {
            let error = scene.error(way);
            let wrong = |error: &IcmpError| {
                let at = error.icmp_at() + 2;
                let bytes = error.bytes();
                let right = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
                // One more, in one's complement.
                let (sum, over) = right.overflowing_add(1);
                error.patched(at, &(sum + u16::from(over)).to_be_bytes())
            };
            let expected = (Verdict::Steer, wrong(&scene.sent(way, &error)));
            let out = scene.hairpin.node.ingress(Hook::Tc, &wrong(&error));
            assert_eq!(out, expected, "{way:?}");
        }
    }
}

#[test]
fn an_error_that_leaves_has_one_hop_less_and_does_not_go_round_for_ever() {
    for mut scene in scenes() {
        for way in Way::ALL {
            for limit in [0, 1, 2, 16, 17, 18, 64, 255] {
                let what = format!("a hop limit of {limit}");
                let error = scene.error(way).with(|error| error.outer.hop_limit = limit);
                if way.leaves() && limit <= 1 {
                    scene.leaves(error.bytes(), &what);
                } else {
                    scene.steers(way, &error, &what);
                }
            }
        }
    }
}

#[test]
fn an_error_leaves_by_any_link_that_takes_it() {
    for mut scene in scenes() {
        let version = scene.hairpin.version;
        for place in [Place::Unresolved, Place::Other, Place::Plain] {
            scene.hairpin.place(place);
            let error = scene.error(Way::Node);
            let sent = scene.sent(Way::Node, &error).with(|sent| {
                sent.outer.destination = place.ip(version);
                sent.quoted.source = place.ip(version);
            });
            scene.steers_as(Way::Node, &error, &sent, &format!("{place:?}"));
        }
        for (place, length) in [(Place::Nowhere, 8), (Place::Plain, 1345)] {
            scene.hairpin.place(place);
            let error = scene.error(Way::Node).with(|error| {
                error.quoted.message = message::data(1, 1337);
                error.length = length;
            });
            let expected = (Verdict::Pass, error.bytes());
            let node = &mut scene.hairpin.node;
            assert_eq!(node.ingress(Hook::Tc, &error.bytes()), expected);
            let errors = node.counters(FAR_SLOT).errors;
            assert_eq!(errors, 3, "{place:?}: counted, and not sent");
        }
    }
}

#[test]
fn a_node_with_several_addresses_answers_as_the_one_that_the_client_knows() {
    for version in VERSIONS {
        let mut scene = Scene::new(version);
        let up = index("near");
        let second: IpAddr = match version {
            Version::V4 => Ipv4Addr::new(198, 51, 100, 22).into(),
            Version::V6 => "2001:db8:2::22".parse().expect("an address"),
        };
        let mut several = edge(up, &[up]);
        several.own.push((second, up));
        scene.hairpin.node.datapath.set_edge(&several).unwrap();
        for way in [Way::Gateway, Way::TcGateway, Way::Node] {
            let error = scene.error(way).with(|error| {
                error.outer.destination = second;
                error.quoted.source = second;
            });
            scene.steers(way, &error, "about what left from the second");
        }
        let packet = scene.hairpin.to(message::initiation(fresh(), &KEY));
        let packet = packet.with(|packet| packet.destination = second);
        assert_eq!(scene.hairpin.run(&packet).0, Verdict::Steer);
        let error = scene.error(Way::Client);
        let sent = scene.sent(Way::Client, &error).with(|sent| {
            sent.outer.source = second;
            sent.quoted.destination = second;
        });
        scene.steers_as(Way::Client, &error, &sent, "from the second");
        let alone = edge(up, &[up]);
        scene.hairpin.node.datapath.set_edge(&alone).unwrap();
        scene.leaves(error.bytes(), "an address that is gone");
    }
}

#[test]
fn errors_are_held_to_a_rate_of_each_tenants() {
    for mut scene in scenes() {
        for way in Way::ALL {
            let error = scene.error(way);
            scene.steers(way, &error, "before");
            let node = &mut scene.hairpin.node;
            let at = usize::from(way.slot());
            let spent = u64::MAX / 2;
            node.memory.limits[at].errors.store(spent);
            let before = node.counters(way.slot());
            let passed = (Verdict::Pass, error.bytes());
            assert_eq!(node.ingress(Hook::Tc, &error.bytes()), passed, "{way:?}");
            assert_eq!(node.counters(way.slot()), before, "{way:?}");
            let after = node.memory.limits[at].errors.load();
            assert_eq!(after, spent, "{way:?}: what is refused costs nothing");
            let other = match way {
                Way::Gateway | Way::TcGateway => Way::Node,
                Way::Node | Way::Client => Way::Gateway,
            };
            let others = scene.error(other);
            scene.steers(other, &others, "of another tenant");
        }
    }
}

#[test]
fn errors_are_the_tc_ingress_programs_alone() {
    for mut scene in scenes() {
        for way in Way::ALL {
            let error = scene.error(way).bytes();
            let node = &mut scene.hairpin.node;
            let passed = (Verdict::Pass, error.clone());
            assert_eq!(node.ingress(Hook::Xdp, &error), passed, "{way:?}");
            assert_eq!(node.egress(&error), passed, "{way:?}");
            assert_eq!(node.counters(way.slot()).errors, 0, "{way:?}");
        }
    }
}
