//! The WireGuard device: the kernel's, or a userspace one in this process.
//!
//! Both are configured through wireguard-control, by the same code.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gotatun::device::uapi::UapiServer;
use gotatun::device::{DefaultDeviceTransports, DeviceBuilder};
use netlink_packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec, LinkWireguard};
use wireguard_control::{Backend, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder};

use super::{GatewayConfig, LEAST_IPV6_MTU, OVERHEAD};
use crate::netlink;

/// Maximum packet size of the userspace device: its buffers have 4096 bytes,
/// including WireGuard's overhead.
const USERSPACE_MTU: u32 = 4000;

/// A configured and answering device.
pub enum Device {
    Kernel,
    Userspace(Box<gotatun::device::Device<DefaultDeviceTransports>>),
}

impl Device {
    /// Creates and configures the device, brings it up, and reads it back.
    pub async fn create(config: &GatewayConfig) -> Result<Self> {
        let handle = netlink::connect()?;
        remove_link(&handle, &config.interface).await?;
        let link = LinkWireguard::new(&config.interface).build();
        let device = match handle.link().add(link).execute().await {
            Ok(()) => Self::Kernel,
            Err(error) => {
                tracing::info!("no kernel WireGuard; using the userspace implementation: {error}");
                let uapi = UapiServer::default_unix_socket(&config.interface, None, None)
                    .map_err(|error| anyhow::anyhow!("{error:#}"))?;
                let device = DeviceBuilder::new()
                    .with_default_udp()
                    .create_tun(&config.interface)?
                    .with_uapi(uapi)
                    .build()
                    .await?;
                Self::Userspace(Box::new(device))
            }
        };
        device.configure(config).await?;
        let index = netlink::index(&handle, &config.interface).await?;
        let mtu = match config.tunnel.fixed.mtu {
            Some(mtu) => mtu,
            None => within(&handle, config).await?,
        };
        let mtu = match device {
            Self::Kernel => mtu,
            Self::Userspace(_) => mtu.min(USERSPACE_MTU),
        };
        let link = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        handle.link().set(link).execute().await?;
        for address in &config.tunnel.fixed.addresses {
            handle
                .address()
                .add(index, address.addr(), address.prefix_len())
                .replace()
                .execute()
                .await
                .with_context(|| format!("cannot use the address {address}"))?;
        }
        device.check(config).await?;
        Ok(device)
    }

    /// Which implementation it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace(_) => "userspace",
        }
    }

    /// Resolves when the device has failed permanently; the kernel's does not.
    pub async fn failed(&mut self) {
        match self {
            Self::Kernel => std::future::pending().await,
            Self::Userspace(device) => device.wait().await,
        }
    }

    /// Removes the device. Errors are logged only, because the namespace is removed
    /// next.
    pub async fn remove(self, config: &GatewayConfig) {
        if let Self::Userspace(device) = self {
            device.stop().await;
            let _ = fs::remove_file(socket(&config.interface));
        }
        let removed = match netlink::connect() {
            Ok(handle) => remove_link(&handle, &config.interface).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = removed {
            tracing::warn!("cannot remove {}: {error:#}", config.interface);
        }
    }

    fn backend(&self) -> Backend {
        match self {
            Self::Kernel => Backend::Kernel,
            Self::Userspace(_) => Backend::Userspace,
        }
    }

    async fn configure(&self, config: &GatewayConfig) -> Result<()> {
        let name: InterfaceName = config.interface.parse()?;
        let backend = self.backend();
        let fixed = &config.tunnel.fixed;
        let key = Key(*fixed.server_key.as_bytes());
        let port = fixed.port;
        // Key and port are set first and separately: the userspace device accepts
        // peers only once it has a key, and may still hold the port for a moment when
        // the same one is set again.
        let identity = move || {
            let update = || {
                DeviceUpdate::new()
                    .set_private_key(key.clone())
                    .set_listen_port(port)
                    .apply(&name, backend)
            };
            update().or_else(|_| {
                std::thread::sleep(Duration::from_millis(50));
                update()
            })
        };
        tokio::task::spawn_blocking(identity)
            .await?
            .with_context(|| format!("cannot set key and port {port}"))?;

        let name: InterfaceName = config.interface.parse()?;
        let client = &fixed.client;
        let mut peer =
            PeerConfigBuilder::new(&Key(*client.public_key.as_bytes())).replace_allowed_ips();
        for network in &client.allowed_ips {
            peer = peer.add_allowed_ip(network.addr(), network.prefix_len());
        }
        let update = DeviceUpdate::new().add_peer(peer);
        tokio::task::spawn_blocking(move || update.apply(&name, backend))
            .await?
            .context("cannot set peers")
    }

    /// Checks that the device has the expected configuration.
    async fn check(&self, config: &GatewayConfig) -> Result<()> {
        let name: InterfaceName = config.interface.parse()?;
        let backend = self.backend();
        let found =
            tokio::task::spawn_blocking(move || wireguard_control::Device::get(&name, backend))
                .await?
                .context("the device does not answer")?;
        let fixed = &config.tunnel.fixed;
        let public = Key(*fixed.server_key.public().as_bytes());
        ensure!(
            found.listen_port == Some(fixed.port)
                && found.public_key == Some(public)
                && found.peers.len() == 1,
            "the device did not take its configuration"
        );
        Ok(())
    }
}

/// The tunnel's MTU, derived from the link's.
async fn within(handle: &Handle, config: &GatewayConfig) -> Result<u32> {
    let link = netlink::find(handle, &config.link).await?;
    let link = link.with_context(|| format!("no interface `{}`", config.link))?;
    let mtu = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    let outer = mtu.with_context(|| format!("{} has no MTU", config.link))?;
    let mtu = outer.saturating_sub(OVERHEAD);
    ensure!(
        !config.tunnel.fixed.has_ipv6() || mtu >= LEAST_IPV6_MTU,
        "IPv6 in the tunnel needs a link MTU of {} or more, but that of {} is {outer}",
        OVERHEAD + LEAST_IPV6_MTU,
        config.link
    );
    Ok(mtu)
}

/// The userspace device's configuration socket.
pub fn socket(interface: &str) -> std::path::PathBuf {
    format!("/var/run/wireguard/{interface}.sock").into()
}

async fn remove_link(handle: &Handle, name: &str) -> Result<()> {
    match netlink::find(handle, name).await? {
        Some(link) => Ok(handle.link().del(link.header.index).execute().await?),
        None => Ok(()),
    }
}
