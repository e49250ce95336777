//! What a trace tells, for people and as JSON.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use vpn_edge_common::{Words, address};
use vpn_edge_ebpf::forwarding::{Ends, Journey};
use vpn_edge_ebpf::guard::{Admission, Admitted};
use vpn_edge_ebpf::steer::{self, Steered};

use super::packet::Glance;
use super::record::Step;
use crate::datapath::ip;
use crate::inspect::interface_name;

/// What became of one packet. The JSON form is this, field by field.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Traced {
    /// From one on.
    pub number: usize,
    pub packet: Glance,
    /// XDP, tc, or both in turn.
    pub stages: Vec<Stage>,
    /// Whether the kernel did as it should; none if it was not asked.
    pub agrees: Option<bool>,
}

/// One program's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    pub rung: &'static str,
    pub steps: Vec<Step>,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub kernel: Kernel,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// To the kernel, as if the edge were not there.
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

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "way", rename_all = "snake_case")]
pub enum Way {
    /// To the gateway, behind an interface of this node.
    Gateway {
        gateway: IpAddr,
        interface: Option<String>,
    },
    /// On to the gateway's node.
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

/// What the running program made of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Kernel {
    NotRun {
        why: String,
    },
    Ran {
        program: u32,
        answer: &'static str,
        /// The reasons for which packets were dropped meanwhile, if it drops it.
        reasons: Vec<&'static str>,
        /// The destination of the frame that it would send somewhere.
        destination: Option<SocketAddr>,
        /// How it differs from what was expected, if it does.
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
    pub fn of(steered: &Steered<'_, '_>) -> Self {
        let by = |admission: &Admission| match admission.by {
            Admitted::Session => "a live session",
            Admitted::Handshake => "a handshake with a good mac1",
            Admitted::Grace => "grace, as its session is unknown",
            Admitted::Relayed => "relay, as its session is unknown here",
        };
        match &steered.way {
            steer::Way::Gateway { admission, gateway } => Self::Steer {
                by: by(admission),
                way: Way::Gateway {
                    gateway: ip(address(*gateway)),
                    interface: interface_name(steered.allocation.ifindex),
                },
            },
            steer::Way::Node { admission, journey } => {
                let (from, node, hop_limit) = ends(journey);
                Self::Steer {
                    by: by(admission),
                    way: Way::Node {
                        node,
                        from,
                        hop_limit,
                    },
                }
            }
            steer::Way::Client { journey } => {
                let (from, client, hop_limit) = ends(journey);
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

/// What a packet is to be: source, destination, hop limit.
fn ends(journey: &Journey) -> (SocketAddr, SocketAddr, u8) {
    let Ends {
        source,
        destination,
        ports,
        ..
    } = journey.to;
    let end = |words: Words, port: u16| SocketAddr::new(ip(address(words)), u16::from_be(port));
    (
        end(source, ports as u16),
        end(destination, (ports >> 16) as u16),
        journey.hops[1],
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
                let interface = interface.as_deref().unwrap_or("an interface that is gone");
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
            writeln!(f, " {}", stage.rung)?;
            for step in &stage.steps {
                writeln!(f, "  {:<11} {step}", step.name())?;
            }
            writeln!(f, "  {:<11} {}", "verdict", stage.verdict)?;
            writeln!(f, "  {:<11} {}", "kernel", stage.kernel)?;
        }
        Ok(())
    }
}
