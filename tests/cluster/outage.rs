use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use lab::cluster::{Cluster, Kubelet};
use lab::node::Lab;
use serde_json::{from_value, json};

use super::namespaces::Namespaces;

#[test]
fn a_killed_api_server_comes_back_with_what_it_had() -> Result<()> {
    let lab = Lab::new()?;
    let mut cluster = Cluster::start(&lab)?;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let map = json!({ "metadata": { "name": "kept" }, "data": { "key": "value" } });
    let made = cluster.run(maps.create(&PostParams::default(), &from_value(map)?))?;

    cluster.stop_api_server();
    ensure!(cluster.run(maps.get("kept")).is_err(), "somebody answers");
    cluster.start_api_server()?;

    let kept = cluster.run(maps.get("kept"))?;
    assert_eq!(kept.data, made.data);
    assert_eq!(kept.metadata.uid, made.metadata.uid);

    // The controllers have outlived it too.
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    let namespace = json!({ "metadata": { "name": "later" } });
    cluster.run(namespaces.create(&PostParams::default(), &from_value(namespace)?))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), "later");
    cluster.eventually("a service account in a new namespace", async || {
        Ok(accounts.get_opt("default").await?)
    })?;
    Ok(())
}

#[test]
fn a_nodes_pods_run_on_through_an_outage_and_are_ended_after_it() -> Result<()> {
    let lab = Lab::new()?;
    let mut cluster = Cluster::start(&lab)?;
    let worker = lab.node("worker")?;
    let running = Arc::default();
    let member = cluster.add_node("worker", &[IpAddr::from([192, 0, 2, 10])])?;
    let containers = Namespaces {
        lab,
        worker,
        running: Arc::clone(&running),
    };
    let _kubelet = Kubelet::start(&member, containers);
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    run_pod(&cluster, &pods, "before")?;

    cluster.stop_api_server();
    ensure!(running.lock().expect("nothing panics with it").len() == 1);
    cluster.start_api_server()?;

    run_pod(&cluster, &pods, "after")?;
    ensure!(running.lock().expect("nothing panics with it").len() == 2);
    for name in ["before", "after"] {
        cluster.run(pods.delete(name, &DeleteParams::default()))?;
        cluster.eventually("the pod is gone", async || {
            Ok(pods.get_opt(name).await?.is_none().then_some(()))
        })?;
    }
    ensure!(running.lock().expect("nothing panics with it").is_empty());
    Ok(())
}

fn run_pod(cluster: &Cluster, pods: &Api<Pod>, name: &str) -> Result<()> {
    let container = json!({
        "name": "main", "image": "none", "command": ["sleep", "infinity"],
    });
    let pod = json!({ "metadata": { "name": name }, "spec": { "containers": [container] } });
    cluster.run(pods.create(&PostParams::default(), &from_value(pod)?))?;
    cluster.eventually("the pod runs", async || {
        let status = pods.get(name).await?.status.unwrap_or_default();
        Ok((status.phase.as_deref() == Some("Running")).then_some(()))
    })
}
