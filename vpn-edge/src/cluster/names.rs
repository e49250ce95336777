//! The names of all objects in a cluster.

/// Name of every [`VpnTenant`](super::VpnTenant).
pub const TENANT: &str = "vpn";

/// Name of the objects of a tenant's gateway in its namespace: Deployment, Service,
/// NetworkPolicy, and the Secret with its configuration. There is one tenant per
/// namespace, so that roles can be limited to this name and the next.
pub const GATEWAY: &str = "vpn-edge-gateway";

/// Name of the Secret with a tenant's keys, which no pod mounts. A tenant holds a
/// port and keys as long as it exists.
pub const KEYS: &str = "vpn-edge-keys";

/// Name of the agents' DaemonSet, and of their service account.
pub const AGENT: &str = "vpn-edge-agent";

/// Name of the controllers' Deployment, and of their service account.
pub const CONTROLLER: &str = "vpn-edge-controller";

/// Field manager of all objects that the controller applies.
pub const MANAGER: &str = "vpn-edge";

/// On a [`VpnTenant`](super::VpnTenant) until its gateway, port and keys are removed.
pub const FINALIZER: &str = "vpn-edge.dev/gateway";

/// Annotation of a gateway's objects: its port.
pub const GATEWAY_PORT: &str = "vpn-edge.dev/port";

pub mod label {
    //! Labels of a tenant's objects.

    pub const NAME: &str = "app.kubernetes.io/name";
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The tenant's id.
    pub const TENANT: &str = "vpn-edge.dev/tenant";
    /// Generation of the tenant's keys, in decimal. A Service selects pods of its own
    /// generation, and passes the label on to its EndpointSlices.
    pub const GENERATION: &str = "vpn-edge.dev/generation";
}
