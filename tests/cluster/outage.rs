use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use lab::cluster::Cluster;
use lab::node::Lab;
use serde_json::{from_value, json};

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
