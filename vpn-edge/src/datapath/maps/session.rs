//! A tenant's live session, as recorded in the maps.

use std::net::SocketAddr;
use std::time::Duration;

use vpn_edge_common::Sessions;

use super::{MapError, Reader, tick_length, ways};

/// When and from where a slot's client was last heard. See [`Reader::session_times`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionTimes {
    /// Time since the last handshake that both ends took part in.
    pub handshake: Option<Duration>,
    /// The answered client that was heard last, and the time since then. Never
    /// another edge node, which forwards for a client of its own.
    pub client: Option<(SocketAddr, Duration)>,
    /// Time since an answered sender was heard, including other edge nodes.
    pub heard: Option<Duration>,
}

impl Reader {
    /// When and from where the slot's client was last heard.
    ///
    /// This is reset with the sessions, when the tenant gets new keys or loses its
    /// port.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a lookup.
    pub fn session_times(&self, slot: u16) -> Result<SessionTimes, MapError> {
        let edge = self.edge()?;
        let at = usize::from(slot);
        let handshake = handshake(&self.replays[at], &self.sessions[at], edge.session_life);
        let now = self.tick();
        let mut flows = self.flows(slot)?;
        // Senders with a forged address are not answered.
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

/// The tick of the last handshake: the client's message was let in, and the gateway
/// announced a session. The earlier of the two, because either end may continue to
/// try alone. Entries are valid for `life`, and stay in place afterwards.
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
