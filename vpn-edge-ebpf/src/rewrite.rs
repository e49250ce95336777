//! Turning a client's packet into one for the gateway, in place.

use crate::checksum;
use crate::frame::Frame;
use crate::parse::ETHERNET;
use crate::steer::{Steered, v4};

const ETHERTYPE_IPV4: u16 = 0x0800;

/// Gives the packet the gateway's address and an Ethernet header of the
/// gateway's link, right before its IP header.
///
/// Returns how many bytes of VLAN tags are left in front of the frame for the
/// caller to cut off; nothing if the frame has no room, which a parsed one has.
#[inline(always)]
#[must_use]
pub fn to_gateway(frame: &Frame<'_>, steered: &Steered<'_, '_>) -> Option<usize> {
    let allocation = steered.allocation;
    let old = steered.destination;
    let new = v4(&allocation.gateway);

    let packet = &steered.datagram.bytes;
    let ip_checksum = packet.u16::<10>().to_be();
    packet.write_u16::<10>(u16::from_be(checksum::replace(ip_checksum, old, new)));
    let udp_checksum = packet.u16::<26>().to_be();
    packet.write_u16::<26>(u16::from_be(checksum::replace_udp(udp_checksum, old, new)));
    packet.write_word::<16>(new);

    let tags = steered.l3 - ETHERNET;
    let ethernet = frame.view::<ETHERNET>(tags)?;
    ethernet.write_addresses(allocation.frame);
    ethernet.write_u16::<12>(ETHERTYPE_IPV4);
    Some(tags)
}
