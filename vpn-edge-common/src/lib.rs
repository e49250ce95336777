//! What the kernel side and the user side of vpn-edge share.
//!
//! Map keys and values, drop reasons, names of maps and programs, and the
//! constants of WireGuard's wire format. Everything here is plain integers and
//! byte arrays with explicit padding; addresses and ports that come off the
//! wire stay in network byte order inside byte arrays.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod bench;
mod drops;
mod flow;
mod guard;
pub mod wire;
mod word;

pub use drops::{Counters, DROP_REASONS, DropReason, Event};
pub use flow::{FLOW_WAYS, FLOWS, Flow, Flows};
pub use guard::{BUCKETS, Bucket, Clock, Limits, Sessions, tick};
pub use word::Word;

/// Version of the layout below. The pin directory is named after it, so that
/// programs of one layout never meet maps of another: raise it whenever a key,
/// a value or a map's size changes.
pub const SCHEMA: u32 = 3;

/// Counter slots: one for each tenant that a node can serve, and [`NODE_SLOT`].
///
/// Kubernetes' default NodePort range holds 2,768 ports.
pub const SLOTS: u32 = 4096;

/// The slot where what cannot be told apart by tenant is counted; no tenant's.
pub const NODE_SLOT: u16 = SLOTS as u16 - 1;

/// Addresses of its own that a node is reached by.
pub const OWN_ADDRESSES: usize = 8;

/// Interfaces that clients' packets come in by, at most.
pub const UPLINKS: usize = 4;

/// Sources of handshakes that are told apart.
pub const SOURCES: u32 = 1 << 16;

/// Addresses of other edge nodes: two each, of 8,192 nodes.
pub const NODES: u32 = 1 << 14;

/// Bytes of the ring buffer for sampled drops.
pub const EVENTS: u32 = 1 << 18;

/// Names of the maps, as pinned.
pub mod map {
    pub const ALLOCATIONS: &str = "ALLOCATIONS";
    pub const EDGE: &str = "EDGE";
    pub const COUNTERS: &str = "COUNTERS";
    pub const SESSIONS: &str = "SESSIONS";
    /// Handshake messages that were let in, by their mac1, kept as sessions are.
    pub const REPLAYS: &str = "REPLAYS";
    pub const LIMITS: &str = "LIMITS";
    /// Clients that a tenant was reached by: see [`crate::Flows`].
    pub const FLOWS: &str = "FLOWS";
    pub const CLOCK: &str = "CLOCK";
    pub const SOURCES: &str = "SOURCES";
    /// The set of other edge nodes' [`crate::Address`]es, at most
    /// [`crate::NODES`].
    pub const NODES: &str = "NODES";
    pub const EVENTS: &str = "EVENTS";
}

/// Names of the programs.
pub mod program {
    /// XDP on the uplink: client to gateway.
    pub const INGRESS: &str = "ingress";
    /// The same for frames of several fragments, which kernels before 5.18 do
    /// not have.
    pub const INGRESS_FRAGS: &str = "ingress_frags";
    /// tc on the uplink: the same, where XDP cannot deliver.
    pub const INGRESS_TC: &str = "ingress_tc";
    /// tc on the gateway's host-side veth: gateway to client.
    pub const EGRESS: &str = "egress";
    /// XDP on the gateway's own end, so that redirected frames are taken in.
    pub const PASS: &str = "pass";
    /// As [`INGRESS_FRAGS`].
    pub const PASS_FRAGS: &str = "pass_frags";
}

/// An IPv6 address in network byte order; IPv4 is mapped (`::ffff:a.b.c.d`).
pub type Address = [u8; 16];

/// Byte offset of the IPv4 address inside a mapped [`Address`].
pub const V4_OFFSET: usize = 12;

