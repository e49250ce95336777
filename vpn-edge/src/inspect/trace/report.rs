//! What a trace tells, for people and as JSON.

use std::fmt;
use std::net::Ipv4Addr;

use serde::Serialize;
use vpn_edge_common::unmapped;
use vpn_edge_ebpf::guard::Admitted;
use vpn_edge_ebpf::steer::Steered;

use super::packet::Glance;
use super::record::Step;
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
        gateway: Ipv4Addr,
        interface: Option<String>,
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
        /// The address in the frame that it would redirect.
        gateway: Option<Ipv4Addr>,
        /// How it differs from what was expected, if it does.
        differs: Option<String>,
        note: Option<&'static str>,
    },
}

impl Verdict {
    pub fn of(steered: &Steered<'_, '_>) -> Self {
        Self::Steer {
            by: match steered.admitted {
                Admitted::Session => "a live session",
                Admitted::Handshake => "a handshake with a good mac1",
                Admitted::Grace => "grace, as its session is unknown",
            },
            gateway: unmapped(&steered.allocation.gateway).into(),
            interface: interface_name(steered.allocation.ifindex),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass { why } => write!(f, "pass: {why}"),
            Self::Drop { reason, meaning } => write!(f, "drop, {reason}: {meaning}"),
            Self::Steer {
                by,
                gateway,
                interface,
            } => {
                let interface = interface.as_deref().unwrap_or("an interface that is gone");
                write!(f, "steer to {gateway} behind {interface}, by {by}")
            }
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
                gateway,
                differs,
                note,
            } => {
                write!(f, "program {program} says {answer}")?;
                if let Some(gateway) = gateway {
                    write!(f, " to {gateway}")?;
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
