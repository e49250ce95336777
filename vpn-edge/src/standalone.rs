//! `vpn-edge standalone`: the whole system on one machine, in one process.
//!
//! Controller, agent and API over a SQLite file, with gateways in network
//! namespaces. It only puts parts together; each knows no more than its seam.

use std::future::IntoFuture;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use vpn_edge_common::{SLOTS, mapped};

use crate::agent::Agent;
use crate::api::{self, Tokens};
use crate::controller::{self, Controller};
use crate::datapath::{self, Datapath};
use crate::domain::{PlanLimit, PlanLimits, PortRange};
use crate::gateways::netns::{self, NetnsGateways};
use crate::metrics;
use crate::netlink;
use crate::registry::SqliteRegistry;

#[derive(Debug, clap::Args)]
pub struct StandaloneArgs {
    /// SQLite file that holds tenants and keys; made if missing.
    #[arg(long, default_value = "/var/lib/vpn-edge/vpn-edge.db")]
    database: PathBuf,
    /// Who may call the API (`vpn-edge token add` writes it).
    #[arg(long, default_value = "/etc/vpn-edge/tokens")]
    tokens: PathBuf,
    /// Address and port of the HTTP API.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Address and port of /metrics, for Prometheus, and /healthz, for a load
    /// balancer; open to whoever reaches them.
    #[arg(long, default_value = "127.0.0.1:9095")]
    metrics: SocketAddr,
    /// Interface that clients' packets come in by.
    #[arg(long)]
    uplink: String,
    /// IPv4 address that clients send to [default: the uplink's first].
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Host name in clients' configurations.
    #[arg(long)]
    hostname: String,
    /// UDP ports for tenants, first and last.
    #[arg(long, default_value = "30000-32767")]
    ports: PortRange,
    /// DNS server in clients' configurations.
    #[arg(long, default_value = "10.96.0.10")]
    dns: Ipv4Addr,
    /// Networks that clients route into the tunnel.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12,10.0.0.0/8")]
    allowed_ips: Vec<Ipv4Net>,
    /// Networks that no tunnel may overlap.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.96.0.0/12,10.244.0.0/16"
    )]
    cluster_ranges: Vec<Ipv4Net>,
    /// Addresses for gateways on this machine: a /16 that nothing else uses.
    #[arg(long, default_value = "100.64.0.0/16")]
    gateway_range: Ipv4Net,
    /// What tenants of a plan may send and receive a second, each way, as
    /// PLAN=packets:N,bytes:N; once a plan [default: no limits].
    #[arg(long = "limit", value_name = "LIMIT")]
    limits: Vec<PlanLimit>,
    /// Folder for what belongs to running gateways.
    #[arg(long, default_value = "/run/vpn-edge")]
    runtime: PathBuf,
    /// Folder on bpffs for programs and maps.
    #[arg(long, default_value = datapath::DEFAULT_ROOT)]
    bpffs: PathBuf,
}

/// Runs until SIGTERM or SIGINT. Gateways and the kernel side stay.
///
/// # Errors
///
/// Whatever keeps the system from starting, with what to do about it.
pub async fn run(args: StandaloneArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "`vpn-edge standalone` sets up interfaces and eBPF programs: run it as root"
    );
    // Switching it on is the node's business: firewalls may count on it.
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    ensure!(
        forwarding.trim() == "1",
        "this node does not forward, so gateways would reach nothing: \
         run `sysctl -w net.ipv4.ip_forward=1`"
    );
    let ports = u32::from(args.ports.last() - args.ports.first()) + 1;
    ensure!(
        ports <= SLOTS,
        "--ports names {ports} ports, but an edge serves {SLOTS}: name fewer"
    );
    let tokens = Tokens::load(&args.tokens)?;
    let uplink = Uplink::find(&args.uplink, args.address).await?;
    let registry = Arc::new(SqliteRegistry::open(&args.database, args.ports)?);
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;

    let gateways = NetnsGateways::adopt(netns::Settings {
        runtime: args.runtime,
        range: args.gateway_range,
        mtu: uplink.mtu,
    })
    .await?;
    let observers = TcpListener::bind(args.metrics).await.with_context(|| {
        let metrics = args.metrics;
        format!("cannot serve metrics on {metrics}: name another address with --metrics")
    })?;
    let mut datapath = Datapath::open(&args.bpffs)?;
    datapath.set_edge(mapped(uplink.address.octets()), uplink.index)?;
    let programs = datapath.programs()?;
    let agent = Agent::attach(datapath, &args.uplink, PlanLimits::new(args.limits))?;
    let gateways = Arc::new(gateways);

    let settings = controller::Settings {
        dns: args.dns,
        cluster_ranges: args.cluster_ranges.clone(),
    };
    let steered = agent.steered();
    let controller = Controller::new(settings, registry.clone(), gateways.clone(), steered);
    let settings = api::Settings {
        hostname: args.hostname,
        dns: args.dns,
        allowed_ips: args.allowed_ips,
        cluster_ranges: args.cluster_ranges,
    };
    let router = api::router(registry.clone(), settings, tokens, agent.steered());
    let metrics = metrics::router(metrics::Sources {
        reader: datapath::Reader::open(&args.bpffs)?,
        programs,
        agent: agent.status(),
        ports: args.ports,
        uplink: args.uplink.clone(),
        bpffs: args.bpffs,
    });
    tracing::info!(listen = %args.listen, metrics = %args.metrics, uplink = %args.uplink, address = %uplink.address, "ready");
    let mut agent = tokio::spawn(agent.run(registry, gateways));
    let mut controller = tokio::spawn(controller.run());
    tokio::select! {
        ended = &mut agent => bail!("the agent ended: {ended:?}"),
        ended = &mut controller => bail!("the controller ended: {ended:?}"),
        ended = axum::serve(listener, router).into_future() => ended.context("the API ended")?,
        ended = axum::serve(observers, metrics).into_future() => ended.context("the metrics ended")?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; gateways and traffic go on");
    // What they are in the middle of ends before the runtime does.
    agent.abort();
    controller.abort();
    let _ = tokio::join!(agent, controller);
    Ok(())
}

/// The interface that clients' packets come in by, and the one with the
/// address they are sent to; with VLANs these are two.
struct Uplink {
    address: Ipv4Addr,
    index: u32,
    mtu: u32,
}

impl Uplink {
    async fn find(name: &str, address: Option<Ipv4Addr>) -> Result<Self> {
        let handle = netlink::connect()?;
        let link = netlink::find(&handle, name).await?.with_context(|| {
            format!("no interface `{name}`: name one of `ip link` with --uplink")
        })?;
        let mut own = Vec::new();
        let mut addresses = handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            for attribute in &message.attributes {
                if let AddressAttribute::Local(std::net::IpAddr::V4(address)) = attribute {
                    own.push((message.header.index, *address));
                }
            }
        }
        let uplink = link.header.index;
        let found = match address {
            Some(wanted) => own.iter().find(|(_, address)| *address == wanted),
            None => own.iter().find(|(index, _)| *index == uplink),
        };
        let Some(&(index, address)) = found else {
            match address {
                Some(address) => bail!("{address} is on no interface: name one of `ip address`"),
                None => {
                    bail!("`{name}` has no IPv4 address: give it one, or name it with --address")
                }
            }
        };
        let mtu = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
        Ok(Self {
            address,
            index,
            mtu: mtu.unwrap_or(1500),
        })
    }
}
