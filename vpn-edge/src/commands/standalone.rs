//! `vpn-edge standalone`: the whole system on one machine, in one process.
//!
//! Controller, agent and API over a SQLite file, with gateways in network namespaces.
//! This module only connects the parts; each knows only its interfaces.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use vpn_edge_common::NODE_SLOT;

use super::args::{ApiArgs, DatabaseArgs, EdgeArgs, TunnelArgs};
use super::edge::{Edge, EdgePorts};
use crate::agent::{Local, edge_address};
use crate::args::{RuntimeArgs, variable};
use crate::catalog;
use crate::controller::Controller;
use crate::datapath::LogLevel;
use crate::domain::{Pool, Pools, PortRange};
use crate::local::{LocalSessions, NetnsGateways, SqliteLog, SqliteRegistry, netns};
use crate::{api, app};

#[derive(Debug, clap::Args)]
#[command(mut_args(variable))]
pub struct StandaloneArgs {
    /// Host name in clients' configurations.
    #[arg(long, value_name = "NAME")]
    hostname: String,
    /// UDP ports for tenants, FIRST-LAST.
    #[arg(long, value_name = "RANGE", default_value = "30000-32767")]
    ports: PortRange,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    edge: EdgeArgs,
    /// Address of another edge node (`vpn-edge agent`) that forwards packets to
    /// this one; repeat for several. Each of its hop ports is a source of its own
    /// for handshake rate limits; those of an unknown edge share one.
    #[arg(
        long = "edge-node",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = edge_address,
        help_heading = "Edge"
    )]
    edge_nodes: Vec<IpAddr>,
    #[command(flatten)]
    tunnels: TunnelArgs,
    /// IPv4 addresses for gateways on this machine: a /16 that nothing else uses.
    #[arg(
        long,
        value_name = "NETWORK",
        default_value = "100.64.0.0/16",
        help_heading = GATEWAYS
    )]
    gateway_range: Ipv4Net,
    /// IPv6 addresses for gateways on this machine: a /112 or larger that nothing
    /// else uses. A gateway's address is the network's plus its port.
    #[arg(
        long,
        value_name = "NETWORK",
        default_value = "fd64:7670:6e00::/64",
        help_heading = GATEWAYS
    )]
    gateway_range6: Ipv6Net,
    #[command(flatten, next_help_heading = GATEWAYS)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

const GATEWAYS: &str = "Gateways";

impl StandaloneArgs {
    pub(crate) fn logs_datapath(&self) -> bool {
        self.edge.datapath_log != LogLevel::Off
    }
}

