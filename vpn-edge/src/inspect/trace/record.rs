//! A world that writes down what a decision asks of it.

use std::cell::RefCell;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;
use vpn_edge_common::{Allocation, DropReason, Edge, Limits, Sessions, Word, mode, unmapped};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::limit::{self, HANDSHAKES, PLAN_AHEAD, Rate, SOURCE, UNKNOWN};
use vpn_edge_ebpf::mac1::Scratch;
use vpn_edge_ebpf::parse::locate;
use vpn_edge_ebpf::session;
use vpn_edge_ebpf::steer::{self, Refusal, Rung, Steered};
use vpn_edge_ebpf::tables::Tables;
use vpn_edge_ebpf::world::World;

use super::packet::Glance;
use crate::datapath::tick_length;
use crate::inspect::{interface_name, mode_name, tenant};

/// One question and its answer, as things stood before the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "asked", rename_all = "snake_case")]
pub enum Step {
    /// Whose the destination port is.
    Allocation { port: u16, found: Option<Found> },
    /// What the node's address is.
    Edge {
        address: Ipv4Addr,
        destination: Ipv4Addr,
    },
    /// Whether the gateway announced the session.
    Session { index: u32, answer: Session },
    /// Whether unknown sessions pass.
    Grace {
        /// None if they do not.
        seconds_left: Option<u64>,
        packets_left: u64,
    },
    /// How many handshake messages its source may still send.
    Source {
        address: Ipv4Addr,
        handshakes_left: u64,
    },
    /// Whether it knows the gateway's public key.
    Mac1 { good: bool },
    /// Whether the gateway got the same message before.
    Replay { known: bool },
    /// How many handshake messages the gateway still takes.
    Handshakes { handshakes_left: u64 },
    /// How much the tenant's plan still allows.
    Plan {
        packets: Option<Limit>,
        bytes: Option<Limit>,
    },
}

/// An allocation, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    pub tenant: Uuid,
    pub generation: u64,
    /// `closed`, `xdp` or `tc`.
    pub mode: &'static str,
    /// None while closed.
    pub gateway: Option<Ipv4Addr>,
    /// None while closed, or when it has just gone.
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
    /// At once, before it has to wait.
    pub left: u64,
}

/// Decides over `frame` as it is to be, and tells what was asked.
pub fn decide<'a, 'm>(
    tables: &'m Tables,
    glance: &Glance,
    frame: &Frame<'a>,
    rung: Rung,
) -> (Vec<Step>, Result<Steered<'a, 'm>, Refusal>) {
    let recorder = Recorder {
        tables,
        index: glance.index.unwrap_or_default(),
        source: locate(frame).map_or(0, |located| located.source),
        destination: locate(frame).map_or(0, |located| located.destination),
        steps: RefCell::default(),
    };
    let decided = steer::decide(&recorder, frame, rung);
    let mut steps = recorder.steps.into_inner();
    // What these were asked for is known only from what came of it.
    if let Err(Refusal::Drop { reason, .. }) = decided {
        match (reason, steps.last_mut()) {
            (DropReason::Mac1, Some(Step::Mac1 { good })) => *good = false,
            (DropReason::Replay, Some(Step::Replay { known })) => *known = true,
            _ => {}
        }
    }
    (steps, decided)
}

struct Recorder<'m> {
    tables: &'m Tables,
    /// Which session of those that are asked for is meant.
    index: u32,
    /// In wire order.
    source: u32,
    destination: u32,
    steps: RefCell<Vec<Step>>,
}

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

    /// The limit that is asked for, which the question before tells.
    fn limit(&self, limits: &Limits) -> Step {
        let now = self.tables.now;
        match self.steps.borrow().last() {
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
        const INGRESS: usize = vpn_edge_ebpf::guard::Direction::Ingress as usize;
        let steps = self.steps.borrow();
        let port = steps.iter().find_map(|step| match step {
            Step::Allocation { port, .. } => Some(*port),
            _ => None,
        });
        let allocation = port.and_then(|port| self.tables.allocations.get(&port));
        let rates = allocation.map_or_else(Default::default, |allocation| allocation.rates);
        // In 1/1024 nanoseconds, as bytes are counted.
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
            packets: limit(&limits.packets[INGRESS], u64::from(rates.packet) << 10),
            bytes: limit(&limits.bytes[INGRESS], u64::from(rates.byte)),
        }
    }
}

/// How many more a bucket gives at once.
fn left_of(bucket: &Word, now: u64, rate: Rate) -> u64 {
    let ahead = bucket.load().saturating_sub(now);
    match rate.ahead.checked_sub(ahead) {
        Some(behind) => behind / rate.cost + 1,
        None => 0,
    }
}

