//! `vpn-edge agent`: an edge configured by a file or a cluster.

use std::collections::BTreeSet;
use std::future::{Future, pending, ready};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ArgGroup;
use clap::builder::NonEmptyStringValueParser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use vpn_edge_common::{FLOWS, UPLINKS};

use crate::agent::{Agent, File, Source};
use crate::auth::Identity;
use crate::cluster::edge_source::Kube;
use crate::cluster::{self, sessions as cluster_sessions};
use crate::datapath::{self, Datapath};
use crate::domain::{PlanLimit, PlanLimits, PortRange, PortRangeError};
use crate::http::{HttpServer, listen};
use crate::inspect::Output;
use crate::local::LocalSessions;
use crate::metrics;
use crate::network::{self, Network};
use crate::preflight;

/// How long `--check` waits for the cluster.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// How long the start waits for it; traffic does not wait.
const PREFLIGHT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("source").args(["allocations", "node"]).required(true)))]
pub struct AgentArgs {
    /// JSON file with the allocations and their gateways' nodes, followed as it
    /// changes.
    #[arg(long)]
    allocations: Option<PathBuf>,
    /// Follow a Kubernetes cluster instead, as its node of this name. The cluster
    /// is that of KUBECONFIG, or the one that this runs in as a pod.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    node: Option<String>,
    /// Address and port where controllers of the cluster hear of clients'
    /// sessions, and nobody else does [default: none].
    #[arg(long, requires = "node")]
    sessions: Option<SocketAddr>,
    /// UDP ports that this edge may take from the node's kernel, as FIRST-LAST;
    /// others are never steered, whatever the file or the cluster says. Pools as the
    /// controller takes them, HOSTNAME=FIRST-LAST, are understood too.
    #[arg(
        long,
        env = "VPN_EDGE_POOLS",
        value_name = "RANGE",
        value_delimiter = ',',
        value_parser = ports,
        default_value = "30000-32767"
    )]
    ports: Vec<PortRange>,
    #[command(flatten)]
    edge: EdgeArgs,
    /// Look for what keeps the edge from working on this node, say what to do
    /// about it, and end: with status 1 if it would not work.
    #[arg(long)]
    check: bool,
    /// Set what an agent with few privileges may not, the node's reserved ports,
    /// and end.
    #[arg(long, conflicts_with = "check")]
    prepare: bool,
    /// How --check prints what it finds.
    #[arg(short, long, value_enum, default_value_t, requires = "check")]
    output: Output,
}

/// What every node's edge is told.
#[derive(Debug, clap::Args)]
pub struct EdgeArgs {
    /// Interface that clients' packets come in by; may be given several times
    /// [default in a cluster: those of the default routes].
    #[arg(long = "uplink")]
    pub uplinks: Vec<String>,
    /// Address that clients send to; may be given several times, the one that
    /// replies leave from first [default: all of the uplinks].
    #[arg(long = "address")]
    pub addresses: Vec<IpAddr>,
    /// The first of 128 UDP ports that packets to gateways on other nodes leave
    /// from; kept from the node's own connections.
    #[arg(long, default_value_t = 61_000)]
    pub hop_ports: u16,
    /// Address and port of /healthz, for a load balancer: open to whoever
    /// reaches it; [::] is every address of either IP version.
    #[arg(long, default_value = "127.0.0.1:9095")]
    pub health: SocketAddr,
    /// Address and port of /metrics, for Prometheus: they name the tenants, and
    /// are as open.
    #[arg(long, default_value = "127.0.0.1:9096")]
    pub metrics: SocketAddr,
    /// Seconds for which /healthz says no before the daemon ends on SIGTERM, so
    /// that a load balancer turns elsewhere first.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub drain: u64,
    /// What tenants of a plan may send and receive a second, each way, as
    /// PLAN=packets:N,bytes:N; once a plan [default: no limits].
    #[arg(long = "limit", value_name = "LIMIT")]
    pub limits: Vec<PlanLimit>,
    /// Folder on bpffs for programs and maps.
    #[arg(long, default_value = datapath::DEFAULT_ROOT)]
    pub bpffs: PathBuf,
}

