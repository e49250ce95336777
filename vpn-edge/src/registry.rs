//! The interface to the store of tenants: one machine's SQLite database, or a
//! cluster's resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::{Ports, Tenant, VpnError};

/// A change to a stored tenant. It may run more than once, each time on the current
/// tenant and ports; only the last run counts.
pub type Change = Box<dyn FnMut(&mut Tenant, &mut dyn Ports) -> Result<(), VpnError> + Send>;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The ID or namespace that is taken.
    #[error("{0} is already used by another tenant")]
    AlreadyExists(String),
    #[error("there is no namespace {0}: create it first")]
    NoNamespace(String),
    #[error("cannot open the registry: {0}")]
    Open(String),
    /// The message of the cluster's API server.
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

    /// Stores a new tenant without VPN. If a tenant with this ID was deleted, the new
    /// one continues its generation.
    async fn create(&self, tenant: Tenant) -> Result<Tenant, RegistryError>;

    /// Runs `change` on the stored tenant and stores the result, atomically. If it
    /// changes nothing or is refused, nothing is written and nobody is notified.
    async fn update(&self, id: Uuid, change: Change) -> Result<Tenant, UpdateError>;

    /// Removes a tenant with its port and keys. Returns whether it existed.
    async fn delete(&self, id: Uuid) -> Result<bool, RegistryError>;

    /// Reports all tenants whose gateway does not match the spec, with the reason. A
    /// tenant that is missing from the map has no problem.
    fn report(&self, _problems: BTreeMap<Uuid, String>) {}

    /// A counter that grows with every stored change.
    fn changes(&self) -> watch::Receiver<u64>;
}
