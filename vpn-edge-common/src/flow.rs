//! Who a tenant's packets came from, and by which of the node's addresses.

use crate::word::Word;

/// Flows that one node remembers for each tenant. A packet to a gateway on
/// another node leaves from the port of its flow, so this many are reserved.
pub const FLOWS: usize = 128;

/// Flows among which one is looked for.
pub const FLOW_WAYS: usize = 8;

/// One client's address and port, and where its replies go.
///
/// Written without a lock: whoever reads it holds the key's check against the
/// other words, so that two writers at once make an entry that nobody takes.
#[repr(C)]
#[derive(Default)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Flow {
    /// The client's [`crate::Address`].
    pub address: [Word; 2],
    /// A check over address and port in the upper half; then the client's port,
    /// in host order, and at last the index into [`crate::Edge::own`] of the
    /// address that the client sent to. Zero is none.
    pub key: Word,
    /// The [`crate::tick`] of the client's last packet in the upper half, of
    /// the last reply that proved the flow in the lower.
    pub seen: Word,
    /// A session index that the client used and this node does not know in the
    /// upper half; the last under which the client wants to be answered in the
    /// lower.
    pub indexes: Word,
}

/// A tenant's flows. Value of [`crate::map::FLOWS`], by slot: nobody's flows
/// can be pushed out by another tenant's.
#[repr(C)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Flows(pub [Flow; FLOWS]);

impl Default for Flows {
    fn default() -> Self {
        Self(core::array::from_fn(|_| Flow::default()))
    }
}

impl Flow {
    /// The key's parts: check, port, and index of the own address.
    #[inline(always)]
    #[must_use]
    pub const fn key(check: u32, port: u16, own: u8) -> u64 {
        (check as u64) << 32 | (port as u64) << 16 | own as u64
    }
}
