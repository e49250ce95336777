//! A client that is connected through the edges to a gateway on a worker.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use lab::agent::{Agent, Allocation};
use lab::client::{Client, INTERFACE};
use lab::edge::{Edge, Tenant};
use lab::node::Node;
use lab::region::{EDGES, Family, Region, WORKERS};
use lab::topology::A;

use crate::scene::{Scene, allocation};

pub struct Running {
    pub client: Client,
    pub tenant: Tenant,
    /// As the agents are told.
    pub row: Allocation,
    /// On the first worker.
    pub worker: Edge,
    pub scene: Scene,
}

impl Running {
    /// Tenant A's client reaches its server by IPv4 to the balancer. Agents are
    /// started with `more` arguments.
    pub fn new(more: &[&str]) -> Result<Self> {
        let region = Region::new()?;
        let worker = region.standalone(0, &[])?;
        let tenant = worker.enabled(&A)?;
        worker.await_state(&tenant.id, "enabled")?;
        let row = allocation(&worker, &tenant, Some(&WORKERS[0]))?;
        let agents: Result<Vec<Agent>> = region
            .edges
            .iter()
            .map(|node| Agent::start(node, std::slice::from_ref(&row), more))
            .collect();
        let scene = Scene {
            agents: agents?,
            region,
        };
        let region = &scene.region;
        region
            .balancer
            .await_healthy(&EDGES.map(|host| host.name))?;
        region.names(&region.client_a, &[Family::V4])?;
        let client = Client::up(&region.client_a, &tenant.configuration)?;
        client.await_reach(A.server)?;
        Ok(Self {
            client,
            tenant,
            row,
            worker,
            scene,
        })
    }

    pub fn region(&self) -> &Region {
        &self.scene.region
    }

    /// When the client's last handshake was.
    pub fn handshake(&self) -> Result<String> {
        handshake(&self.region().client_a)
    }

    /// Which of the edges the client's flow is on.
    pub fn edge(&self) -> Result<usize> {
        let names = self.region().balancer.targets_of(self.row.port)?;
        ensure!(names.len() == 1, "the flow is on {names:?}");
        let found = EDGES.iter().position(|host| host.name == names[0]);
        found.context("no edge")
    }

    /// Where the gateway sends its answers.
    pub fn endpoint(&self) -> Result<String> {
        endpoint(&self.worker.node, self.row.port)
    }
}

/// When the last handshake was of the client on `node`.
pub fn handshake(node: &Node) -> Result<String> {
    node.sh(&format!("wg show {INTERFACE} latest-handshakes"))
}

/// Where the gateway that `standalone` has made on `worker` sends its answers.
pub fn endpoint(worker: &Node, port: u16) -> Result<String> {
    worker.sh(&format!(
        "ip netns exec vpn-edge-{port} wg show wg{port} endpoints | cut -f 2"
    ))
}

/// The port's drops by reason on an edge, those that occurred.
pub fn drops(agent: &Agent, port: u16) -> Result<BTreeMap<String, u64>> {
    let shown = agent.vpn_edge(&["ports", "--port", &port.to_string(), "-o", "json"])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    Ok(serde_json::from_value(shown[0]["drops"].clone())?)
}

/// Addresses and ports of the clients that an edge knows of the tenant on
/// `port`.
pub fn clients(agent: &Agent, port: u16) -> Result<BTreeSet<String>> {
    let flows = agent.flows()?;
    let of_port = flows.iter().filter(|flow| flow["port"] == port);
    of_port
        .map(|flow| {
            ensure!(flow["edge_node"] == false, "{flow}");
            let client = flow["client"].as_str().context("no client")?;
            Ok(client.to_owned())
        })
        .collect()
}
