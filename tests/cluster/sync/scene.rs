//! Tenants with gateways on one node, and somebody who keeps those up.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, CustomResourceExt, Resource, ResourceExt};
use lab::cluster::{Cluster, Containers, Kubelet, Member, Worker};
use lab::node::Lab;
use serde_json::{from_value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;
use vpn_edge::cluster::gateways::{KubeGateways, Settings};
use vpn_edge::cluster::{TENANT, VpnTenant};
use vpn_edge::domain::GatewayState;
use vpn_edge::gateways::{GatewaySpec, Gateways as _};
use vpn_edge::wireguard::PrivateKey;

use crate::tunnel;

/// An image that no node gets.
pub const MISSING: &str = "vpn-edge:missing";

pub struct Scene {
    leader: Option<Leader>,
    _kubelet: Kubelet,
    _member: Member,
    pub cluster: Cluster,
    pub tenants: Vec<GatewaySpec>,
    _lab: Lab,
}

struct Leader {
    gateways: Arc<KubeGateways>,
    sync: JoinHandle<()>,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.sync.abort();
    }
}

impl Scene {
    /// So many tenants, each with a ready gateway of this image.
    pub fn new(tenants: u8, image: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let node = lab.node("worker")?;
        let member = cluster.add_node("worker", &[IpAddr::from([192, 0, 2, 1])])?;
        let range = Ipv4Addr::new(100, 64, 1, 0);
        let worker = Worker::new(&lab, &node, cluster.client(), range)?;
        let kubelet = Kubelet::start(&member, Pulling(worker));
        let params = PostParams::default();
        let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client());
        cluster.run(definitions.create(&params, &VpnTenant::crd()))?;
        let tenants = (1..=tenants).map(spec).collect::<Result<_>>()?;
        let mut scene = Self {
            leader: None,
            _kubelet: kubelet,
            _member: member,
            cluster,
            tenants,
            _lab: lab,
        };
        let namespaces: Api<Namespace> = Api::all(scene.cluster.client());
        for spec in &scene.tenants {
            let namespace = json!({ "metadata": { "name": spec.namespace } });
            scene
                .cluster
                .run(namespaces.create(&params, &from_value(namespace)?))?;
            let tenant: VpnTenant = from_value(json!({
                "metadata": { "name": TENANT },
                "spec": { "id": spec.tenant, "organisation": "acme", "plan": "business" },
            }))?;
            let tenants: Api<VpnTenant> = scene.api(spec);
            // The definition is served a little later.
            scene.cluster.eventually("a VpnTenant", async || {
                Ok(Some(tenants.create(&params, &tenant).await?))
            })?;
        }
        scene.lead(image)?;
        for spec in &scene.tenants {
            scene.ensure(spec)?;
        }
        for spec in &scene.tenants {
            scene.await_state(spec, |state| *state == GatewayState::Ready)?;
        }
        Ok(scene)
    }

    /// Another leader takes over, with this image for gateways.
    pub fn lead(&mut self, image: &str) -> Result<()> {
        self.leader = None;
        let settings = Settings::new(image.into());
        let client = self.cluster.client();
        let gateways = Arc::new(self.cluster.run(KubeGateways::start(client, settings))?);
        let sync = {
            let gateways = Arc::clone(&gateways);
            let run = async move { gateways.keep_up().await };
            let spawn = async { anyhow::Ok(tokio::spawn(run)) };
            self.cluster.run(spawn)?
        };
        self.leader = Some(Leader { gateways, sync });
        Ok(())
    }

    fn gateways(&self) -> Result<&KubeGateways> {
        Ok(&self.leader.as_ref().context("nobody leads")?.gateways)
    }

    pub fn ensure(&self, spec: &GatewaySpec) -> Result<()> {
        self.cluster.run(self.gateways()?.ensure(spec))
    }

    pub fn api<K>(&self, spec: &GatewaySpec) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client(), &spec.namespace)
    }

    /// Waits until the tenant's gateway is in a state that fits.
    pub fn await_state(
        &self,
        spec: &GatewaySpec,
        fits: impl Fn(&GatewayState) -> bool,
    ) -> Result<()> {
        let gateways = self.gateways()?;
        self.cluster.eventually("the gateway's state", async || {
            let list = gateways.list().await?;
            let mut own = list.iter().filter(|gateway| gateway.tenant == spec.tenant);
            match own.next() {
                Some(gateway) if fits(&gateway.state) => Ok(Some(())),
                other => bail!("{other:?}"),
            }
        })
    }

    /// The uid and image of the tenant's one pod that is ready.
    pub fn pod(&self, spec: &GatewaySpec) -> Result<(String, String)> {
        let pods: Api<Pod> = self.api(spec);
        let pods = self.cluster.run(pods.list(&ListParams::default()))?.items;
        let [pod] = &pods[..] else {
            bail!("{} has {} pods", spec.namespace, pods.len());
        };
        ensure!(
            pod.metadata.deletion_timestamp.is_none() && is_ready(pod),
            "{} has no pod that serves",
            spec.namespace
        );
        Ok((pod.uid().unwrap_or_default(), image(pod)))
    }

    /// Waits until the tenant's one pod is ready and of this image.
    pub fn await_image(&self, spec: &GatewaySpec, wanted: &str) -> Result<()> {
        let pods: Api<Pod> = self.api(spec);
        self.cluster.eventually("a pod of the image", async || {
            let pods = pods.list(&ListParams::default()).await?.items;
            let images: Vec<_> = pods.iter().map(|pod| (image(pod), is_ready(pod))).collect();
            ensure!(images == [(wanted.to_owned(), true)], "{images:?}");
            Ok(Some(()))
        })
    }
}

fn spec(number: u8) -> Result<GatewaySpec> {
    let mut spec = tunnel::spec(1, &["10.97.1.0/24"])?;
    spec.tenant = Uuid::from_u128(number.into());
    spec.namespace = format!("tenant-{number}");
    spec.tunnel.fixed.port = 31_000 + u16::from(number);
    spec.tunnel.fixed.server_key = PrivateKey::from_bytes([number; 32]);
    Ok(spec)
}

fn image(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let image = spec.and_then(|spec| spec.containers[0].image.clone());
    image.unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|found| found.type_ == "Ready" && found.status == "True")
}

/// A worker that gets every image but one.
struct Pulling(Worker);

impl Containers for Pulling {
    fn start(&self, pod: &Pod) -> Result<Vec<IpAddr>> {
        ensure!(image(pod) != MISSING, "no such image");
        self.0.start(pod)
    }

    fn ready(&self, pod: &Pod) -> Result<bool> {
        self.0.ready(pod)
    }

    fn stop(&self, pod: &Pod) -> Result<()> {
        self.0.stop(pod)
    }
}
