//! The lab's network.
//!
//! ```text
//! client-a 192.0.2.2 ──┐
//!                      router ── 198.51.100.2 edge 10.200.0.1 ── cluster
//! client-b 192.0.2.6 ──┘         (uplink: eth0)                  10.96.0.10  DNS
//!                                                                10.97.1.1   tenant A's network
//!                                                                10.97.2.1   tenant B's network
//! ```

use anyhow::Result;

use crate::node::{Lab, Node};

/// Where clients find the edge.
pub const HOSTNAME: &str = "vpn.lab.test";
pub const EDGE: &str = "198.51.100.2";
pub const DNS: &str = "10.96.0.10";

/// One tenant's side of the network.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub organisation: &'static str,
    /// The client's own address.
    pub client: &'static str,
    /// What the tenant may reach.
    pub network: &'static str,
    /// A server in it.
    pub server: &'static str,
}

pub const A: Side = Side {
    organisation: "acme",
    client: "192.0.2.2",
    network: "10.97.1.0/24",
    server: "10.97.1.1",
};

pub const B: Side = Side {
    organisation: "globex",
    client: "192.0.2.6",
    network: "10.97.2.0/24",
    server: "10.97.2.1",
};

/// The nodes, wired and routed.
pub struct Topology {
    pub client_a: Node,
    pub client_b: Node,
    pub router: Node,
    pub edge: Node,
    pub cluster: Node,
    pub lab: Lab,
}

/// How the edge's uplink is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// A veth, which takes XDP natively.
    Veth,
    /// A bridge over it, which does not.
    Bridge,
}

impl Topology {
    /// Builds it.
    ///
    /// # Errors
    ///
    /// When a step fails, with what it said.
    pub fn new(uplink: Uplink) -> Result<Self> {
        let lab = Lab::new()?;
        let client_a = lab.node("client-a")?;
        let client_b = lab.node("client-b")?;
        let router = lab.node("router")?;
        let edge = lab.node("edge")?;
        let cluster = lab.node("cluster")?;

        client_a.link("eth0", &router, "client-a")?;
        client_b.link("eth0", &router, "client-b")?;
        edge.link("eth0", &router, "edge")?;
        edge.link("eth1", &cluster, "eth0")?;

        let address = |node: &Node, script: &str| node.sh(script).map(drop);
        address(
            &client_a,
            "ip addr add 192.0.2.2/30 dev eth0; ip route add default via 192.0.2.1",
        )?;
        address(
            &client_b,
            "ip addr add 192.0.2.6/30 dev eth0; ip route add default via 192.0.2.5",
        )?;
        address(
            &router,
            "ip addr add 192.0.2.1/30 dev client-a
             ip addr add 192.0.2.5/30 dev client-b
             ip addr add 198.51.100.1/24 dev edge
             echo 1 > /proc/sys/net/ipv4/ip_forward",
        )?;
        let port = match uplink {
            Uplink::Veth => "eth0",
            Uplink::Bridge => {
                address(
                    &edge,
                    "ip link add br0 type bridge forward_delay 0
                     ip link set eth0 master br0
                     ip link set br0 up",
                )?;
                "br0"
            }
        };
        address(
            &edge,
            &format!(
                "ip addr add {EDGE}/24 dev {port}
                 ip route add default via 198.51.100.1
                 ip addr add 10.200.0.1/30 dev eth1
                 ip route add 10.96.0.0/12 via 10.200.0.2
                 echo 1 > /proc/sys/net/ipv4/ip_forward"
            ),
        )?;
        address(
            &cluster,
            &format!(
                "ip addr add 10.200.0.2/30 dev eth0
                 ip route add default via 10.200.0.1
                 for address in {DNS} {} {}; do ip addr add $address/32 dev lo; done",
                A.server, B.server
            ),
        )?;
        for client in [&client_a, &client_b] {
            client.host(EDGE, HOSTNAME)?;
        }
        Ok(Self {
            client_a,
            client_b,
            router,
            edge,
            cluster,
            lab,
        })
    }
}
