//! Gateways as the cluster's, against a real API server.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, CustomResourceExt, ResourceExt};
use lab::client::Client as Laptop;
use lab::cluster::{Cluster, Kubelet, Member, Worker};
use lab::node::{Lab, Node};
use serde_json::{Value, from_value, json};
use vpn_edge::cluster::gateways::{KubeGateways, Settings};
use vpn_edge::cluster::{GATEWAY, TENANT, VpnTenant, label};
use vpn_edge::domain::GatewayState;
use vpn_edge::gateways::{Gateway, GatewaySpec, Gateways as _};

use super::tunnel::{OTHER_SERVER, SERVER, configuration, spec};

const NAMESPACE: &str = "tenant-acme";

/// A cluster of one node with one tenant, and a laptop beside it.
struct Scene {
    gateways: Arc<KubeGateways>,
    worker: Worker,
    _kubelet: Kubelet,
    _member: Member,
    cluster: Cluster,
    laptop: Node,
    _lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let (node, laptop) = (lab.node("worker")?, lab.node("laptop")?);
        node.link("laptop", &laptop, "eth0")?;
        node.sh(&format!(
            "ip address add 192.0.2.1/24 dev laptop
             ip address add {SERVER}/32 dev lo
             ip address add {OTHER_SERVER}/32 dev lo"
        ))?;
        laptop.sh("ip address add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")?;
        let member = cluster.add_node("worker", &[IpAddr::from([192, 0, 2, 1])])?;
        let range = Ipv4Addr::new(100, 64, 1, 0);
        let worker = Worker::new(&lab, &node, cluster.client(), range)?;
        let kubelet = Kubelet::start(&member, worker.clone());

        let params = PostParams::default();
        let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client());
        cluster.run(definitions.create(&params, &VpnTenant::crd()))?;
        let namespaces: Api<Namespace> = Api::all(cluster.client());
        let namespace = json!({ "metadata": { "name": NAMESPACE } });
        cluster.run(namespaces.create(&params, &from_value(namespace)?))?;
        let tenants: Api<VpnTenant> = Api::namespaced(cluster.client(), NAMESPACE);
        let tenant: VpnTenant = from_value(json!({
            "metadata": { "name": TENANT },
            "spec": { "id": spec(1, &[])?.tenant, "organisation": "acme", "plan": "business" },
        }))?;
        // The definition is served a little later.
        cluster.eventually("a VpnTenant", async || {
            Ok(Some(tenants.create(&params, &tenant).await?))
        })?;
        let settings = Settings::new("vpn-edge:test".into());
        let gateways = cluster.run(KubeGateways::start(cluster.client(), settings))?;
        Ok(Self {
            gateways: Arc::new(gateways),
            worker,
            _kubelet: kubelet,
            _member: member,
            cluster,
            laptop,
            _lab: lab,
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client(), NAMESPACE)
    }

    fn ensure(&self, spec: &GatewaySpec) -> Result<()> {
        self.cluster.run(self.gateways.ensure(spec))
    }

    fn list(&self) -> Result<Vec<Gateway>> {
        self.cluster.run(self.gateways.list())
    }

    /// Waits until there is one gateway, in a state that fits.
    fn await_state(&self, what: &str, fits: impl Fn(&Gateway) -> bool) -> Result<Gateway> {
        self.cluster.eventually(what, async || {
            let list = self.gateways.list().await?;
            match &list[..] {
                [gateway] if fits(gateway) => Ok(Some(gateway.clone())),
                other => bail!("{other:?}"),
            }
        })
    }

    fn await_ready(&self, spec: &GatewaySpec) -> Result<()> {
        let gateway = self.await_state("a ready gateway", |gateway| {
            gateway.state == GatewayState::Ready
                && gateway.generation == spec.tunnel.fixed.generation
        })?;
        assert_eq!(gateway.tenant, spec.tenant);
        assert_eq!(gateway.port, spec.tunnel.fixed.port);
        assert_eq!(gateway.digest, spec.tunnel.digest());
        assert_eq!(gateway.location, None, "where it is, agents find");
        Ok(())
    }

    /// The pods that are not about to end.
    fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = self.api();
        let mut pods = self.cluster.run(pods.list(&ListParams::default()))?.items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    /// The address that the Service leads to, as agents find it.
    fn endpoint(&self, spec: &GatewaySpec) -> Result<String> {
        let slices: Api<EndpointSlice> = self.api();
        let ours = format!(
            "{}={GATEWAY},{}={},{}={}",
            label::NAME,
            label::TENANT,
            spec.tenant,
            label::GENERATION,
            spec.tunnel.fixed.generation
        );
        let ours = ListParams::default().labels(&ours);
        self.cluster.eventually("an endpoint", async || {
            let list = slices.list(&ours).await?.items;
            let endpoints = list
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten());
            let mut ready = endpoints.filter(|endpoint| {
                let conditions = endpoint.conditions.as_ref();
                conditions.and_then(|conditions| conditions.ready) == Some(true)
            });
            let found = ready.find_map(|endpoint| endpoint.addresses.first());
            Ok(found.cloned())
        })
    }

    /// Changes how the tenant wants its gateway run.
    fn set_pod(&self, gateway: &Value) -> Result<()> {
        let tenants: Api<VpnTenant> = self.api();
        let patch = Patch::Merge(json!({ "spec": { "gateway": gateway } }));
        let params = PatchParams::default();
        self.cluster.run(tenants.patch(TENANT, &params, &patch))?;
        Ok(())
    }

    fn keep_up(&self) {
        let gateways = Arc::clone(&self.gateways);
        self.cluster.run(async {
            tokio::spawn(async move { gateways.keep_up().await });
        });
    }

    /// The kinds that the namespace has of the gateway.
    fn left(&self) -> Result<Vec<&'static str>> {
        let (deployments, services) = (self.api::<Deployment>(), self.api::<Service>());
        let (secrets, policies) = (self.api::<Secret>(), self.api::<NetworkPolicy>());
        self.cluster.run(async {
            let found = [
                deployments.get_opt(GATEWAY).await?.map(|_| "Deployment"),
                services.get_opt(GATEWAY).await?.map(|_| "Service"),
                secrets.get_opt(GATEWAY).await?.map(|_| "Secret"),
                policies.get_opt(GATEWAY).await?.map(|_| "NetworkPolicy"),
            ];
            Ok(found.into_iter().flatten().collect())
        })
    }
}

