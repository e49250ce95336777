//! What a gateway is made from.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
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
    /// The gateway's address in the tunnel, with the tunnel's prefix length.
    pub address: Ipv4Net,
    pub mtu: u32,
    #[serde(with = "private_key")]
    pub private_key: PrivateKey,
    pub peers: Vec<Peer>,
    /// The tenant's DNS server, reachable besides `networks`.
    pub dns: Ipv4Addr,
    /// What peers may reach.
    pub networks: Vec<Ipv4Net>,
    /// Unix socket that tells the gateway's status.
    pub status: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub public_key: PublicKey,
    pub allowed_ips: Vec<Ipv4Net>,
}

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
