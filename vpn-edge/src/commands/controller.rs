//! `vpn-edge controller`: lifecycle and API in a cluster.

mod health;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use vpn_edge_common::NODE_SLOT;

use crate::auth::IdentityArgs;
use crate::cluster::audit::KubeLog;
use crate::cluster::gateways::{self, KubeGateways};
use crate::cluster::lease::Candidate;
use crate::cluster::sessions::ClusterSessions;
use crate::cluster::tenants::{self, KubeRegistry};
use crate::cluster::{self, catalog};
use crate::controller::{Controller, steered};
use crate::domain::{Pool, Pools, Steered, TunnelSettings};
use crate::http::{HttpServer, TlsArgs, listen};
use crate::{api, app};

/// Timeout for releasing the lease at the end.
const STEP_DOWN: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub struct ControllerArgs {
    /// A load balancer's host name and the UDP ports that it leads to the edges,
    /// as HOSTNAME=FIRST-LAST; several where one load balancer has not enough
    /// ports. Within the API server's --service-node-port-range.
    #[arg(
        long = "pool",
        env = "VPN_EDGE_POOLS",
        value_name = "POOL",
        value_delimiter = ',',
        required = true
    )]
    pools: Vec<Pool>,
    /// Image of the gateways' pods [default: the one that this runs from].
    #[arg(long, env = "VPN_EDGE_IMAGE")]
    image: Option<String>,
    /// Name of a Secret in the tenants' namespaces that this image is pulled
    /// with; may be given several times.
    #[arg(
        long = "image-pull-secret",
        env = "VPN_EDGE_IMAGE_PULL_SECRETS",
        value_delimiter = ','
    )]
    image_pull_secrets: Vec<String>,
    /// Bytes that a packet in a tunnel may have [default: what the pods' network
    /// leaves].
    #[arg(long, env = "VPN_EDGE_MTU", value_parser = clap::value_parser!(u32).range(1280..=8920))]
    mtu: Option<u32>,
    #[command(flatten)]
    callers: IdentityArgs,
    /// Address and port of the HTTP API.
    #[arg(long, env = "VPN_EDGE_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    tls: TlsArgs,
    /// Address and port of /healthz, /readyz and /metrics.
    #[arg(long, env = "VPN_EDGE_METRICS", default_value = "127.0.0.1:9096")]
    metrics: SocketAddr,
    /// DNS server in clients' configurations.
    #[arg(long, env = "VPN_EDGE_DNS", default_value = "10.96.0.10")]
    dns: IpAddr,
    /// Networks that clients route into the tunnel.
    #[arg(
        long,
        env = "VPN_EDGE_ALLOWED_IPS",
        value_delimiter = ',',
        default_value = "10.96.0.0/12,10.0.0.0/8"
    )]
    allowed_ips: Vec<IpNet>,
    /// Networks of the cluster's services, pods and nodes, that no tunnel may
    /// overlap.
    #[arg(
        long,
        env = "VPN_EDGE_CLUSTER_RANGES",
        value_delimiter = ',',
        default_value = "10.96.0.0/12,10.244.0.0/16"
    )]
    cluster_ranges: Vec<IpNet>,
    /// Let tunnels carry IPv6 too.
    #[arg(long, env = "VPN_EDGE_TUNNEL_IPV6")]
    tunnel_ipv6: bool,
    /// Namespace of the Lease by which one of several controllers leads, and of
    /// the audit log.
    #[arg(long, env = "POD_NAMESPACE", default_value = "vpn-edge-system")]
    namespace: String,
    /// This controller's name in the Lease, its alone [default: the host's].
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
}

/// Runs until SIGTERM or SIGINT, or until another controller leads. Gateways and
/// edges keep working.
///
/// # Errors
///
/// If it cannot run, with what to do about it.
pub async fn run(args: ControllerArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked_to_end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(asked_to_end);
    let running = tokio::select! {
        ready = prepare(args) => ready?,
        () = &mut asked_to_end => return Ok(()),
    };
    running.run(asked_to_end).await
}

/// A controller that is about to run.
struct Running {
    settings: TunnelSettings,
    registry: Arc<KubeRegistry>,
    gateways: Arc<KubeGateways>,
    steered: watch::Receiver<Steered>,
    candidate: Candidate,
    api: HttpServer,
    /// Serves as long as this value lives.
    health: HttpServer,
}

