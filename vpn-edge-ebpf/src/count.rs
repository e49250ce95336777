//! The one place for each counter.

use crate::maps;
use vpn_edge_common::{Counters, DropReason};

#[inline(always)]
pub fn ingress(slot: u16, bytes: u16) {
    with(slot, |counters| {
        counters.ingress_packets += 1;
        counters.ingress_bytes += u64::from(bytes);
    });
}

#[inline(always)]
pub fn egress(slot: u16, bytes: u32) {
    with(slot, |counters| {
        counters.egress_packets += 1;
        counters.egress_bytes += u64::from(bytes);
    });
}

#[inline(always)]
pub fn drop(slot: u16, reason: DropReason) {
    with(slot, |counters| {
        if let Some(count) = counters.drops.get_mut(reason as usize) {
            *count += 1;
        }
    });
}

#[inline(always)]
fn with(slot: u16, change: impl FnOnce(&mut Counters)) {
    if let Some(counters) = maps::counters(slot) {
        // SAFETY: the value is this CPU's own, and no program here is
        // interrupted by another on the same CPU while it counts.
        change(unsafe { &mut *counters });
    }
}
