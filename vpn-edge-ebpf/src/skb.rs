//! Changing packets in tc, with checksums kept up in whatever state they are.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_csum_update, bpf_skb_store_bytes, bpf_skb_vlan_pop};
use aya_ebpf::programs::TcContext;
use vpn_edge_common::{Version, Words, unmapped_words};
use vpn_edge_ebpf::checksum::Change;
use vpn_edge_ebpf::forwarding::Forwarding;
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::parse::{ETHERNET, IPV4, IPV6};

/// What the decision reads at most: Ethernet with two tags, IPv6, UDP, and a
/// handshake message.
const HEADERS: u32 = 14 + 8 + 40 + 8 + 148;

/// One of a packet's addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Source,
    Destination,
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

/// Takes off all VLAN tags of a frame that has `bytes` of them. No view is good
/// after this.
#[inline(always)]
pub fn untag(ctx: &TcContext, bytes: u32) -> Option<()> {
    let skb = ctx.skb.skb;
    // The outermost tag is in the skb's metadata, others are in the frame.
    // SAFETY: the hook's own skb.
    let mut tags = bytes / 4 + unsafe { (*skb).vlan_present };
    for _ in 0..3 {
        if tags == 0 {
            break;
        }
        // SAFETY: as above.
        if unsafe { bpf_skb_vlan_pop(skb) } != 0 {
            return None;
        }
        tags -= 1;
    }
    Some(())
}

/// Changes an address of a UDP packet without tags, and its checksums.
#[inline(always)]
pub fn address(
    ctx: &TcContext,
    version: Version,
    field: Field,
    old: Words,
    new: Words,
) -> Option<()> {
    let flags = u64::from(BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
    match version {
        Version::V4 => {
            let (old, new) = (unmapped_words(old), unmapped_words(new));
            let (from, to) = (u64::from(old), u64::from(new));
            ctx.l4_csum_replace(ETHERNET + IPV4 + 6, from, to, flags | 4)
                .ok()?;
            ctx.l3_csum_replace(ETHERNET + 10, from, to, 4).ok()?;
            let at = match field {
                Field::Source => 12,
                Field::Destination => 16,
            };
            store(ctx, ETHERNET + at, &[new])
        }
        Version::V6 => {
            let change = Change::default().address(old, new).partial();
            ctx.l4_csum_replace(ETHERNET + IPV6 + 6, 0, u64::from(change), flags)
                .ok()?;
            // The helper thinks that an IP checksum made up for the address.
            // It has an effect, and succeeds, only where the card summed up.
            // SAFETY: the hook's own skb.
            let _ = unsafe { bpf_csum_update(ctx.skb.skb, change) };
            let at = match field {
                Field::Source => 8,
                Field::Destination => 24,
            };
            let [a, b] = new;
            let words = [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32];
            store(ctx, ETHERNET + at, &words)
        }
    }
}

/// Changes the ports of a UDP packet without tags, given as in
/// memory, and its checksum.
#[inline(always)]
pub fn ports(ctx: &TcContext, version: Version, old: u32, new: u32) -> Option<()> {
    let udp = ETHERNET
        + match version {
            Version::V4 => IPV4,
            Version::V6 => IPV6,
        };
    let flags = u64::from(BPF_F_MARK_MANGLED_0) | 4;
    ctx.l4_csum_replace(udp + 6, u64::from(old), u64::from(new), flags)
        .ok()?;
    store(ctx, udp, &[new])
}

/// Changes the hop limit of a packet without tags, and its checksum.
#[inline(always)]
pub fn hop_limit(ctx: &TcContext, version: Version, old: u8, new: u8) -> Option<()> {
    let at = ETHERNET
        + match version {
            Version::V4 => 8,
            Version::V6 => 7,
        };
    if version == Version::V4 {
        ctx.l3_csum_replace(ETHERNET + 10, u64::from(old), u64::from(new), 2)
            .ok()?;
    }
    let from = (&raw const new).cast();
    // SAFETY: one byte, and the kernel checks the skb's bounds.
    let done = unsafe { bpf_skb_store_bytes(ctx.skb.skb, at as u32, from, 1, 0) };
    (done == 0).then_some(())
}

#[inline(always)]
pub fn store<const N: usize>(ctx: &TcContext, at: usize, words: &[u32; N]) -> Option<()> {
    // The checksum was kept up by hand; the skb's own sum over the frame, if
    // it has one, starts behind the Ethernet header and already follows.
    let (from, length) = (words.as_ptr().cast(), 4 * N as u32);
    // SAFETY: `from` has `length` bytes, and the kernel checks the skb's bounds.
    let done = unsafe { bpf_skb_store_bytes(ctx.skb.skb, at as u32, from, length, 0) };
    (done == 0).then_some(())
}

/// Forwards a packet without tags.
#[inline(always)]
pub fn ends(ctx: &TcContext, forwarding: &Forwarding) -> Option<()> {
    let version = if forwarding.is_v6 {
        Version::V6
    } else {
        Version::V4
    };
    let (from, to) = (&forwarding.from, &forwarding.to);
    address(ctx, version, Field::Source, from.source, to.source)?;
    let destination = Field::Destination;
    address(ctx, version, destination, from.destination, to.destination)?;
    ports(ctx, version, from.ports, to.ports)?;
    let [old, new] = forwarding.hops;
    hop_limit(ctx, version, old, new)
}
