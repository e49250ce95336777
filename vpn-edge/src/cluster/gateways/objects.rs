//! The objects of a gateway in the cluster.
//!
//! Pure functions. Values that outlive the request for a gateway are in the
//! Deployment's annotations, so that everything except the Secret can be rebuilt when
//! only the settings of the controller have changed: [`PublicSpec`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{PodTemplateSpec, Secret, Service};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use uuid::Uuid;

use super::pod;
use super::settings::{GatewayTarget, Settings};
use crate::cluster::{GATEWAY, MANAGER, label, port_service};
use crate::domain::tunnel::{Live, digest};
use crate::domain::{TunnelDigest, TunnelSpec};
use crate::gateway::{GATEWAY_END, GatewayConfig};
use crate::gateways::GatewaySpec;

/// Annotations.
pub mod annotation {
    pub use crate::cluster::GATEWAY_PORT as PORT;

    /// Networks that the tenant may reach, and its DNS server: as in
    /// [`super::PublicSpec`].
    pub const NETWORKS: &str = "vpn-edge.dev/networks";
    pub const DNS: &str = "vpn-edge.dev/dns";
    /// Digests of the gateway's desired tunnel. On pods, the first one is of the
    /// tunnel that they were created for.
    pub const FIXED: &str = "vpn-edge.dev/fixed";
    pub const LIVE: &str = "vpn-edge.dev/live";
    /// Digest of the values that the Deployment was made from.
    pub const POD_SPEC: &str = "vpn-edge.dev/wish";
    /// Digest of the Deployment as it was applied.
    pub const APPLIED: &str = "vpn-edge.dev/applied";
    /// When a rollout replaced a gateway that served; removed once the gateway is
    /// known to be ready again.
    pub const ROLLED: &str = "vpn-edge.dev/rolled";
}

/// A gateway without its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicSpec {
    pub tenant: Uuid,
    pub generation: u64,
    pub port: u16,
    pub digest: TunnelDigest,
    /// What its NetworkPolicy allows it to reach.
    pub dns: IpAddr,
    pub networks: Vec<IpNet>,
}

impl PublicSpec {
    /// The shape of the gateway of this spec.
    #[must_use]
    pub fn of(spec: &GatewaySpec) -> Self {
        let TunnelSpec { fixed, live } = &spec.tunnel;
        Self {
            tenant: spec.tenant,
            generation: fixed.generation,
            port: fixed.port,
            digest: spec.tunnel.digest(),
            dns: live.dns,
            networks: live.networks.clone(),
        }
    }

    /// The shape of the gateway with this Deployment, if it is ours.
    #[must_use]
    pub fn read(deployment: &Deployment) -> Option<Self> {
        let labels = deployment.metadata.labels.as_ref()?;
        let annotations = deployment.metadata.annotations.as_ref()?;
        let networks = annotations.get(annotation::NETWORKS)?;
        let networks = networks.split(',').filter(|network| !network.is_empty());
        let live = Live {
            networks: networks.map(str::parse).collect::<Result<_, _>>().ok()?,
            dns: annotations.get(annotation::DNS)?.parse().ok()?,
        };
        // Earlier versions wrote neither of these here.
        let fixed = annotations.get(annotation::FIXED).cloned();
        let digest = annotations.get(annotation::LIVE).cloned();
        Some(Self {
            tenant: labels.get(label::TENANT)?.parse().ok()?,
            generation: labels.get(label::GENERATION)?.parse().ok()?,
            port: annotations.get(annotation::PORT)?.parse().ok()?,
            digest: TunnelDigest {
                fixed: fixed.or_else(|| pods_tunnel(deployment).cloned())?,
                live: digest.unwrap_or_else(|| live.digest()),
            },
            dns: live.dns,
            networks: live.networks,
        })
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let (tenant, generation) = (self.tenant.to_string(), self.generation.to_string());
        labels([
            (label::NAME, GATEWAY),
            (label::MANAGED_BY, MANAGER),
            (label::TENANT, &tenant),
            (label::GENERATION, &generation),
        ])
    }

    fn metadata(&self, place: &GatewayTarget) -> ObjectMeta {
        let port = self.port.to_string();
        ObjectMeta {
            name: Some(GATEWAY.into()),
            namespace: Some(place.namespace.clone()),
            labels: Some(self.labels()),
            annotations: Some(labels([(annotation::PORT, port.as_str())])),
            owner_references: Some(vec![place.owner.clone()]),
            ..ObjectMeta::default()
        }
    }
}

/// Digest of the fixed part of the tunnel for which the Deployment's pod was created.
#[must_use]
pub fn pods_tunnel(deployment: &Deployment) -> Option<&String> {
    let pod = deployment.spec.as_ref()?.template.metadata.as_ref()?;
    pod.annotations.as_ref()?.get(annotation::FIXED)
}

/// The configuration file for the pod.
#[must_use]
pub fn config(spec: &GatewaySpec) -> GatewayConfig {
    GatewayConfig {
        tenant: spec.tenant,
        tunnel: spec.tunnel.clone(),
        interface: "wg0".into(),
        link: GATEWAY_END.into(),
        status: pod::STATUS.into(),
        // On nodes where no edge steers, the Service leads here.
        only_edge: false,
    }
}

