//! `VpnTenant`: a tenant as a resource.
//!
//! Values that the schema cannot guarantee to be parseable are strings here: one
//! resource that could not be parsed would hide all others of its list.

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::tenant::InvalidTenant;
use crate::domain::{Plan, State, Tenant};

/// A tenant of the cluster and its VPN. There is one per namespace, named `vpn`.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vpn-edge.dev",
    version = "v1alpha1",
    kind = "VpnTenant",
    plural = "vpntenants",
    singular = "vpntenant",
    shortname = "vpn",
    shortname = "vpnt",
    category = "vpn-edge",
    namespaced,
    status = "VpnTenantStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name == 'vpn'")
        .message("a namespace has one VpnTenant, and its name is vpn"),
    printcolumn(
        name = "Organisation",
        type_ = "string",
        json_path = ".spec.organisation"
    ),
    printcolumn(name = "Plan", type_ = "string", json_path = ".spec.plan"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Subnet", type_ = "string", json_path = ".status.subnet"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.reason"
    ),
    printcolumn(
        name = "Id",
        type_ = "string",
        json_path = ".spec.id",
        priority = 1
    ),
    printcolumn(
        name = "Public key",
        type_ = "string",
        json_path = ".status.serverPublicKey",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VpnTenantSpec {
    /// UUID of the tenant; the subnet of its tunnel is derived from it. Immutable.
    #[schemars(regex(pattern = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("id is immutable: create another VpnTenant"))]
    pub id: String,
    /// The customer. Its members see all of its tenants and no others.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"))]
    pub organisation: String,
    /// The plan of the customer. business and enterprise_cloud include the VPN.
    pub plan: Plan,
    /// Whether the tenant is provisioned; the VPN is enabled only if it is.
    #[serde(default)]
    pub ready: bool,
    /// Networks in CIDR notation that the tenant may reach through its gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 43)), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(
        validation = Rule::new("self.all(n, isCIDR(n) && cidr(n) == cidr(n).masked())")
            .message("each network is in CIDR notation with no bits set after its prefix, such as 10.97.1.0/24"),
        validation = Rule::new("self.all(n, !isCIDR(n) || cidr(n).prefixLength() > 0)")
            .message("a network must not cover all addresses: list the ranges that the tenant may reach")
    )]
    pub networks: Vec<String>,
    /// The desired VPN.
    #[serde(default)]
    pub vpn: WantedVpn,
    /// How the gateway runs.
    #[serde(default)]
    pub gateway: GatewayPod,
}

impl VpnTenantSpec {
    /// The spec that asks for this tenant.
    #[must_use]
    pub fn of(tenant: &Tenant) -> Self {
        Self {
            id: tenant.id.to_string(),
            organisation: tenant.organisation.clone(),
            plan: tenant.plan,
            ready: tenant.ready,
            networks: tenant.networks.iter().map(ToString::to_string).collect(),
            vpn: WantedVpn::default(),
            gateway: GatewayPod::default(),
        }
    }

    /// The tenant of this spec in `namespace`, without its VPN's state.
    ///
    /// # Errors
    ///
    /// Why the spec is not a tenant's, for its author.
    pub fn tenant(&self, namespace: &str, made: Timestamp) -> Result<Tenant, String> {
        let id = self.id.parse();
        let id = id.map_err(|_| format!("spec.id {:?} is not a UUID", self.id))?;
        let words = |error: InvalidTenant| error.to_string();
        let organisation = self.organisation.clone();
        let mut tenant = Tenant::new(id, organisation, self.plan, made).map_err(words)?;
        // The name of an existing namespace is valid.
        namespace.clone_into(&mut tenant.namespace);
        tenant.set_ready(self.ready);
        let networks = self.networks.iter().map(|text| {
            text.parse::<IpNet>()
                .map_err(|_| format!("spec.networks: {text:?} is not a network in CIDR notation"))
        });
        let networks = networks.collect::<Result<_, _>>()?;
        tenant.set_networks(networks).map_err(words)?;
        Ok(tenant)
    }
}

/// The desired VPN of a tenant.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WantedVpn {
    #[serde(default)]
    pub enabled: bool,
    /// Increase it to replace the keys, which ends all sessions. Nothing else
    /// changes.
    #[serde(default)]
    #[schemars(range(min = 0))]
    #[x_kube(validation = Rule::new("self >= oldSelf")
        .message("keyGeneration must not decrease"))]
    pub key_generation: i64,
    /// The client's own public key, as `wg pubkey` prints it; its private key stays
    /// with the client. Changing or removing it replaces the keys, which ends all
    /// sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"))]
    #[x_kube(validation = Rule::new("self != 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='")
        .message("clientPublicKey is all zero: `wg genkey | wg pubkey` prints a good one"))]
    pub client_public_key: Option<String>,
}

/// How a gateway's pod runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayPod {
    pub mode: GatewayMode,
    /// Resources of its container. Default: those of the controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
}

/// How packets get from the tunnel into the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GatewayMode {
    /// By address translation: they get the pod's address as their source.
    #[default]
    Nat,
}

/// The observed state of a tenant's VPN. Written only by the controller and the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VpnTenantStatus {
    /// The generation of the spec that this status is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<State>,
    /// When the phase began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why the phase is failed, or why the VPN does not match the spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Increases with every enable and every rotation of the keys.
    #[schemars(range(min = 0))]
    pub generation: i64,
    /// The spec's keyGeneration that the keys were made for.
    #[schemars(range(min = 0))]
    pub key_generation: i64,
    /// UDP port that the tenant holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535))]
    pub port: Option<u16>,
    /// Host name and port that clients connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The tunnel's subnet. It stays until the VPN is enabled anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The client's addresses in the tunnel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_public_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_public_key: Option<String>,
    /// When the keys were generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_created_at: Option<Time>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The definition, as YAML for `kubectl apply`.
///
/// # Errors
///
/// Never for the types above.
pub fn definition() -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&VpnTenant::crd())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_in_the_manifests_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base/crd.yaml");
        let shipped = std::fs::read_to_string(path).unwrap();
        assert_eq!(shipped, definition().unwrap(), "run `cargo xtask crds`");
    }
}
