//! Packets of every kind, and what bends them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::message;
use lab::packet::{Packet, VERSIONS, extension};
use lab::programs::{Hook, LEAST_IPV6_SKB, LEAST_SKB};
use vpn_edge_common::{Version, mode};

use crate::world::{
    CLIENTS, EDGE_NODES, EXPIRED, Flow, HOP_PORTS, HOPS, LIVE, OWN, STRANGERS, State, TENANTS,
    Tenant, UNKNOWN, UNKNOWN_PORT, USED_UP,
};

/// The longest frame that every kernel takes into a test run.
const LONGEST: usize = 1600;

pub struct Generator {
    state: u64,
    hook: Hook,
    /// Of the clients' flows.
    places: [usize; CLIENTS.len()],
}

impl Generator {
    pub fn new(seed: u64, hook: Hook, places: [usize; CLIENTS.len()]) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            hook,
            places,
        }
    }

    /// A frame, and the state to meet it with.
    pub fn next(&mut self) -> (Vec<u8>, State) {
        let flow = (!self.one_in(4)).then(|| self.flow());
        let packet = match self.one_in(5) {
            true => self.answer(flow.as_ref()),
            false => self.packet(),
        };
        let mut bytes = packet.bytes();
        if self.one_in(2) {
            for _ in 0..=self.below(3) {
                self.mutate(&mut bytes, &packet);
            }
        }
        bytes.resize(bytes.len().clamp(14, LONGEST), 0);
        let least = match (self.hook, &bytes[12..14]) {
            (Hook::Xdp, _) => 14,
            (Hook::Tc, [0x86, 0xdd]) => LEAST_IPV6_SKB,
            (Hook::Tc, _) => LEAST_SKB,
        };
        bytes.resize(bytes.len().max(least), 0);
        // Most handshakes are new, and a few are this very one.
        let mac1 = packet.message.len().checked_sub(32);
        let mac1 = mac1.map(|at| packet.message[at..].first_chunk().unwrap());
        let mac1 = mac1.map(|mac1| u32::from_ne_bytes(*mac1));
        let replayed = mac1.filter(|_| self.one_in(6));
        (bytes, self.state(replayed, flow))
    }

    fn state(&mut self, replayed: Option<u32>, flow: Option<Flow>) -> State {
        // Seldom, or nothing is ever steered.
        let mut word = || match self.below(40) {
            0 | 1 => USED_UP,
            2 => 1,
            _ => 0,
        };
        State {
            rates: std::array::from_fn(|_| word()),
            source: word(),
            replayed,
            grace: self.pick(&[0, 0, 1, USED_UP]),
            flow,
        }
    }

    fn flow(&mut self) -> Flow {
        Flow {
            client: self.below(CLIENTS.len()),
            proven: self.one_in(2),
            offered: self.pick(&[0, LIVE[0], LIVE[2], UNKNOWN]),
            wondered: self.pick(&[0, LIVE[2], UNKNOWN, 0x1234_5678]),
        }
    }

    fn message(&mut self, key: &[u8; 32]) -> Vec<u8> {
        let index = match self.below(4) {
            0 => self.pick(&EXPIRED),
            1 => UNKNOWN,
            _ => self.pick(&LIVE),
        };
        let sender = self.number() as u32;
        match self.below(6) {
            0 => message::initiation(sender, key),
            1 => message::response(sender, index, key),
            2 => message::cookie_reply(index),
            3 => message::data(index, 32 + self.below(33)),
            _ => message::data(index, 32 + self.below(1400)),
        }
    }

    /// From a client.
    fn packet(&mut self) -> Packet {
        // Most to those that both hooks serve.
        let tenant = &TENANTS[[0, 0, 1, 1, 2, 3, 4, 5, 5, 6][self.below(10)]];
        let key = match self.one_in(8) {
            true => [self.number() as u8; 32],
            false => tenant.key(),
        };
        let message = self.message(&key);
        let port = match self.one_in(16) {
            true => UNKNOWN_PORT,
            false => tenant.port,
        };
        let version = self.pick(&VERSIONS);
        let mut packet = Packet::over(version, port, message);
        packet.ports.0 = self.number() as u16;
        match self.below(4) {
            0 => {}
            1 => {
                let client = self.pick(&CLIENTS);
                if client.ip.is_ipv4() == (version == Version::V4) {
                    (packet.source, packet.ports.0) = (client.ip, client.port);
                }
            }
            2 => {
                packet.ports.0 = HOP_PORTS - 2 + self.below(usize::from(HOPS) + 4) as u16;
                let source = match self.one_in(2) {
                    true => self.pick(&EDGE_NODES),
                    false => self.pick(&STRANGERS),
                };
                if source.is_ipv4() == (version == Version::V4) {
                    packet.source = source;
                }
            }
            _ => packet.source = self.address(version),
        }
        packet.destination = self.own(version);
        self.dress(packet)
    }

    /// From another node, to a port that stands for a flow.
    fn answer(&mut self, flow: Option<&Flow>) -> Packet {
        let far = || TENANTS.iter().filter(|tenant| tenant.mode == mode::HOP);
        let tenant: &Tenant = match self.one_in(16) {
            true => &TENANTS[self.below(TENANTS.len())],
            false => far()
                .nth(self.below(far().count()))
                .expect("there are some"),
        };
        let mut version = self.pick(&VERSIONS);
        let mut place = self.below(usize::from(HOPS));
        if let Some(flow) = flow
            && !self.one_in(16)
        {
            place = self.places[flow.client];
            if CLIENTS[flow.client].ip.is_ipv4() && !self.one_in(16) {
                version = Version::V4;
            } else if !self.one_in(16) {
                version = Version::V6;
            }
        }
        let message = match flow.filter(|flow| flow.offered != 0 && self.one_in(2)) {
            Some(flow) if self.one_in(2) => message::data(flow.offered, 48),
            Some(flow) => {
                let sender = self.number() as u32;
                message::response(sender, flow.offered, &[1; 32])
            }
            None => self.message(&[1; 32]),
        };
        let mut packet = Packet::over(version, HOP_PORTS + place as u16, message);
        packet.ports.0 = tenant.port;
        packet.source = match self.one_in(16) {
            true => self.address(version),
            false => tenant.ip(version).unwrap_or(packet.source),
        };
        packet.destination = self.own(version);
        self.dress(packet)
    }

    /// What any packet may have.
    fn dress(&mut self, mut packet: Packet) -> Packet {
        packet.tags = match self.below(12) {
            0 | 1 => vec![(0x8100, 100)],
            2 => vec![(0x88a8, 7), (0x8100, 100)],
            3 => vec![(0x8100, 7), (0x88a8, 0xffff)],
            4 if self.one_in(4) => vec![(0x88a8, 7), (0x8100, 8), (0x8100, 9)],
            _ => Vec::new(),
        };
        packet.udp_checksum = !self.one_in(8);
        if self.one_in(4) {
            packet.hop_limit = self.pick(&[0, 1, 2, 16, 17, 18, 128, 255]);
        }
        if self.one_in(32) {
            packet.options = vec![1; 4 * (1 + self.below(10))];
        }
        packet.more_fragments = self.one_in(32);
        if self.one_in(64) {
            packet.fragment_offset = self.below(1 << 13) as u16;
        }
        if self.one_in(12) {
            let count = 1 + self.below(9);
            packet.extensions = (0..count).map(|_| self.extension()).collect();
        }
        if self.one_in(64) {
            packet.destination = self.address(packet.version());
        }
        packet
    }

    fn extension(&mut self) -> (u8, Vec<u8>) {
        let number = self.pick(&[
            extension::HOP_BY_HOP,
            extension::ROUTING,
            extension::DESTINATION,
            extension::DESTINATION,
            extension::MOBILITY,
            extension::AUTHENTICATION,
            extension::FRAGMENT,
            139,
            140,
        ]);
        let units = self.below(4);
        let rest = match number {
            extension::FRAGMENT => {
                let first = self.pick(&[[0, 0], [0, 1], [0, 1], [0, 8], [0x10, 1]]);
                vec![0, first[0], first[1], 0, 0, 0, 7]
            }
            extension::AUTHENTICATION => {
                let mut rest = vec![0; 7 + 4 * units];
                rest[0] = units as u8;
                rest
            }
            _ => {
                let mut rest = vec![0; 7 + 8 * units];
                rest[0] = units as u8;
                rest
            }
        };
        (number, rest)
    }

    fn own(&mut self, version: Version) -> IpAddr {
        let first = usize::from(version == Version::V6);
        OWN[first + 2 * usize::from(self.one_in(4))]
    }

    fn address(&mut self, version: Version) -> IpAddr {
        let low = self.number() as u32;
        match version {
            Version::V4 => Ipv4Addr::from(low).into(),
            Version::V6 if self.one_in(8) => Ipv4Addr::from(low).to_ipv6_mapped().into(),
            Version::V6 if self.one_in(8) => Ipv6Addr::UNSPECIFIED.into(),
            Version::V6 => {
                let number = u128::from(self.number()) << 77 | u128::from(low);
                Ipv6Addr::from(number).into()
            }
        }
    }

    /// Bends the frame of `packet`, wherever its parts are by now.
    fn mutate(&mut self, bytes: &mut Vec<u8>, packet: &Packet) {
        let (ip, udp, message) = (packet.ip_at(), packet.udp_at(), packet.message_at());
        match self.below(10) {
            // Anywhere, and where every bit has a meaning.
            0 => self.flip(bytes, 0..LONGEST),
            1 => self.flip(bytes, ip..message + 12),
            2 => self.flip(bytes, 12..ip + 2),
            3 => bytes.truncate(self.below(bytes.len() + 1)),
            4 => bytes.truncate(self.below(message + 40)),
            5 => {
                let byte = self.number() as u8;
                bytes.resize(bytes.len() + 1 + self.below(60), byte);
            }
            6 => {
                let v4 = packet.version() == Version::V4;
                self.nudge(bytes, if v4 { ip + 2 } else { ip + 4 });
            }
            7 => self.nudge(bytes, udp + 4),
            8 => {
                let kind = self.below(6) as u8;
                self.overwrite(bytes, message, &[kind]);
            }
            _ => {
                let field = match packet.version() {
                    Version::V4 => self.field4(ip, udp),
                    Version::V6 => self.field6(ip, udp),
                };
                self.overwrite(bytes, field.0, &field.1);
            }
        }
    }

    fn field4(&mut self, ip: usize, udp: usize) -> (usize, [u8; 2]) {
        let tenant = &TENANTS[self.below(TENANTS.len())];
        self.pick(&[
            (12, [0x81, 0x00]),
            (12, [0x08, 0x00]),
            (12, [0x91, 0x00]),
            (ip - 2, [0x86, 0xdd]),
            (ip - 2, [0x88, 0xa8]),
            (ip, [0x46, 0x00]),
            (ip, [0x4f, 0x00]),
            (ip, [0x44, 0x00]),
            (ip + 6, [0x20, 0x00]),
            (ip + 6, [0x40, 0x00]),
            (ip + 6, [0x00, 0x01]),
            (ip + 8, [0x40, 51]),
            (ip + 10, [0xff, 0xff]),
            (ip + 10, [0x00, 0x00]),
            (udp + 2, tenant.port.to_be_bytes()),
            (udp + 4, [0x00, 0x00]),
            (udp + 4, [0x00, 0x07]),
            (udp + 4, [0xff, 0xff]),
            (udp + 6, [0xff, 0xff]),
            (udp + 6, [0x00, 0x00]),
        ])
    }

    fn field6(&mut self, ip: usize, udp: usize) -> (usize, [u8; 2]) {
        let tenant = &TENANTS[self.below(TENANTS.len())];
        let next = self.pick(&[0, 6, 43, 44, 51, 60, 135]);
        self.pick(&[
            (12, [0x81, 0x00]),
            (12, [0x86, 0xdd]),
            (ip - 2, [0x08, 0x00]),
            (ip - 2, [0x88, 0xa8]),
            (ip, [0x45, 0x00]),
            (ip, [0x7f, 0xff]),
            (ip + 4, [0x00, 0x00]),
            (ip + 4, [0xff, 0xff]),
            (ip + 6, [next, 64]),
            (ip + 40, [next, 0]),
            (ip + 40, [17, 1]),
            (udp + 2, tenant.port.to_be_bytes()),
            (udp + 4, [0x00, 0x00]),
            (udp + 4, [0x00, 0x07]),
            (udp + 4, [0xff, 0xff]),
            (udp + 6, [0xff, 0xff]),
            (udp + 6, [0x00, 0x00]),
        ])
    }

    fn flip(&mut self, bytes: &mut [u8], range: std::ops::Range<usize>) {
        let end = range.end.min(bytes.len());
        if range.start < end {
            let at = range.start + self.below(end - range.start);
            bytes[at] ^= 1 << self.below(8);
        }
    }

    /// Makes a length a little longer or shorter.
    fn nudge(&mut self, bytes: &mut [u8], at: usize) {
        if let Some(field) = bytes.get_mut(at..at + 2) {
            let by = self.below(64) as u16;
            let old = u16::from_be_bytes([field[0], field[1]]);
            field.copy_from_slice(&old.wrapping_add(by).wrapping_sub(32).to_be_bytes());
        }
    }

    fn overwrite(&mut self, bytes: &mut [u8], at: usize, with: &[u8]) {
        if let Some(field) = bytes.get_mut(at..at + with.len()) {
            field.copy_from_slice(with);
        }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// Marsaglia's xorshift, and a multiplication that spreads its low bits.
    fn number(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
}
