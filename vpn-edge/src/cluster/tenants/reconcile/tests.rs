use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::ByteString;

use super::super::convert::{created, keys_secret};
use super::super::testing::{MADE, at, settings, view};
use super::super::{status, testing};
use super::*;
use crate::cluster::VpnTenant;
use crate::domain::{Observed, Plan};

const GENERATION: u64 = MADE.cast_unsigned() * 1000 + 1;

/// A view whose status says this of its keys' generation.
fn known(state: State) -> TenantObjects {
    let mut view = view(30000, GENERATION);
    let mut tenant = view.tenant(&[]).unwrap();
    tenant.vpn.state = state;
    tenant.vpn.failure = (state == State::Failed).then(|| "why".to_owned());
    let status = status::of(
        &view,
        &tenant,
        Some(Reservation::Held),
        &Blocker::None,
        &settings(),
        at(MADE),
    );
    change(&mut view, |resource| {
        resource.status = Some(status);
        resource.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    });
    assert_eq!(view.tenant(&[]).unwrap().vpn.state, state);
    view
}

fn without_keys() -> TenantObjects {
    let mut view = known(State::Enabled);
    (view.keys, view.service) = (None, None);
    view
}

fn change(view: &mut TenantObjects, change: impl FnOnce(&mut VpnTenant)) {
    change_arc(&mut view.resource, change);
}

fn change_arc(resource: &mut Arc<VpnTenant>, change: impl FnOnce(&mut VpnTenant)) {
    change(Arc::make_mut(resource));
}

fn step(view: &TenantObjects) -> Option<Step> {
    let validity = if view.deleting() {
        Validity::Leaving
    } else {
        Validity::Tenant(Arc::new(view.tenant(&[]).unwrap()))
    };
    next(view, &validity, Some(Reservation::Held), at(MADE))
}

fn with(mut view: TenantObjects, then: impl FnOnce(&mut VpnTenant)) -> TenantObjects {
    change(&mut view, then);
    view
}

#[test]
fn each_difference_of_spec_and_state_has_its_step() {
    let off = |tenant: &mut VpnTenant| tenant.spec.vpn.enabled = false;
    let rotate = |tenant: &mut VpnTenant| tenant.spec.vpn.key_generation = 1;
    let own_key = |tenant: &mut VpnTenant| {
        let key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=".to_owned();
        tenant.spec.vpn.client_public_key = Some(key);
    };
    let team = |tenant: &mut VpnTenant| tenant.spec.plan = Plan::Team;
    let table = [
        (known(State::Enabled), None),
        (known(State::Enabling), None),
        (known(State::Failed), None),
        (without_keys(), Some(Step::Enable)),
        (with(without_keys(), off), None),
        (with(without_keys(), team), None),
        (
            with(without_keys(), |tenant| tenant.spec.ready = false),
            None,
        ),
        (
            with(known(State::Enabled), |tenant| tenant.spec.ready = false),
            None,
        ),
        (with(known(State::Enabled), off), Some(Step::Disable)),
        (with(known(State::Failed), off), Some(Step::Disable)),
        // It cannot be ended before it has begun.
        (with(known(State::Enabling), off), None),
        (with(known(State::Enabling), team), Some(Step::EndPlan)),
        (with(known(State::Enabled), rotate), Some(Step::Regenerate)),
        (with(known(State::Failed), rotate), Some(Step::Enable)),
        (with(known(State::Enabling), rotate), None),
        (with(known(State::Enabled), own_key), Some(Step::Regenerate)),
        (with(known(State::Failed), own_key), Some(Step::Enable)),
        (with(known(State::Enabling), own_key), None),
        (
            with(known(State::Enabled), |tenant| {
                tenant.metadata.finalizers = None
            }),
            Some(Step::Guard),
        ),
    ];
    for (n, (view, expected)) in table.into_iter().enumerate() {
        assert_eq!(step(&view), expected, "row {n}");
    }
}

