//! The ways out of the node that the kernel named lately.

use vpn_edge_common::Words;

/// A way that the kernel named some milliseconds ago at most: asking it for
/// every packet costs more than all the rest of a packet's way.
#[repr(C)]
pub struct RouteCacheEntry {
    pub asked: Question,
    /// Zero before the first.
    pub era: u32,
    pub ifindex: u32,
    /// The longest IP packet that it takes.
    pub mtu: u32,
    pub frame: [u32; 3],
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Question {
    pub source: Words,
    pub destination: Words,
    pub ingress: u32,
    pub uplink: u32,
}

/// Entries of a CPU's known ways. More than the clients that one core serves at
/// a time, or else they only take each other's places.
pub const KNOWN: u32 = 1024;

impl Question {
    #[inline(always)]
    pub fn place(&self) -> u32 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let [high, low] = self.destination;
        let folded = high ^ low ^ self.source[1].rotate_left(7) ^ u64::from(self.uplink);
        (folded.wrapping_mul(MIX) >> 54) as u32
    }
}
