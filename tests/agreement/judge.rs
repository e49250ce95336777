//! What is to be steered, by etherparse and the `blake2` crate, from the rules
//! and not from the code.

use etherparse::{EtherType, LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
use lab::message;
use lab::packet::NODE;
use lab::programs::Hook;
use vpn_edge_common::mode;

use crate::world::{LIVE, State, TENANTS, Tenant};

/// Whether a gateway is to get `packet`.
pub fn steered(packet: &[u8], state: &State, hook: Hook) -> bool {
    let Some((port, message)) = datagram(packet) else {
        return false;
    };
    let Some(tenant) = TENANTS.iter().find(|tenant| tenant.port == port) else {
        return false;
    };
    let open = match hook {
        Hook::Xdp => tenant.mode == mode::XDP,
        Hook::Tc => tenant.mode == mode::XDP || tenant.mode == mode::TC,
    };
    let [_, _, packets, _, bytes, _] = state.rates;
    let within_plan = !tenant.limited || (left(packets) && left(bytes));
    open && within_plan && admitted(message, tenant, state)
}

/// Whether a rate lets something pass.
fn left(word: u64) -> bool {
    word <= crate::world::now()
}

fn admitted(message: &[u8], tenant: &Tenant, state: &State) -> bool {
    let word = |at| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
    let [handshakes, unknown, ..] = state.rates;
    let session = |index| {
        let graced = state.grace > crate::world::now() && left(unknown);
        LIVE.contains(&index) || graced
    };
    let new = || {
        let mac1 = message[message.len() - 32..].first_chunk().unwrap();
        state.replayed != Some(u32::from_ne_bytes(*mac1))
    };
    let handshake = || {
        left(state.source) && message::signed(message, &tenant.key()) && new() && left(handshakes)
    };
    match (message.first_chunk::<4>(), message.len()) {
        (Some([1, 0, 0, 0]), 148) => handshake(),
        (Some([2, 0, 0, 0]), 92) => session(word(8)) && handshake(),
        (Some([3, 0, 0, 0]), 64) | (Some([4, 0, 0, 0]), 32..) => session(word(4)),
        _ => false,
    }
}

/// Port and payload of a plain UDP packet to the node.
fn datagram(packet: &[u8]) -> Option<(u16, &[u8])> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let vlan = |tag: EtherType| matches!(tag.0, 0x8100 | 0x88a8);
    let outer = sliced.link.as_ref()?.to_header()?.ethernet2()?.ether_type;
    let mut tag = outer;
    for extension in &sliced.link_exts {
        let LinkExtSlice::Vlan(slice) = extension else {
            return None;
        };
        if !vlan(tag) {
            return None;
        }
        tag = slice.ether_type();
    }
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport)
    else {
        return None;
    };
    let header = ip.header();
    let plain = sliced.link_exts.len() <= 2
        && header.options().is_empty()
        && header.protocol().0 == 17
        && !header.is_fragmenting_payload()
        && header.destination_addr() == NODE
        && udp.length() >= 8;
    plain.then_some((udp.destination_port(), udp.payload()))
}

/// Length of the IP packet, in a frame that was steered.
pub fn ip_length(packet: &[u8]) -> u64 {
    let sliced = SlicedPacket::from_ethernet(packet).expect("a packet that is steered");
    match sliced.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().total_len().into(),
        _ => panic!("steered, and no IPv4: {packet:02x?}"),
    }
}
