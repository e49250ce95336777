//! A tenant's tunnel: all values that its gateway and its client's configuration are
//! made from.
//!
//! [`TunnelSpec::of`] is the only place that computes them. The controller passes the
//! value whole to what runs gateways, and compares it with running ones by its
//! [`TunnelDigest`]. Each setting is in one of two parts, depending on whether it can
//! be changed in place.

use std::net::IpAddr;

use blake2::{Blake2s256, Digest as _};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::subnet::{
    client_address, client_address6, gateway_address, gateway_address6, tunnel_subnet6,
};
use super::tenant::Tenant;
use crate::wireguard::{PrivateKey, PublicKey};

/// Settings of all tunnels of an installation.
#[derive(Clone, Debug)]
pub struct TunnelSettings {
    /// Networks that new tunnels' subnets must not overlap.
    pub cluster_ranges: Vec<IpNet>,
    pub dns: IpAddr,
    /// Whether tunnels carry IPv6.
    pub ipv6: bool,
    /// MTU of the tunnels. Default: what the MTU of the gateway's link leaves.
    pub mtu: Option<u32>,
}

/// A tenant's tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    pub fixed: Fixed,
    pub live: Live,
}

/// Constant for a gateway's life: a change means a new gateway and ends the sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// UDP port that WireGuard listens on: the tenant's port.
    pub port: u16,
    /// Generation of the keys.
    pub generation: u64,
    pub server_key: PrivateKey,
    /// The gateway's addresses in the tunnel, at most one of each IP version,
    /// with the tunnel's prefix lengths.
    pub addresses: Vec<IpNet>,
    /// The tenant's client. Its key is generated or provided together with the
    /// server's.
    pub client: Peer,
    pub mtu: Option<u32>,
}

/// Can be changed while the gateway runs; sessions continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Live {
    /// Networks that the tenant may reach.
    pub networks: Vec<IpNet>,
    /// The tenant's DNS server, reachable in addition to `networks`.
    pub dns: IpAddr,
}

/// A WireGuard peer of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub public_key: PublicKey,
    pub allowed_ips: Vec<IpNet>,
}

/// Short hashes of both parts, for places where no key may be stored, such as
/// annotations. The default is the digest of no tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelDigest {
    pub fixed: String,
    pub live: String,
}

impl TunnelSpec {
    /// The tunnel of a tenant that has a port and keys.
    #[must_use]
    pub fn of(tenant: &Tenant, settings: &TunnelSettings) -> Option<Self> {
        let allocation = tenant.vpn.allocation.as_ref()?;
        let subnet = allocation.subnet;
        let subnet6 = settings.ipv6.then(|| tunnel_subnet6(tenant.id));
        let address = Ipv4Net::new_assert(gateway_address(subnet), subnet.prefix_len());
        let address6 = subnet6.map(|subnet6| {
            IpNet::from(Ipv6Net::new_assert(
                gateway_address6(subnet6),
                subnet6.prefix_len(),
            ))
        });
        let client = IpNet::from(IpAddr::from(client_address(subnet)));
        let client6 = subnet6.map(|subnet6| IpAddr::from(client_address6(subnet6)).into());
        Some(Self {
            fixed: Fixed {
                port: allocation.port,
                generation: tenant.vpn.generation,
                server_key: allocation.keys.server.clone(),
                addresses: [address.into()].into_iter().chain(address6).collect(),
                client: Peer {
                    public_key: allocation.keys.client.public(),
                    allowed_ips: [client].into_iter().chain(client6).collect(),
                },
                mtu: settings.mtu,
            },
            live: Live {
                networks: tenant.networks.clone(),
                dns: settings.dns,
            },
        })
    }

    #[must_use]
    pub fn digest(&self) -> TunnelDigest {
        let Self { fixed, live } = self;
        TunnelDigest {
            fixed: fixed.digest(),
            live: live.digest(),
        }
    }
}

impl Fixed {
    /// The tunnel's subnets, at most one of each IP version.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.addresses.iter().map(IpNet::trunc)
    }

    /// The client's addresses with the tunnel's prefix lengths.
    pub fn client_addresses(&self) -> impl Iterator<Item = IpNet> {
        let addresses = self.client.allowed_ips.iter().map(IpNet::addr);
        let prefixes = self.addresses.iter().map(IpNet::prefix_len);
        addresses
            .zip(prefixes)
            .map(|(address, prefix)| IpNet::new_assert(address, prefix))
    }

    /// Whether the tunnel carries IPv6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|a| a.addr().is_ipv6())
    }

    /// Port and generation are compared separately and are not part of the digest.
    ///
    /// Running gateways are identified by this value, so it must not change for their
    /// settings: a setting added here may change it only where it is set.
    fn digest(&self) -> String {
        let Self {
            port: _,
            generation: _,
            server_key,
            addresses,
            client,
            mtu,
        } = self;
        digest(&(addresses, mtu, server_key.public(), [client]))
    }
}

impl Live {
    /// As for [`Fixed`], a field added here must be left out of the serialization
    /// where it is not set.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(self)
    }
}

