//! Packets built field by field, with checksums by etherparse.

use std::net::Ipv4Addr;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, UdpHeader};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

pub const CLIENT_PORT: u16 = 51_820;

/// Offsets in a frame without tags.
pub const IP: usize = 14;
pub const UDP: usize = IP + 20;
pub const MESSAGE: usize = UDP + 8;

/// A gateway's end of its link, and the host's.
#[derive(Clone, Copy, Debug)]
pub struct Gateway {
    pub address: Ipv4Addr,
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
}

/// A UDP packet, to be bent in one way a case.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Ethertypes and identifiers.
    pub tags: Vec<(u16, u16)>,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub ports: (u16, u16),
    pub message: Vec<u8>,
    pub options: Vec<u8>,
    pub protocol: u8,
    pub more_fragments: bool,
    pub fragment_offset: u16,
    pub udp_checksum: bool,
}

impl Packet {
    /// From a client to the node.
    #[must_use]
    pub fn to(port: u16, message: Vec<u8>) -> Self {
        Self {
            macs: (ROUTER_MAC, NODE_MAC),
            tags: Vec::new(),
            source: CLIENT,
            destination: NODE,
            ports: (CLIENT_PORT, port),
            message,
            options: Vec::new(),
            protocol: 17,
            more_fragments: false,
            fragment_offset: 0,
            udp_checksum: true,
        }
    }

    /// From a gateway to a client, as it leaves the gateway.
    #[must_use]
    pub fn from(gateway: &Gateway, port: u16, message: Vec<u8>) -> Self {
        Self {
            macs: (gateway.mac, gateway.host_mac),
            source: gateway.address,
            destination: CLIENT,
            ports: (port, CLIENT_PORT),
            ..Self::to(port, message)
        }
    }

    #[must_use]
    pub fn with(mut self, bend: impl FnOnce(&mut Self)) -> Self {
        bend(&mut self);
        self
    }

    /// What `gateway` is to receive for this packet.
    #[must_use]
    pub fn steered(&self, gateway: &Gateway) -> Vec<u8> {
        let steered = self.clone().with(|packet| {
            packet.macs = (gateway.host_mac, gateway.mac);
            packet.tags.clear();
            packet.destination = gateway.address;
        });
        steered.bytes()
    }

    /// The frame.
    ///
    /// # Panics
    ///
    /// When a field has a value that no packet can carry.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.macs.1);
        bytes.extend(self.macs.0);
        for (ethertype, id) in &self.tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(id.to_be_bytes());
        }
        bytes.extend(0x0800_u16.to_be_bytes());
        let length = u16::try_from(8 + self.message.len()).unwrap();
        let mut ip = Ipv4Header::new(
            length,
            64,
            IpNumber(self.protocol),
            self.source.octets(),
            self.destination.octets(),
        )
        .unwrap();
        ip.options = self.options.as_slice().try_into().unwrap();
        ip.identification = 0x1234;
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.fragment_offset).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        ip.write(&mut bytes).unwrap();
        let (source, destination) = self.ports;
        let udp = if self.udp_checksum {
            UdpHeader::with_ipv4_checksum(source, destination, &ip, &self.message).unwrap()
        } else {
            UdpHeader::without_ipv4_checksum(source, destination, self.message.len()).unwrap()
        };
        bytes.extend(udp.to_bytes());
        bytes.extend(&self.message);
        bytes
    }

    /// The frame cut short, its headers as they are.
    #[must_use]
    pub fn cut(&self, at: usize) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes.truncate(at);
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
}
