//! Every way from a client to its gateway.

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::region::{EDGES, Family, Region, WORKERS};
use lab::topology::{A, B};
use serde_json::Value;

use crate::scene::{Scene, allocation};

#[test]
fn a_client_reaches_a_gateway_on_another_node_by_either_edge_and_ip_version() -> Result<()> {
    let region = Region::new()?;
    let worker = region.standalone(0, &[])?;
    let tenant = worker.enabled(&A)?;
    worker.await_state(&tenant.id, "enabled")?;
    let row = allocation(&worker, &tenant, Some(&WORKERS[0]))?;
    let scene = Scene::new(region, &[row])?;
    let region = &scene.region;
    for family in Family::BOTH {
        region.names(&region.client_a, &[family])?;
        region.balancer.pin(&[EDGES[0].name])?;
        let client = Client::up(&region.client_a, &tenant.configuration)?;
        client
            .await_reach(A.server)
            .with_context(|| format!("{family:?}"))?;
        ensure!(!client.reaches(B.server), "the gateway lets through all");
        for (edge, agent) in EDGES.iter().zip(&scene.agents) {
            region.balancer.pin(&[edge.name])?;
            client.await_reach(A.server)?;
            ensure!(region.balancer.targets_of(tenant.port)? == [edge.name]);
            client.lose_nothing(A.server, 500, || Ok(()))?;
            let row = &agent.ports()?[&tenant.port];
            ensure!(row["mode"] == "hop", "{row}");
        }
        // The worker knows whom it hears from: the edge of the handshake.
        let flows =
            worker.vpn_edge(&["flows", "--port", &tenant.port.to_string(), "-o", "json"])?;
        let flows: Vec<Value> = serde_json::from_str(&flows)?;
        let from = format!("{}:", bracketed(family.address(&EDGES[0])));
        let known = flows.iter().find(|flow| {
            let client = flow["client"].as_str().unwrap_or_default();
            client.starts_with(&from)
        });
        let known = known.with_context(|| format!("no flow of {from} {flows:#?}"))?;
        ensure!(known["edge_node"] == true, "{known}");
        let session = worker.tenant(&["session", &tenant.id])?;
        ensure!(session["connected"] == true, "{session}");
        ensure!(
            session["client"].is_null(),
            "an edge is no client: {session}"
        );
        client.down()?;
    }
    Ok(())
}

/// An address as it stands before a port.
fn bracketed(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}
