//! `vpn-edge agent --node`: a cluster's resources become the port map.

mod outages;
mod scene;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use vpn_edge::cluster::VpnTenant;
use vpn_edge::datapath::{DEFAULT_ROOT, Reader};

use scene::{AGENT, EDGE, Scene, WORKER, tenant};

const PORT: u16 = 31_000;
const SECOND: u16 = 31_001;

#[test]
fn ports_open_move_and_close_as_the_cluster_says() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.agent.restart()?;
    ensure!(
        scene.agent.log().contains("uplinks=[\"eth0\"]"),
        "{}",
        scene.agent.log()
    );
    assert_eq!(scene.agent.health_said()?, "ok");
    scene.await_modes(&[])?;

    // Allocated, a gateway that starts, and one that answers.
    scene.enable(PORT, 1)?;
    scene.await_modes(&[(PORT, "closed")])?;
    scene.place(PORT, 1, WORKER, false)?;
    scene.enable(SECOND, 1)?;
    scene.await_modes(&[(PORT, "closed"), (SECOND, "closed")])?;
    scene.place(PORT, 1, WORKER, true)?;
    scene.await_modes(&[(PORT, "hop"), (SECOND, "closed")])?;

    // To this node, and back.
    scene.place(PORT, 1, EDGE, true)?;
    scene.await_modes(&[(PORT, "xdp"), (SECOND, "closed")])?;
    let row = scene.agent.ports()?.remove(&PORT).unwrap_or_default();
    ensure!(row.to_string().contains("cali1"), "{row}");
    scene.place(PORT, 1, WORKER, true)?;
    scene.await_modes(&[(PORT, "hop"), (SECOND, "closed")])?;

    // Other keys, whose gateway is not there yet.
    scene.enable(PORT, 2)?;
    scene.await_modes(&[(PORT, "closed"), (SECOND, "closed")])?;
    scene.place(PORT, 2, EDGE, true)?;
    scene.await_modes(&[(PORT, "xdp"), (SECOND, "closed")])?;

    // What is behind no link of this node is left to kube-proxy.
    scene.edge.sh(
        "ip link delete cali1; ip tuntap add cali1 mode tap; ip link set cali1 up
         ip route add 10.244.1.9 dev cali1",
    )?;
    scene.await_modes(&[(SECOND, "closed")])?;

    // Disabled: closed for as long as the gateway is there.
    scene.place(PORT, 2, WORKER, true)?;
    scene.await_modes(&[(PORT, "hop"), (SECOND, "closed")])?;
    scene.disable(PORT)?;
    scene.await_modes(&[(PORT, "closed"), (SECOND, "closed")])?;
    scene.remove(PORT)?;
    scene.await_modes(&[(SECOND, "closed")])?;
    scene.agent.stop()
}

#[test]
fn a_port_outside_the_range_is_left_to_the_node_whoever_asks_for_it() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.agent.restart()?;
    // What has gone wrong before this need not be known.
    const VXLAN: u16 = 8472;
    scene.enable(PORT, 1)?;
    scene.enable(VXLAN, 1)?;
    scene.place(VXLAN, 1, WORKER, true)?;
    scene.await_modes(&[(PORT, "closed")])?;
    let outside = |count: usize| {
        let line = format!("^vpn_edge_ports_outside_range {count}$");
        let ask = format!("curl -s 127.0.0.1:9096/metrics | grep -q '{line}'");
        scene.cluster.eventually("the metric", async || {
            Ok(scene.edge.sh(&ask).is_ok().then_some(()))
        })
    };
    outside(1)?;
    ensure!(
        scene
            .agent
            .log()
            .contains("the tenant's port is outside --ports"),
        "{}",
        scene.agent.log()
    );
    assert_eq!(scene.agent.health_said()?, "ok");
    scene.disable(VXLAN)?;
    outside(0)?;
    scene.await_modes(&[(PORT, "closed")])?;

    // An endpoint closes no port that the map does not know as its tenant's: its
    // port is what somebody's Service says.
    scene.enable(SECOND, 1)?;
    scene.await_modes(&[(PORT, "closed"), (SECOND, "closed")])?;
    scene.disable(SECOND)?;
    scene.await_modes(&[(PORT, "closed")])?;
    scene.place(SECOND, 1, WORKER, true)?;
    scene.place(PORT, 1, WORKER, true)?;
    scene.await_modes(&[(PORT, "hop")])?;
    scene.agent.stop()
}

