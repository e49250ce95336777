//! What others change of a gateway is changed back.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule};
use kube::Api;
use serde_json::{Value, json, to_value};
use vpn_edge::cluster::GATEWAY;
use vpn_edge::domain::GatewayState;

use super::scene::Scene;

const IMAGE: &str = "vpn-edge:1";

/// How often somebody who insists looks; each time takes a while.
const LOOKS: usize = 40;

/// The specs of Deployment, Service and NetworkPolicy.
async fn specs(scene: &Scene) -> Result<[Value; 3]> {
    let spec = &scene.tenants[0];
    let (deployments, services): (Api<Deployment>, Api<Service>) =
        (scene.api(spec), scene.api(spec));
    let policies: Api<NetworkPolicy> = scene.api(spec);
    Ok([
        to_value(deployments.get(GATEWAY).await?.spec)?,
        to_value(services.get(GATEWAY).await?.spec)?,
        to_value(policies.get(GATEWAY).await?.spec)?,
    ])
}

fn await_specs(scene: &Scene, wanted: &[Value; 3], what: &str) -> Result<()> {
    scene.cluster.eventually(what, async || {
        let now = specs(scene).await?;
        ensure!(now == *wanted, "{now:?}");
        Ok(Some(()))
    })
}

fn edit(scene: &Scene, kind: &str, patch: &Value) -> Result<()> {
    let (patch, namespace) = (patch.to_string(), &scene.tenants[0].namespace);
    let kubectl = ["patch", kind, GATEWAY, "--type=merge", "-n", namespace];
    let kubectl = [&kubectl[..], &["-p", &patch]].concat();
    scene.cluster.kubectl_said(&kubectl).map(drop)
}

#[test]
fn what_somebody_edits_is_changed_back() -> Result<()> {
    let scene = Scene::new(1, IMAGE)?;
    let spec = &scene.tenants[0];
    let before = scene.cluster.run(specs(&scene))?;
    let is_back = |what: &str| await_specs(&scene, &before, what);
    let scale = ["scale", "deployment", GATEWAY, "--replicas=0", "-n"];
    scene
        .cluster
        .kubectl_said(&[&scale[..], &[&spec.namespace]].concat())?;
    is_back("its pod")?;

    let port = json!({ "name": "odd", "protocol": "UDP", "port": 53,
        "targetPort": 53, "nodePort": spec.tunnel.fixed.port });
    edit(&scene, "service", &json!({ "spec": { "ports": [port] } }))?;
    is_back("the Service's port")?;
    let selector = json!({ "spec": { "selector": { "app": "another" } } });
    edit(&scene, "service", &selector)?;
    is_back("the Service's selector")?;

    let open = json!({ "spec": { "egress": [{}] } });
    edit(&scene, "networkpolicy", &open)?;
    is_back("the policy")?;

    let template = |pod: Value| json!({ "spec": { "template": { "spec": pod } } });
    let grace = json!({ "terminationGracePeriodSeconds": 90 });
    edit(&scene, "deployment", &template(grace))?;
    is_back("the pod's grace")?;
    scene.await_state(spec, |state| *state == GatewayState::Ready)?;
    scene.await_image(spec, IMAGE)
}

#[test]
fn what_somebody_adds_to_lists_is_taken_off() -> Result<()> {
    let scene = Scene::new(1, IMAGE)?;
    let spec = &scene.tenants[0];
    let before = scene.cluster.run(specs(&scene))?;
    let is_back = |what: &str| await_specs(&scene, &before, what);
    let ports = [
        json!({ "name": "wireguard", "protocol": "UDP", "port": spec.tunnel.fixed.port,
            "targetPort": spec.tunnel.fixed.port, "nodePort": spec.tunnel.fixed.port }),
        json!({ "name": "odd", "protocol": "TCP", "port": 53, "targetPort": 53 }),
    ];
    edit(&scene, "service", &json!({ "spec": { "ports": ports } }))?;
    is_back("the Service's one port")?;
    let beside = json!([{ "op": "add", "path": "/spec/template/spec/containers/-",
        "value": { "name": "beside", "image": "odd:1" } }]);
    let patch = [
        "patch",
        "deployment",
        GATEWAY,
        "--type=json",
        "-n",
        &spec.namespace,
    ];
    let beside = beside.to_string();
    scene
        .cluster
        .kubectl_said(&[&patch[..], &["-p", &beside]].concat())?;
    is_back("the pod's one container")?;
    Ok(())
}

#[test]
fn a_fight_does_not_spin() -> Result<()> {
    let scene = Scene::new(1, IMAGE)?;
    let policies: Api<NetworkPolicy> = scene.api(&scene.tenants[0]);
    let open = json!({ "spec": { "egress": [{}] } });
    let open_egress = Some(vec![NetworkPolicyEgressRule::default()]);
    let mut edits = 0;
    for _ in 0..LOOKS {
        let policy = scene.cluster.run(policies.get(GATEWAY))?;
        if policy.spec.and_then(|spec| spec.egress) != open_egress {
            edit(&scene, "networkpolicy", &open)?;
            edits += 1;
        }
        scene.cluster.kubectl_said(&["version"])?;
    }
    // It is answered, but with longer and longer pauses.
    ensure!((2..LOOKS / 2).contains(&edits), "{edits} edits");
    Ok(())
}
