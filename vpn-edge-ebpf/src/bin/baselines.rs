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
    use aya_ebpf::maps::{Array, DevMap, PerCpuArray, ProgramArray};
    use aya_ebpf::programs::XdpContext;
    use vpn_edge_common::bench::{FRAME, FRAMES, Headers, REPLY, STRIDE, Template, gateway};
    use vpn_edge_ebpf::checksum;
    use vpn_edge_ebpf::frame::{Frame, View};

    /// Where `redirect` sends to.
    #[map]
    static TARGETS: DevMap = DevMap::with_max_entries(1, 0);

    #[map]
    static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

    #[map]
    static RENEWED: Array<Headers> = Array::with_max_entries(FRAMES, 0);

    /// What `renew` goes on to.
    #[map]
    static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

    /// Frames that were sent, that the far end took, and that came back.
    #[map]
    static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static TAKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static REPLIES: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    /// The loop that program costs are told from.
    #[xdp]
    pub fn empty(_ctx: XdpContext) -> u32 {
        XDP_PASS
    }

    /// The same, to be gone on to from `renew`.
    #[xdp(frags)]
    pub fn empty_next(_ctx: XdpContext) -> u32 {
        XDP_PASS
    }

    /// Makes the next of [`RENEWED`] anew, and goes on to the program that is
    /// measured. Of one kind with the product's, or it could not.
    #[xdp(frags)]
    pub fn renew(ctx: XdpContext) -> u32 {
        if let Some(()) = try_renew(&ctx) {
            // SAFETY: nothing here waits to be dropped.
            unsafe { NEXT.tail_call(&ctx, 0) };
        }
        XDP_ABORTED
    }

    #[inline(always)]
    fn try_renew(ctx: &XdpContext) -> Option<()> {
        let headers = RENEWED.get(count(&SENT)? as u32 & (FRAMES - 1))?;
        let packet = frame(ctx).view::<70>(0)?;
        packet.write_double::<2>(headers.ethernet[0]);
        packet.write_double::<10>(headers.ethernet[1]);
        packet.write_word::<18>(headers.start);
        packet.write_double::<22>(headers.rest[0]);
        packet.write_double::<30>(headers.rest[1]);
        packet.write_double::<38>(headers.rest[2]);
        packet.write_double::<46>(headers.rest[3]);
        packet.write_double::<54>(headers.rest[4]);
        packet.write_double::<62>(headers.rest[5]);
        Some(())
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
    /// same memory, and sends it off. Frames go round the flows.
    #[xdp]
    pub fn generate(ctx: XdpContext) -> u32 {
        try_generate(&ctx).unwrap_or(XDP_ABORTED)
    }

    #[inline(always)]
    fn try_generate(ctx: &XdpContext) -> Option<u32> {
        let template = TEMPLATE.get(0)?;
        let packet = frame(ctx).view::<50>(0)?;
        packet.write::<0, 50>(template.headers);

        let flow = count(&SENT)? as u32 & template.flow_mask;
        let turn = (u64::from(flow) * STRIDE).checked_rem(u64::from(template.ports))?;
        let port = packet.u16::<36>().wrapping_add(turn as u16);
        let source_port = packet.u16::<34>().wrapping_add((flow & 0xff) as u16);
        let source =
            u32::from_be(packet.word::<26>()).wrapping_add(flow >> (template.source_shift & 31));

        replace_address::<26>(packet, source);
        if template.routed != 0 {
            replace_address::<30>(packet, gateway(port));
        }
        replace_word::<34>(packet, u32::from(source_port) << 16 | u32::from(port));
        if flow & template.flood_mask != 0 {
            let flood = u32::from_be(template.flood);
            if template.flood_index == 0 {
                replace_word::<42>(packet, flood);
            } else {
                replace_word::<46>(packet, flood);
            }
        }
        Some(XDP_TX)
    }

    #[inline(always)]
    fn replace_address<const AT: usize>(packet: View<'_, 50>, new: u32) {
        let sum = packet.u16::<24>().to_be();
        let change = checksum::Change::default().word(packet.word::<AT>(), new.to_be());
        let sum = change.apply(sum);
        packet.write_u16::<24>(u16::from_be(sum));
        replace_word::<AT>(packet, new);
    }

    /// Changes a word that UDP's checksum covers.
    #[inline(always)]
    fn replace_word<const AT: usize>(packet: View<'_, 50>, new: u32) {
        let sum = packet.u16::<40>().to_be();
        let change = checksum::Change::default().word(packet.word::<AT>(), new.to_be());
        let sum = change.apply_udp(sum);
        packet.write_u16::<40>(u16::from_be(sum));
        packet.write_word::<AT>(new.to_be());
    }

    /// The far end: counts and takes the frame off.
    #[xdp]
    pub fn count_and_drop(_ctx: XdpContext) -> u32 {
        count(&TAKEN).map_or(XDP_ABORTED, |_| XDP_DROP)
    }

    /// The far end, before anything is measured: sends back what has the
    /// address of its port's gateway, so that both ends know the flow.
    #[xdp]
    pub fn reflect(ctx: XdpContext) -> u32 {
        try_reflect(&ctx).unwrap_or(XDP_DROP)
    }

    #[inline(always)]
    fn try_reflect(ctx: &XdpContext) -> Option<u32> {
        let packet = frame(ctx).view::<42>(0)?;
        let (source, destination) = (packet.word::<26>(), packet.word::<30>());
        let (from, to) = (packet.u16::<34>(), packet.u16::<36>());
        if u32::from_be(destination) != gateway(to) {
            return None;
        }
        count(&TAKEN)?;
        packet.write_addresses(REPLY);
        packet.write_word::<26>(destination);
        packet.write_word::<30>(source);
        packet.write_u16::<34>(to);
        packet.write_u16::<36>(from);
        Some(XDP_TX)
    }

    /// The client's end: counts what came back.
    #[xdp]
    pub fn count_replies(_ctx: XdpContext) -> u32 {
        count(&REPLIES).map_or(XDP_ABORTED, |_| XDP_DROP)
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
