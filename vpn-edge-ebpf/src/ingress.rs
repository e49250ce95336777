//! What an uplink takes in: the decision carried out, in XDP and in tc.

use crate::maps::Kernel;
use crate::route::{self, Route};
use crate::{count, skb};
use aya_ebpf::bindings::xdp_action::XDP_TX;
use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_xdp_adjust_head};
use aya_ebpf::programs::{TcContext, XdpContext};
use vpn_edge_common::{DropReason, Edge, UPLINKS};
use vpn_edge_ebpf::forwarding::Forwarding;
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::parse::{self, ETHERNET};
use vpn_edge_ebpf::rewrite;
use vpn_edge_ebpf::steer::{Hook, NextHop, Refusal, decide};
use vpn_edge_ebpf::{guard, log};

/// What became of a packet that was to leave the node again, as the functions
/// below say it.
mod sent {
    /// Not sent: the tc stage is to do it, or the kernel.
    pub const PASS: u32 = 0x100;
    pub const TOO_BIG: u32 = 0x101;
    pub const NO_ROUTE: u32 = 0x102;
    pub const UNCHANGED: u32 = 0x103;
}

#[inline(always)]
pub fn xdp<const FRAGMENTS: bool>(ctx: &XdpContext) -> Result<u32, Refusal> {
    let frame = xdp_frame::<FRAGMENTS>(ctx);
    let steered = decide(&Kernel, &frame, Hook::Xdp)?;
    let (slot, length) = (steered.allocation.slot, steered.datagram.ip_length);
    match steered.next_hop {
        NextHop::Gateway { admission, gateway } => {
            let refuse = Refusal::Drop {
                slot,
                reason: DropReason::Rewrite,
            };
            let (frame_addresses, ifindex) = (steered.allocation.frame, steered.allocation.ifindex);
            let tags = rewrite::to_gateway(&frame, &steered.located, gateway, frame_addresses)
                .ok_or(refuse)?;
            count::ingress(slot, length, admission.by);
            cut(ctx.ctx, tags).ok_or(refuse)?;
            // SAFETY: a plain helper call.
            Ok(unsafe { bpf_redirect(ifindex, 0) } as u32)
        }
        NextHop::Node {
            admission,
            forwarding,
        } => {
            let allocation = steered.allocation;
            let outcome = sent(xdp_send(ctx.ctx, forwarding, steered.edge), slot);
            match outcome {
                Ok(_) => count::ingress(slot, length, admission.by),
                // The tc stage judges it anew.
                Err(Refusal::Pass) => guard::forget(&Kernel, allocation, admission),
                Err(_) => {}
            }
            outcome
        }
        NextHop::Client { forwarding } => {
            let verdict = sent(xdp_send(ctx.ctx, forwarding, steered.edge), slot)?;
            count::egress(slot, 1, length, false);
            Ok(verdict)
        }
    }
}

#[inline(always)]
pub fn tc(ctx: &TcContext) -> Result<i32, Refusal> {
    // SAFETY: the hook's own skb.
    let merged = unsafe { (*ctx.skb.skb).gso_size } != 0;
    let frame = skb::frame(ctx).merged_if(merged);
    let steered = decide(&Kernel, &frame, Hook::Tc)?;
    let allocation = steered.allocation;
    let (slot, length) = (allocation.slot, steered.datagram.ip_length);
    let (forwarding, by) = match steered.next_hop {
        NextHop::Gateway { admission, gateway } => {
            count::ingress(slot, length, admission.by);
            let located = &steered.located;
            let (version, old) = (located.version, located.destination);
            let refuse = Refusal::Drop {
                slot,
                reason: DropReason::Rewrite,
            };
            skb::untag(ctx, (located.l3 - ETHERNET) as u32).ok_or(refuse)?;
            skb::address(ctx, version, skb::Field::Destination, old, gateway).ok_or(refuse)?;
            skb::store(ctx, 0, &allocation.frame).ok_or(refuse)?;
            // SAFETY: a plain helper call.
            return Ok(unsafe { bpf_redirect_peer(allocation.ifindex, 0) } as i32);
        }
        NextHop::Node {
            admission,
            forwarding,
        } => (forwarding, Some(admission.by)),
        NextHop::Client { forwarding } => (forwarding, None),
    };
    let verdict = sent(tc_send(ctx.skb.skb, forwarding), slot)?;
    match by {
        Some(by) => count::ingress(slot, length, by),
        None => count::egress(slot, 1, length, false),
    }
    Ok(verdict as i32)
}

