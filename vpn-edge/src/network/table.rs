//! Interfaces and addresses of the node, and which of them the edge uses.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::Handle;

use super::{Own, Settings, Snapshot, Uplink};

/// Maximum number of addresses of an edge.
pub const MAX_OWN: usize = 8;

/// Maximum depth of stacked interfaces.
const DEPTH: usize = 8;

const DEFAULT_MTU: u32 = 1500;

/// The flag that means "secondary" for IPv4 means "temporary" for IPv6.
const TEMPORARY: AddressFlags = AddressFlags::Secondary;

/// The relevant properties of an interface.
#[derive(Debug, Clone)]
pub struct Link {
    index: u32,
    name: String,
    mtu: u32,
    up: bool,
    /// The interface of this node that it is stacked on, such as a VLAN's.
    lower: Option<u32>,
    /// The bond, bridge or team that it is a port of.
    upper: Option<u32>,
    vrf: bool,
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let (mut name, mut mtu) = (String::new(), DEFAULT_MTU);
        let (mut lower, mut upper, mut foreign) = (None, None, false);
        let mut kind = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name.clone_from(value),
                LinkAttribute::Mtu(value) => mtu = *value,
                LinkAttribute::Link(index) => lower = Some(*index),
                // The index is from another namespace.
                LinkAttribute::LinkNetNsId(_) => foreign = true,
                LinkAttribute::Controller(index) => upper = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        // A veth refers to its peer in the same way.
        let stacked = matches!(
            kind,
            Some(InfoKind::Vlan | InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan)
        );
        Self {
            index: message.header.index,
            name,
            mtu,
            up: is_up(message),
            lower: lower.filter(|_| stacked && !foreign),
            upper,
            vrf: kind == Some(InfoKind::Vrf),
        }
    }
}

/// Whether the interface is up and has a carrier.
pub fn is_up(link: &LinkMessage) -> bool {
    let flags = link.header.flags;
    flags.contains(LinkFlags::Up | LinkFlags::Running)
}

/// An address of an interface.
#[derive(Debug, Clone)]
pub struct Address {
    index: u32,
    address: IpAddr,
    /// Whether the edge uses it without being configured.
    usable: bool,
    /// Whether it comes after the interface's primary addresses.
    minor: bool,
}

impl Address {
    fn of(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut prefix, mut flags) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => prefix = Some(*address),
                AddressAttribute::Flags(all) => flags = Some(*all),
                _ => {}
            }
        }
        // On a point-to-point link, the other attribute is the peer's address.
        let address = local.or(prefix)?;
        let flags = flags.unwrap_or_else(|| {
            AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()))
        });
        let global = message.header.scope == AddressScope::Universe;
        let (usable, minor) = match address {
            IpAddr::V4(_) => (global, flags.contains(AddressFlags::Secondary)),
            IpAddr::V6(_) => {
                let left_out = TEMPORARY
                    | AddressFlags::Deprecated
                    | AddressFlags::Tentative
                    | AddressFlags::Dadfailed;
                let learned = !flags.contains(AddressFlags::Permanent);
                (global && !flags.intersects(left_out), learned)
            }
        };
        Some(Self {
            index: message.header.index,
            address,
            usable,
            minor,
        })
    }
}

/// All of the node's interfaces and addresses at one moment.
#[derive(Debug, Default)]
pub struct Table {
    links: Vec<Link>,
    addresses: Vec<Address>,
}

