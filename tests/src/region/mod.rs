//! The larger network: a load balancer before the edges, and workers behind.
//!
//! ```text
//! client-a 192.0.2.2 2001:db8:a::2 ──┐
//!                                    balancer ── front (a bridge)
//! client-b 192.0.2.6 2001:db8:b::2 ──┘            198.51.100.0/24, 2001:db8:100::/64
//!                                                 │ eth0
//!                    edge-1 .11 ──┬── edge-2 .12 ─┴── worker-1 .21 ──┬── worker-2 .22
//!                                                        eth1 └── cluster ──┘ eth1
//! ```
//!
//! The balancer has [`VIP`] and [`VIP6`], which are what [`HOSTNAME`] stands
//! for, and keeps clients' addresses: it is every node's default route, so that
//! replies go back through it. The cluster has the DNS server and the tenants'
//! servers of the smaller topology, and an IPv6 address beside each.

mod balancer;
mod health;
mod rules;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use vpn_edge::datapath::{Ready, ready_gateway_end};

pub use balancer::Balancer;
pub use health::{HEALTH_PORT, StandIn, health};
pub use rules::Flow;

use crate::edge::Edge;
use crate::node::{Lab, Node};
use crate::topology::{A, B, DNS, HOSTNAME};

/// Where clients find the balancer.
pub const VIP: &str = "203.0.113.10";
pub const VIP6: &str = "2001:db8:f::10";

/// The cluster's IPv6 side: its DNS server, and tenants A's and B's servers.
pub const DNS6: &str = "fd00:96::10";
pub const SERVERS6: [&str; 2] = ["fd00:97:1::1", "fd00:97:2::1"];

/// A machine on the front network, by its `eth0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub name: &'static str,
    pub v4: &'static str,
    pub v6: &'static str,
}

pub const EDGES: [Host; 2] = [
    host("edge-1", "198.51.100.11", "2001:db8:100::11"),
    host("edge-2", "198.51.100.12", "2001:db8:100::12"),
];

pub const WORKERS: [Host; 2] = [
    host("worker-1", "198.51.100.21", "2001:db8:100::21"),
    host("worker-2", "198.51.100.22", "2001:db8:100::22"),
];

const fn host(name: &'static str, v4: &'static str, v6: &'static str) -> Host {
    Host { name, v4, v6 }
}

/// Of gateways on each worker, which the cluster routes back to it.
pub const GATEWAYS: [&str; 2] = ["100.64.0.0/16", "100.65.0.0/16"];
pub const GATEWAYS6: [&str; 2] = ["fd00:64::/64", "fd00:65::/64"];

/// Ports that `vpn-edge standalone` on each worker has to give out.
pub const PORTS: [&str; 2] = ["30000-31499", "31500-32767"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The balancer's address.
    #[must_use]
    pub fn vip(self) -> &'static str {
        match self {
            Self::V4 => VIP,
            Self::V6 => VIP6,
        }
    }

    /// The host's address.
    #[must_use]
    pub fn address(self, host: &Host) -> &'static str {
        match self {
            Self::V4 => host.v4,
            Self::V6 => host.v6,
        }
    }

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// The nodes, wired and routed. Nothing of ours runs on them yet.
pub struct Region {
    /// Ends before the nodes do.
    pub balancer: Balancer,
    pub client_a: Node,
    pub client_b: Node,
    /// The switch: its ports are named as the nodes behind them.
    pub front: Node,
    /// As [`EDGES`].
    pub edges: [Node; 2],
    /// As [`WORKERS`].
    pub workers: [Node; 2],
    pub cluster: Node,
    /// What makes the switch's ports take in frames.
    _ports: Vec<Ready>,
    pub lab: Lab,
}

impl Region {
    /// Builds it. The balancer sends to [`EDGES`].
    ///
    /// # Errors
    ///
    /// When a step fails, with what it said.
    pub fn new() -> Result<Self> {
        Self::balancing(&EDGES)
    }

    /// Builds it with other `targets` for the balancer, out of [`EDGES`] and
    /// [`WORKERS`].
    ///
    /// # Errors
    ///
    /// As [`Region::new`].
    pub fn balancing(targets: &[Host]) -> Result<Self> {
        let lab = Lab::new()?;
        let [client_a, client_b, balancer, front, cluster] =
            ["client-a", "client-b", "balancer", "front", "cluster"].map(|name| lab.node(name));
        let (client_a, client_b) = (client_a?, client_b?);
        let (balancer, front, cluster) = (balancer?, front?, cluster?);
        let edges = [lab.node(EDGES[0].name)?, lab.node(EDGES[1].name)?];
        let workers = [lab.node(WORKERS[0].name)?, lab.node(WORKERS[1].name)?];

        switch(&front)?;
        let mut ports = vec![plug(&front, &balancer)?];
        balancer.sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip addr add 198.51.100.1/24 dev eth0
             ip addr add 2001:db8:100::1/64 dev eth0 nodad",
        )?;
        let clients = [
            (&client_a, "192.0.2", 1, "2001:db8:a"),
            (&client_b, "192.0.2", 5, "2001:db8:b"),
        ];
        for (client, net, gateway, net6) in clients {
            let port = &client.name;
            client.link("eth0", &balancer, port)?;
            balancer.sh(&format!(
                "ip addr add {net}.{gateway}/30 dev {port}
                 ip addr add {net6}::1/64 dev {port} nodad"
            ))?;
            client.sh(&format!(
                "ip addr add {net}.{own}/30 dev eth0; ip route add default via {net}.{gateway}
                 ip addr add {net6}::2/64 dev eth0 nodad; ip route add default via {net6}::1",
                own = gateway + 1,
            ))?;
        }
        for (host, node) in EDGES
            .iter()
            .chain(&WORKERS)
            .zip(edges.iter().chain(&workers))
        {
            ports.push(plug(&front, node)?);
            node.sh(&format!(
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
                 ip addr add {}/24 dev eth0; ip route add default via 198.51.100.1
                 ip addr add {}/64 dev eth0 nodad; ip route add default via 2001:db8:100::1",
                host.v4, host.v6
            ))?;
        }
        for (worker, node) in workers.iter().enumerate() {
            wire(node, worker, &cluster)?;
        }
        cluster.sh(&format!(
            "ip route add default via 10.200.1.1; ip route add default via fd00:200:1::1
             for address in {DNS} {} {}; do ip addr add $address/32 dev lo; done
             for address in {DNS6} {} {}; do ip addr add $address/128 dev lo nodad; done",
            A.server, B.server, SERVERS6[0], SERVERS6[1]
        ))?;

