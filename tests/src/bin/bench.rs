//! `cargo xtask bench [NAME…]`: what the packet path costs.
//!
//! Every figure stands beside its baseline, taken in the same run and in turns
//! with it, since a machine's speed drifts. Ratios carry over to other
//! machines, nanoseconds do not.

use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, DevMap, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, TestRun};
use etherparse::PacketBuilder;
use lab::sandbox::Sandbox;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;
use vpn_edge::datapath::{Change, Datapath, Memory};
use vpn_edge_common::bench::{FRAME, Template};
use vpn_edge_common::{Allocation, mapped, mode, program};

/// Times that every figure is taken, in turns with its baseline.
const ROUNDS: usize = 21;
/// Runs of a program in one round.
const RUNS: u32 = 500_000;
/// Frames along the path in one round.
const FRAMES: u32 = 200_000;

const PORT: u16 = 31_001;
const NODE: [u8; 4] = [198, 51, 100, 2];
const CLIENT: [u8; 4] = [203, 0, 113, 9];
const GATEWAY: [u8; 4] = [100, 64, 121, 25];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BENCH_EBPF"));

/// One figure. `target/bench.json` is a list of these.
#[derive(Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    /// Median over the rounds.
    value: f64,
    /// Name of the figure it is compared with; its own for a baseline.
    baseline: &'static str,
    /// Median over the rounds of value by baseline, each pair taken in turns.
    ratio: f64,
    /// Half the distance between the quartiles, as a share of the median.
    spread: f64,
}

/// What can be measured: a name, its baseline, and how.
struct Subject {
    name: &'static str,
    baseline: &'static str,
    kind: Kind,
}

