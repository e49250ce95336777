//! From the address of a pod on this node to the link that leads to it.
//!
//! The CNI plugin has set up a route to the pod: to a veth of its own, or to a bridge
//! with such a veth as a port. A pod that is reached in another way is left to the
//! kernel. The edge keeps the pods' neighbour entries resolved, see
//! [`crate::network`], so that their MAC addresses are known and a bridge does not
//! forget its port.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Error, Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::gateways::{Addresses, Link, Location};
use crate::netlink;

/// Maximum number of concurrent route lookups.
const MAX_CONCURRENT: usize = 32;

type Mac = [u8; 6];

/// Finds the links of pods, and notifies when they may have changed.
pub struct PodLinks {
    handle: Handle,
    known: Arc<Mutex<Known>>,
    _follower: JoinSet<()>,
}

/// The result of the last lookup.
#[derive(Default)]
struct Known {
    links: Vec<Link>,
    /// Whether a pod's link could not be found.
    wanting: bool,
}

impl PodLinks {
    /// Begins to follow the network namespace of the calling thread. `changes` is
    /// incremented when a pod may have moved to another link. Changes of routes and
    /// neighbours are followed where the pods' neighbours are kept resolved.
    ///
    /// # Errors
    ///
    /// If the kernel provides no socket. Must be called within a runtime.
    pub fn follow(changes: watch::Sender<u64>) -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Neigh];
        let (connection, _, mut notifications) = new_multicast_connection(&groups)?;
        let known = Arc::<Mutex<Known>>::default();
        let mut follower = JoinSet::new();
        follower.spawn(connection);
        follower.spawn({
            let known = Arc::clone(&known);
            async move {
                while let Some((message, _)) = notifications.next().await {
                    let matters = match message.payload {
                        NetlinkPayload::InnerMessage(message) => lock(&known).concerns(&message),
                        NetlinkPayload::Overrun(_) => true,
                        _ => false,
                    };
                    if matters {
                        changes.send_modify(|count| *count += 1);
                    }
                }
            }
        });
        Ok(Self {
            handle: netlink::connect()?,
            known,
            _follower: follower,
        })
    }

    /// The location of each of these pods; none while it is unknown, for example
    /// because its neighbour entry is not resolved yet.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be queried.
    pub async fn locate(&self, pods: &[Addresses]) -> Result<Vec<Option<Location>>> {
        if pods.is_empty() {
            *lock(&self.known) = Known::default();
            return Ok(Vec::new());
        }
        let addresses: Vec<IpAddr> = pods.iter().copied().flat_map(each).collect();
        let routes: Vec<(IpAddr, Option<Route>)> = stream::iter(addresses)
            .map(|address| async move { Ok::<_, Error>((address, self.route(address).await?)) })
            .buffered(MAX_CONCURRENT)
            .try_collect::<Vec<_>>()
            .await
            .context("cannot look up a pod's route")?;
        let routes: BTreeMap<IpAddr, Route> = routes
            .into_iter()
            .filter_map(|(address, route)| Some((address, route?)))
            .collect();
        let tables = self.tables(routes.values()).await?;
        let mut known = lock(&self.known);
        let before = std::mem::take(&mut known.links);
        let located = pods
            .iter()
            .map(|pod| tables.locate(*pod, &routes, &before))
            .collect::<Vec<_>>();
        known.wanting = located.iter().any(Option::is_none);
        known.links = located
            .iter()
            .filter_map(|location| match location {
                Some(Location::Here(link)) => Some(link.clone()),
                _ => None,
            })
            .collect();
        Ok(located)
    }

    async fn route(&self, address: IpAddr) -> Result<Option<Route>, Error> {
        let mut question = RouteMessage::default();
        (
            question.header.address_family,
            question.header.destination_prefix_length,
        ) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        question.header.flags = RouteFlags::FibMatch;
        let destination = RouteAttribute::Destination(address.into());
        question.attributes.push(destination);
        let mut answers = self.handle.route().get(question).execute();
        match answers.try_next().await {
            Ok(answer) => Ok(answer.as_ref().and_then(Route::of)),
            // There is no route, or an unreachable one.
            Err(Error::NetlinkError(error)) => {
                tracing::debug!(%error, %address, "no route to a pod");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn tables(&self, routes: impl Iterator<Item = &Route>) -> Result<Tables> {
        let mut tables = Tables::default();
        let links = self.handle.link().get();
        let links = links.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let mut links = links.execute();
        while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
            let interface = Interface::of(&link);
            tables.interfaces.insert(link.header.index, interface);
        }
        let next = "cannot list neighbours";
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let all = self.handle.neighbours().get().set_address_family(family);
            let mut all = all.execute();
            while let Some(message) = all.try_next().await.context(next)? {
                if let Some((address, mac)) = neighbour(&message) {
                    tables.macs.insert((message.header.ifindex, address), mac);
                }
            }
        }
        let bridged = routes.into_iter().any(|route| {
            let interface = route.direct.and_then(|on| tables.interfaces.get(&on));
            interface.is_some_and(|interface| interface.kind == Some(InfoKind::Bridge))
        });
        if bridged {
            let all = self.handle.neighbours().get();
            let mut all = all.set_address_family(AddressFamily::Bridge).execute();
            while let Some(message) = all.try_next().await.context(next)? {
                if let Some((bridge, mac)) = forwarding(&message) {
                    tables.ports.insert((bridge, mac), message.header.ifindex);
                }
            }
        }
        Ok(tables)
    }
}

