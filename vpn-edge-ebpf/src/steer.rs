//! Where a packet from an uplink goes: the decision, without its effects.

use crate::flow::{self, Client};
use crate::forwarding::{Ends, Journey};
use crate::frame::Frame;
use crate::guard::{self, Admission, Admitted, Direction};
use crate::parse::{Datagram, ETHERNET, Located, Unlocated, locate};
use crate::session;
use crate::world::World;
use vpn_edge_common::wire::message;
use vpn_edge_common::{
    Allocation, DropReason, Edge, NODE_SLOT, OWN_ADDRESSES, Own, Version, Words, is_mapped, mode,
    words,
};

/// The hook that asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rung {
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
pub struct Steered<'a, 'm> {
    pub allocation: &'m Allocation,
    pub edge: &'m Edge,
    pub located: Located,
    pub datagram: Datagram<'a>,
    pub way: Way<'m>,
}

/// Where it goes.
pub enum Way<'m> {
    /// To the gateway, behind an interface of this node.
    Gateway {
        admission: Admission,
        gateway: Words,
    },
    /// On to the gateway's node.
    Node {
        admission: Admission,
        journey: &'m mut Journey,
    },
    /// From the gateway's node back to the client.
    Client { journey: &'m mut Journey },
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
    world: &impl World<'m>,
    frame: &Frame<'a>,
    rung: Rung,
) -> Result<Steered<'a, 'm>, Refusal> {
    let located = match locate(frame) {
        Ok(located) => located,
        Err(Unlocated::Foreign) => return Err(Refusal::Pass),
        Err(Unlocated::Hidden { destination }) => {
            let edge = world.edge().ok_or(Refusal::Pass)?;
            own(edge, destination).ok_or(Refusal::Pass)?;
            // It may be for any tenant's port, or for none.
            return Err(Refusal::Drop {
                slot: NODE_SLOT,
                reason: DropReason::IpOptions,
            });
        }
    };
    let allocation = world
        .allocation(located.destination_port)
        .ok_or(Refusal::Pass)?;
    let edge = world.edge().ok_or(Refusal::Pass)?;
    if allocation.mode == mode::NONE {
        return back(world, frame, located, edge);
    }
    let own = own(edge, located.destination).ok_or(Refusal::Pass)?;
    if rung == Rung::Xdp && allocation.mode == mode::TC {
        return Err(Refusal::Pass);
    }
    let drop = |reason| Refusal::Drop {
        slot: allocation.slot,
        reason,
    };
    let datagram = located.datagram(frame).map_err(drop)?;
    guard::shape(datagram.message(), datagram.message_length).map_err(drop)?;
    let gateway = allocation.gateway(located.version);
    if allocation.mode == mode::CLOSED || gateway == [0, 0] {
        return Err(drop(DropReason::NoGateway));
    }
    let elsewhere = allocation.mode == mode::HOP;
    if elsewhere && located.hop_limit <= 1 {
        return Err(drop(DropReason::HopLimit));
    }
    let admission =
        guard::admit(world, frame, &located, &datagram, allocation, edge).map_err(drop)?;
    let bytes = datagram.ip_length;
    guard::within_plan(world, allocation, Direction::Ingress, 1, bytes).map_err(drop)?;
    let way = if elsewhere {
        let journey = onward(world, &located, &datagram, allocation, edge, own, admission)
            .ok_or(drop(DropReason::NoRoute))?;
        Way::Node { admission, journey }
    } else {
        // Replies to a client need no flow where all leave from one address,
        // and then handshakes are enough to know who is there.
        if edge.several != 0 || admission.by == Admitted::Handshake {
            let client = Client::new(edge.seed, located.source, located.source_port);
            if let Some(flows) = world.flows(allocation.slot) {
                let _ = client.touch(flows, own, world.tick(), edge.session_life);
            }
        }
        Way::Gateway { admission, gateway }
    };
    Ok(Steered {
        allocation,
        edge,
        located,
        datagram,
        way,
    })
}

