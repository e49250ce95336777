//! Prepares a pod for a gateway that runs with fewer privileges.
//!
//! All of it outlives this process: settings of the pod's network and link, and a
//! device node in a volume of the pod.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rtnetlink::LinkWireguard;

use super::{GatewayConfig, nat};
use crate::{ethtool, netlink};

/// IPv6 on interfaces that are created later. Container runtimes disable it in pods
/// without an IPv6 address, whatever their tunnels carry.
const WITHOUT_IPV6: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// Prepares the pod's network, and creates the TUN device node in `devices` if the
/// kernel has no WireGuard.
///
/// # Errors
///
/// If the gateway could not run afterwards.
pub async fn ready(config: &GatewayConfig, devices: Option<&Path>) -> Result<()> {
    nat::forward(config).context("cannot switch on forwarding")?;
    if config.tunnel.fixed.has_ipv6() {
        nat::set(WITHOUT_IPV6, "0").context("cannot switch on IPv6 for the tunnel")?;
    }
    // Otherwise frames that the edge redirects here are silently dropped. Agents
    // redirect only to veths, where this can be enabled.
    match ethtool::merge(&config.link) {
        Err(error) if is_veth(&config.link).await? => {
            return Err(error).context("cannot enable XDP redirects to the pod's link");
        }
        Err(error) => tracing::warn!(
            "the link cannot receive XDP redirects; the edge uses tc for this gateway: {error}"
        ),
        Ok(()) => {}
    }
    if let Some(devices) = devices
        && !has_wireguard(config).await?
    {
        let tun = devices.join("tun");
        make_tun(&tun).with_context(|| format!("cannot make {}", tun.display()))?;
        fs::File::options()
            .read(true)
            .write(true)
            .open(&tun)
            .context(
                "the node's kernel has neither WireGuard nor TUN: \
                 load its module `wireguard`, or else `tun`",
            )?;
    }
    Ok(())
}

async fn is_veth(name: &str) -> Result<bool> {
    let link = netlink::find(&netlink::connect()?, name).await?;
    let mut attributes = link.into_iter().flat_map(|link| link.attributes);
    Ok(attributes.any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
    }))
}

/// Whether the kernel can create WireGuard devices.
async fn has_wireguard(config: &GatewayConfig) -> Result<bool> {
    let handle = netlink::connect()?;
    if netlink::find(&handle, &config.interface).await?.is_none() {
        let link = LinkWireguard::new(&config.interface).build();
        if handle.link().add(link).execute().await.is_err() {
            return Ok(false);
        }
    }
    let index = netlink::index(&handle, &config.interface).await?;
    handle.link().del(index).execute().await?;
    Ok(true)
}

/// Creates the TUN device node, as in the kernel's `devices.txt`.
fn make_tun(path: &Path) -> io::Result<()> {
    let device = makedev(10, 200);
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match mknod(path, SFlag::S_IFCHR, mode, device) {
        // Created by an earlier init container of the same pod.
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
