//! A node that died keeps its pods for ever, and no tenant waits for it.

use anyhow::{Result, ensure};
use lab::region::WORKERS;
use lab::topology::{A, B};

use super::scene::Scene;
use super::{ACME, GLOBEX, yaml};

#[test]
fn tenants_of_a_dead_node_are_disabled_and_enabled_elsewhere() -> Result<()> {
    let mut scene = Scene::new()?;
    let (dead, alive) = (0, 1);
    scene.kubectl(&["cordon", WORKERS[alive].name])?;
    scene.apply(&yaml(&ACME, true))?;
    scene.apply(&yaml(&GLOBEX, true))?;
    scene.await_phase(&ACME, "enabled", 0)?;
    scene.await_phase(&GLOBEX, "enabled", 0)?;
    let (acme, globex) = (scene.region.client_a.clone(), scene.region.client_b.clone());
    let client = scene.connect(&acme, &ACME)?;
    let other = scene.connect(&globex, &GLOBEX)?;
    for tenant in [&ACME, &GLOBEX] {
        assert_eq!(scene.nodes_of(tenant)?, [WORKERS[dead].name]);
    }
    for controller in &scene.controllers {
        let log = controller.log();
        ensure!(!log.contains("reverting drift"), "nobody did: {log}");
    }
    scene.lose_worker(dead)?;
    scene.kubectl(&["uncordon", WORKERS[alive].name])?;
    scene.await_phase(&ACME, "failed", 0)?;
    scene.await_phase(&GLOBEX, "failed", 0)?;

    scene.tenant(0, &["disable", ACME.id])?;
    client.await_cut(A.server)?;
    scene.await_phase(&ACME, "disabled", 0)?;
    scene
        .cluster
        .eventually("nothing but the lost pod", async || {
            let kinds = "deployments,services,secrets,networkpolicies,endpointslices";
            let left = scene.kubectl(&["get", kinds, "-o", "name", "-n", ACME.namespace])?;
            ensure!(!left.contains("vpn-edge"), "{left}");
            Ok(Some(()))
        })
        .map_err(|error| error.context(scene.controllers[0].log()))?;
    let pods = scene.kubectl(&["get", "pods", "-o", "name", "-n", ACME.namespace])?;
    ensure!(
        pods.contains("vpn-edge-gateway"),
        "the node ended it: {pods}"
    );

    scene.tenant(0, &["enable", GLOBEX.id])?;
    ensure!(!other.reaches(B.server), "old keys work");
    scene.tenant(1, &["enable", ACME.id])?;
    for (tenant, node, server) in [(&ACME, &acme, A.server), (&GLOBEX, &globex, B.server)] {
        let client = scene.connect(node, tenant)?;
        ensure!(client.reaches(server));
        assert_eq!(scene.nodes_of(tenant)?, [WORKERS[alive].name]);
    }
    Ok(())
}
