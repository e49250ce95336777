//! The maps, and the only places that read them.
//!
//! What user space reads and writes word by word is mapped into its memory.

use crate::route_cache::{KNOWN, RouteCacheEntry};
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use vpn_edge_common as common;
use vpn_edge_common::{
    Allocation, Clock, Counters, Edge, Event, Flows, Limits, SLOTS, Sessions, Word, Words,
};
use vpn_edge_ebpf::forwarding::Forwarding;
use vpn_edge_ebpf::icmp::IcmpForward;
use vpn_edge_ebpf::mac1::Scratch;
use vpn_edge_ebpf::map_access::MapAccess;

/// By UDP port in host order. As long as there are ports, so that no packet
/// can miss the array.
#[map]
static ALLOCATIONS: Array<Allocation> = Array::pinned(1 << 16, BPF_F_MMAPABLE);

#[map]
static EDGE: Array<Edge> = Array::pinned(1, 0);

/// By [`Allocation::slot`], as are the next four.
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::pinned(SLOTS, 0);

#[map]
static SESSIONS: Array<Sessions> = Array::pinned(SLOTS, BPF_F_MMAPABLE);

#[map]
static REPLAYS: Array<Sessions> = Array::pinned(SLOTS, BPF_F_MMAPABLE);

#[map]
static LIMITS: Array<Limits> = Array::pinned(SLOTS, BPF_F_MMAPABLE);

#[map]
static FLOWS: Array<Flows> = Array::pinned(SLOTS, BPF_F_MMAPABLE);

#[map]
static CLOCK: Array<Clock> = Array::pinned(1, BPF_F_MMAPABLE);

#[map]
static SOURCES: Array<Word> = Array::pinned(common::SOURCES, BPF_F_MMAPABLE);

/// Programs only look up, so entries need no preallocated memory.
#[map]
static NODES: HashMap<Words, u8> = HashMap::pinned(common::NODES, BPF_F_NO_PREALLOC);

#[map]
static EVENTS: RingBuf = RingBuf::pinned(common::EVENTS, 0);

/// Not shared with anyone: one run of a program on one CPU.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// As [`SCRATCH`].
#[map]
static FORWARDING: PerCpuArray<Forwarding> = PerCpuArray::with_max_entries(1, 0);

/// As [`SCRATCH`].
#[map]
static WAYS: PerCpuArray<RouteCacheEntry> = PerCpuArray::with_max_entries(KNOWN, 0);

/// As [`SCRATCH`].
#[map]
static ICMP_FORWARD: PerCpuArray<IcmpForward> = PerCpuArray::with_max_entries(1, 0);

/// The maps and the clock, as a decision asks for them.
pub struct Kernel;

impl MapAccess<'static> for Kernel {
    #[inline(always)]
    fn allocation(&self, port: u16) -> Option<&'static Allocation> {
        ALLOCATIONS.get(u32::from(port))
    }

    #[inline(always)]
    fn edge(&self) -> Option<&'static Edge> {
        EDGE.get(0)
    }

    #[inline(always)]
    fn sessions(&self, slot: u16) -> Option<&'static Sessions> {
        SESSIONS.get(u32::from(slot))
    }

    #[inline(always)]
    fn replays(&self, slot: u16) -> Option<&'static Sessions> {
        REPLAYS.get(u32::from(slot))
    }

    #[inline(always)]
    fn limits(&self, slot: u16) -> Option<&'static Limits> {
        LIMITS.get(u32::from(slot))
    }

    #[inline(always)]
    fn flows(&self, slot: u16) -> Option<&'static Flows> {
        FLOWS.get(u32::from(slot))
    }

    #[inline(always)]
    fn source(&self, bucket: u32) -> Option<&'static Word> {
        SOURCES.get(bucket)
    }

    #[inline(always)]
    fn is_node(&self, address: Words) -> bool {
        NODES.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn scratch(&self) -> Option<&'static mut Scratch> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: the value is this CPU's own, and no program that uses it is
        // interrupted by another on the same CPU.
        Some(unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn forwarding(&self) -> Option<&'static mut Forwarding> {
        let forwarding = FORWARDING.get_ptr_mut(0)?;
        // SAFETY: as above.
        Some(unsafe { &mut *forwarding })
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a plain helper call.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn tick(&self) -> u32 {
        common::tick(jiffies())
    }
}

#[inline(always)]
fn jiffies() -> u64 {
    // SAFETY: a plain helper call, which the verifier makes a load.
    unsafe { bpf_jiffies64() }
}

/// The [`RouteCacheEntry`] at a place.
#[inline(always)]
pub fn known_way(at: u32) -> Option<&'static mut RouteCacheEntry> {
    let known = WAYS.get_ptr_mut(at)?;
    // SAFETY: as for the scratch.
    Some(unsafe { &mut *known })
}

/// Counts every fourth of the kernel's ticks, never zero: 4 ms to 40.
#[inline(always)]
pub fn cache_epoch() -> u32 {
    (jiffies() >> 2) as u32 | 1 << 31
}

/// Tells user space what time the programs have.
#[inline(always)]
pub fn set_clock() {
    if let Some(clock) = CLOCK.get(0) {
        clock.jiffies.store(jiffies());
        clock.nanoseconds.store(Kernel.now());
    }
}

/// Room for an ICMP error: this CPU's own.
#[inline(always)]
pub fn forward() -> Option<&'static mut IcmpForward> {
    let forward = ICMP_FORWARD.get_ptr_mut(0)?;
    // SAFETY: as for the scratch.
    Some(unsafe { &mut *forward })
}

#[inline(always)]
pub fn counters(slot: u16) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(u32::from(slot))
}

/// Hands a sampled drop to whoever follows them; lost if nobody does.
#[inline(always)]
pub fn report(event: Event) {
    if let Some(mut entry) = EVENTS.reserve::<Event>(0) {
        entry.write(event);
        entry.submit(0);
    }
}