#[test]
fn what_is_deleted_goes_in_the_order_of_revocation() {
    let leave = |tenant: &mut VpnTenant| {
        tenant.metadata.deletion_timestamp = tenant.metadata.creation_timestamp.clone();
    };
    let mut view = with(known(State::Enabled), leave);
    assert_eq!(step(&view), Some(Step::DropKeys));
    view.keys = None;
    view.service.as_mut().unwrap().gateway = true;
    assert_eq!(step(&view), None, "its gateway goes first");
    view.service.as_mut().unwrap().gateway = false;
    assert_eq!(step(&view), Some(Step::FreePort));
    view.service = None;
    assert_eq!(step(&view), Some(Step::Release));
}

#[test]
fn keys_and_claims_of_nobody_go() {
    let mut view = known(State::Enabled);
    view.keys.as_mut().unwrap().owner = Some("another".to_owned());
    assert_eq!(step(&view), Some(Step::DropKeys));
    let duplicate = Validity::Duplicate("t-0".to_owned());
    assert_eq!(
        next(&known(State::Enabled), &duplicate, None, at(MADE)),
        Some(Step::DropKeys)
    );
    let mut view = with(known(State::Enabled), |tenant| {
        tenant.spec.vpn.enabled = false
    });
    view.keys = None;
    assert_eq!(step(&view), None, "it may be somebody's who has only begun");
    view.service.as_mut().unwrap().claimed = Some(at(MADE) - RESERVATION_TIMEOUT);
    assert_eq!(step(&view), None);
    view.service.as_mut().unwrap().claimed = Some(at(MADE - 1) - RESERVATION_TIMEOUT);
    assert_eq!(step(&view), Some(Step::FreePort));
}

#[test]
fn keys_are_read_as_they_were_written() {
    let view = known(State::Enabled);
    let kept = testing::kept(30_001, 7);
    let read = keys_secret(&testing::stored(&view.resource, &kept, 9));
    assert_eq!(read.kept.as_ref(), Some(&kept));
    assert_eq!(read.owner, view.resource.metadata.uid);
    for lacks in [
        "port",
        "generation",
        "keyGeneration",
        "createdAt",
        "serverPrivateKey",
        "clientPrivateKey",
    ] {
        let mut secret = testing::stored(&view.resource, &kept, 9);
        secret.data.as_mut().unwrap().remove(lacks);
        assert_eq!(keys_secret(&secret).kept, None, "{lacks}");
    }
    let mut secret = testing::stored(&view.resource, &kept, 9);
    secret.type_ = Some("Opaque".to_owned());
    assert_eq!(keys_secret(&secret).kept, None);
}

/// Earlier builds stored no subnet, and a subnet that no tunnel can have was written
/// by somebody else.
#[test]
fn keys_without_a_subnet_have_the_one_that_was_told() {
    let published = known(State::Enabled);
    let subnet = |view: &TenantObjects, ranges: &[IpNet]| {
        let tenant = view.tenant(ranges).unwrap();
        tenant.vpn.allocation.unwrap().subnet.to_string()
    };
    let reserved = ["10.0.0.0/9".parse().unwrap()];
    assert_eq!(subnet(&published, &reserved), "10.42.128.0/24", "stored");

    let mut view = published.clone();
    let mut kept = published.kept().unwrap().clone();
    kept.subnet = None;
    let secret = testing::stored(&published.resource, &kept, 9);
    assert!(!secret.data.as_ref().unwrap().contains_key("subnet"));
    view.keys = Some(keys_secret(&secret));
    assert_eq!(subnet(&view, &reserved), "10.42.128.0/24", "told");
    let of = |text: &str| {
        let text = text.to_owned();
        with(view.clone(), |resource| {
            resource.status.as_mut().unwrap().subnet = Some(text);
        })
    };
    assert_eq!(subnet(&of("10.1.2.0/24"), &reserved), "10.1.2.0/24");
    // What was not told, or by nobody of ours, is worked out.
    for text in ["10.1.2.0/23", "192.168.1.0/24", "subnet"] {
        assert_eq!(subnet(&of(text), &[]), "10.10.47.0/24");
        assert_eq!(subnet(&of(text), &reserved), "10.161.250.0/24");
    }
    let all = ["10.0.0.0/8".parse().unwrap()];
    let refused = of("none").tenant(&all).unwrap_err();
    assert!(refused.contains("reserve less of 10.0.0.0/8"), "{refused}");

    for text in ["10.1.2.0/23", "192.168.1.0/24", ""] {
        let mut secret = testing::stored(&published.resource, &kept, 9);
        let data = secret.data.as_mut().unwrap();
        data.insert("subnet".to_owned(), ByteString(text.into()));
        assert_eq!(keys_secret(&secret).kept, None, "{text:?}");
    }
}

