//! A gateway's link: a veth pair between node and namespace.
//!
//! Addresses and neighbour entries are static, so that nothing has to be resolved
//! before the first packet.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::gateway::GATEWAY_END;
use crate::gateways::{Addresses, Link};
use crate::netlink::{self, connect, find};

/// The node's addresses as seen by gateways: their next hops. They are on no
/// interface; the gateway's neighbour entries for them are permanent.
const NODE: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const NODE6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Folder of interfaces' settings.
const SETTINGS: &str = "/proc/sys/net/ipv4/conf";
const SETTINGS6: &str = "/proc/sys/net/ipv6/conf";

/// Creates the link between this node and `namespace`, with `address` and `address6`
/// at the gateway's end, and routes in both directions. If the node has no IPv6,
/// neither has the link.
///
/// # Errors
///
/// If the kernel refuses a step.
pub async fn create(
    name: &str,
    namespace: &Path,
    address: Ipv4Addr,
    address6: Ipv6Addr,
    mtu: u32,
) -> io::Result<()> {
    let handle = connect()?;
    // The pair is created on the node, so the far end needs its own name until it is
    // moved.
    let far = format!("{name}~");
    // Fixed MAC addresses, which udev does not change.
    let [a, b, c, d] = address.octets();
    let (node_mac, gateway_mac) = ([2, 0, a, b, c, d], [2, 1, a, b, c, d]);
    let veth = LinkVeth::new(name, &far)
        .mtu(mtu)
        .address(node_mac.to_vec())
        .build();
    let added = handle.link().add(veth).execute().await;
    added.map_err(io::Error::other)?;
    let index = netlink::index(&handle, name).await?;
    let far_index = netlink::index(&handle, &far).await?;
    let address6 = speaks_ipv6(name).then_some(address6);
    let target = File::open(namespace)?;
    let moved = LinkUnspec::new_with_index(far_index)
        .setns_by_fd(target.as_raw_fd())
        .name(GATEWAY_END)
        .address(gateway_mac.to_vec())
        .mtu(mtu)
        .build();
    let moved = handle.link().set(moved).execute().await;
    moved.map_err(io::Error::other)?;

    netlink::inside(namespace, move || async move {
        let handle = connect()?;
        up(&handle, netlink::index(&handle, "lo").await?).await?;
        let index = netlink::index(&handle, GATEWAY_END).await?;
        if address6.is_some() {
            fs::write(format!("{SETTINGS6}/{GATEWAY_END}/disable_ipv6"), "0")?;
            only_by_hand(GATEWAY_END)?;
        }
        up(&handle, index).await?;
        own(&handle, index, address.into()).await?;
        neighbour(&handle, index, NODE.into(), node_mac).await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(NODE);
        let default = default.output_interface(index).onlink().build();
        route(&handle, default).await?;
        if let Some(address6) = address6 {
            own(&handle, index, address6.into()).await?;
            neighbour(&handle, index, NODE6.into(), node_mac).await?;
            let default = RouteMessageBuilder::<Ipv6Addr>::new().gateway(NODE6);
            let default = default.output_interface(index).onlink().build();
            route(&handle, default).await?;
        }
        Ok(())
    })
    .await?;

    // Only for this interface: the node's other interfaces keep their settings.
    fs::write(format!("{SETTINGS}/{name}/forwarding"), "1")?;
    fs::write(format!("{SETTINGS}/{name}/rp_filter"), "0")?;
    if address6.is_some() {
        only_by_hand(name)?;
        // The kernel forwards IPv6 according to `all/forwarding` only, whatever this
        // says; steered packets need neither.
        fs::write(format!("{SETTINGS6}/{name}/forwarding"), "1")?;
    }
    up(&handle, index).await?;
    neighbour(&handle, index, address.into(), gateway_mac).await?;
    let host = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32);
    let host = host.output_interface(index).scope(RouteScope::Link).build();
    route(&handle, host).await?;
    if let Some(address6) = address6 {
        neighbour(&handle, index, address6.into(), gateway_mac).await?;
        let host = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address6, 128);
        route(&handle, host.output_interface(index).build()).await?;
    }
    Ok(())
}

