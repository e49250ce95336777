//! What keeps gateways from being as they are asked for.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::domain::{GatewayState, State, Tenant};
use crate::gateways::Gateway;

/// By tenant, for those that have keys and have not failed for good. `attempted`
/// is why the last attempt at a gateway of a generation failed; `late` tells of
/// gateways that run, and otherwise than they are to.
pub fn troubles<'a>(
    tenants: impl IntoIterator<Item = &'a Tenant>,
    gateways: &[Gateway],
    attempted: impl Fn(Uuid) -> Option<(u64, String)>,
    mut late: BTreeMap<Uuid, String>,
) -> BTreeMap<Uuid, String> {
    let mut failed = BTreeMap::new();
    for gateway in gateways {
        if let GatewayState::Failed(words) = &gateway.state {
            failed.insert((gateway.tenant, gateway.generation), words);
        }
    }
    let mut of = |tenant: &Tenant| {
        let generation = tenant.vpn.generation;
        let attempted = attempted(tenant.id).filter(|(of, _)| *of == generation);
        let failed = failed
            .get(&(tenant.id, generation))
            .map(|&words| words.clone());
        let late = late.remove(&tenant.id);
        attempted.map(|(_, words)| words).or(failed).or(late)
    };
    let tenants = tenants
        .into_iter()
        .filter(|tenant| tenant.vpn.allocation.is_some() && tenant.vpn.state != State::Failed);
    tenants
        .filter_map(|tenant| Some((tenant.id, of(tenant)?)))
        .collect()
}
