//! Tables of packets through the programs in the kernel.
//!
//! Each case is a packet in, a verdict, and, where the packet is steered, the
//! whole packet out. The expected packets are built afresh, with checksums by
//! etherparse, and never by the code under test.

use std::net::Ipv4Addr;

use aya::TestRun;
use aya::programs::{SchedClassifier, TestRunOptions, Xdp};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, UdpHeader};
use lab::sandbox::Sandbox;
use vpn_edge::datapath::{Change, Datapath, Memory};
use vpn_edge_common::{Allocation, DropReason, frame_addresses, mapped, mode, program};

const PORT: u16 = 31_001;
const CLOSED_PORT: u16 = 31_002;
const TC_PORT: u16 = 31_003;
const UNKNOWN_PORT: u16 = 31_999;
const SLOT: u16 = 5;
const CLOSED_SLOT: u16 = 6;

const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 121, 25);

const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x03];
const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x04];

/// The kernel makes no skb for a test run without a whole IP header.
const LEAST_SKB: usize = 14 + 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Steer,
    Drop(DropReason),
}

struct Case {
    description: &'static str,
    packet: Vec<u8>,
    verdict: Verdict,
    /// The packet that leaves, where it is steered.
    out: Vec<u8>,
}

/// A UDP packet, to be bent in one way a case.
#[derive(Clone)]
struct Packet {
    macs: ([u8; 6], [u8; 6]),
    tags: Vec<(u16, u16)>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ports: (u16, u16),
    message: Vec<u8>,
    options: Vec<u8>,
    protocol: u8,
    more_fragments: bool,
    fragment_offset: u16,
    udp_checksum: bool,
}

impl Packet {
    fn to(port: u16, message: Vec<u8>) -> Self {
        Self {
            macs: (ROUTER_MAC, NODE_MAC),
            tags: Vec::new(),
            source: CLIENT,
            destination: NODE,
            ports: (51_820, port),
            message,
            options: Vec::new(),
            protocol: 17,
            more_fragments: false,
            fragment_offset: 0,
            udp_checksum: true,
        }
    }

    fn with(mut self, bend: impl FnOnce(&mut Self)) -> Self {
        bend(&mut self);
        self
    }

    /// What the gateway is to receive for this packet.
    fn steered(&self) -> Vec<u8> {
        let steered = self.clone().with(|packet| {
            packet.macs = (HOST_MAC, GATEWAY_MAC);
            packet.tags.clear();
            packet.destination = GATEWAY;
        });
        steered.bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.macs.1);
        bytes.extend(self.macs.0);
        for (ethertype, id) in &self.tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(id.to_be_bytes());
        }
        bytes.extend(0x0800_u16.to_be_bytes());
        let length = u16::try_from(8 + self.message.len()).unwrap();
        let mut ip = Ipv4Header::new(
            length,
            64,
            IpNumber(self.protocol),
            self.source.octets(),
            self.destination.octets(),
        )
        .unwrap();
        ip.options = self.options.as_slice().try_into().unwrap();
        ip.identification = 0x1234;
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.fragment_offset).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        ip.write(&mut bytes).unwrap();
        let (source, destination) = self.ports;
        let udp = if self.udp_checksum {
            UdpHeader::with_ipv4_checksum(source, destination, &ip, &self.message).unwrap()
        } else {
            UdpHeader::without_ipv4_checksum(source, destination, self.message.len()).unwrap()
        };
        bytes.extend(udp.to_bytes());
        bytes.extend(&self.message);
        bytes
    }
}

/// A message of `kind` that is `length` bytes long.
fn message(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend((4..length).map(|at| at as u8));
    message.truncate(length);
    message
}

fn data() -> Vec<u8> {
    message(4, 128)
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
        out: packet.steered(),
    }
}

/// Cuts the frame short, leaving its headers as they are.
fn cut(packet: &Packet, at: usize) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes.truncate(at);
    bytes
}

