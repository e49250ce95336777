//! IPv6 packets past the sockets of a node.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use anyhow::Result;
use etherparse::{IpNumber, UdpHeader};
use lab::node::Node;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
};

/// Sends UDP packets from `node`, with a header of destination options before
/// UDP's if `extended`.
pub fn send(
    node: &Node,
    from: SocketAddrV6,
    to: SocketAddrV6,
    extended: bool,
    payloads: Vec<Vec<u8>>,
) -> Result<()> {
    let sent = node.inside(move || {
        // This protocol takes packets with their IP header.
        let (kind, none) = (SockType::Raw, SockFlag::empty());
        let fd = socket(AddressFamily::Inet6, kind, none, SockProtocol::Raw)?;
        for payload in payloads {
            let packet = packet(from, to, extended, &payload)?;
            let to = SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, 0));
            sendto(fd.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        }
        Ok(())
    });
    sent.join().expect("the thread does not panic")
}

fn packet(from: SocketAddrV6, to: SocketAddrV6, extended: bool, payload: &[u8]) -> Result<Vec<u8>> {
    const OPTIONS: [u8; 8] = [17, 0, 1, 4, 0, 0, 0, 0];
    const DESTINATION_OPTIONS: u8 = 60;
    let (source, destination) = (from.ip().octets(), to.ip().octets());
    let mut udp = UdpHeader {
        source_port: from.port(),
        destination_port: to.port(),
        length: u16::try_from(8 + payload.len())?,
        checksum: 0,
    };
    udp.checksum = udp.calc_checksum_ipv6_raw(source, destination, payload)?;
    let (next, options): (u8, &[u8]) = match extended {
        true => (DESTINATION_OPTIONS, &OPTIONS),
        false => (IpNumber::UDP.0, &[]),
    };
    let ip = ip(from.ip(), to.ip(), next, options.len() + 8 + payload.len())?;
    Ok([&ip, options, &udp.to_bytes(), payload].concat())
}

fn ip(from: &Ipv6Addr, to: &Ipv6Addr, next: u8, length: usize) -> Result<Vec<u8>> {
    let length = u16::try_from(length)?.to_be_bytes();
    let first = [0x60, 0, 0, 0, length[0], length[1], next, 64];
    Ok([&first[..], &from.octets(), &to.octets()].concat())
}