/// The Secret with the gateway's configuration.
#[must_use]
pub fn secret(place: &GatewayTarget, spec: &GatewaySpec) -> Secret {
    let text = serde_json::to_vec(&config(spec)).expect("a configuration is JSON");
    Secret {
        metadata: PublicSpec::of(spec).metadata(place),
        data: Some(BTreeMap::from([(pod::CONFIG.into(), ByteString(text))])),
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}

/// Annotations with the gateway's desired tunnel.
#[must_use]
pub fn tunnel(shape: &PublicSpec) -> BTreeMap<String, String> {
    let mut annotations = reach(shape);
    annotations.extend(digests(shape));
    annotations
}

fn reach(shape: &PublicSpec) -> BTreeMap<String, String> {
    let networks: Vec<String> = shape.networks.iter().map(IpNet::to_string).collect();
    labels([
        (annotation::NETWORKS, networks.join(",").as_str()),
        (annotation::DNS, &shape.dns.to_string()),
    ])
}

fn digests(shape: &PublicSpec) -> BTreeMap<String, String> {
    labels([
        (annotation::FIXED, &*shape.digest.fixed),
        (annotation::LIVE, &*shape.digest.live),
    ])
}

/// Leaves the tunnel's digests out of `wanted` if `live` has none, as when an earlier
/// version made it: they are no drift, and follow with its next change.
pub fn leave_out_digests(wanted: &mut Deployment, live: &Deployment) {
    let has_digests = |of: &Deployment| {
        let annotations = of.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key(annotation::LIVE))
    };
    if !has_digests(live)
        && let Some(annotations) = &mut wanted.metadata.annotations
    {
        annotations.remove(annotation::FIXED);
        annotations.remove(annotation::LIVE);
    }
}

/// The gateway's Deployment.
#[must_use]
pub fn deployment(place: &GatewayTarget, shape: &PublicSpec, settings: &Settings) -> Deployment {
    let mut metadata = shape.metadata(place);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.extend(reach(shape));
    annotations.insert(annotation::POD_SPEC.into(), digest(&place.pod));
    let mut deployment = Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            // Two pods with the same keys would take each other's sessions.
            replicas: Some(1),
            strategy: Some(DeploymentStrategy {
                type_: Some("Recreate".into()),
                rolling_update: None,
            }),
            revision_history_limit: Some(1),
            // The selector is immutable, and the namespace has no other gateway.
            selector: select(labels([(label::NAME, GATEWAY)])),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(shape.labels()),
                    annotations: Some(labels([
                        (annotation::FIXED, shape.digest.fixed.as_str()),
                        ("kubectl.kubernetes.io/default-container", pod::MAIN),
                    ])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod::spec(place, shape.generation, settings)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    };
    // Without the tunnel's digests, which earlier versions did not write: another
    // value would roll out every gateway. The pods' template has the one that counts.
    let applied = digest(&deployment);
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::APPLIED.into(), applied);
    annotations.extend(digests(shape));
    deployment
}

/// Sets the rollout mark of a Deployment: see [`annotation::ROLLED`].
pub(super) fn mark(deployment: &mut Deployment, mark: Option<String>) {
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.extend(mark.map(|mark| (annotation::ROLLED.to_owned(), mark)));
}

/// The Service that holds the tenant's port.
#[must_use]
pub fn service(place: &GatewayTarget, shape: &PublicSpec) -> Service {
    let tenant = shape.tenant.to_string();
    Service {
        metadata: shape.metadata(place),
        spec: Some(port_service::spec(&tenant, shape.generation, shape.port)),
        status: None,
    }
}

/// What may reach the gateway, and what it may reach: its tunnel's port from
/// anywhere; from it, DNS, the pods of its namespace and the tenant's networks. Its
/// packets to clients are replies, which every CNI allows. For packets to addresses
/// of Services, which most CNIs see after translation, the rule for the pods of its
/// namespace applies.
#[must_use]
pub fn policy(place: &GatewayTarget, shape: &PublicSpec, settings: &Settings) -> NetworkPolicy {
    let block = |cidr: &IpNet| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.to_string(),
            except: None,
        }),
        ..NetworkPolicyPeer::default()
    };
    let port = |protocol: &str, port: u16| NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(port.into())),
        end_port: None,
    };
    let (dns_namespace, dns_labels) = &settings.dns;
    let by_name = labels([("kubernetes.io/metadata.name", dns_namespace.as_str())]);
    let dns_servers = NetworkPolicyPeer {
        namespace_selector: Some(select(by_name)),
        pod_selector: Some(select(dns_labels.clone())),
        ip_block: None,
    };
    let own_namespace = NetworkPolicyPeer {
        pod_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let mut egress = vec![
        NetworkPolicyEgressRule {
            to: Some(vec![dns_servers, block(&shape.dns.into())]),
            ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
        },
        NetworkPolicyEgressRule {
            to: Some(vec![own_namespace]),
            ports: None,
        },
    ];
    // A rule without destinations would allow all destinations.
    if !shape.networks.is_empty() {
        egress.push(NetworkPolicyEgressRule {
            to: Some(shape.networks.iter().map(block).collect()),
            ports: None,
        });
    }
    NetworkPolicy {
        metadata: shape.metadata(place),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(select(labels([(label::NAME, GATEWAY)]))),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: None,
                ports: Some(vec![port("UDP", shape.port)]),
            }]),
            egress: Some(egress),
        }),
    }
}

fn select(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        match_expressions: None,
    }
}

fn labels<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    let pairs = pairs.into_iter();
    pairs
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

#[cfg(test)]
mod tests;
