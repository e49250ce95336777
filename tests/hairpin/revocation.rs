//! What is cut off at the gateway's node is cut off, whatever edges know yet.

use anyhow::{Result, ensure};
use lab::client::Client;
use lab::region::{EDGES, WORKERS};
use lab::topology::A;

use crate::running::{Running, drops};
use crate::scene::allocation;

#[test]
fn a_disabled_tenant_is_cut_off_before_edges_are_told() -> Result<()> {
    let running = Running::new(&[])?;
    let (region, port) = (running.region(), running.row.port);
    running.worker.tenant(&["disable", &running.tenant.id])?;
    running.client.await_cut(A.server)?;
    for agent in &running.scene.agents {
        ensure!(agent.ports()?[&port]["mode"] == "hop", "told by whom?");
    }

    running.scene.tell(&[])?;
    for (edge, agent) in EDGES.iter().zip(&running.scene.agents) {
        agent.await_ports(|ports| !ports.contains_key(&port))?;
        region.balancer.pin(&[edge.name])?;
        ensure!(!running.client.reaches(A.server));
    }

    // Enabled again, it has other keys.
    let worker = &running.worker;
    worker.tenant(&["enable", &running.tenant.id])?;
    worker.await_state(&running.tenant.id, "enabled")?;
    let mut tenant = running.tenant;
    tenant.configuration = worker.configuration(&tenant.id)?;
    let status = worker.tenant(&["status", &tenant.id])?;
    tenant.port = serde_json::from_value(status["port"].clone())?;
    let row = allocation(worker, &tenant, Some(&WORKERS[0]))?;
    ensure!(row.generation > running.row.generation);
    running.scene.tell(&[row])?;
    let client = Client::up(&running.scene.region.client_a, &tenant.configuration)?;
    client.await_reach(A.server)
}

#[test]
fn after_a_rotation_the_old_configuration_never_comes_through() -> Result<()> {
    let mut running = Running::new(&[])?;
    let (id, port) = (running.tenant.id.clone(), running.row.port);
    let old = running.tenant.configuration.clone();
    running.worker.tenant(&["regenerate", &id])?;
    running.worker.await_state(&id, "enabled")?;
    running.client.await_cut(A.server)?;
    running.tenant.configuration = running.worker.configuration(&id)?;
    ensure!(running.tenant.configuration != old);

    // Edges that have not heard hold to the old key.
    running.region().balancer.pin(&[EDGES[0].name])?;
    let node = &running.scene.region.client_a;
    let client = Client::up(node, &running.tenant.configuration)?;
    ensure!(!client.reaches(A.server), "by whose word?");
    let before = drops(&running.scene.agents[0], port)?;
    ensure!(
        before.get("mac1").is_some_and(|count| *count > 0),
        "{before:?}"
    );

    let row = allocation(&running.worker, &running.tenant, Some(&WORKERS[0]))?;
    ensure!(row.generation > running.row.generation);
    running.scene.tell(&[row])?;
    client.await_reach(A.server)?;

    for (edge, agent) in EDGES.iter().zip(&running.scene.agents) {
        running.scene.region.balancer.pin(&[edge.name])?;
        let before = drops(agent, port)?.get("mac1").copied().unwrap_or_default();
        let client = Client::up(node, &old)?;
        for _ in 0..3 {
            ensure!(!client.reaches(A.server), "the old one comes through");
        }
        let after = drops(agent, port)?.get("mac1").copied().unwrap_or_default();
        ensure!(after > before, "it did not come to {}", edge.name);
        let client = Client::up(node, &running.tenant.configuration)?;
        client.await_reach(A.server)?;
    }
    Ok(())
}
