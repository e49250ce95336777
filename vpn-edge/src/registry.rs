//! Where tenants are kept: the seam between one machine's SQLite database and
//! a cluster's resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::{Ports, Tenant, VpnError};

/// A change to a stored tenant. It may run more than once, each time on the
/// tenant and the ports as they then are, and only the last run counts.
pub type Change = Box<dyn FnMut(&mut Tenant, &mut dyn Ports) -> Result<(), VpnError> + Send>;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// With what is taken: an id or a namespace.
    #[error("{0} is already used by another tenant")]
    AlreadyExists(String),
    #[error("there is no namespace {0}: create it first")]
    NoNamespace(String),
    #[error("cannot open the registry: {0}")]
    Open(String),
    /// With the words of the cluster's API server.
    #[error("the cluster refuses it: {0}")]
    Refused(String),
    #[error("the registry failed: {0}")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("tenant not found")]
    NotFound,
    #[error(transparent)]
    Refused(#[from] VpnError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// All tenants, by id.
    async fn list(&self) -> Result<Vec<Arc<Tenant>>, RegistryError>;

    async fn get(&self, id: Uuid) -> Result<Option<Tenant>, RegistryError>;

    /// Stores a new tenant without VPN. A tenant of an id that was deleted goes
    /// on with the deleted one's generation.
    async fn create(&self, tenant: Tenant) -> Result<Tenant, RegistryError>;

    /// Runs `change` on the stored tenant and stores the outcome, atomically.
    /// Nothing is written or noticed when it changed nothing or was refused.
    async fn update(&self, id: Uuid, change: Change) -> Result<Tenant, UpdateError>;

    /// Removes a tenant with its port and keys. Says whether there was one.
    async fn delete(&self, id: Uuid) -> Result<bool, RegistryError>;

    /// Takes note of all tenants whose gateway is not, or cannot be made, as it
    /// is asked for, with what keeps it from that. Who is not named any more is
    /// as asked.
    fn hinder(&self, _troubles: BTreeMap<Uuid, String>) {}

    /// A counter that grows with every stored change.
    fn changes(&self) -> watch::Receiver<u64>;
}