impl EdgeArgs {
    /// The hop ports.
    ///
    /// # Errors
    ///
    /// If the range does not fit.
    pub fn hop_range(&self) -> Result<RangeInclusive<u16>> {
        let last = usize::from(self.hop_ports) + FLOWS - 1;
        match u16::try_from(last) {
            Ok(last) if self.hop_ports >= 1024 => Ok(self.hop_ports..=last),
            _ => bail!(
                "--hop-ports {} leaves fewer than {FLOWS} ports: use a port from 1024 to {}",
                self.hop_ports,
                usize::from(u16::MAX) + 1 - FLOWS
            ),
        }
    }

    /// Checks that no tenant's port is a hop port.
    ///
    /// # Errors
    ///
    /// If one is, and like [`EdgeArgs::hop_range`].
    pub fn check_ports(&self, ranges: &[PortRange]) -> Result<()> {
        let hops = self.hop_range()?;
        for range in ranges {
            ensure!(
                *hops.end() < range.first() || *hops.start() > range.last(),
                "--hop-ports {} overlaps --ports {range}: use ports outside of it",
                self.hop_ports
            );
        }
        Ok(())
    }

    /// The settings of the preflight.
    ///
    /// # Errors
    ///
    /// Like [`EdgeArgs::hop_range`].
    fn preflight(
        &self,
        pool: Option<PortRange>,
        nodes: BTreeSet<IpAddr>,
    ) -> Result<preflight::Settings> {
        Ok(preflight::Settings {
            uplinks: self.uplinks.clone(),
            addresses: self.addresses.clone(),
            hop_ports: self.hop_range()?,
            pool,
            bpffs: self.bpffs.clone(),
            nodes,
        })
    }

    /// Reserves the hop ports, and logs the findings of the preflight.
    ///
    /// # Errors
    ///
    /// Like [`EdgeArgs::hop_range`].
    pub async fn prepare(&self, pool: Option<PortRange>, nodes: BTreeSet<IpAddr>) -> Result<()> {
        let settings = self.preflight(pool, nodes)?;
        if let Err(error) = preflight::reserve(settings.hop_ports.clone()) {
            // Not fatal: unless the node's settings were changed, nothing else gets
            // them, and the preflight reports it.
            tracing::warn!("cannot reserve the hop ports: {error}");
        }
        for finding in preflight::check(&settings).await {
            let preflight::Finding {
                severity,
                check,
                found,
                remedy,
            } = finding;
            match severity {
                preflight::Severity::Error => tracing::error!(check, "{found}: {remedy}"),
                preflight::Severity::Warning => tracing::warn!(check, "{found}: {remedy}"),
            }
        }
        Ok(())
    }

    /// Begins to follow the node's network.
    ///
    /// # Errors
    ///
    /// When something that is named is missing.
    pub async fn network(&self) -> Result<Network> {
        ensure!(
            self.uplinks.len() <= UPLINKS,
            "{} uplinks are given, but an edge supports {UPLINKS}",
            self.uplinks.len()
        );
        Network::follow(network::Settings {
            uplinks: self.uplinks.clone(),
            addresses: self.addresses.clone(),
        })
        .await
    }
}

/// The ports of an edge.
pub(crate) struct EdgePorts {
    /// Ports that may be taken from the node's kernel.
    pub steered: Vec<PortRange>,
    /// Ports that are assigned to tenants.
    pub pool: Vec<PortRange>,
}

/// An edge that is about to run: its agent, and its observers.
pub(crate) struct Edge {
    pub agent: Agent,
    health: TcpListener,
    metrics: TcpListener,
    sources: metrics::Sources,
    draining: watch::Sender<bool>,
    drain: Duration,
}

