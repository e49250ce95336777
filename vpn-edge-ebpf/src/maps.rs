//! The maps, and the only places that read them.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use vpn_edge_common::{Allocation, Counters, Edge, SLOTS};

/// By UDP port in host order. As long as there are ports, so that no packet
/// can miss the array.
#[map]
static ALLOCATIONS: Array<Allocation> = Array::pinned(1 << 16, 0);

#[map]
static EDGE: Array<Edge> = Array::pinned(1, 0);

/// By [`Allocation::slot`].
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::pinned(SLOTS, 0);

#[inline(always)]
pub fn allocation(port: u16) -> Option<&'static Allocation> {
    ALLOCATIONS.get(u32::from(port))
}

#[inline(always)]
pub fn edge() -> Option<&'static Edge> {
    EDGE.get(0)
}

#[inline(always)]
pub fn counters(slot: u16) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(u32::from(slot))
}
