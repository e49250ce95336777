//! What every test begins with.

use anyhow::{Context, Result};
use lab::agent::{Agent, Allocation};
use lab::edge::{Edge, Tenant};
use lab::region::{EDGES, Host, Region};

/// Edges with agents, none of which has a gateway.
pub struct Scene {
    /// Before the nodes they run on.
    pub agents: Vec<Agent>,
    pub region: Region,
}

impl Scene {
    /// Starts agents on both edges, told of `allocations`, and waits until the
    /// balancer finds them healthy.
    pub fn new(region: Region, allocations: &[Allocation]) -> Result<Self> {
        let agents: Result<Vec<Agent>> = region
            .edges
            .iter()
            .map(|node| Agent::start(node, allocations, &[]))
            .collect();
        let scene = Self {
            agents: agents?,
            region,
        };
        scene
            .region
            .balancer
            .await_healthy(&EDGES.map(|host| host.name))?;
        Ok(scene)
    }

    /// Tells all agents.
    pub fn tell(&self, allocations: &[Allocation]) -> Result<()> {
        self.agents
            .iter()
            .try_for_each(|agent| agent.write(allocations))
    }
}

/// The tenant's row for the agents' file: its gateway is on `host`.
pub fn allocation(worker: &Edge, tenant: &Tenant, host: Option<&Host>) -> Result<Allocation> {
    let status = worker.tenant(&["status", &tenant.id])?;
    let key = status["server_public_key"].as_str().context("no key")?;
    let mut row = Allocation::new(tenant.port, key, host);
    row.tenant.clone_from(&tenant.id);
    row.generation = status["generation"].as_u64().context("no generation")?;
    Ok(row)
}
