//! Packets of every kind, and what bends them.

use std::net::Ipv4Addr;

use lab::message;
use lab::packet::{CLIENT, Packet};
use lab::programs::{Hook, LEAST_IPV6_SKB, LEAST_SKB};

use crate::world::{EXPIRED, LIVE, State, TENANTS, UNKNOWN, UNKNOWN_PORT, USED_UP};

/// The longest frame that every kernel takes into a test run.
const LONGEST: usize = 1600;

pub struct Generator {
    state: u64,
    hook: Hook,
}

impl Generator {
    pub fn new(seed: u64, hook: Hook) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            hook,
        }
    }

    /// A frame, and the state to meet it with.
    pub fn next(&mut self) -> (Vec<u8>, State) {
        let packet = self.packet();
        let mut bytes = packet.bytes();
        if self.one_in(2) {
            for _ in 0..=self.below(3) {
                self.mutate(&mut bytes, 14 + 4 * packet.tags.len());
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
        (bytes, self.state(replayed))
    }

    fn state(&mut self, replayed: Option<u32>) -> State {
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
        }
    }

    fn packet(&mut self) -> Packet {
        // Most to the two that both hooks serve.
        let tenant = &TENANTS[[0, 0, 1, 1, 2, 3, 4][self.below(7)]];
        let index = match self.below(4) {
            0 => self.pick(&EXPIRED),
            1 => UNKNOWN,
            _ => self.pick(&LIVE),
        };
        let key = match self.one_in(8) {
            true => [self.number() as u8; 32],
            false => tenant.key(),
        };
        let sender = self.number() as u32;
        let message = match self.below(6) {
            0 => message::initiation(sender, &key),
            1 => message::response(sender, index, &key),
            2 => message::cookie_reply(index),
            3 => message::data(index, 32 + self.below(33)),
            _ => message::data(index, 32 + self.below(1400)),
        };
        let port = match self.one_in(16) {
            true => UNKNOWN_PORT,
            false => tenant.port,
        };
        let mut packet = Packet::to(port, message);
        packet.tags = match self.below(12) {
            0 | 1 => vec![(0x8100, 100)],
            2 => vec![(0x88a8, 7), (0x8100, 100)],
            3 => vec![(0x8100, 7), (0x88a8, 0xffff)],
            4 if self.one_in(4) => vec![(0x88a8, 7), (0x8100, 8), (0x8100, 9)],
            _ => Vec::new(),
        };
        packet.source = match self.one_in(2) {
            true => Ipv4Addr::from(self.number() as u32),
            false => CLIENT,
        };
        packet.ports.0 = self.number() as u16;
        packet.udp_checksum = !self.one_in(8);
        if self.one_in(32) {
            packet.options = vec![1; 4 * (1 + self.below(10))];
        }
        packet.more_fragments = self.one_in(32);
        if self.one_in(64) {
            packet.fragment_offset = self.below(1 << 13) as u16;
        }
        if self.one_in(64) {
            packet.destination = Ipv4Addr::from(self.number() as u32);
        }
        packet
    }

    /// Bends a frame whose IP header begins at `ip`, unless it was bent away.
    fn mutate(&mut self, bytes: &mut Vec<u8>, ip: usize) {
        let udp = ip + 20;
        let message = udp + 8;
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
            6 => self.nudge(bytes, ip + 2),
            7 => self.nudge(bytes, udp + 4),
            8 => {
                let kind = self.below(6) as u8;
                self.overwrite(bytes, message, &[kind]);
            }
            _ => {
                let tenant = &TENANTS[self.below(TENANTS.len())];
                let field = self.pick(&[
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
                ]);
                self.overwrite(bytes, field.0, &field.1);
            }
        }
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
