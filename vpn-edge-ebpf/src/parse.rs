//! From a frame to the UDP datagram in it.
//!
//! In two steps, because they fail differently. [`locate`] reads just enough
//! to know the port: whatever it cannot read is the kernel's business.
//! [`Located::datagram`] reads the rest of a packet whose port is allocated:
//! what it cannot read is dropped, since passing it on would be a way around
//! the guard.

use crate::frame::{Frame, View};
use vpn_edge_common::DropReason;

pub const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const IPV4: usize = 20;
const UDP: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const PROTOCOL_UDP: u8 = 17;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Offset of the message from the IPv4 header.
const MESSAGE: usize = IPV4 + UDP;

/// Bytes that [`Located::datagram`] wants to see: IPv4 and UDP headers and the
/// shortest WireGuard message.
const SEEN: usize = MESSAGE + 32;

/// A UDP packet over IPv4 whose ports are known.
#[derive(Clone, Copy)]
pub struct Located {
    /// Offset of the IPv4 header: 14, plus 4 a VLAN tag.
    pub l3: usize,
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    header_words: u8,
    fragment: u16,
}

/// Finds addresses and ports, behind at most two VLAN tags and any IPv4
/// options. Nothing for anything else, and for all but the first fragment.
#[inline(always)]
#[must_use]
pub fn locate(frame: &Frame<'_>) -> Option<Located> {
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
    if ethertype != ETHERTYPE_IPV4 {
        return None;
    }
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
    let ports = if header_words == 5 {
        frame.view::<4>(l3 + IPV4)?
    } else if header_words > 5 {
        frame.view::<4>(l3 + usize::from(header_words) * 4)?
    } else {
        return None;
    };
    Some(Located {
        l3,
        source: ip.word::<12>(),
        destination: ip.word::<16>(),
        source_port: ports.u16::<0>(),
        destination_port: ports.u16::<2>(),
        header_words,
        fragment,
    })
}

/// A UDP packet that is all there.
pub struct Datagram<'a> {
    /// IPv4 and UDP headers and the message's first bytes.
    pub bytes: View<'a, SEEN>,
    /// Length of the IP packet in bytes.
    pub ip_length: u16,
    /// Length of the UDP payload in bytes.
    pub message_length: u16,
}

impl Located {
    /// Offset of the UDP payload, where there are no IPv4 options.
    #[inline(always)]
    #[must_use]
    pub fn message(&self) -> usize {
        self.l3 + MESSAGE
    }

    /// The datagram, if it is whole and plain.
    ///
    /// # Errors
    ///
    /// The reason to drop it: options, fragment, merged, or shorter than it says.
    #[inline(always)]
    pub fn datagram<'a>(&self, frame: &Frame<'a>) -> Result<Datagram<'a>, DropReason> {
        if self.header_words != 5 {
            return Err(DropReason::IpOptions);
        }
        if self.fragment & MORE_FRAGMENTS != 0 {
            return Err(DropReason::Fragment);
        }
        if frame.is_merged() {
            return Err(DropReason::Merged);
        }
        let bytes = frame.view::<SEEN>(self.l3).ok_or(DropReason::Truncated)?;
        let ip_length = bytes.u16::<2>();
        let udp_length = bytes.u16::<{ IPV4 + 4 }>();
        let whole = self.l3 + usize::from(ip_length) <= frame.length()
            && IPV4 + usize::from(udp_length) <= usize::from(ip_length)
            && usize::from(udp_length) >= UDP;
        if !whole {
            return Err(DropReason::Truncated);
        }
        Ok(Datagram {
            bytes,
            ip_length,
            message_length: udp_length - UDP as u16,
        })
    }
}

impl Datagram<'_> {
    /// The message's first four bytes, in wire order.
    #[inline(always)]
    #[must_use]
    pub fn message(&self) -> u32 {
        self.bytes.word::<MESSAGE>()
    }

    /// The second word: the session that transport data or a cookie reply is
    /// for, and the one that a handshake message announces.
    #[inline(always)]
    #[must_use]
    pub fn index(&self) -> u32 {
        u32::from_le(self.bytes.word::<{ MESSAGE + 4 }>())
    }

    /// The third word: the session that a response is for.
    #[inline(always)]
    #[must_use]
    pub fn response_receiver(&self) -> u32 {
        u32::from_le(self.bytes.word::<{ MESSAGE + 8 }>())
    }
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}
