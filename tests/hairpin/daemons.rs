//! Agents that drain, crash, start anew, or are told nonsense, under traffic.

use anyhow::{Result, ensure};
use lab::region::{EDGES, HEALTH_PORT};
use lab::topology::A;

use crate::pings::Pings;
use crate::recoveries;
use crate::running::Running;

const BOTH: [&str; 2] = [EDGES[0].name, EDGES[1].name];

#[test]
fn an_edge_that_drains_is_left_in_time() -> Result<()> {
    let mut running = Running::new(&["--drain", "3"])?;
    let handshake = running.handshake()?;
    let drained = running.edge()?;
    let others = [BOTH[1 - drained]];
    let pings = Pings::start(&running.region().client_a, A.server)?;
    running.scene.agents[drained].terminate()?;
    running.scene.agents[drained].await_health(503)?;
    running.region().balancer.await_healthy(&others)?;
    pings.await_answers(20)?;
    ensure!(
        running.edge()? == 1 - drained,
        "the balancer has not turned"
    );
    let answers = pings.stop()?;
    recoveries::note("an edge's agent is drained", &answers);
    answers.lost_in_flight(1)?;

    // Nobody is there to notice the end, nor would they.
    running.scene.agents[drained].stop()?;
    running.region().balancer.pin(&[BOTH[drained]])?;
    running.client.await_reach(A.server)?;
    running.client.lose_nothing(A.server, 500, || Ok(()))?;
    ensure!(running.edge()? == drained);
    ensure!(running.handshake()? == handshake, "a new handshake");
    Ok(())
}

#[test]
fn a_draining_edge_carries_on_until_it_is_left() -> Result<()> {
    let mut running = Running::new(&["--drain", "3"])?;
    // Whatever its health: as a balancer that is slow to notice.
    let edge = running.edge()?;
    running.region().balancer.pin(&[BOTH[edge]])?;
    running.client.await_reach(A.server)?;
    let Running { client, scene, .. } = &mut running;
    let agent = &mut scene.agents[edge];
    client.lose_nothing(A.server, 8000, || {
        agent.terminate()?;
        agent.await_health(503)?;
        agent.stop()
    })
}

#[test]
fn a_session_survives_an_edge_whose_health_flaps() -> Result<()> {
    const TIMES: usize = 4;
    let running = Running::new(&[])?;
    let handshake = running.handshake()?;
    let (region, edge) = (running.region(), running.edge()?);
    let (node, other) = (&region.edges[edge], [BOTH[1 - edge]]);
    let pings = Pings::start(&region.client_a, A.server)?;
    for _ in 0..TIMES {
        node.sh(&format!(
            "nft 'add table inet flap
                  add chain inet flap input {{ type filter hook input priority 0; }}
                  add rule inet flap input iifname eth0 tcp dport {HEALTH_PORT} \
                      reject with tcp reset'"
        ))?;
        region.balancer.await_healthy(&other)?;
        node.sh("nft delete table inet flap")?;
        region.balancer.await_healthy(&BOTH)?;
        // New flows and this one may be on either now.
        region.balancer.rehash()?;
    }
    pings.await_answers(20)?;
    let answers = pings.stop()?;
    recoveries::note("an edge's health flaps, 4 times", &answers);
    answers.lost_in_flight(2 * TIMES)?;
    ensure!(running.handshake()? == handshake, "a new handshake");
    Ok(())
}

#[test]
fn an_agent_that_crashes_or_is_replaced_goes_unseen() -> Result<()> {
    let mut running = Running::new(&[])?;
    let edge = running.edge()?;
    running.region().balancer.pin(&[BOTH[edge]])?;
    running.client.await_reach(A.server)?;
    let port = running.row.port;
    let Running { client, scene, .. } = &mut running;
    let agent = &mut scene.agents[edge];
    client.lose_nothing(A.server, 12_000, || {
        agent.kill()?;
        agent.restart()?;
        agent.stop()?;
        agent.restart()?;
        agent.await_ports(|ports| ports[&port]["mode"] == "hop")
    })
}

#[test]
fn a_file_that_says_nothing_changes_nothing() -> Result<()> {
    let mut running = Running::new(&[])?;
    let edge = running.edge()?;
    running.region().balancer.pin(&[BOTH[edge]])?;
    running.client.await_reach(A.server)?;
    let Running {
        client, scene, row, ..
    } = &mut running;
    let agent = &mut scene.agents[edge];
    client.lose_nothing(A.server, 8000, || {
        for garbage in ["", "{", "no list of anything", r#"{"allocations":[{}]}"#] {
            agent.write_text(garbage)?;
            agent.await_health(503)?;
            ensure!(agent.ports()?[&row.port]["mode"] == "hop");
            agent.write(std::slice::from_ref(row))?;
            agent.await_health(200)?;
        }
        Ok(())
    })?;
    // What comes next is followed as before.
    let mut closed = row.clone();
    closed.node = None;
    agent.write(&[closed])?;
    agent.await_ports(|ports| ports[&row.port]["mode"] == "closed")?;
    client.await_cut(A.server)
}
