//! The set of other edge nodes' addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use vpn_edge_common::{Address, Edge, NODES, map};
use vpn_edge_ebpf::guard;

use super::{MapError, Maps, Reader, ip, to_address, unreadable, unwritable};

impl Reader {
    /// Addresses of other edge nodes; none if the maps are from a version without
    /// this map.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a lookup.
    pub fn nodes(&self) -> Result<BTreeSet<IpAddr>, MapError> {
        let Some(nodes) = &self.nodes else {
            return Ok(BTreeSet::new());
        };
        nodes
            .keys()
            .map(|key| Ok(ip(key.map_err(|source| unreadable(map::NODES, source))?)))
            .collect()
    }

    /// Whether a client is another edge node, which forwards for a client of its own.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the lookup.
    pub fn is_edge_node(&self, edge: &Edge, client: SocketAddr) -> Result<bool, MapError> {
        if guard::hop(edge, client.port()).is_none() {
            return Ok(false);
        }
        let Some(nodes) = &self.nodes else {
            // The programs of that version consider only the port.
            return Ok(true);
        };
        match nodes.get(&to_address(client.ip()), 0) {
            Ok(_) => Ok(true),
            Err(aya::maps::MapError::KeyNotFound) => Ok(false),
            Err(source) => Err(unreadable(map::NODES, source)),
        }
    }
}

impl Maps {
    /// Replaces the set of other edge nodes' addresses by `wanted`. Entries that stay
    /// are not written. Of more than [`NODES`], the first are used.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a lookup or an update.
    pub fn set_nodes(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), MapError> {
        let known = self.nodes()?;
        let Steps { remove, add } = steps(&known, wanted);
        let Some(nodes) = &mut self.0.nodes else {
            return Ok(());
        };
        let failed = |source| unwritable(map::NODES, source);
        // First, because a full map accepts no entries.
        for address in remove {
            nodes.remove(&address).map_err(failed)?;
        }
        for address in add {
            nodes.insert(address, 1, 0).map_err(failed)?;
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Steps {
    remove: Vec<Address>,
    add: Vec<Address>,
}

fn steps(known: &BTreeSet<IpAddr>, wanted: &BTreeSet<IpAddr>) -> Steps {
    let wanted: BTreeSet<IpAddr> = wanted.iter().take(NODES as usize).copied().collect();
    let difference = |of: &BTreeSet<IpAddr>, without: &BTreeSet<IpAddr>| {
        of.difference(without).copied().map(to_address).collect()
    };
    Steps {
        remove: difference(known, &wanted),
        add: difference(&wanted, known),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|one| one.parse().unwrap()).collect()
    }

    fn keys(addresses: &[&str]) -> Vec<Address> {
        set(addresses).into_iter().map(to_address).collect()
    }

    #[test]
    fn only_differences_are_written() {
        let known = set(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!(steps(&known, &known), steps(&set(&[]), &set(&[])));
        let expected = Steps {
            remove: keys(&["192.0.2.1"]),
            add: keys(&["192.0.2.3", "2001:db8::3"]),
        };
        let wanted = set(&["192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::3"]);
        assert_eq!(steps(&known, &wanted), expected);
    }

    #[test]
    fn no_more_are_added_than_the_map_holds() {
        let all = |count: u32| (0..count).map(|number| Ipv4Addr::from_bits(number).into());
        let wanted: BTreeSet<IpAddr> = all(NODES + 5).collect();
        let Steps { remove, add } = steps(&set(&["2001:db8::1"]), &wanted);
        assert_eq!(remove, keys(&["2001:db8::1"]), "to make room");
        assert_eq!(add.len(), NODES as usize);
        let full: BTreeSet<IpAddr> = all(NODES).collect();
        assert_eq!(steps(&full, &wanted), steps(&full, &full), "it stays");
    }
}
