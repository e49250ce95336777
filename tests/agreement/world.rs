//! The tenants that both builds know, and what may be used up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use lab::message;
use lab::packet::{CLIENT, CLIENT6, Gateway, NODE, NODE6, Packet, ROUTER_MAC};
use lab::programs::{self, Memory, Skb};
use vpn_edge::datapath::{Change, Datapath, EdgeNode, SlotState as Kept};
use vpn_edge_common::{
    Allocation, NODE_SLOT, Rates, Version, frame_addresses, mapped, mode, program,
};
use vpn_edge_ebpf::{mac1, session};

/// A port and what is behind it.
pub struct Tenant {
    pub port: u16,
    pub slot: u16,
    pub mode: u8,
    pub limited: bool,
    pub has_v6: bool,
}

const fn tenant(port: u16, slot: u16, mode: u8, limited: bool, has_v6: bool) -> Tenant {
    Tenant {
        port,
        slot,
        mode,
        limited,
        has_v6,
    }
}

/// A flipped bit leads from one port to another.
pub const TENANTS: [Tenant; 7] = [
    tenant(31_000, 0, mode::XDP, false, true),
    tenant(31_001, 1, mode::XDP, true, false),
    tenant(31_002, 2, mode::CLOSED, true, true),
    tenant(31_004, 3, mode::TC, false, true),
    tenant(31_005, 4094, mode::TC, true, true),
    tenant(31_016, 5, mode::HOP, false, true),
    tenant(31_017, 6, mode::HOP, true, true),
];
pub const SLOTS: [u16; 8] = [0, 1, 2, 3, 4094, 5, 6, NODE_SLOT];
pub const UNKNOWN_PORT: u16 = 31_008;

/// Ports that packets to other nodes leave from.
pub const HOP_PORTS: u16 = 30_000;
pub const HOPS: u16 = 128;

/// The node's addresses, in their places.
pub const OWN: [IpAddr; 4] = [
    IpAddr::V4(NODE),
    IpAddr::V6(NODE6),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 6)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0xffff, 0xfe, 6)),
];

/// Addresses of other edge nodes, which send packets on from such ports; and
/// some that are none's.
pub const EDGE_NODES: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 11)),
    // A client's, too.
    IpAddr::V4(CLIENT),
];
pub const STRANGERS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 12)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 12)),
    IpAddr::V6(CLIENT6),
];

/// A client that the node may know of when a packet comes.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub ip: IpAddr,
    pub port: u16,
    /// Place of the own address that it sent to.
    pub own: u8,
}

const fn known(ip: IpAddr, port: u16, own: u8) -> Client {
    Client { ip, port, own }
}

pub const CLIENTS: [Client; 6] = [
    known(IpAddr::V4(CLIENT), 1000, 0),
    known(IpAddr::V6(CLIENT6), 1001, 1),
    known(IpAddr::V4(CLIENT), 1002, 2),
    known(IpAddr::V6(CLIENT6), 1003, 3),
    // Its address is gone, or has become one of the other version.
    known(IpAddr::V4(CLIENT), 1004, 7),
    known(IpAddr::V6(CLIENT6), 1005, 2),
];

/// The flow of one of [`CLIENTS`].
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub client: usize,
    pub proven: bool,
    pub offered: u32,
    pub wondered: u32,
}

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
    /// Known to the tenants whose gateways are elsewhere.
    pub flow: Option<Flow>,
}

impl Tenant {
    pub fn key(&self) -> [u8; 32] {
        [self.slot as u8 ^ 0x4b; 32]
    }

    pub fn gateway(&self) -> Gateway {
        let [high, low] = self.port.to_be_bytes();
        let (address, address6) = match self.mode {
            mode::HOP => (
                Ipv4Addr::new(198, 51, 100, low),
                Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, self.port),
            ),
            _ => (
                Ipv4Addr::new(100, 64, high, low),
                Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, self.port),
            ),
        };
        Gateway {
            address,
            address6,
            mac: [0x02, 0, 0, 1, high, low],
            host_mac: [0x02, 0, 0, 2, high, low],
        }
    }

    /// The gateway's address, or its node's.
    pub fn ip(&self, version: Version) -> Option<IpAddr> {
        (version == Version::V4 || self.has_v6).then(|| self.gateway().ip(version))
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
            gateway6: match self.has_v6 {
                true => gateway.address6.octets(),
                false => [0; 16],
            },
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
    let uplink = uplink();
    let edge = EdgeNode {
        own: OWN.map(|ip| (ip, uplink)).into(),
        xdp_uplinks: Some(vec![uplink]),
        hop_ports: HOP_PORTS,
    };
    datapath.set_edge(&edge).unwrap();
    datapath.maps.set_nodes(&EDGE_NODES.into()).unwrap();
    let changes = TENANTS.map(|tenant| Change {
        port: tenant.port,
        allocation: tenant.allocation(),
        memory: Kept::Reset,
        grace: false,
    });
    datapath.maps.publish(&changes).unwrap();
}

/// An interface by which all that the node sends on leaves, to a neighbour
/// that is known.
fn uplink() -> u32 {
    let [a, b, c, d, e, f] = ROUTER_MAC;
    let router = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let script = format!(
        "ip link set lo up
         ip link add near type veth peer name far
         ip link set far up
         ip link set near mtu 9000 up
         ip address add 198.51.100.2/32 dev near
         ip address add 2001:db8:2:0:0:ffff:fe:2/128 dev near nodad
         ip neighbour add 192.0.2.1 lladdr {router} dev near nud permanent
         ip neighbour add 2001:db8:1::1 lladdr {router} dev near nud permanent
         ip route add default via 192.0.2.1 dev near onlink
         ip route add default via 2001:db8:1::1 dev near onlink
         echo 1 >/proc/sys/net/ipv4/ip_forward
         echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
    );
    let done = Command::new("sh").args(["-ec", &script]).status().unwrap();
    assert!(done.success());
    nix::net::if_::if_nametoindex("near").unwrap()
}

/// Has a gateway announce a session, by which the programs tell their time.
pub fn announce(datapath: &mut Datapath, memory: &Memory) {
    let tenant = &TENANTS[0];
    let initiation = message::initiation(LIVE[0], &[1; 32]);
    let packet = Packet::from(&tenant.gateway(), tenant.port, initiation);
    let skb = Skb::default();
    programs::run(datapath, program::EGRESS, &packet.bytes(), skb).unwrap();
    for way in programs::ways(&memory.sessions[usize::from(tenant.slot)]) {
        way.store(0);
    }
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