#[test]
fn a_given_key_is_kept_without_a_private_one_and_served_once() {
    let mut view = known(State::Enabled);
    let given = Keys::generate().unwrap().client.public();
    let mut kept = testing::kept(30_000, GENERATION);
    kept.keys = Keys::generate_for(Some(given)).unwrap();
    let secret = testing::stored(&view.resource, &kept, 9);
    assert!(
        !secret
            .data
            .as_ref()
            .unwrap()
            .contains_key("clientPrivateKey")
    );
    view.keys = Some(keys_secret(&secret));
    assert_eq!(view.kept(), Some(&kept));
    assert_eq!(step(&view), Some(Step::Regenerate), "the spec gives none");
    change(&mut view, |resource| {
        resource.spec.vpn.client_public_key = Some(given.to_string());
    });
    assert_eq!(step(&view), None);
    change(&mut view, |resource| {
        let zero = format!("{}=", "A".repeat(43));
        resource.spec.vpn.client_public_key = Some(zero);
    });
    let refused = view.tenant(&[]).unwrap_err();
    assert!(
        refused.starts_with("spec.vpn.clientPublicKey: "),
        "{refused}"
    );
}

#[test]
fn the_status_follows_the_keys_and_never_leads() {
    // Newer keys than the status knows.
    let mut view = known(State::Enabled);
    let kept = testing::kept(30_000, GENERATION + 1);
    view.keys = Some(keys_secret(&testing::stored(&view.resource, &kept, 9)));
    let vpn = view.tenant(&[]).unwrap().vpn;
    assert_eq!(
        (vpn.state, vpn.generation),
        (State::Enabling, GENERATION + 1)
    );
    assert_eq!(vpn.since, kept.created_at);
    // Without keys, whatever the status says, nothing is enabled.
    for state in [State::Enabling, State::Enabled, State::Failed] {
        let mut view = known(state);
        view.keys = None;
        let vpn = view.tenant(&[]).unwrap().vpn;
        assert_eq!((vpn.state, vpn.allocation), (State::Disabled, None));
        assert_eq!(vpn.generation, GENERATION, "never back");
    }
}

#[test]
fn a_status_that_is_written_is_read_as_the_same_state() {
    let view = known(State::Enabling);
    let mut tenant = view.tenant(&[]).unwrap();
    let now = at(MADE + 1_000_000_000);
    let mut steps = vec![tenant.clone()];
    let ready = Observed {
        gateway: crate::domain::GatewayState::Ready,
        steerable: true,
    };
    tenant.observe(&ready, now);
    steps.push(tenant.clone());
    let gone = Observed {
        gateway: crate::domain::GatewayState::Absent,
        steerable: false,
    };
    tenant.observe(&gone, now);
    steps.push(tenant.clone());
    tenant.observe(&gone, at(MADE + 1_000_000_100));
    steps.push(tenant.clone());
    assert_eq!(tenant.vpn.state, State::Failed);
    for step in steps {
        let status = status::of(
            &view,
            &step,
            Some(Reservation::Held),
            &Blocker::None,
            &settings(),
            now,
        );
        let read = with(view.clone(), |resource| {
            resource.status = Some(status.clone())
        });
        let mut vpn = read.tenant(&[]).unwrap().vpn;
        vpn.since = step.vpn.since;
        assert_eq!(vpn, step.vpn);
        let again = status::of(
            &read,
            &read.tenant(&[]).unwrap(),
            Some(Reservation::Held),
            &Blocker::None,
            &settings(),
            at(MADE),
        );
        assert_eq!(again, status, "nothing to write");
    }
}

#[test]
fn a_new_tenants_generation_starts_at_its_creation() {
    let view = with(without_keys(), |tenant| tenant.status = None);
    let vpn = view.tenant(&[]).unwrap().vpn;
    assert_eq!(
        vpn.generation,
        created(&view.resource).as_millisecond().cast_unsigned()
    );
    assert_eq!((vpn.state, vpn.since), (State::Disabled, at(MADE)));
}