#[inline(always)]
fn sent(code: u32, slot: u16) -> Result<u32, Refusal> {
    let reason = match code {
        sent::PASS => return Err(Refusal::Pass),
        sent::TOO_BIG => DropReason::TooBig,
        sent::NO_ROUTE => DropReason::NoRoute,
        sent::UNCHANGED => DropReason::Rewrite,
        verdict => return Ok(verdict),
    };
    Err(Refusal::Drop { slot, reason })
}

/// Sends the packet out, if its next hop is known and XDP sends by the
/// interface: a verdict, or one of [`sent`].
#[inline(always)]
fn xdp_send(ctx: *mut xdp_md, forwarding: &mut Forwarding, edge: &Edge) -> u32 {
    // SAFETY: the hook's own context.
    let ingress = unsafe { (*ctx).ingress_ifindex };
    // SAFETY: as above.
    match unsafe { route::find(ctx.cast(), forwarding, ingress) } {
        Route::Found => {}
        Route::Unresolved => {
            log::left_to_tc_unresolved(forwarding);
            return sent::PASS;
        }
        Route::TooBig => return sent::TOO_BIG,
        Route::None => return sent::NO_ROUTE,
    }
    let ifindex = forwarding.uplink;
    if !(0..UPLINKS).any(|at| edge.uplinks[at] == ifindex) {
        log::left_to_tc_interface(forwarding);
        return sent::PASS;
    }
    if !xdp_change(ctx, forwarding) {
        return sent::UNCHANGED;
    }
    if ifindex == ingress {
        return XDP_TX;
    }
    // SAFETY: a plain helper call.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// Makes the packet what it is to be. A function for its own stack, as is
/// [`tc_send`].
#[inline(never)]
fn xdp_change(ctx: *mut xdp_md, forwarding: &Forwarding) -> bool {
    // SAFETY: the hook's own context.
    let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    // SAFETY: the kernel vouches for the bytes between the two.
    let frame = unsafe { Frame::new(start, end, end - start) };
    rewrite::to_ends(&frame, forwarding)
        .and_then(|tags| cut(ctx, tags))
        .is_some()
}

/// Sends the packet out; the kernel resolves its next hop, if need be.
#[inline(never)]
fn tc_send(skb: *mut __sk_buff, forwarding: &mut Forwarding) -> u32 {
    let ctx = &TcContext::new(skb);
    // SAFETY: the hook's own skb.
    let ingress = unsafe { (*skb).ifindex };
    // SAFETY: as above.
    match unsafe { route::ask(skb.cast(), forwarding, ingress) } {
        Route::Found | Route::Unresolved => {}
        Route::TooBig => return sent::TOO_BIG,
        Route::None => return sent::NO_ROUTE,
    }
    let changed = skb::untag(ctx, forwarding.tags).and_then(|()| skb::ends(ctx, forwarding));
    if changed.is_none() {
        return sent::UNCHANGED;
    }
    // SAFETY: a plain helper call.
    unsafe { bpf_redirect_neigh(forwarding.uplink, core::ptr::null_mut(), 0, 0) as u32 }
}

/// Cuts `tags` bytes off in front. No view is good after this.
#[inline(always)]
fn cut(ctx: *mut xdp_md, tags: usize) -> Option<()> {
    // SAFETY: `ctx` is the hook's own.
    let cut = || unsafe { bpf_xdp_adjust_head(ctx, tags as i32) } == 0;
    (tags == 0 || cut()).then_some(())
}

/// The frame as XDP has it.
#[inline(always)]
pub fn xdp_frame<const FRAGMENTS: bool>(ctx: &XdpContext) -> Frame<'_> {
    let (start, end) = (ctx.data(), ctx.data_end());
    // SAFETY: the kernel vouches for the bytes between the two.
    let frame = unsafe { Frame::new(start, end, end - start) };
    // A call of the kernel costs as much as all the parsing, and hardly any
    // frame has more than can be seen.
    if !FRAGMENTS || parse::is_plain(&frame) {
        return frame;
    }
    // SAFETY: the hook's own context.
    let length = unsafe { bpf_xdp_get_buff_len(ctx.ctx) as usize };
    // SAFETY: as above.
    unsafe { Frame::new(start, end, length) }
}
