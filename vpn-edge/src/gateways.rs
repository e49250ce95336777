//! The seam to whatever runs gateways: network namespaces here, pods there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use async_trait::async_trait;
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::{GatewayState, TunnelDigest, TunnelSpec};

/// A gateway as it is to be.
#[derive(Clone, Debug)]
pub struct GatewaySpec {
    pub tenant: Uuid,
    /// The tenant's own.
    pub namespace: String,
    pub tunnel: TunnelSpec,
}

/// A gateway as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub tenant: Uuid,
    pub generation: u64,
    pub port: u16,
    /// Of the tunnel that it has.
    pub digest: TunnelDigest,
    pub state: GatewayState,
    /// Where to steer its packets, once it is ready.
    pub location: Option<Location>,
}

impl Gateway {
    /// Whether it is the gateway of this spec, whose tunnel has this `digest`, with
    /// all that is set.
    #[must_use]
    pub fn matches(&self, spec: &GatewaySpec, digest: &TunnelDigest) -> bool {
        self.is_fixed_as(spec, digest) && self.digest.live == digest.live
    }

    /// The same but for what changes in place.
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
    /// On this node, behind a link of its own.
    Here(Link),
    /// On another node, which has these addresses.
    There(Addresses),
    /// On this node, where only its kernel can deliver: behind no link that
    /// programs can send by. Its port is left to the kernel, as every port that
    /// is none of the edge's.
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
    /// The gateway's end takes in frames that XDP redirects.
    pub takes_redirects: bool,
}

/// At most one address of each IP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

/// Makes, removes and finds gateways.
#[async_trait]
pub trait Gateways: Send + Sync + 'static {
    /// Makes the gateway, in place of any other on its port. One that is ready
    /// and has the same fixed part stays, with its sessions, and is updated in
    /// place. Returns once the gateway is started; [`Gateways::list`] says when
    /// it is ready.
    ///
    /// # Errors
    ///
    /// When it cannot be started; what was made of it is removed.
    async fn ensure(&self, spec: &GatewaySpec) -> anyhow::Result<()>;

    /// Ends the gateway on `port`, if there is one, and removes all it had.
    ///
    /// # Errors
    ///
    /// When something of it is left.
    async fn remove(&self, port: u16) -> anyhow::Result<()>;

    /// Every gateway there is, wanted or not.
    ///
    /// # Errors
    ///
    /// When they cannot be told.
    async fn list(&self) -> anyhow::Result<Vec<Gateway>>;

    /// The gateways that run otherwise than they are to, by tenant, with what
    /// keeps them from being brought up to date.
    fn late(&self) -> BTreeMap<Uuid, String> {
        BTreeMap::new()
    }

    /// A counter that grows with every change of [`Gateways::list`], and of
    /// what is late.
    fn changes(&self) -> watch::Receiver<u64>;
}
