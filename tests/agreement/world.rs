//! The tenants that both builds know, and what may be used up.

use std::net::Ipv4Addr;
use std::time::Duration;

use lab::packet::{Gateway, NODE};
use lab::programs::Memory;
use vpn_edge::datapath::{Change, Datapath, Memory as Kept};
use vpn_edge_common::{Allocation, Rates, frame_addresses, mapped, mode};
use vpn_edge_ebpf::{mac1, session};

/// A port and what is behind it.
pub struct Tenant {
    pub port: u16,
    pub slot: u16,
    pub mode: u8,
    pub limited: bool,
}

const fn tenant(port: u16, slot: u16, mode: u8, limited: bool) -> Tenant {
    Tenant {
        port,
        slot,
        mode,
        limited,
    }
}

/// A flipped bit leads from one port to another.
pub const TENANTS: [Tenant; 5] = [
    tenant(31_000, 0, mode::XDP, false),
    tenant(31_001, 1, mode::XDP, true),
    tenant(31_002, 2, mode::CLOSED, true),
    tenant(31_004, 3, mode::TC, false),
    tenant(31_005, 4095, mode::TC, true),
];
pub const SLOTS: [u16; 5] = [0, 1, 2, 3, 4095];
pub const UNKNOWN_PORT: u16 = 31_008;

/// Sessions of every tenant; the second is in no use with any of them.
pub const LIVE: [u32; 4] = [0x0000_0001, 0x8000_0000, 0x5e55_1011, 0xffff_ffff];
pub const EXPIRED: [u32; 2] = [0, 0x0ddb_a11d];
pub const UNKNOWN: u32 = 0x0bad_1dea;

/// Used up for longer than any test runs.
pub const USED_UP: u64 = u64::MAX / 2;

/// What both builds find before a packet, for every tenant and every source:
/// words that mean the same whenever they are read.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// In the order of [`lab::programs::rates`].
    pub rates: [u64; 6],
    pub grace: u64,
    pub source: u64,
    /// The mac1's first word, in wire order, of a message that was let in.
    pub replayed: Option<u32>,
}

impl Tenant {
    pub fn key(&self) -> [u8; 32] {
        [self.slot as u8 ^ 0x4b; 32]
    }

    fn gateway(&self) -> Gateway {
        let [high, low] = self.port.to_be_bytes();
        Gateway {
            address: Ipv4Addr::new(100, 64, high, low),
            mac: [0x02, 0, 0, 1, high, low],
            host_mac: [0x02, 0, 0, 2, high, low],
        }
    }

    fn allocation(&self) -> Allocation {
        let gateway = self.gateway();
        // Costs that no delay between two readings of the clock is like.
        let rates = Rates {
            packet: 4_000_000_000,
            byte: 4_000_000_000,
        };
        Allocation {
            mode: self.mode,
            limited: self.limited.into(),
            slot: self.slot,
            ifindex: 1,
            frame: frame_addresses(gateway.mac, gateway.host_mac),
            gateway: mapped(gateway.address.octets()),
            mac1: mac1::key(&self.key()),
            rates: if self.limited {
                rates
            } else {
                Rates::default()
            },
            ..Allocation::default()
        }
    }
}

pub fn publish(datapath: &mut Datapath) {
    datapath.set_edge(mapped(NODE.octets()), 1).unwrap();
    let changes = TENANTS.map(|tenant| Change {
        port: tenant.port,
        allocation: tenant.allocation(),
        memory: Kept::Reset,
        grace: false,
    });
    datapath.maps.publish(&changes).unwrap();
}

/// Sessions that outlast every test, and some that ended long ago.
pub fn fill_sessions(memory: &Memory) {
    for slot in SLOTS {
        let sessions = &memory.sessions[usize::from(slot)];
        let live = LIVE.iter().map(|&index| (index, u32::MAX));
        for (index, expiry) in live.chain(EXPIRED.map(|index| (index, 1))) {
            let bucket = session::bucket(sessions, index);
            let free = bucket.0.iter().find(|way| way.load() == 0);
            let entry = u64::from(index) << 32 | u64::from(expiry);
            free.expect("the buckets have room").store(entry);
        }
    }
}

/// Nanoseconds of the clock that programs read.
pub fn now() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC_COARSE;
    Duration::from(nix::time::clock_gettime(clock).unwrap()).as_nanos() as u64
}
