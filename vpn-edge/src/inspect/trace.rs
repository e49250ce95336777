//! `vpn-edge trace`: the path of a packet through the datapath, and why.
//!
//! A packet is judged twice: step by step by the host's build of the decision, on a
//! copy of the maps; then by the running program, on the same frame. The results must
//! agree.

mod display;
mod packet;
mod record;
mod report;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::ArgGroup;
use vpn_edge_common::{Counters, DropReason, Edge, UPLINKS};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::parse::ETHERNET;
use vpn_edge_ebpf::rewrite;
use vpn_edge_ebpf::steer::{Hook, NextHop, Refusal};
use vpn_edge_ebpf::tables::Tables;

use super::{Selection, given, interface_name, own_addresses};
use crate::args::{BpffsArgs, Output, OutputArgs};
use crate::datapath::{Answer, AttachPoint, Ran, Reader, Running};
use crate::wireguard::PublicKey;
use packet::{Fields, Kind, PacketSummary};
use record::Step;
use report::{Kernel, Stage, Traced, Verdict};

const MORE_HELP: &str = "\
The steps and the verdict come from a copy of the maps as they are now. Then the
program that is attached runs over the same frame in the kernel: the frame goes
nowhere, but it is counted like any other and may take a place of a rate limit.
--dry-run leaves that out. In JSON each packet is a line.

Where a packet leaves for another node, or comes back from one, the kernel's
routes have the last word on the way: the frame is compared behind its Ethernet
header. XDP may leave such a packet to tc, which comes next.

The exit status is 1 if the two do not agree: then the program that runs is of
another build, or the maps changed in between.";

#[derive(Debug, clap::Args)]
#[command(after_help = MORE_HELP)]
#[command(group(ArgGroup::new("packet").required(true).args(["port", "tenant", "hex", "pcap"])))]
#[command(mut_group("tenants", |tenants| tenants.requires("source")))]
pub struct TraceArgs {
    #[command(flatten)]
    selection: Selection,
    /// Source of a message to the tenant's port.
    #[arg(long, requires = "tenants", value_name = "ADDRESS:PORT")]
    source: Option<SocketAddr>,
    /// Destination of the message, an address of the node [default: the first of
    /// the source's IP version].
    #[arg(long, requires = "tenants", value_name = "ADDRESS")]
    to: Option<IpAddr>,
    /// Type of the message.
    #[arg(
        long = "type",
        requires = "tenants",
        value_enum,
        default_value_t,
        value_name = "TYPE"
    )]
    kind: Kind,
    /// Receiver index of the message, or the sender index of an initiation;
    /// decimal or 0x….
    #[arg(
        long,
        requires = "tenants",
        value_name = "N",
        value_parser = number,
        default_value = "0"
    )]
    index: u32,
    /// Length of the message in bytes [default: the least of its type].
    #[arg(long, requires = "tenants", value_name = "BYTES")]
    length: Option<u16>,
    /// Public key of the gateway, for the mac1 of a handshake message [default: no
    /// valid mac1].
    #[arg(long, requires = "tenants", value_name = "KEY")]
    public_key: Option<PublicKey>,
    /// Trace an Ethernet frame, in hex; - reads it from standard input.
    #[arg(long)]
    hex: Option<String>,
    /// Trace each packet of a capture file, pcap or pcapng, as if it arrived now.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Interface that the packet arrives on [default: the one that replies from
    /// its destination leave by].
    #[arg(long, value_name = "INTERFACE")]
    uplink: Option<String>,
    /// Do not run the program in the kernel; nothing is counted.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    maps: BpffsArgs,
}

/// Traces the given packets.
///
/// # Errors
///
/// If there is no such packet, nothing is pinned, or the kernel's result differs.
pub fn run(args: &TraceArgs) -> Result<()> {
    let tracer = Tracer::open(args)?;
    let frames = frames(args, &tracer.reader)?;
    let mut differing = Vec::new();
    for (at, frame) in frames.into_iter().enumerate() {
        let number = at + 1;
        let traced = tracer.trace(number, frame)?;
        let text = match args.output.output {
            Output::Json => serde_json::to_string(&traced)?,
            Output::Table => traced.to_string(),
        };
        writeln!(std::io::stdout(), "{}", text.trim_end())?;
        if traced.agrees == Some(false) {
            differing.push(number.to_string());
        }
    }
    if !differing.is_empty() {
        bail!(
            "the running program decides otherwise than this build (packet {}): it is of \
             another build: restart the daemon with this one; or the maps changed in \
             between: try again",
            differing.join(", ")
        );
    }
    Ok(())
}