impl<'m> World<'m> for Recorder<'m> {
    fn allocation(&self, port: u16) -> Option<&'m Allocation> {
        let allocation = self.tables.allocation(port);
        self.note(Step::Allocation {
            port,
            found: allocation.map(Found::from),
        });
        allocation
    }

    fn edge(&self) -> Option<&'m Edge> {
        let edge = self.tables.edge();
        let address = edge.map_or([0; 4], |edge| unmapped(&edge.address));
        self.note(Step::Edge {
            address: address.into(),
            destination: Ipv4Addr::from(self.destination.to_ne_bytes()),
        });
        edge
    }

    fn sessions(&self, slot: u16) -> Option<&'m Sessions> {
        let sessions = self.tables.sessions(slot);
        self.note(Step::Session {
            index: self.index,
            answer: sessions.map_or(Session::Unknown, |sessions| self.session(sessions)),
        });
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

    fn source(&self, bucket: u32) -> Option<&'m Word> {
        let word = self.tables.source(bucket)?;
        self.note(Step::Source {
            address: Ipv4Addr::from(self.source.to_ne_bytes()),
            handshakes_left: left_of(word, self.tables.now, limit::SOURCE),
        });
        Some(word)
    }

    fn scratch(&self) -> Option<&'m mut Scratch> {
        self.note(Step::Mac1 { good: true });
        self.tables.scratch()
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
            gateway: open.then(|| unmapped(&allocation.gateway).into()),
            interface: interface_name(allocation.ifindex).filter(|_| open),
        }
    }
}

impl Step {
    /// What is asked for, in a word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Allocation { .. } => "allocation",
            Self::Edge { .. } => "edge",
            Self::Session { .. } => "session",
            Self::Grace { .. } => "grace",
            Self::Source { .. } => "source",
            Self::Mac1 { .. } => "mac1",
            Self::Replay { .. } => "replay",
            Self::Handshakes { .. } => "handshakes",
            Self::Plan { .. } => "plan",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocation { port, found: None } => write!(f, "port {port} is no tenant's"),
            Self::Allocation {
                port,
                found: Some(found),
            } => {
                write!(f, "port {port} is tenant {}'s", found.tenant)?;
                write!(f, ", generation {}, {}", found.generation, found.mode)?;
                if let Some(gateway) = found.gateway {
                    write!(f, ", gateway {gateway}")?;
                }
                match &found.interface {
                    Some(interface) => write!(f, " behind {interface}"),
                    None => Ok(()),
                }
            }
            Self::Edge {
                address,
                destination,
            } if address == destination => write!(f, "{address} is the node's"),
            Self::Edge {
                address,
                destination,
            } => write!(f, "{destination} is not the node's, which is {address}"),
            Self::Session { index, answer } => {
                write!(f, "{index:#010x} is ")?;
                match answer {
                    Session::Live { seconds_left } => write!(f, "live for {seconds_left} s more"),
                    Session::Expired { seconds_ago } => write!(f, "expired, {seconds_ago} s ago"),
                    Session::Unknown => write!(f, "unknown"),
                }
            }
            Self::Grace {
                seconds_left: None, ..
            } => write!(f, "unknown sessions do not pass"),
            Self::Grace {
                seconds_left: Some(seconds),
                packets_left,
            } => write!(
                f,
                "unknown sessions pass for {seconds} s more, {packets_left} packets at once"
            ),
            Self::Source {
                address,
                handshakes_left,
            } => write!(
                f,
                "{address} may send {handshakes_left} of {} handshake messages at once",
                burst(SOURCE)
            ),
            Self::Mac1 { good: true } => write!(f, "good: it knows the gateway's public key"),
            Self::Mac1 { good: false } => {
                write!(f, "bad: it does not know the gateway's public key")
            }
            Self::Replay { known: false } => write!(f, "the gateway did not get it before"),
            Self::Replay { known: true } => write!(f, "the gateway got the same one before"),
            Self::Handshakes { handshakes_left } => write!(
                f,
                "the gateway takes {handshakes_left} of {} handshake messages at once",
                burst(HANDSHAKES)
            ),
            Self::Plan { packets, bytes } => {
                let all = [(packets, "packets"), (bytes, "bytes")];
                let all = all
                    .iter()
                    .filter_map(|(limit, what)| Some((limit.as_ref()?, what)));
                let all: Vec<String> = all
                    .map(|(limit, what)| {
                        format!(
                            "{} {what} a second, {} at once",
                            limit.per_second, limit.left
                        )
                    })
                    .collect();
                match all.as_slice() {
                    [] => write!(f, "no limit"),
                    limits => write!(f, "{}", limits.join("; ")),
                }
            }
        }
    }
}

fn burst(rate: Rate) -> u64 {
    left_of(&Word::default(), 0, rate)
}
