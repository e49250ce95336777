//! The parts of resources that the edge reads.
//!
//! The rest is not parsed: Nodes contain lists of images, and a resource that could
//! not be parsed would hide all others of its list.

use k8s_openapi::api::core::v1::NodeAddress;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;
use uuid::Uuid;

use crate::agent::Allocated;
use crate::cluster;

pub use k8s_openapi::api::discovery::v1::EndpointSlice;

#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = "cluster::VpnTenant")]
pub struct VpnTenant {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Spec,
    #[serde(default)]
    pub status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    pub id: String,
    pub plan: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub generation: i64,
    pub port: Option<u16>,
    pub server_public_key: Option<String>,
}

impl VpnTenant {
    /// The tenant's port and keys, in the phases in which it has them.
    pub fn allocated(&self, id: Uuid) -> Option<Allocated> {
        Some(Allocated {
            port: self.status.port?,
            tenant: id,
            generation: self.status.generation.try_into().ok()?,
            public_key: self.status.server_public_key.as_ref()?.parse().ok()?,
            plan: self.spec.plan.parse().ok()?,
        })
    }
}

#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub struct Node {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub addresses: Vec<NodeAddress>,
}
