use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use lab::cluster::{Cluster, Containers, Kubelet};
use lab::node::{Lab, Node, Process};
use serde_json::{from_value, json};

/// Pods of one container, each in a namespace behind the worker.
struct Namespaces {
    lab: Lab,
    worker: Node,
    running: Arc<Mutex<HashMap<String, Process>>>,
}

impl Containers for Namespaces {
    fn start(&self, pod: &Pod) -> Result<Vec<IpAddr>> {
        let mut running = self.running.lock().expect("nothing panics with it");
        let uid = pod.uid().context("a pod has a uid")?;
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let words = spec.containers[0].command.clone().unwrap_or_default();
        let [program, arguments @ ..] = &words[..] else {
            bail!("no command");
        };
        let host = u8::try_from(running.len() + 10)?;
        let address = Ipv4Addr::new(100, 64, 0, host);
        let node = self.lab.node(&uid)?;
        let link = format!("pod{host}");
        self.worker.link(&link, &node, "eth0")?;
        self.worker
            .sh(&format!("ip route add {address} dev {link}"))?;
        node.sh(&format!(
            "ip address add {address}/32 dev eth0; ip route add default dev eth0"
        ))?;
        let mut command = node.command(program);
        command.args(arguments);
        running.insert(uid, node.start("container", command)?);
        Ok(vec![address.into()])
    }

    fn ready(&self, pod: &Pod) -> Result<bool> {
        // Labels change without a new pod: a readiness that the test decides.
        Ok(!pod.labels().contains_key("broken"))
    }

    fn stop(&self, pod: &Pod) -> Result<()> {
        let uid = pod.uid().context("a pod has a uid")?;
        self.running
            .lock()
            .expect("nothing panics with it")
            .remove(&uid);
        Ok(())
    }
}

#[test]
fn a_deployment_is_available_and_its_service_has_the_pods_address() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let worker = lab.node("worker")?;
    worker.sh("ip address add 192.0.2.10/32 dev lo")?;
    let running = Arc::default();
    let member = cluster.add_node("worker", &[IpAddr::from([192, 0, 2, 10])])?;
    let containers = Namespaces {
        lab,
        worker: worker.clone(),
        running: Arc::clone(&running),
    };
    let _kubelet = Kubelet::start(&member, containers);

    let labels = json!({ "app": "sleeper" });
    let container = json!({
        "name": "main", "image": "none", "command": ["sleep", "infinity"],
    });
    let deployment = json!({
        "metadata": { "name": "sleeper" },
        "spec": { "replicas": 1, "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels },
            "spec": { "containers": [container] },
        }},
    });
    let service = json!({
        "metadata": { "name": "sleeper" },
        "spec": { "selector": labels, "ports": [{ "port": 51820, "protocol": "UDP" }] },
    });
    let deployments: Api<Deployment> = Api::default_namespaced(cluster.client());
    let services: Api<Service> = Api::default_namespaced(cluster.client());
    let params = PostParams::default();
    cluster.run(deployments.create(&params, &from_value(deployment)?))?;
    cluster.run(services.create(&params, &from_value(service)?))?;

    cluster.eventually("the deployment is available", async || {
        let status = deployments.get("sleeper").await?.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let available = |kind: &str, is: &str| kind == "Available" && is == "True";
        Ok(conditions
            .iter()
            .any(|condition| available(&condition.type_, &condition.status))
            .then_some(()))
    })?;
    await_endpoint(&cluster, "100.64.0.10", true)?;
    worker.sh("ping -c 1 -W 5 100.64.0.10")?;

    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let pod = cluster.run(pods.list(&ListParams::default()))?.items;
    ensure!(pod.len() == 1, "{} pods", pod.len());
    let broken = json!({ "metadata": { "labels": { "broken": "" } } });
    let (name, params) = (pod[0].name_any(), PatchParams::default());
    cluster.run(pods.patch(&name, &params, &Patch::Merge(&broken)))?;
    await_endpoint(&cluster, "100.64.0.10", false)?;

    // The garbage collector takes what the deployment has made.
    cluster.run(deployments.delete("sleeper", &DeleteParams::default()))?;
    cluster.eventually("the pod is gone", async || {
        let left = pods.list(&ListParams::default()).await?.items;
        Ok(left.is_empty().then_some(()))
    })?;
    let left = running.lock().expect("nothing panics with it").len();
    ensure!(left == 0, "{left} containers outlived their pods");
    Ok(())
}

fn await_endpoint(cluster: &Cluster, address: &str, ready: bool) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::default_namespaced(cluster.client());
    let ours = ListParams::default().labels("kubernetes.io/service-name=sleeper");
    cluster.eventually("the service's endpoint", async || {
        let list = slices.list(&ours).await?.items;
        let mut endpoints = list
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten());
        let found = endpoints.any(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            endpoint.addresses == [address]
                && conditions.and_then(|conditions| conditions.ready) == Some(ready)
        });
        Ok(found.then_some(()))
    })
}
