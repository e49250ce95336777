//! The ends of a gateway's tunnel, which are the same wherever it runs.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Peer;
use crate::domain::subnet::{client_address, client_address6, gateway_address, gateway_address6};
use crate::gateways::GatewaySpec;

/// The gateway's addresses in the tunnel, with its prefix lengths.
#[must_use]
pub fn addresses(spec: &GatewaySpec) -> Vec<IpNet> {
    let own = Ipv4Net::new_assert(gateway_address(spec.subnet), spec.subnet.prefix_len());
    let own6 = spec.subnet6.map(|subnet6| {
        let own6 = gateway_address6(subnet6);
        IpNet::from(Ipv6Net::new_assert(own6, subnet6.prefix_len()))
    });
    std::iter::once(own.into()).chain(own6).collect()
}

/// The client, with its addresses.
#[must_use]
pub fn client(spec: &GatewaySpec) -> Peer {
    let client = IpAddr::from(client_address(spec.subnet));
    let client6 = spec.subnet6.map(client_address6).map(IpAddr::from);
    Peer {
        public_key: spec.client,
        allowed_ips: [Some(client), client6]
            .into_iter()
            .flatten()
            .map(IpNet::from)
            .collect(),
    }
}
