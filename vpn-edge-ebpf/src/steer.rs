//! Where a packet from the uplink goes: the decision, without its effects.

use crate::frame::Frame;
use crate::guard::{self, Admitted, Direction};
use crate::parse::{Datagram, locate};
use crate::world::World;
use vpn_edge_common::{Allocation, DropReason, V4_OFFSET, mode};

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

/// A packet for a gateway on this node.
pub struct Steered<'a, 'm> {
    pub allocation: &'m Allocation,
    pub datagram: Datagram<'a>,
    pub admitted: Admitted,
    /// Offset of the IPv4 header.
    pub l3: usize,
    /// The address that the client sent to, in wire order.
    pub destination: u32,
}

/// Decides over `frame`, which came in by the uplink.
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
    let located = locate(frame).ok_or(Refusal::Pass)?;
    let allocation = world
        .allocation(located.destination_port)
        .ok_or(Refusal::Pass)?;
    if allocation.mode == mode::NONE {
        return Err(Refusal::Pass);
    }
    let edge = world.edge().ok_or(Refusal::Pass)?;
    if located.destination != v4(&edge.address) {
        return Err(Refusal::Pass);
    }
    if rung == Rung::Xdp && allocation.mode == mode::TC {
        return Err(Refusal::Pass);
    }
    let drop = |reason| Refusal::Drop {
        slot: allocation.slot,
        reason,
    };
    let datagram = located.datagram(frame).map_err(drop)?;
    guard::shape(datagram.message(), datagram.message_length).map_err(drop)?;
    if allocation.mode == mode::CLOSED {
        return Err(drop(DropReason::NoGateway));
    }
    let admitted =
        guard::admit(world, frame, &located, &datagram, allocation, edge).map_err(drop)?;
    let bytes = u32::from(datagram.ip_length);
    guard::within_plan(world, allocation, Direction::Ingress, 1, bytes).map_err(drop)?;
    Ok(Steered {
        allocation,
        datagram,
        admitted,
        l3: located.l3,
        destination: located.destination,
    })
}

/// The IPv4 address inside `address`, in wire order.
#[inline(always)]
#[must_use]
pub fn v4(address: &[u8; 16]) -> u32 {
    // SAFETY: four bytes from offset 12 lie inside the array. Map values are
    // aligned to eight bytes and their addresses to four.
    unsafe { address.as_ptr().add(V4_OFFSET).cast::<u32>().read() }
}
