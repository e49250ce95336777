//! Settings of gateways, and their location.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::cluster::crd::GatewayPod;

/// Settings of all gateways.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Must have `vpn-edge` and `nft` in its path.
    pub image: String,
    /// Names of image pull Secrets in the tenants' namespaces.
    pub image_pull_secrets: Vec<String>,
    /// Used where a tenant sets none.
    pub resources: ResourceRequirements,
    /// Namespace and labels of the cluster's DNS servers.
    pub dns: (String, BTreeMap<String, String>),
}

impl Settings {
    /// Defaults that fit most clusters.
    #[must_use]
    pub fn new(image: String) -> Self {
        let quantities = |cpu: &str, memory: &str| {
            let quantities = [("cpu", cpu), ("memory", memory)];
            Some(
                quantities
                    .map(|(name, quantity)| (name.into(), Quantity(quantity.into())))
                    .into(),
            )
        };
        Self {
            image,
            image_pull_secrets: Vec::new(),
            resources: ResourceRequirements {
                requests: quantities("10m", "32Mi"),
                limits: quantities("2", "256Mi"),
                claims: None,
            },
            dns: (
                "kube-system".into(),
                [("k8s-app".into(), "kube-dns".into())].into(),
            ),
        }
    }

    pub(super) fn pull_secrets(&self) -> Option<Vec<LocalObjectReference>> {
        let names = self.image_pull_secrets.iter();
        let secrets: Vec<_> = names
            .map(|name| LocalObjectReference { name: name.clone() })
            .collect();
        (!secrets.is_empty()).then_some(secrets)
    }
}

/// Where a tenant's gateway runs, and how.
#[derive(Clone, Debug)]
pub struct GatewayTarget {
    pub namespace: String,
    /// The VpnTenant.
    pub owner: OwnerReference,
    pub pod: GatewayPod,
}