impl Known {
    /// Whether a notification may affect where a pod is.
    fn concerns(&self, message: &RouteNetlinkMessage) -> bool {
        let is = |index| self.links.iter().any(|link| link.ifindex == index);
        match message {
            RouteNetlinkMessage::NewLink(_) => self.wanting,
            RouteNetlinkMessage::DelLink(link) => is(link.header.index),
            RouteNetlinkMessage::NewNeighbour(entry) => {
                let Some((_, mac)) = forwarding(entry) else {
                    return false;
                };
                let mut links = self.links.iter();
                self.wanting
                    || links
                        .any(|link| link.gateway_mac == mac && link.ifindex != entry.header.ifindex)
            }
            _ => false,
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pod's addresses.
pub(super) fn each(pod: Addresses) -> impl Iterator<Item = IpAddr> {
    let v4 = pod.v4.map(IpAddr::V4);
    v4.into_iter().chain(pod.v6.map(IpAddr::V6))
}

/// How the kernel reaches an address.
#[derive(Debug)]
struct Route {
    /// The interface, if the address is directly connected.
    direct: Option<u32>,
}

impl Route {
    /// None for a route that leads nowhere, or for the default route.
    fn of(message: &RouteMessage) -> Option<Self> {
        match message.header.kind {
            // A pod's own route is missing while its link is recreated.
            RouteType::Unicast if message.header.destination_prefix_length == 0 => return None,
            RouteType::Unicast => {}
            RouteType::Local => return Some(Self { direct: None }),
            _ => return None,
        }
        let mut direct = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => direct = Some(*index),
                RouteAttribute::Gateway(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::MultiPath(_) => return Some(Self { direct: None }),
                _ => {}
            }
        }
        Some(Self { direct })
    }
}

#[derive(Debug)]
struct Interface {
    name: String,
    kind: Option<InfoKind>,
    /// Whether its peer is in another namespace.
    leads_out: bool,
    /// The bridge or similar that it is a port of.
    upper: Option<u32>,
}

impl Interface {
    fn of(message: &LinkMessage) -> Self {
        let mut interface = Self {
            name: String::new(),
            kind: None,
            leads_out: false,
            upper: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::LinkNetNsId(_) => interface.leads_out = true,
                LinkAttribute::Controller(index) => interface.upper = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    interface.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        interface
    }

    /// Whether it is the node's end of a pod's link.
    fn is_pods(&self) -> bool {
        self.kind == Some(InfoKind::Veth) && self.leads_out
    }
}

/// The address of a resolved neighbour entry.
fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    use NeighbourState::{Failed, Incomplete, None as Unset};
    if matches!(message.header.state, Unset | Incomplete | Failed) {
        return None;
    }
    let address = message.attributes.iter().find_map(|one| match one {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    Some((address?, mac(message)?))
}

/// The bridge and the MAC address of an entry of its forwarding table.
fn forwarding(message: &NeighbourMessage) -> Option<(u32, Mac)> {
    // A permanent entry is the port's own address.
    let own = message.header.state == NeighbourState::Permanent;
    if message.header.family != AddressFamily::Bridge || own {
        return None;
    }
    let bridge = message.attributes.iter().find_map(|one| match one {
        NeighbourAttribute::Controller(bridge) => Some(*bridge),
        _ => None,
    });
    Some((bridge?, mac(message)?))
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|one| match one {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

/// The kernel's tables of links and neighbours.
#[derive(Debug, Default)]
struct Tables {
    interfaces: BTreeMap<u32, Interface>,
    /// By interface and neighbour's address.
    macs: BTreeMap<(u32, IpAddr), Mac>,
    /// By bridge and MAC address.
    ports: BTreeMap<(u32, Mac), u32>,
}

/// Where the address of a pod leads.
enum Way {
    /// To a link; with the interface of the route.
    Link(u32, Mac),
    /// Not resolved yet; with the interface of the route.
    Unresolved(u32),
    Kernel,
}

impl Tables {
    fn locate(
        &self,
        pod: Addresses,
        routes: &BTreeMap<IpAddr, Route>,
        before: &[Link],
    ) -> Option<Location> {
        let mut found: Option<Link> = None;
        let mut unresolved = BTreeSet::new();
        let mut kernels = false;
        for address in each(pod) {
            match routes.get(&address).map(|route| self.way(address, route)) {
                Some(Way::Link(index, mac)) => {
                    let link = found.get_or_insert_with(|| Link {
                        interface: self.interfaces[&index].name.clone(),
                        ifindex: index,
                        gateway_mac: mac,
                        addresses: Addresses::default(),
                        takes_redirects: true,
                    });
                    // A pod has one link to the network of its address.
                    if (link.ifindex, link.gateway_mac) == (index, mac) {
                        match address {
                            IpAddr::V4(v4) => link.addresses.v4 = Some(v4),
                            IpAddr::V6(v6) => link.addresses.v6 = Some(v6),
                        }
                    }
                }
                Some(Way::Unresolved(on)) => drop(unresolved.insert(on)),
                Some(Way::Kernel) => kernels = true,
                None => {}
            }
        }
        if let Some(link) = found {
            return Some(Location::Here(link));
        }
        // The entry may be missing for a moment even though it is kept resolved.
        let mut before = before.iter().filter(|link| link.addresses == pod);
        let still = before.find(|link| self.still_there(link, &unresolved));
        match still {
            Some(link) => Some(Location::Here(link.clone())),
            None if kernels && unresolved.is_empty() => Some(Location::Kernel),
            None => None,
        }
    }

    fn way(&self, address: IpAddr, route: &Route) -> Way {
        let Some(on) = route.direct else {
            return Way::Kernel;
        };
        let Some(interface) = self.interfaces.get(&on) else {
            return Way::Unresolved(on);
        };
        let bridge = interface.kind == Some(InfoKind::Bridge);
        if !bridge && !interface.is_pods() {
            return Way::Kernel;
        }
        let Some(&mac) = self.macs.get(&(on, address)) else {
            return Way::Unresolved(on);
        };
        if !bridge {
            return Way::Link(on, mac);
        }
        let Some(port) = self.ports.get(&(on, mac)) else {
            return Way::Unresolved(on);
        };
        match self.interfaces.get(port) {
            Some(interface) if interface.is_pods() => Way::Link(*port, mac),
            Some(_) => Way::Kernel,
            None => Way::Unresolved(on),
        }
    }

    /// Whether a link still exists where an unresolved route leads.
    fn still_there(&self, link: &Link, on: &BTreeSet<u32>) -> bool {
        let interface = self.interfaces.get(&link.ifindex);
        interface.is_some_and(|interface| {
            interface.name == link.interface
                && interface.is_pods()
                && (on.contains(&link.ifindex)
                    || interface.upper.is_some_and(|upper| on.contains(&upper)))
        })
    }
}
