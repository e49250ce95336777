//! Gateway to client: the node's address put back, and out by the uplink.
//!
//! In tc, because packets from a local stack carry partial checksums and may
//! be segmented later. Whatever is not the gateway's WireGuard traffic with the
//! outside goes on to the kernel, so a connection that came in through
//! kube-proxy keeps working.

use crate::ingress::{address, frame};
use crate::{count, maps};
use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::programs::TcContext;
use vpn_edge_common::{DropReason, mode};
use vpn_edge_ebpf::parse::{ETHERNET, locate};
use vpn_edge_ebpf::steer::{Refusal, v4};

#[inline(always)]
pub fn tc(ctx: &TcContext) -> Result<i32, Refusal> {
    let located = locate(&frame(ctx)).ok_or(Refusal::Pass)?;
    let allocation = maps::allocation(located.source_port).ok_or(Refusal::Pass)?;
    // SAFETY: the hook's own skb.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let ours = allocation.mode > mode::CLOSED
        && allocation.ifindex == ifindex
        && located.source == v4(&allocation.gateway)
        && located.l3 == ETHERNET;
    if !ours {
        return Err(Refusal::Pass);
    }
    let edge = maps::edge().ok_or(Refusal::Pass)?;
    let node = v4(&edge.address);
    if located.destination == node {
        return Err(Refusal::Pass);
    }
    address(ctx, 12, located.source, node).ok_or(Refusal::Drop {
        slot: allocation.slot,
        reason: DropReason::Rewrite,
    })?;
    count::egress(allocation.slot, ctx.len() - ETHERNET as u32);
    // SAFETY: a plain helper call; without parameters the kernel finds the
    // next hop on the uplink itself, and resolves it if need be.
    Ok(unsafe { bpf_redirect_neigh(edge.uplink, core::ptr::null_mut(), 0, 0) } as i32)
}
