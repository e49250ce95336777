use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use lab::cluster::{Cluster, Kubelet};
use lab::node::Lab;
use serde_json::{from_value, json};

use super::namespaces::Namespaces;

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
