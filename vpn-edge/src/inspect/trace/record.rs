//! A `World` that records the lookups of a decision.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;
use vpn_edge_common::{
    Allocation, DropReason, Edge, Flows, Limits, Sessions, Word, Words, address, mode,
};
use vpn_edge_ebpf::flow::{self, Client};
use vpn_edge_ebpf::forwarding::Forwarding;
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::guard::{self, Direction};
use vpn_edge_ebpf::limit::{self, HANDSHAKES, PLAN_AHEAD, Rate, UNKNOWN};
use vpn_edge_ebpf::mac1::Scratch;
use vpn_edge_ebpf::map_access::MapAccess;
use vpn_edge_ebpf::parse::{Located, Unlocated, locate};
use vpn_edge_ebpf::session;
use vpn_edge_ebpf::steer::{self, Forward, Hook, Refusal};
use vpn_edge_ebpf::tables::Tables;

use super::packet::PacketSummary;
use crate::datapath::{ip, tick_length};
use crate::inspect::{Gateways, interface_name, mode_name, own_addresses, tenant};

/// A lookup and its result, before the packet changed anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "asked", rename_all = "snake_case")]
pub enum Step {
    /// The allocation of a port: of the destination; then, if that has none and
    /// gateways on other nodes reply to it, of the source.
    Allocation { port: u16, found: Option<Found> },
    /// The node's addresses.
    Edge {
        destination: Option<IpAddr>,
        /// Whether it is one of the following.
        is_own: bool,
        own: Vec<IpAddr>,
    },
    /// Whether the gateway announced the session.
    Session { index: u32, answer: Session },
    /// Whether packets of unknown sessions are let in.
    Grace {
        /// None if they are not.
        seconds_left: Option<u64>,
        packets_left: u64,
    },
    /// How many packets of unknown sessions may still be forwarded to the gateway's
    /// node.
    Relay { packets_left: u64 },
    /// How many handshake messages the source may still send.
    Source {
        address: Option<IpAddr>,
        /// Set for another edge node, whose ports count separately.
        port: Option<u16>,
        handshakes_left: u64,
    },
    /// Whether the sender knows the gateway's public key.
    Mac1 { good: bool },
    /// Whether the gateway got the same message before.
    Replay { known: bool },
    /// How many handshake messages the gateway still accepts.
    Handshakes { handshakes_left: u64 },
    /// What the tenant's plan still allows.
    Plan {
        packets: Option<Limit>,
        bytes: Option<Limit>,
    },
    /// Whether the client's flow is known.
    Flow {
        /// None if the port is assigned to no client.
        client: Option<SocketAddr>,
        known: Option<Known>,
    },
}

/// A flow, before the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Known {
    /// The hop port assigned to it, if the gateway is on another node.
    pub port: Option<u16>,
    /// The node's address that the client sends to.
    pub own: Option<IpAddr>,
    /// Seconds since the client's last packet.
    pub seconds_ago: u64,
    /// Seconds since the last reply; none if there was none.
    pub proven_seconds_ago: Option<u64>,
}

/// The relevant part of an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    pub tenant: Uuid,
    pub generation: u64,
    /// `closed`, `xdp`, `tc` or `hop`.
    pub mode: &'static str,
    #[serde(flatten)]
    pub gateways: Gateways,
    /// None while closed, if the gateway is on another node, or if it was just
    /// removed.
    pub interface: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Session {
    Live { seconds_left: u64 },
    Expired { seconds_ago: u64 },
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    pub per_second: u64,
    /// Immediately, before the sender has to wait.
    pub left: u64,
}

/// Decides on `frame` as the programs do, and returns the lookups.
pub fn decide<'a, 'm>(
    tables: &'m Tables,
    summary: &PacketSummary,
    frame: &Frame<'a>,
    hook: Hook,
) -> (Vec<Step>, Result<Forward<'a, 'm>, Refusal>) {
    let recorder = Recorder {
        tables,
        index: summary.index.unwrap_or_default(),
        located: locate(frame),
        allocation: Cell::default(),
        back: Cell::default(),
        port: Cell::default(),
        steps: RefCell::default(),
    };
    let decided = steer::decide(&recorder, frame, hook);
    let mut steps = recorder.steps.into_inner();
    // The results of these lookups are known only from the decision.
    if let Err(Refusal::Drop { reason, .. }) = decided {
        match steps.last_mut() {
            Some(Step::Mac1 { good }) => *good = reason != DropReason::Mac1,
            Some(Step::Replay { known }) => *known = reason == DropReason::Replay,
            Some(
                Step::Allocation { .. }
                | Step::Edge { .. }
                | Step::Session { .. }
                | Step::Grace { .. }
                | Step::Source { .. }
                | Step::Handshakes { .. }
                | Step::Plan { .. }
                | Step::Relay { .. }
                | Step::Flow { .. },
            )
            | None => {}
        }
    }
    (steps, decided)
}