const ALL: [&str; 4] = ["Deployment", "Service", "Secret", "NetworkPolicy"];

#[test]
fn a_gateway_serves_changes_its_keys_and_leaves_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let first = spec(1, &["10.97.1.0/24"])?;
    scene.ensure(&first)?;
    scene.await_ready(&first)?;
    let service = scene.cluster.run(scene.api::<Service>().get(GATEWAY))?;
    let ports = service.spec.context("a Service has a spec")?.ports;
    let ports = ports.context("it has ports")?;
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].node_port, Some(first.tunnel.fixed.port.into()));
    let laptop = Laptop::up(
        &scene.laptop,
        &configuration(&first, &scene.endpoint(&first)?),
    )?;
    laptop.await_reach(SERVER)?;

    // Networks change without another pod.
    let before = scene.pods()?;
    let wider = spec(1, &["10.97.1.0/24", "10.98.0.0/16"])?;
    ensure!(!laptop.reaches(OTHER_SERVER), "it is not the tenant's yet");
    scene.ensure(&wider)?;
    laptop.await_reach(OTHER_SERVER)?;
    let after = scene.pods()?;
    assert_eq!(before[0].uid(), after[0].uid(), "another pod");
    assert_eq!(scene.list()?[0].digest, wider.tunnel.digest());

    // Keys are a new pod's, and never those of two.
    let second = spec(2, &["10.97.1.0/24"])?;
    scene.ensure(&second)?;
    ensure!(
        scene.list()?[0].state != GatewayState::Ready,
        "ready at once"
    );
    scene.await_ready(&second)?;
    let pods = scene.pods()?;
    assert_eq!(pods.len(), 1);
    assert_ne!(pods[0].uid(), after[0].uid());
    assert_eq!(pods[0].labels()[label::GENERATION], "2");
    laptop.await_cut(SERVER)?;
    let address = scene.endpoint(&second)?;
    let laptop = Laptop::up(&scene.laptop, &configuration(&second, &address))?;
    laptop.await_reach(SERVER)?;

    scene
        .cluster
        .run(scene.gateways.remove(second.tunnel.fixed.port))?;
    assert_eq!(scene.left()?, Vec::<&str>::new());
    assert_eq!(scene.list()?, []);
    assert_eq!(scene.worker.pods(), 0, "the pod runs on");
    Ok(())
}

#[test]
fn a_change_of_the_pod_is_followed_without_new_keys() -> Result<()> {
    let scene = Scene::new()?;
    let spec = spec(1, &["10.97.1.0/24"])?;
    scene.ensure(&spec)?;
    scene.await_ready(&spec)?;
    scene.keep_up();
    let before = scene.pods()?;
    let toleration = json!({ "key": "edge", "operator": "Exists" });
    scene.set_pod(&json!({ "tolerations": [toleration] }))?;
    scene
        .cluster
        .eventually("a pod with the toleration", async || {
            let pods = scene.api::<Pod>().list(&ListParams::default()).await?;
            let mut specs = pods.iter().filter_map(|pod| pod.spec.as_ref());
            let tolerates = specs.any(|spec| {
                let mut all = spec.tolerations.iter().flatten();
                all.any(|found| found.key.as_deref() == Some("edge"))
            });
            Ok(tolerates.then_some(()))
        })?;
    scene.await_ready(&spec)?;
    assert_ne!(scene.pods()?[0].uid(), before[0].uid());
    let laptop = Laptop::up(
        &scene.laptop,
        &configuration(&spec, &scene.endpoint(&spec)?),
    )?;
    laptop.await_reach(SERVER)?;

    // What no node has is told in the scheduler's words.
    scene.set_pod(&json!({ "nodeSelector": { "disk": "fast" } }))?;
    scene.await_state("a gateway without a node", |gateway| {
        matches!(&gateway.state, GatewayState::Failed(reason)
            if reason.starts_with("its pod cannot be scheduled: 0/1 nodes are available"))
    })?;
    scene.set_pod(&json!({ "nodeSelector": null }))?;
    scene.await_ready(&spec)?;
    Ok(())
}

