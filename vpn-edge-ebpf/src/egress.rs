//! Gateway to client: the node's address put back, and out by the uplink.
//!
//! In tc, because packets from a local stack carry partial checksums and may
//! be segmented later. Whatever is not the gateway's WireGuard traffic with the
//! outside goes on to the kernel, so a connection that came in through
//! kube-proxy keeps working.

use crate::count;
use crate::maps::{self, Kernel};
use crate::skb::{self, Field, frame};
use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::programs::TcContext;
use vpn_edge_common::{Allocation, DropReason, Edge, Own, mode, words};
use vpn_edge_ebpf::flow::{self, Client};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::guard::{Direction, within_plan};
use vpn_edge_ebpf::map_access::MapAccess;
use vpn_edge_ebpf::parse::{ETHERNET, Located, locate};
use vpn_edge_ebpf::steer::{self, Refusal};
use vpn_edge_ebpf::{log, session};

#[inline(always)]
pub fn tc(ctx: &TcContext) -> Result<i32, Refusal> {
    let frame = frame(ctx);
    let located = locate(&frame).map_err(|_| Refusal::Pass)?;
    let allocation = Kernel
        .allocation(located.source_port)
        .ok_or(Refusal::Pass)?;
    // SAFETY: the hook's own skb.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let ours = (allocation.mode == mode::XDP || allocation.mode == mode::TC)
        && allocation.ifindex == ifindex
        && located.source == allocation.gateway(located.version)
        && located.l3 == ETHERNET;
    if !ours {
        return Err(Refusal::Pass);
    }
    let edge = Kernel.edge().ok_or(Refusal::Pass)?;
    if steer::own(edge, located.destination).is_some() {
        return Err(Refusal::Pass);
    }
    let drop = |reason| Refusal::Drop {
        slot: allocation.slot,
        reason,
    };
    let bytes = ctx.len() - ETHERNET as u32;
    // SAFETY: as above. One that is yet to be segmented says into how many.
    let packets = unsafe { (*ctx.skb.skb).gso_segs }.max(1);
    within_plan(&Kernel, allocation, Direction::Egress, packets, bytes).map_err(drop)?;
    let announced = announce(&frame, &located, allocation.slot, edge.session_life);
    let own = own(&located, allocation, edge, announced);
    let (source, uplink) = (words(&own.address), own.uplink);
    if source == [0, 0] {
        return Err(drop(DropReason::NoRoute));
    }
    let (version, old) = (located.version, located.source);
    skb::address(ctx, version, Field::Source, old, source).ok_or(drop(DropReason::Rewrite))?;
    count::egress(allocation.slot, packets, bytes, announced);
    // SAFETY: a plain helper call; without parameters the kernel finds the
    // next hop on the uplink itself, and resolves it if need be.
    Ok(unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) } as i32)
}

/// The address that the client is answered from. Where there are several, it
/// is the one that the client sent to.
#[inline(always)]
fn own(
    located: &Located,
    allocation: &Allocation,
    edge: &'static Edge,
    announced: bool,
) -> &'static Own {
    let primary = steer::primary(edge, located.version);
    if edge.several == 0 && !announced {
        return primary;
    }
    let Some(flows) = Kernel.flows(allocation.slot) else {
        return primary;
    };
    let client = Client::new(edge.seed, located.destination, located.destination_port);
    let Some(flow) = client
        .find(flows)
        .and_then(|at| flow::at(flows, at, edge.seed))
    else {
        if edge.several != 0 {
            let [high, low] = located.destination;
            let (tenant, port) = (located.source_port, located.destination_port);
            log::answered_from_primary(tenant, high, low, port);
        }
        return primary;
    };
    flow.confirm(Kernel.tick());
    let Some(own) = edge.own.get(usize::from(flow.own)) else {
        return primary;
    };
    // An address may have gone since, or have become one of the other version.
    let as_well = |address| vpn_edge_common::is_mapped(words(address));
    let same = as_well(&own.address) == as_well(&primary.address);
    if same && own.uplink != 0 {
        own
    } else {
        primary
    }
}

/// Learns the session index that a handshake message of the gateway announces,
/// before its answer can come.
#[inline(always)]
fn announce(frame: &Frame<'_>, located: &Located, slot: u16, life: u32) -> bool {
    let Some(index) = announced(frame, located) else {
        return false;
    };
    let Some(sessions) = Kernel.sessions(slot) else {
        return false;
    };
    let expiry = Kernel.tick() + life;
    session::announce(session::bucket(sessions, index), index, expiry);
    let [high, low] = located.destination;
    let (tenant, port) = (located.source_port, located.destination_port);
    log::session_announced(tenant, high, low, port, index);
    maps::set_clock();
    true
}

#[inline(always)]
fn announced(frame: &Frame<'_>, located: &Located) -> Option<u32> {
    let datagram = located.datagram(frame).ok()?;
    let (first, index) = (datagram.message(), datagram.index());
    session::announced(first, index, datagram.message_length)
}
