//! From the observed and the desired port map to the steps between them.

use std::collections::{BTreeMap, BTreeSet};

use vpn_edge_common::{Allocation, SLOTS, frame_addresses, mapped, mode};

use super::index::Entry;

/// One change of the maps, in the order in which to make them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A slot's counters start again, for its next tenant.
    ResetCounters(u16),
    Set(u16, Allocation),
    Clear(u16),
}

/// More ports are allocated than the node has counter slots.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} ports are allocated, but an edge node serves {SLOTS}: make the port pool smaller")]
pub struct OutOfSlots(pub usize);

/// The steps from `observed` to `desired`, over the union of both.
///
/// A tenant keeps its slot, and so its counters, for as long as it keeps its
/// port. What has to go goes first.
///
/// # Errors
///
/// [`OutOfSlots`].
pub fn diff(
    observed: &BTreeMap<u16, Allocation>,
    desired: &BTreeMap<u16, Entry>,
) -> Result<Vec<Step>, OutOfSlots> {
    // Also where a port goes from one tenant to another: were one entry written
    // over the other, a program could read the half of each.
    let mut steps: Vec<Step> = observed
        .iter()
        .filter(|(port, allocation)| {
            desired
                .get(port)
                .is_none_or(|entry| allocation.tenant != *entry.tenant.as_bytes())
        })
        .map(|(&port, _)| Step::Clear(port))
        .collect();

    let mut slots = BTreeSet::new();
    let mut kept = BTreeMap::new();
    for (&port, entry) in desired {
        let slot = observed
            .get(&port)
            .filter(|allocation| allocation.tenant == *entry.tenant.as_bytes())
            .map(|allocation| allocation.slot);
        if let Some(slot) = slot
            && u32::from(slot) < SLOTS
            && slots.insert(slot)
        {
            kept.insert(port, slot);
        }
    }

    // Slots that were in use until now are given out last, so that whoever
    // reads counters does not see two tenants' numbers follow each other.
    let (fresh, used): (Vec<u16>, Vec<u16>) = (0..SLOTS as u16)
        .filter(|slot| !slots.contains(slot))
        .partition(|slot| observed.values().all(|allocation| allocation.slot != *slot));
    let mut free = fresh.into_iter().chain(used);

    for (&port, entry) in desired {
        let slot = match kept.get(&port) {
            Some(&slot) => slot,
            None => {
                let slot = free.next().ok_or(OutOfSlots(desired.len()))?;
                steps.push(Step::ResetCounters(slot));
                slot
            }
        };
        let allocation = allocation(entry, slot);
        if observed.get(&port) != Some(&allocation) {
            steps.push(Step::Set(port, allocation));
        }
    }
    Ok(steps)
}

