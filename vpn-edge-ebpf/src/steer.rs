//! Where a packet from an uplink goes: the decision, without its effects.

use crate::flow::{self, Client};
use crate::forwarding::{Endpoints, Forwarding};
use crate::frame::Frame;
use crate::guard::{self, Admission, Admitted, Direction};
use crate::map_access::MapAccess;
use crate::parse::{Datagram, ETHERNET, Located, Unlocated, locate};
use crate::{log, session};
use vpn_edge_common::wire::message;
use vpn_edge_common::{
    Allocation, DropReason, Edge, NODE_SLOT, OWN_ADDRESSES, Own, Version, Words, is_mapped, mode,
    words,
};

/// The hook that asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

/// A packet that is not steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not ours: the kernel gets it untouched.
    Pass,
    /// Ours, and not let in.
    Drop { slot: u16, reason: DropReason },
}

/// A packet that goes somewhere.
pub struct Forward<'a, 'm> {
    pub allocation: &'m Allocation,
    pub edge: &'m Edge,
    pub located: Located,
    pub datagram: Datagram<'a>,
    pub next_hop: NextHop<'m>,
}

/// Where it goes.
pub enum NextHop<'m> {
    /// To the gateway, behind an interface of this node.
    Gateway {
        admission: Admission,
        gateway: Words,
    },
    /// On to the gateway's node.
    Node {
        admission: Admission,
        forwarding: &'m mut Forwarding,
    },
    /// From the gateway's node back to the client.
    Client { forwarding: &'m mut Forwarding },
}

/// How far a packet goes from node to node, in routers on the way: nodes that
/// take each other for the gateway's must not send it round for ever.
pub const HOP_LIMIT: u8 = 16;

/// Decides over `frame`, which came in by an uplink.
///
/// # Errors
///
/// Why the packet is not steered.
#[inline(always)]
pub fn decide<'a, 'm>(
    maps: &impl MapAccess<'m>,
    frame: &Frame<'a>,
    hook: Hook,
) -> Result<Forward<'a, 'm>, Refusal> {
    let located = match locate(frame) {
        Ok(located) => located,
        Err(Unlocated::Foreign) => return Err(Refusal::Pass),
        Err(Unlocated::Hidden { destination }) => {
            let edge = maps.edge().ok_or(Refusal::Pass)?;
            own(edge, destination).ok_or(Refusal::Pass)?;
            // It may be for any tenant's port, or for none.
            return Err(Refusal::Drop {
                slot: NODE_SLOT,
                reason: DropReason::IpOptions,
            });
        }
    };
    let allocation = maps
        .allocation(located.destination_port)
        .ok_or(Refusal::Pass)?;
    let edge = maps.edge().ok_or(Refusal::Pass)?;
    if allocation.mode == mode::NONE {
        return back(maps, frame, located, edge);
    }
    let own = own(edge, located.destination).ok_or(Refusal::Pass)?;
    if hook == Hook::Xdp && allocation.mode == mode::TC {
        let [high, low] = located.source;
        log::left_to_tc_gateway(located.destination_port, high, low, located.source_port);
        return Err(Refusal::Pass);
    }
    let drop = |reason| Refusal::Drop {
        slot: allocation.slot,
        reason,
    };
    let datagram = located.datagram(frame).map_err(drop)?;
    guard::check_format(datagram.message(), datagram.message_length).map_err(drop)?;
    let gateway = allocation.gateway(located.version);
    if allocation.mode == mode::CLOSED || gateway == [0, 0] {
        return Err(drop(DropReason::NoGateway));
    }
    let elsewhere = allocation.mode == mode::HOP;
    if elsewhere && located.hop_limit <= 1 {
        return Err(drop(DropReason::HopLimit));
    }
    let admission =
        guard::admit(maps, frame, &located, &datagram, allocation, edge).map_err(drop)?;
    let bytes = datagram.ip_length;
    guard::within_plan(maps, allocation, Direction::Ingress, 1, bytes).map_err(drop)?;
    let next_hop = if elsewhere {
        let forwarding = onward(maps, &located, &datagram, allocation, edge, own, admission)
            .ok_or(drop(DropReason::NoRoute))?;
        NextHop::Node {
            admission,
            forwarding,
        }
    } else {
        // Replies to a client need no flow where all leave from one address,
        // and then handshakes are enough to know who is there.
        if edge.several != 0 || admission.by == Admitted::Handshake {
            let client = Client::new(edge.seed, located.source, located.source_port);
            if let Some(flows) = maps.flows(allocation.slot) {
                let _ = client.touch(flows, own, maps.tick(), edge.session_life);
            }
        }
        NextHop::Gateway { admission, gateway }
    };
    Ok(Forward {
        allocation,
        edge,
        located,
        datagram,
        next_hop,
    })
}

