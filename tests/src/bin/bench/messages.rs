//! The packets that are measured.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use vpn_edge_common::bench::Template;

/// The first destination port, as that of Kubernetes' default NodePort range.
pub const FIRST_PORT: u16 = 30_000;
pub const NODE: [u8; 4] = [198, 51, 100, 2];
pub const NODE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// The first client. Flows take up addresses from here on, within the block
/// that is set apart for benchmarks (RFC 2544).
pub const CLIENT: [u8; 4] = [198, 18, 0, 0];
/// The index of every session there is.
const SESSION: u32 = 0x2545_f491;
/// The public key of every gateway.
pub const PUBLIC_KEY: [u8; 32] = [0x5a; 32];
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
    /// First packets, one in [`FLOOD`] of which is a data message.
    Flood(Flood),
}

/// What the rest of a flood is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// No message of WireGuard's.
    Malformed,
    /// Data of sessions that are not there.
    Unknown,
    /// Initiations of somebody who does not know the key, 256 a source.
    Forged,
    /// The same, each from a source of its own.
    Spoofed,
}

impl Flood {
    pub const ALL: [Self; 4] = [Self::Malformed, Self::Unknown, Self::Forged, Self::Spoofed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unknown => "unknown-sessions",
            Self::Forged => "forged-initiations",
            Self::Spoofed => "spoofed-initiations",
        }
    }

    /// The first word of its messages, or of their session's index.
    fn word(self) -> [u8; 4] {
        match self {
            Self::Malformed => [0xff; 4],
            Self::Unknown => [0xee; 4],
            Self::Forged | Self::Spoofed => [1, 0, 0, 0],
        }
    }
}

/// The generator's template for `traffic` over `ports`; `routed` frames go to
/// the gateways' own addresses.
pub fn template(traffic: Traffic, ports: u16, routed: bool) -> Template {
    let (flows, flood_mask, kind) = match traffic {
        Traffic::Flows(flows) => (flows, 0, Flood::Malformed),
        Traffic::FirstPackets => (ENDLESS, 0, Flood::Malformed),
        Traffic::Flood(kind) => (ENDLESS, FLOOD - 1, kind),
    };
    Template {
        headers: data()[..50].try_into().expect("50 bytes"),
        ports,
        flow_mask: flows - 1,
        source_shift: if kind == Flood::Spoofed { 0 } else { 8 },
        flood_mask,
        flood: u32::from_ne_bytes(kind.word()),
        flood_index: (kind == Flood::Unknown).into(),
        routed: routed.into(),
    }
}

/// As long as an initiation, so that a frame can be made either.
pub fn data() -> Vec<u8> {
    udp(FIRST_PORT, &message(4, 148))
}

/// Data of a session that is not there.
pub fn unknown_session() -> Vec<u8> {
    let mut message = message(4, 148);
    message[4..8].copy_from_slice(&[0xee; 4]);
    udp(FIRST_PORT, &message)
}

/// An initiation by somebody who knows the gateway's key.
pub fn initiation() -> Vec<u8> {
    use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
    use blake2::{Blake2s256, Blake2sMac, Digest};
    let mut message = message(1, 148);
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(PUBLIC_KEY)
        .finalize();
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key).expect("a key of 32 bytes");
    Update::update(&mut mac, &message[..116]);
    message[116..132].copy_from_slice(&mac.finalize_fixed());
    udp(FIRST_PORT, &message)
}

/// An initiation by somebody who does not.
pub fn forged_initiation() -> Vec<u8> {
    udp(FIRST_PORT, &message(1, 148))
}

/// What the gateway behind `port` sends to announce the session of [`data`].
pub fn announcement(gateway: [u8; 4], port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS[3], MACS[2])
        .ipv4(gateway, CLIENT, 64)
        .udp(port, 40_000);
    let mut packet = Vec::new();
    builder
        .write(&mut packet, &message(2, 92))
        .expect("a vector takes any packet");
    packet
}

pub fn malformed() -> Vec<u8> {
    udp(FIRST_PORT, &message(9, 148))
}

/// To a port that nobody has.
pub fn unknown_port() -> Vec<u8> {
    udp(FIRST_PORT - 1, &message(4, 148))
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

/// Data of a session there is, from anyone to anyone, with ports.
pub fn data_between((source, from): (IpAddr, u16), (destination, to): (IpAddr, u16)) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(MACS[0], MACS[1]);
    let ip = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => unreachable!("both ends are of one version"),
    };
    let mut packet = Vec::new();
    ip.udp(from, to)
        .write(&mut packet, &message(4, 148))
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
    message[4..8].copy_from_slice(&SESSION.to_le_bytes());
    message
}
