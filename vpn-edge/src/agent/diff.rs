//! The steps from the observed to the desired port map.

use std::collections::{BTreeMap, BTreeSet};

use vpn_edge_common::{Address, Allocation, NODE_SLOT, Rates, frame_addresses, mapped, mode};

use super::index::Entry;
use crate::datapath::{Change, EDGE_MAC, SlotState};
use crate::domain::Limits;
use crate::gateways::{Addresses, Location};

/// More ports are allocated than the node has counter slots.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} ports are allocated, but an edge node serves {NODE_SLOT}: make the port pool smaller")]
pub struct OutOfSlots(pub usize);

/// The changes from `observed` to `desired`, over the union of both.
///
/// A tenant keeps its slot, and with it its counters and sessions, as long as it
/// keeps its port; a change of keys removes the sessions. A port that is opened
/// without having been closed before may have a gateway with sessions that this edge
/// did not observe from their start: it gets a grace period.
///
/// # Errors
///
/// [`OutOfSlots`].
pub fn diff(
    observed: &BTreeMap<u16, Allocation>,
    desired: &BTreeMap<u16, Entry>,
) -> Result<Vec<Change>, OutOfSlots> {
    let mut changes: Vec<Change> = observed
        .keys()
        .filter(|port| !desired.contains_key(port))
        .map(|&port| Change {
            port,
            allocation: Allocation::default(),
            memory: SlotState::Keep,
            grace: false,
        })
        .collect();

    let mut slots = BTreeSet::new();
    let mut kept = BTreeMap::new();
    for (&port, entry) in desired {
        let known = observed
            .get(&port)
            .filter(|known| known.tenant == *entry.tenant.as_bytes());
        if let Some(known) = known
            && known.slot < NODE_SLOT
            && slots.insert(known.slot)
        {
            kept.insert(port, known);
        }
    }

    // Slots that were in use until now are assigned last, so that readers of counters
    // do not see one tenant's numbers continue with another's.
    let used: BTreeSet<u16> = observed.values().map(|known| known.slot).collect();
    let free = || (0..NODE_SLOT).filter(|slot| !slots.contains(slot));
    let fresh = free().filter(|slot| !used.contains(slot));
    let mut free = fresh.chain(free().filter(|slot| used.contains(slot)));

    for (&port, entry) in desired {
        let (slot, memory) = match kept.get(&port) {
            Some(known) if known.generation == entry.generation => (known.slot, SlotState::Keep),
            Some(known) => (known.slot, SlotState::Forget),
            None => {
                let slot = free.next().ok_or(OutOfSlots(desired.len()))?;
                (slot, SlotState::Reset)
            }
        };
        let change = Change {
            port,
            allocation: allocation(entry, slot),
            memory,
            grace: entry.location.is_some() && !observed.contains_key(&port),
        };
        if observed.get(&port) != Some(&change.allocation) {
            changes.push(change);
        }
    }
    Ok(changes)
}

fn allocation(entry: &Entry, slot: u16) -> Allocation {
    let rates = rates(entry.limits);
    let identity = Allocation {
        mode: mode::CLOSED,
        slot,
        tenant: *entry.tenant.as_bytes(),
        generation: entry.generation,
        mac1: entry.mac1,
        limited: u8::from(rates != Rates::default()),
        rates,
        ..Allocation::default()
    };
    match &entry.location {
        None | Some(Location::Kernel) => identity,
        Some(Location::Here(link)) => Allocation {
            mode: if link.takes_redirects {
                mode::XDP
            } else {
                mode::TC
            },
            ifindex: link.ifindex,
            frame: frame_addresses(link.gateway_mac, EDGE_MAC),
            gateway: v4(link.addresses),
            gateway6: v6(link.addresses),
            ..identity
        },
        Some(Location::There(node)) => Allocation {
            mode: mode::HOP,
            gateway: v4(*node),
            gateway6: v6(*node),
            ..identity
        },
    }
}

fn v4(addresses: Addresses) -> Address {
    addresses.v4.map_or([0; 16], |v4| mapped(v4.octets()))
}

fn v6(addresses: Addresses) -> Address {
    addresses.v6.map_or([0; 16], |v6| v6.octets())
}

