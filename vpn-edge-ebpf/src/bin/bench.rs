//! Programs to measure against, and to measure with. Not part of the product.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    // The programs exist for the kernel alone.
}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::{Array, DevMap, PerCpuArray};
    use aya_ebpf::programs::XdpContext;
    use vpn_edge_common::bench::{FRAME, Template};
    use vpn_edge_ebpf::checksum;
    use vpn_edge_ebpf::frame::Frame;

    /// Where `redirect` sends to.
    #[map]
    static TARGETS: DevMap = DevMap::with_max_entries(1, 0);

    #[map]
    static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

    /// Frames that `generate` sent and `count` took.
    #[map]
    static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static TAKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    /// The loop that program costs are told from.
    #[xdp]
    pub fn empty(_ctx: XdpContext) -> u32 {
        XDP_PASS
    }

    /// The least that steering can be: new MAC addresses, and a redirect.
    #[xdp]
    pub fn redirect(ctx: XdpContext) -> u32 {
        try_redirect(&ctx).unwrap_or(XDP_ABORTED)
    }

    #[inline(always)]
    fn try_redirect(ctx: &XdpContext) -> Option<u32> {
        let ethernet = frame(ctx).view::<14>(0)?;
        ethernet.write_addresses(FRAME);
        Some(TARGETS.redirect(0, 0).unwrap_or(XDP_ABORTED))
    }

    /// Makes the frame anew, as the one before may have been rewritten in the
    /// same memory, and sends it off. Source ports go round the flows.
    #[xdp]
    pub fn generate(ctx: XdpContext) -> u32 {
        try_generate(&ctx).unwrap_or(XDP_ABORTED)
    }

    #[inline(always)]
    fn try_generate(ctx: &XdpContext) -> Option<u32> {
        let template = TEMPLATE.get(0)?;
        let sent = count(&SENT)?;
        let flow = (sent & u64::from(template.flow_mask)) as u16;
        let packet = frame(ctx).view::<42>(0)?;
        packet.write::<0, 42>(template.headers);
        let port = u16::from_be_bytes([template.headers[34], template.headers[35]]);
        packet.write_u16::<34>(port.wrapping_add(flow));
        let (old, new) = (
            u32::from(port.to_be()),
            u32::from(port.wrapping_add(flow).to_be()),
        );
        let sum = packet.u16::<40>().to_be();
        packet.write_u16::<40>(u16::from_be(checksum::replace_udp(sum, old, new)));
        Some(XDP_TX)
    }

    /// The far end: counts and takes the frame off.
    #[xdp]
    pub fn count_and_drop(_ctx: XdpContext) -> u32 {
        count(&TAKEN).map_or(XDP_ABORTED, |_| XDP_DROP)
    }

    #[inline(always)]
    fn frame(ctx: &XdpContext) -> Frame<'_> {
        let (start, end) = (ctx.data(), ctx.data_end());
        // SAFETY: the kernel vouches for the bytes between the two.
        unsafe { Frame::new(start, end, end - start) }
    }

    #[inline(always)]
    fn count(counter: &PerCpuArray<u64>) -> Option<u64> {
        let count = counter.get_ptr_mut(0)?;
        // SAFETY: the value is this CPU's own.
        unsafe {
            *count += 1;
            Some(*count)
        }
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panic is reachable; one that were would fail verification.
    unsafe { core::hint::unreachable_unchecked() }
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
