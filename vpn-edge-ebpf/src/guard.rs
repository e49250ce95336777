//! Who is let in: nobody but those who know the gateway's key or one of its
//! sessions.
//!
//! A message has a shape, which is judged first and costs least. Handshake
//! messages carry mac1, a proof that their sender knows the gateway's public
//! key; all others name a session that the gateway has announced. What passed
//! is held to the tenant's plan.

use crate::frame::Frame;
use crate::limit::{self, HANDSHAKES, PLAN_AHEAD, Rate, SOURCE, UNKNOWN};
use crate::map_access::MapAccess;
use crate::parse::{Datagram, Located};
use crate::{mac1, session};
use vpn_edge_common::wire::{length, message};
use vpn_edge_common::{Allocation, DropReason, Edge, FLOWS, Version, mode, unmapped_words};

/// By what right a packet was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Its session is known.
    Session,
    /// It is a handshake message with a good mac1.
    Handshake,
    /// Its session is unknown, which is forgiven for a while.
    Grace,
    /// Its session is unknown here: the gateway's own node has the last word,
    /// as a load balancer may have moved the flow.
    Relayed,
}

/// A packet that was let in.
#[derive(Clone, Copy)]
pub struct Admission {
    pub by: Admitted,
    /// Beginning of the mac1 by which a handshake message is known again.
    mac: Option<u32>,
}

/// To the gateway or from it: the index into [`vpn_edge_common::Limits`]' pairs.
#[derive(Clone, Copy)]
pub enum Direction {
    Ingress = 0,
    Egress = 1,
}

/// Judges a message of good shape.
///
/// # Errors
///
/// Why it is not let in.
#[inline(always)]
pub fn admit<'m>(
    maps: &impl MapAccess<'m>,
    frame: &Frame<'_>,
    located: &Located,
    datagram: &Datagram<'_>,
    allocation: &Allocation,
    edge: &Edge,
) -> Result<Admission, DropReason> {
    let (mac, by) = match u32::from_le(datagram.message()) {
        INITIATION => {
            from_source(maps, located, edge)?;
            let message = frame
                .view::<{ length::INITIATION as usize }>(located.message())
                .ok_or(DropReason::Truncated)?;
            let scratch = maps.scratch().ok_or(DropReason::Mac1)?;
            if !mac1::initiation(&message, &allocation.mac1, scratch) {
                return Err(DropReason::Mac1);
            }
            (message.word::<116>(), Admitted::Handshake)
        }
        RESPONSE => {
            // It answers an initiation, which announced the index.
            let admitted = in_session(maps, allocation, datagram.response_receiver())?;
            from_source(maps, located, edge)?;
            let message = frame
                .view::<{ length::RESPONSE as usize }>(located.message())
                .ok_or(DropReason::Truncated)?;
            let scratch = maps.scratch().ok_or(DropReason::Mac1)?;
            if !mac1::response(&message, &allocation.mac1, scratch) {
                return Err(DropReason::Mac1);
            }
            let by = match admitted {
                Admitted::Session => Admitted::Handshake,
                other => other,
            };
            (message.word::<60>(), by)
        }
        _ => {
            let by = in_session(maps, allocation, datagram.index())?;
            return Ok(Admission { by, mac: None });
        }
    };
    check_replay(maps, allocation, edge, mac)?;
    Ok(Admission { by, mac: Some(mac) })
}

/// Forgets that a packet was let in, for whoever is to judge it next.
#[inline(always)]
pub fn forget<'m>(maps: &impl MapAccess<'m>, allocation: &Allocation, admission: Admission) {
    if let Some(mac) = admission.mac
        && let Some(replays) = maps.replays(allocation.slot)
    {
        session::forget(session::bucket(replays, mac), mac);
    }
}

/// Holds what was let in, or what leaves, to the tenant's plan.
///
/// # Errors
///
/// [`DropReason::PacketRate`] and [`DropReason::ByteRate`].
#[inline(always)]
pub fn within_plan<'m>(
    maps: &impl MapAccess<'m>,
    allocation: &Allocation,
    direction: Direction,
    packets: u32,
    bytes: u32,
) -> Result<(), DropReason> {
    if allocation.limited == 0 {
        return Ok(());
    }
    let Some(limits) = maps.limits(allocation.slot) else {
        return Ok(());
    };
    let now = maps.now();
    let spend = |bucket, cost| {
        let rate = Rate {
            cost,
            ahead: PLAN_AHEAD,
        };
        cost == 0 || limit::take(bucket, now, rate)
    };
    let rates = allocation.rates;
    let of_packets = u64::from(packets) * u64::from(rates.packet);
    if !spend(&limits.packets[direction as usize], of_packets) {
        return Err(DropReason::PacketRate);
    }
    let of_bytes = (u64::from(bytes) * u64::from(rates.byte)) >> 10;
    if !spend(&limits.bytes[direction as usize], of_bytes) {
        return Err(DropReason::ByteRate);
    }
    Ok(())
}

