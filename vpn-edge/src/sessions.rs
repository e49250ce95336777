//! A tenant's live session, as the edges observe it.
//!
//! WireGuard has no connections: a client counts as connected while one of its
//! sessions can be alive.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vpn_edge_common::wire::time::REJECT_AFTER;
use vpn_edge_common::{Counters, mode};

use crate::datapath::{MapError, SessionTimes};
use crate::domain::Tenant;

/// How long a session may be used after its handshake.
const ALIVE: Duration = Duration::from_nanos(REJECT_AFTER);

/// A tenant's live session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Session {
    /// Whether a session may be alive: there was a handshake, or an answered packet,
    /// within the last 180 s. A client that keeps its tunnel up makes a handshake
    /// every two minutes.
    pub connected: bool,
    /// The last handshake with the current keys, accurate to about a second.
    pub last_handshake: Option<Timestamp>,
    /// The client's last known address. When the client roams, it is updated with
    /// the next handshake at the latest.
    #[schema(value_type = Option<String>, example = "203.0.113.9:51820")]
    pub client: Option<SocketAddr>,
    /// Traffic from the client since the VPN was enabled, or since the edge of its
    /// gateway's node began to count: after a reboot, or when the gateway moved to
    /// another node.
    pub received: Traffic,
    /// Traffic to the client over the same time.
    pub sent: Traffic,
    /// Whether all edges answered. Otherwise one that did not may know of a later
    /// handshake, or of more traffic.
    pub complete: bool,
}

/// Packets outside the tunnel, and their bytes including IP headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

/// Why a session cannot be reported.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Maps(#[from] MapError),
    #[error("cannot query the edges: {0}")]
    Edges(String),
}

/// Reports tenants' sessions.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// The tenant's current session; an empty one if the tenant has no port.
    async fn session(&self, tenant: &Tenant) -> Result<Session, SessionError>;
}

/// The sessions that one edge knows.
pub trait EdgeSessions: Send + Sync {
    /// The session on a port, as this edge knows it. None if the port belongs to
    /// another tenant here or has other keys.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a lookup.
    fn seen(&self, port: u16, query: SessionQuery) -> Result<Option<EdgeSession>, SessionError>;
}

/// Which session is queried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionQuery {
    pub tenant: Uuid,
    /// Generation of the keys.
    pub generation: u64,
}

/// What one edge knows of a session. Times are relative ("how long ago"), because the
/// clocks of nodes differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeSession {
    connected: bool,
    handshake: Option<Duration>,
    client: Option<(SocketAddr, Duration)>,
    received: Traffic,
    sent: Traffic,
    /// Whether the gateway is on this edge's node. Such an edge also counts packets
    /// that other edges forward to it.
    has_gateway: bool,
}

impl EdgeSession {
    pub(crate) fn new(mode: u8, times: SessionTimes, counters: &Counters) -> Self {
        let fresh = |ago: Option<Duration>| ago.is_some_and(|ago| ago < ALIVE);
        Self {
            // Without a gateway nothing passes.
            connected: mode > mode::CLOSED && (fresh(times.handshake) || fresh(times.heard)),
            handshake: times.handshake,
            client: times.client,
            received: Traffic {
                packets: counters.ingress_packets,
                bytes: counters.ingress_bytes,
            },
            sent: Traffic {
                packets: counters.egress_packets,
                bytes: counters.egress_bytes,
            },
            has_gateway: mode == mode::XDP || mode == mode::TC,
        }
    }
}

impl Session {
    /// The session of a tenant without port; complete.
    pub(crate) fn none() -> Self {
        Self {
            connected: false,
            last_handshake: None,
            client: None,
            received: Traffic::default(),
            sent: Traffic::default(),
            complete: true,
        }
    }

    /// Merges the answers of edges: the newest times, and each packet counted once.
    pub(crate) fn of(seen: &[EdgeSession], now: Timestamp, complete: bool) -> Self {
        let handshake = seen.iter().filter_map(|seen| seen.handshake).min();
        let last_handshake = handshake
            .and_then(|ago| SignedDuration::try_from(ago).ok())
            .and_then(|ago| now.checked_sub(ago).ok())
            .and_then(|time| Timestamp::from_second(time.as_second()).ok());
        let clients = seen.iter().filter_map(|seen| seen.client);
        let client = clients.min_by_key(|(_, ago)| *ago);
        let all_pass = seen.iter().any(|seen| seen.has_gateway);
        let count = |of: fn(&EdgeSession) -> Traffic| {
            let counted = seen.iter().filter(|seen| seen.has_gateway || !all_pass);
            counted.map(of).sum()
        };
        Self {
            connected: seen.iter().any(|seen| seen.connected),
            last_handshake,
            client: client.map(|(client, _)| client),
            received: count(|seen| seen.received),
            sent: count(|seen| seen.sent),
            complete,
        }
    }
}

impl std::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
        })
    }
}

/// The query for a tenant with a port, and the port.
pub(crate) fn query(tenant: &Tenant) -> Option<(u16, SessionQuery)> {
    let allocation = tenant.vpn.allocation.as_ref()?;
    let query = SessionQuery {
        tenant: tenant.id,
        generation: tenant.vpn.generation,
    };
    Some((allocation.port, query))
}

#[cfg(test)]
mod tests;
