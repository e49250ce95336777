//! What sits on a gateway's own end of its veth. An object of its own, as it
//! needs none of the edge's maps.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    // The program exists for the kernel alone.
}

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::bindings::xdp_action::XDP_PASS;
    use aya_ebpf::macros::xdp;
    use aya_ebpf::programs::XdpContext;

    /// Having a program there is what makes the kernel take in redirected
    /// frames.
    #[xdp]
    pub fn pass(_ctx: XdpContext) -> u32 {
        XDP_PASS
    }

    /// For frames of several fragments, from Linux 5.18.
    #[xdp(frags)]
    pub fn pass_frags(_ctx: XdpContext) -> u32 {
        XDP_PASS
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panic is reachable; one that were would fail verification.
    unsafe { core::hint::unreachable_unchecked() }
}
