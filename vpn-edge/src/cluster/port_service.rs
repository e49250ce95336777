//! The Service that holds a tenant's port on every node.
//!
//! There is one a tenant, which the API server gives the port to, and which has
//! the gateway's name. The registry makes it before it stores keys: it is marked
//! as [`CLAIMED`] then, and lacks the label [`label::NAME`] and the annotation
//! [`GATEWAY_PORT`]. With both it is the gateway's, once that is applied, and is
//! deleted with the gateway. Where a tenant takes another port, the registry takes
//! both away, so that whoever removes the old gateway leaves the Service be. One
//! that was claimed, and then never used, the registry deletes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use crate::cluster::{GATEWAY, label};

/// On a gateway's Service until it has a gateway: when a tenant took the port.
pub const CLAIMED: &str = "vpn-edge.dev/claimed";

/// For the port of a tenant's keys. It leads to pods of their generation alone.
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

/// A Service as far as it holds ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub uid: String,
    pub version: String,
    pub ports: Vec<u16>,
    /// It belongs to a gateway.
    pub gateway: bool,
    /// See [`CLAIMED`].
    pub claimed: Option<Timestamp>,
    pub deleting: bool,
}

/// None for a Service that holds no port of a node.
pub fn held(service: &Service) -> Option<Held> {
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
    Some(Held {
        uid: service.uid().unwrap_or_default(),
        version: service.resource_version().unwrap_or_default(),
        ports,
        gateway: service.labels().contains_key(label::NAME),
        claimed: claimed.and_then(|time| time.parse().ok()),
        deleting: service.metadata.deletion_timestamp.is_some(),
    })
}