/// The cost of a packet and of a byte at these limits. Rounded up, so that never more
/// than the limit passes.
fn rates(limits: Limits) -> Rates {
    let cost = |second: u64, rate: Option<u64>| rate.map_or(0, |rate| second.div_ceil(rate) as u32);
    Rates {
        packet: cost(1_000_000_000, limits.packets.map(u64::from)),
        byte: cost(1_000_000_000 << 10, limits.bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::gateways::Link;

    fn entry(tenant: u128, generation: u64, open: bool) -> Entry {
        Entry {
            tenant: Uuid::from_u128(tenant),
            generation,
            mac1: [7; 8],
            limits: Limits::default(),
            location: open.then(|| {
                Location::Here(Link {
                    interface: format!("veth{tenant}"),
                    ifindex: tenant as u32,
                    gateway_mac: [4; 6],
                    addresses: Addresses {
                        v4: Some(Ipv4Addr::new(100, 64, 0, tenant as u8)),
                        v6: None,
                    },
                    takes_redirects: true,
                })
            }),
        }
    }

    fn apply(observed: &mut BTreeMap<u16, Allocation>, changes: &[Change]) {
        for change in changes {
            if change.allocation.mode == mode::NONE {
                observed.remove(&change.port);
            } else {
                observed.insert(change.port, change.allocation);
            }
        }
    }

    fn only(changes: &[Change]) -> &Change {
        let [change] = changes else {
            panic!("{changes:?}");
        };
        change
    }

    #[test]
    fn nothing_is_done_where_nothing_differs() {
        let desired = BTreeMap::from([(31_000, entry(1, 1, true)), (31_001, entry(2, 4, false))]);
        let mut observed = BTreeMap::new();
        apply(&mut observed, &diff(&BTreeMap::new(), &desired).unwrap());
        assert_eq!(diff(&observed, &desired), Ok(Vec::new()));
    }

    #[test]
    fn a_port_that_only_the_map_knows_is_cleared() {
        let orphan = Allocation {
            mode: mode::XDP,
            ..Allocation::default()
        };
        let observed = BTreeMap::from([(32_000, orphan)]);
        let changes = diff(&observed, &BTreeMap::new()).unwrap();
        assert_eq!(only(&changes).port, 32_000);
        assert_eq!(only(&changes).allocation, Allocation::default());
    }

    #[test]
    fn a_tenant_keeps_its_slot_and_a_new_one_starts_from_zero() {
        let mut observed = BTreeMap::new();
        let before = BTreeMap::from([(31_000, entry(1, 1, true))]);
        apply(&mut observed, &diff(&BTreeMap::new(), &before).unwrap());
        let slot = observed[&31_000].slot;

        let moved = BTreeMap::from([(31_000, entry(1, 1, false))]);
        let changes = diff(&observed, &moved).unwrap();
        assert_eq!(only(&changes).memory, SlotState::Keep);
        assert_eq!(only(&changes).allocation.slot, slot);

        let rotated = BTreeMap::from([(31_000, entry(1, 2, true))]);
        let changes = diff(&observed, &rotated).unwrap();
        assert_eq!(only(&changes).memory, SlotState::Forget);
        assert_eq!(only(&changes).allocation.slot, slot);

        let another = BTreeMap::from([(31_000, entry(2, 1, true))]);
        let changes = diff(&observed, &another).unwrap();
        assert_eq!(only(&changes).memory, SlotState::Reset);
        assert_ne!(only(&changes).allocation.slot, slot);
    }

    #[test]
    fn only_a_port_that_opens_out_of_nothing_has_grace() {
        let open = BTreeMap::from([(31_000, entry(1, 1, true))]);
        let closed = BTreeMap::from([(31_000, entry(1, 1, false))]);
        let changes = diff(&BTreeMap::new(), &open).unwrap();
        assert!(only(&changes).grace);

        let mut observed = BTreeMap::new();
        let changes = diff(&observed, &closed).unwrap();
        assert!(!only(&changes).grace);
        apply(&mut observed, &changes);
        let changes = diff(&observed, &open).unwrap();
        assert!(!only(&changes).grace);
        apply(&mut observed, &changes);
        let rotated = BTreeMap::from([(31_000, entry(1, 2, true))]);
        assert!(!only(&diff(&observed, &rotated).unwrap()).grace);
    }

    #[test]
    fn an_edge_with_too_many_ports_says_so() {
        let desired = (0..=NODE_SLOT)
            .map(|port| (port, entry(u128::from(port), 1, true)))
            .collect();
        let error = diff(&BTreeMap::new(), &desired).unwrap_err();
        assert_eq!(error, OutOfSlots(usize::from(NODE_SLOT) + 1));
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
                prop_assert!(map[port].slot < NODE_SLOT);
            }
            prop_assert_eq!(diff(&map, &desired), Ok(Vec::new()));
        }
    }

    #[test]
    fn limits_become_what_a_packet_and_a_byte_cost() {
        let limits = Limits {
            packets: Some(50_000),
            bytes: Some(12_500_000),
        };
        let expected = Rates {
            packet: 20_000,
            byte: 81_920,
        };
        assert_eq!(rates(limits), expected);
        assert_eq!(rates(Limits::default()), Rates::default());
        let least = Limits {
            packets: Some(1),
            bytes: Some(1_000),
        };
        assert_eq!(rates(least).byte, 1_024_000_000);
    }
}