/// The way to the gateway's node: from this node's address, and the port of
/// the client's flow.
#[inline(always)]
fn onward<'m>(
    maps: &impl MapAccess<'m>,
    located: &Located,
    datagram: &Datagram<'_>,
    allocation: &Allocation,
    edge: &Edge,
    own: u8,
    admission: Admission,
) -> Option<&'m mut Forwarding> {
    let source = words(&primary(edge, located.version).address);
    if source == [0, 0] || edge.hop_ports == 0 {
        return None;
    }
    let flows = maps.flows(allocation.slot)?;
    let client = Client::new(edge.seed, located.source, located.source_port);
    let at = client.touch(flows, own, maps.tick(), edge.session_life);
    if let Some(flow) = flow::at(flows, at, edge.seed) {
        match u32::from_le(datagram.message()) {
            // What it announces is how it wants to be answered.
            INITIATION | RESPONSE => flow.expect_index(datagram.index()),
            DATA if admission.by == Admitted::Relayed => flow.note_pending(datagram.index()),
            _ => {}
        }
    }
    let port = edge.hop_ports.wrapping_add(at as u16);
    let gateway = allocation.gateway(located.version);
    let limit = located.hop_limit.wrapping_sub(1);
    Some(forwarding(
        maps.forwarding()?,
        located,
        datagram,
        Endpoints::new(source, port, gateway, located.destination_port),
        if limit > HOP_LIMIT { HOP_LIMIT } else { limit },
        0,
    ))
}

#[inline(always)]
fn forwarding<'m>(
    forwarding: &'m mut Forwarding,
    located: &Located,
    datagram: &Datagram<'_>,
    to: Endpoints,
    limit: u8,
    uplink: u32,
) -> &'m mut Forwarding {
    forwarding.from = Endpoints::new(
        located.source,
        located.source_port,
        located.destination,
        located.destination_port,
    );
    forwarding.to = to;
    forwarding.uplink = uplink;
    forwarding.length = datagram.ip_length;
    forwarding.tags = (located.l3 - ETHERNET) as u32;
    forwarding.is_v6 = located.version == Version::V6;
    forwarding.hops = [located.hop_limit, limit];
    forwarding
}

