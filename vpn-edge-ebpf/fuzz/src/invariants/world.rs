//! What a frame meets.

use vpn_edge_common::{
    Allocation, Limits, Own, Rates, Version, Word, Words, frame_addresses, mapped, mode, words,
};
use vpn_edge_ebpf::flow::{self, Client};
use vpn_edge_ebpf::tables::Tables;
use vpn_edge_ebpf::{mac1, session};

pub const NODE: [u8; 4] = [198, 51, 100, 2];
pub const NODE6: [u8; 16] = [
    0x20, 0x01, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0, 0xfe, 0, 2,
];
pub const GATEWAY: [u8; 4] = [100, 64, 121, 25];
pub const GATEWAY6: [u8; 16] = [0xfd, 0, 0, 0x64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x79, 0x19];
/// The node of gateways that are elsewhere.
pub const FAR: [u8; 4] = [198, 51, 100, 7];
pub const FAR6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const CLIENT: [u8; 4] = [203, 0, 113, 9];
const CLIENT6: [u8; 16] = [
    0x20, 0x01, 0x0d, 0xb8, 0, 9, 0, 0x51, 0, 0, 0, 0, 0, 0, 0, 10,
];

pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 3]];
pub const KEY: [u8; 32] = [0x4b; 32];
pub const LIVE: u32 = 1;
pub const HOP_PORTS: u16 = 30_000;
/// Of the client's flow: without a seed, all clients look for theirs from here.
pub const PLACE: usize = 0;

const NOW: u64 = 1_000_000_000_000;
const TICK: u32 = 1000;
const LIFE: u32 = 100;

/// Ports, their modes, and whether a plan limits them.
pub const PORTS: [(u16, u8, bool); 6] = [
    (31_001, mode::XDP, false),
    (31_002, mode::XDP, true),
    (31_003, mode::CLOSED, false),
    (31_004, mode::TC, true),
    (31_005, mode::HOP, false),
    (31_006, mode::HOP, true),
];

pub struct Setting {
    /// Rates of sources, handshakes, unknown sessions, packets and bytes; and
    /// whether there is grace.
    pub used_up: [bool; 6],
    /// That the tenants know.
    pub client: Option<Known>,
    proven: bool,
}

#[derive(Clone, Copy)]
pub struct Known {
    version: Version,
    pub port: u16,
}

impl Setting {
    pub fn new(flags: u8, state: u8) -> Self {
        let version = match flags & 4 {
            0 => Version::V4,
            _ => Version::V6,
        };
        let known = Known {
            version,
            port: 51_820,
        };
        Self {
            used_up: std::array::from_fn(|bit| state >> bit & 1 != 0),
            client: (state & 0x40 != 0).then_some(known),
            proven: state & 0x80 != 0,
        }
    }
}

impl Known {
    /// The address, in a packet of its version.
    pub fn bytes(&self, version: Version) -> Vec<u8> {
        assert_eq!(self.version, version, "over another IP version");
        match self.version {
            Version::V4 => CLIENT.to_vec(),
            Version::V6 => CLIENT6.to_vec(),
        }
    }

    fn words(&self) -> Words {
        match self.version {
            Version::V4 => words(&mapped(CLIENT)),
            Version::V6 => words(&CLIENT6),
        }
    }
}

/// Brings about what the input says, for every tenant and every source.
pub fn set(tables: &Tables, setting: &Setting) {
    let word = |used_up: bool| if used_up { u64::MAX / 2 } else { 0 };
    let [source, handshakes, unknown, packets, bytes, grace] = setting.used_up.map(word);
    tables.sources[0].store(source);
    for (slot, sessions) in &tables.sessions {
        let ways = |sessions: &vpn_edge_common::Sessions| {
            let ways = sessions.0.iter().flat_map(|bucket| &bucket.0);
            ways.for_each(|way| way.store(0));
        };
        ways(sessions);
        ways(&tables.replays[slot]);
        session::announce(session::bucket(sessions, LIVE), LIVE, TICK + LIFE);
    }
    for flows in tables.flows.values() {
        let clear = |word: &Word| word.store(0);
        for flow in &flows.0 {
            flow.address.iter().for_each(clear);
            [&flow.key, &flow.seen, &flow.indexes]
                .into_iter()
                .for_each(clear);
        }
        if let Some(known) = &setting.client {
            let client = Client::new(0, known.words(), known.port);
            let own = u8::from(known.version == Version::V6);
            let at = client.touch(flows, own, TICK, LIFE);
            assert_eq!(at, PLACE);
            let flow = flow::at(flows, at, 0).expect("it was just made");
            flow.expect_index(LIVE);
            flow.note_pending(7);
            if setting.proven {
                flow.confirm(TICK);
            }
        }
    }
    for Limits {
        handshakes: of_handshakes,
        unknown: of_unknown,
        grace: until,
        packets: of_packets,
        bytes: of_bytes,
        errors: _,
    } in tables.limits.values()
    {
        of_handshakes.store(handshakes);
        of_unknown.store(unknown);
        until.store(grace);
        of_packets.iter().for_each(|word| word.store(packets));
        of_bytes.iter().for_each(|word| word.store(bytes));
    }
}

pub fn tables() -> Tables {
    let mut tables = Tables::default();
    for (own, address) in tables.edge.own.iter_mut().zip([mapped(NODE), NODE6]) {
        *own = Own {
            address,
            uplink: 2,
            pad: 0,
        };
    }
    tables.edge.hop_ports = HOP_PORTS;
    // All sources share the first bucket.
    tables.edge.seed = 0;
    tables.edge.session_life = LIFE;
    // Of the clients one is at an edge node's address, and one is not.
    tables.nodes = [words(&mapped(CLIENT)), words(&FAR6)].into();
    tables.now = NOW;
    tables.tick = TICK;
    for (slot, (port, mode, limited)) in (0..).zip(PORTS) {
        let (gateway, gateway6) = match mode {
            mode::HOP => (FAR, FAR6),
            _ => (GATEWAY, GATEWAY6),
        };
        let allocation = Allocation {
            mode,
            limited: limited.into(),
            slot,
            ifindex: 1,
            frame: frame_addresses(MACS[0], MACS[1]),
            gateway: mapped(gateway),
            gateway6,
            mac1: mac1::key(&KEY),
            rates: Rates {
                packet: 1000,
                byte: 1000,
            },
            ..Allocation::default()
        };
        tables.insert(port, allocation);
    }
    tables
}
