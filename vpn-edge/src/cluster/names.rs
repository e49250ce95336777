//! What everything in a cluster is called.

/// Name of every [`VpnTenant`](super::VpnTenant).
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

/// On a [`VpnTenant`](super::VpnTenant), until its gateway, port and keys are gone.
pub const FINALIZER: &str = "vpn-edge.dev/gateway";

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
