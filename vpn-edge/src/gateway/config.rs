//! A gateway's configuration.

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

use crate::domain::TunnelSpec;
use crate::domain::tunnel::{Fixed, Live, Peer};
use crate::wireguard::PrivateKey;

/// A gateway's configuration: its tunnel, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "File", into = "File")]
pub struct GatewayConfig {
    pub tenant: Uuid,
    pub tunnel: TunnelSpec,
    /// Name of the WireGuard interface to create.
    pub interface: String,
    /// Interface that leads out of the namespace.
    pub link: String,
    /// Unix socket on which the gateway reports its status.
    pub status: PathBuf,
    /// Whether WireGuard accepts packets only from the edge. False for gateways that
    /// are also reachable in other ways, such as by a Service.
    pub only_edge: bool,
}

/// The configuration file: JSON, readable by root only, because it contains a key.
///
/// Gateways outlive the version that created them, and the writer of the file may
/// have another version: new fields must be left out where they are not set.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tenant: Uuid,
    generation: u64,
    port: u16,
    interface: String,
    link: String,
    #[serde(alias = "address", deserialize_with = "one_or_more")]
    addresses: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(with = "private_key")]
    private_key: PrivateKey,
    peers: [Peer; 1],
    dns: IpAddr,
    networks: Vec<IpNet>,
    status: PathBuf,
    #[serde(default = "yes")]
    only_edge: bool,
}

impl From<GatewayConfig> for File {
    fn from(config: GatewayConfig) -> Self {
        let GatewayConfig {
            tenant,
            tunnel: TunnelSpec { fixed, live },
            interface,
            link,
            status,
            only_edge,
        } = config;
        let Fixed {
            port,
            generation,
            server_key,
            addresses,
            client,
            mtu,
        } = fixed;
        let Live { networks, dns } = live;
        Self {
            tenant,
            generation,
            port,
            interface,
            link,
            addresses,
            mtu,
            private_key: server_key,
            peers: [client],
            dns,
            networks,
            status,
            only_edge,
        }
    }
}

impl From<File> for GatewayConfig {
    fn from(file: File) -> Self {
        let File {
            tenant,
            generation,
            port,
            interface,
            link,
            addresses,
            mtu,
            private_key: server_key,
            peers: [client],
            dns,
            networks,
            status,
            only_edge,
        } = file;
        let fixed = Fixed {
            port,
            generation,
            server_key,
            addresses,
            client,
            mtu,
        };
        Self {
            tenant,
            tunnel: TunnelSpec {
                fixed,
                live: Live { networks, dns },
            },
            interface,
            link,
            status,
            only_edge,
        }
    }
}

/// WireGuard's overhead over IPv6, the larger one.
pub const OVERHEAD: u32 = 80;

/// RFC 8200, section 5.
pub const LEAST_IPV6_MTU: u32 = 1280;

impl GatewayConfig {
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
            .with_context(|| format!("{} is not a gateway configuration", path.display()))
    }

    /// Writes the file at `path` with mode 0600, completely or not at all.
    ///
    /// # Errors
    ///
    /// If the folder is not writable.
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

/// Earlier versions wrote a single address, and gateways outlive them.
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
            let fixed = &config.tunnel.fixed;
            assert_eq!(fixed.addresses, ["10.55.59.1/24".parse().unwrap()]);
            assert_eq!(fixed.client.allowed_ips, ["10.55.59.2/32".parse().unwrap()]);
            assert!(config.only_edge, "what was not said stays as it was");
            // And again as this build writes it.
            config.write(&path).unwrap();
        }
    }

    #[test]
    fn a_gateway_of_an_earlier_build_can_read_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, EARLIER).unwrap();
        let config = GatewayConfig::read(&path).unwrap();
        config.write(&path).unwrap();
        let written = fs::read_to_string(&path).unwrap();
        let earlier = EARLIER.replace(
            r#""address":"10.55.59.1/24""#,
            r#""addresses":["10.55.59.1/24"]"#,
        );
        let earlier = earlier.strip_suffix('}').unwrap();
        assert_eq!(written, format!(r#"{earlier},"only_edge":true}}"#));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, EARLIER.replace("10.55.59.1/24", "here")).unwrap();
        assert!(GatewayConfig::read(&path).is_err());
    }
}
