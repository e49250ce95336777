//! What the edge is to do, from what tenants are allocated and where gateways
//! are.
//!
//! Events go in, the desired port map comes out; nothing here does I/O. There
//! is no desired map before both sides have been told whole: an agent that has
//! seen half of the world must not act on it.

use std::collections::BTreeMap;

use uuid::Uuid;
use vpn_edge_ebpf::mac1;

use crate::domain::{GatewayState, Limits, PlanLimits, Tenant};
use crate::gateways::{Gateway, Location};

/// What a port is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub tenant: Uuid,
    pub generation: u64,
    /// See [`vpn_edge_common::Allocation::mac1`].
    pub mac1: [u32; 8],
    pub limits: Limits,
    /// The gateway of this generation; none closes the port.
    pub location: Option<Location>,
}

/// See the module.
#[derive(Default)]
pub struct Index {
    limits: PlanLimits,
    /// Without locations.
    tenants: Option<BTreeMap<u16, Entry>>,
    gateways: Option<BTreeMap<u16, Gateway>>,
}

impl Index {
    /// An index that knows nothing yet but what plans may use.
    #[must_use]
    pub fn new(limits: PlanLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Takes the complete list of tenants.
    pub fn reset_tenants(&mut self, tenants: &[Tenant]) {
        let before = self.tenants.take().unwrap_or_default();
        let allocated = tenants.iter().filter_map(|tenant| {
            let allocation = tenant.vpn.allocation.as_ref()?;
            let generation = tenant.vpn.generation;
            // A public key takes some 50 µs to compute, which adds up.
            let known = before
                .get(&allocation.port)
                .filter(|known| known.tenant == tenant.id && known.generation == generation);
            let mac1 = match known {
                Some(known) => known.mac1,
                None => mac1::key(allocation.keys.server.public().as_bytes()),
            };
            let entry = Entry {
                tenant: tenant.id,
                generation,
                mac1,
                limits: self.limits.of(tenant.plan),
                location: None,
            };
            Some((allocation.port, entry))
        });
        self.tenants = Some(allocated.collect());
    }

    /// Takes the complete list of gateways.
    pub fn reset_gateways(&mut self, gateways: Vec<Gateway>) {
        let by_port = gateways.into_iter().map(|gateway| (gateway.port, gateway));
        self.gateways = Some(by_port.collect());
    }

    /// The desired port map, once both lists are known.
    ///
    /// The port of a gateway that is nobody's any more stays closed until it is
    /// gone: passed on, its packets might still find it.
    #[must_use]
    pub fn desired(&self) -> Option<BTreeMap<u16, Entry>> {
        let (tenants, gateways) = (self.tenants.as_ref()?, self.gateways.as_ref()?);
        let orphans = gateways.values().map(|gateway| {
            let entry = Entry {
                tenant: gateway.tenant,
                generation: gateway.generation,
                mac1: [0; 8],
                limits: Limits::default(),
                location: None,
            };
            (gateway.port, entry)
        });
        let mut desired: BTreeMap<u16, Entry> = orphans.collect();
        for (&port, entry) in tenants {
            let location = gateways
                .get(&port)
                .filter(|gateway| gateway.tenant == entry.tenant)
                .filter(|gateway| gateway.generation == entry.generation)
                .filter(|gateway| gateway.state == GatewayState::Ready)
                .and_then(|gateway| gateway.location.clone());
            let entry = Entry {
                location,
                ..entry.clone()
            };
            desired.insert(port, entry);
        }
        Some(desired)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::domain::{Keys, Plan, PortPool};
    use crate::gateways::{Addresses, Link};

    const PORT: u16 = 31_001;

    fn tenant() -> Tenant {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let id = Uuid::from_u128(7);
        let mut tenant = Tenant::new(id, "acme".into(), Plan::Business, now).unwrap();
        let range = format!("{PORT}-{PORT}").parse().unwrap();
        let mut pool = PortPool::new(range, [], []).unwrap();
        tenant.set_ready(true);
        let keys = Keys::generate().unwrap();
        tenant.enable(&mut pool, Ok(keys), now).unwrap();
        tenant
    }

    fn gateway(tenant: &Tenant) -> Gateway {
        Gateway {
            tenant: tenant.id,
            generation: tenant.vpn.generation,
            port: PORT,
            networks: Vec::new(),
            state: GatewayState::Ready,
            location: Some(Location::Here(Link {
                interface: "vpn-edge-31001".into(),
                ifindex: 9,
                gateway_mac: [4; 6],
                addresses: Addresses {
                    v4: Some(Ipv4Addr::new(100, 64, 121, 25)),
                    v6: None,
                },
                takes_redirects: true,
            })),
        }
    }

    fn located(tenants: &[Tenant], gateways: Vec<Gateway>) -> Option<bool> {
        let mut index = Index::default();
        index.reset_tenants(tenants);
        index.reset_gateways(gateways);
        let desired = index.desired().unwrap();
        desired.get(&PORT).map(|entry| entry.location.is_some())
    }

    #[test]
    fn nothing_is_desired_before_both_lists_are_complete() {
        let mut index = Index::default();
        assert_eq!(index.desired(), None);
        index.reset_tenants(&[]);
        assert_eq!(index.desired(), None);
        index.reset_gateways(Vec::new());
        assert_eq!(index.desired(), Some(BTreeMap::new()));

        let mut index = Index::default();
        index.reset_gateways(Vec::new());
        assert_eq!(index.desired(), None);
    }

    #[test]
    fn a_ready_gateway_of_the_right_generation_is_steered_to() {
        let tenant = tenant();
        let gateway = gateway(&tenant);
        assert_eq!(located(&[tenant], vec![gateway]), Some(true));
    }

    #[test]
    fn a_port_stays_closed_while_its_gateway_is_missing_or_another() {
        let tenant = tenant();
        let right = gateway(&tenant);
        let mut old = right.clone();
        old.generation -= 1;
        let mut foreign = right.clone();
        foreign.tenant = Uuid::from_u128(8);
        let mut starting = right.clone();
        starting.state = GatewayState::Starting;
        for gateways in [vec![], vec![old], vec![foreign], vec![starting]] {
            assert_eq!(
                located(std::slice::from_ref(&tenant), gateways),
                Some(false)
            );
        }
    }

    #[test]
    fn a_port_stays_closed_until_the_gateway_of_no_tenant_is_gone() {
        let gateway = gateway(&tenant());
        assert_eq!(located(&[], vec![gateway]), Some(false));
        assert_eq!(located(&[], vec![]), None);
    }

    #[test]
    fn what_proves_knowledge_of_the_key_follows_the_key() {
        let mut tenant = tenant();
        let proof = |index: &Index| index.tenants.as_ref().unwrap()[&PORT].mac1;
        let mut index = Index::default();
        index.reset_tenants(std::slice::from_ref(&tenant));
        let first = proof(&index);
        index.reset_tenants(std::slice::from_ref(&tenant));
        assert_eq!(proof(&index), first);

        let observed = crate::domain::Observed {
            gateway: GatewayState::Ready,
            steerable: true,
        };
        tenant.observe(&observed, jiff::Timestamp::UNIX_EPOCH);
        let keys = Keys::generate().unwrap();
        let expected = mac1::key(keys.server.public().as_bytes());
        tenant
            .regenerate(keys, jiff::Timestamp::UNIX_EPOCH)
            .unwrap();
        index.reset_tenants(&[tenant]);
        assert_ne!(proof(&index), first);
        assert_eq!(proof(&index), expected);
    }
}
