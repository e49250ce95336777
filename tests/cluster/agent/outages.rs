use anyhow::{Result, ensure};
use lab::agent::Agent;

use super::scene::{EDGE, Scene, WORKER, plug};
use super::{PORT, SECOND};

const UP: &str = "curl -s 127.0.0.1:9096/metrics | grep -q '^vpn_edge_source_up ";

#[test]
fn without_an_api_server_all_goes_on_as_it_was() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.enable(PORT, 1)?;
    scene.place(PORT, 1, WORKER, true)?;
    scene.enable(SECOND, 1)?;
    scene.place(SECOND, 1, EDGE, true)?;
    scene.agent.restart()?;
    let open = [(PORT, "hop"), (SECOND, "xdp")];
    scene.await_modes(&open)?;
    scene.edge.await_sh(&format!("{UP}1'"))?;

    scene.cluster.stop_api_server();
    let said = scene.await_said("ok, with the last known state: watch of ")?;
    ensure!(scene.agent.health()? == 200, "{said}");
    scene.edge.await_sh(&format!("{UP}0'"))?;
    scene.await_modes(&open)?;

    // Its pod's link is the node's own matter, and followed.
    scene.edge.sh("ip link delete cali1")?;
    plug(&scene.edge, &scene.pod, "cali2")?;
    scene
        .agent
        .await_ports(|ports| ports[&SECOND]["interface"] == "cali2")?;

    // An agent that knows nothing changes nothing, and says so.
    for end in [Agent::kill, Agent::stop] {
        end(&mut scene.agent)?;
        scene.await_modes(&open)?;
        scene.agent.launch()?;
        scene.agent.await_health(503)?;
        scene.await_said("not listed yet: watch of ")?;
        scene.await_modes(&open)?;
    }
    let check = scene.agent.check()?;
    let said = String::from_utf8_lossy(&check.stdout);
    ensure!(
        said.contains("[cluster]") && !check.status.success(),
        "{said}"
    );

    scene.cluster.start_api_server()?;
    scene.place(PORT, 1, EDGE, false)?;
    scene.await_modes(&[(PORT, "closed"), (SECOND, "xdp")])?;
    scene.agent.await_health(200)?;
    scene
        .cluster
        .eventually("nothing is wrong any more", async || {
            Ok((scene.agent.health_said()? == "ok").then_some(()))
        })?;
    scene.edge.await_sh(&format!("{UP}1'"))
}

#[test]
fn what_changed_while_the_watch_was_away_is_caught_up_with() -> Result<()> {
    let mut scene = Scene::new()?;
    for port in [PORT, SECOND] {
        scene.enable(port, 1)?;
        scene.place(port, 1, WORKER, true)?;
    }
    scene.agent.restart()?;
    scene.await_modes(&[(PORT, "hop"), (SECOND, "hop")])?;

    scene.cluster.stop_api_server();
    scene.await_said("has been failing for ")?;
    scene.cluster.node().sh("ip link set edge down")?;
    scene.cluster.start_api_server()?;
    scene.disable(PORT)?;
    scene.remove(PORT)?;
    scene.enable(SECOND, 2)?;
    scene.place(SECOND, 2, EDGE, true)?;
    scene.enable(31_002, 1)?;
    // One that remembers nothing of these changes refuses to go on from before
    // them, as one that is asked too late does.
    scene.cluster.stop_api_server();
    scene.cluster.start_api_server()?;
    scene.await_modes(&[(PORT, "hop"), (SECOND, "hop")])?;
    scene.cluster.node().sh("ip link set edge up")?;

    scene.await_modes(&[(SECOND, "xdp"), (31_002, "closed")])?;
    let log = scene.agent.log();
    ensure!(log.contains("watch expired"), "{log}");
    scene
        .cluster
        .eventually("nothing is wrong any more", async || {
            Ok((scene.agent.health_said()? == "ok").then_some(()))
        })
}
