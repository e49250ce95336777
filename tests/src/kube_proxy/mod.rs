//! kube-proxy's rules for NodePort Services of UDP with one endpoint each.
//!
//! Their shape is that of Kubernetes 1.34 with its defaults: external traffic
//! policy `Cluster`, which masquerades, and no session affinity. Left out is
//! what a kernel without accounting objects (`nfacct`) would not get either:
//! iptables' second rule a node port, for the node's own loopback. Hashes in
//! the names of chains are replaced by the port.

mod iptables;
mod nftables;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

pub use iptables::iptables;
pub use nftables::nftables;

use crate::node::Node;
use crate::region::{Family, Host};

/// A Service, known by its node port, and its one endpoint, which listens on
/// the same port.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub port: u16,
    pub endpoint: IpAddr,
}

impl Service {
    /// Port of the cluster address.
    const PORT: u16 = 51_820;

    fn name(self) -> String {
        format!("vpn/gateway-{}:wireguard", self.port)
    }

    fn cluster_address(self) -> IpAddr {
        match self.endpoint {
            IpAddr::V4(_) => {
                let first = u32::from(Ipv4Addr::new(10, 96, 0, 0));
                Ipv4Addr::from(first + u32::from(self.port)).into()
            }
            IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, self.port).into(),
        }
    }
}

impl Family {
    /// The pods' addresses.
    fn cluster(self) -> &'static str {
        match self {
            Self::V4 => "100.64.0.0/10",
            Self::V6 => "fd00:64::/30",
        }
    }

    /// The addresses of Services with a node port. No others: the cluster's
    /// remaining ones are servers of the lab, and rules drop what is for an
    /// address that no Service has.
    fn services(self) -> &'static str {
        match self {
            Self::V4 => "10.96.64.0/18",
            Self::V6 => "fd00:96::1:0/112",
        }
    }
}

/// What kube-proxy makes its rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
}

/// Gives a node the rules for these Services, in place of any there were, of
/// both families.
///
/// # Errors
///
/// When the kernel refuses them, with what was said.
pub fn lay(node: &Node, host: &Host, mode: Mode, services: &[Service]) -> Result<()> {
    clear(node)?;
    for family in Family::BOTH {
        let own = services.iter().copied();
        let own = own.filter(|service| Family::of(service.endpoint) == family);
        let (rules, command) = match (mode, family) {
            (Mode::Nftables, _) => (nftables(family.address(host).parse()?, own), "nft -f"),
            (Mode::Iptables, Family::V4) => (iptables(family, own), "iptables-nft-restore"),
            (Mode::Iptables, Family::V6) => (iptables(family, own), "ip6tables-nft-restore"),
        };
        let file = node.folder.join("kube-proxy.rules");
        std::fs::write(&file, rules)?;
        node.sh(&format!("{command} {}", file.display()))?;
    }
    Ok(())
}

/// Takes the rules away, and the flows that they made.
///
/// # Errors
///
/// When the kernel refuses.
pub fn clear(node: &Node) -> Result<()> {
    node.sh("for table in 'ip kube-proxy' 'ip6 kube-proxy' \
                      'ip nat' 'ip filter' 'ip6 nat' 'ip6 filter'; do
             ! nft list table $table >/dev/null 2>&1 || nft delete table $table
         done
         conntrack -F 2>/dev/null")
        .map(drop)
}
