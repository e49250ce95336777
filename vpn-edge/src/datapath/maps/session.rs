//! What the maps tell of a tenant's live session.

use std::net::SocketAddr;
use std::time::Duration;

use vpn_edge_common::Sessions;

use super::{MapError, Reader, tick_length, ways};

/// When a slot's client was last heard, and from where. See
/// [`Reader::session_times`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionTimes {
    /// Since the last handshake that both ends had a part in.
    pub handshake: Option<Duration>,
    /// The client that was answered and was heard last, and since when. Another
    /// edge node, which sends for a client of its own, is none.
    pub client: Option<(SocketAddr, Duration)>,
    /// Since whoever was answered was heard last, other edge nodes included.
    pub heard: Option<Duration>,
}

impl Reader {
    /// When the slot's client was last heard, and from where.
    ///
    /// All of it is forgotten with the sessions, when the tenant gets new keys
    /// or loses its port.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a lookup.
    pub fn session_times(&self, slot: u16) -> Result<SessionTimes, MapError> {
        let edge = self.edge()?;
        let at = usize::from(slot);
        let handshake = handshake(&self.replays[at], &self.sessions[at], edge.session_life);
        let now = self.tick();
        let mut flows = self.flows(slot)?;
        // Whoever forges an address is not answered there.
        flows.retain(|flow| flow.proven.is_some());
        flows.sort_by_key(|flow| flow.seen);
        let client = flows.iter().find(|flow| !flow.edge_node);
        Ok(SessionTimes {
            handshake: handshake.map(|tick| tick_length() * now.saturating_sub(tick)),
            client: client.map(|flow| (flow.client, flow.seen)),
            heard: flows.first().map(|flow| flow.seen),
        })
    }
}

/// The tick of the last handshake: the client's message was let in, and the
/// gateway announced a session. The earlier of the two, as either end may go on
/// to try alone. Entries stand for `life`, and stay where they are after it.
fn handshake(let_in: &Sessions, announced: &Sessions, life: u32) -> Option<u32> {
    let last = |entries: &Sessions| {
        let expiries = ways(entries).map(|way| way.load() as u32);
        expiries.max().filter(|&expiry| expiry != 0)
    };
    let expiry = last(let_in)?.min(last(announced)?);
    Some(expiry.saturating_sub(life))
}

#[cfg(test)]
mod tests {
    use vpn_edge_ebpf::session;

    use super::*;

    const LIFE: u32 = 100;

    fn at(ticks: &[u32]) -> Sessions {
        let sessions = Sessions::default();
        for (index, tick) in (7..).zip(ticks) {
            session::announce(session::bucket(&sessions, index), index, tick + LIFE);
        }
        sessions
    }

    #[test]
    fn a_handshake_takes_both_ends() {
        let of = |let_in: &[u32], announced: &[u32]| handshake(&at(let_in), &at(announced), LIFE);
        assert_eq!(of(&[], &[]), None);
        assert_eq!(of(&[1000], &[]), None, "nobody answered");
        assert_eq!(of(&[], &[1000]), None, "the client said nothing");
        assert_eq!(of(&[1000], &[1000]), Some(1000));
        assert_eq!(of(&[1000, 1200], &[1000, 1200]), Some(1200), "the last");
        assert_eq!(of(&[1000], &[1000, 1050]), Some(1000), "the client is away");
        assert_eq!(of(&[1000, 1050], &[1000]), Some(1000), "refused since");
    }
}