impl Edge {
    /// Attaches the programs. `identity` is the API's, if this process serves it.
    ///
    /// # Errors
    ///
    /// If the edge cannot start, with what to do about it.
    pub async fn start(
        args: &EdgeArgs,
        network: Network,
        ports: EdgePorts,
        identity: Option<Arc<Identity>>,
    ) -> Result<Self> {
        let [health, metrics] =
            [("health", args.health), ("metrics", args.metrics)].map(|(what, address)| {
                listen(address).with_context(|| {
                    format!("cannot serve {what} on {address}: name another address with --{what}")
                })
            });
        let (health, metrics) = (health?, metrics?);
        let datapath = Datapath::open(&args.bpffs)?;
        let programs = datapath.programs()?;
        let limits = PlanLimits::new(args.limits.clone());
        let agent = Agent::attach(
            datapath,
            network,
            args.uplinks.clone(),
            args.hop_ports,
            limits,
            ports.steered,
        )
        .await?;
        let draining = watch::Sender::new(false);
        let sources = metrics::Sources {
            reader: datapath::Reader::open(&args.bpffs)?,
            programs,
            agent: agent.status(),
            ports: ports.pool,
            uplinks: args.uplinks.clone(),
            bpffs: args.bpffs.clone(),
            identity,
            draining: draining.subscribe(),
        };
        Ok(Self {
            agent,
            health,
            metrics,
            sources,
            draining,
            drain: Duration::from_secs(args.drain),
        })
    }

    /// Runs until SIGTERM or SIGINT, or until `work` ends, which is an error;
    /// `finish` then ends what depends on the agent. The kernel side keeps working.
    ///
    /// # Errors
    ///
    /// If something ends that should not.
    pub async fn run(
        self,
        source: Arc<dyn Source>,
        work: impl Future<Output = Result<()>>,
        finish: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (health, metrics) = metrics::routers(self.sources, Arc::clone(&source));
        let mut agent = tokio::spawn(self.agent.run(source));
        let _health = HttpServer::observed(self.health, health);
        let _metrics = HttpServer::observed(self.metrics, metrics);
        let (draining, drain) = (self.draining, self.drain);
        let asked_to_end = async {
            tokio::select! {
                _ = terminate.recv() => {
                    draining.send_replace(true);
                    tracing::info!(seconds = drain.as_secs(), "draining");
                    tokio::select! {
                        () = tokio::time::sleep(drain) => {}
                        _ = interrupt.recv() => {}
                    }
                }
                _ = interrupt.recv() => {}
            }
        };
        tokio::select! {
            ended = &mut agent => bail!("the agent ended: {ended:?}"),
            ended = work => ended?,
            () = asked_to_end => {}
        }
        tracing::info!("shutting down; gateways and traffic continue");
        finish.await;
        // Wait until it has ended, before the runtime does.
        agent.abort();
        let _ = agent.await;
        Ok(())
    }
}

/// Runs until SIGTERM or SIGINT. The kernel side stays.
///
/// # Errors
///
/// If the edge cannot start, with what to do about it.
pub async fn run(args: AgentArgs) -> Result<()> {
    let AgentArgs {
        allocations,
        node,
        sessions,
        ports,
        mut edge,
        check,
        prepare,
        output,
    } = args;
    if prepare {
        return preflight::reserve(edge.hop_range()?).context(
            "cannot reserve the hop ports: run this with a writable /proc/sys, \
             as a privileged container has it",
        );
    }
    edge.check_ports(&ports)?;
    let patience = if check { FIRST_LIST } else { PREFLIGHT };
    let mut cluster = None;
    let (source, nodes): (Arc<dyn Source>, _) = match (node, allocations) {
        (Some(node), _) => {
            if edge.uplinks.is_empty() {
                edge.uplinks = network::default_uplinks().await?;
            }
            let client = cluster::client().await?;
            let source = Kube::start(client.clone(), &node)?;
            cluster = Some(client);
            let nodes = first_nodes(source.as_ref(), patience).await;
            (source, nodes)
        }
        (None, Some(allocations)) => {
            let source = Arc::new(File::follow(&allocations)?);
            let nodes = source.world().await?.nodes();
            (source, Ok(nodes))
        }
        (None, None) => bail!("give --allocations or --node"),
    };
    if check {
        let mut findings = Vec::new();
        let nodes = nodes.unwrap_or_else(|error| {
            findings.push(no_cluster(&error));
            BTreeSet::new()
        });
        findings.extend(preflight::check(&edge.preflight(None, nodes)?).await);
        let text = match output {
            Output::Json => serde_json::to_string_pretty(&findings)?,
            Output::Table => preflight::render(&findings),
        };
        println!("{}", text.trim_end());
        std::process::exit(preflight::exit_status(&findings).into());
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "`vpn-edge agent` loads eBPF programs: run it as root"
    );
    // The agent keeps trying, and logs why.
    edge.prepare(None, nodes.unwrap_or_default()).await?;
    let network = edge.network().await?;
    let sessions = sessions.map(|address| {
        listen(address).with_context(|| {
            format!("cannot serve sessions on {address}: name another address with --sessions")
        })
    });
    let sessions = sessions.transpose()?;
    let ports = EdgePorts {
        steered: ports.clone(),
        pool: ports,
    };
    let running = Edge::start(&edge, network, ports, None).await?;
    let known = LocalSessions::open(&edge.bpffs)?;
    tracing::info!(health = %edge.health, metrics = %edge.metrics, uplinks = ?edge.uplinks, "ready");
    let _sessions = sessions.zip(cluster).map(|(listener, client)| {
        HttpServer::start(
            listener,
            None,
            cluster_sessions::router(Arc::new(known), client),
        )
    });
    running.run(source, pending(), ready(())).await
}

