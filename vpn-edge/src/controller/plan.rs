//! Which gateways to remove and which to make.

use std::collections::BTreeMap;

use crate::domain::{GatewayState, Tenant};
use crate::gateways::Gateway;

/// A step towards the gateways that are asked for.
#[derive(Debug)]
pub enum Action<'a> {
    /// End whatever is on this port.
    Remove(u16),
    /// Make this tenant's gateway, in place of any other on its port, or tell
    /// the one that it has which networks it may reach now.
    Ensure(&'a Tenant),
}

/// The steps from `gateways` to what `tenants` ask for, over the union of
/// both: a gateway that no tenant asks for is removed.
#[must_use]
pub fn plan<'a>(
    tenants: impl IntoIterator<Item = &'a Tenant>,
    gateways: &[Gateway],
) -> Vec<Action<'a>> {
    let wanted: BTreeMap<u16, &Tenant> = tenants
        .into_iter()
        .filter_map(|tenant| Some((tenant.vpn.allocation.as_ref()?.port, tenant)))
        .collect();
    let serves = |gateway: &&Gateway| {
        wanted.get(&gateway.port).is_some_and(|tenant| {
            gateway.tenant == tenant.id
                && gateway.generation == tenant.vpn.generation
                && gateway.networks == tenant.networks
                && !matches!(
                    gateway.state,
                    GatewayState::Failed(_) | GatewayState::Absent
                )
        })
    };
    let served: BTreeMap<u16, &Gateway> = gateways
        .iter()
        .filter(serves)
        .map(|gateway| (gateway.port, gateway))
        .collect();
    let orphans = gateways
        .iter()
        .map(|gateway| gateway.port)
        .filter(|port| !wanted.contains_key(port))
        .map(Action::Remove);
    let missing = wanted
        .iter()
        .filter(|(port, _)| !served.contains_key(port))
        .map(|(_, tenant)| Action::Ensure(tenant));
    orphans.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Plan, PortPool};
    use crate::wireguard::Keys;

    fn tenant(id: u128, port: u16) -> Tenant {
        let now = Timestamp::UNIX_EPOCH;
        let id = Uuid::from_u128(id);
        let mut tenant = Tenant::new(id, "acme".into(), Plan::Business, now).unwrap();
        tenant.set_ready(true);
        let range = format!("{port}-{port}").parse().unwrap();
        let mut pool = PortPool::new(range, [], []).unwrap();
        tenant.enable(&mut pool, Keys::generate(), now).unwrap();
        tenant
    }

    fn gateway(tenant: &Tenant, state: GatewayState) -> Gateway {
        Gateway {
            tenant: tenant.id,
            generation: tenant.vpn.generation,
            port: tenant.vpn.allocation.as_ref().unwrap().port,
            networks: tenant.networks.clone(),
            state,
            location: None,
        }
    }

    fn steps(tenants: &[Tenant], gateways: &[Gateway]) -> Vec<String> {
        plan(tenants, gateways)
            .into_iter()
            .map(|action| match action {
                Action::Remove(port) => format!("remove {port}"),
                Action::Ensure(tenant) => format!("ensure {}", tenant.id.as_u128()),
            })
            .collect()
    }

    #[test]
    fn a_tenant_without_a_gateway_gets_one() {
        assert_eq!(steps(&[tenant(1, 31_001)], &[]), ["ensure 1"]);
    }

    #[test]
    fn a_gateway_that_serves_is_left_alone() {
        let tenant = tenant(1, 31_001);
        for state in [GatewayState::Starting, GatewayState::Ready] {
            let gateway = gateway(&tenant, state);
            assert!(steps(std::slice::from_ref(&tenant), &[gateway]).is_empty());
        }
    }

    #[test]
    fn a_gateway_that_failed_is_of_old_keys_or_anothers_is_replaced() {
        let tenant = tenant(1, 31_001);
        let failed = gateway(&tenant, GatewayState::Failed("why".into()));
        let mut old = gateway(&tenant, GatewayState::Ready);
        old.generation -= 1;
        let mut foreign = gateway(&tenant, GatewayState::Ready);
        foreign.tenant = Uuid::from_u128(2);
        for gateway in [failed, old, foreign] {
            assert_eq!(
                steps(std::slice::from_ref(&tenant), &[gateway]),
                ["ensure 1"]
            );
        }
    }

    #[test]
    fn a_gateway_that_reaches_other_networks_is_told_the_new_ones() {
        let mut tenant = tenant(1, 31_001);
        let gateway = gateway(&tenant, GatewayState::Ready);
        tenant
            .set_networks(vec!["10.97.1.0/24".parse().unwrap()])
            .unwrap();
        assert_eq!(steps(&[tenant], &[gateway]), ["ensure 1"]);
    }

    #[test]
    fn a_gateway_without_a_tenant_is_removed_before_others_are_made() {
        let (gone, new) = (tenant(1, 31_001), tenant(2, 31_002));
        let orphan = gateway(&gone, GatewayState::Ready);
        assert_eq!(steps(&[new], &[orphan]), ["remove 31001", "ensure 2"]);
    }

    #[test]
    fn a_disabled_tenant_wants_no_gateway() {
        let mut tenant = tenant(1, 31_001);
        let orphan = gateway(&tenant, GatewayState::Ready);
        let mut pool = PortPool::new("31001-31001".parse().unwrap(), [], []).unwrap();
        tenant.set_plan(Plan::Team, &mut pool, Timestamp::UNIX_EPOCH);
        assert_eq!(steps(&[tenant], &[orphan]), ["remove 31001"]);
    }
}
