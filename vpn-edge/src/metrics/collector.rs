//! A snapshot of the edge, and the metric families made from it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use uuid::Uuid;
use vpn_edge_common::{
    BUCKETS, Counters, DropReason, FLOWS, NODE_SLOT, SCHEMA, SLOTS, map, mode, program,
};

use super::{Sources, TOKEN_FILE_READABLE};
use crate::agent::SyncCounts;
use crate::datapath::{AttachPoint, ProgramFacts, ProgramRuns, Reader, Running};
use crate::domain::PortRange;

/// Ports that have an entry of their own in the port map.
const PORTS: u64 = 1 << 16;

/// Capacity of a slot for session indexes.
const SESSIONS: u64 = (BUCKETS * size_of::<vpn_edge_common::Bucket>() / size_of::<u64>()) as u64;

/// The edge at one moment.
#[derive(Debug)]
pub struct Snapshot {
    ports: Vec<Port>,
    ranges: Vec<PortRange>,
    /// Number of tenants whose port may not be steered.
    outside: usize,
    programs: Vec<ProgramFacts>,
    /// Whether the programs are attached to the uplinks' hooks.
    attached: Vec<Attached>,
    /// Drops of packets that may have been for any tenant.
    node: Counters,
    /// None if the kernel does not count.
    runs: Option<Vec<ProgramRuns>>,
    syncs: SyncCounts,
    durations: Histogram,
    lags: Histogram,
    /// Whether the source reports changes.
    source_up: bool,
    /// Whether the whole token file is valid; none without an API.
    token_file_readable: Option<bool>,
}

/// A tenant's port.
#[derive(Debug)]
struct Port {
    number: u16,
    tenant: Uuid,
    mode: u8,
    counters: Counters,
    sessions: usize,
    flows: usize,
    grace: Option<Duration>,
}

impl Snapshot {
    /// Reads maps, programs and the agent's status.
    pub fn take(sources: &Sources, source_up: bool) -> Result<Self> {
        Ok(Self {
            ports: ports(&sources.reader)?,
            ranges: sources.ports.clone(),
            outside: sources.agent.outside(),
            programs: sources.programs.facts().cloned().collect(),
            attached: attached(sources)?,
            node: sources.reader.counters(NODE_SLOT)?,
            runs: sources.programs.runs(),
            syncs: sources.agent.counts(),
            durations: sources.agent.durations.clone(),
            lags: sources.agent.lags.clone(),
            source_up,
            token_file_readable: sources
                .identity
                .as_ref()
                .map(|identity| identity.token_file_problem().is_none()),
        })
    }
}

/// Whether one of the programs is attached to an uplink.
#[derive(Debug)]
struct Attached {
    uplink: String,
    program: &'static str,
    attached: bool,
}

fn attached(sources: &Sources) -> Result<Vec<Attached>> {
    let mut all = Vec::new();
    for uplink in &sources.uplinks {
        for (program, hook) in [
            (program::INGRESS, AttachPoint::UplinkXdp(uplink.clone())),
            (program::INGRESS_TC, AttachPoint::UplinkTc(uplink.clone())),
        ] {
            let running = Running::find(&sources.bpffs, &hook)?;
            all.push(Attached {
                uplink: uplink.clone(),
                program,
                attached: running.is_some_and(|running| sources.programs.has(&running)),
            });
        }
    }
    Ok(all)
}

fn ports(reader: &Reader) -> Result<Vec<Port>> {
    let mut ports = Vec::new();
    for (number, allocation) in reader.allocations() {
        let slot = allocation.slot;
        let port = Port {
            number,
            tenant: Uuid::from_bytes(allocation.tenant),
            mode: allocation.mode,
            counters: reader.counters(slot)?,
            sessions: reader.sessions(slot),
            flows: reader.flows(slot)?.len(),
            grace: reader.grace(slot).filter(|left| !left.is_zero()),
        };
        // If the slot was reassigned meanwhile, the counts would be another tenant's.
        let same = reader.allocation(number).is_some_and(|now| {
            now.slot == allocation.slot
                && now.tenant == allocation.tenant
                && now.generation == allocation.generation
        });
        if same {
            ports.push(port);
        }
    }
    Ok(ports)
}

