//! `vpn-edge agent`: an edge configured by a file or a cluster.

use std::collections::BTreeSet;
use std::future::{pending, ready};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, Subcommand};
use tokio::time::Instant;

use super::args::EdgeArgs;
use super::edge::{Edge, EdgePorts};
use crate::agent::{File, Source};
use crate::args::{Output, OutputArgs, variable};
use crate::cluster::edge_source::Kube;
use crate::cluster::{self, sessions as cluster_sessions};
use crate::datapath::LogLevel;
use crate::domain::{PortRange, PortRangeError};
use crate::http::{HttpServer, listen};
use crate::local::LocalSessions;
use crate::{network, preflight};

/// How long `check` waits for the cluster.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// How long the start waits for it; traffic does not wait.
const PREFLIGHT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: Option<AgentCommand>,
    #[command(flatten)]
    node: NodeArgs,
    // What `check` and `prepare` were in version 0.0.1, for manifests and units
    // that have them still.
    #[arg(long, hide = true, conflicts_with = "prepare")]
    check: bool,
    #[arg(long, hide = true)]
    prepare: bool,
    #[arg(
        short,
        long,
        hide = true,
        value_enum,
        default_value_t,
        requires = "check"
    )]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Check this node for whatever prevents the agent from working, and print
    /// each finding with a remedy.
    #[command(after_help = "\
Takes the daemon's options. The exit status is 1 if the agent would not work.")]
    Check {
        #[command(flatten)]
        node: NodeArgs,
        // Behind what variables set, as it is not the daemon's.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Reserve the node's ports for an agent without the privilege to do so.
    #[command(after_help = "Takes the daemon's options.")]
    Prepare {
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// What an agent is to know of its node.
#[derive(Debug, Args)]
#[command(mut_args(variable))]
#[command(group(ArgGroup::new("source").args(["allocations", "node"]).required(true)))]
struct NodeArgs {
    /// JSON file with allocations and the nodes of their gateways; changes are
    /// followed.
    #[arg(long, value_name = "FILE")]
    allocations: Option<PathBuf>,
    /// Follow a Kubernetes cluster, as its node of this name. The cluster is that
    /// of KUBECONFIG, or the one that this process runs in as a pod.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    node: Option<String>,
    /// Address and port where controllers of the cluster, and nobody else, read
    /// clients' sessions [default: none].
    #[arg(long, value_name = "ADDRESS:PORT", requires = "node")]
    sessions: Option<SocketAddr>,
    /// UDP ports that the edge may take over from the node's kernel, FIRST-LAST.
    /// No other port is steered, whatever the file or the cluster says. Pools of a
    /// controller, HOSTNAME=FIRST-LAST, are accepted too.
    #[arg(
        long,
        env = "VPN_EDGE_POOLS",
        value_name = "RANGE",
        value_parser = ports,
        default_value = "30000-32767"
    )]
    ports: Vec<PortRange>,
    #[command(flatten)]
    edge: EdgeArgs,
}

impl AgentArgs {
    pub(crate) fn logs_datapath(&self) -> bool {
        self.node.edge.datapath_log != LogLevel::Off
    }
}

/// Runs until SIGTERM or SIGINT. The kernel side stays.
///
/// # Errors
///
/// If the edge cannot start, with what to do about it.
pub async fn run(args: AgentArgs) -> Result<()> {
    match args.command {
        Some(AgentCommand::Check { node, output }) => check(node, output.output).await,
        Some(AgentCommand::Prepare { node }) => prepare(&node),
        None if args.check => check(args.node, args.output).await,
        None if args.prepare => prepare(&args.node),
        None => serve(args.node).await,
    }
}

fn prepare(args: &NodeArgs) -> Result<()> {
    preflight::reserve(args.edge.hop_range()?).context(
        "cannot reserve the hop ports: run this with a writable /proc/sys, \
         as a privileged container has it",
    )
}

/// Ends the process, with the status that findings call for.
async fn check(mut args: NodeArgs, output: Output) -> Result<()> {
    args.edge.check_ports(&args.ports)?;
    let Followed { nodes, .. } = args.follow(FIRST_LIST).await?;
    let mut findings = Vec::new();
    let nodes = nodes.unwrap_or_else(|error| {
        findings.push(no_cluster(&error));
        BTreeSet::new()
    });
    findings.extend(preflight::check(&args.edge.preflight(None, nodes)?).await);
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&findings)?,
        Output::Table => preflight::render(&findings),
    };
    println!("{}", text.trim_end());
    std::process::exit(preflight::exit_status(&findings).into());
}

async fn serve(mut args: NodeArgs) -> Result<()> {
    args.edge.check_ports(&args.ports)?;
    let Followed {
        source,
        nodes,
        cluster,
    } = args.follow(PREFLIGHT).await?;
    let NodeArgs {
        sessions,
        ports,
        edge,
        ..
    } = args;
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
        active_ports: ports.clone(),
        pool: ports,
    };
    let running = Edge::start(&edge, network, ports, None).await?;
    let known = LocalSessions::open(&edge.maps.bpffs)?;
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

/// What an agent follows.
struct Followed {
    source: Arc<dyn Source>,
    /// The nodes that have gateways, if they are known by now.
    nodes: Result<BTreeSet<IpAddr>>,
    cluster: Option<cluster::Client>,
}

