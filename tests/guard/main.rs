//! What the guard keeps out and what it must not: strangers, clients that move,
//! and whatever is restarted or lost meanwhile. Real WireGuard at both ends.

mod bypass;
mod floods;
mod forger;
mod gate;
mod plans;
mod restarts;
mod revocation;
mod roaming;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use lab::client::{Client, INTERFACE};
use lab::edge::{Edge, Tenant};
use lab::node::Node;
use lab::topology::{A, B, Side, Topology, Uplink};
use serde_json::Value;
use vpn_edge::datapath::{DEFAULT_ROOT, Reader};
use vpn_edge_common::Counters;

/// An edge, and a client of each tenant with its tunnel up.
struct Scene {
    edge: Edge,
    a: User,
    b: User,
    topology: Topology,
}

/// A tenant with its client.
struct User {
    client: Client,
    tenant: Tenant,
    node: Node,
    side: Side,
}

impl Scene {
    fn new(uplink: Uplink) -> Result<Self> {
        let topology = Topology::new(uplink)?;
        let edge = Edge::start(&topology, uplink, &[])?;
        let a = User::connect(&edge, edge.enabled(&A)?, &topology.client_a, A)?;
        let b = User::connect(&edge, edge.enabled(&B)?, &topology.client_b, B)?;
        Ok(Self {
            edge,
            a,
            b,
            topology,
        })
    }
}

impl User {
    fn connect(edge: &Edge, tenant: Tenant, node: &Node, side: Side) -> Result<Self> {
        edge.await_state(&tenant.id, "enabled")?;
        let client = Client::up(node, &tenant.configuration)?;
        client.await_reach(side.server)?;
        Ok(Self {
            client,
            tenant,
            node: node.clone(),
            side,
        })
    }

    fn reaches(&self) -> bool {
        self.client.reaches(self.side.server)
    }

    fn await_reach(&self) -> Result<()> {
        self.client.await_reach(self.side.server)
    }

    /// When the client's session began.
    fn handshake(&self) -> Result<String> {
        self.node
            .sh(&format!("wg show {INTERFACE} latest-handshakes"))
    }
}

/// The port's drops by reason, as an operator sees them.
fn drops(edge: &Edge, port: u16) -> Result<BTreeMap<String, u64>> {
    let shown = edge.vpn_edge(&["ports", "--port", &port.to_string(), "-o", "json"])?;
    let shown: Value = serde_json::from_str(&shown)?;
    Ok(serde_json::from_value(shown[0]["drops"].clone())?)
}

/// Drops that came between two looks.
fn between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    after
        .iter()
        .map(|(reason, count)| {
            let before = before.get(reason).copied().unwrap_or_default();
            (reason.clone(), count - before)
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Works on the pinned maps of the edge.
fn on_maps<T: Send + 'static>(
    edge: &Edge,
    work: impl FnOnce(&Reader) -> Result<T> + Send + 'static,
) -> Result<T> {
    let inside = edge
        .node
        .inside(move || work(&Reader::open(Path::new(DEFAULT_ROOT))?));
    inside.join().expect("the thread does not panic")
}

/// The port's counters, those among them that are not for operators.
fn counters(edge: &Edge, port: u16) -> Result<Counters> {
    on_maps(edge, move |maps| {
        let allocation = maps.allocation(port).context("the port is not allocated")?;
        Ok(maps.counters(allocation.slot)?)
    })
}