type Label = (&'static str, String);

impl Port {
    fn labels(&self) -> [Label; 2] {
        [
            ("tenant", self.tenant.to_string()),
            ("port", self.number.to_string()),
        ]
    }

    fn labels_and(&self, name: &'static str, value: &str) -> [Label; 3] {
        let [tenant, port] = self.labels();
        [tenant, port, (name, value.to_owned())]
    }

    fn mode(&self) -> &'static str {
        match self.mode {
            mode::XDP => "xdp",
            mode::TC => "tc",
            mode::HOP => "hop",
            _ => "closed",
        }
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.counters.drops[reason as usize]
    }
}

/// Encodes families one by one.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counters<S: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (S, V)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges<S: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (S, V)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(
            name,
            help,
            None,
            MetricType::Gauge,
        )?)
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        histogram.encode(
            self.0
                .encode_descriptor(name, help, None, MetricType::Histogram)?,
        )
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.traffic(&mut families)?;
        self.guard(&mut families)?;
        self.room(&mut families)?;
        self.programs(&mut families)?;
        self.agent(&mut families)
    }
}

impl Snapshot {
    /// One sample per port.
    fn each<T>(&self, of: impl Fn(&Port) -> T) -> impl Iterator<Item = ([Label; 2], T)> {
        self.ports.iter().map(move |port| (port.labels(), of(port)))
    }

    fn traffic(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counters(
            "ingress_packets",
            "Packets from clients that were steered to the tenant's gateway.",
            self.each(|port| port.counters.ingress_packets),
        )?;
        families.counters(
            "ingress_bytes",
            "Bytes of IP packets from clients that were steered to the tenant's gateway.",
            self.each(|port| port.counters.ingress_bytes),
        )?;
        families.counters(
            "egress_packets",
            "Packets from the tenant's gateway to clients.",
            self.each(|port| port.counters.egress_packets),
        )?;
        families.counters(
            "egress_bytes",
            "Bytes of IP packets from the tenant's gateway to clients.",
            self.each(|port| port.counters.egress_bytes),
        )?;
        families.counters(
            "drops",
            "Dropped packets by reason; only reasons that occurred. \
             `vpn-edge drops` shows packets, the documentation says what each reason means.",
            self.ports.iter().flat_map(|port| {
                DropReason::ALL
                    .iter()
                    .filter(|&&reason| port.drops(reason) > 0)
                    .map(|&reason| (port.labels_and("reason", reason.name()), port.drops(reason)))
            }),
        )?;
        families.counters(
            "node_drops",
            "Dropped packets to the node that may have been for any tenant, by reason; \
             only reasons that occurred.",
            DropReason::ALL
                .iter()
                .map(|&reason| {
                    (
                        [("reason", reason.name())],
                        self.node.drops[reason as usize],
                    )
                })
                .filter(|&(_, count)| count > 0),
        )?;
        families.counters(
            "icmp_errors",
            "ICMP errors about the tenant's packets that were translated and forwarded.",
            self.each(|port| port.counters.errors),
        )?;
        families.gauges(
            "flows",
            "Clients that recently sent packets to the tenant; `vpn-edge flows` lists them.",
            self.each(|port| port.flows),
        )?;
        families.gauges(
            "port_open",
            "Whether the tenant's port is steered to its gateway (1), by XDP or tc, \
             on to another node (hop), or allocated and closed (0).",
            self.ports.iter().map(|port| {
                let open = u64::from(port.mode > mode::CLOSED);
                (port.labels_and("mode", port.mode()), open)
            }),
        )
    }

    fn guard(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counters(
            "handshakes_accepted",
            "Handshake messages that were let in.",
            self.each(|port| port.counters.handshakes),
        )?;
        families.counters(
            "handshakes_refused",
            "Handshake messages that were dropped, by the reasons mac1, replay, \
             source_rate and handshake_rate.",
            self.each(|port| {
                let refusals = DropReason::ALL
                    .iter()
                    .filter(|reason| reason.refuses_handshake());
                refusals.map(|reason| port.drops(*reason)).sum::<u64>()
            }),
        )?;
        families.counters(
            "sessions_announced",
            "Session indexes that the tenant's gateway announced.",
            self.each(|port| port.counters.announced),
        )?;
        families.gauges(
            "sessions",
            "Session indexes under which packets are let in now.",
            self.each(|port| port.sessions),
        )?;
        families.counters(
            "graced_packets",
            "Packets of unknown sessions that were let in during the grace period after a loss \
             of the maps.",
            self.each(|port| port.counters.graced),
        )?;
        families.counters(
            "relayed_packets",
            "Packets that were forwarded to the gateway's node though their session was unknown \
             here.",
            self.each(|port| port.counters.relayed),
        )?;
        families.gauges(
            "grace_remaining_seconds",
            "Remaining grace period for packets of unknown sessions; only while there is one.",
            self.ports
                .iter()
                .filter_map(|port| Some((port.labels(), port.grace?.as_secs_f64()))),
        )
    }

