//! The one place for each counter.

use crate::maps::{self, Kernel};
use vpn_edge_common::{Counters, DropReason, Event, address};
use vpn_edge_ebpf::frame::{Frame, masked};
use vpn_edge_ebpf::guard::Admitted;
use vpn_edge_ebpf::map_access::MapAccess;
use vpn_edge_ebpf::parse::locate;

#[inline(always)]
pub fn ingress(slot: u16, bytes: u32, admitted: Admitted) {
    with(slot, |counters| {
        counters.ingress_packets += 1;
        counters.ingress_bytes += u64::from(bytes);
        match admitted {
            Admitted::Session => {}
            Admitted::Handshake => counters.handshakes += 1,
            Admitted::Grace => counters.graced += 1,
            Admitted::Relayed => counters.relayed += 1,
        }
    });
}

#[inline(always)]
pub fn egress(slot: u16, packets: u32, bytes: u32, announced: bool) {
    with(slot, |counters| {
        counters.egress_packets += u64::from(packets);
        counters.egress_bytes += u64::from(bytes);
        counters.announced += u64::from(announced);
    });
}

#[inline(always)]
pub fn error(slot: u16) {
    with(slot, |counters| counters.errors += 1);
}

/// Counts a drop, and once a tick for each reason tells what was dropped.
#[inline(always)]
pub fn drop(frame: &Frame<'_>, slot: u16, reason: DropReason) {
    with(slot, |counters| {
        let at = masked::<31>(reason as usize);
        let (Some(drops), Some(sampled)) =
            (counters.drops.get_mut(at), counters.sampled.get_mut(at))
        else {
            return;
        };
        *drops += 1;
        let now = Kernel.tick();
        if *sampled != now {
            *sampled = now;
            let (start, end) = frame.bounds();
            let what = u64::from(slot) << 32 | reason as u64;
            report_drop(start, end, frame.length(), *drops, what);
        }
    });
}

/// [`sample`] as a function for its own stack, which a flood hardly ever calls:
/// `what` is the slot and, in its lower half, the reason.
#[inline(never)]
fn report_drop(start: usize, end: usize, length: usize, count: u64, what: u64) {
    // SAFETY: the bounds are those of a frame that the caller has.
    let frame = unsafe { Frame::new(start, end, length) };
    sample(&frame, (what >> 32) as u16, count, what as u8);
}

#[inline(always)]
fn sample(frame: &Frame<'_>, slot: u16, count: u64, reason: u8) {
    let Ok(located) = locate(frame) else {
        return;
    };
    // One of the two ports is the tenant's, whichever way the packet went. The
    // client's may be another tenant's.
    let allocation = Kernel
        .allocation(located.destination_port)
        .filter(|allocation| allocation.mode != 0 && allocation.slot == slot)
        .or_else(|| Kernel.allocation(located.source_port));
    maps::report(Event {
        time: Kernel.now(),
        count,
        tenant: allocation.map_or([0; 16], |allocation| allocation.tenant),
        source: address(located.source),
        source_port: located.source_port,
        destination_port: located.destination_port,
        length: frame.length() as u16,
        reason,
        message: frame
            .view::<1>(located.message())
            .map_or(0, |first| first.u8::<0>()),
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
