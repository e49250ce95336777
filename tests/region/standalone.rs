//! `vpn-edge standalone` on the workers, behind the balancer.

use anyhow::{Result, ensure};
use lab::client::Client;
use lab::region::{Family, Region, WORKERS};
use lab::topology::{A, B};

#[test]
fn the_balancer_brings_clients_to_the_worker_that_has_their_gateway() -> Result<()> {
    let region = Region::balancing(&WORKERS)?;
    let workers = [region.standalone(0, &[])?, region.standalone(1, &[])?];
    region
        .balancer
        .await_healthy(&WORKERS.map(|host| host.name))?;

    let sides = [A, B];
    let clients = [&region.client_a, &region.client_b];
    for worker in [0, 1] {
        region.balancer.pin(&[WORKERS[worker].name])?;
        let tenant = workers[worker].enabled(&sides[worker])?;
        workers[worker].await_state(&tenant.id, "enabled")?;
        region.names(clients[worker], &[Family::V4])?;
        let client = Client::up(clients[worker], &tenant.configuration)?;
        client.await_reach(sides[worker].server)?;
        client.lose_nothing(sides[worker].server, 500, || Ok(()))?;

        // The balancer keeps the client's address.
        let namespace = format!("vpn-edge-{}", tenant.port);
        let endpoints = workers[worker].node.sh(&format!(
            "ip netns exec {namespace} wg show wg{} endpoints",
            tenant.port
        ))?;
        let address = sides[worker].client;
        ensure!(endpoints.contains(address), "{endpoints}, not {address}");
        ensure!(region.balancer.targets_of(tenant.port)? == [WORKERS[worker].name]);
        client.down()?;
    }
    Ok(())
}
