//! Controllers that are started with other options.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use lab::topology::A;
use serde_json::{Value, json};
use vpn_edge::cluster::KEYS;

use super::scene::Scene;
use super::{ACME, yaml};

const OTHER_DNS: &str = "10.96.0.11";

/// The subnet in the tenant's status.
fn subnet(scene: &Scene) -> Result<String> {
    let resource = scene.cluster.run(scene.resource(&ACME).get("vpn"))?;
    let subnet = resource.status.and_then(|status| status.subnet);
    subnet.context("the status names no subnet")
}

/// The subnet in the tenant's keys Secret.
fn stored(scene: &Scene) -> Result<Option<String>> {
    let secrets: Api<Secret> = Api::namespaced(scene.cluster.client(), ACME.namespace);
    let secret = scene.cluster.run(secrets.get(KEYS))?;
    let text = secret.data.and_then(|mut data| data.remove("subnet"));
    text.map(|text| Ok(String::from_utf8(text.0)?)).transpose()
}

/// Takes the subnet out of the keys Secret, as it is in those of earlier builds.
fn forget_subnet(scene: &Scene) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(scene.cluster.client(), ACME.namespace);
    let patch = Patch::Merge(json!({ "data": { "subnet": Value::Null } }));
    let params = PatchParams::default();
    scene.cluster.run(secrets.patch(KEYS, &params, &patch))?;
    Ok(())
}

#[test]
fn other_options_reach_running_gateways_and_end_no_session() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.apply(&yaml(&ACME, true))?;
    scene.await_phase(&ACME, "enabled", 0)?;
    let client = scene.connect(&scene.region.client_a, &ACME)?;
    let laptop = scene.region.client_a.clone();
    let session = || laptop.sh("wg show wg0 latest-handshakes");
    let (pods, handshake) = (scene.pods(&ACME)?, session()?);
    let before = subnet(&scene)?;
    ensure!(stored(&scene)?.as_deref() == Some(&*before));
    let configuration = scene.tenant(0, &["config", ACME.id])?;
    let ranges = format!("10.96.0.0/12,{before}");
    let options = [
        ("VPN_EDGE_DNS", OTHER_DNS),
        ("VPN_EDGE_CLUSTER_RANGES", &*ranges),
    ];
    client.lose_nothing(A.server, 2_000, || scene.change(&options))?;

    // Its file and status say what it has, and it has the other DNS server.
    let changed = scene.tenant(0, &["config", ACME.id])?;
    let expected = configuration.replace("DNS = 10.96.0.10", &format!("DNS = {OTHER_DNS}"));
    ensure!(changed == expected && changed != configuration, "{changed}");
    scene
        .cluster
        .eventually("rules with the server", async || {
            let rules = scene.rules()?;
            ensure!(
                rules.contains(OTHER_DNS) && !rules.contains("10.96.0.10"),
                "{rules}"
            );
            Ok(Some(()))
        })?;
    ensure!(subnet(&scene)? == before, "another subnet is told");
    ensure!(scene.pods(&ACME)? == pods, "the pod was replaced");
    ensure!(session()? == handshake, "the session was lost");

    // Keys of an earlier build have no subnet: what was told of them holds.
    forget_subnet(&scene)?;
    client.lose_nothing(A.server, 2_000, || scene.change(&options))?;
    ensure!(subnet(&scene)? == before, "another subnet is told");
    ensure!(scene.tenant(0, &["config", ACME.id])? == changed);
    ensure!(scene.pods(&ACME)? == pods, "the pod was replaced");
    ensure!(stored(&scene)?.is_none(), "nobody had a reason to write it");

    // New keys keep it, and enabling anew gives another.
    scene.tenant(0, &["regenerate", ACME.id])?;
    ensure!(stored(&scene)?.as_deref() == Some(&*before));
    let client = scene.connect(&scene.region.client_a, &ACME)?;
    scene.tenant(0, &["disable", ACME.id])?;
    client.await_cut(A.server)?;
    scene.tenant(0, &["enable", ACME.id])?;
    let after = subnet(&scene)?;
    ensure!(after != before && stored(&scene)? == Some(after));
    scene.connect(&scene.region.client_a, &ACME)?;
    Ok(())
}

#[test]
fn a_changed_mtu_takes_another_pod() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.apply(&yaml(&ACME, true))?;
    scene.await_phase(&ACME, "enabled", 0)?;
    let client = scene.connect(&scene.region.client_a, &ACME)?;
    let pods = scene.pods(&ACME)?;
    scene.change(&[("VPN_EDGE_MTU", "1380")])?;
    scene.cluster.eventually("another pod", async || {
        let now = scene.pods(&ACME)?;
        ensure!(!now.is_empty() && now != pods, "{now}");
        Ok(Some(()))
    })?;
    // The keys are the same.
    client.await_reach(A.server)
}
