//! `vpn-edge gateway`: the process inside a tenant's network namespace or pod.
//!
//! A gateway is created once and keeps the fixed part of its tunnel, such as its
//! keys, for life: a change of it means a new gateway. The live part, such as the
//! networks that its tenant may reach, can change. The process sets up WireGuard (the
//! kernel's, or its own userspace implementation) and NAT, serves its status socket,
//! and removes its device when it is asked to terminate.
//!
//! In a pod it runs three times: as init container (`--init`) with all privileges; as
//! the gateway, with `CAP_NET_ADMIN` only and a read-only file system; and as
//! readiness probe (`--probe`).

mod config;
pub mod device;
mod follow;
mod init;
pub mod nat;
mod status;

pub use config::{GatewayConfig, LEAST_IPV6_MTU, OVERHEAD};
pub use status::{Phase, Status, subscribe};

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::{datapath, ethtool};

/// The gateway's end of its link, inside its namespace.
pub const GATEWAY_END: &str = "eth0";

/// How long a gateway may take to report its status.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct GatewayArgs {
    /// The gateway's configuration, as the controller writes it.
    #[arg(long)]
    config: PathBuf,
    /// Generation of the keys that the configuration must have.
    #[arg(long)]
    generation: Option<u64>,
    /// Follow what changes of the configuration without another gateway.
    #[arg(long, conflicts_with_all = ["init", "probe"])]
    follow: bool,
    /// Ready the namespace for a gateway with `CAP_NET_ADMIN` alone, and end.
    #[arg(long, conflicts_with = "probe")]
    init: bool,
    /// Folder to make the node `tun` in, if the kernel has no WireGuard.
    #[arg(long, requires = "init")]
    devices: Option<PathBuf>,
    /// Say whether the gateway with this configuration is ready, and end.
    #[arg(long)]
    probe: bool,
}

/// Runs until SIGTERM or SIGINT, or until the device fails; with `--init` and
/// `--probe`, until that is done.
///
/// # Errors
///
/// If the configuration is unreadable or has other keys, or the device or NAT cannot
/// be set up. The status socket reports the same before the process exits.
pub async fn run(args: GatewayArgs) -> Result<()> {
    let config = GatewayConfig::read(&args.config)?;
    if let Some(generation) = args.generation {
        // A node may mount an outdated version of a Secret.
        let found = config.tunnel.fixed.generation;
        ensure!(
            found == generation,
            "{} has keys of generation {found} instead of {generation}",
            args.config.display()
        );
    }
    if args.init {
        return init::ready(&config, args.devices.as_deref()).await;
    }
    if args.probe {
        return probe(&config).await;
    }
    let reporter = status::Reporter::bind(&config)
        .with_context(|| format!("cannot listen on {}", config.status.display()))?;
    let outcome = serve(&args, &config, &reporter).await;
    if let Err(error) = &outcome {
        tracing::error!("{error:#}");
        reporter.fail(format!("{error:#}"));
        // Watchers must be able to read it before the socket closes.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    outcome
}

async fn serve(
    args: &GatewayArgs,
    config: &GatewayConfig,
    reporter: &status::Reporter,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // Without it the edge falls back to tc for this gateway, so this is not fatal.
    let _ready = match datapath::ready_gateway_end(&config.link) {
        Ok(ready) => Some(ready),
        Err(_) if ethtool::merges(&config.link).unwrap_or(false) => None,
        Err(error) => {
            tracing::warn!(
                "the link cannot receive XDP redirects; the edge uses tc for this gateway: {error}"
            );
            None
        }
    };
    nat::forward(config).context("cannot switch on forwarding")?;
    nat::apply(config).await.context("cannot set up NAT")?;
    let mut device = device::Device::create(config)
        .await
        .with_context(|| format!("cannot set up WireGuard on {}", config.interface))?;
    tracing::info!(
        tenant = %config.tenant,
        port = config.tunnel.fixed.port,
        wireguard = device.kind(),
        "gateway ready"
    );
    reporter.ready(device.kind());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        never = follow(args, config) => match never {},
        () = device.failed() => {
            device.remove(config).await;
            bail!("the userspace WireGuard device on {} failed", config.interface);
        }
    }
    device.remove(config).await;
    Ok(())
}

async fn follow(args: &GatewayArgs, config: &GatewayConfig) -> Infallible {
    if args.follow {
        follow::live(&args.config, config).await
    } else {
        std::future::pending().await
    }
}

/// Whether the gateway reports that its WireGuard answers.
async fn probe(config: &GatewayConfig) -> Result<()> {
    let ask = async {
        let mut subscription = subscribe(&config.status).await?;
        Ok::<_, std::io::Error>(subscription.next().await)
    };
    let told = timeout(PATIENCE, ask)
        .await
        .context("the gateway does not answer")?
        .with_context(|| format!("no gateway listens on {}", config.status.display()))?;
    match told.context("the gateway has just ended")?.phase {
        Phase::Ready { .. } => Ok(()),
        Phase::Starting => bail!("the gateway is starting"),
        Phase::Failed { reason } => bail!(reason),
    }
}
