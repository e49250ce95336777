//! Leader election among controllers.
//!
//! All writes are safe with several controllers: the API server refuses what is out
//! of date. Having a leader only avoids doing everything twice. So a leader that
//! cannot renew its lease is not stopped: while the API server is unreachable it
//! cannot write either, and it answers API requests from its cache. Once the API
//! server answers again, it learns within a moment whether another controller leads.

use anyhow::{Context, Result, bail};
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Name of the Lease.
pub const LEASE: &str = "vpn-edge-controller";

/// Seconds after which the lease of a silent leader expires, and seconds before that
/// at which it is renewed.
const DURATION: u64 = 15;
const GRACE: u64 = 10;

/// A candidate for leadership.
pub struct LeaderElection {
    leads: watch::Receiver<bool>,
    manager: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl LeaderElection {
    /// Joins the election among the controllers of `namespace`, as `identity`, which
    /// must be unique.
    ///
    /// # Errors
    ///
    /// When the API server does not let it.
    pub async fn campaign(client: Client, namespace: &str, identity: &str) -> Result<Self> {
        let manager = LeaseManagerBuilder::new(client, LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_field_manager(identity)
            .with_duration(DURATION)
            .with_grace(GRACE)
            .build()
            .await
            .with_context(|| {
                format!("cannot take part in the leader election by the lease {namespace}/{LEASE}")
            })?;
        let (leads, manager) = manager.watch().await;
        Ok(Self { leads, manager })
    }

    /// Whether it leads, with changes.
    #[must_use]
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Returns once it leads.
    ///
    /// # Errors
    ///
    /// If the election ended.
    pub async fn acquired(&mut self) -> Result<()> {
        match self.leads.wait_for(|leads| *leads).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("the lease is no longer renewed"),
        }
    }

    /// Returns once it does not lead any more, with the reason.
    pub async fn lost(&mut self) -> anyhow::Error {
        match self.leads.wait_for(|leads| !*leads).await {
            Ok(_) => anyhow::anyhow!("another controller took the lead"),
            Err(_) => anyhow::anyhow!("the lease is no longer renewed"),
        }
    }

    /// Releases the lease.
    pub async fn step_down(self) {
        let Self { leads, manager } = self;
        drop(leads);
        match manager.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!("cannot release the lease: {error}"),
            Err(panic) => tracing::warn!("cannot release the lease: {panic}"),
        }
    }
}
