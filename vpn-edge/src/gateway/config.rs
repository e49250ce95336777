//! What a gateway is made from.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::wireguard::{PrivateKey, PublicKey};

/// The configuration file: JSON, readable by root alone, as it holds a key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    pub tenant: Uuid,
    /// Of the tenant's keys. A gateway serves one generation.
    pub generation: u64,
    /// UDP port that WireGuard listens on: the tenant's own.
    pub port: u16,
    /// WireGuard interface to make.
    pub interface: String,
    /// Interface that leads out of the namespace.
    pub link: String,
    /// The gateway's addresses in the tunnel, at most one of each IP version,
    /// with the tunnel's prefix lengths.
    #[serde(alias = "address", deserialize_with = "one_or_more")]
    pub addresses: Vec<IpNet>,
    /// Of the tunnel; the link's without what WireGuard takes of it, where
    /// nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(with = "private_key")]
    pub private_key: PrivateKey,
    pub peers: Vec<Peer>,
    /// The tenant's DNS server, reachable besides `networks`.
    pub dns: IpAddr,
    /// What peers may reach.
    pub networks: Vec<IpNet>,
    /// Unix socket that tells the gateway's status.
    pub status: PathBuf,
    /// WireGuard takes packets from the edge alone. Without it, from anyone:
    /// for gateways that something else may lead to, such as a Service.
    #[serde(default = "yes")]
    pub only_edge: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub public_key: PublicKey,
    pub allowed_ips: Vec<IpNet>,
}

/// What WireGuard takes of a link's MTU over IPv6, the larger of the two.
pub const OVERHEAD: u32 = 80;

/// RFC 8200, section 5.
pub const LEAST_IPV6_MTU: u32 = 1280;

impl GatewayConfig {
    /// Whether the tunnel carries IPv6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|a| a.addr().is_ipv6())
    }

    /// Whether a gateway of this configuration becomes that of the other one by
    /// no more than new rules.
    #[must_use]
    pub fn is_same_gateway(&self, other: &Self) -> bool {
        let fixed = |config: &Self| {
            let Self {
                tenant,
                generation,
                port,
                mtu,
                only_edge,
                ..
            } = config;
            (*tenant, *generation, *port, *mtu, *only_edge)
        };
        fixed(self) == fixed(other)
            && self.interface == other.interface
            && self.link == other.link
            && self.addresses == other.addresses
            && self.private_key.as_bytes() == other.private_key.as_bytes()
            && self.peers == other.peers
            && self.status == other.status
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// When it is missing or not a configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let text = Zeroizing::new(
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        );
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no gateway configuration", path.display()))
    }

    /// Writes the file at `path`, mode 0600, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the folder does not take it.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let text = Zeroizing::new(serde_json::to_string(self)?);
        let unfinished = path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        fs::rename(unfinished, path)
    }
}

fn yes() -> bool {
    true
}

/// Earlier builds wrote the one address that there was, and gateways outlive
/// them.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Addresses {
        One(IpNet),
        More(Vec<IpNet>),
    }
    Ok(match Addresses::deserialize(from)? {
        Addresses::One(address) => vec![address],
        Addresses::More(addresses) => addresses,
    })
}

mod private_key {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use zeroize::Zeroizing;

    use crate::wireguard::PrivateKey;

    pub fn serialize<S: Serializer>(key: &PrivateKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&key.to_base64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PrivateKey, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        PrivateKey::from_base64(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an earlier build wrote it, byte for byte but for the key.
    const EARLIER: &str = r#"{"tenant":"6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44","generation":3,"port":31001,"interface":"wg31001","link":"eth0","address":"10.55.59.1/24","mtu":1420,"private_key":"dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=","peers":[{"public_key":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","allowed_ips":["10.55.59.2/32"]}],"dns":"10.96.0.10","networks":["10.97.1.0/24"],"status":"/run/vpn-edge/gateways/31001/status.sock"}"#;

    #[test]
    fn the_file_of_an_earlier_build_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, EARLIER).unwrap();
        for _ in 0..2 {
            let config = GatewayConfig::read(&path).unwrap();
            assert_eq!(config.addresses, ["10.55.59.1/24".parse().unwrap()]);
            assert_eq!(
                config.peers[0].allowed_ips,
                ["10.55.59.2/32".parse().unwrap()]
            );
            assert!(config.only_edge, "what was not said stays as it was");
            // And again as this build writes it.
            config.write(&path).unwrap();
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, EARLIER.replace("10.55.59.1/24", "here")).unwrap();
        assert!(GatewayConfig::read(&path).is_err());
    }
}
