//! ICMP errors on their way to whom they are for, in tc: there are few.

use crate::count;
use crate::maps::{self, Kernel};
use crate::route::{self, Route};
use crate::skb::{self, store};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use vpn_edge_common::{Words, unmapped_words};
use vpn_edge_ebpf::checksum::Change;
use vpn_edge_ebpf::forwarding::{Endpoints, Forwarding};
use vpn_edge_ebpf::icmp::{HEADER, IcmpForward, decide, version};
use vpn_edge_ebpf::log;
use vpn_edge_ebpf::map_access::MapAccess;
use vpn_edge_ebpf::parse::{ETHERNET, IPV4, IPV6};

/// Sends an error where it belongs: a verdict, or nothing if it is none of
/// ours, or cannot be sent, and then it is as it came.
#[inline(always)]
pub fn tc(ctx: &TcContext) -> Option<i32> {
    let forward = maps::forward()?;
    if !is_ours(ctx.skb.skb, forward) {
        return None;
    }
    if forward.gateway == 0 && !find_way(ctx.skb.skb, forward, Kernel.forwarding()?) {
        log::error_without_route(&forward.outer[1][1]);
        return None;
    }
    count::error(forward.slot);
    // One that is changed in part is nobody's.
    const SHOT: i32 = 2;
    if !change(ctx.skb.skb, forward) {
        return Some(SHOT);
    }
    if forward.gateway != 0 {
        // SAFETY: a plain helper call.
        return Some(unsafe { bpf_redirect_peer(forward.gateway, 0) } as i32);
    }
    // SAFETY: as above.
    Some(unsafe { bpf_redirect_neigh(forward.uplink, core::ptr::null_mut(), 0, 0) } as i32)
}

/// Functions for their own stacks, this and the next two.
#[inline(never)]
fn is_ours(skb: *mut __sk_buff, forward: &mut IcmpForward) -> bool {
    let ctx = TcContext::new(skb);
    let frame = skb::frame(&ctx);
    decide(&Kernel, &frame, forward).is_some()
}

#[inline(never)]
fn find_way(skb: *mut __sk_buff, forward: &mut IcmpForward, forwarding: &mut Forwarding) -> bool {
    let [_, [source, destination]] = forward.outer;
    forwarding.to = Endpoints::new(source, 0, destination, 0);
    forwarding.is_v6 = forward.is_v6;
    forwarding.length = forward.length;
    forwarding.uplink = forward.uplink;
    // SAFETY: the hook's own skb.
    let ingress = unsafe { (*skb).ifindex };
    // SAFETY: as above.
    let route = unsafe { route::ask(skb.cast(), forwarding, ingress) };
    forward.uplink = forwarding.uplink;
    matches!(route, Route::Found | Route::Unresolved)
}

#[inline(never)]
fn change(skb: *mut __sk_buff, forward: &IcmpForward) -> bool {
    let ctx = &TcContext::new(skb);
    let changed = || {
        skb::untag(ctx, forward.tags.into())?;
        if forward.is_v6 {
            v6(ctx, forward)?;
        } else {
            v4(ctx, forward)?;
        }
        if forward.gateway != 0 {
            return store(ctx, 0, &forward.frame);
        }
        let [old, new] = forward.hops;
        skb::hop_limit(ctx, version(forward), old, new)
    };
    changed().is_some()
}

#[inline(always)]
fn v4(ctx: &TcContext, forward: &IcmpForward) -> Option<()> {
    const QUOTED: usize = ETHERNET + IPV4 + HEADER;
    let [from, to] = &forward.outer;
    addresses(ctx, ETHERNET, *from, *to)?;
    let [from, to] = &forward.inner;
    // With its own checksum kept, the quoted header's sum stays what it is.
    let pair = |ends: &Endpoints| [ends.source, ends.destination];
    addresses(ctx, QUOTED, pair(from), pair(to))?;
    let change = Change::default().word(from.ports, to.ports).partial();
    ctx.l4_csum_replace(ETHERNET + IPV4 + 2, 0, u64::from(change), 0)
        .ok()?;
    store(ctx, QUOTED + IPV4, &[to.ports])
}

/// Changes the addresses of the IPv4 header at `at`, and its checksum.
#[inline(always)]
fn addresses(ctx: &TcContext, at: usize, from: [Words; 2], to: [Words; 2]) -> Option<()> {
    let [source, destination] = to.map(unmapped_words);
    let change = Change::default()
        .word(unmapped_words(from[0]), source)
        .word(unmapped_words(from[1]), destination);
    ctx.l3_csum_replace(at + 10, 0, u64::from(change.partial()), 0)
        .ok()?;
    store(ctx, at + 12, &[source, destination])
}

#[inline(always)]
fn v6(ctx: &TcContext, forward: &IcmpForward) -> Option<()> {
    const QUOTED: usize = ETHERNET + IPV6 + HEADER;
    let [outer_from, outer_to] = &forward.outer;
    let [from, to] = &forward.inner;
    let skb = ctx.skb.skb;
    let changed = address(skb, ETHERNET + 8, &outer_from[0], &outer_to[0])
        && address(skb, ETHERNET + 24, &outer_from[1], &outer_to[1])
        && address(skb, QUOTED + 8, &from.source, &to.source)
        && address(skb, QUOTED + 24, &from.destination, &to.destination);
    if !changed {
        return None;
    }
    let change = Change::default().word(from.ports, to.ports).partial();
    ctx.l4_csum_replace(ETHERNET + IPV6 + 2, 0, u64::from(change), 0)
        .ok()?;
    store(ctx, QUOTED + IPV6, &[to.ports])
}

/// Changes an IPv6 address at `at`, and the error's checksum. A function for
/// its own stack.
#[inline(never)]
fn address(skb: *mut __sk_buff, at: usize, from: &Words, to: &Words) -> bool {
    let ctx = TcContext::new(skb);
    let change = Change::default().address(*from, *to).partial();
    let [a, b] = *to;
    let words = [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32];
    ctx.l4_csum_replace(ETHERNET + IPV6 + 2, 0, u64::from(change), 0)
        .is_ok()
        && store(&ctx, at, &words).is_some()
}
