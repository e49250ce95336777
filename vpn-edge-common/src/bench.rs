//! What the benchmarks' programs share with the benchmarks.

/// What frames are made of.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Ethernet, IPv4 and UDP headers of the first flow.
    pub headers: [u8; 42],
    /// Number of flows less one; a power of two less one.
    pub flow_mask: u16,
}

/// What a bare redirect writes; a constant, as nothing else would be the least.
pub const FRAME: [u32; 3] = crate::frame_addresses([2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 3]);

const _: () = assert!(size_of::<Template>() == 44);

#[cfg(feature = "user")]
// SAFETY: integers and byte arrays without padding, by the assert above.
unsafe impl aya::Pod for Template {}
