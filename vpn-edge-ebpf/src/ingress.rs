//! Client to gateway: the decision carried out, in XDP and in tc.

use crate::count;
use crate::maps::Kernel;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{
    bpf_redirect, bpf_redirect_peer, bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_xdp_adjust_head,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use vpn_edge_common::DropReason;
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::parse::ETHERNET;
use vpn_edge_ebpf::rewrite;
use vpn_edge_ebpf::steer::{Refusal, Rung, decide, v4};

/// What the decision reads at most: Ethernet with two tags, IPv4, UDP, and a
/// handshake message.
const HEADERS: u32 = 14 + 8 + 20 + 8 + 148;

#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> Result<u32, Refusal> {
    let frame = xdp_frame(ctx);
    let steered = decide(&Kernel, &frame, Rung::Xdp)?;
    let allocation = steered.allocation;
    let refuse = Refusal::Drop {
        slot: allocation.slot,
        reason: DropReason::Rewrite,
    };
    let tags = rewrite::to_gateway(&frame, &steered).ok_or(refuse)?;
    count::ingress(
        allocation.slot,
        steered.datagram.ip_length,
        steered.admitted,
    );
    if tags != 0 {
        // SAFETY: `ctx` is the hook's own; no view is used after this.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, tags as i32) } != 0 {
            return Err(refuse);
        }
    }
    // SAFETY: a plain helper call.
    Ok(unsafe { bpf_redirect(allocation.ifindex, 0) } as u32)
}

#[inline(always)]
pub fn tc(ctx: &TcContext) -> Result<i32, Refusal> {
    let skb = ctx.skb.skb;
    // SAFETY: the hook's own skb.
    let frame = frame(ctx).merged_if(unsafe { (*skb).gso_size } != 0);
    let steered = decide(&Kernel, &frame, Rung::Tc)?;
    let allocation = steered.allocation;
    let refuse = Refusal::Drop {
        slot: allocation.slot,
        reason: DropReason::Rewrite,
    };
    let (old, new) = (steered.destination, v4(&allocation.gateway));
    count::ingress(
        allocation.slot,
        steered.datagram.ip_length,
        steered.admitted,
    );

    // The outermost tag is in the skb's metadata, others are in the frame.
    // SAFETY: the hook's own skb.
    let mut tags = (steered.l3 - ETHERNET) / 4 + unsafe { (*skb).vlan_present } as usize;
    for _ in 0..3 {
        if tags == 0 {
            break;
        }
        // SAFETY: as above; no view is used after this.
        if unsafe { bpf_skb_vlan_pop(skb) } != 0 {
            return Err(refuse);
        }
        tags -= 1;
    }
    address(ctx, 16, old, new).ok_or(refuse)?;
    store(ctx, 0, &allocation.frame).ok_or(refuse)?;
    // SAFETY: a plain helper call.
    Ok(unsafe { bpf_redirect_peer(allocation.ifindex, 0) } as i32)
}

/// The frame as XDP has it.
#[inline(always)]
pub fn xdp_frame(ctx: &XdpContext) -> Frame<'_> {
    let (start, end) = (ctx.data(), ctx.data_end());
    // SAFETY: the kernel vouches for the bytes between the two.
    unsafe { Frame::new(start, end, end - start) }
}

/// The skb's frame, its headers pulled in where they were not linear.
#[inline(always)]
pub fn frame(ctx: &TcContext) -> Frame<'_> {
    if ctx.data() + HEADERS as usize > ctx.data_end() {
        let wanted = if ctx.len() < HEADERS {
            ctx.len()
        } else {
            HEADERS
        };
        // A failure leaves the data as it is, and the parser judges that.
        let _ = ctx.pull_data(wanted);
    }
    // SAFETY: the kernel vouches for the bytes between the two.
    unsafe { Frame::new(ctx.data(), ctx.data_end(), ctx.len() as usize) }
}

/// Changes the IPv4 address at `at` bytes into the header of an untagged
/// frame, and both checksums with it, whatever state the skb keeps them in.
#[inline(always)]
pub fn address(ctx: &TcContext, at: usize, old: u32, new: u32) -> Option<()> {
    const UDP_CHECKSUM: usize = ETHERNET + 26;
    const IP_CHECKSUM: usize = ETHERNET + 10;
    let flags = u64::from(BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0) | 4;
    let (old, fresh) = (u64::from(old), u64::from(new));
    ctx.l4_csum_replace(UDP_CHECKSUM, old, fresh, flags).ok()?;
    ctx.l3_csum_replace(IP_CHECKSUM, old, fresh, 4).ok()?;
    store(ctx, ETHERNET + at, &[new])
}

#[inline(always)]
fn store<const N: usize>(ctx: &TcContext, at: usize, words: &[u32; N]) -> Option<()> {
    // The checksum was kept up by hand; the skb's own sum over the frame, if
    // it has one, starts behind the Ethernet header and already follows.
    let (from, length) = (words.as_ptr().cast(), 4 * N as u32);
    // SAFETY: `from` has `length` bytes, and the kernel checks the skb's bounds.
    let done = unsafe { bpf_skb_store_bytes(ctx.skb.skb, at as u32, from, length, 0) };
    (done == 0).then_some(())
}
