//! The ports that the edge should steer, computed from tenants' allocations and the
//! locations of gateways.
//!
//! Events go in, the desired port map comes out; nothing here does I/O. There is no
//! desired map before both lists are complete: an agent must not act on half of the
//! state.

use std::collections::BTreeMap;

use uuid::Uuid;
use vpn_edge_common::Allocation;
use vpn_edge_ebpf::mac1;

use super::source::Allocated;
use crate::domain::{GatewayState, Limits, PlanLimits, PortRange};
use crate::gateways::{Gateway, Location};

/// The desired state of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub tenant: Uuid,
    pub generation: u64,
    /// See [`vpn_edge_common::Allocation::mac1`].
    pub mac1: [u32; 8],
    pub limits: Limits,
    /// The gateway of this generation; none closes the port. Never
    /// [`Location::Kernel`].
    pub location: Option<Location>,
}

/// See the module documentation.
#[derive(Default)]
pub struct Index {
    limits: PlanLimits,
    /// Ports outside these ranges are never steered, whatever tenants hold.
    ports: Vec<PortRange>,
    /// Without locations.
    tenants: Option<BTreeMap<u16, Entry>>,
    gateways: Option<BTreeMap<u16, Gateway>>,
    /// Tenants whose port is outside the ranges.
    outside: BTreeMap<u16, Uuid>,
}

impl Index {
    /// An empty index, with the limits of plans and the ports that may be steered.
    #[must_use]
    pub fn new(limits: PlanLimits, ports: Vec<PortRange>) -> Self {
        Self {
            limits,
            ports,
            ..Self::default()
        }
    }

    /// Replaces the list of allocations; it must be complete.
    pub fn reset_allocations(&mut self, allocated: Vec<Allocated>) {
        let (inside, outside): (Vec<_>, Vec<_>) = allocated
            .into_iter()
            .partition(|allocated| self.may_steer(allocated.port));
        self.outside = outside.iter().map(|of| (of.port, of.tenant)).collect();
        let by_port = inside.into_iter().map(|allocated| {
            let entry = Entry {
                tenant: allocated.tenant,
                generation: allocated.generation,
                mac1: mac1::key(allocated.public_key.as_bytes()),
                limits: self.limits.of(allocated.plan),
                location: None,
            };
            (allocated.port, entry)
        });
        self.tenants = Some(by_port.collect());
    }

    /// Replaces the list of gateways; it must be complete.
    pub fn reset_gateways(&mut self, gateways: Vec<Gateway>) {
        let by_port = gateways.into_iter().map(|gateway| (gateway.port, gateway));
        self.gateways = Some(by_port.collect());
    }

    /// Tenants with a port outside the ranges that may be steered.
    #[must_use]
    pub fn outside(&self) -> &BTreeMap<u16, Uuid> {
        &self.outside
    }

    fn may_steer(&self, port: u16) -> bool {
        self.ports.iter().any(|range| range.contains(port))
    }

