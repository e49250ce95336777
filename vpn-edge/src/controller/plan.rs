//! Which gateways to remove and which to make.

use std::collections::BTreeMap;

use crate::domain::{GatewayState, Tenant};
use crate::gateways::Gateway;

/// A step towards the gateways that are asked for.
#[derive(Debug)]
pub enum Action<'a> {
    /// End whatever is on this port.
    Remove(u16),
    /// Make this tenant's gateway, in place of any other on its port.
    Ensure(&'a Tenant),
}

/// The steps from `gateways` to what `tenants` ask for, over the union of
/// both: a gateway that no tenant asks for is removed.
#[must_use]
pub fn plan<'a>(tenants: &'a [Tenant], gateways: &[Gateway]) -> Vec<Action<'a>> {
    let wanted: BTreeMap<u16, &Tenant> = tenants
        .iter()
        .filter_map(|tenant| Some((tenant.vpn.allocation.as_ref()?.port, tenant)))
        .collect();
    let serves = |gateway: &&Gateway| {
        wanted.get(&gateway.port).is_some_and(|tenant| {
            gateway.tenant == tenant.id
                && gateway.generation == tenant.vpn.generation
                && !matches!(gateway.state, GatewayState::Failed(_) | GatewayState::Absent)
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
