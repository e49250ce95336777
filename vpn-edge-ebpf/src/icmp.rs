//! ICMP errors about packets that the edge has changed: who they are for.
//!
//! An error quotes the packet that it is about, as that was where it went
//! wrong. Whoever sent it knows it otherwise. An error about a flow that is not
//! known is left to the kernel, which has no use for it: a stranger's does not
//! reach a gateway.

use crate::flow::{self, Client};
use crate::forwarding::Endpoints;
use crate::frame::Frame;
use crate::limit::{self, ERRORS};
use crate::map_access::MapAccess;
use crate::parse::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, IPV4, IPV6, PROTOCOL_UDP, UDP, network,
};
use crate::steer::{HOP_LIMIT, own, primary};
use vpn_edge_common::{Allocation, Edge, Version, Words, is_mapped, mapped_words, mode, words};

/// Bytes of the error's own header.
pub const HEADER: usize = 8;

/// An error, and whom it is for. In the kernel one a CPU, in a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IcmpForward {
    /// Source and destination of the error: as it came, and as it goes.
    pub outer: [[Words; 2]; 2],
    /// Those of the packet that it quotes.
    pub inner: [Endpoints; 2],
    /// Interface of the gateway that it is for; zero if it leaves the node.
    pub gateway: u32,
    /// Destination and source of the frame to that gateway.
    pub frame: [u32; 3],
    /// Interface that it leaves by; zero if the routes are to say.
    pub uplink: u32,
    /// Bytes of VLAN tags.
    pub tags: u16,
    /// Its hop limit as it came, and as it goes if it leaves the node.
    pub hops: [u8; 2],
    /// Length of the IP packet.
    pub length: u32,
    pub slot: u16,
    pub is_v6: bool,
    pub pad: u8,
}

/// Reads an error about a UDP packet, and says what is to become of it.
#[inline(always)]
#[must_use]
pub fn decide<'m>(
    maps: &impl MapAccess<'m>,
    frame: &Frame<'_>,
    forward: &mut IcmpForward,
) -> Option<&'m Allocation> {
    read(frame, forward)?;
    let edge = maps.edge()?;
    let [[_, destination], _] = forward.outer;
    own(edge, destination)?;
    let quoted = forward.inner[0];
    // What was sent from elsewhere is none of ours.
    own(edge, quoted.source)?;
    let version = version(forward);
    let (source_port, port) = ports(quoted);
    let allocation = match maps.allocation(source_port)? {
        allocation if allocation.mode == mode::NONE => {
            onward(maps, edge, version, forward, source_port, port)?
        }
        allocation => reply(maps, edge, version, forward, allocation, port)?,
    };
    let leaves = forward.gateway == 0;
    // Nodes that take each other for the gateway's would send it round for ever.
    if leaves && forward.hops[0] <= 1 {
        return None;
    }
    let limits = maps.limits(allocation.slot)?;
    limit::take(&limits.errors, maps.now(), ERRORS).then_some(allocation)
}

/// An error about a reply to a client: for the gateway, or for its node.
#[inline(always)]
fn reply<'m>(
    maps: &impl MapAccess<'m>,
    edge: &Edge,
    version: Version,
    forward: &mut IcmpForward,
    allocation: &'m Allocation,
    port: u16,
) -> Option<&'m Allocation> {
    let quoted = forward.inner[0];
    let gateway = allocation.gateway(version);
    let flows = maps.flows(allocation.slot)?;
    let at = Client::new(edge.seed, quoted.destination, port).find(flows)?;
    if gateway == [0, 0] {
        return None;
    }
    forward.slot = allocation.slot;
    let [outer, _] = forward.outer;
    match allocation.mode {
        mode::XDP | mode::TC => {
            forward.outer[1] = [outer[0], gateway];
            forward.inner[1] = Endpoints {
                source: gateway,
                ..quoted
            };
            forward.gateway = allocation.ifindex;
            forward.frame = allocation.frame;
        }
        mode::HOP => {
            let node = words(&primary(edge, version).address);
            let hop_port = edge.hop_ports.wrapping_add(at as u16);
            let (source_port, _) = ports(quoted);
            forward.outer[1] = [node, gateway];
            forward.inner[1] = Endpoints::new(gateway, source_port, node, hop_port);
            // No further than the packets that it may be about.
            forward.hops[1] = forward.hops[1].min(HOP_LIMIT);
            forward.gateway = 0;
            forward.uplink = 0;
        }
        _ => return None,
    }
    Some(allocation)
}