struct Recorder<'m> {
    tables: &'m Tables,
    /// The session index to look up.
    index: u32,
    located: Result<Located, Unlocated>,
    /// The allocation that was found.
    allocation: Cell<Option<&'m Allocation>>,
    /// Whether the packet is a gateway's reply.
    back: Cell<bool>,
    /// The source port, if the source is another edge node.
    port: Cell<Option<u16>>,
    steps: RefCell<Vec<Step>>,
}

/// The map's value for a port that is not allocated.
static NOBODYS: LazyLock<Allocation> = LazyLock::new(Allocation::default);

impl Recorder<'_> {
    fn note(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }

    fn session(&self, sessions: &Sessions) -> Session {
        let bucket = session::bucket(sessions, self.index);
        let now = self.tables.tick;
        let seconds = |ticks: u32| (tick_length() * ticks).as_secs();
        let entries = bucket.0.iter().map(Word::load);
        let ours = |entry: &u64| *entry != 0 && (entry >> 32) as u32 == self.index;
        let expiry = entries.filter(ours).map(|entry| entry as u32).max();
        match expiry {
            Some(expiry) if session::is_live(bucket, self.index, || now) => Session::Live {
                seconds_left: seconds(expiry.saturating_sub(now)),
            },
            Some(expiry) => Session::Expired {
                seconds_ago: seconds(now.saturating_sub(expiry)),
            },
            None => Session::Unknown,
        }
    }

    fn destination(&self) -> Option<Words> {
        match &self.located {
            Ok(located) => Some(located.destination),
            Err(Unlocated::Hidden { destination }) => Some(*destination),
            Err(Unlocated::Foreign) => None,
        }
    }

    fn source(&self) -> Option<IpAddr> {
        let located = self.located.as_ref().ok()?;
        Some(ip(address(located.source)))
    }

    fn flow(&self, flows: &Flows) -> Step {
        let edge = &self.tables.edge;
        let Ok(located) = &self.located else {
            return Step::Flow {
                client: None,
                known: None,
            };
        };
        let at = if self.back.get() {
            guard::hop(edge, located.destination_port)
        } else {
            Client::new(edge.seed, located.source, located.source_port).find(flows)
        };
        let found = at.and_then(|at| Some((at, flow::at(flows, at, edge.seed)?)));
        let ago = |tick: u32| (tick_length() * self.tables.tick.saturating_sub(tick)).as_secs();
        let client = match &found {
            Some((_, found)) => Some((found.client.address, found.client.port())),
            None if self.back.get() => None,
            None => Some((located.source, located.source_port)),
        };
        let hops = self.mode() == mode::HOP && edge.hop_ports != 0;
        Step::Flow {
            client: client.map(|(words, port)| SocketAddr::new(ip(address(words)), port)),
            known: found.map(|(at, found)| {
                let (seen, proven) = found.seen();
                let own = edge.own.get(usize::from(found.own));
                Known {
                    port: hops.then(|| edge.hop_ports.wrapping_add(at as u16)),
                    own: own.map(|own| ip(own.address)),
                    seconds_ago: ago(seen),
                    proven_seconds_ago: (proven != 0).then(|| ago(proven)),
                }
            }),
        }
    }

    fn mode(&self) -> u8 {
        self.allocation.get().map_or(mode::NONE, |found| found.mode)
    }

    /// The step for the current limit; the previous lookup determines which one that
    /// is.
    fn limit(&self, limits: &Limits) -> Step {
        let now = self.tables.now;
        match self.steps.borrow().last() {
            Some(Step::Session {
                answer: Session::Expired { .. } | Session::Unknown,
                ..
            }) if self.mode() == mode::HOP => Step::Relay {
                packets_left: left_of(&limits.unknown, now, UNKNOWN),
            },
            Some(Step::Session {
                answer: Session::Expired { .. } | Session::Unknown,
                ..
            }) => {
                let until = limits.grace.load();
                let left = until.checked_sub(now).filter(|_| until != 0);
                Step::Grace {
                    seconds_left: left.map(|left| Duration::from_nanos(left).as_secs()),
                    packets_left: left_of(&limits.unknown, now, UNKNOWN),
                }
            }
            Some(Step::Replay { .. }) => Step::Handshakes {
                handshakes_left: left_of(&limits.handshakes, now, HANDSHAKES),
            },
            _ => self.plan(limits),
        }
    }

    fn plan(&self, limits: &Limits) -> Step {
        let direction = match self.back.get() {
            false => Direction::Ingress,
            true => Direction::Egress,
        } as usize;
        let allocation = self.allocation.get();
        let rates = allocation.map_or_else(Default::default, |allocation| allocation.rates);
        // In 1/1024 nanoseconds, the unit of costs per byte.
        let limit = |word: &Word, cost: u64| {
            (cost != 0).then(|| {
                let ahead = word.load().saturating_sub(self.tables.now);
                let left = PLAN_AHEAD.checked_sub(ahead);
                Limit {
                    per_second: (1_000_000_000 << 10) / cost,
                    left: left.map_or(0, |left| (left << 10) / cost + 1),
                }
            })
        };
        Step::Plan {
            packets: limit(&limits.packets[direction], u64::from(rates.packet) << 10),
            bytes: limit(&limits.bytes[direction], u64::from(rates.byte)),
        }
    }
}