impl Table {
    /// Asks the kernel.
    pub async fn read(handle: &Handle) -> Result<Self> {
        let mut table = Self::default();
        // Statistics would be most of the answer.
        let links = handle.link().get();
        let links = links.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let mut links = links.execute();
        while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
            table.links.push(Link::of(&link));
        }
        let mut addresses = handle.address().get().execute();
        let next = "cannot list addresses";
        while let Some(address) = addresses.try_next().await.context(next)? {
            table.addresses.extend(Address::of(&address));
        }
        Ok(table)
    }

    /// The part that the edge uses.
    ///
    /// # Errors
    ///
    /// If there are more addresses than an edge supports.
    pub fn snapshot(&self, settings: &Settings) -> Result<Snapshot> {
        let named = settings.uplinks.iter();
        let links: Vec<&Link> = named
            .filter_map(|name| self.links.iter().find(|link| link.name == *name))
            .collect();
        let own = if settings.addresses.is_empty() {
            self.all_of(&links)
        } else {
            let addresses = settings.addresses.iter();
            addresses
                .filter_map(|address| self.named(*address, &links))
                .collect()
        };
        let mut unique: Vec<Own> = Vec::new();
        for own in own {
            if !unique.iter().any(|other| other.address == own.address) {
                unique.push(own);
            }
        }
        ensure!(
            unique.len() <= MAX_OWN,
            "{} addresses on {}, but an edge answers from {MAX_OWN}: \
             name those that clients send to with --address",
            unique.len(),
            list(&settings.uplinks)
        );
        let uplinks = links.iter().map(|link| Uplink {
            name: link.name.clone(),
            index: link.index,
            mtu: link.mtu,
            up: link.up,
        });
        Ok(Snapshot {
            uplinks: uplinks.collect(),
            own: unique,
        })
    }

    /// The usable addresses of the uplinks.
    fn all_of(&self, uplinks: &[&Link]) -> Vec<Own> {
        let mut found = Vec::new();
        for (position, link) in uplinks.iter().enumerate() {
            for (place, address) in self.addresses.iter().enumerate() {
                if address.index != link.index || !address.usable {
                    continue;
                }
                // The kernel lists newer IPv4 addresses last and newer IPv6 addresses
                // first; here a newer one never becomes the first.
                let v6 = address.address.is_ipv6();
                let place = if v6 { usize::MAX - place } else { place };
                let order = (v6, position, address.minor, place);
                let own = Own {
                    address: address.address,
                    uplink: link.index,
                };
                found.push((order, own));
            }
        }
        found.sort_by_key(|(order, _)| *order);
        found.into_iter().map(|(_, own)| own).collect()
    }

    /// A configured address, if it is on some interface.
    fn named(&self, wanted: IpAddr, uplinks: &[&Link]) -> Option<Own> {
        let on = self
            .addresses
            .iter()
            .filter(|address| address.address == wanted);
        // It may be on `lo`.
        let (leads, index) = on
            .map(|address| (self.leads_to(address.index, uplinks), address.index))
            .min_by_key(|(leads, _)| Reverse(*leads))?;
        let uplink = if leads { index } else { uplinks.first()?.index };
        Some(Own {
            address: wanted,
            uplink,
        })
    }

    /// Whether the interface is an uplink, or stacked on one.
    fn leads_to(&self, index: u32, uplinks: &[&Link]) -> bool {
        self.stack(index).iter().any(|member| {
            uplinks.iter().any(|uplink| {
                let vrf = |index| self.link(index).is_some_and(|link| link.vrf);
                uplink.index == *member || uplink.upper == Some(*member) && !vrf(*member)
            })
        })
    }

    /// The interface, and those below it.
    fn stack(&self, index: u32) -> Vec<u32> {
        let lower = |index: &u32| self.link(*index)?.lower;
        std::iter::successors(Some(index), lower)
            .take(DEPTH)
            .collect()
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Checks that everything in the settings exists.
    ///
    /// # Errors
    ///
    /// What does not, and what to do about it.
    pub fn complete(&self, settings: &Settings) -> Result<()> {
        let uplinks = &settings.uplinks;
        ensure!(
            !uplinks.is_empty(),
            "no uplink: name one of `ip link` with --uplink"
        );
        for name in uplinks {
            ensure!(
                self.links.iter().any(|link| link.name == *name),
                "no interface `{name}`: name one of `ip link` with --uplink"
            );
        }
        let named: BTreeSet<_> = settings.addresses.iter().collect();
        ensure!(
            named.len() <= MAX_OWN,
            "--address names {} addresses, but an edge answers from {MAX_OWN}: name fewer",
            named.len()
        );
        for wanted in named {
            ensure!(
                self.addresses
                    .iter()
                    .any(|address| address.address == *wanted),
                "{wanted} is on no interface: name one of `ip address`"
            );
        }
        if self.snapshot(settings)?.own.is_empty() {
            bail!(
                "no address on {} that clients could send to: give it one, \
                 or name it with --address",
                list(uplinks)
            );
        }
        Ok(())
    }

    /// What may change a snapshot.
    pub fn interests(&self, settings: &Settings) -> Interests {
        let uplinks = self.links.iter();
        let uplinks = uplinks.filter(|link| settings.uplinks.contains(&link.name));
        let uplinks: BTreeSet<u32> = uplinks.map(|link| link.index).collect();
        let holders = self.addresses.iter();
        let holders = holders.filter(|address| settings.addresses.contains(&address.address));
        let mut links = uplinks.clone();
        links.extend(holders.flat_map(|address| self.stack(address.index)));
        Interests { uplinks, links }
    }
}

