//! Turning a packet into one for where it goes, in place.

use crate::checksum::Change;
use crate::frame::Frame;
use crate::parse::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, Located, UDP};
use crate::steer::Journey;
use vpn_edge_common::{Version, Words, unmapped_words};

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
    match located.version {
        Version::V4 => {
            let packet = frame.view::<{ IPV4 + UDP }>(located.l3)?;
            let new = unmapped_words(gateway);
            let change = Change::default().word(unmapped_words(located.destination), new);
            let ip_checksum = packet.u16::<10>().to_be();
            packet.write_u16::<10>(u16::from_be(change.apply(ip_checksum)));
            let udp_checksum = packet.u16::<26>().to_be();
            packet.write_u16::<26>(u16::from_be(change.apply_udp(udp_checksum)));
            packet.write_word::<16>(new);
        }
        Version::V6 => {
            let packet = frame.view::<{ IPV6 + UDP }>(located.l3)?;
            let change = Change::default().address(located.destination, gateway);
            let udp_checksum = packet.u16::<46>().to_be();
            packet.write_u16::<46>(u16::from_be(change.apply_udp(udp_checksum)));
            packet.write_double::<24>(gateway[0]);
            packet.write_double::<32>(gateway[1]);
        }
    }
    ethernet(frame, located.l3, located.version, addresses)
}

/// Sends the packet on its `journey`, as [`to_gateway`] does.
#[inline(always)]
#[must_use]
pub fn to_ends(frame: &Frame<'_>, journey: &Journey) -> Option<usize> {
    let l3 = journey.l3 as usize & L3_MASK;
    let (from, to) = (&journey.from, &journey.to);
    let [old_limit, new_limit] = journey.hops;
    if journey.is_v6 {
        let packet = frame.view::<{ IPV6 + UDP }>(l3)?;
        let change = Change::default()
            .address(from.source, to.source)
            .address(from.destination, to.destination)
            .word(from.ports, to.ports);
        let udp_checksum = packet.u16::<46>().to_be();
        packet.write_u16::<46>(u16::from_be(change.apply_udp(udp_checksum)));
        packet.write_u8::<7>(new_limit);
        packet.write_double::<8>(to.source[0]);
        packet.write_double::<16>(to.source[1]);
        packet.write_double::<24>(to.destination[0]);
        packet.write_double::<32>(to.destination[1]);
        packet.write_word::<40>(to.ports);
        return ethernet(frame, l3, Version::V6, journey.frame);
    }
    let packet = frame.view::<{ IPV4 + UDP }>(l3)?;
    let (source, destination) = (unmapped_words(to.source), unmapped_words(to.destination));
    let change = Change::default()
        .word(unmapped_words(from.source), source)
        .word(unmapped_words(from.destination), destination);
    let of_ip = change.word(u32::from(old_limit), u32::from(new_limit));
    let ip_checksum = packet.u16::<10>().to_be();
    packet.write_u16::<10>(u16::from_be(of_ip.apply(ip_checksum)));
    let of_udp = change.word(from.ports, to.ports);
    let udp_checksum = packet.u16::<26>().to_be();
    packet.write_u16::<26>(u16::from_be(of_udp.apply_udp(udp_checksum)));
    packet.write_u8::<8>(new_limit);
    packet.write_word::<12>(source);
    packet.write_word::<16>(destination);
    packet.write_word::<20>(to.ports);
    ethernet(frame, l3, Version::V4, journey.frame)
}

/// No IP header that was found stands further from the frame's beginning: by
/// this the verifier knows it, too.
const L3_MASK: usize = 31;

#[inline(always)]
fn ethernet(frame: &Frame<'_>, l3: usize, version: Version, addresses: [u32; 3]) -> Option<usize> {
    let tags = l3 - ETHERNET;
    let ethernet = frame.view::<ETHERNET>(tags)?;
    ethernet.write_addresses(addresses);
    ethernet.write_u16::<12>(match version {
        Version::V4 => ETHERTYPE_IPV4,
        Version::V6 => ETHERTYPE_IPV6,
    });
    Some(tags)
}
