//! A tenant's tunnel, and what it leads to.

use std::net::IpAddr;

use anyhow::Result;
use uuid::Uuid;
use vpn_edge::domain::TunnelSpec;
use vpn_edge::domain::tunnel::{Fixed, Live, Peer};
use vpn_edge::gateways::GatewaySpec;
use vpn_edge::wireguard::PrivateKey;

pub const SERVER: &str = "10.97.1.1";
pub const OTHER_SERVER: &str = "10.98.1.1";

/// The keys of the tenant's client.
fn client_key() -> PrivateKey {
    PrivateKey::from_bytes([9; 32])
}

/// The tenant's gateway; each generation has keys of its own.
pub fn spec(generation: u64, networks: &[&str]) -> Result<GatewaySpec> {
    let networks = networks.iter().map(|network| network.parse());
    Ok(GatewaySpec {
        tenant: Uuid::from_u128(7),
        namespace: "tenant-acme".into(),
        tunnel: TunnelSpec {
            fixed: Fixed {
                port: 31_001,
                generation,
                server_key: PrivateKey::from_bytes([u8::try_from(generation)?; 32]),
                addresses: vec!["10.42.128.1/24".parse()?],
                client: Peer {
                    public_key: client_key().public(),
                    allowed_ips: vec!["10.42.128.2/32".parse()?],
                },
                mtu: None,
            },
            live: Live {
                networks: networks.collect::<Result<_, _>>()?,
                dns: IpAddr::from([10, 96, 0, 10]),
            },
        },
    })
}

/// As the tenant downloads it, but for where the gateway is.
pub fn configuration(spec: &GatewaySpec, address: &str) -> String {
    let fixed = &spec.tunnel.fixed;
    let (own, server) = (client_key().to_base64(), fixed.server_key.public());
    let own = &*own;
    format!(
        "[Interface]
PrivateKey = {own}
Address = 10.42.128.2/32

[Peer]
PublicKey = {server}
AllowedIPs = 10.97.0.0/16, 10.98.0.0/16
Endpoint = {address}:{}
",
        fixed.port
    )
}
