//! A gateway's link: a veth pair between node and namespace.
//!
//! Addresses and neighbours are all set by hand, so that nothing has to be
//! asked or learned before the first packet goes through.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::gateways::{Addresses, Link};
use crate::netlink::{self, connect, find};

/// The gateway's end, inside its namespace.
pub const GATEWAY_END: &str = "eth0";

/// Source of the frames that the edge redirects into a gateway's link. Frames
/// that the node's kernel routes have another, so the gateway can tell what
/// came past the guard.
pub const EDGE_MAC: [u8; 6] = [2, 2, 0, 0, 0, 0];

/// The node, as gateways see it: their next hop. It is on no interface; the
/// gateway's neighbour entry for it is permanent.
const NODE: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Makes the link between this node and `namespace`, with `address` at the
/// gateway's end, and routes both ways.
///
/// # Errors
///
/// When the kernel refuses a step.
pub async fn create(name: &str, namespace: &Path, address: Ipv4Addr, mtu: u32) -> io::Result<()> {
    let handle = connect()?;
    // The pair is born on the node, so the far end needs a name of its own
    // until it is moved.
    let far = format!("{name}~");
    // Addresses of our choice, which udev leaves as they are.
    let [a, b, c, d] = address.octets();
    let (node_mac, gateway_mac) = ([2, 0, a, b, c, d], [2, 1, a, b, c, d]);
    let veth = LinkVeth::new(name, &far)
        .mtu(mtu)
        .address(node_mac.to_vec())
        .build();
    handle
        .link()
        .add(veth)
        .execute()
        .await
        .map_err(io::Error::other)?;
    let index = netlink::index(&handle, name).await?;
    let far_index = netlink::index(&handle, &far).await?;
    let target = File::open(namespace)?;
    let moved = LinkUnspec::new_with_index(far_index)
        .setns_by_fd(target.as_raw_fd())
        .name(GATEWAY_END)
        .address(gateway_mac.to_vec())
        .mtu(mtu)
        .build();
    handle
        .link()
        .set(moved)
        .execute()
        .await
        .map_err(io::Error::other)?;

    netlink::inside(namespace, move || async move {
        let handle = connect()?;
        up(&handle, netlink::index(&handle, "lo").await?).await?;
        let index = netlink::index(&handle, GATEWAY_END).await?;
        let add = handle.address().add(index, IpAddr::V4(address), 32);
        add.execute().await.map_err(io::Error::other)?;
        up(&handle, index).await?;
        neighbour(&handle, index, NODE, node_mac).await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(NODE)
            .output_interface(index)
            .onlink()
            .build();
        handle
            .route()
            .add(default)
            .execute()
            .await
            .map_err(io::Error::other)
    })
    .await?;

    // Ours alone: the node's other interfaces keep their settings.
    let sysctl = format!("/proc/sys/net/ipv4/conf/{name}");
    fs::write(format!("{sysctl}/forwarding"), "1")?;
    fs::write(format!("{sysctl}/rp_filter"), "0")?;
    up(&handle, index).await?;
    neighbour(&handle, index, address, gateway_mac).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    handle
        .route()
        .add(route)
        .execute()
        .await
        .map_err(io::Error::other)
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

/// Where the gateway behind the link is, as both ends say.
///
/// # Errors
///
/// When an end is missing.
pub async fn locate(name: &str, namespace: &Path) -> io::Result<Link> {
    let handle = connect()?;
    let ifindex = netlink::index(&handle, name).await?;
    let (gateway_mac, address, takes_redirects) = netlink::inside(namespace, || async {
        use futures_util::TryStreamExt;
        let handle = connect()?;
        let link = find(&handle, GATEWAY_END)
            .await
            .map_err(io::Error::other)?
            .ok_or(io::ErrorKind::NotFound)?;
        let mut addresses = handle
            .address()
            .get()
            .set_link_index_filter(link.header.index)
            .execute();
        let mut address = None;
        while let Some(message) = addresses.try_next().await.map_err(io::Error::other)? {
            for attribute in message.attributes {
                use netlink_packet_route::address::AddressAttribute::Address;
                if let Address(IpAddr::V4(found)) = attribute {
                    address = Some(found);
                }
            }
        }
        let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((address_of(&link)?, address, has_native_xdp(&link)))
    })
    .await?;
    Ok(Link {
        interface: name.into(),
        ifindex,
        gateway_mac,
        addresses: Addresses {
            v4: Some(address),
            v6: None,
        },
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

async fn neighbour(handle: &Handle, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
    handle
        .neighbours()
        .add(index, IpAddr::V4(address))
        .link_layer_address(&mac)
        .state(NeighbourState::Permanent)
        .replace()
        .execute()
        .await
        .map_err(io::Error::other)
}
