//! What the kernel side and the user side of vpn-edge share.
//!
//! Map keys and values, drop reasons, names of maps and programs, and the
//! constants of WireGuard's wire format. Everything here is plain integers and
//! byte arrays with explicit padding; addresses and ports that come off the
//! wire stay in network byte order inside byte arrays.

#![cfg_attr(target_arch = "bpf", no_std)]

pub mod bench;
pub mod wire;

/// Version of the layout below. The pin directory is named after it, so that
/// programs of one layout never meet maps of another: raise it whenever a key,
/// a value or a map's size changes.
pub const SCHEMA: u32 = 1;

/// Tenants that one node can serve: the number of counter slots.
///
/// Kubernetes' default NodePort range holds 2,768 ports.
pub const SLOTS: u32 = 4096;

/// Names of the maps, as pinned.
pub mod map {
    pub const ALLOCATIONS: &str = "ALLOCATIONS";
    pub const EDGE: &str = "EDGE";
    pub const COUNTERS: &str = "COUNTERS";
}

/// Names of the programs in the object.
pub mod program {
    /// XDP on the uplink: client to gateway.
    pub const INGRESS: &str = "ingress";
    /// tc on the uplink: the same, where XDP cannot deliver.
    pub const INGRESS_TC: &str = "ingress_tc";
    /// tc on the gateway's host-side veth: gateway to client.
    pub const EGRESS: &str = "egress";
    /// XDP on the gateway's own end, so that redirected frames are taken in.
    pub const PASS: &str = "pass";
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
}

/// One tenant's port: all that steering needs, in one lookup.
///
/// Value of [`map::ALLOCATIONS`], an array indexed by UDP port. The gateway
/// listens on the tenant's own port, so ports are never rewritten.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// One of [`mode`].
    pub mode: u8,
    pub pad: u8,
    /// Index into [`map::COUNTERS`], below [`SLOTS`].
    pub slot: u16,
    /// Host-side veth of the gateway.
    pub ifindex: u32,
    /// Destination and source of the frames: see [`frame_addresses`].
    pub frame: [u32; 3],
    pub pad2: [u8; 4],
    pub gateway: Address,
    /// The tenant's UUID, for whoever reads the map.
    pub tenant: [u8; 16],
    /// Generation of the tenant's keys, for whoever reads the map.
    pub generation: u64,
}

/// The node as the edge sees it: the single value of [`map::EDGE`].
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// The address that clients send to, and that replies leave from.
    pub address: Address,
    /// Interface that replies leave by.
    pub uplink: u32,
}

/// Why a packet to an allocated port was dropped. One reason a packet.
///
/// The discriminant is the index into [`Counters::drops`], the name is the
/// label in metrics and tools.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// No gateway to steer to: being made, being replaced, or gone.
    NoGateway = 0,
    /// IPv4 options: the program does not read past them.
    IpOptions = 1,
    /// A first fragment: the rest cannot be judged.
    Fragment = 2,
    /// Shorter than its headers say, or than any WireGuard message.
    Truncated = 3,
    /// Not a WireGuard message: type or reserved bytes.
    MessageType = 4,
    /// Not the length that a message of its type has.
    MessageLength = 5,
    /// The frame could not be rewritten.
    Rewrite = 6,
}

impl DropReason {
    /// Every reason, at the index of its discriminant.
    pub const ALL: [Self; 7] = [
        Self::NoGateway,
        Self::IpOptions,
        Self::Fragment,
        Self::Truncated,
        Self::MessageType,
        Self::MessageLength,
        Self::Rewrite,
    ];

    /// The reason's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoGateway => "no_gateway",
            Self::IpOptions => "ip_options",
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::MessageType => "message_type",
            Self::MessageLength => "message_length",
            Self::Rewrite => "rewrite",
        }
    }
}

/// Room for reasons that are yet to come, without a change of layout.
pub const DROP_REASONS: usize = 12;

/// A tenant's counters on one CPU. Value of [`map::COUNTERS`].
///
/// Bytes are those of the IP packet.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub ingress_packets: u64,
    pub ingress_bytes: u64,
    pub egress_packets: u64,
    pub egress_bytes: u64,
    /// Dropped packets, by [`DropReason`].
    pub drops: [u64; DROP_REASONS],
}

const _: () = {
    assert!(core::mem::size_of::<Allocation>() == 64);
    assert!(core::mem::size_of::<Edge>() == 20);
    assert!(core::mem::size_of::<Counters>() == 128);
    assert!(DropReason::ALL.len() <= DROP_REASONS);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` structs of integers and byte arrays. The asserts above
    // hold each to the sum of its fields, so there is no padding, and every
    // bit pattern is a valid value.
    unsafe impl aya::Pod for super::Allocation {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Edge {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counters {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_index_with_its_own_name() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            let same = DropReason::ALL
                .into_iter()
                .filter(|other| other.name() == reason.name());
            assert_eq!(same.count(), 1, "{}", reason.name());
        }
    }

    #[test]
    fn a_mapped_address_gives_back_what_it_was_made_of() {
        assert_eq!(unmapped(&mapped([192, 0, 2, 7])), [192, 0, 2, 7]);
    }
}
