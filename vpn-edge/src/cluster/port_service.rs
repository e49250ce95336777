//! The Service that holds a tenant's port on every node.
//!
//! Each tenant has one such Service, with the gateway's name; the API server
//! allocates the node port to it. The registry creates it before it stores keys: at
//! that point it has the annotation [`CLAIMED`], but neither the label
//! [`label::NAME`] nor the annotation [`GATEWAY_PORT`]. Applying the gateway sets
//! both; the Service then belongs to the gateway and is deleted with it. When a
//! tenant takes another port, the registry removes both, so that removing the old
//! gateway leaves the Service alone. The registry deletes a Service that was claimed
//! but never used.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use crate::cluster::{GATEWAY, label};

/// When a tenant reserved the port; on a gateway's Service until the gateway is
/// applied.
pub const CLAIMED: &str = "vpn-edge.dev/claimed";

/// The spec for the port of a tenant's keys. It selects only pods of their
/// generation.
#[must_use]
pub fn spec(tenant: &str, generation: u64, port: u16) -> ServiceSpec {
    let selector = [
        (label::NAME, GATEWAY.to_owned()),
        (label::TENANT, tenant.to_owned()),
        (label::GENERATION, generation.to_string()),
    ];
    ServiceSpec {
        type_: Some("NodePort".into()),
        selector: Some(selector.map(|(name, value)| (name.into(), value)).into()),
        ports: Some(vec![ServicePort {
            name: Some("wireguard".into()),
            protocol: Some("UDP".into()),
            port: port.into(),
            target_port: Some(IntOrString::Int(port.into())),
            node_port: Some(port.into()),
            app_protocol: None,
        }]),
        // Every node is an edge, whether the gateway is on it or not.
        external_traffic_policy: Some("Cluster".into()),
        ip_family_policy: Some("PreferDualStack".into()),
        ..ServiceSpec::default()
    }
}

/// The ports that a Service holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortService {
    pub uid: String,
    pub version: String,
    pub ports: Vec<u16>,
    /// Whether it belongs to a gateway.
    pub gateway: bool,
    /// See [`CLAIMED`].
    pub claimed: Option<Timestamp>,
    pub deleting: bool,
}

/// None for a Service without node ports.
pub fn held(service: &Service) -> Option<PortService> {
    let spec = service.spec.as_ref()?;
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| port.node_port);
    let ports = ports.chain(spec.health_check_node_port);
    let ports: Vec<u16> = ports
        .filter_map(|port| u16::try_from(port).ok().filter(|port| *port != 0))
        .collect();
    if ports.is_empty() {
        return None;
    }
    let claimed = service.annotations().get(CLAIMED);
    Some(PortService {
        uid: service.uid().unwrap_or_default(),
        version: service.resource_version().unwrap_or_default(),
        ports,
        gateway: service.labels().contains_key(label::NAME),
        claimed: claimed.and_then(|time| time.parse().ok()),
        deleting: service.metadata.deletion_timestamp.is_some(),
    })
}
