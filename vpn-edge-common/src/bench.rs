//! What the benchmarks' programs share with the benchmarks.

/// What frames are made of.
///
/// Flow `n` has the `n >> source_shift`th address after the first source, the
/// `n % 256`th source port after the first, and one of the destination ports.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Ethernet, IPv4 and UDP headers of the first flow, and the first two
    /// words of its message.
    pub headers: [u8; 50],
    /// Number of destination ports, from the first flow's on.
    pub ports: u16,
    /// Number of flows less one; a power of two less one.
    pub flow_mask: u32,
    pub source_shift: u32,
    /// Flows with a bit of these have `flood` in place of their message's first
    /// word, or its second.
    pub flood_mask: u32,
    /// In wire order.
    pub flood: u32,
    pub flood_index: u32,
    /// Whether frames go to the gateways' own addresses.
    pub routed: u32,
}

/// Frames that are gone round, each made anew before a program sees it.
pub const FRAMES: u32 = 256;

/// The part of a frame that programs rewrite, but for its first two bytes.
///
/// In pieces that no program reads across, so that the CPU can hand on what was
/// just written.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers {
    /// From byte 2 on.
    pub ethernet: [u64; 2],
    /// From byte 22 on.
    pub rest: [u64; 6],
    /// From byte 18 on.
    pub start: u32,
    pub pad: u32,
}

impl Headers {
    /// The headers at the beginning of `frame`.
    #[must_use]
    pub fn of(frame: &[u8; 70]) -> Self {
        let double = |at: usize| u64::from_ne_bytes(core::array::from_fn(|n| frame[at + n]));
        Self {
            ethernet: [double(2), double(10)],
            rest: core::array::from_fn(|n| double(22 + n * 8)),
            start: u32::from_ne_bytes([frame[18], frame[19], frame[20], frame[21]]),
            pad: 0,
        }
    }
}

/// What a bare redirect writes; a constant, as nothing else would be the least.
pub const FRAME: [u32; 3] = crate::frame_addresses([2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 3]);

/// The way back of [`FRAME`].
pub const REPLY: [u32; 3] = crate::frame_addresses([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 4]);

/// Steps between the ports of two flows: a prime, so that few flows spread
/// over many ports, and all ports get their turn.
pub const STRIDE: u64 = 1009;

/// The address of the gateway behind `port`, in host order.
#[must_use]
pub const fn gateway(port: u16) -> u32 {
    u32::from_be_bytes([100, 64, 0, 0]) + port as u32
}

const _: () = assert!(size_of::<Template>() == 76);
const _: () = assert!(size_of::<Headers>() == 72);

#[cfg(feature = "user")]
// SAFETY: integers and byte arrays without padding, by the assert above.
unsafe impl aya::Pod for Template {}

#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Headers {}
