//! The packets to trace: from options, hex, or a capture.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use blake2::digest::consts::U16;
use blake2::digest::{Digest, Mac};
use blake2::{Blake2s256, Blake2sMac};
use etherparse::PacketBuilder;
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError};
use serde::Serialize;
use vpn_edge_common::address;
use vpn_edge_common::wire::{length, message};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::parse::{ETHERNET, locate};

use crate::datapath::ip;
use crate::inspect::message_name;
use crate::wireguard::PublicKey;

/// A type of message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Initiation,
    Response,
    Cookie,
    #[default]
    Data,
}

/// A message as given by options.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub kind: Kind,
    /// The session's index: the receiver's, or the sender's in an initiation.
    pub index: u32,
    /// Length of the message in bytes; by default the minimum of its type.
    pub length: Option<u16>,
    /// The public key for the mac1 of a handshake message.
    pub public_key: Option<PublicKey>,
}

impl Fields {
    /// The frame, as received by the uplink.
    ///
    /// # Errors
    ///
    /// If no such packet is possible.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let message = self.message()?;
        let mut frame = Vec::new();
        // XDP ignores Ethernet addresses.
        let ethernet = PacketBuilder::ethernet2([0; 6], [0; 6]);
        let packet = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            (from, to) => {
                bail!("{from} and {to} are of different IP versions: use two of the same")
            }
        };
        packet
            .udp(self.source.port(), self.destination.port())
            .write(&mut frame, &message)
            .with_context(|| format!("no UDP packet carries {} bytes", message.len()))?;
        Ok(frame)
    }

    fn message(&self) -> Result<Vec<u8>> {
        let (first, least, index_at, covered) = match self.kind {
            Kind::Initiation => (message::INITIATION, length::INITIATION, 4, Some(116)),
            Kind::Response => (message::RESPONSE, length::RESPONSE, 8, Some(60)),
            Kind::Cookie => (message::COOKIE_REPLY, length::COOKIE_REPLY, 4, None),
            Kind::Data => (message::TRANSPORT_DATA, length::TRANSPORT_DATA_MIN, 4, None),
        };
        let mut message = vec![0; usize::from(least)];
        message[0] = first;
        message[index_at..index_at + 4].copy_from_slice(&self.index.to_le_bytes());
        match (self.public_key, covered) {
            (Some(key), Some(covered)) => {
                let mac1 = mac1(&key, &message[..covered]);
                message[covered..covered + 16].copy_from_slice(&mac1);
            }
            (Some(_), None) => {
                bail!(
                    "only handshake messages carry mac1: --public-key goes with --type initiation or response"
                )
            }
            (None, _) => {}
        }
        message.resize(usize::from(self.length.unwrap_or(least)), 0);
        Ok(message)
    }
}

/// The WireGuard paper, section 5.4.4.
fn mac1(public_key: &PublicKey, covered: &[u8]) -> [u8; 16] {
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(public_key.as_bytes())
        .finalize();
    let mac = <Blake2sMac<U16> as Mac>::new_from_slice(&key).expect("a key of 32 bytes");
    mac.chain_update(covered).finalize().into_bytes().into()
}

/// A frame in hex; its bytes may be separated by white space or colons.
///
/// # Errors
///
/// If it is not hex, or not a frame.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let mut digits = Vec::new();
    for (at, character) in text.chars().enumerate() {
        if character.is_whitespace() || character == ':' {
            continue;
        }
        let digit = character.to_digit(16).with_context(|| {
            format!(
                "character {} of the hex is {character:?}: give the whole Ethernet frame as \
                 digits 0-9 and a-f, with spaces or colons if you like",
                at + 1
            )
        })?;
        digits.push(digit as u8);
    }
    ensure!(
        digits.len() % 2 == 0,
        "the hex has {} digits, and a byte takes two: one is missing or too many",
        digits.len()
    );
    let frame: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    ensure!(
        frame.len() >= ETHERNET,
        "a frame begins with an Ethernet header of {ETHERNET} bytes, and the hex is {} bytes",
        frame.len()
    );
    Ok(frame)
}

/// The frames of a pcap or pcapng capture.
///
/// # Errors
///
/// If it cannot be read, has another link type, or its packets are truncated.
pub fn from_pcap(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes =
        std::fs::read(path).with_context(|| format!("cannot read capture {}", path.display()))?;
    frames(&bytes).with_context(|| format!("capture {}", path.display()))
}