enum Kind {
    /// A program of the product or of the benchmarks, over one packet.
    Program(&'static str, fn() -> Vec<u8>),
    /// A program on the uplink, over this many flows.
    Path(&'static str, u16),
}

const SUBJECTS: &[Subject] = &[
    Subject {
        name: "program/empty",
        baseline: "program/empty",
        kind: Kind::Program("empty", data),
    },
    Subject {
        name: "program/redirect",
        baseline: "program/empty",
        kind: Kind::Program("redirect", data),
    },
    Subject {
        name: "program/data",
        baseline: "program/empty",
        kind: Kind::Program("ingress", data),
    },
    Subject {
        name: "program/initiation",
        baseline: "program/empty",
        kind: Kind::Program("ingress", initiation),
    },
    Subject {
        name: "program/malformed",
        baseline: "program/empty",
        kind: Kind::Program("ingress", malformed),
    },
    Subject {
        name: "program/unknown-port",
        baseline: "program/empty",
        kind: Kind::Program("ingress", unknown_port),
    },
    Subject {
        name: "program/tcp",
        baseline: "program/empty",
        kind: Kind::Program("ingress", tcp),
    },
    Subject {
        name: "path/redirect",
        baseline: "path/redirect",
        kind: Kind::Path("redirect", 1),
    },
    Subject {
        name: "path/steered",
        baseline: "path/redirect",
        kind: Kind::Path("ingress", 1),
    },
    Subject {
        name: "path/redirect-256-flows",
        baseline: "path/redirect-256-flows",
        kind: Kind::Path("redirect", 256),
    },
    Subject {
        name: "path/steered-256-flows",
        baseline: "path/redirect-256-flows",
        kind: Kind::Path("ingress", 256),
    },
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    for name in &names {
        if !SUBJECTS
            .iter()
            .any(|subject| subject.name.starts_with(name.as_str()))
        {
            let known: Vec<&str> = SUBJECTS.iter().map(|subject| subject.name).collect();
            bail!("no benchmark `{name}`; there are {}", known.join(", "));
        }
    }
    let wanted = |subject: &&Subject| {
        names.is_empty()
            || names
                .iter()
                .any(|name| subject.name.starts_with(name.as_str()))
    };
    let wanted: Vec<&Subject> = SUBJECTS.iter().filter(wanted).collect();

    pin_to_last_cpu()?;
    let mut bench = Bench::new()?;
    let mut samples: Vec<(&Subject, Vec<(f64, f64)>)> = wanted
        .iter()
        .map(|subject| (*subject, Vec::with_capacity(ROUNDS)))
        .collect();
    // A first round warms caches and branch predictors, and is not kept.
    for round in 0..=ROUNDS {
        if std::io::stderr().is_terminal() {
            eprint!("\rround {round} of {ROUNDS} ");
        }
        for (subject, kept) in &mut samples {
            let baseline = SUBJECTS
                .iter()
                .find(|other| other.name == subject.baseline)
                .context("a baseline is a subject")?;
            let baseline = bench.measure(baseline)?;
            let value = bench.measure(subject)?;
            if round > 0 {
                kept.push((value, baseline));
            }
        }
    }
    let figures: Vec<Figure> = samples
        .iter()
        .map(|(subject, kept)| figure(subject, kept))
        .collect();
    print(&figures);
    let path = target().join("bench.json");
    fs::write(&path, serde_json::to_string_pretty(&figures)?)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn figure(subject: &Subject, samples: &[(f64, f64)]) -> Figure {
    let mut values: Vec<f64> = samples.iter().map(|(value, _)| *value).collect();
    let mut ratios: Vec<f64> = samples.iter().map(|(value, base)| value / base).collect();
    values.sort_by(f64::total_cmp);
    ratios.sort_by(f64::total_cmp);
    let quartile = |sorted: &[f64], quarter: usize| sorted[sorted.len() * quarter / 4];
    let value = quartile(&values, 2);
    Figure {
        name: subject.name,
        unit: "ns/packet",
        value,
        baseline: subject.baseline,
        ratio: quartile(&ratios, 2),
        spread: (quartile(&values, 3) - quartile(&values, 1)) / 2.0 / value,
    }
}

fn print(figures: &[Figure]) {
    println!(
        "{:<26} {:>10} {:>10} {:>12}  {:<26} {:>6} {:>7}",
        "NAME", "ns/packet", "over base", "packets/s", "BASELINE", "RATIO", "SPREAD"
    );
    for figure in figures {
        let base = figure.value / figure.ratio;
        println!(
            "{:<26} {:>10.1} {:>10.1} {:>12.0}  {:<26} {:>6.2} {:>6.1}%",
            figure.name,
            figure.value,
            figure.value - base,
            1e9 / figure.value,
            figure.baseline,
            figure.ratio,
            figure.spread * 100.0
        );
    }
}

struct Bench {
    datapath: Datapath,
    ebpf: Ebpf,
    _sandbox: Sandbox,
}

impl Bench {
    /// Programs loaded, and a path of two veth pairs: `source`–`uplink` and
    /// `host`–`pod`.
    fn new() -> Result<Self> {
        let sandbox = Sandbox::enter()?;
        // No frames but ours: neighbour discovery would be counted too.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        for (one, other) in [("source", "uplink"), ("host", "pod")] {
            ip(&format!("link add {one} type veth peer name {other}"))?;
            ip(&format!("link set dev {one} up"))?;
            ip(&format!("link set dev {other} up"))?;
        }
        let mut datapath = Datapath::open(&sandbox.bpffs())?;
        datapath.set_edge(mapped(NODE), index("uplink")?)?;
        let mut ebpf = Ebpf::load(OBJECT)?;
        for name in ["empty", "redirect", "generate", "count_and_drop"] {
            program_of(&mut ebpf, name)?.load()?;
        }
        program_of(&mut ebpf, "count_and_drop")?.attach("pod", XdpMode::Driver)?;
        let map = ebpf.map_mut("TARGETS").context("no map")?;
        DevMap::try_from(map)?.set(0, index("host")?, None, 0)?;
        Ok(Self {
            datapath,
            ebpf,
            _sandbox: sandbox,
        })
    }

    /// Nanoseconds a packet.
    fn measure(&mut self, subject: &Subject) -> Result<f64> {
        match subject.kind {
            Kind::Program(name, packet) => self.program(name, &packet()),
            Kind::Path(name, flows) => self.path(name, flows),
        }
    }

    fn program(&mut self, name: &str, packet: &[u8]) -> Result<f64> {
        // The gateway has the node's address, so that the rewritten packet,
        // which the next run sees, is as good as the first.
        self.allocate(NODE)?;
        self.template(1)?;
        let program = if name == program::INGRESS {
            program_of(self.datapath.ebpf(), name)?
        } else {
            program_of(&mut self.ebpf, name)?
        };
        cost(RUNS, || {
            program.test_run(TestRunOptions {
                data_in: Some(packet),
                repeat: RUNS,
                ..TestRunOptions::default()
            })?;
            Ok(())
        })
    }

    fn path(&mut self, name: &str, flows: u16) -> Result<f64> {
        self.allocate(GATEWAY)?;
        self.template(flows)?;
        let on_uplink = if name == program::INGRESS {
            program_of(self.datapath.ebpf(), name)?
        } else {
            program_of(&mut self.ebpf, name)?
        };
        let link = on_uplink.attach("uplink", XdpMode::Driver)?;
        let taken = self.taken()?;
        let context = context(index("source")?);
        let packet = data();
        let generate = program_of(&mut self.ebpf, "generate")?;
        let value = cost(FRAMES, || {
            generate.test_run(TestRunOptions {
                data_in: Some(&packet),
                ctx_in: Some(&context),
                repeat: FRAMES,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::default()
            })?;
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(2));
        let (through, sent) = (self.taken()? - taken, u64::from(FRAMES));
        ensure!(
            through == sent,
            "only {through} of {sent} frames came through `{name}`"
        );
        let on_uplink = if name == program::INGRESS {
            program_of(self.datapath.ebpf(), name)?
        } else {
            program_of(&mut self.ebpf, name)?
        };
        on_uplink.detach(link)?;
        Ok(value)
    }

    fn allocate(&mut self, gateway: [u8; 4]) -> Result<()> {
        let allocation = Allocation {
            mode: mode::XDP,
            slot: 5,
            ifindex: index("host")?,
            frame: FRAME,
            gateway: mapped(gateway),
            ..Allocation::default()
        };
        let change = Change {
            port: PORT,
            allocation,
            memory: Memory::Keep,
            grace: true,
        };
        Ok(self.datapath.maps.publish(&[change])?)
    }

    fn template(&mut self, flows: u16) -> Result<()> {
        let template = Template {
            headers: data()[..42].try_into()?,
            flow_mask: flows - 1,
        };
        let map = self.ebpf.map_mut("TEMPLATE").context("no map")?;
        Ok(Array::try_from(map)?.set(0, template, 0)?)
    }

    fn taken(&self) -> Result<u64> {
        let map = self.ebpf.map("TAKEN").context("no map")?;
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }
}

/// Nanoseconds of this thread's CPU time that `work` takes, by `count`.
///
/// Not of the clock: a test run ends with the kernel waiting some 20 ms for
/// readers of its dispatcher. What the network stack does for a frame runs in
/// the thread that sent it, so it is in here.
fn cost(count: u32, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let now =
        || -> Result<Duration> { Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into()) };
    let before = now()?;
    work()?;
    Ok((now()? - before).as_nanos() as f64 / f64::from(count))
}

fn program_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).context("no such program")?;
    Ok(program.try_into()?)
}