/// The IPv4-mapped form of `v4`.
#[must_use]
pub const fn mapped(v4: [u8; 4]) -> Address {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// The IPv4 address inside a mapped [`Address`].
#[must_use]
pub const fn unmapped(address: &Address) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

/// An [`Address`] as two numbers of the same memory, which compare faster.
pub type Words = [u64; 2];

/// What the second number of a mapped IPv4 address is without the address.
const MAPPED: u64 = 0xffff_0000;

/// The [`Words`] of a mapped IPv4 address, given as in memory.
#[inline(always)]
#[must_use]
pub const fn mapped_words(v4: u32) -> Words {
    const { assert!(cfg!(target_endian = "little")) };
    [0, (v4 as u64) << 32 | MAPPED]
}

/// The IPv4 address inside mapped [`Words`], as in memory.
#[inline(always)]
#[must_use]
pub const fn unmapped_words(words: Words) -> u32 {
    (words[1] >> 32) as u32
}

/// Whether `words` are those of a mapped IPv4 address.
#[inline(always)]
#[must_use]
pub const fn is_mapped(words: Words) -> bool {
    words[0] == 0 && words[1] as u32 as u64 == MAPPED
}

/// The [`Words`] of an address in a map.
#[inline(always)]
#[must_use]
pub fn words(address: &Address) -> Words {
    let at = address.as_ptr().cast::<u64>();
    // SAFETY: sixteen bytes are twice eight. In maps every address stands at a
    // multiple of eight, without which LLVM would read it byte by byte.
    #[cfg(target_arch = "bpf")]
    let words = unsafe { [at.read(), at.add(1).read()] };
    // SAFETY: as above.
    #[cfg(not(target_arch = "bpf"))]
    let words = unsafe { [at.read_unaligned(), at.add(1).read_unaligned()] };
    words
}

/// The address of `words`.
#[inline(always)]
#[must_use]
pub const fn address([a, b]: Words) -> Address {
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (a.to_ne_bytes(), b.to_ne_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The first twelve bytes of a frame to `destination` from `source`, as words
/// of the same memory, so that they are written with three stores.
#[must_use]
pub const fn frame_addresses(destination: [u8; 6], source: [u8; 6]) -> [u32; 3] {
    let [a, b, c, d, e, f] = destination;
    let [g, h, i, j, k, l] = source;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
    ]
}

/// What the edge does with a port's packets.
pub mod mode {
    /// Not allocated: the kernel gets the packet. Zero, as in an unset entry.
    pub const NONE: u8 = 0;
    /// Allocated, but no gateway to steer to: packets are dropped.
    pub const CLOSED: u8 = 1;
    /// XDP rewrites and redirects into the gateway's veth.
    pub const XDP: u8 = 2;
    /// XDP passes to the tc stage, which redirects to the veth's peer.
    pub const TC: u8 = 3;
    /// The gateway is on another node: packets are sent on to it.
    pub const HOP: u8 = 4;
}

/// One tenant's port: all that steering and the guard need, in one lookup.
///
/// Value of [`map::ALLOCATIONS`], an array indexed by UDP port. The gateway
/// listens on the tenant's own port, so ports are never rewritten.
///
/// The first eight bytes are published by one store, and the rest is written
/// only while they say that the port is not open. What transport data needs
/// lies in the first 64 bytes, one cache line.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// One of [`mode`].
    pub mode: u8,
    /// Whether [`Allocation::rates`] limit anything.
    pub limited: u8,
    /// Index into the maps of [`SLOTS`] values.
    pub slot: u16,
    /// Host-side veth of the gateway.
    pub ifindex: u32,
    /// Destination and source of the frames: see [`frame_addresses`].
    pub frame: [u32; 3],
    pub pad: [u8; 4],
    /// IPv4 address of the gateway, or of its node for [`mode::HOP`]; zero if
    /// it has none, as for the next.
    pub gateway: Address,
    pub gateway6: Address,
    pub rates: Rates,
    /// BLAKE2s after the block of mac1's key: proves knowledge of the gateway's
    /// public key.
    pub mac1: [u32; 8],
    /// The tenant's UUID, for whoever reads the map.
    pub tenant: [u8; 16],
    /// Generation of the tenant's keys, for whoever reads the map.
    pub generation: u64,
    pub pad2: [u8; 8],
}

impl Allocation {
    /// The gateway's address of one IP version, or its node's; zero if none.
    #[inline(always)]
    #[must_use]
    pub fn gateway(&self, version: Version) -> Words {
        words(match version {
            Version::V4 => &self.gateway,
            Version::V6 => &self.gateway6,
        })
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

/// What a packet and a byte cost of a tenant's time, in each direction; zero
/// is no limit. One word of [`Allocation`], so that it changes in one store.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Nanoseconds a packet.
    pub packet: u32,
    /// 1/1024 nanoseconds a byte of the IP packet.
    pub byte: u32,
}

/// The node as the edge sees it: the single value of [`map::EDGE`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// The addresses that clients send to, and that replies leave from. The
    /// first is the one that IPv4 replies leave from unless their flow says
    /// otherwise, the second the same for IPv6; zero where there is none.
    pub own: [Own; OWN_ADDRESSES],
    /// Interfaces with the XDP program, which it may send out of; zero is none.
    pub uplinks: [u32; UPLINKS],
    /// Random and odd: spreads sources over [`map::SOURCES`] and clients over
    /// [`Flows`], so that nobody can know who shares a bucket with whom.
    pub seed: u64,
    /// How long an announced session index is taken, as a count of [`tick`]s.
    pub session_life: u32,
    /// The first of [`FLOWS`] UDP ports that packets to other nodes leave from.
    pub hop_ports: u16,
    /// Whether an IP version has several addresses, so that every packet's
    /// flow has to be remembered for its replies.
    pub several: u8,
    pub pad: u8,
}

/// One of the node's addresses.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub address: Address,
    /// Interface that replies from it leave by.
    pub uplink: u32,
    pub pad: u32,
}

const _: () = {
    assert!(core::mem::size_of::<Allocation>() == 128);
    assert!(core::mem::offset_of!(Allocation, mac1) == 64);
    assert!(core::mem::size_of::<Own>() == 24);
    assert!(core::mem::size_of::<Edge>() == 8 * 24 + 16 + 16);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` structs of integers and byte arrays. The asserts above
    // hold each to the sum of its fields, so there is no padding, and every
    // bit pattern is a valid value.
    unsafe impl aya::Pod for super::Allocation {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Edge {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_gives_back_what_it_was_made_of() {
        let v4 = [192, 0, 2, 7];
        assert_eq!(unmapped(&mapped(v4)), v4);
        let number = u32::from_ne_bytes(v4);
        assert_eq!(words(&mapped(v4)), mapped_words(number));
        assert_eq!(unmapped_words(mapped_words(number)), number);
        assert_eq!(address(mapped_words(number)), mapped(v4));
        assert!(is_mapped(mapped_words(number)));
        assert!(!is_mapped(words(&[0x20; 16])) && !is_mapped([0; 2]));
    }
}