fn allocation(entry: &Entry, slot: u16) -> Allocation {
    let identity = Allocation {
        mode: mode::CLOSED,
        slot,
        tenant: *entry.tenant.as_bytes(),
        generation: entry.generation,
        ..Allocation::default()
    };
    let Some(location) = &entry.location else {
        return identity;
    };
    Allocation {
        mode: if location.takes_redirects {
            mode::XDP
        } else {
            mode::TC
        },
        ifindex: location.ifindex,
        frame: frame_addresses(location.gateway_mac, location.host_mac),
        gateway: mapped(location.address.octets()),
        ..identity
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::gateways::Location;

    fn entry(tenant: u128, generation: u64, open: bool) -> Entry {
        Entry {
            tenant: Uuid::from_u128(tenant),
            generation,
            location: open.then(|| Location {
                interface: format!("veth{tenant}"),
                ifindex: tenant as u32,
                host_mac: [2; 6],
                gateway_mac: [4; 6],
                address: Ipv4Addr::new(100, 64, 0, tenant as u8),
                takes_redirects: true,
            }),
        }
    }

    fn apply(observed: &mut BTreeMap<u16, Allocation>, steps: &[Step]) {
        for step in steps {
            match step {
                Step::ResetCounters(_) => {}
                Step::Set(port, allocation) => drop(observed.insert(*port, *allocation)),
                Step::Clear(port) => drop(observed.remove(port)),
            }
        }
    }

    #[test]
    fn nothing_is_done_where_nothing_differs() {
        let desired = BTreeMap::from([(31_000, entry(1, 1, true)), (31_001, entry(2, 4, false))]);
        let mut observed = BTreeMap::new();
        apply(&mut observed, &diff(&BTreeMap::new(), &desired).unwrap());
        assert_eq!(diff(&observed, &desired), Ok(Vec::new()));
    }

    #[test]
    fn a_port_that_only_the_map_knows_is_cleared_first() {
        let orphan = Allocation {
            mode: mode::XDP,
            ..Allocation::default()
        };
        let observed = BTreeMap::from([(32_000, orphan)]);
        let desired = BTreeMap::from([(31_000, entry(1, 1, true))]);
        let steps = diff(&observed, &desired).unwrap();
        assert_eq!(steps[0], Step::Clear(32_000));
        assert!(matches!(steps[2], Step::Set(31_000, _)));
    }

    #[test]
    fn a_tenant_keeps_its_slot_and_a_new_one_starts_from_zero() {
        let mut observed = BTreeMap::new();
        let before = BTreeMap::from([(31_000, entry(1, 1, true))]);
        apply(&mut observed, &diff(&BTreeMap::new(), &before).unwrap());
        let rotated = BTreeMap::from([(31_000, entry(1, 2, true))]);
        let steps = diff(&observed, &rotated).unwrap();
        assert!(
            matches!(steps[..], [Step::Set(31_000, new)] if new.slot == observed[&31_000].slot)
        );
        let another = BTreeMap::from([(31_000, entry(2, 1, true))]);
        let steps = diff(&observed, &another).unwrap();
        assert!(
            matches!(steps[..], [Step::Clear(31_000), Step::ResetCounters(new), Step::Set(31_000, _)]
            if new != observed[&31_000].slot)
        );
    }

    #[test]
    fn an_edge_with_too_many_ports_says_so() {
        let desired = (0..=SLOTS as u16)
            .map(|port| (port, entry(u128::from(port), 1, true)))
            .collect();
        let error = diff(&BTreeMap::new(), &desired).unwrap_err();
        assert_eq!(error, OutOfSlots(SLOTS as usize + 1));
    }

    fn any_allocation() -> impl Strategy<Value = Allocation> {
        (0..6_u8, any::<u16>(), any::<u32>(), 0..20_u128, 0..4_u64).prop_map(
            |(mode, slot, ifindex, tenant, generation)| Allocation {
                mode,
                slot,
                ifindex,
                tenant: *Uuid::from_u128(tenant).as_bytes(),
                generation,
                ..Allocation::default()
            },
        )
    }

    fn any_desired() -> impl Strategy<Value = BTreeMap<u16, Entry>> {
        proptest::collection::btree_map(
            31_000..31_020_u16,
            (0..20_u128, 0..4_u64, any::<bool>())
                .prop_map(|(tenant, generation, open)| entry(tenant, generation, open)),
            0..20,
        )
    }

    proptest! {
        #[test]
        fn whatever_was_in_the_map_the_steps_lead_to_what_is_desired(
            observed in proptest::collection::btree_map(30_990..31_030_u16, any_allocation(), 0..30),
            desired in any_desired(),
        ) {
            let mut map = observed;
            let steps = diff(&map, &desired).unwrap();
            apply(&mut map, &steps);
            prop_assert_eq!(map.keys().collect::<Vec<_>>(), desired.keys().collect::<Vec<_>>());
            let slots: BTreeSet<u16> = map.values().map(|allocation| allocation.slot).collect();
            prop_assert_eq!(slots.len(), map.len(), "no slot serves two ports");
            for (port, entry) in &desired {
                prop_assert_eq!(&map[port], &allocation(entry, map[port].slot));
                prop_assert!(u32::from(map[port].slot) < SLOTS);
            }
            prop_assert_eq!(diff(&map, &desired), Ok(Vec::new()));
        }
    }
}
