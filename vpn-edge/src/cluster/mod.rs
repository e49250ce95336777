//! The cluster as store and runtime: resources and their names.

use std::time::Duration;

use anyhow::{Error, Result};
pub use kube::Client;

pub mod audit;
mod cache;
pub mod catalog;
mod client;
pub mod crd;
pub mod edge_source;
pub mod gateways;
pub mod lease;
mod names;
mod port_service;
pub mod sessions;
pub mod tenants;
mod watch;

pub use client::{WATCH, client, own_image};
pub use crd::{VpnTenant, VpnTenantSpec, VpnTenantStatus};
pub use names::{
    AGENT, CONTROLLER, FINALIZER, GATEWAY, GATEWAY_PORT, KEYS, MANAGER, TENANT, label,
};

use self::gateways::KubeGateways;
use self::tenants::KubeRegistry;
use self::watch::Watches;

/// The longest pause of a controller after a failed watch.
const CONTROLLERS_PAUSE: Duration = Duration::from_secs(5);

/// Tenants and gateways of the cluster, with one watch per kind. Returns once all are
/// listed; retries while the API server does not answer.
///
/// # Errors
///
/// If the API server refuses: a definition or a permission is missing.
pub async fn start(
    client: Client,
    tenants: tenants::Settings,
    gateways: gateways::Settings,
) -> Result<(KubeRegistry, KubeGateways)> {
    let mut watches = Watches::new(client, CONTROLLERS_PAUSE);
    let registry = KubeRegistry::follow(&mut watches, tenants);
    let gateways = KubeGateways::follow(&mut watches, gateways);
    watches.start().await.map_err(Error::msg)?;
    Ok((registry, gateways))
}