/// Decides over a packet to a port that is nobody's: it may be a gateway's
/// answer from another node.
#[inline(always)]
fn back<'a, 'm>(
    maps: &impl MapAccess<'m>,
    frame: &Frame<'a>,
    located: Located,
    edge: &'m Edge,
) -> Result<Forward<'a, 'm>, Refusal> {
    let at = guard::hop(edge, located.destination_port).ok_or(Refusal::Pass)?;
    let allocation = maps.allocation(located.source_port).ok_or(Refusal::Pass)?;
    if allocation.mode != mode::HOP || located.source != allocation.gateway(located.version) {
        return Err(Refusal::Pass);
    }
    own(edge, located.destination).ok_or(Refusal::Pass)?;
    let drop = |reason| Refusal::Drop {
        slot: allocation.slot,
        reason,
    };
    let datagram = located.datagram(frame).map_err(drop)?;
    guard::check_format(datagram.message(), datagram.message_length).map_err(drop)?;
    if located.hop_limit <= 1 {
        return Err(drop(DropReason::HopLimit));
    }
    let flows = maps
        .flows(allocation.slot)
        .ok_or(drop(DropReason::UnknownFlow))?;
    let flow = flow::at(flows, at, edge.seed).ok_or(drop(DropReason::UnknownFlow))?;
    let from = edge
        .own
        .get(usize::from(flow.own))
        .ok_or(drop(DropReason::UnknownFlow))?;
    let source = words(&from.address);
    // What comes over the other IP version cannot go on over this one.
    let v4 = located.version == Version::V4;
    let same_version = is_mapped(source) == v4 && is_mapped(flow.client.address) == v4;
    if source == [0, 0] || !same_version {
        return Err(drop(DropReason::UnknownFlow));
    }
    let bytes = datagram.ip_length;
    guard::within_plan(maps, allocation, Direction::Egress, 1, bytes).map_err(drop)?;
    learn(
        maps,
        allocation,
        located.source_port,
        edge,
        &datagram,
        &flow,
    );
    let client = flow.client;
    let forwarding = forwarding(
        maps.forwarding().ok_or(drop(DropReason::NoRoute))?,
        &located,
        &datagram,
        Endpoints::new(source, located.source_port, client.address, client.port()),
        located.hop_limit.wrapping_sub(1),
        from.uplink,
    );
    Ok(Forward {
        allocation,
        edge,
        located,
        datagram,
        next_hop: NextHop::Client { forwarding },
    })
}

/// Learns from a gateway's answer what egress learns on the gateway's own node.
///
/// An answer to what the client offered shows that its sender saw the client's
/// message. A client whose session this node does not know is believed once it
/// is answered.
#[inline(always)]
fn learn<'m>(
    maps: &impl MapAccess<'m>,
    allocation: &Allocation,
    tenant: u16,
    edge: &Edge,
    datagram: &Datagram<'_>,
    flow: &flow::Known<'_>,
) {
    let Some(sessions) = maps.sessions(allocation.slot) else {
        return;
    };
    let now = maps.tick();
    let life = edge.session_life;
    let offered = flow.offered();
    let index = match u32::from_le(datagram.message()) {
        RESPONSE if datagram.response_receiver() == offered => datagram.index(),
        INITIATION if flow.is_proven(now, life) => datagram.index(),
        DATA if offered == 0 || datagram.index() == offered => {
            let index = flow.wondered();
            if index == 0 {
                flow.confirm(now);
                return;
            }
            index
        }
        // A cookie reply proves nothing: it is sent to whoever asks.
        _ => return,
    };
    flow.confirm(now);
    let ([high, low], port) = (flow.client.address, flow.client.port());
    log::session_learned(tenant, high, low, port, index);
    session::announce(session::bucket(sessions, index), index, now + life);
}

const INITIATION: u32 = message::INITIATION as u32;
const RESPONSE: u32 = message::RESPONSE as u32;
const DATA: u32 = message::TRANSPORT_DATA as u32;

/// Which of the node's addresses it is.
#[inline(always)]
#[must_use]
pub fn own(edge: &Edge, address: Words) -> Option<u8> {
    let [first, second, ..] = &edge.own;
    if words(&first.address) == address {
        return Some(0);
    }
    if words(&second.address) == address {
        return Some(1);
    }
    let at = others(edge, address[0], address[1]);
    (at < OWN_ADDRESSES as u32).then_some(at as u8)
}

/// [`own`] among those that are not the first of their version: a function for
/// its own stack.
#[inline(never)]
fn others(edge: &Edge, high: u64, low: u64) -> u32 {
    for at in 2..OWN_ADDRESSES {
        if words(&edge.own[at].address) == [high, low] {
            return at as u32;
        }
    }
    OWN_ADDRESSES as u32
}

/// The address that replies leave from unless their flow says otherwise.
#[inline(always)]
#[must_use]
pub fn primary(edge: &Edge, version: Version) -> &Own {
    match version {
        Version::V4 => &edge.own[0],
        Version::V6 => &edge.own[1],
    }
}
