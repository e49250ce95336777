//! A gateway made by hand: no registry, no controller, no agent.
//!
//! `vpn-edge gateway` in a node of its own, joined to a worker by a veth and
//! known to all other nodes by a route, as a pod would be. Packets reach it as
//! the nodes' kernels bring them, e.g. by kube-proxy's rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use vpn_edge::domain::TunnelSpec;
use vpn_edge::domain::tunnel::{Fixed, Live, Peer};
use vpn_edge::gateway::GatewayConfig;
use vpn_edge::wireguard::{ClientConfig, Keys};

use crate::kube_proxy::Service;
use crate::node::{Node, Process, program};
use crate::region::{Region, WORKERS};
use crate::topology::{DNS, Side};

/// The tunnel's addresses: the gateway's and its client's.
const TUNNEL: [&str; 2] = ["10.42.128.1/24", "10.42.128.2/24"];
const CLIENT: &str = "10.42.128.2/32";

pub struct ByHand {
    pub node: Node,
    pub port: u16,
    /// Where WireGuard listens.
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    keys: Keys,
    side: Side,
    process: Process,
}

impl ByHand {
    /// Starts a gateway for `side` behind a worker, and waits until it is
    /// ready.
    ///
    /// # Errors
    ///
    /// When a step fails, with what it said.
    pub fn start(region: &Region, worker: usize, port: u16, side: Side) -> Result<Self> {
        let node = region.lab.node(&format!("gateway-{port}"))?;
        // Not of those that `vpn-edge standalone` on the workers gives out.
        let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 66, 0, 0)) + u32::from(port));
        let v6 = Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, port);
        wire(region, worker, &node, port, [v4.into(), v6.into()])?;

        let keys = Keys::generate()?;
        let config = configuration(&node, port, &keys, &side)?;
        let path = node.folder.join("gateway.json");
        config.write(&path)?;
        let mut command = node.command(program("vpn-edge")?);
        command.args(["gateway", "--config"]).arg(&path);
        let process = node.start("gateway", command)?;
        node.await_sh(&format!("ss -Hlnu 'sport = :{port}' | grep -q ."))
            .with_context(|| format!("the gateway:\n{}", process.log()))?;
        Ok(Self {
            node,
            port,
            v4,
            v6,
            keys,
            side,
            process,
        })
    }

    /// The client's configuration; `host` is a name, an IPv4 address, or an
    /// IPv6 address in brackets.
    ///
    /// # Errors
    ///
    /// None, unless the constants here are wrong.
    pub fn configuration(&self, host: &str) -> Result<String> {
        let config = ClientConfig {
            key: self.keys.client.clone(),
            addresses: vec![TUNNEL[1].parse()?],
            dns: DNS.parse()?,
            server_public_key: self.keys.server.public(),
            allowed_ips: vec![format!("{DNS}/32").parse()?, self.side.network.parse()?],
            endpoint: format!("{host}:{}", self.port),
        };
        Ok(config.render().to_string())
    }

    /// The gateway's, as an allocation has it.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.keys.server.public().to_string()
    }

    /// The gateway as the endpoint of a Service, one of each family.
    #[must_use]
    pub fn services(&self) -> [Service; 2] {
        [IpAddr::from(self.v4), self.v6.into()].map(|endpoint| Service {
            port: self.port,
            endpoint,
        })
    }

    /// The client's address and port as the gateway sees them.
    ///
    /// # Errors
    ///
    /// When the gateway does not run.
    pub fn endpoint(&self) -> Result<String> {
        self.node.sh("wg show wg0 endpoints | cut -f 2")
    }

    /// What the gateway printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// What the gateway is told. All that knows its fields is here.
fn configuration(node: &Node, port: u16, keys: &Keys, side: &Side) -> Result<GatewayConfig> {
    let status: PathBuf = node.folder.join("status.sock");
    Ok(GatewayConfig {
        tenant: "7c9e6679-7425-40de-944b-e07fc1f90ae7".parse()?,
        tunnel: TunnelSpec {
            fixed: Fixed {
                port,
                generation: 1,
                server_key: keys.server.clone(),
                addresses: vec![TUNNEL[0].parse()?],
                client: Peer {
                    public_key: keys.client.public(),
                    allowed_ips: vec![CLIENT.parse()?],
                },
                mtu: Some(1420),
            },
            live: Live {
                networks: vec![side.network.parse()?],
                dns: DNS.parse()?,
            },
        },
        interface: "wg0".into(),
        link: "eth0".into(),
        status,
        only_edge: false,
    })
}

/// Joins the gateway to its worker as network plugins do: an address of its
/// own, a route on every node, and nothing to ask neighbours for.
fn wire(
    region: &Region,
    worker: usize,
    node: &Node,
    port: u16,
    [v4, v6]: [IpAddr; 2],
) -> Result<()> {
    let near = "02:66:00:00:00:01";
    let host = &region.workers[worker];
    let far = format!("byhand-{port}");
    node.link("eth0", host, &far)?;
    let own = node.sh("cat /sys/class/net/eth0/address")?;
    host.sh(&format!(
        "ip link set {far} address {near}
         ip route add {v4} dev {far}; ip neigh add {v4} lladdr {own} dev {far} nud permanent
         ip route add {v6} dev {far}; ip neigh add {v6} lladdr {own} dev {far} nud permanent"
    ))?;
    node.sh(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
         ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad
         ip neigh add 169.254.1.1 lladdr {near} dev eth0 nud permanent
         ip neigh add fe80::1 lladdr {near} dev eth0 nud permanent
         ip route add default via 169.254.1.1 dev eth0 onlink
         ip route add default via fe80::1 dev eth0 onlink"
    ))?;
    for (other, node) in region.hosts() {
        if other != WORKERS[worker] {
            let via = WORKERS[worker];
            node.sh(&format!(
                "ip route add {v4} via {}; ip route add {v6} via {}",
                via.v4, via.v6
            ))?;
        }
    }
    let number = worker + 1;
    region.cluster.sh(&format!(
        "ip route add {v4} via 10.200.{number}.1; ip route add {v6} via fd00:200:{number}::1"
    ))?;
    Ok(())
}