#[test]
fn what_is_missing_is_made_again_and_of_two_ports_one_is_removed() -> Result<()> {
    let scene = Scene::new()?;
    let old = spec(1, &[])?;
    scene.ensure(&old)?;
    scene.await_ready(&old)?;

    let params = DeleteParams::default();
    scene
        .cluster
        .run(scene.api::<Service>().delete(GATEWAY, &params))?;
    scene.await_state("a gateway without its Service", |gateway| {
        gateway.state == GatewayState::Absent
    })?;
    scene.ensure(&old)?;
    scene
        .cluster
        .run(scene.api::<NetworkPolicy>().delete(GATEWAY, &params))?;
    scene.await_state("a gateway without its policy", |gateway| {
        gateway.state == GatewayState::Absent
    })?;
    scene.ensure(&old)?;
    scene
        .cluster
        .run(scene.api::<Secret>().delete(GATEWAY, &params))?;
    scene.await_state("a gateway without its keys", |gateway| {
        gateway.state == GatewayState::Absent
    })?;
    scene.ensure(&old)?;
    scene.await_ready(&old)?;
    assert_eq!(scene.left()?, ALL);

    // A tenant that has got another port, while the old one is to go.
    let mut new = spec(2, &[])?;
    new.tunnel.fixed.port = 31_002;
    scene.ensure(&new)?;
    scene
        .cluster
        .run(scene.gateways.remove(old.tunnel.fixed.port))?;
    assert_eq!(scene.left()?, ALL, "removed what is for the new port");
    scene.await_ready(&new)?;
    let service = scene.cluster.run(scene.api::<Service>().get(GATEWAY))?;
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let ports: Vec<_> = ports.iter().map(|port| port.node_port).collect();
    assert_eq!(ports, [Some(31_002)]);
    Ok(())
}

#[test]
fn refusals_have_the_clusters_words() -> Result<()> {
    let scene = Scene::new()?;
    let mut stranger = spec(1, &[])?;
    stranger.tenant = uuid::Uuid::from_u128(8);
    let error = format!("{:#}", scene.ensure(&stranger).unwrap_err());
    ensure!(
        error.contains("there is no VpnTenant with the id"),
        "{error}"
    );

    let spec = spec(1, &[])?;
    let service = json!({
        "metadata": { "name": "by-hand" },
        "spec": { "type": "NodePort", "ports": [
            { "protocol": "UDP", "port": 53, "nodePort": spec.tunnel.fixed.port },
        ]},
    });
    let services: Api<Service> = Api::default_namespaced(scene.cluster.client());
    let params = PostParams::default();
    scene
        .cluster
        .run(services.create(&params, &from_value(service)?))?;
    let error = format!("{:#}", scene.ensure(&spec).unwrap_err());
    ensure!(
        error.contains("the cluster refuses its Service") && error.contains("already allocated"),
        "{error}"
    );
    // What was made of it is found, so that it is removed.
    scene.await_state("what is left of it", |gateway| {
        gateway.port == spec.tunnel.fixed.port && gateway.state == GatewayState::Absent
    })?;
    scene
        .cluster
        .run(scene.gateways.remove(spec.tunnel.fixed.port))?;
    assert_eq!(scene.left()?, Vec::<&str>::new());
    let params = DeleteParams::default();
    scene.cluster.run(services.delete("by-hand", &params))?;

    // A namespace where no container may be privileged.
    let namespaces: Api<Namespace> = Api::all(scene.cluster.client());
    let label = json!({ "pod-security.kubernetes.io/enforce": "baseline" });
    let patch = Patch::Merge(json!({ "metadata": { "labels": label } }));
    scene
        .cluster
        .run(namespaces.patch(NAMESPACE, &PatchParams::default(), &patch))?;
    scene.ensure(&spec)?;
    scene.await_state("a refused pod", |gateway| {
        matches!(&gateway.state, GatewayState::Failed(reason)
            if reason.starts_with("the cluster refuses its pod: ") && reason.contains("baseline"))
    })?;
    Ok(())
}
