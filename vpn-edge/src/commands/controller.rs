//! `vpn-edge controller`: lifecycle and API in a cluster.

mod health;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use vpn_edge_common::NODE_SLOT;

use super::args::{ApiArgs, OBSERVERS, TunnelArgs};
use crate::args::variable;
use crate::cluster::audit::KubeLog;
use crate::cluster::gateways::{self, KubeGateways};
use crate::cluster::lease::LeaderElection;
use crate::cluster::sessions::ClusterSessions;
use crate::cluster::tenants::{self, KubeRegistry};
use crate::cluster::{self, catalog};
use crate::controller::{Controller, active_ports};
use crate::domain::{ActivePorts, Pool, Pools, TunnelSettings};
use crate::http::{HttpServer, listen};
use crate::{api, app};

/// Timeout for releasing the lease at the end.
const STEP_DOWN: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
#[command(mut_args(variable))]
pub struct ControllerArgs {
    /// Host name of a load balancer and the UDP ports that it forwards to the
    /// edges, HOSTNAME=FIRST-LAST, within the API server's
    /// --service-node-port-range; repeat for several load balancers.
    #[arg(
        long = "pool",
        value_name = "POOL",
        value_delimiter = ',',
        required = true
    )]
    pools: Vec<Pool>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    tunnels: TunnelArgs,
    /// Image of the gateways' pods [default: the image of this controller].
    #[arg(long, help_heading = "Gateways")]
    image: Option<String>,
    /// Name of a Secret in the tenants' namespaces to pull the image with; repeat
    /// for several.
    #[arg(
        long = "image-pull-secret",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Gateways"
    )]
    image_pull_secrets: Vec<String>,
    /// Namespace of the Lease for leader election and of the audit log.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "vpn-edge-system",
        help_heading = "Cluster"
    )]
    namespace: String,
    /// Unique name of this controller in the Lease [default: the host's].
    #[arg(long, value_name = "NAME", env = "POD_NAME", help_heading = "Cluster")]
    identity: Option<String>,
    /// Address and port of /healthz, /readyz and /metrics.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9096",
        help_heading = OBSERVERS
    )]
    metrics: SocketAddr,
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
    active_ports: watch::Receiver<ActivePorts>,
    election: LeaderElection,
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
            active_ports,
            mut election,
            api,
            health: _health,
        } = self;
        let lead = async {
            election.acquired().await?;
            tracing::info!("leading");
            let controller =
                Controller::new(settings, registry.clone(), gateways.clone(), active_ports);
            tokio::select! {
                () = controller.run() => bail!("the controller ended"),
                () = registry.run_reconciler() => bail!("the VpnTenants are no longer reconciled"),
                () = gateways.keep_up() => bail!("the gateways are no longer synced"),
                // The next leader redoes interrupted work.
                reason = election.lost() => Err(reason),
            }
        };
        let outcome = tokio::select! {
            ended = lead => ended,
            () = asked_to_end => Ok(()),
        };
        let (stepped_down, ()) =
            tokio::join!(timeout(STEP_DOWN, election.step_down()), api.finish());
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
    let tunnels = args.tunnels.settings(None)?;
    let api = args.api.load()?;
    let listener = args.api.listen()?;
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
    let active_ports = active_ports::follow(registry.clone(), gateways.clone());
    let backends = api::Backends {
        registry: registry.clone(),
        identity: api.identity.clone(),
        audit: Arc::new(KubeLog::new(
            client.clone(),
            &args.namespace,
            registry.clone(),
        )),
        active_ports: active_ports.clone(),
        sessions: Arc::new(ClusterSessions::start(client.clone(), &args.namespace)?),
        databases: Arc::new(catalog::Services::new(client.clone())),
    };
    let router = app::router(
        backends,
        api::Settings {
            pools,
            allowed_ips: args.tunnels.allowed_ips.clone(),
            tunnels: tunnels.clone(),
        },
    );
    let election = LeaderElection::campaign(client, &args.namespace, &identity).await?;
    let health = health::router(election.leads(), registry.clone(), api.identity.clone());
    tracing::info!(listen = %args.api.listen, metrics = %args.metrics, identity, "ready");
    Ok(Running {
        settings: tunnels,
        registry,
        gateways,
        active_ports,
        election,
        api: api.serve(listener, router),
        health: HttpServer::observed(observers, health),
    })
}