#[inline(always)]
fn in_session<'m>(
    maps: &impl MapAccess<'m>,
    allocation: &Allocation,
    index: u32,
) -> Result<Admitted, DropReason> {
    let sessions = maps
        .sessions(allocation.slot)
        .ok_or(DropReason::UnknownSession)?;
    if session::is_live(session::bucket(sessions, index), index, || maps.tick()) {
        return Ok(Admitted::Session);
    }
    let limits = maps
        .limits(allocation.slot)
        .ok_or(DropReason::UnknownSession)?;
    if allocation.mode == mode::HOP {
        if !limit::take(&limits.unknown, maps.now(), UNKNOWN) {
            return Err(DropReason::GraceRate);
        }
        return Ok(Admitted::Relayed);
    }
    let grace = limits.grace.load();
    if grace == 0 {
        return Err(DropReason::UnknownSession);
    }
    let now = maps.now();
    if grace < now {
        return Err(DropReason::UnknownSession);
    }
    if !limit::take(&limits.unknown, now, UNKNOWN) {
        return Err(DropReason::GraceRate);
    }
    Ok(Admitted::Grace)
}

#[inline(always)]
fn from_source<'m>(
    maps: &impl MapAccess<'m>,
    located: &Located,
    edge: &Edge,
) -> Result<(), DropReason> {
    let bucket = maps
        .source(limit::source(edge.seed, source(maps, located, edge)))
        .ok_or(DropReason::SourceRate)?;
    if limit::take(bucket, maps.now(), SOURCE) {
        Ok(())
    } else {
        Err(DropReason::SourceRate)
    }
}

/// Who counts as one source: an IPv4 address, the upper half of an IPv6 one.
///
/// Another edge node sends for many clients, each from a port of its own. Any
/// client may choose such a port, so the address has to be a node's too.
#[inline(always)]
fn source<'m>(maps: &impl MapAccess<'m>, located: &Located, edge: &Edge) -> u64 {
    let address = match located.version {
        Version::V4 => u64::from(unmapped_words(located.source)),
        Version::V6 => located.source[0],
    };
    let port = located.source_port;
    if hop(edge, port).is_some() && maps.is_node(located.source) {
        address ^ u64::from(port) << 32
    } else {
        address
    }
}

/// Which of the tenant's flows a port stands for, if it is one of those that
/// packets to other nodes leave from.
#[inline(always)]
#[must_use]
pub fn hop(edge: &Edge, port: u16) -> Option<usize> {
    let at = usize::from(port.wrapping_sub(edge.hop_ports));
    (at < FLOWS && edge.hop_ports != 0).then_some(at)
}

/// Lets in a handshake message with a good mac1, `mac`: once, and not more of
/// them than the gateway takes. No implementation sends the same one twice.
#[inline(always)]
fn check_replay<'m>(
    maps: &impl MapAccess<'m>,
    allocation: &Allocation,
    edge: &Edge,
    mac: u32,
) -> Result<(), DropReason> {
    let replays = maps.replays(allocation.slot).ok_or(DropReason::Replay)?;
    let now = maps.tick();
    let bucket = session::bucket(replays, mac);
    if session::is_live(bucket, mac, || now) {
        return Err(DropReason::Replay);
    }
    let limits = maps
        .limits(allocation.slot)
        .ok_or(DropReason::HandshakeRate)?;
    if !limit::take(&limits.handshakes, maps.now(), HANDSHAKES) {
        return Err(DropReason::HandshakeRate);
    }
    session::announce(bucket, mac, now + edge.session_life);
    Ok(())
}

/// Judges a message by its first four bytes (wire order) and its length.
///
/// # Errors
///
/// [`DropReason::MessageType`] for an unknown type or reserved bytes that are
/// not zero, [`DropReason::MessageLength`] for a length its type cannot have.
#[inline(always)]
pub fn check_format(first: u32, message_length: u16) -> Result<(), DropReason> {
    // The type is the first byte, so as a little-endian number a well-formed
    // word is the type itself.
    let fits = match u32::from_le(first) {
        DATA => message_length >= length::TRANSPORT_DATA_MIN,
        INITIATION => message_length == length::INITIATION,
        RESPONSE => message_length == length::RESPONSE,
        COOKIE_REPLY => message_length == length::COOKIE_REPLY,
        _ => return Err(DropReason::MessageType),
    };
    if fits {
        Ok(())
    } else {
        Err(DropReason::MessageLength)
    }
}

const DATA: u32 = message::TRANSPORT_DATA as u32;
const INITIATION: u32 = message::INITIATION as u32;
const RESPONSE: u32 = message::RESPONSE as u32;
const COOKIE_REPLY: u32 = message::COOKIE_REPLY as u32;

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(first: [u8; 4], length: u16) -> Result<(), DropReason> {
        check_format(u32::from_ne_bytes(first), length)
    }

    #[test]
    fn each_message_type_has_its_own_lengths_and_no_other() {
        for kind in 0..=u8::MAX {
            for length in 0..300 {
                let expected = match (kind, length) {
                    (1, 148) | (2, 92) | (3, 64) | (4, 32..) => Ok(()),
                    (1..=4, _) => Err(DropReason::MessageLength),
                    _ => Err(DropReason::MessageType),
                };
                assert_eq!(judge([kind, 0, 0, 0], length), expected, "{kind} {length}");
            }
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for at in 1..4 {
            for bit in 0..8 {
                let mut first = [4, 0, 0, 0];
                first[at] |= 1 << bit;
                assert_eq!(judge(first, 128), Err(DropReason::MessageType));
            }
        }
    }
}