    fn room(&self, families: &mut Families<'_>) -> fmt::Result {
        let pool = self.ranges.iter().map(|range| range.ports().len() as u64);
        let in_pool = |port: &&Port| self.ranges.iter().any(|range| range.contains(port.number));
        let allocated = self.ports.iter().filter(in_pool);
        families.gauge(
            "pool_ports",
            "Ports for tenants (--ports).",
            pool.sum::<u64>(),
        )?;
        families.gauge(
            "pool_ports_allocated",
            "Ports of the pool that tenants hold on this edge.",
            allocated.count(),
        )?;
        families.gauge(
            "ports_outside_range",
            "Tenants whose port is outside --ports and therefore not steered.",
            self.outside,
        )?;
        let entries = self.ports.len() as u64;
        let sessions: u64 = self.ports.iter().map(|port| port.sessions as u64).sum();
        let flows: u64 = self.ports.iter().map(|port| port.flows as u64).sum();
        let maps = [
            (map::ALLOCATIONS, entries, PORTS),
            ("slots", entries, u64::from(NODE_SLOT)),
            (map::SESSIONS, sessions, u64::from(SLOTS) * SESSIONS),
            (map::FLOWS, flows, u64::from(SLOTS) * FLOWS as u64),
        ];
        families.gauges(
            "map_entries",
            "Entries in use: allocated ports, tenants, live session indexes, flows.",
            maps.map(|(name, entries, _)| ([("map", name)], entries)),
        )?;
        families.gauges(
            "map_capacity",
            "Capacity in entries: ports, tenants, session indexes and flows \
             (a tenant has its share of these and cannot take another's).",
            maps.map(|(name, _, capacity)| ([("map", name)], capacity)),
        )
    }

    fn programs(&self, families: &mut Families<'_>) -> fmt::Result {
        let runs = || self.runs.iter().flatten();
        families.counters(
            "program_run_time_seconds",
            "Time that the program ran for; absent unless the kernel counts \
             (sysctl kernel.bpf_stats_enabled=1, which costs some speed).",
            runs().map(|program| ([("program", &program.name)], program.time.as_secs_f64())),
        )?;
        families.counters(
            "program_runs",
            "How often the program ran; absent unless the kernel counts \
             (sysctl kernel.bpf_stats_enabled=1, which costs some speed).",
            runs().map(|program| ([("program", &program.name)], program.runs)),
        )?;
        families.gauges(
            "program_attached",
            "Whether an uplink has this daemon's program: 1 or 0. Without native \
             XDP in the driver, ingress stays 0 and ingress_tc does its work.",
            self.attached.iter().map(|hook| {
                let labels = [
                    ("uplink", hook.uplink.clone()),
                    ("program", hook.program.to_owned()),
                ];
                (labels, u64::from(hook.attached))
            }),
        )?;
        families.gauges(
            "program_instructions",
            "Instructions that the verifier processed; absent before Linux 5.16.",
            self.programs
                .iter()
                .filter_map(|program| Some(([("program", &program.name)], program.instructions?))),
        )?;
        families.gauges(
            "program_loaded_timestamp_seconds",
            "When the program was loaded.",
            self.programs.iter().filter_map(|program| {
                Some((
                    [("program", &program.name)],
                    seconds(program.loaded?).round(),
                ))
            }),
        )
    }