/// Changes bytes of the frame, leaving checksums as they are.
fn patched(packet: &Packet, at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

fn cases() -> Vec<Case> {
    use DropReason::{Fragment, IpOptions, MessageLength, MessageType, NoGateway, Truncated};
    let good = Packet::to(PORT, data());
    let mut cases = vec![
        steers("transport data", &good),
        steers(
            "a keepalive, the shortest message",
            &Packet::to(PORT, message(4, 32)),
        ),
        steers("data of an odd length", &Packet::to(PORT, message(4, 1439))),
        steers("an initiation", &Packet::to(PORT, message(1, 148))),
        steers("a response", &Packet::to(PORT, message(2, 92))),
        steers("a cookie reply", &Packet::to(PORT, message(3, 64))),
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
            Packet::to(UNKNOWN_PORT, data()).bytes(),
        ),
        passes("port zero", Packet::to(0, data()).bytes()),
        passes(
            "another address",
            good.clone()
                .with(|packet| packet.destination = Ipv4Addr::new(198, 51, 100, 3))
                .bytes(),
        ),
        passes(
            "another address, and something else that would be dropped",
            Packet::to(PORT, message(9, 20))
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
        passes("ARP", patched(&good, 12, &[0x08, 0x06])),
        passes("IPv6", patched(&good, 12, &[0x86, 0xdd])),
        passes(
            "an IP version that is not four",
            patched(&good, 14, &[0x65]),
        ),
        passes(
            "an IP header length below the least",
            patched(&good, 14, &[0x44]),
        ),
        passes("cut before the ports", cut(&good, 14 + 20 + 3)),
        passes("cut in the IP header", cut(&good, 14 + 19)),
        passes("an Ethernet header and no more", cut(&good, 14)),
        drops("cut after the ports", Truncated, cut(&good, 14 + 20 + 4)),
        drops(
            "cut in the message",
            Truncated,
            cut(&good, 14 + 20 + 8 + 127),
        ),
        drops(
            "cut before the shortest message ends",
            Truncated,
            cut(&good, 14 + 20 + 8 + 31),
        ),
        drops(
            "a UDP length beyond the IP packet",
            Truncated,
            patched(&good, 14 + 20 + 4, &137_u16.to_be_bytes()),
        ),
        drops(
            "a UDP length below its header",
            Truncated,
            patched(&good, 14 + 20 + 4, &7_u16.to_be_bytes()),
        ),
        drops(
            "an IP length beyond the frame",
            Truncated,
            patched(&good, 14 + 2, &157_u16.to_be_bytes()),
        ),
        drops(
            "an empty datagram",
            Truncated,
            Packet::to(PORT, vec![]).bytes(),
        ),
        drops(
            "four bytes",
            Truncated,
            Packet::to(PORT, message(4, 4)).bytes(),
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
            Packet::to(UNKNOWN_PORT, data())
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
            Packet::to(PORT, message(0, 128)).bytes(),
        ),
        drops(
            "type five",
            MessageType,
            Packet::to(PORT, message(5, 128)).bytes(),
        ),
        drops(
            "no WireGuard at all",
            MessageType,
            Packet::to(PORT, vec![b'A'; 64]).bytes(),
        ),
        drops(
            "an initiation too short",
            MessageLength,
            Packet::to(PORT, message(1, 147)).bytes(),
        ),
        drops(
            "an initiation too long",
            MessageLength,
            Packet::to(PORT, message(1, 149)).bytes(),
        ),
        drops(
            "a response too long",
            MessageLength,
            Packet::to(PORT, message(2, 148)).bytes(),
        ),
        drops(
            "a cookie reply too short",
            MessageLength,
            Packet::to(PORT, message(3, 63)).bytes(),
        ),
        drops(
            "a port whose gateway is not there",
            NoGateway,
            Packet::to(CLOSED_PORT, data()).bytes(),
        ),
    ];
    for at in 1..4 {
        let mut bent = data();
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

struct Lab {
    datapath: Datapath,
    _sandbox: Sandbox,
}

impl Lab {
    fn new() -> Self {
        let sandbox = Sandbox::enter().unwrap();
        let mut datapath = Datapath::open(&sandbox.bpffs()).unwrap();
        datapath.set_edge(mapped(NODE.octets()), 1).unwrap();
        let open = Allocation {
            mode: mode::XDP,
            slot: SLOT,
            // The interface that test runs come in by, lo.
            ifindex: 1,
            frame: frame_addresses(GATEWAY_MAC, HOST_MAC),
            gateway: mapped(GATEWAY.octets()),
            ..Allocation::default()
        };
        let closed = Allocation {
            mode: mode::CLOSED,
            slot: CLOSED_SLOT,
            ..Allocation::default()
        };
        let tc = Allocation {
            mode: mode::TC,
            ..open
        };
        for (port, allocation) in [(PORT, open), (CLOSED_PORT, closed), (TC_PORT, tc)] {
            publish(&mut datapath, port, allocation);
        }
        Self {
            datapath,
            _sandbox: sandbox,
        }
    }

    fn xdp(&mut self, packet: &[u8]) -> (u32, Vec<u8>) {
        let program: &Xdp = self
            .datapath
            .ebpf()
            .program(program::INGRESS)
            .unwrap()
            .try_into()
            .unwrap();
        test_run(program, packet)
    }

    fn tc(&mut self, name: &str, packet: &[u8]) -> (i32, Vec<u8>) {
        let program: &SchedClassifier = self
            .datapath
            .ebpf()
            .program(name)
            .unwrap()
            .try_into()
            .unwrap();
        let (verdict, out) = test_run(program, packet);
        (verdict as i32, out)
    }

    fn drops(&self, slot: u16) -> Vec<u64> {
        self.datapath.maps.counters(slot).unwrap().drops.to_vec()
    }
}

fn publish(datapath: &mut Datapath, port: u16, allocation: Allocation) {
    let change = Change {
        port,
        allocation,
        memory: Memory::Keep,
        grace: true,
    };
    datapath.maps.publish(&[change]).unwrap();
}

fn test_run<P>(program: &P, packet: &[u8]) -> (u32, Vec<u8>)
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let mut out = vec![0; 4096];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })
        .unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// Runs the table, and holds verdict, reason, counters and packet to it.
/// Packets below `shortest` bytes are left out.
fn check(shortest: usize, run: impl Fn(&mut Lab, &[u8]) -> (Verdict, Vec<u8>)) {
    let mut lab = Lab::new();
    for case in cases() {
        if case.packet.len() < shortest {
            continue;
        }
        let what = case.description;
        let before = (lab.drops(SLOT), lab.drops(CLOSED_SLOT));
        let counted = lab.datapath.maps.counters(SLOT).unwrap();
        let (verdict, out) = run(&mut lab, &case.packet);
        let after = (lab.drops(SLOT), lab.drops(CLOSED_SLOT));
        let now = lab.datapath.maps.counters(SLOT).unwrap();

        let dropped: Vec<DropReason> = DropReason::ALL
            .iter()
            .copied()
            .filter(|&reason| {
                let at = reason as usize;
                after.0[at] != before.0[at] || after.1[at] != before.1[at]
            })
            .collect();
        match case.verdict {
            Verdict::Drop(reason) => {
                assert_eq!(verdict, Verdict::Drop(reason), "{what}");
                assert_eq!(dropped, [reason], "{what}");
            }
            expected => {
                assert_eq!(verdict, expected, "{what}");
                assert_eq!(dropped, [], "{what}");
            }
        }
        let steered = u64::from(case.verdict == Verdict::Steer);
        assert_eq!(
            now.ingress_packets - counted.ingress_packets,
            steered,
            "{what}"
        );
        match case.verdict {
            Verdict::Steer => {
                assert_eq!(out, case.out, "{what}");
                // The frame less its Ethernet header and padding.
                let ip = u16::from_be_bytes([out[16], out[17]]);
                assert_eq!(
                    now.ingress_bytes - counted.ingress_bytes,
                    u64::from(ip),
                    "{what}"
                );
            }
            Verdict::Pass => assert_eq!(out, case.packet, "{what}: left untouched"),
            Verdict::Drop(_) => {}
        }
    }
}

/// The reason is told by the counters; the verdict only says that it dropped.
fn dropped(lab: &Lab, before: &(Vec<u64>, Vec<u64>)) -> Verdict {
    let after = (lab.drops(SLOT), lab.drops(CLOSED_SLOT));
    let reason = DropReason::ALL.iter().copied().find(|&reason| {
        let at = reason as usize;
        after.0[at] + after.1[at] == before.0[at] + before.1[at] + 1
    });
    Verdict::Drop(reason.expect("a drop is counted"))
}

#[test]
fn xdp_ingress_treats_every_packet_as_the_table_says() {
    check(0, |lab, packet| {
        let before = (lab.drops(SLOT), lab.drops(CLOSED_SLOT));
        let (verdict, out) = lab.xdp(packet);
        let verdict = match verdict {
            1 => dropped(lab, &before),
            2 => Verdict::Pass,
            4 => Verdict::Steer,
            other => panic!("XDP verdict {other}"),
        };
        (verdict, out)
    });
}

#[test]
fn tc_ingress_treats_every_packet_as_the_table_says() {
    check(LEAST_SKB, |lab, packet| {
        let before = (lab.drops(SLOT), lab.drops(CLOSED_SLOT));
        let (verdict, out) = lab.tc(program::INGRESS_TC, packet);
        let verdict = match verdict {
            -1 => Verdict::Pass,
            2 => dropped(lab, &before),
            7 => Verdict::Steer,
            other => panic!("tc verdict {other}"),
        };
        (verdict, out)
    });
}

#[test]
fn a_port_on_the_tc_rung_passes_xdp_uncounted_and_is_steered_by_tc() {
    let mut lab = Lab::new();
    let packet = Packet::to(TC_PORT, data());
    assert_eq!(lab.xdp(&packet.bytes()), (2, packet.bytes()));
    assert_eq!(lab.datapath.maps.counters(SLOT).unwrap().ingress_packets, 0);
    assert_eq!(
        lab.tc(program::INGRESS_TC, &packet.bytes()),
        (7, packet.steered())
    );
    assert_eq!(lab.datapath.maps.counters(SLOT).unwrap().ingress_packets, 1);
}

#[test]
fn without_an_edge_address_everything_passes() {
    let mut lab = Lab::new();
    lab.datapath.set_edge([0; 16], 0).unwrap();
    let packet = Packet::to(PORT, data()).bytes();
    assert_eq!(lab.xdp(&packet), (2, packet.clone()));
}

#[test]
fn egress_puts_the_nodes_address_back() {
    let reply = Packet {
        macs: (GATEWAY_MAC, HOST_MAC),
        source: GATEWAY,
        destination: CLIENT,
        ports: (PORT, 51_820),
        ..Packet::to(PORT, data())
    };
    let restored = reply.clone().with(|packet| packet.source = NODE);
    let bare = |packet: &Packet| packet.clone().with(|packet| packet.udp_checksum = false);
    let passing: [(&str, Vec<u8>); 6] = [
        (
            "to the node itself",
            reply
                .clone()
                .with(|packet| packet.destination = NODE)
                .bytes(),
        ),
        (
            "from another port",
            reply
                .clone()
                .with(|packet| packet.ports.0 = UNKNOWN_PORT)
                .bytes(),
        ),
        (
            "from a closed port",
            reply
                .clone()
                .with(|packet| packet.ports.0 = CLOSED_PORT)
                .bytes(),
        ),
        (
            "from another address",
            reply.clone().with(|packet| packet.source = CLIENT).bytes(),
        ),
        (
            "no UDP",
            reply.clone().with(|packet| packet.protocol = 6).bytes(),
        ),
        ("cut before the ports", cut(&reply, 37)),
    ];

    let mut lab = Lab::new();
    let (verdict, out) = lab.tc(program::EGRESS, &reply.bytes());
    assert_eq!((verdict, out), (7, restored.bytes()), "a reply");
    let (verdict, out) = lab.tc(program::EGRESS, &bare(&reply).bytes());
    assert_eq!(
        (verdict, out),
        (7, bare(&restored).bytes()),
        "without UDP checksum"
    );
    let counted = lab.datapath.maps.counters(SLOT).unwrap();
    assert_eq!(counted.egress_packets, 2);
    assert_eq!(counted.egress_bytes, 2 * (20 + 8 + 128));

    for (what, packet) in passing {
        assert_eq!(lab.tc(program::EGRESS, &packet), (-1, packet), "{what}");
    }
    assert_eq!(lab.datapath.maps.counters(SLOT).unwrap().egress_packets, 2);
}

#[test]
fn egress_lets_no_gateway_speak_for_another() {
    let mut lab = Lab::new();
    // The port belongs to a gateway behind another interface.
    let mut other = lab.datapath.maps.allocation(PORT).unwrap();
    other.ifindex = 4711;
    publish(&mut lab.datapath, PORT, other);
    let forged = Packet {
        source: GATEWAY,
        destination: CLIENT,
        ports: (PORT, 51_820),
        ..Packet::to(PORT, data())
    };
    assert_eq!(
        lab.tc(program::EGRESS, &forged.bytes()),
        (-1, forged.bytes())
    );
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
