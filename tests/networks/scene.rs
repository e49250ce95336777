//! What the tests begin with, and ask.

use anyhow::{Context, Result, ensure};
use lab::agent::{Agent, Allocation};
use lab::client::{Client, INTERFACE};
use lab::edge::{Edge, Tenant};
use lab::node::Node;
use lab::region::{EDGES, Region, WORKERS};
use lab::topology::{A, HOSTNAME, Topology, Uplink};
use serde_json::Value;

/// The edge and client A of the small topology in IPv6.
pub const EDGE6: &str = "2001:db8:100::2";
pub const CLIENT6: &str = "2001:db8:a::2";

/// The small topology with IPv6 outside.
pub fn small(uplink: Uplink) -> Result<Topology> {
    let topology = Topology::new(uplink)?;
    let port = match uplink {
        Uplink::Veth => "eth0",
        Uplink::Bridge => "br0",
    };
    topology.client_a.sh(&format!(
        "ip addr add {CLIENT6}/64 dev eth0 nodad; ip route add default via 2001:db8:a::1"
    ))?;
    topology
        .router
        .sh("sysctl -qw net.ipv6.conf.all.forwarding=1
         ip addr add 2001:db8:a::1/64 dev client-a nodad
         ip addr add 2001:db8:100::1/64 dev edge nodad")?;
    topology.edge.sh(&format!(
        "sysctl -qw net.ipv6.conf.all.forwarding=1
         ip addr add {EDGE6}/64 dev {port} nodad
         ip route add default via 2001:db8:100::1"
    ))?;
    Ok(topology)
}

/// A tenant's gateway on a worker, and an edge that sends on to it. Clients name
/// the edge itself and not the balancer, which is a router to them.
pub struct Hairpin {
    /// These before the nodes they run on.
    pub agent: Agent,
    pub worker: Edge,
    pub tenant: Tenant,
    pub region: Region,
}

impl Hairpin {
    /// With the node of the first edge as `prepare` leaves it, and more
    /// arguments for its agent.
    pub fn new(prepare: impl FnOnce(&Region) -> Result<()>, more: &[&str]) -> Result<Self> {
        let region = Region::new()?;
        prepare(&region)?;
        let worker = region.standalone(0, &[])?;
        let tenant = worker.enabled(&A)?;
        worker.await_state(&tenant.id, "enabled")?;
        let status = worker.tenant(&["status", &tenant.id])?;
        let key = status["server_public_key"].as_str().context("no key")?;
        let mut row = Allocation::new(tenant.port, key, Some(&WORKERS[0]));
        row.tenant.clone_from(&tenant.id);
        row.generation = status["generation"].as_u64().context("no generation")?;
        let agent = Agent::start(&region.edges[0], std::slice::from_ref(&row), more)?;
        let scene = Self {
            agent,
            worker,
            tenant,
            region,
        };
        scene.await_neighbours()?;
        Ok(scene)
    }

    /// Client A, which sends to `address`, and has reached its server.
    pub fn client(&self, address: &str) -> Result<Client> {
        let configuration = naming(&self.tenant.configuration, address);
        let client = Client::up(&self.region.client_a, &configuration)?;
        client.await_reach(A.server)?;
        Ok(client)
    }

    /// The port as the edge has it.
    pub fn port(&self) -> Result<Value> {
        let mut ports = self.agent.ports()?;
        ports.remove(&self.tenant.port).context("no such port")
    }

    /// Runs the script in the gateway.
    pub fn in_gateway(&self, script: &str) -> Result<String> {
        in_gateway(&self.worker.node, self.tenant.port, script)
    }

    /// Has client A send to `address` from now on.
    pub fn turn_to(&self, address: &str) -> Result<()> {
        let client = &self.region.client_a;
        turn_to(client, self.tenant.port, address)
    }

    /// Waits until the edge knows the way to the gateway's node.
    pub fn await_neighbours(&self) -> Result<()> {
        let [edge, _] = &self.region.edges;
        [WORKERS[0].v4, WORKERS[0].v6]
            .iter()
            .try_for_each(|node| edge.await_sh(&format!("ip neigh show {node} | grep -q lladdr")))
    }
}

/// The first edge's addresses.
pub const HOPS: [&str; 2] = [EDGES[0].v4, EDGES[0].v6];

/// An address as it stands before a port.
pub fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// The configuration with an address instead of the name.
pub fn naming(configuration: &str, address: &str) -> String {
    configuration.replace(HOSTNAME, &bracketed(address))
}

/// Has the client send to `address` from now on.
pub fn turn_to(client: &Node, port: u16, address: &str) -> Result<()> {
    let peer = client.sh(&format!("wg show {INTERFACE} peers"))?;
    let address = bracketed(address);
    client.sh(&format!(
        "wg set {INTERFACE} peer {peer} endpoint {address}:{port}"
    ))?;
    Ok(())
}

/// Runs the script in the namespace of the port's gateway.
pub fn in_gateway(node: &Node, port: u16, script: &str) -> Result<String> {
    node.sh(&format!("ip netns exec vpn-edge-{port} sh -ec '{script}'"))
}

/// The client's address and port as the gateway has them.
pub fn endpoint(node: &Node, port: u16) -> Result<String> {
    in_gateway(
        node,
        port,
        &format!("wg show wg{port} endpoints | cut -f 2"),
    )
}

/// A number of a port.
pub fn number(row: &Value, path: &str) -> Result<u64> {
    let value = row.pointer(path).and_then(Value::as_u64);
    value.with_context(|| format!("no {path}: {row}"))
}

/// Packets of the port that were dropped for the reason.
pub fn dropped(row: &Value, reason: &str) -> u64 {
    row["drops"][reason].as_u64().unwrap_or_default()
}

/// Sends `megabytes` in TCP from the cluster to the client.
pub fn download(client: &Node, cluster: &Node, megabytes: u32) -> Result<()> {
    bulk(client, cluster, &format!("-n {megabytes}M --reverse"))
}

/// A bulk transfer between the client and tenant A's server.
pub fn bulk(client: &Node, cluster: &Node, arguments: &str) -> Result<()> {
    let mut server = cluster.command("timeout");
    server.args(["50", "iperf3", "-s", "-1", "-B", A.server]);
    let _server = cluster.start("iperf3", server)?;
    let listens = format!("ss -Hltn 'src {}:5201' | grep -q .", A.server);
    cluster.await_sh(&listens)?;
    client.sh(&format!("timeout 40 iperf3 -c {} {arguments}", A.server))?;
    // Or the next one could meet this server.
    cluster.await_sh(&format!("! {{ {listens}; }}"))
}

/// Fails unless something grew by `least`.
pub fn grew(what: &str, before: u64, after: u64, least: u64) -> Result<()> {
    ensure!(after >= before + least, "{what}: {before}, then {after}");
    Ok(())
}