/// Whether the kernel supports IPv6 on the interface: it may be missing, disabled, or
/// the MTU too small.
fn speaks_ipv6(interface: &str) -> bool {
    fs::read_to_string(format!("{SETTINGS6}/{interface}/disable_ipv6"))
        .is_ok_and(|disabled| disabled.trim() == "0")
}

/// Prevents the kernel from assigning its own IPv6 addresses to the interface, and
/// from delaying the use of ours. To be called before the interface is up.
fn only_by_hand(interface: &str) -> io::Result<()> {
    for (setting, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("accept_dad", "0"),
    ] {
        fs::write(format!("{SETTINGS6}/{interface}/{setting}"), value)?;
    }
    Ok(())
}

/// Removes the link, if it is there.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn remove(name: &str) -> io::Result<()> {
    let handle = connect()?;
    match find(&handle, name).await.map_err(io::Error::other)? {
        Some(link) => handle
            .link()
            .del(link.header.index)
            .execute()
            .await
            .map_err(io::Error::other),
        None => Ok(()),
    }
}

/// The location of the gateway behind the link, read from both ends.
///
/// # Errors
///
/// If an end is missing.
pub async fn locate(name: &str, namespace: &Path) -> io::Result<Link> {
    let handle = connect()?;
    let ifindex = netlink::index(&handle, name).await?;
    let (gateway_mac, addresses, takes_redirects) = netlink::inside(namespace, || async {
        use futures_util::TryStreamExt;
        let handle = connect()?;
        let link = find(&handle, GATEWAY_END)
            .await
            .map_err(io::Error::other)?
            .ok_or(io::ErrorKind::NotFound)?;
        let mut messages = handle
            .address()
            .get()
            .set_link_index_filter(link.header.index)
            .execute();
        let mut addresses = Addresses::default();
        while let Some(message) = messages.try_next().await.map_err(io::Error::other)? {
            if message.header.scope != AddressScope::Universe {
                continue;
            }
            for attribute in message.attributes {
                match attribute {
                    AddressAttribute::Address(IpAddr::V4(found)) => addresses.v4 = Some(found),
                    AddressAttribute::Address(IpAddr::V6(found)) => addresses.v6 = Some(found),
                    _ => {}
                }
            }
        }
        if addresses == Addresses::default() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        Ok((address_of(&link)?, addresses, has_native_xdp(&link)))
    })
    .await?;
    Ok(Link {
        interface: name.into(),
        ifindex,
        gateway_mac,
        addresses,
        takes_redirects,
    })
}

fn address_of(link: &LinkMessage) -> io::Result<[u8; 6]> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(address) => address.as_slice().try_into().ok(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("the interface has no MAC address"))
}

fn has_native_xdp(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => xdp
            .iter()
            .any(|xdp| matches!(xdp, LinkXdp::Attached(XdpAttached::Driver))),
        _ => false,
    })
}

async fn up(handle: &Handle, index: u32) -> io::Result<()> {
    let up = LinkUnspec::new_with_index(index).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(io::Error::other)
}

/// Assigns an address to the interface, usable immediately.
async fn own(handle: &Handle, index: u32, address: IpAddr) -> io::Result<()> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut add = handle.address().add(index, address, length);
    if address.is_ipv6() {
        let message = add.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        message.attributes.push(flags);
    }
    add.execute().await.map_err(io::Error::other)
}

async fn neighbour(handle: &Handle, index: u32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
    handle
        .neighbours()
        .add(index, address)
        .link_layer_address(&mac)
        .state(NeighbourState::Permanent)
        .replace()
        .execute()
        .await
        .map_err(io::Error::other)
}

async fn route(handle: &Handle, route: RouteMessage) -> io::Result<()> {
    let added = handle.route().add(route).execute().await;
    added.map_err(io::Error::other)
}
