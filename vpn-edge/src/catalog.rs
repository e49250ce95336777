//! Tenants' databases, by their names in the cluster.

use async_trait::async_trait;

use crate::domain::Tenant;

/// What clusters call themselves in DNS unless they are told otherwise.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Tells the names of tenants' databases.
#[async_trait]
pub trait Databases: Send + Sync {
    /// The hosts of the tenant's databases; none where they cannot be told.
    async fn hosts(&self, tenant: &Tenant) -> Vec<String>;
}

/// Without a cluster nobody knows.
pub struct Unknown;

#[async_trait]
impl Databases for Unknown {
    async fn hosts(&self, _: &Tenant) -> Vec<String> {
        Vec::new()
    }
}
