//! `vpn-edge gateway`: the process inside a tenant's network namespace or pod.
//!
//! A gateway is created once and keeps the fixed part of its tunnel, such as its
//! keys, for life: a change of it means a new gateway. The live part, such as the
//! networks that its tenant may reach, can change. The process sets up WireGuard (the
//! kernel's, or its own userspace implementation) and NAT, serves its status socket,
//! and removes its device when it is asked to terminate.
//!
//! In a pod it runs three times: as `init`, which may do all; as itself, with
//! `CAP_NET_ADMIN` alone and nothing to write to; and as `probe`, which asks it
//! whether it is ready.

mod config;
pub mod device;
mod follow;
mod init;
pub mod nat;
mod status;

pub use config::{GatewayConfig, LEAST_IPV6_MTU, OVERHEAD};
pub use status::{Phase, Status, subscribe};

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::{datapath, ethtool};

/// The gateway's end of its link, inside its namespace.
pub const GATEWAY_END: &str = "eth0";

/// How long a gateway may take to report its status.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct GatewayArgs {
    #[command(subcommand)]
    command: Option<GatewayCommand>,
    // Not to be had without it or a subcommand.
    /// Configuration file of the gateway.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Generation of the keys that the configuration must have.
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
    /// Apply changes of the configuration file that need no new gateway.
    #[arg(long, conflicts_with_all = ["init", "probe"])]
    follow: bool,
    // What `init` and `probe` were in version 0.0.1, and are in gateways' pods.
    #[arg(long, hide = true, conflicts_with = "probe")]
    init: bool,
    #[arg(long, hide = true, requires = "init")]
    devices: Option<PathBuf>,
    #[arg(long, hide = true)]
    probe: bool,
}

#[derive(Debug, Subcommand)]
enum GatewayCommand {
    /// Prepare the network namespace for a gateway that has CAP_NET_ADMIN only.
    Init {
        #[command(flatten)]
        config: ConfigArgs,
        /// Directory to create the device node `tun` in, if the kernel has no
        /// WireGuard.
        #[arg(long, value_name = "DIR")]
        devices: Option<PathBuf>,
    },
    /// Check that the gateway with this configuration is ready. The exit status is
    /// 1 if it is not.
    Probe {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// Configuration file of the gateway.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Generation of the keys that the configuration must have.
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
}

/// What a gateway's process is to do.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Init { devices: Option<PathBuf> },
    Probe,
    Serve { follow: bool },
}

impl GatewayArgs {
    fn task(self) -> (ConfigArgs, Task) {
        let Self {
            command,
            config,
            generation,
            follow,
            init,
            devices,
            probe,
        } = self;
        let task = match command {
            Some(GatewayCommand::Init { config, devices }) => {
                return (config, Task::Init { devices });
            }
            Some(GatewayCommand::Probe { config }) => return (config, Task::Probe),
            None if init => Task::Init { devices },
            None if probe => Task::Probe,
            None => Task::Serve { follow },
        };
        let config = config.unwrap_or_default();
        (ConfigArgs { config, generation }, task)
    }
}

/// Runs until SIGTERM or SIGINT, or until the device fails; `init` and `probe`,
/// until that is done.
///
/// # Errors
///
/// If the configuration is unreadable or has other keys, or the device or NAT cannot
/// be set up. The status socket reports the same before the process exits.
pub async fn run(args: GatewayArgs) -> Result<()> {
    let (args, task) = args.task();
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
    let follow = match task {
        Task::Init { devices } => return init::ready(&config, devices.as_deref()).await,
        Task::Probe => return probe(&config).await,
        Task::Serve { follow } => follow.then_some(args.config.as_path()),
    };
    let reporter = status::Reporter::bind(&config)
        .with_context(|| format!("cannot listen on {}", config.status.display()))?;
    let outcome = serve(follow, &config, &reporter).await;
    if let Err(error) = &outcome {
        tracing::error!("{error:#}");
        reporter.fail(format!("{error:#}"));
        // Watchers must be able to read it before the socket closes.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    outcome
}

/// `follow` is the file whose changes to apply.
async fn serve(
    follow: Option<&Path>,
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
        never = follow_changes(follow, config) => match never {},
        () = device.failed() => {
            device.remove(config).await;
            bail!("the userspace WireGuard device on {} failed", config.interface);
        }
    }
    device.remove(config).await;
    Ok(())
}

async fn follow_changes(file: Option<&Path>, config: &GatewayConfig) -> Infallible {
    match file {
        Some(file) => follow::live(file, config).await,
        None => std::future::pending().await,
    }
}

/// Whether the gateway reports that its WireGuard answers.
async fn probe(config: &GatewayConfig) -> Result<()> {
    let ask = async {
        let mut subscription = subscribe(&config.status).await?;
        Ok::<_, std::io::Error>(subscription.next().await)
    };
    let told = timeout(TIMEOUT, ask)
        .await
        .context("the gateway does not answer")?
        .with_context(|| format!("no gateway listens on {}", config.status.display()))?;
    match told.context("the gateway has just ended")?.phase {
        Phase::Ready { .. } => Ok(()),
        Phase::Starting => bail!("the gateway is starting"),
        Phase::Failed { reason } => bail!(reason),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Gateway {
        #[command(flatten)]
        args: GatewayArgs,
    }

    fn task(line: &str) -> Result<Task, String> {
        let words = std::iter::once("gateway").chain(line.split_ascii_whitespace());
        let gateway = Gateway::try_parse_from(words).map_err(|error| error.to_string())?;
        let (config, task) = gateway.args.task();
        assert_eq!(config.config, Path::new("file"), "{line}");
        assert_eq!(config.generation, Some(3), "{line}");
        Ok(task)
    }

    #[test]
    fn arguments_of_the_first_versions_pods_do_the_same_as_subcommands() {
        let init = || Task::Init {
            devices: Some("/dev/net".into()),
        };
        for (line, expected) in [
            (
                "--config file --generation 3",
                Task::Serve { follow: false },
            ),
            (
                "--config file --generation 3 --follow",
                Task::Serve { follow: true },
            ),
            (
                "--config file --generation 3 --init --devices /dev/net",
                init(),
            ),
            (
                "init --config file --generation 3 --devices /dev/net",
                init(),
            ),
            ("--config file --generation 3 --probe", Task::Probe),
            ("probe --config file --generation 3", Task::Probe),
        ] {
            assert_eq!(task(line).as_ref(), Ok(&expected), "{line}");
        }
    }

    #[test]
    fn a_gateway_does_one_thing_at_a_time() {
        for (line, expected) in [
            ("", "--config <FILE>"),
            ("init", "--config <FILE>"),
            (
                "probe --config file --follow",
                "unexpected argument '--follow'",
            ),
            ("--config file --init --probe", "cannot be used with"),
            ("--config file --follow --init", "cannot be used with"),
            ("--config file probe", "cannot be used with"),
        ] {
            let said = task(line).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
    }
}
