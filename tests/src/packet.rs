//! Packets built field by field, with checksums by etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
use vpn_edge_common::Version;

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0x51, 0x1234, 0, 0xffff, 0xa);
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0xffff, 0xfe, 2);

pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

pub const CLIENT_PORT: u16 = 51_820;

/// Both, for tests of each.
pub const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// IPv6 extension headers, by number.
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
}

/// The client's address.
#[must_use]
pub fn client(version: Version) -> IpAddr {
    match version {
        Version::V4 => CLIENT.into(),
        Version::V6 => CLIENT6.into(),
    }
}

/// The node's address.
#[must_use]
pub fn node(version: Version) -> IpAddr {
    match version {
        Version::V4 => NODE.into(),
        Version::V6 => NODE6.into(),
    }
}

/// A gateway's end of its link, and the host's.
#[derive(Clone, Copy, Debug)]
pub struct Gateway {
    pub address: Ipv4Addr,
    pub address6: Ipv6Addr,
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
}

impl Gateway {
    #[must_use]
    pub fn ip(&self, version: Version) -> IpAddr {
        match version {
            Version::V4 => self.address.into(),
            Version::V6 => self.address6.into(),
        }
    }
}

/// A UDP packet, to be bent in one way a case. Its addresses are of one IP
/// version; fields of the other have no effect.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Ethertypes and identifiers.
    pub tags: Vec<(u16, u16)>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: (u16, u16),
    pub message: Vec<u8>,
    pub hop_limit: u8,
    pub protocol: u8,
    /// IPv4's.
    pub options: Vec<u8>,
    pub more_fragments: bool,
    pub fragment_offset: u16,
    /// IPv6's extension headers: the number of each, and what stands in it
    /// after the next one's.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub udp_checksum: bool,
}

impl Packet {
    /// From a client to the node, over IPv4.
    #[must_use]
    pub fn to(port: u16, message: Vec<u8>) -> Self {
        Self::over(Version::V4, port, message)
    }

    /// From a client to the node.
    #[must_use]
    pub fn over(version: Version, port: u16, message: Vec<u8>) -> Self {
        Self {
            macs: (ROUTER_MAC, NODE_MAC),
            tags: Vec::new(),
            source: client(version),
            destination: node(version),
            ports: (CLIENT_PORT, port),
            message,
            hop_limit: 64,
            protocol: 17,
            options: Vec::new(),
            more_fragments: false,
            fragment_offset: 0,
            extensions: Vec::new(),
            udp_checksum: true,
        }
    }

    /// From a gateway to a client, as it leaves the gateway, over IPv4.
    #[must_use]
    pub fn from(gateway: &Gateway, port: u16, message: Vec<u8>) -> Self {
        Self::reply(Version::V4, gateway, port, message)
    }

    /// From a gateway to a client, as it leaves the gateway.
    #[must_use]
    pub fn reply(version: Version, gateway: &Gateway, port: u16, message: Vec<u8>) -> Self {
        Self {
            macs: (gateway.mac, gateway.host_mac),
            source: gateway.ip(version),
            destination: client(version),
            ports: (port, CLIENT_PORT),
            ..Self::over(version, port, message)
        }
    }

    #[must_use]
    pub fn with(mut self, bend: impl FnOnce(&mut Self)) -> Self {
        bend(&mut self);
        self
    }

    #[must_use]
    pub fn version(&self) -> Version {
        match self.destination {
            IpAddr::V4(_) => Version::V4,
            IpAddr::V6(_) => Version::V6,
        }
    }

    /// Offset of the IP header in the frame, as of the next.
    #[must_use]
    pub fn ip_at(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    #[must_use]
    pub fn udp_at(&self) -> usize {
        let extensions = self.extensions.iter();
        self.ip_at()
            + match self.version() {
                Version::V4 => 20 + self.options.len(),
                Version::V6 => 40 + extensions.map(|(_, rest)| 1 + rest.len()).sum::<usize>(),
            }
    }

    #[must_use]
    pub fn message_at(&self) -> usize {
        self.udp_at() + 8
    }

    /// Length of the IP packet.
    #[must_use]
    pub fn ip_length(&self) -> u64 {
        (self.message_at() - self.ip_at() + self.message.len()) as u64
    }

    /// What `gateway` is to receive for this packet.
    #[must_use]
    pub fn steered(&self, gateway: &Gateway) -> Vec<u8> {
        let steered = self.clone().with(|packet| {
            packet.macs = (gateway.host_mac, gateway.mac);
            packet.tags.clear();
            packet.destination = gateway.ip(self.version());
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
        let udp = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.ipv4(source, destination, &mut bytes)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.ipv6(source, destination, &mut bytes)
            }
            _ => panic!("addresses of two IP versions"),
        };
        bytes.extend(udp.to_bytes());
        bytes.extend(&self.message);
        bytes
    }

    fn ipv4(&self, source: Ipv4Addr, destination: Ipv4Addr, bytes: &mut Vec<u8>) -> UdpHeader {
        bytes.extend(0x0800_u16.to_be_bytes());
        let length = u16::try_from(8 + self.message.len()).unwrap();
        let protocol = IpNumber(self.protocol);
        let (source, destination) = (source.octets(), destination.octets());
        let mut ip =
            Ipv4Header::new(length, self.hop_limit, protocol, source, destination).unwrap();
        ip.options = self.options.as_slice().try_into().unwrap();
        ip.identification = 0x1234;
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.fragment_offset).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        ip.write(bytes).unwrap();
        let (source, destination) = self.ports;
        if self.udp_checksum {
            UdpHeader::with_ipv4_checksum(source, destination, &ip, &self.message).unwrap()
        } else {
            UdpHeader::without_ipv4_checksum(source, destination, self.message.len()).unwrap()
        }
    }

    fn ipv6(&self, source: Ipv6Addr, destination: Ipv6Addr, bytes: &mut Vec<u8>) -> UdpHeader {
        bytes.extend(0x86dd_u16.to_be_bytes());
        let numbers = self.extensions.iter().map(|(number, _)| *number);
        let mut numbers = numbers.chain([self.protocol]);
        let length = self.message_at() - self.ip_at() - 40 + self.message.len();
        let ip = Ipv6Header {
            traffic_class: 0x2e,
            flow_label: 0xa_bcde.try_into().unwrap(),
            payload_length: u16::try_from(length).unwrap(),
            next_header: IpNumber(numbers.next().unwrap()),
            hop_limit: self.hop_limit,
            source: source.octets(),
            destination: destination.octets(),
        };
        ip.write(bytes).unwrap();
        for ((_, rest), next) in self.extensions.iter().zip(numbers) {
            bytes.push(next);
            bytes.extend(rest);
        }
        let (source, destination) = self.ports;
        let mut udp =
            UdpHeader::with_ipv6_checksum(source, destination, &ip, &self.message).unwrap();
        if !self.udp_checksum {
            udp.checksum = 0;
        }
        udp
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