/// The context of a live run: `struct xdp_md` with the frame's length and the
/// interface that it seems to come in by.
fn context(ingress: u32) -> Vec<u8> {
    let length = u32::try_from(data().len()).expect("frames are short");
    [0, length, 0, ingress, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

fn udp(port: u16, message: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS[0], MACS[1])
        .ipv4(CLIENT, NODE, 64)
        .udp(40_000, port);
    let mut packet = Vec::new();
    builder
        .write(&mut packet, message)
        .expect("a vector takes any packet");
    packet
}

fn message(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![0; length];
    message[0] = kind;
    message
}

fn data() -> Vec<u8> {
    udp(PORT, &message(4, 128))
}

fn initiation() -> Vec<u8> {
    udp(PORT, &message(1, 148))
}

fn malformed() -> Vec<u8> {
    udp(PORT, &message(9, 128))
}

fn unknown_port() -> Vec<u8> {
    udp(PORT + 1, &message(4, 128))
}

fn tcp() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS[0], MACS[1])
        .ipv4(CLIENT, NODE, 64)
        .tcp(40_000, PORT, 1, 1024);
    let mut packet = Vec::new();
    builder
        .write(&mut packet, &[0; 128])
        .expect("a vector takes any packet");
    packet
}

fn ip(arguments: &str) -> Result<()> {
    let status = std::process::Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .context("cannot run `ip`: install the iproute2 package")?;
    ensure!(status.success(), "`ip {arguments}` failed");
    Ok(())
}

fn index(interface: &str) -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex(interface)?)
}

/// One CPU, so that sending and taking in are one sequence, and the last, as
/// the first has most of a machine's interrupts.
fn pin_to_last_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    let count = std::thread::available_parallelism()?.get();
    cpus.set(count - 1)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// The folder of build outputs that this program lies in.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let found = own.ancestors().nth(2).map(PathBuf::from);
    found.unwrap_or_else(|| "target".into())
}