/// The way to the gateway's node: from this node's address, and the port of
/// the client's flow.
#[inline(always)]
fn onward<'m>(
    world: &impl World<'m>,
    located: &Located,
    datagram: &Datagram<'_>,
    allocation: &Allocation,
    edge: &Edge,
    own: u8,
    admission: Admission,
) -> Option<&'m mut Journey> {
    let source = words(&primary(edge, located.version).address);
    if source == [0, 0] || edge.hop_ports == 0 {
        return None;
    }
    let flows = world.flows(allocation.slot)?;
    let client = Client::new(edge.seed, located.source, located.source_port);
    let at = client.touch(flows, own, world.tick(), edge.session_life);
    if let Some(flow) = flow::at(flows, at, edge.seed) {
        match u32::from_le(datagram.message()) {
            // What it announces is how it wants to be answered.
            INITIATION | RESPONSE => flow.offer(datagram.index()),
            DATA if admission.by == Admitted::Relayed => flow.wonder(datagram.index()),
            _ => {}
        }
    }
    let port = edge.hop_ports.wrapping_add(at as u16);
    let gateway = allocation.gateway(located.version);
    let limit = located.hop_limit.wrapping_sub(1);
    Some(journey(
        world.journey()?,
        located,
        datagram,
        Ends::new(source, port, gateway, located.destination_port),
        if limit > HOP_LIMIT { HOP_LIMIT } else { limit },
        0,
    ))
}

#[inline(always)]
fn journey<'m>(
    journey: &'m mut Journey,
    located: &Located,
    datagram: &Datagram<'_>,
    to: Ends,
    limit: u8,
    uplink: u32,
) -> &'m mut Journey {
    journey.from = Ends::new(
        located.source,
        located.source_port,
        located.destination,
        located.destination_port,
    );
    journey.to = to;
    journey.uplink = uplink;
    journey.length = datagram.ip_length;
    journey.tags = (located.l3 - ETHERNET) as u32;
    journey.is_v6 = located.version == Version::V6;
    journey.hops = [located.hop_limit, limit];
    journey
}

/// Decides over a packet to a port that is nobody's: it may be a gateway's
/// answer from another node.
#[inline(always)]
fn back<'a, 'm>(
    world: &impl World<'m>,
    frame: &Frame<'a>,
    located: Located,
    edge: &'m Edge,
) -> Result<Steered<'a, 'm>, Refusal> {
    let at = guard::hop(edge, located.destination_port).ok_or(Refusal::Pass)?;
    let allocation = world.allocation(located.source_port).ok_or(Refusal::Pass)?;
    if allocation.mode != mode::HOP || located.source != allocation.gateway(located.version) {
        return Err(Refusal::Pass);
    }
    own(edge, located.destination).ok_or(Refusal::Pass)?;
    let drop = |reason| Refusal::Drop {
        slot: allocation.slot,
        reason,
    };
    let datagram = located.datagram(frame).map_err(drop)?;
    guard::shape(datagram.message(), datagram.message_length).map_err(drop)?;
    if located.hop_limit <= 1 {
        return Err(drop(DropReason::HopLimit));
    }
    let flows = world
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
    guard::within_plan(world, allocation, Direction::Egress, 1, bytes).map_err(drop)?;
    learn(world, allocation, edge, &datagram, &flow);
    let client = flow.client;
    let journey = journey(
        world.journey().ok_or(drop(DropReason::NoRoute))?,
        &located,
        &datagram,
        Ends::new(source, located.source_port, client.address, client.port()),
        located.hop_limit.wrapping_sub(1),
        from.uplink,
    );
    Ok(Steered {
        allocation,
        edge,
        located,
        datagram,
        way: Way::Client { journey },
    })
}

/// Learns from a gateway's answer what egress learns on the gateway's own node.
///
/// An answer to what the client offered shows that its sender saw the client's
/// message. A client whose session this node does not know is believed once it
/// is answered.
#[inline(always)]
fn learn<'m>(
    world: &impl World<'m>,
    allocation: &Allocation,
    edge: &Edge,
    datagram: &Datagram<'_>,
    flow: &flow::Known<'_>,
) {
    let Some(sessions) = world.sessions(allocation.slot) else {
        return;
    };
    let now = world.tick();
    let life = edge.session_life;
    let offered = flow.offered();
    let index = match u32::from_le(datagram.message()) {
        RESPONSE if datagram.response_receiver() == offered => datagram.index(),
        INITIATION if flow.is_proven(now, life) => datagram.index(),
        DATA if offered == 0 || datagram.index() == offered => {
            let index = flow.wondered();
            if index == 0 {
                flow.prove(now);
                return;
            }
            index
        }
        // A cookie reply proves nothing: it is sent to whoever asks.
        _ => return,
    };
    flow.prove(now);
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
