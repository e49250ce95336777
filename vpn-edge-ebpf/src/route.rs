//! The way out of the node, as the kernel's routes say.

use crate::maps;
use crate::route_cache::{Question, RouteCacheEntry};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use core::ffi::c_void;
use vpn_edge_common::unmapped_words;
use vpn_edge_ebpf::forwarding::Forwarding;
use vpn_edge_ebpf::log;

/// What the kernel says of a packet's way out, which it writes into the
/// [`Forwarding`].
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Interface and Ethernet addresses are known.
    Found,
    /// The interface is known, but its next hop is yet to be asked for.
    Unresolved,
    /// It is longer than the way takes.
    TooBig,
    None,
}

/// [`ask`], unless the answer is known. For XDP: tc hands the next hop to the
/// kernel anyway.
///
/// # Safety
///
/// `ctx` must be the hook's own.
#[inline(always)]
pub unsafe fn find(ctx: *mut c_void, forwarding: &mut Forwarding, ingress: u32) -> Route {
    let asked = Question {
        source: forwarding.to.source,
        destination: forwarding.to.destination,
        ingress,
        uplink: forwarding.uplink,
    };
    let era = maps::cache_epoch();
    let Some(known) = maps::known_way(asked.place()) else {
        return Route::None;
    };
    if known.era == era && known.asked == asked && forwarding.length <= known.mtu {
        forwarding.uplink = known.ifindex;
        forwarding.frame = known.frame;
        return Route::Found;
    }
    // SAFETY: as the caller's.
    let route = unsafe { ask(ctx, forwarding, ingress) };
    if route == Route::Found {
        log::route_asked(forwarding, ingress);
        *known = RouteCacheEntry {
            asked,
            era,
            ifindex: forwarding.uplink,
            mtu: forwarding.mtu,
            frame: forwarding.frame,
        };
    }
    route
}

/// Asks for packets of the node's own, that leave by the interface.
const OUTPUT: u32 = 1 << 1;
const SUCCESS: i64 = 0;
const UNSUPPORTED: i64 = 6;
const NO_NEIGHBOUR: i64 = 7;
const FRAGMENT_NEEDED: i64 = 8;

/// Finds the way for a packet that came in by `ingress`, for what it is to be.
/// A function for its own stack.
///
/// # Safety
///
/// `ctx` must be the hook's own.
#[inline(never)]
pub unsafe fn ask(ctx: *mut c_void, forwarding: &mut Forwarding, ingress: u32) -> Route {
    const UDP: u64 = 17 << 8;
    let to = &forwarding.to;
    let (ifindex, flags) = match forwarding.uplink {
        0 => (ingress, 0),
        uplink => (uplink, OUTPUT),
    };
    // The kernel's `struct bpf_fib_lookup`: family, protocol and length;
    // interface; source; destination; and what it fills in, both MAC addresses.
    let mut asked = [
        UDP | u64::from(forwarding.length) << 48,
        u64::from(ifindex),
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    if forwarding.is_v6 {
        asked[0] |= 10;
        [asked[2], asked[3]] = to.source;
        [asked[4], asked[5]] = to.destination;
    } else {
        asked[0] |= 2;
        asked[2] = u64::from(unmapped_words(to.source));
        asked[4] = u64::from(unmapped_words(to.destination));
    }
    let size = size_of_val(&asked) as i32;
    let asked = &raw mut asked;
    // SAFETY: 64 bytes, as the kernel has them.
    let answer = unsafe { bpf_fib_lookup(ctx.cast(), asked.cast(), size, flags) };
    // SAFETY: as above.
    let [length, ifindex, .., before, after] = unsafe { *asked };
    // In IPv6 the kernel heeds neither the interface nor rules for a source here.
    if forwarding.uplink != 0 && forwarding.uplink != ifindex as u32 {
        return Route::Unresolved;
    }
    forwarding.uplink = ifindex as u32;
    // Before Linux 5.12 it is the packet's length still.
    forwarding.mtu = (length >> 48) as u32;
    // The source stands from byte 52 on, the destination from 58 on.
    forwarding.frame = [
        (after >> 16) as u32,
        (after >> 48) as u32 | ((before >> 32) as u32) << 16,
        (before >> 48) as u32 | (after as u32) << 16,
    ];
    match answer {
        SUCCESS => Route::Found,
        NO_NEIGHBOUR | UNSUPPORTED => Route::Unresolved,
        FRAGMENT_NEEDED => Route::TooBig,
        _ => Route::None,
    }
}
