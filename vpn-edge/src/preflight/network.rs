//! The node's links, addresses and default routes, read at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use super::Settings;
use crate::netlink::connect;

pub struct Network {
    handle: Handle,
    pub links: BTreeMap<u32, Link>,
    pub addresses: Vec<Own>,
    /// Interfaces of default routes, by whether they are of IPv6.
    defaults: BTreeSet<(bool, u32)>,
    /// Next hops that do not answer.
    pub silent: BTreeSet<(u32, IpAddr)>,
}

#[derive(Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub carrier: bool,
    pub mtu: u32,
    /// The type as in `ip link add … type`; none for hardware.
    pub kind: Option<String>,
    /// The interface that this one is stacked on.
    lower: Option<u32>,
    /// The bridge or bond that this one is a port of.
    controller: Option<u32>,
    pub xdp: Vec<Attached>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy)]
pub struct Attached {
    /// The mode as in `ip link set`.
    pub mode: &'static str,
    pub program: u32,
}

/// An address of the node.
pub struct Own {
    pub link: u32,
    pub address: IpAddr,
    /// Whether hosts beyond the link can send to it.
    pub global: bool,
}

/// How packets to an address are routed.
pub struct Way {
    pub local: bool,
    pub link: Option<u32>,
    pub next_hop: IpAddr,
    /// The route's MTU, if it has one.
    pub mtu: Option<u32>,
}

impl Network {
    /// Reads the namespace of the calling thread.
    pub async fn read() -> io::Result<Self> {
        let handle = connect()?;
        Self::with(handle).await.map_err(io::Error::other)
    }

    async fn with(handle: Handle) -> Result<Self, Error> {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        let mut addresses = Vec::new();
        let mut dump = handle.address().get().execute();
        while let Some(message) = dump.try_next().await? {
            // On a point-to-point link, `Address` is the peer's.
            let local = message.attributes.iter().find_map(|found| match found {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = local.or(message.attributes.iter().find_map(|found| match found {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            }));
            addresses.extend(address.map(|address| Own {
                link: message.header.index,
                address,
                global: message.header.scope == AddressScope::Universe && !address.is_loopback(),
            }));
        }
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut defaults = BTreeSet::new();
        for (query, is_v6) in [(v4, false), (v6, true)] {
            let mut dump = handle.route().get(query).execute();
            while let Some(route) = dump.try_next().await? {
                if route.header.destination_prefix_length == 0
                    && route.header.kind == RouteType::Unicast
                {
                    defaults.extend(outgoing(&route).map(|link| (is_v6, link)));
                }
            }
        }
        let mut silent = BTreeSet::new();
        let mut dump = handle.neighbours().get().execute();
        while let Some(message) = dump.try_next().await? {
            if message.header.state != NeighbourState::Failed {
                continue;
            }
            for attribute in message.attributes {
                let address = match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(v4),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => IpAddr::V6(v6),
                    _ => continue,
                };
                silent.insert((message.header.ifindex, address));
            }
        }
        Ok(Self {
            handle,
            links: links
                .iter()
                .map(|message| (message.header.index, link(message)))
                .collect(),
            addresses,
            defaults,
            silent,
        })
    }

    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The existing uplinks.
    pub fn uplinks(&self, settings: &Settings) -> Vec<&Link> {
        let names = settings.uplinks.iter();
        names.filter_map(|name| self.link(name)).collect()
    }

    /// The link's addresses that clients can send to.
    pub fn of(&self, link: &Link) -> impl Iterator<Item = IpAddr> {
        let index = link.index;
        self.addresses
            .iter()
            .filter(move |own| own.link == index && own.global)
            .map(|own| own.address)
    }

    /// The addresses that the edge serves.
    pub fn served(&self, settings: &Settings) -> BTreeSet<IpAddr> {
        if !settings.addresses.is_empty() {
            return settings.addresses.iter().copied().collect();
        }
        let uplinks = self.uplinks(settings);
        uplinks.into_iter().flat_map(|link| self.of(link)).collect()
    }

    /// Whether a default route of the family leaves by `link`, or by any link.
    pub fn has_default(&self, is_v6: bool, link: Option<&Link>) -> bool {
        match link {
            Some(link) => self.defaults.contains(&(is_v6, link.index)),
            None => self.defaults.iter().any(|(of_v6, _)| *of_v6 == is_v6),
        }
    }

    /// The links below this one: ports of a bridge or bond, or the link of a VLAN.
    pub fn below(&self, link: &Link) -> Vec<&str> {
        let is_below =
            |other: &&Link| other.controller == Some(link.index) || link.lower == Some(other.index);
        let below = self.links.values().filter(is_below);
        below.map(|other| other.name.as_str()).collect()
    }

    /// The route to `address`; none if there is none.
    pub async fn way(&self, address: IpAddr) -> Option<Way> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let query = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, length)
            .ok()?
            .build();
        let route = self.handle.route().get(query).execute().try_next().await;
        let route = route.ok()??;
        let kinds = [RouteType::Unicast, RouteType::Local];
        if !kinds.contains(&route.header.kind) {
            return None;
        }
        let next_hop = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(v4))
                | RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
                RouteAttribute::Gateway(RouteAddress::Inet6(v6))
                | RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                _ => None,
            });
        let mtu = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Metrics(metrics) => {
                    metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    })
                }
                _ => None,
            });
        Some(Way {
            local: route.header.kind == RouteType::Local,
            link: outgoing(&route).next(),
            next_hop: next_hop.unwrap_or(address),
            mtu,
        })
    }
}

/// The interfaces that the route leaves by: several for a multipath route.
fn outgoing(route: &RouteMessage) -> impl Iterator<Item = u32> {
    route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(link) => vec![*link],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        })
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        kind: None,
        lower: None,
        controller: None,
        xdp: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => link.lower = Some(*index),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => {
                link.xdp = xdp
                    .iter()
                    .filter_map(|xdp| {
                        let (mode, program) = match xdp {
                            LinkXdp::DrvProgId(id) => ("xdpdrv", *id),
                            LinkXdp::SkbProgId(id) => ("xdpgeneric", *id),
                            LinkXdp::HwProgId(id) => ("xdpoffload", *id),
                            _ => return None,
                        };
                        Some(Attached { mode, program })
                    })
                    .collect();
            }
            _ => {}
        }
    }
    link
}