/// A short digest of the value, to detect changes.
#[must_use]
pub fn digest(value: &impl Serialize) -> String {
    let text = serde_json::to_vec(value).expect("all that is digested is JSON");
    let hash = Blake2s256::digest(text);
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Allocation, Plan};
    use crate::wireguard::{ClientKey, Keys};

    fn settings() -> TunnelSettings {
        TunnelSettings {
            cluster_ranges: Vec::new(),
            dns: IpAddr::from([10, 96, 0, 10]),
            ipv6: true,
            mtu: Some(1420),
        }
    }

    fn tenant() -> Tenant {
        let id = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44"
            .parse::<Uuid>()
            .unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let mut tenant = Tenant::new(id, "acme".to_owned(), Plan::Business, now).unwrap();
        tenant.networks = vec!["10.97.1.0/24".parse().unwrap()];
        tenant.vpn.generation = 3;
        tenant.vpn.allocation = Some(Allocation {
            port: 31_001,
            subnet: "10.42.128.0/24".parse().unwrap(),
            keys: Keys {
                server: PrivateKey::from_bytes([7; 32]),
                client: ClientKey::Made(PrivateKey::from_bytes([9; 32])),
            },
            created_at: now,
        });
        tenant
    }

    fn texts(networks: impl Iterator<Item = IpNet>) -> Vec<String> {
        networks.map(|network| network.to_string()).collect()
    }

    #[test]
    fn the_gateway_is_one_and_the_client_two_of_the_subnets() {
        let fixed = TunnelSpec::of(&tenant(), &settings()).unwrap().fixed;
        assert_eq!(
            texts(fixed.addresses.iter().copied()),
            ["10.42.128.1/24", "fd78:181c:f4b0::1/64"]
        );
        assert_eq!(
            texts(fixed.client.allowed_ips.iter().copied()),
            ["10.42.128.2/32", "fd78:181c:f4b0::2/128"]
        );
        assert_eq!(
            texts(fixed.client_addresses()),
            ["10.42.128.2/24", "fd78:181c:f4b0::2/64"]
        );
        assert_eq!(
            texts(fixed.subnets()),
            ["10.42.128.0/24", "fd78:181c:f4b0::/64"]
        );
        assert!(fixed.has_ipv6());
    }

    #[test]
    fn without_ipv6_there_is_none_and_without_keys_no_tunnel() {
        let mut settings = settings();
        settings.ipv6 = false;
        let mut tenant = tenant();
        let fixed = TunnelSpec::of(&tenant, &settings).unwrap().fixed;
        assert_eq!(texts(fixed.client_addresses()), ["10.42.128.2/24"]);
        assert!(!fixed.has_ipv6());
        tenant.vpn.allocation = None;
        assert_eq!(TunnelSpec::of(&tenant, &settings), None);
    }

    #[test]
    fn ranges_that_are_reserved_later_move_no_tunnel() {
        let before = TunnelSpec::of(&tenant(), &settings());
        let mut settings = settings();
        settings.cluster_ranges = vec!["10.42.0.0/16".parse().unwrap()];
        assert_eq!(TunnelSpec::of(&tenant(), &settings), before);
    }

    /// What each change of a tunnel takes.
    #[test]
    fn each_setting_is_another_gateway_or_changes_in_place() {
        let before = TunnelSpec::of(&tenant(), &settings()).unwrap();
        let changed = |change: fn(&mut Tenant, &mut TunnelSettings)| {
            let (mut tenant, mut settings) = (tenant(), settings());
            change(&mut tenant, &mut settings);
            let (before, after) = (
                before.digest(),
                TunnelSpec::of(&tenant, &settings).unwrap().digest(),
            );
            (after.fixed != before.fixed, after.live != before.live)
        };
        let (gateway, in_place) = ((true, false), (false, true));
        assert_eq!(changed(|_, _| {}), (false, false));
        assert_eq!(changed(|_, settings| settings.mtu = None), gateway);
        assert_eq!(changed(|_, settings| settings.ipv6 = false), gateway);
        assert_eq!(
            changed(|tenant, _| {
                let allocation = tenant.vpn.allocation.as_mut().unwrap();
                allocation.subnet = "10.1.2.0/24".parse().unwrap();
            }),
            gateway
        );
        assert_eq!(
            changed(|tenant, _| {
                let allocation = tenant.vpn.allocation.as_mut().unwrap();
                allocation.keys.server = PrivateKey::from_bytes([8; 32]);
            }),
            gateway
        );
        assert_eq!(
            changed(|tenant, _| {
                let allocation = tenant.vpn.allocation.as_mut().unwrap();
                allocation.keys.client = ClientKey::Made(PrivateKey::from_bytes([8; 32]));
            }),
            gateway
        );
        assert_eq!(changed(|tenant, _| tenant.networks.clear()), in_place);
        assert_eq!(
            changed(|_, settings| settings.dns = IpAddr::from([10, 96, 0, 11])),
            in_place
        );
    }

    /// Gateways that run are known by it, and were made by earlier builds.
    #[test]
    fn the_digest_of_a_gateway_stays_what_it_was() {
        let mut settings = settings();
        (settings.ipv6, settings.mtu) = (false, None);
        let digest = TunnelSpec::of(&tenant(), &settings).unwrap().digest();
        assert_eq!(digest.fixed, "aa63efe80a1be5a0");
    }
}
