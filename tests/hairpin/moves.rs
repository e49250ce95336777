//! The balancer turns to another edge, gateways move to other nodes, and nodes
//! die: what runs goes on, or comes back by itself.

use anyhow::{Context, Result, ensure};
use lab::edge::Edge;
use lab::region::{EDGES, PORTS, Region, WORKERS};
use lab::topology::A;
use lab::transfer::{Length, Transfer};

use crate::pings::Pings;
use crate::recoveries;
use crate::running::Running;

#[test]
fn a_session_that_the_balancer_moves_goes_on_without_a_handshake() -> Result<()> {
    const TIMES: usize = 6;
    let running = Running::new(&[])?;
    let region = running.region();
    let handshake = running.handshake()?;

    let pings = Pings::start(&region.client_a, A.server)?;
    for _ in 0..TIMES {
        let before = running.edge()?;
        region.balancer.rehash()?;
        pings.await_answers(20)?;
        ensure!(running.edge()? != before, "stayed with {before}");
    }
    let answers = pings.stop()?;
    recoveries::note("the balancer moves a session, 6 times", &answers);
    answers.lost_in_flight(TIMES)?;

    let length = Length::UntilFinished;
    let transfer = Transfer::start(&region.client_a, &region.cluster, A.server, length)?;
    for _ in 0..TIMES {
        transfer.await_progress(256 << 10)?;
        region.balancer.rehash()?;
    }
    transfer.await_progress(256 << 10)?;
    transfer.finish()?;
    ensure!(running.handshake()? == handshake, "a new handshake");
    for agent in &running.scene.agents {
        let row = &agent.ports()?[&running.row.port];
        ensure!(row["dropped"] == 0, "{row}");
    }
    Ok(())
}

/// Starts the second worker with the first one's tenants, as far as its
/// database has them, and tells the agents.
fn take_over(running: &Running) -> Result<Edge> {
    let region = running.region();
    let [from, to] = region.workers.each_ref().map(|node| &node.folder);
    // With what is in the write-ahead log.
    region.workers[1].sh(&format!(
        "for file in {}/vpn-edge.db*; do cp $file {}/; done",
        from.display(),
        to.display()
    ))?;
    let worker = region.standalone(1, &[("--ports", PORTS[0])])?;
    let port = running.row.port;
    worker
        .await_ports(|ports| ports.get(&port).is_some_and(|row| row["mode"] == "xdp"))
        .context("the gateway on the other worker")?;
    let mut row = running.row.clone();
    row.node = Some([WORKERS[1].v4, WORKERS[1].v6].map(str::to_owned).to_vec());
    running.scene.tell(&[row])?;
    Ok(worker)
}

#[test]
fn a_client_finds_a_gateway_that_moves_to_another_node() -> Result<()> {
    let mut running = Running::new(&[])?;
    let pings = Pings::start(&running.region().client_a, A.server)?;
    running.worker.stop()?;
    running.worker.vpn_edge(&["teardown"])?;
    let worker = take_over(&running)?;
    pings.await_answers(20)?;
    recoveries::note("a gateway moves with its keys", &pings.stop()?);
    ensure!(running.client.reaches(A.server));
    let row = &worker.ports()?[&running.row.port];
    ensure!(
        row["sessions"] != 0 && row["egress"]["packets"] != 0,
        "{row}"
    );
    // And nothing of it is left behind.
    let left = running.worker.node.sh("ip netns; ip -br link")?;
    ensure!(!left.contains("vpn-edge-"), "{left}");
    Ok(())
}

/// Ends all processes of ours on a worker, and its links, as a power cut would.
fn cut_power(running: &mut Running) -> Result<()> {
    let port = running.row.port;
    running.worker.kill()?;
    running.worker.node.sh(&format!(
        "kill -9 $(ip netns pids vpn-edge-{port})
         ip link set eth0 down; ip link set eth1 down; ip link set vpn-edge-{port} down"
    ))?;
    Ok(())
}

#[test]
fn a_client_comes_back_after_the_gateways_node_has_died() -> Result<()> {
    let mut running = Running::new(&[])?;
    let pings = Pings::start(&running.region().client_a, A.server)?;
    cut_power(&mut running)?;
    running.client.await_cut(A.server)?;
    let _worker = take_over(&running)?;
    pings.await_answers(20)?;
    recoveries::note("a gateway's node dies", &pings.stop()?);
    Ok(())
}

#[test]
fn a_session_outlives_the_edge_that_it_came_by() -> Result<()> {
    let mut running = Running::new(&[])?;
    let handshake = running.handshake()?;
    let dead = running.edge()?;
    let pings = Pings::start(&running.region().client_a, A.server)?;
    running.scene.agents[dead].kill()?;
    let region: &Region = running.region();
    region.edges[dead].sh("ip link set eth0 down")?;
    region.balancer.await_healthy(&[EDGES[1 - dead].name])?;
    pings.await_answers(20)?;
    recoveries::note("an edge dies", &pings.stop()?);
    ensure!(running.edge()? == 1 - dead, "still with the dead one");
    ensure!(running.handshake()? == handshake, "a new handshake");
    Ok(())
}
