//! IPv6 extension headers: no packet with any is steered, and none that may
//! hide a tenant's port gets past.

use lab::message;
use lab::packet::Packet;
use lab::packet::extension::{
    AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, MOBILITY, ROUTING,
};
use vpn_edge_common::{DropReason, Version};

use crate::node::{INDEX, PORT, UNKNOWN_PORT};
use crate::table::{Case, drops, passes};

/// An extension header: its number, and what follows the next one's.
type Extension = (u8, Vec<u8>);

/// Headers before the port that are read past, as docs/src/internals/packet-path.md has it.
const READ: usize = 6;

/// One of `length` bytes, a multiple of eight, that says how long it is.
fn options(number: u8, length: usize) -> Extension {
    let mut rest = vec![0; length - 1];
    rest[0] = (length / 8 - 1) as u8;
    (number, rest)
}

fn fragment(offset: u16, more: bool) -> Extension {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    (FRAGMENT, vec![0, high, low, 0, 0, 0, 7])
}

/// Counts its length in words of four bytes, less two.
fn authentication(length: usize) -> Extension {
    let mut rest = vec![0; length - 1];
    rest[0] = (length / 4 - 2) as u8;
    (AUTHENTICATION, rest)
}

fn packet(port: u16, extensions: Vec<Extension>) -> Packet {
    let packet = Packet::over(Version::V6, port, message::data(INDEX, 128));
    packet.with(|packet| packet.extensions = extensions)
}

fn away(packet: Packet) -> Packet {
    let elsewhere = "2001:db8:2::3".parse().expect("an address");
    packet.with(|packet| packet.destination = elsewhere)
}

/// Chains that lead to a UDP header, and why a tenant's packet with each is
/// dropped.
fn chains() -> Vec<(String, DropReason, Vec<Extension>)> {
    use DropReason::{Fragment, IpOptions};
    let mut chains = vec![
        ("routing".into(), IpOptions, vec![options(ROUTING, 24)]),
        (
            "as long options as there can be".into(),
            IpOptions,
            vec![options(DESTINATION, 256 * 8)],
        ),
        ("a first fragment".into(), Fragment, vec![fragment(0, true)]),
        (
            "a fragment that is all".into(),
            Fragment,
            vec![fragment(0, false)],
        ),
        (
            "a first fragment behind options".into(),
            Fragment,
            vec![options(HOP_BY_HOP, 8), fragment(0, true)],
        ),
        (
            "options behind a first fragment's header".into(),
            Fragment,
            vec![fragment(0, true), options(DESTINATION, 16)],
        ),
        (
            "all that there are".into(),
            IpOptions,
            vec![
                options(HOP_BY_HOP, 8),
                options(DESTINATION, 16),
                options(ROUTING, 24),
                authentication(12),
                options(MOBILITY, 8),
                options(DESTINATION, 8),
            ],
        ),
    ];
    for number in [HOP_BY_HOP, ROUTING, DESTINATION, MOBILITY, 139, 140] {
        for length in [8, 16, 80] {
            let chain = vec![options(number, length)];
            chains.push((format!("header {number} of {length}"), IpOptions, chain));
        }
    }
    for length in [8, 12, 16, 24, 44] {
        let chain = vec![authentication(length)];
        chains.push((format!("authentication of {length}"), IpOptions, chain));
    }
    for count in 1..=READ {
        let chain = vec![options(DESTINATION, 8); count];
        chains.push((format!("{count} headers"), IpOptions, chain));
    }
    chains
}

/// Packets whose port stands behind more than is read, or behind the frame's
/// end.
fn hiding() -> Vec<(String, Vec<u8>)> {
    let mut hiding: Vec<(String, Vec<u8>)> = (READ + 1..READ + 4)
        .map(|count| {
            let packet = packet(PORT, vec![options(DESTINATION, 8); count]);
            (format!("{count} headers"), packet.bytes())
        })
        .collect();
    let fragment = packet(
        PORT,
        [vec![options(DESTINATION, 8); READ], vec![fragment(9, true)]].concat(),
    );
    hiding.push(("a fragment's header too late".into(), fragment.bytes()));
    let long = packet(PORT, vec![options(DESTINATION, 24)]);
    hiding.push((
        "a header that ends beyond the frame".into(),
        long.patched(14 + 40 + 1, &[0xff]),
    ));
    for at in long.ip_at() + 40..long.udp_at() + 4 {
        hiding.push((format!("cut at {at}, among headers"), long.cut(at)));
    }
    let plain = packet(PORT, vec![]);
    for at in plain.udp_at()..plain.udp_at() + 4 {
        hiding.push((format!("cut at {at}, before the ports"), plain.cut(at)));
    }
    hiding
}

/// How many packets of [`cases`] may be any tenant's, or none's. All reach the
/// program in either hook.
pub fn hidden(_tc: bool) -> u64 {
    hiding().len() as u64
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, reason, chain) in chains() {
        let ours = packet(PORT, chain.clone());
        cases.push(drops(&what, reason, ours.bytes()));
        let what = format!("{what}, tagged");
        let tagged = ours.clone().with(|packet| packet.tags = vec![(0x8100, 7)]);
        cases.push(drops(&what, reason, tagged.bytes()));
        let what = format!("{what}, and another address");
        cases.push(passes(&what, away(ours).bytes()));
        let what = format!("{what}, and a port that is not allocated");
        cases.push(passes(&what, packet(UNKNOWN_PORT, chain.clone()).bytes()));
        let what = format!("{what}, and TCP");
        let tcp = packet(PORT, chain).with(|packet| packet.protocol = 6);
        cases.push(passes(&what, tcp.bytes()));
    }
    for (what, bytes) in hiding() {
        let mut elsewhere = bytes.clone();
        // The last byte of the destination.
        elsewhere[14 + 39] ^= 1;
        cases.push(drops(&what, DropReason::IpOptions, bytes));
        cases.push(passes(&format!("{what}, and another address"), elsewhere));
    }
    for (what, extensions) in [
        ("a later fragment", vec![fragment(9, true)]),
        ("a last fragment", vec![fragment(9, false)]),
        (
            "a later fragment behind options",
            vec![options(ROUTING, 8), fragment(1, true)],
        ),
    ] {
        cases.push(passes(what, packet(PORT, extensions).bytes()));
    }
    for protocol in [1, 4, 6, 41, 47, 50, 58, 59, 132, 136, 255] {
        let what = format!("protocol {protocol}");
        let other = packet(PORT, vec![]).with(|packet| packet.protocol = protocol);
        cases.push(passes(&what, other.bytes()));
    }
    cases
}