#[test]
fn a_port_that_is_only_in_the_secret_is_neither_published_nor_served() {
    let published = known(State::Enabled);
    let status = |view: &TenantObjects, reservation| {
        let tenant = view.tenant(&[]).unwrap();
        let nothing = Blocker::None;
        status::of(
            view,
            &tenant,
            Some(reservation),
            &nothing,
            &settings(),
            at(MADE),
        )
    };
    let condition = |status: &crate::cluster::VpnTenantStatus| {
        let mut conditions = status.conditions.iter();
        let port = conditions.find(|of| of.type_ == "PortAllocated").unwrap();
        format!("{} {}: {}", port.status, port.reason, port.message)
    };
    // The same keys with another port, as whoever may write the Secret can.
    let mut forged = published.clone();
    let mut kept = published.kept().unwrap().clone();
    for port in [8472, 30_001] {
        kept.port = port;
        forged.keys = Some(keys_secret(&testing::stored(&published.resource, &kept, 9)));
        let vpn = forged.tenant(&[]).unwrap().vpn;
        assert_eq!(vpn.state, State::Enabling, "{port}");
        for reservation in [Reservation::Free, Reservation::Lost] {
            let status = status(&forged, reservation);
            assert_eq!(
                (status.port, status.endpoint.as_ref()),
                (None, None),
                "{port}"
            );
            assert_eq!(status.server_public_key, None);
            assert_eq!(
                condition(&status),
                format!(
                    "False NotReserved: port {port} of the keys Secret is not reserved by the \
                     gateway's Service"
                )
            );
        }
        let validity = Validity::Tenant(Arc::new(forged.tenant(&[]).unwrap()));
        let next = |reservation| next(&forged, &validity, Some(reservation), at(MADE));
        assert_eq!(next(Reservation::Lost), Some(Step::Reallocate));
        assert_eq!(
            next(Reservation::Free),
            None,
            "the gateway's Service takes it"
        );
    }
    // A Service that somebody deleted costs no session, unless the port is lost.
    let mut bare = published.clone();
    bare.service = None;
    let kept = status(&bare, Reservation::Free);
    assert_eq!(kept.port, Some(30_000));
    assert_eq!(
        condition(&kept),
        "True Allocated: port 30000 is allocated to the tenant"
    );
    assert_eq!(status(&bare, Reservation::Lost).port, None);
    // A port that has left its pool.
    let mut kept = published.kept().unwrap().clone();
    kept.port = 31_000;
    let mut shrunk = published.clone();
    shrunk.keys = Some(keys_secret(&testing::stored(&published.resource, &kept, 9)));
    shrunk.service.as_mut().unwrap().ports = vec![31_000];
    let status = status(&shrunk, Reservation::Held);
    assert_eq!(status.port, Some(31_000));
    assert_eq!(
        condition(&status),
        "True OutsidePools: port 31000 is allocated to the tenant, but it is in no pool any more, \
         and edges do not steer it: disable and enable the VPN to get a port of a pool"
    );
}

#[test]
fn a_generation_that_no_tenant_came_to_is_not_read() {
    let mut view = known(State::Enabled);
    let mut kept = view.kept().unwrap().clone();
    let far = GENERATION + 1 + (1 << 32);
    for generation in [
        far,
        i64::MAX.cast_unsigned(),
        i64::MAX.cast_unsigned() + 1,
        u64::MAX,
    ] {
        kept.generation = generation;
        view.keys = Some(keys_secret(&testing::stored(&view.resource, &kept, 9)));
        assert_eq!(view.kept(), None, "{generation}");
        let vpn = view.tenant(&[]).unwrap().vpn;
        assert_eq!((vpn.generation, vpn.allocation), (GENERATION, None));
        assert_eq!(step(&view), Some(Step::DropKeys));
    }
    kept.generation = far - 1;
    view.keys = Some(keys_secret(&testing::stored(&view.resource, &kept, 9)));
    assert!(view.kept().is_some(), "a restored status may be old");
}