/// Runs until SIGTERM or SIGINT. Gateways and the kernel side stay.
///
/// # Errors
///
/// If the system cannot start, with what to do about it.
pub async fn run(args: StandaloneArgs) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "`vpn-edge standalone` sets up interfaces and eBPF programs: run it as root"
    );
    // The operator has to enable it: firewalls may rely on it being off.
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    ensure!(
        forwarding.trim() == "1",
        "IP forwarding is off, so gateways would reach nothing: \
         run `sysctl -w net.ipv4.ip_forward=1`"
    );
    // Before anything is touched; against the uplinks' MTU once that is known.
    args.tunnels.settings(None)?;
    if args.tunnels.tunnel_ipv6 {
        check_forwarding6()?;
    }
    let pools = Pools::new(vec![Pool::new(&args.hostname, args.ports)?])?;
    let ports = u32::from(args.ports.last() - args.ports.first()) + 1;
    ensure!(
        ports <= u32::from(NODE_SLOT),
        "--ports has {ports} ports, but an edge serves {NODE_SLOT}: use fewer"
    );
    args.edge.check_ports(&[args.ports])?;
    let api = args.api.load()?;
    args.edge.prepare(Some(args.ports), BTreeSet::new()).await?;
    let network = args.edge.network().await?;
    let snapshot = network.snapshot().await?;
    // Packets to gateways must fit into every uplink.
    let uplinks = snapshot.uplinks.iter().map(|uplink| uplink.mtu);
    let mtu = uplinks.min().unwrap_or(1500);
    let tunnels = args.tunnels.settings(Some(mtu))?;
    let database = &args.database;
    let registry = SqliteRegistry::open_with(
        &database.database,
        args.ports,
        &tunnels.cluster_ranges,
        &database.key_source()?,
    )?;
    let registry = Arc::new(registry);
    let audit = SqliteLog::beside(&database.database, registry.clone())?;
    let listener = args.api.listen()?;

    let gateways = NetnsGateways::adopt(netns::Settings {
        runtime: args.runtime.runtime,
        range: args.gateway_range,
        range6: args.gateway_range6,
        mtu,
    })
    .await?;
    let gateways = Arc::new(gateways);
    let ports = EdgePorts {
        // Tenants keep their ports when --ports changes, and this machine's own
        // registry can be trusted.
        active_ports: vec![PortRange::new(1024, u16::MAX)?],
        pool: vec![args.ports],
    };
    let edge = Edge::start(&args.edge, network, ports, Some(api.identity.clone())).await?;

    let active_ports = edge.agent.active_ports();
    let controller = Controller::new(
        tunnels.clone(),
        registry.clone(),
        gateways.clone(),
        active_ports,
    );
    let settings = api::Settings {
        pools,
        allowed_ips: args.tunnels.allowed_ips,
        tunnels,
    };
    let backends = api::Backends {
        registry: registry.clone(),
        identity: api.identity.clone(),
        audit: Arc::new(audit),
        active_ports: edge.agent.active_ports(),
        sessions: Arc::new(LocalSessions::open(&args.edge.maps.bpffs)?),
        databases: Arc::new(catalog::Unknown),
    };
    let router = app::router(backends, settings);
    let addresses: Vec<IpAddr> = snapshot.own.iter().map(|own| own.address).collect();
    tracing::info!(listen = %args.api.listen, health = %args.edge.health, metrics = %args.edge.metrics, uplinks = ?args.edge.uplinks, ?addresses, "ready");
    let mut controller = tokio::spawn(controller.run());
    let server = api.serve(listener, router);
    let work = async { bail!("the controller ended: {:?}", (&mut controller).await) };
    let edges = args.edge_nodes.into_iter().collect();
    let source = Arc::new(Local::new(registry, gateways, edges));
    let outcome = edge.run(source, work, server.finish()).await;
    // Wait until it has ended, before the runtime does.
    controller.abort();
    let _ = controller.await;
    outcome
}

/// Whether the node forwards what comes out of tunnels with IPv6.
fn check_forwarding6() -> Result<()> {
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding")
        .context("this kernel has no IPv6: switch it on, or go without --tunnel-ipv6")?;
    ensure!(
        forwarding.trim() == "1",
        "this node does not forward IPv6, so tunnels would carry it nowhere: \
         run `sysctl -w net.ipv6.conf.all.forwarding=1` (an uplink that takes its \
         address from router advertisements then needs accept_ra=2), \
         or go without --tunnel-ipv6"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::args::testing::without_variables;

    #[test]
    fn other_edge_nodes_are_named_by_their_addresses() {
        let parsed = |more: &[&str]| {
            let command = StandaloneArgs::augment_args(Command::new("standalone"));
            let command = without_variables(command);
            let own = ["standalone", "--hostname", "vpn.example.com"];
            let matches = command.try_get_matches_from(own.iter().chain(more))?;
            StandaloneArgs::from_arg_matches(&matches)
        };
        let named = ["--edge-node", "198.51.100.11,2001:db8::11"];
        let args = parsed(&[&named[..], &["--edge-node", "198.51.100.12"]].concat()).unwrap();
        let expected = ["198.51.100.11", "2001:db8::11", "198.51.100.12"];
        assert_eq!(
            args.edge_nodes,
            expected.map(|one| one.parse::<IpAddr>().unwrap())
        );
        let said = parsed(&["--edge-node", "edge-1"]).unwrap_err().to_string();
        let expected = "`edge-1` is not an IP address of one node, such as 198.51.100.11";
        assert!(said.contains("--edge-node"), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