    fn agent(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counters(
            "syncs",
            "Attempts to sync the maps with registry and gateways.",
            [("ok", self.syncs.ok), ("failed", self.syncs.failed)]
                .map(|(outcome, count)| ([("outcome", outcome)], count)),
        )?;
        families.gauge(
            "last_sync_timestamp_seconds",
            "When the maps were last synced; 0 if never since the start.",
            self.syncs.last.map_or(0.0, seconds),
        )?;
        families.gauge(
            "source_up",
            "Whether the agent receives changes (1), or works with its last known state (0), as while \
             the API server cannot be reached.",
            u64::from(self.source_up),
        )?;
        if let Some(readable) = self.token_file_readable {
            families.gauge(
                TOKEN_FILE_READABLE.0,
                TOKEN_FILE_READABLE.1,
                u64::from(readable),
            )?;
        }
        families.histogram(
            "sync_duration_seconds",
            "How long attempts to sync the maps took.",
            &self.durations,
        )?;
        families.histogram(
            "sync_lag_seconds",
            "From the notice of a change in registry or gateways to maps that reflect it.",
            &self.lags,
        )?;
        families.gauges(
            "build_info",
            "The build that runs: its version, and the schema of its maps.",
            [(
                [
                    ("version", env!("CARGO_PKG_VERSION").to_owned()),
                    ("schema", SCHEMA.to_string()),
                ],
                1_u64,
            )],
        )
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use vpn_edge_common::DROP_REASONS;

    use super::*;

    /// An edge with one open port and one closed, programs and a history.
    fn edge() -> Snapshot {
        let mut drops = [0; DROP_REASONS];
        for (reason, count) in [
            (DropReason::Mac1, 3),
            (DropReason::HandshakeRate, 4),
            (DropReason::MessageType, 5),
        ] {
            drops[reason as usize] = count;
        }
        let open = Port {
            number: 31_001,
            tenant: Uuid::from_u128(0x1234),
            mode: mode::HOP,
            counters: Counters {
                ingress_packets: 10,
                ingress_bytes: 1_000,
                egress_packets: 20,
                egress_bytes: 2_000,
                handshakes: 2,
                announced: 1,
                graced: 6,
                relayed: 9,
                errors: 8,
                drops,
                ..Counters::default()
            },
            sessions: 1,
            flows: 3,
            grace: Some(Duration::from_millis(2_500)),
        };
        let closed = Port {
            number: 31_002,
            tenant: Uuid::from_u128(0x5678),
            mode: mode::CLOSED,
            counters: Counters::default(),
            sessions: 0,
            flows: 0,
            grace: None,
        };
        let mut node = Counters::default();
        node.drops[DropReason::IpOptions as usize] = 7;
        let (durations, lags) = (Histogram::new([0.01, 1.0]), Histogram::new([0.01, 1.0]));
        durations.observe(0.125);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        Snapshot {
            ports: vec![open, closed],
            ranges: vec![PortRange::new(31_001, 31_010).unwrap()],
            outside: 0,
            programs: vec![ProgramFacts {
                name: "ingress".into(),
                instructions: Some(4_321),
                loaded: Some(at(1_700_000_000)),
            }],
            attached: [("eth0", false), ("eth1", true)]
                .into_iter()
                .flat_map(|(uplink, has_xdp)| {
                    let programs = [(program::INGRESS, has_xdp), (program::INGRESS_TC, true)];
                    programs.map(|(program, attached)| Attached {
                        uplink: uplink.into(),
                        program,
                        attached,
                    })
                })
                .collect(),
            node,
            runs: Some(vec![ProgramRuns {
                name: "ingress".into(),
                runs: 30,
                time: Duration::from_micros(1_500),
            }]),
            syncs: SyncCounts {
                ok: 8,
                failed: 1,
                last: Some(at(1_700_000_100)),
            },
            durations,
            lags,
            source_up: true,
            token_file_readable: Some(true),
        }
    }

    #[test]
    fn the_edge_is_told_family_by_family() {
        let text = super::super::render(edge()).unwrap();
        let build = format!("{}\",schema=\"{SCHEMA}\"", env!("CARGO_PKG_VERSION"));
        insta::assert_snapshot!(text.replace(&build, "VERSION\",schema=\"SCHEMA\""));
    }

    #[test]
    fn an_edge_without_an_api_has_no_token_file() {
        let agent = Snapshot {
            token_file_readable: None,
            ..edge()
        };
        let text = super::super::render(agent).unwrap();
        assert!(!text.contains("token_file"), "{text}");
    }

    #[test]
    fn a_kernel_that_does_not_count_runs_is_not_said_to_have_run_nothing() {
        let quiet = Snapshot {
            runs: None,
            ..edge()
        };
        let text = super::super::render(quiet).unwrap();
        assert!(text.contains("# HELP vpn_edge_program_runs "), "{text}");
        assert!(!text.contains("vpn_edge_program_runs_total"), "{text}");
        assert!(!text.contains("run_time_seconds_total"), "{text}");
    }
}