        let region = Self {
            balancer: Balancer::start(&balancer, targets)?,
            client_a,
            client_b,
            front,
            edges,
            workers,
            cluster,
            _ports: ports,
            lab,
        };
        for client in [&region.client_a, &region.client_b] {
            region.names(client, &Family::BOTH)?;
        }
        Ok(region)
    }

    /// Lets [`HOSTNAME`] stand for the balancer's addresses of these families
    /// alone on `client`.
    ///
    /// # Errors
    ///
    /// When the hosts file cannot be written.
    pub fn names(&self, client: &Node, families: &[Family]) -> Result<()> {
        let names = families
            .iter()
            .map(|family| format!("{} {HOSTNAME}\n", family.vip()));
        let hosts = "127.0.0.1 localhost\n".to_owned() + &names.collect::<String>();
        // In place: the file is bind-mounted.
        Ok(std::fs::write(client.folder.join("hosts"), hosts)?)
    }

    /// All nodes on the front network, with their addresses.
    pub fn hosts(&self) -> impl Iterator<Item = (Host, &Node)> {
        let nodes = self.edges.iter().chain(&self.workers);
        EDGES.into_iter().chain(WORKERS).zip(nodes)
    }

    /// Starts `vpn-edge standalone` on a worker, with ports and gateways'
    /// addresses that the other worker does not use, told of [`EDGES`], and with
    /// its health check open to the balancer.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn standalone(&self, worker: usize, more: &[(&str, &str)]) -> Result<Edge> {
        let health = format!("0.0.0.0:{HEALTH_PORT}");
        let edges = EDGES
            .map(|edge| format!("{},{}", edge.v4, edge.v6))
            .join(",");
        let own = [
            ("--ports", PORTS[worker]),
            ("--gateway-range", GATEWAYS[worker]),
            ("--edge-node", &edges),
            ("--health", &health),
        ];
        Edge::on(&self.workers[worker], "eth0", &[&own, more].concat())
    }

    /// Frames that the switch could not take in from the node, or not hand it.
    ///
    /// # Errors
    ///
    /// When there is no such port.
    pub fn lost_at(&self, node: &Node) -> Result<u64> {
        let port = &node.name;
        let counters = self.front.sh(&format!(
            "cd /sys/class/net/{port}/statistics; cat rx_dropped rx_errors tx_dropped tx_errors"
        ))?;
        let counters = counters.lines().map(str::parse);
        let counters: Vec<u64> = counters.collect::<Result<_, _>>().context("no numbers")?;
        ensure!(counters.len() == 4, "{counters:?}");
        Ok(counters.iter().sum())
    }
}

/// Makes the node a switch, and nothing else: no rules see what it forwards.
fn switch(node: &Node) -> Result<()> {
    node.sh(
        "ip link add br0 type bridge forward_delay 0 mcast_snooping 0
         ip link set br0 up
         if [ -e /proc/sys/net/bridge ]; then
             sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
         fi",
    )
    .map(drop)
}

/// Joins a node's `eth0` to the switch, for as long as what is given back is
/// kept.
///
/// A veth hands on what an XDP program of its own sends back (`XDP_TX`) only if
/// the other end has a program too. With GRO alone the frames wait there until
/// something else is sent, or for ever, once its ring is full.
fn plug(front: &Node, node: &Node) -> Result<Ready> {
    let port = node.name.clone();
    node.link("eth0", front, &port)?;
    front.sh(&format!(
        "ethtool -K {port} gro on; ip link set dev {port} master br0"
    ))?;
    let ready = front.inside(move || Ok(ready_gateway_end(&port)?));
    ready.join().expect("the thread does not panic")
}

/// Joins a worker's `eth1` to the cluster.
fn wire(node: &Node, worker: usize, cluster: &Node) -> Result<()> {
    let number = worker + 1;
    let far = format!("eth{worker}");
    node.link("eth1", cluster, &far)?;
    node.sh(&format!(
        "ip addr add 10.200.{number}.1/30 dev eth1
         ip addr add fd00:200:{number}::1/64 dev eth1 nodad
         ip route add 10.96.0.0/12 via 10.200.{number}.2
         ip route add fd00:96::/32 via fd00:200:{number}::2
         ip route add fd00:97::/32 via fd00:200:{number}::2"
    ))?;
    cluster.sh(&format!(
        "ip addr add 10.200.{number}.2/30 dev {far}
         ip addr add fd00:200:{number}::2/64 dev {far} nodad
         ip route add {} via 10.200.{number}.1
         ip route add {} via fd00:200:{number}::1",
        GATEWAYS[worker], GATEWAYS6[worker]
    ))?;
    Ok(())
}
