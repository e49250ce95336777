//! The machine of the standalone fixtures: who is on it, and its network.

use anyhow::{Context, Result};
use lab::client::Client;
use lab::edge::Edge;
use lab::node::Node;
use lab::topology::{A, Side, Topology, Uplink};
use serde_json::Value;

use crate::fixture::Fixture;

pub const NETWORK6: &str = "fd00:97:1::/64";
pub const SERVER6: &str = "fd00:97:1::1";

/// How `standalone` runs there.
pub const ARGUMENTS: [(&str, &str); 2] = [
    ("--tunnel-ipv6", ""),
    ("--allowed-ips", "10.96.0.0/12,fd00:96::/31"),
];

/// Tenants, by what is particular about them.
pub const MADE: &str = "00000001-0000-4000-8000-000000000000";
pub const GIVEN: &str = "00000002-0000-4000-8000-000000000000";
pub const DUAL_STACK: &str = "00000003-0000-4000-8000-000000000000";
pub const DISABLED: &str = "00000004-0000-4000-8000-000000000000";
pub const UNAVAILABLE: &str = "00000005-0000-4000-8000-000000000000";
pub const DELETED: &str = "00000006-0000-4000-8000-000000000000";
pub const FAILED: &str = "00000007-0000-4000-8000-000000000000";
pub const ENABLING: &str = "00000008-0000-4000-8000-000000000000";

/// Those that are there in the end.
pub const ALL: [&str; 7] = [
    MADE,
    GIVEN,
    DUAL_STACK,
    DISABLED,
    UNAVAILABLE,
    FAILED,
    ENABLING,
];

/// Of clients that bring their own key: what is in place of it in the
/// configuration, and the key.
pub const FILL_IN: &str = "<your private key>";
pub const OWN_KEY: &str = "clients/given.key";

/// The lab's network with IPv6 behind the edge.
pub fn topology() -> Result<Topology> {
    let topology = Topology::new(Uplink::Veth)?;
    topology
        .edge
        .sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         ip addr add fd00:200::1/64 dev eth1 nodad
         ip route add fd00:96::/31 via fd00:200::2")?;
    topology.cluster.sh(&format!(
        "ip addr add fd00:200::2/64 dev eth0 nodad
         ip route add default via fd00:200::1
         ip addr add {SERVER6}/128 dev lo nodad"
    ))?;
    Ok(topology)
}

/// The machine as the version left it, but for what does not outlive a reboot,
/// with this build's daemon started over it.
pub fn restore(fixture: &Fixture) -> Result<(Topology, Edge)> {
    let topology = topology()?;
    restore_files(fixture, &topology.edge)?;
    let edge = Edge::start(&topology, Uplink::Veth, &ARGUMENTS)?;
    Ok((topology, edge))
}

/// Puts the version's files where the daemon will look for them.
pub fn restore_files(fixture: &Fixture, node: &Node) -> Result<()> {
    for entry in std::fs::read_dir(fixture.path("standalone"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), node.folder.join(entry.file_name()))?;
    }
    // Git keeps no modes but one.
    node.sh(&format!("chmod 600 {}/*", node.folder.display()))?;
    Ok(())
}

/// A client with the configuration that it downloaded from that version.
pub fn client(fixture: &Fixture, name: &str, node: &Node, side: &Side) -> Result<Client> {
    let mut configuration = fixture.text(&format!("clients/{name}.conf"))?;
    if configuration.contains(FILL_IN) {
        let key = fixture.text(OWN_KEY)?;
        configuration = configuration.replace(FILL_IN, key.trim());
    }
    let client = Client::up(node, &configuration)?;
    client.await_reach(side.server).context(name.to_owned())?;
    Ok(client)
}

/// The tenants' states, by id, as the API tells them.
pub fn states(edge: &Edge) -> Result<Value> {
    let states = ALL.iter().map(|id| {
        let status = edge.tenant(&["status", id])?;
        Ok(((*id).to_owned(), status))
    });
    states
        .collect::<Result<serde_json::Map<_, _>>>()
        .map(Value::Object)
}

/// Waits until every tenant with a port has its gateway.
pub fn await_gateways(edge: &Edge) -> Result<()> {
    for id in ALL {
        if edge.tenant(&["status", id])?["port"].is_u64() {
            edge.await_state(id, "enabled")?;
        }
    }
    Ok(())
}

/// The tenant's side of the network; the others share that of the first.
pub const SIDE: Side = A;