fn frames(args: &TraceArgs, reader: &Reader) -> Result<Vec<Vec<u8>>> {
    if let Some(path) = &args.pcap {
        return packet::from_pcap(path);
    }
    if let Some(hex) = &args.hex {
        let mut text = hex.clone();
        if text == "-" {
            text.clear();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the hex from standard input")?;
        }
        return Ok(vec![packet::from_hex(&text)?]);
    }
    let selected = args.selection.of(reader.allocations())?;
    let (Some((port, _)), Some(source)) = (selected.into_iter().next(), args.source) else {
        bail!("a packet takes --port or --tenant, and --source; or --hex, or --pcap");
    };
    let fields = Fields {
        source,
        destination: SocketAddr::new(destination(&reader.edge()?, source, args.to)?, port),
        kind: args.kind,
        index: args.index,
        length: args.length,
        public_key: args.public_key,
    };
    Ok(vec![fields.frame()?])
}

/// The node's own address that the packet from `source` is sent to.
fn destination(edge: &Edge, source: SocketAddr, to: Option<IpAddr>) -> Result<IpAddr> {
    let own = own_addresses(edge);
    let Some(to) = to else {
        let same = |own: &&IpAddr| own.is_ipv6() == source.is_ipv6();
        return own.iter().find(same).copied().with_context(|| {
            let version = if source.is_ipv6() { "IPv6" } else { "IPv4" };
            format!("the node has no {version} address that clients send to")
        });
    };
    ensure!(
        own.contains(&to),
        "{to} is not the node's: name one of {}",
        own.iter()
            .map(IpAddr::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(to)
}

/// An interface that receives packets, with its programs.
struct Uplink {
    index: u32,
    /// None without XDP.
    xdp: Option<Running>,
    tc: Option<Running>,
}

struct Tracer {
    reader: Reader,
    /// Those with programs come first.
    uplinks: Vec<Uplink>,
    dry_run: bool,
}

impl Tracer {
    fn open(args: &TraceArgs) -> Result<Self> {
        let reader = Reader::open(&args.maps.bpffs)?;
        let edge = reader.edge()?;
        ensure!(
            edge.own.iter().any(|own| own.uplink != 0),
            "the maps do not have this node's addresses yet: start `vpn-edge standalone`"
        );
        let named = match &args.uplink {
            Some(name) => vec![
                nix::net::if_::if_nametoindex(name.as_str())
                    .with_context(|| format!("no interface `{name}`: name one of `ip link`"))?,
            ],
            None => candidates(&edge),
        };
        let mut uplinks = Vec::new();
        for index in named {
            let Some(name) = interface_name(index) else {
                continue;
            };
            uplinks.push(Uplink {
                index,
                xdp: Running::find(&args.maps.bpffs, &AttachPoint::UplinkXdp(name.clone()))?,
                tc: Running::find(&args.maps.bpffs, &AttachPoint::UplinkTc(name))?,
            });
        }
        ensure!(
            !uplinks.is_empty(),
            "none of the node's uplinks is here: run this where the daemon runs"
        );
        uplinks.sort_by_key(|uplink| uplink.tc.is_none());
        Ok(Self {
            reader,
            uplinks,
            dry_run: args.dry_run,
        })
    }

    /// The interface on which the packet arrives.
    fn uplink(&self, edge: &Edge, packet: &PacketSummary) -> &Uplink {
        let destination = packet.destination.map(|destination| destination.ip());
        let own = edge.own.iter().find(|own| {
            let address = given(own.address);
            address.is_some() && address == destination
        });
        let of = |uplink: &&Uplink| own.is_some_and(|own| own.uplink == uplink.index);
        let hooked = self.uplinks.iter().filter(|uplink| uplink.tc.is_some());
        hooked.clone().find(of).unwrap_or(&self.uplinks[0])
    }

    fn trace(&self, number: usize, mut frame: Vec<u8>) -> Result<Traced> {
        let packet = PacketSummary::of(&mut frame);
        let mut stages = Vec::new();
        let mut on_tc = true;
        let uplink = self.uplink(&self.reader.edge()?, &packet);
        if let Some(xdp) = &uplink.xdp {
            let program = (Some(xdp), uplink.index);
            let stage = self.stage(Hook::Xdp, program, &packet, &frame)?;
            on_tc = stage.goes_on();
            stages.push(stage);
        }
        if on_tc {
            let program = (uplink.tc.as_ref(), uplink.index);
            stages.push(self.stage(Hook::Tc, program, &packet, &frame)?);
        }
        let differs = |stage: &Stage| match &stage.kernel {
            Kernel::NotRun { .. } => None,
            Kernel::Ran { differs, .. } => Some(differs.is_none()),
        };
        let agrees = stages.iter().filter_map(differs);
        let agrees = agrees.reduce(|all, this| all && this);
        Ok(Traced {
            number,
            packet,
            stages,
            agrees,
        })
    }

    fn stage(
        &self,
        hook: Hook,
        program: (Option<&Running>, u32),
        packet: &PacketSummary,
        frame: &[u8],
    ) -> Result<Stage> {
        let tables = self.reader.snapshot()?;
        let Judged {
            steps,
            verdict,
            expected,
            slot,
        } = judge(&tables, packet, frame, hook)?;
        Ok(Stage {
            hook: match hook {
                Hook::Xdp => "xdp",
                Hook::Tc => "tc",
            },
            steps,
            verdict,
            kernel: self.kernel(program, hook, frame, slot, &expected)?,
        })
    }

    fn kernel(
        &self,
        (program, ingress): (Option<&Running>, u32),
        hook: Hook,
        frame: &[u8],
        slot: Option<u16>,
        expected: &Expected,
    ) -> Result<Kernel> {
        let not_run = |why: &str| Ok(Kernel::NotRun { why: why.into() });
        if self.dry_run {
            return not_run("as --dry-run asks");
        }
        let Some(program) = program else {
            return not_run("no program of vpn-edge is attached to the uplink");
        };
        if !program.takes(frame.len()) {
            return not_run("the kernel cannot run the program on a frame of this length");
        }
        let counters = || -> Result<Counters> {
            let slot = slot.map(|slot| self.reader.counters(slot));
            Ok(slot.transpose()?.unwrap_or_default())
        };
        let before = counters()?;
        let ran = program.run(frame, ingress)?;
        let counted = counted(&before, &counters()?);
        Ok(Kernel::Ran {
            program: program.id(),
            answer: match ran.answer {
                Answer::Pass => "pass",
                Answer::Drop => "drop",
                Answer::Redirect => "redirect",
                Answer::Transmit => "transmit",
                Answer::Other(_) => "unknown",
            },
            reasons: match ran.answer {
                Answer::Drop => counted.iter().map(|reason| reason.name()).collect(),
                _ => Vec::new(),
            },
            destination: matches!(ran.answer, Answer::Redirect | Answer::Transmit)
                .then(|| PacketSummary::of(&mut ran.frame.clone()).destination)
                .flatten(),
            differs: differs(expected, hook, frame, &ran, &counted),
            note: note(program, hook, expected, ran.answer),
        })
    }
}

fn note(
    program: &Running,
    hook: Hook,
    expected: &Expected,
    answer: Answer,
) -> Option<&'static str> {
    let leaves = matches!(expected, Expected::Send(_)) && answer == Answer::Pass;
    if leaves && hook == Hook::Xdp {
        return Some(LEFT_TO_TC);
    }
    (!program.linked).then_some(
        "found by its name: before Linux 6.6 tc has no links, so another process may \
         have loaded it",
    )
}

const LEFT_TO_TC: &str = "XDP leaves it to tc, which comes next: the next hop is not known \
                          yet, or XDP does not send by its interface";

const ON_TC: &str = "the port's packets are tc's, which comes next";

/// Why a packet that led to these lookups is passed to the kernel.
fn why_passed(steps: &[Step]) -> &'static str {
    let is_own = steps.iter().find_map(|step| match step {
        Step::Edge { is_own, .. } => Some(*is_own),
        _ => None,
    });
    match steps {
        [] => "not UDP: left to the kernel",
        _ if is_own == Some(false) => "it is for another address",
        [Step::Allocation { found: None, .. }, Step::Edge { .. }] => "the port is not allocated",
        [Step::Allocation { found: None, .. }, ..] => {
            "no gateway on another node answers from there"
        }
        _ => ON_TC,
    }
}

