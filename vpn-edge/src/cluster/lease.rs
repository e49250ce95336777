//! Which of several controllers acts.
//!
//! All writes are safe with several of them at work: the API server refuses what
//! is out of date. That one leads keeps them from doing everything twice. So one
//! that cannot renew its lease is not made to stop: while the API server is away
//! it can write nothing either, and answers the API from what it knows. Once that
//! answers again, it hears within a moment whether another leads.

use anyhow::{Context, Result, bail};
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Name of the Lease.
pub const LEASE: &str = "vpn-edge-controller";

/// Seconds after which a leader that is not heard of is followed by another,
/// and seconds before that at which it says again that it is there.
const DURATION: u64 = 15;
const GRACE: u64 = 10;

/// A place in the line of those who may lead.
pub struct Candidate {
    leads: watch::Receiver<bool>,
    manager: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Candidate {
    /// Stands for the lead among the controllers of `namespace`, as `identity`,
    /// which is this controller's alone.
    ///
    /// # Errors
    ///
    /// When the API server does not let it.
    pub async fn stand(client: Client, namespace: &str, identity: &str) -> Result<Self> {
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

    /// Whether it leads, as that changes.
    #[must_use]
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Returns once it leads.
    ///
    /// # Errors
    ///
    /// When it can no longer stand.
    pub async fn won(&mut self) -> Result<()> {
        match self.leads.wait_for(|leads| *leads).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("the lease is no longer renewed"),
        }
    }

    /// Returns once it does not lead, with the reason.
    pub async fn lost(&mut self) -> anyhow::Error {
        match self.leads.wait_for(|leads| !*leads).await {
            Ok(_) => anyhow::anyhow!("another controller took the lead"),
            Err(_) => anyhow::anyhow!("the lease is no longer renewed"),
        }
    }

    /// Leaves the lead to another at once.
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
