//! Turning a packet into one for where it goes, in place.

use crate::checksum::Change;
use crate::forwarding::Forwarding;
use crate::frame::{Frame, View};
use crate::parse::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, Located, UDP};
use vpn_edge_common::{Version, Words, unmapped_words};

/// Frames without what stands before their last 14 bytes of Ethernet: VLAN tags
/// are overwritten or cut off.
type V4<'a> = View<'a, { ETHERNET + IPV4 + UDP }>;
type V6<'a> = View<'a, { ETHERNET + IPV6 + UDP }>;

/// Where the headers begin in those.
const IP: usize = ETHERNET;
const V4_UDP: usize = ETHERNET + IPV4;
const V6_UDP: usize = ETHERNET + IPV6;

/// Gives the packet the gateway's address, and an Ethernet header with
/// `addresses` right before its IP header.
///
/// Returns how many bytes of VLAN tags are left in front of the frame for the
/// caller to cut off; nothing if the frame has no room, which a parsed one has.
#[inline(always)]
#[must_use]
pub fn to_gateway(
    frame: &Frame<'_>,
    located: &Located,
    gateway: Words,
    addresses: [u32; 3],
) -> Option<usize> {
    let tags = located.l3 - ETHERNET;
    match located.version {
        Version::V4 => {
            let packet: V4<'_> = frame.view(tags)?;
            let new = unmapped_words(gateway);
            let change = Change::default().word(unmapped_words(located.destination), new);
            v4_checksums(&packet, change, change);
            packet.write_word::<{ IP + 16 }>(new);
            packet.write_addresses(addresses);
            packet.write_u16::<12>(ETHERTYPE_IPV4);
        }
        Version::V6 => {
            let packet: V6<'_> = frame.view(tags)?;
            let change = Change::default().address(located.destination, gateway);
            v6_checksum(&packet, change);
            packet.write_double::<{ IP + 24 }>(gateway[0]);
            packet.write_double::<{ IP + 32 }>(gateway[1]);
            packet.write_addresses(addresses);
            packet.write_u16::<12>(ETHERTYPE_IPV6);
        }
    }
    Some(tags)
}

/// Sends the packet on its `forwarding`, as [`to_gateway`] does.
#[inline(always)]
#[must_use]
pub fn to_ends(frame: &Frame<'_>, forwarding: &Forwarding) -> Option<usize> {
    let tags = forwarding.tags as usize & TAGS_MASK;
    let (from, to) = (&forwarding.from, &forwarding.to);
    let [old_limit, new_limit] = forwarding.hops;
    if forwarding.is_v6 {
        let packet: V6<'_> = frame.view(tags)?;
        let change = Change::default()
            .address(from.source, to.source)
            .address(from.destination, to.destination)
            .word(from.ports, to.ports);
        v6_checksum(&packet, change);
        packet.write_u8::<{ IP + 7 }>(new_limit);
        packet.write_double::<{ IP + 8 }>(to.source[0]);
        packet.write_double::<{ IP + 16 }>(to.source[1]);
        packet.write_double::<{ IP + 24 }>(to.destination[0]);
        packet.write_double::<{ IP + 32 }>(to.destination[1]);
        packet.write_word::<V6_UDP>(to.ports);
        packet.write_addresses(forwarding.frame);
        packet.write_u16::<12>(ETHERTYPE_IPV6);
        return Some(tags);
    }
    let packet: V4<'_> = frame.view(tags)?;
    let (source, destination) = (unmapped_words(to.source), unmapped_words(to.destination));
    let addresses = Change::default()
        .word(unmapped_words(from.source), source)
        .word(unmapped_words(from.destination), destination);
    let limit = addresses.word(u32::from(old_limit), u32::from(new_limit));
    v4_checksums(&packet, limit, addresses.word(from.ports, to.ports));
    packet.write_u8::<{ IP + 8 }>(new_limit);
    packet.write_word::<{ IP + 12 }>(source);
    packet.write_word::<{ IP + 16 }>(destination);
    packet.write_word::<V4_UDP>(to.ports);
    packet.write_addresses(forwarding.frame);
    packet.write_u16::<12>(ETHERTYPE_IPV4);
    Some(tags)
}

/// There are no more bytes of tags: by this the verifier knows it, too.
const TAGS_MASK: usize = 15;

#[inline(always)]
fn v4_checksums(packet: &V4<'_>, of_ip: Change, of_udp: Change) {
    let ip = packet.u16::<{ IP + 10 }>().to_be();
    packet.write_u16::<{ IP + 10 }>(u16::from_be(of_ip.apply(ip)));
    let udp = packet.u16::<{ V4_UDP + 6 }>().to_be();
    packet.write_u16::<{ V4_UDP + 6 }>(u16::from_be(of_udp.apply_udp(udp)));
}

#[inline(always)]
fn v6_checksum(packet: &V6<'_>, change: Change) {
    let udp = packet.u16::<{ V6_UDP + 6 }>().to_be();
    packet.write_u16::<{ V6_UDP + 6 }>(u16::from_be(change.apply_udp(udp)));
}
