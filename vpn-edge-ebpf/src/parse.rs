//! From a frame to the UDP datagram in it.
//!
//! In two steps, because they fail differently. [`locate`] reads just enough
//! to know the port: whatever it cannot read is the kernel's business.
//! [`Located::datagram`] reads the rest of a packet whose port is allocated:
//! what it cannot read is dropped, since passing it on would be a way around
//! the guard.

use crate::frame::{Frame, View, masked};
use vpn_edge_common::{DropReason, Version, Words, is_mapped, mapped_words};

pub const ETHERNET: usize = 14;
pub const IPV4: usize = 20;
pub const IPV6: usize = 40;
pub const UDP: usize = 8;
const VLAN_TAG: usize = 4;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
pub const PROTOCOL_UDP: u8 = 17;
const MORE_FRAGMENTS: u16 = 0x2000;
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv6 extension headers that are read past to find the port.
const EXTENSIONS: usize = 6;

/// Bytes that [`Located::datagram`] wants to see: the UDP header and the
/// shortest WireGuard message.
const SEEN: usize = UDP + 32;

/// A UDP packet whose ports are known.
#[derive(Clone, Copy)]
pub struct Located {
    pub version: Version,
    /// Offset of the IP header: 14, plus 4 a VLAN tag.
    pub l3: usize,
    /// Offset of the UDP header.
    pub l4: usize,
    pub source: Words,
    pub destination: Words,
    pub source_port: u16,
    pub destination_port: u16,
    /// IPv4's time to live, IPv6's hop limit.
    pub hop_limit: u8,
    /// Length of the IP packet in bytes, as it says.
    ip_length: usize,
    /// Whether there is anything between IP and UDP headers.
    extended: bool,
    fragment: bool,
}

/// Why [`locate`] does not know a packet's ports.
#[derive(Clone, Copy)]
pub enum Unlocated {
    /// It has none of UDP.
    Foreign,
    /// They stand behind more IPv6 extension headers than are read past.
    Hidden { destination: Words },
}

/// Finds the IP header, behind at most two VLAN tags: its offset and the
/// Ethernet type before it.
#[inline(always)]
#[must_use]
pub fn network(frame: &Frame<'_>) -> Option<(usize, u16)> {
    let mut l3 = ETHERNET;
    let mut ethertype = frame.view::<ETHERNET>(0)?.u16::<12>();
    if is_vlan(ethertype) {
        ethertype = frame.view::<VLAN_TAG>(l3)?.u16::<2>();
        l3 += VLAN_TAG;
        if is_vlan(ethertype) {
            ethertype = frame.view::<VLAN_TAG>(l3)?.u16::<2>();
            l3 += VLAN_TAG;
        }
    }
    Some((l3, ethertype))
}

/// Whether the frame is an untagged IP packet, all of which can be seen: the
/// length of such a one is no secret.
#[inline(always)]
#[must_use]
pub fn is_plain(frame: &Frame<'_>) -> bool {
    let Some(packet) = frame.view::<{ ETHERNET + IPV4 }>(0) else {
        return false;
    };
    let length = match packet.u16::<12>() {
        ETHERTYPE_IPV4 => usize::from(packet.u16::<{ ETHERNET + 2 }>()),
        ETHERTYPE_IPV6 => IPV6 + usize::from(packet.u16::<{ ETHERNET + 4 }>()),
        _ => return false,
    };
    ETHERNET + length <= frame.length()
}

/// Finds addresses and ports, behind any IPv4 options and some IPv6 extension
/// headers.
///
/// # Errors
///
/// For all that is not UDP, and all but the first fragment.
#[inline(always)]
pub fn locate(frame: &Frame<'_>) -> Result<Located, Unlocated> {
    let (l3, ethertype) = network(frame).ok_or(Unlocated::Foreign)?;
    match ethertype {
        ETHERTYPE_IPV4 => v4(frame, l3).ok_or(Unlocated::Foreign),
        ETHERTYPE_IPV6 => v6(frame, l3),
        _ => Err(Unlocated::Foreign),
    }
}

#[inline(always)]
fn v4(frame: &Frame<'_>, l3: usize) -> Option<Located> {
    let ip = frame.view::<IPV4>(l3)?;
    if ip.u8::<9>() != PROTOCOL_UDP {
        return None;
    }
    let version = ip.u8::<0>();
    let fragment = ip.u16::<6>();
    if version >> 4 != 4 || fragment & FRAGMENT_OFFSET != 0 {
        return None;
    }
    let header_words = version & 0xf;
    let l4 = if header_words == 5 {
        l3 + IPV4
    } else if header_words > 5 {
        l3 + usize::from(header_words) * 4
    } else {
        return None;
    };
    let ports = frame.view::<4>(l4)?;
    Some(Located {
        version: Version::V4,
        l3,
        l4,
        source: mapped_words(ip.word::<12>()),
        destination: mapped_words(ip.word::<16>()),
        source_port: ports.u16::<0>(),
        destination_port: ports.u16::<2>(),
        hop_limit: ip.u8::<8>(),
        ip_length: usize::from(ip.u16::<2>()),
        extended: header_words != 5,
        fragment: fragment & MORE_FRAGMENTS != 0,
    })
}