#[test]
fn a_node_that_moves_is_followed_and_one_that_is_unknown_is_named() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.agent.restart()?;
    scene.enable(PORT, 1)?;
    scene.place(PORT, 1, "later", true)?;
    scene.await_modes(&[(PORT, "closed")])?;
    let later = scene.cluster.add_node("later", &[[192, 0, 2, 11].into()])?;
    scene.await_modes(&[(PORT, "hop")])?;
    let nodes: Api<Node> = Api::all(scene.cluster.client());
    let moved = Patch::Merge(json!({ "status": { "addresses": [
        { "type": "InternalIP", "address": "192.0.2.12" },
        { "type": "Hostname", "address": "later" },
    ] } }));
    let params = PatchParams::default();
    // Strategic merge would keep the old one.
    scene
        .cluster
        .run(nodes.patch_status("later", &params, &moved))?;
    scene
        .agent
        .await_ports(|ports| ports[&PORT].to_string().contains("192.0.2.12"))?;
    // The other nodes' addresses are those of edges, and this one's is not.
    let expected = [[192, 0, 2, 10], [192, 0, 2, 12]].map(IpAddr::from).into();
    let start = Instant::now();
    loop {
        let read = || Ok::<_, anyhow::Error>(Reader::open(Path::new(DEFAULT_ROOT))?.nodes()?);
        let nodes = scene.edge.inside(read);
        let nodes: BTreeSet<IpAddr> = nodes.join().expect("the thread does not panic")?;
        if nodes == expected {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "{nodes:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(later);
    scene.agent.stop()?;

    let server = [10, 255, 0, 1].into();
    let kubeconfig = scene.cluster.kubeconfig_for(AGENT, server)?;
    let mut wrong = lab::agent::Agent::in_cluster(&scene.edge, "nobody", &kubeconfig, &[])?;
    let check = wrong.check()?;
    let said = String::from_utf8_lossy(&check.stdout);
    ensure!(
        !check.status.success() && said.contains("the cluster has no node `nobody`"),
        "{said}"
    );
    wrong.launch()?;
    wrong.await_health(503)?;
    scene.await_said("the cluster has no node `nobody`")?;
    scene.await_modes(&[(PORT, "hop")])?;
    wrong.stop()
}

#[test]
fn the_agents_role_is_what_it_needs_and_no_more() -> Result<()> {
    let scene = Scene::new()?;
    scene.enable(PORT, 1)?;
    let client = scene.cluster.client_as(AGENT)?;
    let all: Api<VpnTenant> = Api::all(client.clone());
    assert_eq!(
        scene
            .cluster
            .run(all.list(&ListParams::default()))?
            .items
            .len(),
        1
    );
    let secrets: Api<Secret> = Api::all(client.clone());
    let secrets = scene.cluster.run(secrets.list(&ListParams::default()));
    ensure!(matches!(secrets, Err(kube::Error::Api(status)) if status.code == 403));
    let own: Api<VpnTenant> = Api::namespaced(client, &tenant(PORT));
    let patch = Patch::Merge(json!({ "status": { "port": 31_005 } }));
    let params = PatchParams::default();
    let patched = scene.cluster.run(own.patch_status("vpn", &params, &patch));
    ensure!(matches!(patched, Err(kube::Error::Api(status)) if status.code == 403));
    // Without a cluster there is nobody to be.
    let alone = scene.edge.command(lab::node::program("vpn-edge")?);
    let alone = scene.edge.output({
        let mut alone = alone;
        alone
            .args(["agent", "--node", EDGE])
            .env("KUBECONFIG", "/nowhere/kubeconfig");
        alone
    })?;
    let said = String::from_utf8_lossy(&alone.stderr);
    ensure!(
        !alone.status.success() && said.contains("set KUBECONFIG to a kubeconfig file"),
        "{said}"
    );

    // With them, the preflight finds nothing of the cluster to say.
    let check = scene.agent.check()?;
    let said = String::from_utf8_lossy(&check.stdout);
    ensure!(
        said.contains("errors: ") || said.contains("nothing found"),
        "{said}"
    );
    ensure!(
        !said.contains("[cluster]") && !said.contains("[uplink]"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_kube_event_becomes_a_map_entry_and_how_soon_is_told() -> Result<()> {
    const ROUNDS: usize = 20;
    let mut scene = Scene::new()?;
    scene.agent.restart()?;
    scene.enable(PORT, 1)?;
    scene.place(PORT, 1, WORKER, true)?;
    scene.await_modes(&[(PORT, "hop")])?;
    // By the agent's own count: from the notice of an event to the map.
    let metric = |name: &str| {
        let grep =
            format!("curl -s 127.0.0.1:9096/metrics | grep '^vpn_edge_{name} ' | cut -d' ' -f2");
        Ok::<f64, anyhow::Error>(scene.edge.sh(&grep)?.parse()?)
    };
    let before = (
        metric("sync_lag_seconds_sum")?,
        metric("sync_lag_seconds_count")?,
    );
    let mut written = Vec::new();
    for round in 0..ROUNDS {
        let (node, mode) = [(EDGE, "xdp"), (WORKER, "hop")][round % 2];
        let start = Instant::now();
        scene.place(PORT, 1, node, true)?;
        let accepted = start.elapsed();
        while scene.modes()?.get(&PORT).map(String::as_str) != Some(mode) {
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "{}",
                scene.agent.log()
            );
        }
        written.push((start.elapsed(), accepted));
    }
    written.sort_unstable();
    let (sum, count) = (
        metric("sync_lag_seconds_sum")? - before.0,
        metric("sync_lag_seconds_count")? - before.1,
    );
    println!(
        "from the request to the map entry: median {:?}, of which the API server took {:?}; \
         from the event to the map: {:.1} ms on average of {count}",
        written[ROUNDS / 2].0,
        written[ROUNDS / 2].1,
        sum / count * 1000.0
    );
    Ok(())
}
