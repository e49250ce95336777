//! Edges that take each other for the gateway's node.

use anyhow::{Result, ensure};
use lab::agent::{Agent, Allocation};
use lab::client::Client;
use lab::region::{EDGES, Family, Host};
use lab::topology::A;

use crate::counts::Count;
use crate::running::{Running, drops};

/// How often one packet may be taken in: once from the client, and once for
/// each of the routers that it may still pass.
const TIMES: u64 = 17;

fn sum(agents: &[Agent], count: impl Fn(&Agent) -> Result<u64>) -> Result<u64> {
    agents.iter().map(count).sum()
}

#[test]
fn a_packet_that_goes_in_a_circle_comes_to_an_end() -> Result<()> {
    let running = Running::new(&[])?;
    let (region, agents) = (running.region(), &running.scene.agents);
    let port = running.row.port;
    let ingress = |agent: &Agent| {
        let packets = &agent.ports()?[&port]["ingress"]["packets"];
        Ok(serde_json::from_value(packets.clone())?)
    };
    let ended = |agent: &Agent| {
        let drops = drops(agent, port)?;
        Ok(drops.get("hop_limit").copied().unwrap_or_default())
    };
    let told = |node: &Host| Allocation {
        node: Some([node.v4, node.v6].map(str::to_owned).to_vec()),
        ..running.row.clone()
    };
    let sent = Count::new(
        &region.balancer.node,
        "sent",
        &format!("iifname client-a udp dport {port}"),
    )?;
    for family in Family::BOTH {
        region.names(&region.client_a, &[family])?;
        let client = Client::up(&region.client_a, &running.tenant.configuration)?;
        client.await_reach(A.server)?;

        agents[0].write(&[told(&EDGES[1])])?;
        agents[1].write(&[told(&EDGES[0])])?;
        client.await_cut(A.server)?;
        let before = (sum(agents, ingress)?, sum(agents, ended)?, sent.packets()?);
        for _ in 0..5 {
            ensure!(!client.reaches(A.server), "by what way?");
        }
        let after = (sum(agents, ingress)?, sum(agents, ended)?, sent.packets()?);
        let (seen, ended, sent) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        ensure!(sent >= 5, "the client sent {sent}");
        ensure!(seen > 2 * sent, "{seen} of {sent}: no circle");
        ensure!(seen <= TIMES * sent, "{seen} of {sent}: a storm");
        // Initiations end sooner: they are known again.
        ensure!(ended >= 5 && ended <= sent, "{ended} of {sent} ended");

        running.scene.tell(std::slice::from_ref(&running.row))?;
        client.await_reach(A.server)?;
        client.lose_nothing(A.server, 200, || Ok(()))?;
    }
    Ok(())
}
