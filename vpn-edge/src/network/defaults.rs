//! The interfaces of this node's default routes.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::RouteMessageBuilder;

use crate::netlink;

/// The interfaces of the default routes, IPv4's first: for each IP version, those of
/// the route with the highest preference in the main table. In the network namespace
/// of the calling thread; must be called within a runtime.
///
/// # Errors
///
/// If there is no default route, or the kernel refuses.
pub async fn default_uplinks() -> Result<Vec<String>> {
    let handle = netlink::connect()?;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut indexes = Vec::new();
    for query in [v4, v6] {
        let mut best: Option<(u32, Vec<u32>)> = None;
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.context("cannot list routes")? {
            let header = &route.header;
            // Other tables apply to some packets only, and clouds' CNI plugins give
            // each interface one with its own default route.
            if header.table != RouteHeader::RT_TABLE_MAIN
                || header.destination_prefix_length != 0
                || header.kind != RouteType::Unicast
            {
                continue;
            }
            let (metric, interfaces) = outgoing(&route);
            match &mut best {
                Some((least, _)) if *least < metric => {}
                Some((least, all)) if *least == metric => all.extend(interfaces),
                _ => best = Some((metric, interfaces)),
            }
        }
        indexes.extend(best.into_iter().flat_map(|(_, all)| all));
    }
    let mut names: Vec<String> = Vec::new();
    for index in indexes {
        let mut links = handle.link().get().match_index(index).execute();
        let link = links.try_next().await.context("cannot read an interface")?;
        let attributes = link.into_iter().flat_map(|link| link.attributes);
        let name = attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
        names.extend(name.filter(|name| !names.contains(name)));
    }
    ensure!(
        !names.is_empty(),
        "no default route says which interface clients' packets come in by: \
         name it with --uplink"
    );
    Ok(names)
}

fn outgoing(route: &RouteMessage) -> (u32, Vec<u32>) {
    let (mut metric, mut interfaces) = (0, Vec::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => {
                interfaces.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    (metric, interfaces)
}
