//! `vpn-edge gateway`: the process inside a tenant's network namespace or pod.
//!
//! A gateway is made once and keeps its keys for life: new keys mean a new
//! gateway. Only what its tenant may reach can change meanwhile. It sets up
//! WireGuard (the kernel's, or else its own userspace implementation) and NAT,
//! answers on its status socket, and takes its device with it when it is told to
//! end.

mod config;
pub mod device;
pub mod nat;
mod status;

pub use config::{GatewayConfig, Peer};
pub use status::{Phase, Status, subscribe};

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::datapath;

#[derive(Debug, clap::Args)]
pub struct GatewayArgs {
    /// The gateway's configuration, as the controller writes it.
    #[arg(long)]
    config: PathBuf,
}

/// Runs until SIGTERM or SIGINT, or until the device fails.
///
/// # Errors
///
/// When the configuration is unreadable, or the device or NAT cannot be set
/// up. The status socket says the same before the process ends.
pub async fn run(args: GatewayArgs) -> Result<()> {
    let config = GatewayConfig::read(&args.config)?;
    let reporter = status::Reporter::bind(&config)
        .with_context(|| format!("cannot listen on {}", config.status.display()))?;
    let outcome = serve(&config, &reporter).await;
    if let Err(error) = &outcome {
        tracing::error!("{error:#}");
        reporter.fail(format!("{error:#}"));
        // Whoever watches has to read it before the socket goes.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    outcome
}

async fn serve(config: &GatewayConfig, reporter: &status::Reporter) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // Without it the edge falls back to tc for this gateway, so it is no
    // reason to refuse service.
    let _ready = datapath::ready_gateway_end(&config.link)
        .inspect_err(|error| tracing::warn!("redirected frames are not taken in: {error}"))
        .ok();
    nat::forward(config).context("cannot switch on forwarding")?;
    nat::apply(config).await.context("cannot set up NAT")?;
    let mut device = device::Device::create(config)
        .await
        .with_context(|| format!("cannot set up WireGuard on {}", config.interface))?;
    tracing::info!(
        tenant = %config.tenant,
        port = config.port,
        wireguard = device.kind(),
        "gateway ready"
    );
    reporter.ready(device.kind());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = device.failed() => {
            device.remove(config).await;
            anyhow::bail!("the userspace WireGuard device on {} failed", config.interface);
        }
    }
    device.remove(config).await;
    Ok(())
}
