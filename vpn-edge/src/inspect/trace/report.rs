//! The result of a trace, for people and as JSON.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use vpn_edge_common::{Words, address};
use vpn_edge_ebpf::forwarding::{Endpoints, Forwarding};
use vpn_edge_ebpf::guard::{Admission, Admitted};
use vpn_edge_ebpf::steer::{self, Forward};

use super::packet::PacketSummary;
use super::record::Step;
use crate::datapath::ip;
use crate::inspect::interface_name;

/// The result for one packet. The JSON form has the same fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Traced {
    /// Counted from one.
    pub number: usize,
    pub packet: PacketSummary,
    /// XDP, tc, or both in this order.
    pub stages: Vec<Stage>,
    /// Whether the kernel's result is the expected one; none without a test run.
    pub agrees: Option<bool>,
}

/// The decision of one program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    pub hook: &'static str,
    pub steps: Vec<Step>,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub kernel: Kernel,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Passed to the kernel as if there were no edge.
    Pass { why: &'static str },
    Drop {
        reason: &'static str,
        meaning: &'static str,
    },
    Steer {
        by: &'static str,
        #[serde(flatten)]
        way: Way,
    },
}

/// Where a packet is steered.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "way", rename_all = "snake_case")]
pub enum Way {
    /// To the gateway, behind an interface of this node.
    Gateway {
        gateway: IpAddr,
        interface: Option<String>,
    },
    /// Forwarded to the gateway's node.
    Node {
        node: SocketAddr,
        from: SocketAddr,
        hop_limit: u8,
    },
    /// From the gateway's node back to the client.
    Client {
        client: SocketAddr,
        from: SocketAddr,
        hop_limit: u8,
    },
}

/// The result of the running program.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Kernel {
    NotRun {
        why: String,
    },
    Ran {
        program: u32,
        answer: &'static str,
        /// The reasons of packets dropped during the run, if it drops the packet.
        reasons: Vec<&'static str>,
        /// The destination of the frame that it sends.
        destination: Option<SocketAddr>,
        /// How it differs from the expected result, if it does.
        differs: Option<String>,
        note: Option<&'static str>,
    },
}

impl Stage {
    /// Whether the next stage gets the packet.
    pub fn goes_on(&self) -> bool {
        match &self.verdict {
            Verdict::Pass { why } => *why == super::ON_TC,
            Verdict::Drop { .. } => false,
            Verdict::Steer { way, .. } => {
                let on_way = !matches!(way, Way::Gateway { .. });
                let passed = |kernel: &Kernel| matches!(kernel, Kernel::Ran { answer, .. } if *answer == "pass");
                on_way && passed(&self.kernel)
            }
        }
    }
}

impl Verdict {
    pub fn of(steered: &Forward<'_, '_>) -> Self {
        let by = |admission: &Admission| match admission.by {
            Admitted::Session => "a live session",
            Admitted::Handshake => "a handshake with a good mac1",
            Admitted::Grace => "grace, as its session is unknown",
            Admitted::Relayed => "relay, as its session is unknown here",
        };
        match &steered.next_hop {
            steer::NextHop::Gateway { admission, gateway } => Self::Steer {
                by: by(admission),
                way: Way::Gateway {
                    gateway: ip(address(*gateway)),
                    interface: interface_name(steered.allocation.ifindex),
                },
            },
            steer::NextHop::Node {
                admission,
                forwarding,
            } => {
                let (from, node, hop_limit) = ends(forwarding);
                Self::Steer {
                    by: by(admission),
                    way: Way::Node {
                        node,
                        from,
                        hop_limit,
                    },
                }
            }
            steer::NextHop::Client { forwarding } => {
                let (from, client, hop_limit) = ends(forwarding);
                Self::Steer {
                    by: "a gateway on another node",
                    way: Way::Client {
                        client,
                        from,
                        hop_limit,
                    },
                }
            }
        }
    }
}

/// Source, destination and hop limit of the rewritten packet.
fn ends(forwarding: &Forwarding) -> (SocketAddr, SocketAddr, u8) {
    let Endpoints {
        source,
        destination,
        ports,
        ..
    } = forwarding.to;
    let end = |words: Words, port: u16| SocketAddr::new(ip(address(words)), u16::from_be(port));
    (
        end(source, ports as u16),
        end(destination, (ports >> 16) as u16),
        forwarding.hops[1],
    )
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass { why } => write!(f, "pass: {why}"),
            Self::Drop { reason, meaning } => write!(f, "drop, {reason}: {meaning}"),
            Self::Steer { by, way } => write!(f, "{way}, by {by}"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway { gateway, interface } => {
                let interface = interface.as_deref().unwrap_or("a removed interface");
                write!(f, "steer to {gateway} behind {interface}")
            }
            Self::Node {
                node,
                from,
                hop_limit,
            } => write!(
                f,
                "send on to node {} from {from}, hop limit {hop_limit}",
                node.ip()
            ),
            Self::Client {
                client,
                from,
                hop_limit,
            } => write!(
                f,
                "send back to client {client} from {}, hop limit {hop_limit}",
                from.ip()
            ),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRun { why } => write!(f, "not run: {why}"),
            Self::Ran {
                program,
                answer,
                reasons,
                destination,
                differs,
                note,
            } => {
                write!(f, "program {program} says {answer}")?;
                if !reasons.is_empty() {
                    write!(f, ", {}", reasons.join(" or "))?;
                }
                if let Some(destination) = destination {
                    write!(f, " to {destination}")?;
                }
                match differs {
                    None => f.write_str(", and agrees")?,
                    Some(differs) => write!(f, "\n  DISAGREES   {differs}")?,
                }
                match note {
                    None => Ok(()),
                    Some(note) => write!(f, "\n  note        {note}"),
                }
            }
        }
    }
}

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "packet {}: {}", self.number, self.packet)?;
        for stage in &self.stages {
            writeln!(f, " {}", stage.hook)?;
            for step in &stage.steps {
                writeln!(f, "  {:<11} {step}", step.name())?;
            }
            writeln!(f, "  {:<11} {}", "verdict", stage.verdict)?;
            writeln!(f, "  {:<11} {}", "kernel", stage.kernel)?;
        }
        Ok(())
    }
}
