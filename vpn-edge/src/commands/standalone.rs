//! `vpn-edge standalone`: the whole system on one machine, in one process.
//!
//! Controller, agent and API over a SQLite file, with gateways in network namespaces.
//! This module only connects the parts; each knows only its interfaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use vpn_edge_common::NODE_SLOT;

use super::agent::{Edge, EdgeArgs, EdgePorts};
use super::key::DatabaseArgs;
use crate::agent::{Local, edge_address};
use crate::auth::IdentityArgs;
use crate::catalog;
use crate::controller::Controller;
use crate::domain::{Pool, Pools, PortRange, TunnelSettings};
use crate::gateway::{LEAST_IPV6_MTU, OVERHEAD};
use crate::http::{HttpServer, TlsArgs, listen};
use crate::local::{LocalSessions, NetnsGateways, SqliteLog, SqliteRegistry, netns};
use crate::{api, app};

#[derive(Debug, clap::Args)]
pub struct StandaloneArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Address and port of the HTTP API.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    edge: EdgeArgs,
    /// Address that another edge node (`vpn-edge agent`) sends packets on from;
    /// may be given several times. Each of its clients has a handshake rate of
    /// its own; those of an edge that is not named share one.
    #[arg(long = "edge-node", value_name = "ADDRESS", value_delimiter = ',', value_parser = edge_address)]
    edge_nodes: Vec<IpAddr>,
    /// Host name in clients' configurations.
    #[arg(long)]
    hostname: String,
    /// UDP ports for tenants, first and last.
    #[arg(long, default_value = "30000-32767")]
    ports: PortRange,
    /// DNS server in clients' configurations.
    #[arg(long, default_value = "10.96.0.10")]
    dns: IpAddr,
    /// Networks that clients route into the tunnel.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12,10.0.0.0/8")]
    allowed_ips: Vec<IpNet>,
    /// Networks that no tunnel may overlap.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.96.0.0/12,10.244.0.0/16"
    )]
    cluster_ranges: Vec<IpNet>,
    /// Addresses for gateways on this machine: a /16 that nothing else uses.
    #[arg(long, default_value = "100.64.0.0/16")]
    gateway_range: Ipv4Net,
    /// IPv6 addresses for the same: a /112 or larger that nothing else uses. A
    /// gateway's is the network's plus its port.
    #[arg(long, default_value = "fd64:7670:6e00::/64")]
    gateway_range6: Ipv6Net,
    /// Let tunnels carry IPv6 too: tenants' networks, --allowed-ips and --dns
    /// may then be IPv6. The node must forward it.
    #[arg(long)]
    tunnel_ipv6: bool,
    /// Folder for what belongs to running gateways.
    #[arg(long, default_value = "/run/vpn-edge")]
    runtime: PathBuf,
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
    args.check_ipv6()?;
    let pools = Pools::new(vec![Pool::new(&args.hostname, args.ports)?])?;
    let ports = u32::from(args.ports.last() - args.ports.first()) + 1;
    ensure!(
        ports <= u32::from(NODE_SLOT),
        "--ports has {ports} ports, but an edge serves {NODE_SLOT}: use fewer"
    );
    args.edge.check_ports(&[args.ports])?;
    let tls = args.tls.load()?;
    let identity = args.identity.load(tls.is_some())?;
    args.edge.prepare(Some(args.ports), BTreeSet::new()).await?;
    let network = args.edge.network().await?;
    let snapshot = network.snapshot().await?;
    // Packets to gateways must fit into every uplink.
    let uplinks = snapshot.uplinks.iter().map(|uplink| uplink.mtu);
    let mtu = uplinks.min().unwrap_or(1500);
    ensure!(
        !args.tunnel_ipv6 || mtu >= OVERHEAD + LEAST_IPV6_MTU,
        "IPv6 in the tunnels needs an uplink MTU of {} or more, but it is {mtu}: \
         raise it, or omit --tunnel-ipv6",
        OVERHEAD + LEAST_IPV6_MTU
    );
    let tunnels = TunnelSettings {
        cluster_ranges: args.cluster_ranges,
        dns: args.dns,
        ipv6: args.tunnel_ipv6,
        mtu: Some(mtu.saturating_sub(OVERHEAD)),
    };
    let database = &args.database;
    let registry = SqliteRegistry::open_with(
        &database.database,
        args.ports,
        &tunnels.cluster_ranges,
        &database.key_source()?,
    )?;
    let registry = Arc::new(registry);
    let audit = SqliteLog::beside(&database.database, registry.clone())?;
    let listener =
        listen(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;

    let gateways = NetnsGateways::adopt(netns::Settings {
        runtime: args.runtime,
        range: args.gateway_range,
        range6: args.gateway_range6,
        mtu,
    })
    .await?;
    let gateways = Arc::new(gateways);
    let ports = EdgePorts {
        // Tenants keep their ports when --ports changes, and this machine's own
        // registry can be trusted.
        steered: vec![PortRange::new(1024, u16::MAX)?],
        pool: vec![args.ports],
    };
    let edge = Edge::start(&args.edge, network, ports, Some(identity.clone())).await?;

    let steered = edge.agent.steered();
    let controller = Controller::new(tunnels.clone(), registry.clone(), gateways.clone(), steered);
    let settings = api::Settings {
        pools,
        allowed_ips: args.allowed_ips,
        tunnels,
    };
    let backends = api::Backends {
        registry: registry.clone(),
        identity,
        audit: Arc::new(audit),
        steered: edge.agent.steered(),
        sessions: Arc::new(LocalSessions::open(&args.edge.bpffs)?),
        databases: Arc::new(catalog::Unknown),
    };
    let router = app::router(backends, settings);
    let addresses: Vec<IpAddr> = snapshot.own.iter().map(|own| own.address).collect();
    tracing::info!(listen = %args.listen, health = %args.edge.health, metrics = %args.edge.metrics, uplinks = ?args.edge.uplinks, ?addresses, "ready");
    let mut controller = tokio::spawn(controller.run());
    let serve = match args.identity.has_proxies() {
        true => HttpServer::behind_proxies,
        false => HttpServer::start,
    };
    let server = serve(listener, tls, router);
    let work = async { bail!("the controller ended: {:?}", (&mut controller).await) };
    let edges = args.edge_nodes.into_iter().collect();
    let source = Arc::new(Local::new(registry, gateways, edges));
    let outcome = edge.run(source, work, server.finish()).await;
    // Wait until it has ended, before the runtime does.
    controller.abort();
    let _ = controller.await;
    outcome
}

impl StandaloneArgs {
    /// Checks the IPv6 options against the node.
    fn check_ipv6(&self) -> Result<()> {
        if self.tunnel_ipv6 {
            let forwarding = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding");
            let forwarding = forwarding
                .context("this kernel has no IPv6: switch it on, or omit --tunnel-ipv6")?;
            ensure!(
                forwarding.trim() == "1",
                "IPv6 forwarding is off, so tunnels could not carry IPv6: \
                 run `sysctl -w net.ipv6.conf.all.forwarding=1` (an uplink that takes its \
                 address from router advertisements then needs accept_ra=2), \
                 or omit --tunnel-ipv6"
            );
            return Ok(());
        }
        let network = self.allowed_ips.iter().find(|net| net.addr().is_ipv6());
        if let Some(network) = network {
            bail!("--allowed-ips has {network}, but tunnels are IPv4 only: add --tunnel-ipv6");
        }
        ensure!(
            self.dns.is_ipv4(),
            "--dns is {}, but tunnels are IPv4 only: add --tunnel-ipv6",
            self.dns
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    #[test]
    fn other_edge_nodes_are_named_by_their_addresses() {
        let parsed = |more: &[&str]| {
            let command = StandaloneArgs::augment_args(Command::new("standalone"));
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
