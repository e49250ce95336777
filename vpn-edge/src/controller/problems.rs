//! Why gateways do not match what their tenants ask for.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::domain::{GatewayState, State, Tenant};
use crate::gateways::Gateway;

/// Problems by tenant, for tenants that have keys and have not failed. `attempted`
/// returns why the last attempt at a gateway of a generation failed; `late` has the
/// gateways that run with an outdated spec.
pub fn problems<'a>(
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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::domain::{Keys, Plan, PortPool, TunnelDigest};

    fn tenant(id: u128, state: State) -> Tenant {
        let (id, now) = (Uuid::from_u128(id), Timestamp::UNIX_EPOCH);
        let mut tenant = Tenant::new(id, "acme".into(), Plan::Business, now).unwrap();
        tenant.set_ready(true);
        let mut pool = PortPool::new("31001-31001".parse().unwrap(), [], []).unwrap();
        tenant
            .enable(&mut pool, &[], Keys::generate(), now)
            .unwrap();
        tenant.vpn.state = state;
        tenant
    }

    fn gateway(tenant: &Tenant, generation: u64, words: &str) -> Gateway {
        Gateway {
            tenant: tenant.id,
            generation,
            port: 31_001,
            digest: TunnelDigest::default(),
            state: GatewayState::Failed(words.into()),
            location: None,
        }
    }

    #[test]
    fn the_nearest_trouble_of_each_tenant_is_told() {
        let states = [
            State::Enabling,
            State::Enabling,
            State::Enabled,
            State::Enabling,
        ];
        let tenants: Vec<Tenant> = (1..)
            .zip(states)
            .map(|(n, state)| tenant(n, state))
            .collect();
        let [one, two, three, old] = &tenants[..] else {
            unreachable!()
        };
        let gateways = [
            gateway(one, 1, "failed"),
            gateway(two, 1, "failed"),
            gateway(old, 0, "failed"),
        ];
        let attempted = |id| {
            let attempted = [(two.id, 1, "attempted"), (old.id, 0, "attempted")];
            let found = attempted.into_iter().find(|(of, ..)| *of == id);
            found.map(|(_, generation, words)| (generation, words.to_owned()))
        };
        let late = [two, three].map(|tenant| (tenant.id, "late".to_owned()));
        let told = problems(&tenants, &gateways, attempted, late.into());
        let expected = [(one, "failed"), (two, "attempted"), (three, "late")];
        let expected = expected.map(|(tenant, words)| (tenant.id, words.to_owned()));
        assert_eq!(told, expected.into());
    }

    #[test]
    fn who_has_no_keys_or_has_failed_has_no_trouble() {
        let failed = tenant(1, State::Failed);
        let mut off = tenant(2, State::Disabled);
        off.vpn.allocation = None;
        let attempted = |_| Some((1, "attempted".to_owned()));
        let told = problems([&failed, &off], &[], attempted, BTreeMap::new());
        assert!(told.is_empty(), "{told:?}");
    }
}
