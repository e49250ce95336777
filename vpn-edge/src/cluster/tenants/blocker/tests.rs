use std::sync::Arc;

use super::super::convert::TenantObjects;
use super::super::index::Reservation;
use super::super::status;
use super::super::testing::{MADE, at, settings, view};
use super::*;
use crate::domain::State;

const GENERATION: u64 = MADE.cast_unsigned() * 1000 + 1;

/// A tenant in this state, or without keys.
fn tenant(state: State) -> (TenantObjects, Tenant) {
    let mut view = view(30_000, GENERATION);
    if state == State::Disabled {
        (view.keys, view.service) = (None, None);
    }
    let mut tenant = view.tenant(&[]).unwrap();
    tenant.vpn.state = state;
    tenant.vpn.failure = (state == State::Failed).then(|| "why".to_owned());
    (view, tenant)
}

fn tell(view: &mut TenantObjects, tenant: &Tenant, blocker: &Blocker) -> VpnTenantStatus {
    let status = status::of(
        view,
        tenant,
        Some(Reservation::Held),
        blocker,
        &settings(),
        at(MADE),
    );
    Arc::make_mut(&mut view.resource).status = Some(status.clone());
    status
}

fn is(status: &VpnTenantStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|found| found.type_ == type_);
    let found = found.unwrap();
    format!("{} {}: {}", found.status, found.reason, found.message)
}

#[test]
fn conditions_say_what_keeps_a_tenant_from_what_it_asks_for() {
    let refused = Blocker::Refused("over quota".to_owned());
    let gateway = Blocker::Gateway("its pod".to_owned());
    let said = "False ApplyFailed: over quota";
    let serving = "True Serving: the gateway answers and the edge steers to it";
    let port = "True Allocated: port 30000 is allocated to the tenant";
    let table = [
        (
            State::Disabled,
            &refused,
            [said, said, said],
            Some("over quota"),
        ),
        (
            State::Enabling,
            &gateway,
            [
                port,
                "False GatewayDegraded: its pod",
                "False GatewayDegraded: its pod",
            ],
            Some("its pod"),
        ),
        // It serves, and not as it is asked for.
        (
            State::Enabled,
            &refused,
            [port, serving, said],
            Some("over quota"),
        ),
        (
            State::Enabled,
            &gateway,
            [port, serving, "False GatewayDegraded: its pod"],
            Some("its pod"),
        ),
        (
            State::Enabled,
            &Blocker::None,
            [port, serving, serving],
            None,
        ),
        (
            State::Failed,
            &refused,
            [port, "False Failed: why", said],
            Some("why"),
        ),
    ];
    for (state, blocker, expected, reason) in table {
        let (mut view, tenant) = tenant(state);
        let status = tell(&mut view, &tenant, blocker);
        let said = ["PortAllocated", "GatewayReady", "Ready"].map(|type_| is(&status, type_));
        assert_eq!(said, expected, "{state:?} {blocker:?}");
        assert_eq!(status.reason.as_deref(), reason, "{state:?} {blocker:?}");
        assert_eq!(
            is(&status, "Accepted"),
            "True Accepted: the spec is valid and no older VpnTenant has its id"
        );
        // The tenant is read as it was, whatever is said of it.
        let vpn = view.tenant(&[]).unwrap().vpn;
        assert_eq!(
            (vpn.state, vpn.failure),
            (tenant.vpn.state, tenant.vpn.failure)
        );
    }
}

#[test]
fn one_who_is_to_be_switched_off_and_cannot_says_so() {
    let (mut view, tenant) = tenant(State::Enabled);
    Arc::make_mut(&mut view.resource).spec.vpn.enabled = false;
    let status = tell(&mut view, &tenant, &Blocker::Refused("no".to_owned()));
    assert_eq!(is(&status, "Ready"), "False ApplyFailed: no");
    let status = tell(&mut view, &tenant, &Blocker::None);
    assert!(is(&status, "Ready").starts_with("False Disabling"));
}

#[test]
fn what_was_told_holds_until_the_tenant_moves_on() {
    let all = [
        Blocker::NoPorts,
        Blocker::Refused("no".to_owned()),
        Blocker::Gateway("no".to_owned()),
        Blocker::None,
    ];
    for blocker in all {
        let (mut view, before) = tenant(State::Disabled);
        // The first status of all is about nobody's generation.
        tell(&mut view, &before, &blocker);
        let told = tell(&mut view, &before, &blocker);
        assert_eq!(Blocker::read(&told.conditions), blocker);
        assert_eq!(Blocker::Unknown.or_published(&told, &before), blocker);
        assert_eq!(tell(&mut view, &before, &Blocker::Unknown), told);
        let (_, enabling) = tenant(State::Enabling);
        assert_eq!(
            Blocker::Unknown.or_published(&told, &enabling),
            Blocker::None
        );
        assert_eq!(Blocker::None.or_published(&told, &before), Blocker::None);
    }
}

#[test]
fn conditions_of_an_earlier_version_are_read() {
    let (mut view, tenant) = tenant(State::Enabled);
    let table = [
        ("Refused", Blocker::Refused("why".to_owned())),
        ("Hindered", Blocker::Gateway("why".to_owned())),
    ];
    for (before, blocker) in table {
        let mut conditions = tell(&mut view, &tenant, &blocker).conditions;
        assert_eq!(Blocker::read(&conditions), blocker);
        for condition in &mut conditions {
            condition.reason = before.to_owned();
        }
        assert_eq!(Blocker::read(&conditions), blocker, "{before}");
    }
}