/// This build's decision on a frame.
struct Judged {
    steps: Vec<Step>,
    verdict: Verdict,
    expected: Expected,
    /// The slot in which it is counted, if it is.
    slot: Option<u16>,
}

fn judge(tables: &Tables, packet: &PacketSummary, frame: &[u8], hook: Hook) -> Result<Judged> {
    let mut bytes = frame.to_vec();
    let view = Frame::of(&mut bytes);
    let (steps, decided) = record::decide(tables, packet, &view, hook);
    let (verdict, expected, slot) = match decided {
        Ok(steered) => {
            let verdict = Verdict::of(&steered);
            let slot = steered.allocation.slot;
            let expected = match &steered.next_hop {
                NextHop::Gateway { gateway, .. } => {
                    let addresses = steered.allocation.frame;
                    let located = &steered.located;
                    let tags = rewrite::to_gateway(&view, located, *gateway, addresses);
                    tags.map(|tags| Expected::Steer(bytes.split_off(tags)))
                }
                NextHop::Node { forwarding, .. } | NextHop::Client { forwarding } => {
                    let tags = rewrite::to_ends(&view, forwarding);
                    tags.map(|tags| Expected::Send(bytes.split_off(tags)))
                }
            };
            let expected = expected.context("the frame cannot be rewritten")?;
            (verdict, expected, Some(slot))
        }
        Err(Refusal::Pass) => {
            let why = why_passed(&steps);
            (Verdict::Pass { why }, Expected::Pass, None)
        }
        Err(Refusal::Drop { slot, reason }) => {
            let verdict = Verdict::Drop {
                reason: reason.name(),
                meaning: reason.meaning(),
            };
            (verdict, Expected::Drop(reason), Some(slot))
        }
    };
    Ok(Judged {
        steps,
        verdict,
        expected,
        slot,
    })
}

