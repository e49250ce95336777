//! Which gateways to create and which to remove.

use std::collections::BTreeMap;

use crate::domain::{GatewayState, Tenant, TunnelDigest, TunnelSettings, TunnelSpec};
use crate::gateways::{Gateway, GatewaySpec};

/// A gateway that a tenant asks for.
#[derive(Debug)]
pub struct Wanted {
    pub spec: GatewaySpec,
    /// The digest of the spec's tunnel.
    pub digest: TunnelDigest,
    /// The version of the tenant that this was computed from.
    pub version: u64,
}

impl Wanted {
    /// None for a tenant without port and keys.
    #[must_use]
    pub fn of(tenant: &Tenant, settings: &TunnelSettings) -> Option<Self> {
        let tunnel = TunnelSpec::of(tenant, settings)?;
        Some(Self {
            digest: tunnel.digest(),
            spec: GatewaySpec {
                tenant: tenant.id,
                namespace: tenant.namespace.clone(),
                tunnel,
            },
            version: tenant.version,
        })
    }

    /// Whether this was computed from the tenant in its current version. A tenant
    /// that was deleted and created again may have the same version, but never the
    /// same generation.
    #[must_use]
    pub fn is_of(&self, tenant: &Tenant) -> bool {
        self.version == tenant.version && self.spec.tunnel.fixed.generation == tenant.vpn.generation
    }

    /// Whether the gateway matches this spec.
    #[must_use]
    pub fn is(&self, gateway: &Gateway) -> bool {
        gateway.matches(&self.spec, &self.digest)
    }
}

/// A step from the existing gateways to the desired ones.
#[derive(Debug)]
pub enum Action<'a> {
    /// Remove the gateway on this port.
    Remove(u16),
    /// Create this gateway, replacing any other on its port, or update the existing
    /// one in place.
    Ensure(&'a GatewaySpec),
}

/// The steps from `gateways` to `wanted`. Gateways that no tenant asks for are
/// removed.
#[must_use]
pub fn plan<'a>(
    wanted: impl IntoIterator<Item = &'a Wanted>,
    gateways: &[Gateway],
) -> Vec<Action<'a>> {
    let wanted: BTreeMap<u16, &Wanted> = wanted
        .into_iter()
        .map(|wanted| (wanted.spec.tunnel.fixed.port, wanted))
        .collect();
    let serves = |gateway: &&Gateway| {
        let runs = match gateway.state {
            GatewayState::Starting | GatewayState::Ready => true,
            GatewayState::Failed(_) | GatewayState::Absent => false,
        };
        runs && wanted
            .get(&gateway.port)
            .is_some_and(|wanted| wanted.is(gateway))
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
        .map(|(_, wanted)| Action::Ensure(&wanted.spec));
    orphans.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

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
        tenant
            .enable(&mut pool, &[], Keys::generate(), now)
            .unwrap();
        tenant
    }

    fn settings() -> TunnelSettings {
        TunnelSettings {
            cluster_ranges: Vec::new(),
            dns: IpAddr::from([10, 96, 0, 10]),
            ipv6: false,
            mtu: None,
        }
    }

    fn gateway(tenant: &Tenant, state: GatewayState) -> Gateway {
        Gateway {
            tenant: tenant.id,
            generation: tenant.vpn.generation,
            port: tenant.vpn.allocation.as_ref().unwrap().port,
            digest: TunnelSpec::of(tenant, &settings()).unwrap().digest(),
            state,
            location: None,
        }
    }

    fn steps(tenants: &[Tenant], gateways: &[Gateway]) -> Vec<String> {
        steps_with(&settings(), tenants, gateways)
    }

    fn steps_with(
        settings: &TunnelSettings,
        tenants: &[Tenant],
        gateways: &[Gateway],
    ) -> Vec<String> {
        let wanted = tenants.iter();
        let wanted: Vec<Wanted> = wanted
            .filter_map(|tenant| Wanted::of(tenant, settings))
            .collect();
        plan(&wanted, gateways)
            .into_iter()
            .map(|action| match action {
                Action::Remove(port) => format!("remove {port}"),
                Action::Ensure(spec) => format!("ensure {}", spec.tenant.as_u128()),
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
    fn a_gateway_of_other_settings_is_brought_up_to_date() {
        let tenant = tenant(1, 31_001);
        let gateway = gateway(&tenant, GatewayState::Ready);
        let changes: [fn(&mut TunnelSettings); 3] = [
            |settings| settings.dns = IpAddr::from([10, 96, 0, 11]),
            |settings| settings.ipv6 = true,
            |settings| settings.mtu = Some(1380),
        ];
        for change in changes {
            let mut settings = settings();
            change(&mut settings);
            let steps = steps_with(
                &settings,
                std::slice::from_ref(&tenant),
                std::slice::from_ref(&gateway),
            );
            assert_eq!(steps, ["ensure 1"], "{settings:?}");
        }
        // Its subnet stays, whatever is reserved by now.
        let mut settings = settings();
        settings.cluster_ranges = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(steps_with(&settings, &[tenant], &[gateway]).is_empty());
    }

    #[test]
    fn a_spec_is_of_the_tenant_as_it_was() {
        let mut tenant = tenant(1, 31_001);
        let wanted = Wanted::of(&tenant, &settings()).unwrap();
        assert!(wanted.is_of(&tenant));
        tenant.version += 1;
        assert!(!wanted.is_of(&tenant));
        tenant.version -= 1;
        tenant.vpn.generation += 1;
        assert!(!wanted.is_of(&tenant), "deleted and made again");
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
