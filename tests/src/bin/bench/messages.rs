//! The packets that are measured.

use etherparse::PacketBuilder;
use vpn_edge_common::bench::Template;

/// The first destination port, as that of Kubernetes' default NodePort range.
pub const FIRST_PORT: u16 = 30_000;
pub const NODE: [u8; 4] = [198, 51, 100, 2];
/// The first client. Flows take up addresses from here on, within the block
/// that is set apart for benchmarks (RFC 2544).
const CLIENT: [u8; 4] = [198, 18, 0, 0];
/// The ends of the path: source, uplink, host, pod.
pub const MACS: [[u8; 6]; 4] = [
    [2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 2],
    [2, 0, 0, 0, 0, 3],
    [2, 0, 0, 0, 0, 4],
];

/// Flows that never come again within a run.
const ENDLESS: u32 = 1 << 25;
/// In a flood, one frame of these many is a message.
pub const FLOOD: u32 = 16;

/// What the generator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Data messages of this many flows, a power of two, that both ends know.
    Flows(u32),
    /// Data messages, each the first of its flow.
    FirstPackets,
    /// First packets, most of which are no message of WireGuard's.
    Flood,
}

/// The generator's template for `traffic` over `ports`; `routed` frames go to
/// the gateways' own addresses.
pub fn template(traffic: Traffic, ports: u16, routed: bool) -> Template {
    let (flows, flood) = match traffic {
        Traffic::Flows(flows) => (flows, 1),
        Traffic::FirstPackets => (ENDLESS, 1),
        Traffic::Flood => (ENDLESS, FLOOD),
    };
    Template {
        headers: data()[..46].try_into().expect("46 bytes"),
        ports,
        flow_mask: flows - 1,
        flood_mask: flood - 1,
        routed: routed.into(),
    }
}

pub fn data() -> Vec<u8> {
    udp(FIRST_PORT, &message(4, 128))
}

pub fn initiation() -> Vec<u8> {
    udp(FIRST_PORT, &message(1, 148))
}

pub fn malformed() -> Vec<u8> {
    udp(FIRST_PORT, &message(9, 128))
}

/// To a port that nobody has.
pub fn unknown_port() -> Vec<u8> {
    udp(FIRST_PORT - 1, &message(4, 128))
}

pub fn tcp() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS[0], MACS[1])
        .ipv4(CLIENT, NODE, 64)
        .tcp(40_000, FIRST_PORT, 1, 1024);
    let mut packet = Vec::new();
    builder
        .write(&mut packet, &[0; 128])
        .expect("a vector takes any packet");
    packet
}

fn udp(port: u16, message: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS[0], MACS[1])
        .ipv4(CLIENT, NODE, 64)
        .udp(40_000, port);
    let mut packet = Vec::new();
    builder
        .write(&mut packet, message)
        .expect("a vector takes any packet");
    packet
}

fn message(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![0; length];
    message[0] = kind;
    message
}
