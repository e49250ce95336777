//! The steps of a trace as text.

use std::fmt;
use std::net::IpAddr;

use vpn_edge_common::Word;
use vpn_edge_ebpf::limit::{HANDSHAKES, Rate, SOURCE};

use super::record::{Session, Step, left_of};

impl Step {
    /// The name of the lookup.
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
            Self::Relay { .. } => "relay",
            Self::Flow { .. } => "flow",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocation { port, found: None } => write!(f, "port {port} is not allocated"),
            Self::Allocation {
                port,
                found: Some(found),
            } => {
                write!(f, "port {port} is allocated to tenant {}", found.tenant)?;
                write!(f, ", generation {}, {}", found.generation, found.mode)?;
                if !found.gateways.is_empty() {
                    write!(f, ", gateway {}", found.gateways)?;
                }
                match &found.interface {
                    Some(interface) => write!(f, " behind {interface}"),
                    None => Ok(()),
                }
            }
            Self::Edge {
                destination,
                is_own,
                own,
            } => {
                let own: Vec<String> = own.iter().map(IpAddr::to_string).collect();
                let own = own.join(", ");
                match destination {
                    Some(destination) if *is_own => write!(f, "{destination} is the node's"),
                    Some(destination) => {
                        write!(f, "{destination} is not the node's, which has {own}")
                    }
                    None => write!(f, "the node has {own}"),
                }
            }
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
            Self::Relay { packets_left } => write!(
                f,
                "the gateway's node has the last word, for {packets_left} packets of unknown \
                 sessions at once"
            ),
            Self::Source {
                address,
                port,
                handshakes_left,
            } => write!(
                f,
                "{}{} may send {handshakes_left} of {} handshake messages at once",
                address.map_or("the source".into(), |address| address.to_string()),
                port.map_or(String::new(), |port| format!(
                    ", an edge node, from port {port}"
                )),
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
            Self::Flow { client: None, .. } => write!(f, "the port is assigned to no client"),
            Self::Flow {
                client: Some(client),
                known: None,
            } => write!(f, "client {client} is new"),
            Self::Flow {
                client: Some(client),
                known: Some(known),
            } => {
                write!(f, "client {client} is known, {} s ago", known.seconds_ago)?;
                if let Some(own) = known.own {
                    write!(f, " at {own}")?;
                }
                if let Some(port) = known.port {
                    write!(f, ", port {port}")?;
                }
                match known.proven_seconds_ago {
                    Some(seconds) => write!(f, ", answered {seconds} s ago"),
                    None => write!(f, ", not answered yet"),
                }
            }
        }
    }
}

fn burst(rate: Rate) -> u64 {
    left_of(&Word::default(), 0, rate)
}