    /// The desired port map, once both lists are known; `observed` is the current
    /// port map.
    ///
    /// The port of a gateway that belongs to no tenant any more stays closed until
    /// the gateway is gone: if it were left to the kernel, packets might still reach
    /// the gateway. So does the port of a gateway that is left to the kernel, until
    /// it is ready and has the right keys. Whether a port was its tenant's before is
    /// taken from the map, not from gateways: anybody who may create Services in a
    /// namespace can create an endpoint for any port.
    #[must_use]
    pub fn desired(&self, observed: &BTreeMap<u16, Allocation>) -> Option<BTreeMap<u16, Entry>> {
        let (tenants, gateways) = (self.tenants.as_ref()?, self.gateways.as_ref()?);
        let was_its_tenants = |gateway: &&Gateway| {
            let observed = observed.get(&gateway.port);
            observed.is_some_and(|observed| observed.tenant == *gateway.tenant.as_bytes())
        };
        let orphans = gateways.values().filter(was_its_tenants);
        let orphans = orphans.filter(|gateway| self.may_steer(gateway.port));
        let orphans = orphans.map(|gateway| {
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
            if location == Some(Location::Kernel) {
                desired.remove(&port);
                continue;
            }
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
    use crate::domain::{Plan, TunnelDigest};
    use crate::gateways::{Addresses, Link};
    use crate::wireguard::{PrivateKey, PublicKey};

    const PORT: u16 = 31_001;

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes([byte; 32]).public()
    }

    fn allocated() -> Allocated {
        Allocated {
            port: PORT,
            tenant: Uuid::from_u128(7),
            generation: 2,
            public_key: key(1),
            plan: Plan::Business,
        }
    }

    fn gateway(allocated: &Allocated) -> Gateway {
        Gateway {
            tenant: allocated.tenant,
            generation: allocated.generation,
            port: PORT,
            digest: TunnelDigest::default(),
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

    fn index() -> Index {
        Index::new(PlanLimits::default(), vec!["30000-32767".parse().unwrap()])
    }

    /// A map in which the port is this tenant's.
    fn observed(tenant: u128) -> BTreeMap<u16, Allocation> {
        let allocation = Allocation {
            tenant: *Uuid::from_u128(tenant).as_bytes(),
            ..Allocation::default()
        };
        [(PORT, allocation)].into()
    }

    fn located(allocated: &[Allocated], gateways: Vec<Gateway>) -> Option<bool> {
        let mut index = index();
        index.reset_allocations(allocated.to_vec());
        index.reset_gateways(gateways);
        let desired = index.desired(&observed(7)).unwrap();
        desired.get(&PORT).map(|entry| entry.location.is_some())
    }

    #[test]
    fn nothing_is_desired_before_both_lists_are_complete() {
        let nothing = BTreeMap::new();
        let mut index = self::index();
        assert_eq!(index.desired(&nothing), None);
        index.reset_allocations(Vec::new());
        assert_eq!(index.desired(&nothing), None);
        index.reset_gateways(Vec::new());
        assert_eq!(index.desired(&nothing), Some(BTreeMap::new()));

        let mut index = self::index();
        index.reset_gateways(Vec::new());
        assert_eq!(index.desired(&nothing), None);
    }

    #[test]
    fn a_port_outside_the_ranges_is_never_taken_from_the_kernel() {
        let mut index = index();
        let mut far = allocated();
        far.port = 8472;
        let mut gateway = gateway(&allocated());
        gateway.port = far.port;
        let observed = [(far.port, observed(7)[&PORT])].into();
        index.reset_gateways(vec![gateway]);
        index.reset_allocations(vec![far.clone()]);
        assert_eq!(index.desired(&observed), Some(BTreeMap::new()));
        assert_eq!(*index.outside(), [(far.port, far.tenant)].into());
        index.reset_allocations(vec![allocated()]);
        assert!(index.outside().is_empty());
        let desired = index.desired(&observed).unwrap();
        assert_eq!(desired.into_keys().collect::<Vec<_>>(), [PORT]);
    }

    #[test]
    fn a_gateway_alone_closes_no_port_that_was_not_its_tenants() {
        let mut index = index();
        index.reset_allocations(Vec::new());
        index.reset_gateways(vec![gateway(&allocated())]);
        for before in [BTreeMap::new(), observed(8)] {
            assert_eq!(index.desired(&before), Some(BTreeMap::new()));
        }
    }

    #[test]
    fn a_ready_gateway_of_the_right_generation_is_steered_to() {
        let allocated = allocated();
        let gateway = gateway(&allocated);
        assert_eq!(located(&[allocated], vec![gateway]), Some(true));
    }

    #[test]
    fn a_port_stays_closed_while_its_gateway_is_missing_or_another() {
        let allocated = allocated();
        let right = gateway(&allocated);
        let mut old = right.clone();
        old.generation -= 1;
        let mut foreign = right.clone();
        foreign.tenant = Uuid::from_u128(8);
        let mut starting = right.clone();
        starting.state = GatewayState::Starting;
        for gateways in [vec![], vec![old], vec![foreign], vec![starting]] {
            assert_eq!(
                located(std::slice::from_ref(&allocated), gateways),
                Some(false)
            );
        }
    }

    #[test]
    fn a_port_stays_closed_until_the_gateway_of_no_tenant_is_gone() {
        let gateway = gateway(&allocated());
        assert_eq!(located(&[], vec![gateway]), Some(false));
        assert_eq!(located(&[], vec![]), None);
    }

    #[test]
    fn a_port_that_is_the_kernels_is_left_out_once_its_gateway_is_ready() {
        let allocated = allocated();
        let mut gateway = gateway(&allocated);
        gateway.location = Some(Location::Kernel);
        let of =
            |gateway: &Gateway| located(std::slice::from_ref(&allocated), vec![gateway.clone()]);
        assert_eq!(of(&gateway), None);
        let mut starting = gateway.clone();
        starting.state = GatewayState::Starting;
        assert_eq!(of(&starting), Some(false));
        let mut old = gateway.clone();
        old.generation -= 1;
        assert_eq!(of(&old), Some(false));
        assert_eq!(located(&[], vec![gateway]), Some(false));
    }

    #[test]
    fn what_proves_knowledge_of_the_key_follows_the_key() {
        let proof = |index: &Index| index.tenants.as_ref().unwrap()[&PORT].mac1;
        let mut index = index();
        let mut allocated = allocated();
        index.reset_allocations(vec![allocated.clone()]);
        assert_eq!(proof(&index), mac1::key(key(1).as_bytes()));
        allocated.public_key = key(2);
        index.reset_allocations(vec![allocated]);
        assert_eq!(proof(&index), mac1::key(key(2).as_bytes()));
    }
}