fn frames(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    // The whole file is in the buffer, so that only a truncated file is incomplete.
    let Ok(mut reader) = pcap_parser::create_reader(bytes.len() + 1, bytes) else {
        bail!("neither pcap nor pcapng: `tcpdump -w` and Wireshark write such files");
    };
    let mut frames = Vec::new();
    let mut links = Vec::new();
    let mut at_end = false;
    loop {
        let number = frames.len() + 1;
        match reader.next() {
            Ok((used, block)) => {
                match block {
                    PcapBlockOwned::LegacyHeader(header) => links = vec![header.network],
                    PcapBlockOwned::Legacy(packet) => {
                        let data = packet.data;
                        frames.push(whole(number, links.first(), data, packet.origlen)?);
                    }
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => links.clear(),
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                        links.push(interface.linktype);
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                        let link = links.get(packet.if_id as usize);
                        let data = packet.data.get(..packet.caplen as usize);
                        let data = data.unwrap_or(packet.data);
                        frames.push(whole(number, link, data, packet.origlen)?);
                    }
                    PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                        let data = packet.data.get(..packet.origlen as usize);
                        let data = data.unwrap_or(packet.data);
                        frames.push(whole(number, links.first(), data, packet.origlen)?);
                    }
                    PcapBlockOwned::NG(_) => {}
                }
                reader.consume(used);
            }
            Err(PcapError::Eof) => break,
            // The reader notices the end only then.
            Err(PcapError::Incomplete(_)) if !at_end => {
                at_end = true;
                let _ = reader.refill();
            }
            Err(_) => bail!("damaged or cut off after {} packets", frames.len()),
        }
    }
    ensure!(!frames.is_empty(), "has no packets");
    Ok(frames)
}

/// A captured packet, if it is complete.
fn whole(number: usize, link: Option<&Linktype>, data: &[u8], length: u32) -> Result<Vec<u8>> {
    ensure!(
        link == Some(&Linktype::ETHERNET),
        "packet {number} is not from an Ethernet link: capture on the uplink, not on `any` \
         or a tunnel"
    );
    ensure!(
        data.len() >= length as usize,
        "packet {number} has only {} of {length} bytes: capture \
         whole packets (`tcpdump -s 0`)",
        data.len()
    );
    ensure!(
        data.len() >= ETHERNET,
        "packet {number} has {} bytes, too few for an Ethernet header",
        data.len()
    );
    Ok(data.to_vec())
}

/// A summary of a frame, as the programs parse it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PacketSummary {
    /// Length of the frame in bytes.
    pub length: usize,
    /// None if it is not UDP with visible ports; then all following fields are none.
    pub source: Option<SocketAddr>,
    pub destination: Option<SocketAddr>,
    /// None if it is not a complete datagram; then all following fields are none.
    pub message: Option<String>,
    pub message_length: Option<u16>,
    /// The session index in the message; in an initiation, the announced one.
    pub index: Option<u32>,
}

impl PacketSummary {
    pub fn of(bytes: &mut [u8]) -> Self {
        let frame = Frame::of(bytes);
        let mut summary = Self {
            length: frame.length(),
            ..Self::default()
        };
        let Ok(located) = locate(&frame) else {
            return summary;
        };
        let ends = |words, port| SocketAddr::new(ip(address(words)), port);
        summary.source = Some(ends(located.source, located.source_port));
        summary.destination = Some(ends(located.destination, located.destination_port));
        if let Ok(datagram) = located.datagram(&frame) {
            let first = datagram.message().to_ne_bytes()[0];
            summary.message = message_name(first);
            summary.message_length = Some(datagram.message_length);
            summary.index = match first {
                message::RESPONSE => Some(datagram.response_receiver()),
                message::INITIATION | message::COOKIE_REPLY | message::TRANSPORT_DATA => {
                    Some(datagram.index())
                }
                _ => None,
            };
        }
        summary
    }
}

impl fmt::Display for PacketSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.source, self.destination) {
            (Some(source), Some(destination)) => write!(f, "{source} to {destination}")?,
            _ => write!(f, "no UDP over IP")?,
        }
        if let Some(message) = &self.message {
            write!(f, ", {message}")?;
        }
        if let Some(index) = self.index {
            write!(f, ", session {index:#010x}")?;
        }
        if let Some(length) = self.message_length {
            write!(f, ", message of {length} bytes")?;
        }
        write!(f, ", frame of {} bytes", self.length)
    }
}

#[cfg(test)]
mod tests;
