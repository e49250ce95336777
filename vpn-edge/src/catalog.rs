//! Tenants' databases, by their DNS names in the cluster.

use async_trait::async_trait;

use crate::domain::Tenant;

/// The default DNS domain of clusters.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Looks up the DNS names of tenants' databases.
#[async_trait]
pub trait Databases: Send + Sync {
    /// The hosts of the tenant's databases; empty if unknown.
    async fn hosts(&self, tenant: &Tenant) -> Vec<String>;
}

/// Without a cluster, no names are known.
pub struct Unknown;

#[async_trait]
impl Databases for Unknown {
    async fn hosts(&self, _: &Tenant) -> Vec<String> {
        Vec::new()
    }
}