/// Indexes of the interfaces whose changes matter.
#[derive(Debug, Default)]
pub struct Interests {
    uplinks: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Interests {
    pub fn link(&self, settings: &Settings, message: &LinkMessage) -> bool {
        self.links.contains(&message.header.index)
            || message.attributes.iter().any(|attribute| {
                matches!(attribute, LinkAttribute::IfName(name) if settings.uplinks.contains(name))
            })
    }

    pub fn address(&self, settings: &Settings, message: &AddressMessage) -> bool {
        if settings.addresses.is_empty() {
            return self.uplinks.contains(&message.header.index);
        }
        Address::of(message).is_some_and(|found| settings.addresses.contains(&found.address))
    }
}

fn list(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: &str = "eth0";

    fn link(index: u32, name: &str, kind: Option<InfoKind>, more: &[LinkAttribute]) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = more.to_vec();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let kind = kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes.extend(kind);
        Link::of(&message)
    }

    /// The interface that replies from an address on interface 9 leave by.
    fn leaves_by(links: Vec<Link>) -> u32 {
        let address: IpAddr = [192, 0, 2, 1].into();
        let table = Table {
            links,
            addresses: vec![Address {
                index: 9,
                address,
                usable: true,
                minor: false,
            }],
        };
        let settings = Settings {
            uplinks: vec![UPLINK.into()],
            addresses: vec![address],
        };
        let snapshot = table.snapshot(&settings).unwrap();
        snapshot.own[0].uplink
    }

    #[test]
    fn stacks_down_to_an_uplink_are_seen_through() {
        use LinkAttribute::{Controller, LinkNetNsId};
        let lower = LinkAttribute::Link;
        let uplink = || link(2, UPLINK, None, &[]);
        let port = || link(2, UPLINK, None, &[Controller(5)]);
        let vlan = |more: &[LinkAttribute]| link(9, "vlan", Some(InfoKind::Vlan), more);

        assert_eq!(leaves_by(vec![uplink(), vlan(&[lower(2)])]), 9);
        let bond = link(5, "bond0", Some(InfoKind::Bond), &[]);
        assert_eq!(leaves_by(vec![port(), bond.clone(), vlan(&[lower(5)])]), 9);
        assert_eq!(leaves_by(vec![uplink(), bond, vlan(&[lower(5)])]), 2);
        let vrf = link(5, "vrf0", Some(InfoKind::Vrf), &[]);
        assert_eq!(leaves_by(vec![port(), vrf, vlan(&[lower(5)])]), 2);
        // An interface of another namespace may have the uplink's index.
        let moved = vlan(&[lower(2), LinkNetNsId(0)]);
        assert_eq!(leaves_by(vec![uplink(), moved]), 2);
        let veth = link(9, "veth", Some(InfoKind::Veth), &[lower(2)]);
        assert_eq!(leaves_by(vec![uplink(), veth]), 2);
        // No end to this, but an answer.
        let ring = link(5, "ring", Some(InfoKind::MacVlan), &[lower(9)]);
        assert_eq!(leaves_by(vec![uplink(), ring, vlan(&[lower(5)])]), 2);
    }
}
