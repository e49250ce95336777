//! Next hops to other nodes, kept resolved by the kernel.
//!
//! Since Linux 5.16 an entry can be "managed": the kernel then resolves it again
//! whenever it expires or fails. Older kernels resolve an entry once when it is
//! marked as used, so this is repeated whenever the entry expires or fails. One
//! request does both; older kernels ignore the half that they do not know. Entries
//! that we requested have our protocol number, by which the next process finds them;
//! entries of others are not changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol,
    RouteType, RouteVia,
};
use rtnetlink::{Error, Handle};

use super::table::is_up;

/// Marks entries as ours. These numbers are not assigned; this one is not in
/// iproute2's list of protocols.
const OURS: RouteProtocol = RouteProtocol::Other(118);

/// A neighbour: the index of an interface, and an address behind it.
type Hop = (u32, IpAddr);

/// The neighbours that are kept resolved, and their state.
#[derive(Debug)]
pub struct Neighbours {
    handle: Handle,
    nodes: BTreeSet<IpAddr>,
    hops: BTreeMap<Hop, Condition>,
    /// Whether the hops' interfaces are up.
    interfaces: BTreeMap<u32, bool>,
}

/// An entry's MAC address, while it is valid.
type Condition = Option<Vec<u8>>;

/// The meaning of a notification.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verdict {
    /// A next hop has changed.
    pub changed: bool,
    /// The kernel must be asked to resolve it again.
    pub renew: bool,
}

/// The kernel's entry for a neighbour.
#[derive(Debug, Clone)]
struct Entry {
    state: NeighbourState,
    mac: Option<Vec<u8>>,
    managed: bool,
    /// Set by a program that learns neighbours by other means.
    learned: bool,
    protocol: Option<RouteProtocol>,
}

impl Entry {
    fn of(message: &NeighbourMessage) -> Option<(Hop, Self)> {
        let mut address = None;
        let mut entry = Self {
            state: message.header.state,
            mac: None,
            managed: false,
            learned: message.header.flags.contains(NeighbourFlags::ExtLearned),
            protocol: None,
        };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                    address = Some(IpAddr::V4(*found));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                    address = Some(IpAddr::V6(*found));
                }
                NeighbourAttribute::LinkLayerAddress(mac) => entry.mac = Some(mac.clone()),
                NeighbourAttribute::ExtFlags(flags) => {
                    entry.managed = flags.contains(NeighbourExtFlags::Managed);
                }
                NeighbourAttribute::Protocol(protocol) => entry.protocol = Some(*protocol),
                _ => {}
            }
        }
        Some(((message.header.ifindex, address?), entry))
    }

    /// Whether the kernel created it by itself, or for us.
    fn may_be_touched(&self) -> bool {
        let fixed = matches!(
            self.state,
            NeighbourState::Permanent | NeighbourState::Noarp
        );
        !fixed && !self.learned && self.protocol.is_none_or(|protocol| protocol == OURS)
    }

    /// Whether nothing has to be requested: the kernel keeps it resolved, or it
    /// belongs to somebody else.
    /// is somebody else's.
    fn kept(&self) -> bool {
        let failed = self.state == NeighbourState::Failed;
        self.managed && !failed || !self.may_be_touched()
    }

    fn condition(&self) -> Condition {
        match self.state {
            NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed => None,
            _ => self.mac.clone(),
        }
    }
}