impl NodeArgs {
    /// Begins to follow the file or the cluster, and waits this long for the first
    /// of it.
    async fn follow(&mut self, timeout: Duration) -> Result<Followed> {
        match (&self.node, &self.allocations) {
            (Some(node), _) => {
                if self.edge.uplinks.is_empty() {
                    self.edge.uplinks = network::default_uplinks().await?;
                }
                let client = cluster::client().await?;
                let source = Kube::start(client.clone(), node)?;
                Ok(Followed {
                    nodes: first_nodes(source.as_ref(), timeout).await,
                    source,
                    cluster: Some(client),
                })
            }
            (None, Some(allocations)) => {
                let source = Arc::new(File::follow(allocations)?);
                Ok(Followed {
                    nodes: Ok(source.desired().await?.nodes()),
                    source,
                    cluster: None,
                })
            }
            (None, None) => bail!("give --allocations or --node"),
        }
    }
}

/// A range, which may be written as a pool.
fn ports(text: &str) -> Result<PortRange, PortRangeError> {
    let range = text.rsplit_once('=').map_or(text, |(_, range)| range);
    range.trim().parse()
}

/// The nodes of the first state, if it arrives soon.
async fn first_nodes(source: &dyn Source, timeout: Duration) -> Result<BTreeSet<IpAddr>> {
    let mut changes = source.changes();
    let deadline = Instant::now() + timeout;
    loop {
        match source.desired().await {
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
    use clap::{Command, FromArgMatches as _};

    use super::*;
    use crate::args::testing::without_variables;

    /// What the command line says to these arguments.
    fn said(arguments: &[&str]) -> Result<AgentArgs, String> {
        let command = without_variables(AgentArgs::augment_args(Command::new("agent")));
        let arguments = std::iter::once("agent").chain(arguments.iter().copied());
        let matches = command.try_get_matches_from(arguments);
        let parsed = matches.and_then(|matches| AgentArgs::from_arg_matches(&matches));
        parsed.map_err(|error| error.to_string())
    }

    #[test]
    fn an_agent_follows_a_file_or_a_cluster() {
        let node = |arguments: &[&str]| said(arguments).map(|args| args.node);
        let file = node(&["--allocations", "file", "--uplink", "eth0"]).unwrap();
        assert_eq!((file.allocations, file.node), (Some("file".into()), None));
        let cluster = node(&["--node", "worker-1"]).unwrap();
        assert_eq!(cluster.node.as_deref(), Some("worker-1"));
        assert!(cluster.edge.uplinks.is_empty());

        let ranges = |of: &NodeArgs| {
            of.ports
                .iter()
                .map(PortRange::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(&cluster), ["30000-32767"]);
        let pools = "vpn-a.example.com=30000-30049,30050-30099";
        let cluster = node(&["--node", "worker-1", "--ports", pools]).unwrap();
        assert_eq!(ranges(&cluster), ["30000-30049", "30050-30099"]);
        let bad = node(&["--node", "worker-1", "--ports", "vpn.example.com=0-70000"]).unwrap_err();
        assert!(bad.contains("\"0-70000\" is not a port range"), "{bad}");

        let none = node(&["--uplink", "eth0"]).unwrap_err();
        assert!(
            none.contains("--allocations <FILE>|--node <NAME>"),
            "{none}"
        );
        let both = node(&["--allocations", "file", "--node", "worker-1"]).unwrap_err();
        assert!(both.contains("cannot be used with"), "{both}");
        let empty = node(&["--node", ""]).unwrap_err();
        assert!(
            empty.contains("a value is required for '--node <NAME>'"),
            "{empty}"
        );
    }

    /// With all options that the daemon's unit or pod may have.
    const DAEMON: [&str; 4] = [
        "--node=worker-1",
        "--drain=30",
        "--uplink=eth0",
        "--ports=30000-30099",
    ];

    #[test]
    fn a_node_is_checked_and_prepared_with_the_daemons_options() {
        let of = |words: &[&str]| said(&[words, &DAEMON].concat()).unwrap();
        let Some(AgentCommand::Check { node, output }) = of(&["check", "-o", "json"]).command
        else {
            panic!("no check");
        };
        assert_eq!(output.output, Output::Json);
        assert_eq!(node.node.as_deref(), Some("worker-1"));
        assert_eq!(node.edge.drain, 30);
        let Some(AgentCommand::Prepare { node }) = of(&["prepare"]).command else {
            panic!("no preparation");
        };
        assert_eq!(node.edge.hop_ports, 61_000);

        let unknown = said(&["check", "--uplink", "eth0"]).unwrap_err();
        assert!(
            unknown.contains("<--allocations <FILE>|--node <NAME>>"),
            "{unknown}"
        );
        let before = said(&["--node", "worker-1", "check"]).unwrap_err();
        assert!(before.contains("cannot be used with"), "{before}");
    }

    #[test]
    fn flags_of_the_first_version_check_and_prepare_still() {
        let of = |words: &[&str]| said(&[&DAEMON, words].concat());
        let check = of(&["--check", "-o", "json"]).unwrap();
        assert!(check.check && check.command.is_none());
        assert_eq!(check.output, Output::Json);
        assert!(of(&["--prepare"]).unwrap().prepare);
        assert!(of(&["--prepare", "--check"]).is_err());
        assert!(of(&["-o", "json"]).is_err());
        let help = AgentArgs::augment_args(Command::new("agent")).render_long_help();
        let help = help.to_string();
        assert!(
            !help.contains("--check") && !help.contains("--prepare"),
            "{help}"
        );
        assert!(!help.contains("--output"), "{help}");
    }
}