/// An error about a packet on its way to a gateway's node: for the client.
#[inline(always)]
fn onward<'m>(
    maps: &impl MapAccess<'m>,
    edge: &Edge,
    version: Version,
    forward: &mut IcmpForward,
    source_port: u16,
    port: u16,
) -> Option<&'m Allocation> {
    let quoted = forward.inner[0];
    let at = crate::guard::hop(edge, source_port)?;
    let allocation = maps.allocation(port)?;
    if allocation.mode != mode::HOP || quoted.destination != allocation.gateway(version) {
        return None;
    }
    let flow = flow::at(maps.flows(allocation.slot)?, at, edge.seed)?;
    let own = edge.own.get(usize::from(flow.own))?;
    let address = words(&own.address);
    let client = flow.client;
    // The place may be that of another client by now, of the other version.
    let v4 = version == Version::V4;
    let same_version = is_mapped(address) == v4 && is_mapped(client.address) == v4;
    if address == [0, 0] || !same_version {
        return None;
    }
    forward.slot = allocation.slot;
    forward.outer[1] = [address, client.address];
    forward.inner[1] = Endpoints::new(client.address, client.port(), address, port);
    forward.gateway = 0;
    forward.uplink = own.uplink;
    Some(allocation)
}

/// Reads the error's addresses and those that it quotes.
#[inline(always)]
fn read(frame: &Frame<'_>, forward: &mut IcmpForward) -> Option<()> {
    let (l3, ethertype) = network(frame)?;
    forward.tags = (l3 - crate::parse::ETHERNET) as u16;
    match ethertype {
        ETHERTYPE_IPV4 => {
            const QUOTED: usize = IPV4 + HEADER;
            const LEAST: usize = QUOTED + IPV4 + UDP;
            let error = frame.view::<LEAST>(l3)?;
            let length = usize::from(error.u16::<2>());
            // Short frames are filled up with what is not the packet's.
            let complete = length >= LEAST && l3 + length <= frame.length();
            // Unreachable (also for the path MTU), time exceeded, parameter.
            let is_error = matches!(error.u8::<IPV4>(), 3 | 11 | 12);
            let whole = error.u16::<6>() & (FRAGMENT_OFFSET | 0x2000) == 0;
            let of_udp = error.u8::<{ QUOTED + 9 }>() == PROTOCOL_UDP
                && error.u16::<{ QUOTED + 6 }>() & FRAGMENT_OFFSET == 0;
            let plain = error.u8::<0>() == 0x45 && error.u8::<QUOTED>() == 0x45;
            if error.u8::<9>() != ICMP || !(is_error && complete && whole && of_udp && plain) {
                return None;
            }
            forward.is_v6 = false;
            forward.length = length as u32;
            forward.hops = [error.u8::<8>(); 2];
            forward.outer[0] = [
                mapped_words(error.word::<12>()),
                mapped_words(error.word::<16>()),
            ];
            forward.inner[0] = Endpoints {
                source: mapped_words(error.word::<{ QUOTED + 12 }>()),
                destination: mapped_words(error.word::<{ QUOTED + 16 }>()),
                ports: error.word::<{ QUOTED + IPV4 }>(),
                pad: 0,
            };
        }
        ETHERTYPE_IPV6 => {
            const QUOTED: usize = IPV6 + HEADER;
            const LEAST: usize = QUOTED + IPV6 + UDP;
            let error = frame.view::<LEAST>(l3)?;
            let length = IPV6 + usize::from(error.u16::<4>());
            let complete = length >= LEAST && l3 + length <= frame.length();
            // Unreachable, too big, time exceeded, parameter.
            let is_error = matches!(error.u8::<IPV6>(), 1..=4);
            let of_udp = error.u8::<{ QUOTED + 6 }>() == PROTOCOL_UDP;
            let plain = error.u8::<0>() >> 4 == 6 && error.u8::<QUOTED>() >> 4 == 6;
            if error.u8::<6>() != ICMPV6 || !(is_error && complete && of_udp && plain) {
                return None;
            }
            forward.is_v6 = true;
            forward.length = length as u32;
            forward.hops = [error.u8::<7>(); 2];
            forward.outer[0] = [
                [error.double::<8>(), error.double::<16>()],
                [error.double::<24>(), error.double::<32>()],
            ];
            forward.inner[0] = Endpoints {
                source: [
                    error.double::<{ QUOTED + 8 }>(),
                    error.double::<{ QUOTED + 16 }>(),
                ],
                destination: [
                    error.double::<{ QUOTED + 24 }>(),
                    error.double::<{ QUOTED + 32 }>(),
                ],
                ports: error.word::<{ QUOTED + IPV6 }>(),
                pad: 0,
            };
            // No such addresses are on any wire, and here they mean IPv4 or none.
            let odd = |address| is_mapped(address) || address == [0, 0];
            let ([source, destination], quoted) = (forward.outer[0], forward.inner[0]);
            if odd(source) || odd(destination) || odd(quoted.source) || odd(quoted.destination) {
                return None;
            }
        }
        _ => return None,
    }
    forward.hops[1] = forward.hops[1].wrapping_sub(1);
    Some(())
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The error's IP version.
#[must_use]
pub fn version(forward: &IcmpForward) -> Version {
    if forward.is_v6 {
        Version::V6
    } else {
        Version::V4
    }
}

/// Both ports in host order.
#[inline(always)]
fn ports(ends: Endpoints) -> (u16, u16) {
    let ports = u32::from_be(ends.ports);
    ((ports >> 16) as u16, ports as u16)
}