/// The interfaces that may receive packets, each once: those with the XDP program,
/// and those by which replies leave.
fn candidates(edge: &Edge) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::with_capacity(UPLINKS);
    let own = edge.own.iter().map(|own| own.uplink);
    for index in edge.uplinks.iter().copied().chain(own) {
        if index != 0 && !all.contains(&index) {
            all.push(index);
        }
    }
    all
}

/// The expected result of the kernel.
#[derive(Debug, PartialEq)]
enum Expected {
    Pass,
    Drop(DropReason),
    /// With this frame.
    Steer(Vec<u8>),
    /// Sent out of the node with this frame, ignoring Ethernet addresses, which
    /// depend on the kernel's routes.
    Send(Vec<u8>),
}

/// The reasons of packets dropped in between.
fn counted(before: &Counters, after: &Counters) -> Vec<DropReason> {
    let risen = |&reason: &DropReason| {
        let at = reason as usize;
        after.drops[at] > before.drops[at]
    };
    DropReason::ALL.iter().copied().filter(risen).collect()
}

/// How the kernel's result differs from the expected one, if it does.
fn differs(
    expected: &Expected,
    hook: Hook,
    frame: &[u8],
    ran: &Ran,
    counted: &[DropReason],
) -> Option<String> {
    match (expected, ran.answer) {
        (Expected::Send(_), Answer::Pass) if hook == Hook::Xdp => {
            (ran.frame != frame).then(|| "the program passes a changed packet".into())
        }
        // Depends on the kernel's routes.
        (Expected::Send(_), Answer::Drop)
            if [DropReason::NoRoute, DropReason::TooBig]
                .iter()
                .any(|reason| counted.contains(reason)) =>
        {
            None
        }
        (Expected::Send(frame), Answer::Redirect | Answer::Transmit) => {
            let same = ran.frame.get(ETHERNET..) == frame.get(ETHERNET..);
            (!same).then(|| "the program makes another packet of it".into())
        }
        (Expected::Pass, Answer::Pass) => {
            (ran.frame != frame).then(|| "the program passes a changed packet".into())
        }
        (Expected::Drop(reason), Answer::Drop) => (!counted.contains(reason)).then(|| {
            let names: Vec<&str> = counted.iter().map(|reason| reason.name()).collect();
            match names.as_slice() {
                [] => "the program drops it without a reason".into(),
                names => format!(
                    "the program drops it for another reason: {}",
                    names.join(" or ")
                ),
            }
        }),
        (Expected::Steer(frame), Answer::Redirect) => {
            (ran.frame != *frame).then(|| "the program makes another frame of it".into())
        }
        (_, Answer::Pass) => Some("the program passes it".into()),
        (_, Answer::Drop) => {
            let names: Vec<&str> = counted.iter().map(|reason| reason.name()).collect();
            Some(format!("the program drops it: {}", names.join(" or ")))
        }
        (_, Answer::Redirect) => Some("the program redirects it".into()),
        (_, Answer::Transmit) => Some("the program transmits it".into()),
        (_, Answer::Other(number)) => {
            Some(format!("the program returns {number}, which is no verdict"))
        }
    }
}

/// A number, decimal or hex.
fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a session index is a number below 2^32, or 0x and hex".into())
}

#[cfg(test)]
mod tests;
