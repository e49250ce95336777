//! What the benchmarks' programs share with the benchmarks.

/// What frames are made of.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Ethernet, IPv4 and UDP headers of the first flow.
    pub headers: [u8; 42],
    /// Number of flows less one; a power of two less one.
    pub flow_mask: u16,
    /// What a bare redirect writes.
    pub gateway_mac: [u8; 6],
    pub host_mac: [u8; 6],
}

const _: () = assert!(size_of::<Template>() == 56);

#[cfg(feature = "user")]
// SAFETY: integers and byte arrays without padding, by the assert above.
unsafe impl aya::Pod for Template {}
