//! Tenants of a cluster from the first YAML to the last packet.

mod dead_node;
mod options;
mod refused;
mod scene;
mod session;
mod uninstall;

use anyhow::{Result, ensure};
use lab::topology::{A, B};
use nix::sys::signal::Signal;
use serde_json::json;

use scene::{Scene, Tenant};

const ACME: Tenant = Tenant {
    id: "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44",
    namespace: "kovra-acme",
    side: A,
};

const GLOBEX: Tenant = Tenant {
    id: "0f4e2b1a-93c8-4d6e-8a57-6b1d2c3e4f50",
    namespace: "kovra-globex",
    side: B,
};

/// What an operator, or a repository of theirs, applies for a tenant.
fn yaml(tenant: &Tenant, enabled: bool) -> String {
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: vpn-edge.dev/v1alpha1
kind: VpnTenant
metadata: {{name: vpn, namespace: {namespace}}}
spec:
  id: {id}
  organisation: {organisation}
  plan: business
  ready: true
  networks: [{network}]
  vpn: {{enabled: {enabled}}}
",
        namespace = tenant.namespace,
        id = tenant.id,
        organisation = tenant.side.organisation,
        network = tenant.side.network,
    )
}

#[test]
fn tenants_of_yaml_and_of_the_api_come_and_go_alike() -> Result<()> {
    let scene = Scene::new()?;
    scene.apply(&yaml(&ACME, true))?;
    scene.apply(&yaml(&GLOBEX, false))?;
    scene.await_phase(&ACME, "enabled", 0)?;
    scene.await_phase(&GLOBEX, "disabled", 0)?;
    scene.tenant(1, &["enable", GLOBEX.id])?;
    scene.await_phase(&GLOBEX, "enabled", 0)?;

    let list = scene.kubectl(&["get", "vpntenants", "-A"])?;
    for words in [["kovra-acme", "acme"], ["kovra-globex", "globex"]] {
        let row = list.lines().find(|line| line.contains(words[0]));
        let row = row.unwrap_or_default();
        for word in words
            .into_iter()
            .chain(["business", "enabled", "vpn.lab.test:300"])
        {
            ensure!(row.contains(word), "{word} is not in\n{list}");
        }
    }

    let (acme, globex) = (&scene.region.client_a, &scene.region.client_b);
    let client = scene.connect(acme, &ACME)?;
    let other = scene.connect(globex, &GLOBEX)?;
    ensure!(!client.reaches(B.server) && !other.reaches(A.server));

    ensure!(!scene.left()?.is_empty(), "what there is, is found");
    let events = scene.kubectl(&["get", "events", "-n", ACME.namespace])?;
    ensure!(events.contains("vpntenant/vpn"), "{events}");

    // New keys by YAML, and by the API.
    scene.patch(&ACME, &json!({ "vpn": { "keyGeneration": 1 } }))?;
    client.await_cut(A.server)?;
    scene.await_phase(&ACME, "enabled", 1)?;
    ensure!(!client.reaches(A.server), "old keys work");
    let client = scene.connect(acme, &ACME)?;
    // Waits until the new gateway answers.
    scene.tenant(0, &["regenerate", GLOBEX.id])?;
    ensure!(!other.reaches(B.server), "old keys work");
    let other = scene.connect(globex, &GLOBEX)?;

    // Off by the API, and by YAML.
    scene.tenant(1, &["disable", ACME.id])?;
    client.await_cut(A.server)?;
    scene.await_phase(&ACME, "disabled", 1)?;
    other.lose_nothing(B.server, 500, || {
        scene.kubectl(&["delete", "namespace", ACME.namespace])?;
        Ok(())
    })?;
    scene.kubectl(&["delete", "vpntenant", "vpn", "-n", GLOBEX.namespace])?;
    other.await_cut(B.server)?;
    scene.cluster.eventually("nothing is left", async || {
        let left = scene.left()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(Some(()))
    })?;
    for agent in &scene.agents {
        agent.await_ports(|ports| ports.is_empty())?;
    }
    Ok(())
}

#[test]
fn sessions_outlive_the_control_plane_and_find_a_gateway_that_moves() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.apply(&yaml(&ACME, true))?;
    scene.await_phase(&ACME, "enabled", 0)?;
    let client = scene.connect(&scene.region.client_a, &ACME)?;

    // The API server away, and back.
    let Scene { cluster, .. } = &mut scene;
    client.lose_nothing(A.server, 2_000, || {
        cluster.stop_api_server();
        cluster.start_api_server()
    })?;

    // The leader dies, and another brings a tenant up.
    let leads = |scene: &Scene| {
        let leads = scene.controllers.iter().map(|one| one.leads());
        leads.collect::<Result<Vec<bool>>>()
    };
    let before = scene.cluster.eventually("one leads", async || {
        let leads = leads(&scene)?;
        let leader = leads.iter().position(|leads| *leads);
        ensure!(
            leads.iter().filter(|leads| **leads).count() == 1,
            "{leads:?}"
        );
        Ok(leader)
    })?;
    scene.controllers[before].end(Signal::SIGKILL)?;
    scene.apply(&yaml(&GLOBEX, true))?;
    scene.await_phase(&GLOBEX, "enabled", 0)?;
    scene.controllers[before].launch()?;
    let other = scene.connect(&scene.region.client_b, &GLOBEX)?;

    // The node is drained: the gateway goes to the other one, with its keys.
    let worker = scene.worker_of(&ACME)?;
    let name = lab::region::WORKERS[worker].name;
    scene.kubectl(&["cordon", name])?;
    scene.kubectl(&["delete", "pods", "--all", "-n", ACME.namespace])?;
    scene.await_phase(&ACME, "enabled", 0)?;
    client.await_reach(A.server)?;
    ensure!(scene.worker_of(&ACME)? != worker, "it did not move");
    ensure!(other.reaches(B.server));
    Ok(())
}
