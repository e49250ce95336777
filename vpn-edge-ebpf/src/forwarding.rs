//! A packet that goes on to another node, or back from one.

use vpn_edge_common::Words;

/// A packet on its way out of the node again.
///
/// In the kernel one a CPU, in a map, since the stack has no room for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Forwarding {
    pub from: Endpoints,
    pub to: Endpoints,
    /// Destination and source of its frame, once a route is found.
    pub frame: [u32; 3],
    /// Interface that it leaves by; zero if the routes are to say.
    pub uplink: u32,
    /// The longest IP packet that may, once a route is found.
    pub mtu: u32,
    /// Length of the IP packet.
    pub length: u32,
    /// Bytes of VLAN tags.
    pub tags: u32,
    pub is_v6: bool,
    /// Its hop limit as it came, and as it goes.
    pub hops: [u8; 2],
    pub pad: [u8; 5],
}

/// Addresses and ports of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    pub source: Words,
    pub destination: Words,
    /// Both ports, as in memory.
    pub ports: u32,
    pub pad: u32,
}

impl Endpoints {
    #[inline(always)]
    #[must_use]
    pub const fn new(source: Words, source_port: u16, destination: Words, port: u16) -> Self {
        Self {
            source,
            destination,
            ports: source_port.to_be() as u32 | (port.to_be() as u32) << 16,
            pad: 0,
        }
    }
}