#[inline(always)]
fn v6(frame: &Frame<'_>, l3: usize) -> Result<Located, Unlocated> {
    const FOREIGN: Unlocated = Unlocated::Foreign;
    let ip = frame.view::<IPV6>(l3).ok_or(FOREIGN)?;
    if ip.u8::<0>() >> 4 != 6 {
        return Err(FOREIGN);
    }
    let source = [ip.double::<8>(), ip.double::<16>()];
    let destination = [ip.double::<24>(), ip.double::<32>()];
    // No such addresses are on any wire, and here they mean IPv4 or none.
    let odd = |address| is_mapped(address) || address == [0, 0];
    if odd(source) || odd(destination) {
        return Err(FOREIGN);
    }
    let hidden = Unlocated::Hidden { destination };
    let next = ip.u8::<6>();
    let mut l4 = l3 + IPV6;
    let mut fragment = false;
    if next != PROTOCOL_UDP {
        let (start, end) = frame.bounds();
        let found = extensions(start, end, l4, next);
        match found & 3 {
            FOUND => {}
            FOUND_FRAGMENT => fragment = true,
            HIDDEN => return Err(hidden),
            _ => return Err(FOREIGN),
        }
        l4 = masked::<OFFSETS>((found >> 2) as usize);
    }
    let ports = frame.view::<4>(l4).ok_or(hidden)?;
    Ok(Located {
        version: Version::V6,
        l3,
        l4,
        source,
        destination,
        source_port: ports.u16::<0>(),
        destination_port: ports.u16::<2>(),
        hop_limit: ip.u8::<7>(),
        ip_length: IPV6 + usize::from(ip.u16::<4>()),
        extended: next != PROTOCOL_UDP,
        fragment,
    })
}

const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// What [`extensions`] says in its last two bits; before them stands the
/// offset of the UDP header.
const FOUND: u32 = 0;
const FOUND_FRAGMENT: u32 = 1;
const HIDDEN: u32 = 2;
const ABSENT: u32 = 3;

/// No row of as many headers reaches further.
const OFFSETS: usize = 0x3fff;

const _: () = assert!(ETHERNET + 8 + IPV6 + EXTENSIONS * (8 + 255 * 8) <= OFFSETS);

/// Follows the extension headers from `at` on, of which the first is `next`,
/// to a UDP header. Seldom needed, and a function for its own stack.
#[inline(never)]
fn extensions(start: usize, end: usize, at: usize, next: u8) -> u32 {
    // SAFETY: the bounds are those of a frame that the caller has.
    let frame = unsafe { Frame::new(start, end, 0) };
    let (mut at, mut next) = (at, next);
    let mut found = FOUND;
    for count in 0..=EXTENSIONS {
        let units = match next {
            // Hop-by-hop options, routing, destination options, mobility, HIP,
            // shim6.
            0 | 43 | 60 | 135 | 139 | 140 => 8,
            FRAGMENT => 0,
            AUTHENTICATION => 4,
            _ => return ABSENT,
        };
        if count == EXTENSIONS {
            break;
        }
        let Some(header) = frame.view::<8>(at) else {
            return HIDDEN;
        };
        if next == FRAGMENT {
            if header.u16::<2>() & !7 != 0 {
                return ABSENT;
            }
            found = FOUND_FRAGMENT;
        }
        at = masked::<OFFSETS>(at + 8 + usize::from(header.u8::<1>()) * units);
        next = header.u8::<0>();
        if next == PROTOCOL_UDP {
            return (at as u32) << 2 | found;
        }
    }
    HIDDEN
}

/// A UDP packet that is all there.
pub struct Datagram<'a> {
    /// UDP header and the message's first bytes.
    pub bytes: View<'a, SEEN>,
    /// Length of the IP packet in bytes.
    pub ip_length: u32,
    /// Length of the UDP payload in bytes.
    pub message_length: u16,
}

impl Located {
    /// Offset of the UDP payload.
    #[inline(always)]
    #[must_use]
    pub fn message(&self) -> usize {
        self.l4 + UDP
    }

    /// The datagram, if it is whole and plain.
    ///
    /// # Errors
    ///
    /// The reason to drop it: options, fragment, merged, or shorter than it says.
    #[inline(always)]
    pub fn datagram<'a>(&self, frame: &Frame<'a>) -> Result<Datagram<'a>, DropReason> {
        if self.fragment {
            return Err(DropReason::Fragment);
        }
        if self.extended {
            return Err(DropReason::IpOptions);
        }
        if frame.is_merged() {
            return Err(DropReason::Merged);
        }
        let bytes = frame.view::<SEEN>(self.l4).ok_or(DropReason::Truncated)?;
        let udp_length = bytes.u16::<4>();
        let header = self.l4 - self.l3;
        let whole = self.l3 + self.ip_length <= frame.length()
            && header + usize::from(udp_length) <= self.ip_length
            && usize::from(udp_length) >= UDP;
        if !whole {
            return Err(DropReason::Truncated);
        }
        Ok(Datagram {
            bytes,
            ip_length: self.ip_length as u32,
            message_length: udp_length - UDP as u16,
        })
    }
}

impl Datagram<'_> {
    /// The message's first four bytes, in wire order.
    #[inline(always)]
    #[must_use]
    pub fn message(&self) -> u32 {
        self.bytes.word::<UDP>()
    }

    /// The second word: the session that transport data or a cookie reply is
    /// for, and the one that a handshake message announces.
    #[inline(always)]
    #[must_use]
    pub fn index(&self) -> u32 {
        u32::from_le(self.bytes.word::<{ UDP + 4 }>())
    }

    /// The third word: the session that a response is for.
    #[inline(always)]
    #[must_use]
    pub fn response_receiver(&self) -> u32 {
        u32::from_le(self.bytes.word::<{ UDP + 8 }>())
    }
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}
