//! ICMP errors built field by field, with checksums by etherparse.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use vpn_edge_common::Version;

use crate::packet::Packet;

/// The quoted UDP checksum: of a whole packet that nobody has any more, so
/// nobody can hold it to anything.
const UDP_CHECKSUM: [u8; 2] = [0xbe, 0xef];

/// An ICMP error, to be bent in one way a case.
#[derive(Clone, Debug)]
pub struct IcmpError {
    /// Its frame and IP headers. Ports and message have no effect.
    pub outer: Packet,
    pub kind: u8,
    pub code: u8,
    /// What stands between the checksum and the quoted packet.
    pub rest: u32,
    pub quoted: Packet,
    /// Bytes that are quoted after the IP headers.
    pub length: usize,
}

impl IcmpError {
    /// What `router` tells the sender of `quoted`: that it takes no more than
    /// `mtu` bytes. It quotes the least that routers do.
    #[must_use]
    pub fn too_big(router: IpAddr, quoted: Packet, mtu: u16) -> Self {
        let (kind, code) = match quoted.version() {
            Version::V4 => (3, 4),
            Version::V6 => (2, 0),
        };
        let outer = Packet::over(quoted.version(), 0, Vec::new()).with(|outer| {
            outer.source = router;
            outer.destination = quoted.source;
        });
        Self {
            outer,
            kind,
            code,
            rest: mtu.into(),
            quoted,
            length: 8,
        }
    }

    #[must_use]
    pub fn with(mut self, bend: impl FnOnce(&mut Self)) -> Self {
        bend(&mut self);
        self
    }

    /// Offset of the ICMP header in the frame.
    #[must_use]
    pub fn icmp_at(&self) -> usize {
        self.outer.udp_at()
    }

    /// Offset of the quoted IP header in the frame.
    #[must_use]
    pub fn quoted_at(&self) -> usize {
        self.icmp_at() + 8
    }

    /// The frame.
    ///
    /// # Panics
    ///
    /// When a field has a value that no packet can carry.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0];
        message.extend(self.rest.to_be_bytes());
        message.extend(self.quote());
        let outer = self.outer.clone().with(|outer| {
            if outer.protocol == 17 {
                outer.protocol = match outer.version() {
                    Version::V4 => 1,
                    Version::V6 => 58,
                };
            }
            // As long, where the UDP header counts too.
            outer.message = vec![0; message.len() - 8];
        });
        // The sum is of words as they stand in memory.
        let checksum = self.sum(&message).ones_complement().to_ne_bytes();
        message[2..4].copy_from_slice(&checksum);
        let mut bytes = outer.cut(outer.udp_at());
        bytes.extend(message);
        bytes
    }

    /// The frame with bytes changed, its checksums as they are.
    ///
    /// # Panics
    ///
    /// When the frame ends before.
    #[must_use]
    pub fn patched(&self, at: usize, patch: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        bytes
    }

    fn quote(&self) -> Vec<u8> {
        let (start, udp) = (self.quoted.ip_at(), self.quoted.udp_at());
        let mut quote = self.quoted.bytes();
        quote[udp + 6..udp + 8].copy_from_slice(&UDP_CHECKSUM);
        quote.truncate(udp + self.length);
        quote.drain(..start);
        quote
    }

    fn sum(&self, message: &[u8]) -> Sum16BitWords {
        let mut sum = Sum16BitWords::new().add_slice(message);
        if let (IpAddr::V6(source), IpAddr::V6(destination)) =
            (self.outer.source, self.outer.destination)
        {
            let length = message.len() as u32;
            sum = sum
                .add_16bytes(source.octets())
                .add_16bytes(destination.octets())
                .add_4bytes(length.to_be_bytes())
                .add_2bytes([0, 58]);
        }
        sum
    }
}
