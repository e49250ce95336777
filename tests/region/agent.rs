//! `vpn-edge agent` on the edges, as the balancer sees it.

use anyhow::{Result, ensure};
use lab::agent::{Agent, Allocation};
use lab::region::{EDGES, Region, WORKERS};
use vpn_edge::wireguard::PrivateKey;

const BOTH: [&str; 2] = [EDGES[0].name, EDGES[1].name];

#[test]
fn agents_follow_their_file_and_drain_before_they_end() -> Result<()> {
    let region = Region::new()?;
    let key = PrivateKey::generate()?.public().to_string();
    let first = Allocation::new(31_000, &key, Some(&WORKERS[0]));
    let second = Allocation::new(31_001, &key, None);
    let [one, two] = &region.edges;
    let mut agents = [
        Agent::start(one, std::slice::from_ref(&first), &["--drain", "2"])?,
        Agent::start(two, std::slice::from_ref(&first), &[])?,
    ];
    region.balancer.await_healthy(&BOTH)?;
    for agent in &agents {
        agent.await_ports(|ports| ports.keys().eq(&[31_000]))?;
        agent.write(&[first.clone(), second.clone()])?;
        agent.await_ports(|ports| ports.keys().eq(&[31_000, 31_001]))?;
    }

    agents[0].terminate()?;
    agents[0].await_health(503)?;
    agents[0].stop()?;
    region.balancer.await_healthy(&[BOTH[1]])?;
    agents[1].kill()?;
    region.balancer.await_healthy(&[])?;
    ensure!(region.balancer.targets() == BOTH);

    agents[0].restart()?;
    region.balancer.await_healthy(&[BOTH[0]])?;
    agents[0].await_ports(|ports| ports.len() == 2)
}