impl Neighbours {
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            nodes: BTreeSet::new(),
            hops: BTreeMap::new(),
            interfaces: BTreeMap::new(),
        }
    }

    /// Keeps the next hops to these nodes resolved, and no others.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be queried.
    pub async fn keep(&mut self, nodes: BTreeSet<IpAddr>) -> Result<()> {
        self.nodes = nodes;
        self.renew().await
    }

    /// The same for the current nodes.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be queried.
    pub async fn renew(&mut self) -> Result<()> {
        let hops = self.next_hops().await?;
        let mut entries = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let all = self.handle.neighbours().get();
            let mut all = all.set_address_family(family).execute();
            while let Some(message) = all.try_next().await.context("cannot list neighbours")? {
                entries.extend(Entry::of(&message));
            }
        }
        for (hop, entry) in &entries {
            let unwanted = entry.managed && entry.protocol == Some(OURS);
            if unwanted && !hops.contains(hop) && entry.may_be_touched() {
                self.request(*hop, false).await;
            }
        }
        self.hops.clear();
        for hop in hops {
            let entry = entries.get(&hop);
            self.hops.insert(hop, entry.and_then(Entry::condition));
            if !entry.is_some_and(Entry::kept) {
                self.request(hop, true).await;
            }
        }
        Ok(())
    }

    /// Whether any node is kept.
    pub fn any(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// Whether this route is, or was, one to a node.
    pub fn routed_by(&self, route: &RouteMessage) -> bool {
        let header = &route.header;
        let destination = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                    Some(IpAddr::V4(*address))
                }
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                    Some(IpAddr::V6(*address))
                }
                _ => None,
            });
        // Default routes have no destination.
        let Some(destination) = destination else {
            return self.nodes.iter().any(|node| match node {
                IpAddr::V4(_) => header.address_family == AddressFamily::Inet,
                IpAddr::V6(_) => header.address_family == AddressFamily::Inet6,
            });
        };
        IpNet::new(destination, header.destination_prefix_length)
            .is_ok_and(|network| self.nodes.iter().any(|node| network.contains(node)))
    }

    /// Records an interface's state. Returns whether that changed a next hop: IPv4
    /// routes disappear with their interface without a notification.
    pub fn saw_link(&mut self, link: &LinkMessage, gone: bool) -> bool {
        let up = is_up(link) && !gone;
        match self.interfaces.get_mut(&link.header.index) {
            Some(was) if *was != up => {
                *was = up;
                true
            }
            _ => false,
        }
    }

    /// Records a changed entry.
    pub fn saw(&mut self, message: &NeighbourMessage) -> Verdict {
        let Some((hop, entry)) = Entry::of(message) else {
            return Verdict::default();
        };
        let Some(condition) = self.hops.get_mut(&hop) else {
            return Verdict::default();
        };
        let now = entry.condition();
        let changed = *condition != now;
        *condition = now;
        Verdict {
            changed,
            // The kernel retries a repeatedly failed entry too, but seconds later.
            renew: !entry.kept() && (changed || !entry.managed),
        }
    }

    /// Records a removed entry.
    pub fn lost(&mut self, message: &NeighbourMessage) -> Verdict {
        let hop = Entry::of(message).map(|(hop, _)| hop);
        match hop.and_then(|hop| self.hops.get_mut(&hop)) {
            Some(condition) => Verdict {
                changed: condition.take().is_some(),
                renew: true,
            },
            None => Verdict::default(),
        }
    }

    /// Asks the kernel to resolve a hop, and to keep it resolved if `managed`.
    async fn request(&self, hop: Hop, managed: bool) {
        let (index, address) = hop;
        let mut request = self
            .handle
            .neighbours()
            .add(index, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        let attributes = &mut request.message_mut().attributes;
        attributes.push(NeighbourAttribute::Protocol(OURS));
        if managed {
            let flags = NeighbourExtFlags::Managed;
            attributes.push(NeighbourAttribute::ExtFlags(flags));
        }
        if let Err(error) = request.execute().await {
            tracing::debug!(%error, %address, index, "cannot request neighbour resolution");
        }
    }

    /// The neighbours that packets to the nodes may be sent to.
    async fn next_hops(&mut self) -> Result<BTreeSet<Hop>> {
        let mut hops = BTreeSet::new();
        for &node in &self.nodes {
            match self.route(node).await {
                Ok(found) => hops.extend(found),
                Err(Error::NetlinkError(error)) => {
                    tracing::debug!(%error, %node, "no route to a node");
                }
                Err(error) => return Err(error).context("cannot ask for a route"),
            }
        }
        self.interfaces.clear();
        let mut silent = BTreeSet::new();
        let indexes: BTreeSet<u32> = hops.iter().map(|(index, _)| *index).collect();
        for index in indexes {
            let mut links = self.handle.link().get().match_index(index).execute();
            if let Ok(Some(link)) = links.try_next().await {
                self.interfaces.insert(index, is_up(&link));
                // Such interfaces resolve nothing.
                let flags = LinkFlags::Noarp | LinkFlags::Loopback;
                if link.header.flags.intersects(flags) {
                    silent.insert(index);
                }
            }
        }
        hops.retain(|(index, _)| !silent.contains(index));
        Ok(hops)
    }

    async fn route(&self, node: IpAddr) -> Result<Vec<Hop>, Error> {
        let mut question = RouteMessage::default();
        (
            question.header.address_family,
            question.header.destination_prefix_length,
        ) = match node {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        // The route with all of its next hops, not the one for a particular packet.
        question.header.flags = RouteFlags::FibMatch;
        let destination = RouteAttribute::Destination(node.into());
        question.attributes.push(destination);
        let mut answers = self.handle.route().get(question).execute();
        let mut hops = Vec::new();
        while let Some(route) = answers.try_next().await? {
            if route.header.kind != RouteType::Unicast {
                continue;
            }
            hops.extend(hop(node, None, &route.attributes));
            for attribute in &route.attributes {
                let RouteAttribute::MultiPath(paths) = attribute else {
                    continue;
                };
                let alive = paths
                    .iter()
                    .filter(|path| !path.flags.contains(RouteNextHopFlags::Dead));
                hops.extend(
                    alive
                        .filter_map(|path| hop(node, Some(path.interface_index), &path.attributes)),
                );
            }
        }
        Ok(hops)
    }
}

/// The next hop for `node`: a router, or the node itself.
fn hop(node: IpAddr, mut index: Option<u32>, attributes: &[RouteAttribute]) -> Option<Hop> {
    let mut gateway = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(interface) => index = Some(*interface),
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => {
                gateway = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(address))
            | RouteAttribute::Via(RouteVia::Inet6(address)) => {
                gateway = Some(IpAddr::V6(*address));
            }
            _ => {}
        }
    }
    Some((index?, gateway.unwrap_or(node)))
}