/// How many more a token bucket allows immediately.
pub fn left_of(bucket: &Word, now: u64, rate: Rate) -> u64 {
    let ahead = bucket.load().saturating_sub(now);
    match rate.ahead.checked_sub(ahead) {
        Some(behind) => behind / rate.cost + 1,
        None => 0,
    }
}

impl<'m> MapAccess<'m> for Recorder<'m> {
    fn allocation(&self, port: u16) -> Option<&'m Allocation> {
        let found = self.tables.allocation(port);
        let found = found.filter(|allocation| allocation.mode != mode::NONE);
        // The second lookup is for a port that gateways reply to.
        self.back.set(!self.steps.borrow().is_empty());
        self.allocation.set(found);
        self.note(Step::Allocation {
            port,
            found: found.map(Found::from),
        });
        found.or(Some(&NOBODYS))
    }

    fn edge(&self) -> Option<&'m Edge> {
        let edge = self.tables.edge()?;
        let destination = self.destination();
        self.note(Step::Edge {
            destination: destination.map(|words| ip(address(words))),
            is_own: destination.is_some_and(|words| steer::own(edge, words).is_some()),
            own: own_addresses(edge),
        });
        Some(edge)
    }

    fn sessions(&self, slot: u16) -> Option<&'m Sessions> {
        let sessions = self.tables.sessions(slot);
        // For replies, it exists so that it can be updated.
        if !self.back.get() {
            self.note(Step::Session {
                index: self.index,
                answer: sessions.map_or(Session::Unknown, |sessions| self.session(sessions)),
            });
        }
        sessions
    }

    fn replays(&self, slot: u16) -> Option<&'m Sessions> {
        self.note(Step::Replay { known: false });
        self.tables.replays(slot)
    }

    fn limits(&self, slot: u16) -> Option<&'m Limits> {
        let limits = self.tables.limits(slot)?;
        let step = self.limit(limits);
        self.note(step);
        Some(limits)
    }

    fn flows(&self, slot: u16) -> Option<&'m Flows> {
        let flows = self.tables.flows(slot)?;
        let step = self.flow(flows);
        self.note(step);
        Some(flows)
    }

    fn source(&self, bucket: u32) -> Option<&'m Word> {
        let word = self.tables.source(bucket)?;
        self.note(Step::Source {
            address: Recorder::source(self),
            port: self.port.get(),
            handshakes_left: left_of(word, self.tables.now, limit::SOURCE),
        });
        Some(word)
    }

    fn is_node(&self, address: Words) -> bool {
        let known = self.tables.is_node(address);
        let port = self.located.as_ref().map(|located| located.source_port);
        self.port.set(port.ok().filter(|_| known));
        known
    }

    fn scratch(&self) -> Option<&'m mut Scratch> {
        self.note(Step::Mac1 { good: true });
        self.tables.scratch()
    }

    fn forwarding(&self) -> Option<&'m mut Forwarding> {
        self.tables.forwarding()
    }

    fn now(&self) -> u64 {
        self.tables.now
    }

    fn tick(&self) -> u32 {
        self.tables.tick
    }
}

impl From<&Allocation> for Found {
    fn from(allocation: &Allocation) -> Self {
        let open = allocation.mode > mode::CLOSED;
        Self {
            tenant: tenant(allocation),
            generation: allocation.generation,
            mode: mode_name(allocation.mode),
            gateways: Gateways::of(allocation),
            interface: interface_name(allocation.ifindex).filter(|_| open),
        }
    }
}
