//! The interface to what runs gateways: network namespaces or pods.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use async_trait::async_trait;
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::{GatewayState, TunnelDigest, TunnelSpec};

/// A desired gateway.
#[derive(Clone, Debug)]
pub struct GatewaySpec {
    pub tenant: Uuid,
    /// The tenant's namespace.
    pub namespace: String,
    pub tunnel: TunnelSpec,
}

/// An observed gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub tenant: Uuid,
    pub generation: u64,
    pub port: u16,
    /// The digest of its current tunnel.
    pub digest: TunnelDigest,
    pub state: GatewayState,
    /// Where to steer its packets once it is ready.
    pub location: Option<Location>,
}

impl Gateway {
    /// Whether this is the gateway of this spec, whose tunnel has this `digest`, with
    /// all settings up to date.
    #[must_use]
    pub fn matches(&self, spec: &GatewaySpec, digest: &TunnelDigest) -> bool {
        self.is_fixed_as(spec, digest) && self.digest.live == digest.live
    }

    /// The same, ignoring the settings that can be changed in place.
    #[must_use]
    pub fn is_fixed_as(&self, spec: &GatewaySpec, digest: &TunnelDigest) -> bool {
        self.tenant == spec.tenant
            && self.generation == spec.tunnel.fixed.generation
            && self.port == spec.tunnel.fixed.port
            && self.digest.fixed == digest.fixed
    }
}

/// Where a gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// On this node, behind its own link.
    Here(Link),
    /// On another node with these addresses.
    There(Addresses),
    /// On this node, but reachable only through its kernel: there is no link that
    /// programs can redirect to. Its port is left to the kernel like ports that are
    /// not the edge's.
    Kernel,
}

/// A gateway's link on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Host-side end of the gateway's veth.
    pub interface: String,
    pub ifindex: u32,
    pub gateway_mac: [u8; 6],
    pub addresses: Addresses,
    /// Whether the gateway's end receives frames that XDP redirects.
    pub takes_redirects: bool,
}

/// At most one address of each IP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

/// Creates, removes and lists gateways.
#[async_trait]
pub trait Gateways: Send + Sync + 'static {
    /// Creates the gateway, replacing any other on its port. A ready one with the
    /// same fixed part keeps running, with its sessions, and is updated in place.
    /// Returns once the gateway is started; [`Gateways::list`] has its state.
    ///
    /// # Errors
    ///
    /// If it cannot be started. What was created of it is removed.
    async fn ensure(&self, spec: &GatewaySpec) -> anyhow::Result<()>;

    /// Removes the gateway on `port`, if there is one, with everything that belongs
    /// to it.
    ///
    /// # Errors
    ///
    /// If a part of it could not be removed.
    async fn remove(&self, port: u16) -> anyhow::Result<()>;

    /// All existing gateways, including ones that nobody asks for.
    ///
    /// # Errors
    ///
    /// If they cannot be listed.
    async fn list(&self) -> anyhow::Result<Vec<Gateway>>;

    /// Tenants whose gateway runs with an outdated spec, and why it cannot be
    /// updated.
    fn apply_errors(&self) -> BTreeMap<Uuid, String> {
        BTreeMap::new()
    }

    /// A counter that grows with every change of [`Gateways::list`] and
    /// [`Gateways::late`].
    fn changes(&self) -> watch::Receiver<u64>;
}
