//! The cluster as store and as runtime: its resources, and what they are called.

pub mod crd;

use std::time::Duration;

use anyhow::{Context, Result};
use kube::{Client, Config};

pub use crd::{VpnTenant, VpnTenantSpec, VpnTenantStatus};

/// Seconds after which a watch ends and is begun anew: a connection that died
/// without a word is noticed by then.
pub const WATCH: u32 = 60;

/// How long the API server may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long it may be silent, which is longer than a watch is.
const SILENCE: Duration = Duration::from_secs(WATCH as u64 + 10);

/// Name of every [`VpnTenant`].
pub const TENANT: &str = "vpn";

/// Name of what makes up a tenant's gateway in its namespace: Deployment,
/// Service, NetworkPolicy, and the Secret with its configuration. There is one
/// tenant a namespace, so that roles can be held to this name and the next.
pub const GATEWAY: &str = "vpn-edge-gateway";

/// Name of the Secret with a tenant's keys, which no pod sees. A tenant holds a
/// port and keys for as long as it is there.
pub const KEYS: &str = "vpn-edge-keys";

/// Name of the agents' DaemonSet, and of their service account.
pub const AGENT: &str = "vpn-edge-agent";

/// Name of the controllers' Deployment, and of their service account.
pub const CONTROLLER: &str = "vpn-edge-controller";

/// Field manager of all that the controller applies.
pub const MANAGER: &str = "vpn-edge";

/// On a [`VpnTenant`], until its gateway, port and keys are gone.
pub const FINALIZER: &str = "vpn-edge.dev/gateway";

/// A client of the cluster that KUBECONFIG names, or that this runs in as a pod.
/// The API server is not asked yet.
///
/// # Errors
///
/// When there is neither, or it cannot be used.
pub async fn client() -> Result<Client> {
    let mut config = Config::infer().await.context(
        "no cluster to ask: name a kubeconfig with KUBECONFIG, \
         or run in a pod with a service account's token",
    )?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Client::try_from(config).context("the settings of the cluster cannot be used")
}

/// Annotation of what belongs to a gateway: its port.
pub const GATEWAY_PORT: &str = "vpn-edge.dev/port";

pub mod label {
    //! Labels of what is made for a tenant.

    pub const NAME: &str = "app.kubernetes.io/name";
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The tenant's id.
    pub const TENANT: &str = "vpn-edge.dev/tenant";
    /// Of the tenant's keys, in decimal. A Service selects pods of its own
    /// generation, and hands the label down to its EndpointSlices.
    pub const GENERATION: &str = "vpn-edge.dev/generation";
}