impl Running {
    /// Runs until `asked_to_end`, or until something ends that should not.
    async fn run(self, asked_to_end: impl Future<Output = ()>) -> Result<()> {
        let Self {
            settings,
            registry,
            gateways,
            steered,
            mut candidate,
            api,
            health: _health,
        } = self;
        let lead = async {
            candidate.won().await?;
            tracing::info!("leading");
            let controller = Controller::new(settings, registry.clone(), gateways.clone(), steered);
            tokio::select! {
                () = controller.run() => bail!("the controller ended"),
                () = registry.follow_wishes() => bail!("the VpnTenants are no longer reconciled"),
                () = gateways.keep_up() => bail!("the gateways are no longer synced"),
                // The next leader redoes interrupted work.
                reason = candidate.lost() => Err(reason),
            }
        };
        let outcome = tokio::select! {
            ended = lead => ended,
            () = asked_to_end => Ok(()),
        };
        let (stepped_down, ()) =
            tokio::join!(timeout(STEP_DOWN, candidate.step_down()), api.finish());
        if stepped_down.is_err() {
            tracing::warn!("lease not released in time; another controller leads once it expires");
        }
        outcome
    }
}

async fn prepare(args: ControllerArgs) -> Result<Running> {
    let pools = Pools::new(args.pools.clone())?;
    let ports = pools.ports().count();
    ensure!(
        ports <= usize::from(NODE_SLOT),
        "--pool has {ports} ports, but an edge serves {NODE_SLOT}: use fewer"
    );
    if let Some(network) = args.ipv6_in_vain() {
        bail!("{network} is IPv6, but tunnels are IPv4 only: add --tunnel-ipv6");
    }
    let tls = args.tls.load()?;
    let callers = args.callers.load(tls.is_some())?;
    let listener =
        listen(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let observers = listen(args.metrics)
        .with_context(|| format!("cannot serve metrics on {}", args.metrics))?;
    let client = cluster::client().await?;

    let identity = match &args.identity {
        Some(identity) => identity.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
    };
    let image = match &args.image {
        Some(image) => image.clone(),
        None => cluster::own_image(client.clone(), &args.namespace, &identity).await?,
    };

    let tunnels = TunnelSettings {
        cluster_ranges: args.cluster_ranges.clone(),
        dns: args.dns,
        ipv6: args.tunnel_ipv6,
        mtu: args.mtu,
    };
    let tenants = tenants::Settings {
        pools: pools.clone(),
        tunnels: tunnels.clone(),
    };
    let gateways = gateways::Settings {
        image_pull_secrets: args.image_pull_secrets.clone(),
        ..gateways::Settings::new(image)
    };
    let (registry, gateways) = cluster::start(client.clone(), tenants, gateways).await?;
    let (registry, gateways) = (Arc::new(registry), Arc::new(gateways));
    let steered = steered::follow(registry.clone(), gateways.clone());
    let backends = api::Backends {
        registry: registry.clone(),
        identity: callers.clone(),
        audit: Arc::new(KubeLog::new(
            client.clone(),
            &args.namespace,
            registry.clone(),
        )),
        steered: steered.clone(),
        sessions: Arc::new(ClusterSessions::start(client.clone(), &args.namespace)?),
        databases: Arc::new(catalog::Services::new(client.clone())),
    };
    let router = app::router(
        backends,
        api::Settings {
            pools,
            allowed_ips: args.allowed_ips.clone(),
            tunnels: tunnels.clone(),
        },
    );
    let candidate = Candidate::stand(client, &args.namespace, &identity).await?;
    let health = health::router(candidate.leads(), registry.clone(), callers);
    let serve = match args.callers.has_proxies() {
        true => HttpServer::behind_proxies,
        false => HttpServer::start,
    };
    tracing::info!(listen = %args.listen, metrics = %args.metrics, identity, "ready");
    Ok(Running {
        settings: tunnels,
        registry,
        gateways,
        steered,
        candidate,
        api: serve(listener, tls, router),
        health: HttpServer::observed(observers, health),
    })
}

impl ControllerArgs {
    /// An IPv6 address or network in the options although tunnels are IPv4 only.
    fn ipv6_in_vain(&self) -> Option<String> {
        if self.tunnel_ipv6 {
            return None;
        }
        if self.dns.is_ipv6() {
            return Some(format!("--dns {}", self.dns));
        }
        let mut networks = self.allowed_ips.iter();
        let network = networks.find(|network| network.addr().is_ipv6())?;
        Some(format!("--allowed-ips {network}"))
    }
}