/// A range, which may be written as a pool.
fn ports(text: &str) -> Result<PortRange, PortRangeError> {
    let range = text.rsplit_once('=').map_or(text, |(_, range)| range);
    range.trim().parse()
}

/// The nodes of the first state, if it arrives soon.
async fn first_nodes(source: &dyn Source, patience: Duration) -> Result<BTreeSet<IpAddr>> {
    let mut changes = source.changes();
    let deadline = Instant::now() + patience;
    loop {
        match source.world().await {
            Ok(world) => return Ok(world.nodes()),
            Err(error) => {
                let changed = tokio::time::timeout_at(deadline, changes.changed()).await;
                if changed.is_err() {
                    return Err(error);
                }
            }
        }
    }
}

fn no_cluster(error: &anyhow::Error) -> preflight::Finding {
    preflight::Finding {
        severity: preflight::Severity::Error,
        check: "cluster",
        found: format!("cannot read tenants and gateways from the cluster: {error:#}"),
        remedy: "check that this node reaches the API server, that --node is its name there, \
                 and that the service account may list and watch vpntenants, endpointslices \
                 and nodes"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;

    /// What the command line says to these arguments.
    fn said(arguments: &[&str]) -> Result<AgentArgs, String> {
        use clap::FromArgMatches;
        let command = AgentArgs::augment_args(Command::new("agent"))
            // Whoever runs the tests may be in a pod.
            .mut_arg("node", |node| node.env(None::<&str>))
            .mut_arg("ports", |ports| ports.env(None::<&str>));
        let arguments = std::iter::once("agent").chain(arguments.iter().copied());
        let matches = command.try_get_matches_from(arguments);
        let parsed = matches.and_then(|matches| AgentArgs::from_arg_matches(&matches));
        parsed.map_err(|error| error.to_string())
    }

    #[test]
    fn an_agent_follows_a_file_or_a_cluster() {
        let file = said(&["--allocations", "file", "--uplink", "eth0"]).unwrap();
        assert_eq!((file.allocations, file.node), (Some("file".into()), None));
        let cluster = said(&["--node", "worker-1"]).unwrap();
        assert_eq!(cluster.node.as_deref(), Some("worker-1"));
        assert!(cluster.edge.uplinks.is_empty());

        let ranges = |of: &AgentArgs| {
            of.ports
                .iter()
                .map(PortRange::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(&cluster), ["30000-32767"]);
        let pools = "vpn-a.example.com=30000-30049,30050-30099";
        let cluster = said(&["--node", "worker-1", "--ports", pools]).unwrap();
        assert_eq!(ranges(&cluster), ["30000-30049", "30050-30099"]);
        let bad = said(&["--node", "worker-1", "--ports", "vpn.example.com=0-70000"]).unwrap_err();
        assert!(bad.contains("\"0-70000\" is not a port range"), "{bad}");

        let none = said(&["--uplink", "eth0"]).unwrap_err();
        assert!(
            none.contains("--allocations <ALLOCATIONS>|--node <NAME>"),
            "{none}"
        );
        let both = said(&["--allocations", "file", "--node", "worker-1"]).unwrap_err();
        assert!(both.contains("cannot be used with"), "{both}");
        let empty = said(&["--node", ""]).unwrap_err();
        assert!(
            empty.contains("a value is required for '--node <NAME>'"),
            "{empty}"
        );
    }
}
