//! An edge as `standalone` and `agent` run it: its agent, and what tells of it.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use vpn_edge_common::UPLINKS;

use super::args::EdgeArgs;
use crate::agent::{Agent, Source};
use crate::auth::Identity;
use crate::datapath::{self, Datapath};
use crate::domain::{PlanLimits, PortRange};
use crate::http::{HttpServer, listen};
use crate::metrics;
use crate::network::{self, Network};
use crate::preflight;

impl EdgeArgs {
    /// The settings of the preflight.
    ///
    /// # Errors
    ///
    /// As [`EdgeArgs::hop_range`].
    pub(super) fn preflight(
        &self,
        pool: Option<PortRange>,
        nodes: BTreeSet<IpAddr>,
    ) -> Result<preflight::Settings> {
        Ok(preflight::Settings {
            uplinks: self.uplinks.clone(),
            addresses: self.addresses.clone(),
            hop_ports: self.hop_range()?,
            pool,
            bpffs: self.maps.bpffs.clone(),
            nodes,
        })
    }

    /// Reserves the hop ports, and logs the findings of the preflight.
    ///
    /// # Errors
    ///
    /// As [`EdgeArgs::hop_range`].
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
    pub active_ports: Vec<PortRange>,
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
        let mut datapath = Datapath::open_logging(&args.maps.bpffs, args.datapath_log)?;
        if let Some(records) = datapath.records()? {
            records
                .follow()
                .context("cannot follow the programs' log")?;
        }
        let programs = datapath.programs()?;
        let limits = PlanLimits::new(args.limits.clone());
        let agent = Agent::attach(
            datapath,
            network,
            args.uplinks.clone(),
            args.hop_ports,
            limits,
            ports.active_ports,
        )
        .await?;
        let draining = watch::Sender::new(false);
        let sources = metrics::Sources {
            reader: datapath::Reader::open(&args.maps.bpffs)?,
            programs,
            agent: agent.status(),
            ports: ports.pool,
            uplinks: args.uplinks.clone(),
            bpffs: args.maps.bpffs.clone(),
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
