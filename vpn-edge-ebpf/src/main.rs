//! The programs: hooks in, verdicts out.
//!
//! Each entry is one expression. Everything that can refuse a packet returns a
//! [`Refusal`], and only the entries turn it into a verdict, so what passes and
//! what is dropped can be read here.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    // The programs exist for the kernel alone; the host build tests the library.
}

#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod egress;
#[cfg(target_arch = "bpf")]
mod errors;
#[cfg(target_arch = "bpf")]
mod ingress;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod route_cache;
#[cfg(target_arch = "bpf")]
mod skb;

#[cfg(target_arch = "bpf")]
mod entries {
    use crate::{count, egress, errors, ingress, skb};
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use vpn_edge_ebpf::steer::Refusal;

    // On to the next program: under clsact by this name, under tcx as TCX_NEXT.
    const TC_NEXT: i32 = TC_ACT_UNSPEC;

    #[xdp]
    #[inline(always)]
    pub fn ingress(ctx: XdpContext) -> u32 {
        xdp::<false>(&ctx)
    }

    /// For frames of several fragments, from Linux 5.18.
    #[xdp(frags)]
    #[inline(always)]
    pub fn ingress_frags(ctx: XdpContext) -> u32 {
        xdp::<true>(&ctx)
    }

    #[inline(always)]
    fn xdp<const FRAGMENTS: bool>(ctx: &XdpContext) -> u32 {
        match ingress::xdp::<FRAGMENTS>(ctx) {
            Ok(verdict) => verdict,
            Err(Refusal::Pass) => xdp_action::XDP_PASS,
            Err(Refusal::Drop { slot, reason }) => {
                count::drop(&ingress::xdp_frame::<FRAGMENTS>(ctx), slot, reason);
                xdp_action::XDP_DROP
            }
        }
    }

    #[classifier]
    #[inline(always)]
    pub fn ingress_tc(ctx: TcContext) -> i32 {
        match ingress::tc(&ctx) {
            Ok(verdict) => verdict,
            Err(Refusal::Pass) => errors::tc(&ctx).unwrap_or(TC_NEXT),
            Err(Refusal::Drop { slot, reason }) => {
                count::drop(&skb::frame(&ctx), slot, reason);
                TC_ACT_SHOT
            }
        }
    }

    #[classifier]
    #[inline(always)]
    pub fn egress(ctx: TcContext) -> i32 {
        match egress::tc(&ctx) {
            Ok(verdict) => verdict,
            Err(Refusal::Pass) => TC_NEXT,
            Err(Refusal::Drop { slot, reason }) => {
                count::drop(&skb::frame(&ctx), slot, reason);
                TC_ACT_SHOT
            }
        }
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panic is reachable; one that were would fail verification.
    unsafe { core::hint::unreachable_unchecked() }
}

// The redirect_neigh and redirect_peer helpers are for GPL programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
