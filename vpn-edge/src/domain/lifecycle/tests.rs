use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::PortPool;
use crate::wireguard::{ClientKey, PrivateKey};

const START: Timestamp = Timestamp::UNIX_EPOCH;

fn after(seconds: i64) -> Timestamp {
    START + SignedDuration::from_secs(seconds)
}

fn keys(seed: u8) -> Keys {
    Keys {
        server: PrivateKey::from_bytes([seed; 32]),
        client: ClientKey::Made(PrivateKey::from_bytes([seed.wrapping_add(100); 32])),
    }
}

fn pool(range: &str) -> PortPool {
    PortPool::new(range.parse().unwrap(), [], []).unwrap()
}

fn tenant(plan: Plan) -> Tenant {
    let id = Uuid::from_u128(1);
    let mut tenant = Tenant::new(id, "acme".to_owned(), plan, START).unwrap();
    tenant.set_ready(true);
    tenant
}

fn seen(gateway: GatewayState, steerable: bool) -> Observed {
    Observed { gateway, steerable }
}

fn serving() -> Observed {
    seen(GatewayState::Ready, true)
}

/// A tenant that came to `state` the ordinary way, the state entered at START.
fn in_state(state: State, pool: &mut PortPool) -> Tenant {
    let mut tenant = tenant(match state {
        State::Unavailable => Plan::Team,
        _ => Plan::Business,
    });
    if matches!(state, State::Enabling | State::Enabled | State::Failed) {
        tenant.enable(pool, &[], Ok(keys(1)), START).unwrap();
    }
    if state == State::Enabled {
        tenant.observe(&serving(), START);
    }
    if state == State::Failed {
        tenant.observe(&seen(GatewayState::Absent, false), after(31));
        tenant.vpn.since = START;
    }
    assert_eq!(tenant.vpn.state, state);
    tenant
}

#[derive(Clone, Debug)]
enum Event {
    Enable,
    EnableWhileNotReady,
    EnableWithEmptyPool,
    EnableWithoutKeys,
    Disable,
    Regenerate,
    Configuration,
    PlanWithVpn,
    PlanWithoutVpn,
    Ready(bool),
    Observe(Observed, i64),
}

fn apply(
    event: &Event,
    tenant: &mut Tenant,
    pool: &mut PortPool,
    now: Timestamp,
) -> Result<(), VpnError> {
    match event {
        Event::Enable => tenant.enable(pool, &[], Ok(keys(2)), now),
        Event::EnableWhileNotReady => {
            tenant.set_ready(false);
            tenant.enable(pool, &[], Ok(keys(2)), now)
        }
        Event::EnableWithEmptyPool => {
            while pool.allocate(Uuid::from_u128(99)).is_some() {}
            tenant.enable(pool, &[], Ok(keys(2)), now)
        }
        Event::EnableWithoutKeys => tenant.enable(pool, &[], Err(KeyError::Encoding), now),
        Event::Disable => tenant.disable(pool, now),
        Event::Regenerate => tenant.regenerate(keys(2), now),
        Event::Configuration => tenant.configuration().map(|_| ()),
        Event::PlanWithVpn => {
            tenant.set_plan(Plan::EnterpriseCloud, pool, now);
            Ok(())
        }
        Event::PlanWithoutVpn => {
            tenant.set_plan(Plan::Developer, pool, now);
            Ok(())
        }
        Event::Ready(ready) => {
            tenant.set_ready(*ready);
            Ok(())
        }
        Event::Observe(observed, _) => {
            tenant.observe(observed, now);
            Ok(())
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// The VPN is as it was, to the last field.
    Stay,
    Go(State),
    /// Refused, and the VPN is as it was.
    Refuse(VpnError),
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    use GatewayState as G;
    use Outcome::{Go, Refuse, Stay};
    use State::{Disabled, Enabled, Enabling, Failed, Unavailable};
    use VpnError::{
        AlreadyEnabled, BeingEnabled, NoPortsAvailable, NotAvailable, NotEnabled, TenantNotReady,
    };

    let not_serving_soon = [Stay, Stay, Stay, Go(Enabling), Stay];
    let not_serving_late = [Stay, Stay, Go(Failed), Go(Enabling), Stay];
    let serves = [Stay, Stay, Go(Enabled), Stay, Go(Enabled)];
    let broken = || G::Failed("no module".to_owned());

    // Columns: unavailable, disabled, enabling, enabled, failed.
    #[rustfmt::skip]
    let table: Vec<(Event, [Outcome; 5])> = vec![
        (Event::Enable, [
            Refuse(NotAvailable), Go(Enabling), Refuse(BeingEnabled), Refuse(AlreadyEnabled), Go(Enabling),
        ]),
        (Event::EnableWhileNotReady, [
            Refuse(NotAvailable), Refuse(TenantNotReady), Refuse(BeingEnabled), Refuse(AlreadyEnabled), Refuse(TenantNotReady),
        ]),
        (Event::EnableWithEmptyPool, [
            Refuse(NotAvailable), Refuse(NoPortsAvailable), Refuse(BeingEnabled), Refuse(AlreadyEnabled), Go(Enabling),
        ]),
        (Event::EnableWithoutKeys, [
            Refuse(NotAvailable), Go(Failed), Refuse(BeingEnabled), Refuse(AlreadyEnabled), Go(Failed),
        ]),
        (Event::Disable, [
            Refuse(NotAvailable), Refuse(NotEnabled), Refuse(BeingEnabled), Go(Disabled), Go(Disabled),
        ]),
        (Event::Regenerate, [
            Refuse(NotAvailable), Refuse(NotEnabled), Refuse(BeingEnabled), Go(Enabling), Refuse(NotEnabled),
        ]),
        (Event::Configuration, [
            Refuse(NotAvailable), Refuse(NotEnabled), Refuse(BeingEnabled), Stay, Refuse(NotEnabled),
        ]),
        (Event::PlanWithVpn, [Go(Disabled), Stay, Stay, Stay, Stay]),
        (Event::PlanWithoutVpn, [
            Stay, Go(Unavailable), Go(Unavailable), Go(Unavailable), Go(Unavailable),
        ]),
        (Event::Ready(true), [Stay; 5]),
        (Event::Ready(false), [Stay; 5]),
        (Event::Observe(seen(G::Absent, false), 30), not_serving_soon),
        (Event::Observe(seen(G::Absent, true), 30), not_serving_soon),
        (Event::Observe(seen(G::Starting, false), 30), not_serving_soon),
        (Event::Observe(seen(G::Starting, true), 30), not_serving_soon),
        (Event::Observe(seen(G::Ready, false), 30), not_serving_soon),
        (Event::Observe(seen(G::Ready, true), 30), serves),
        (Event::Observe(seen(broken(), false), 30), not_serving_soon),
        (Event::Observe(seen(broken(), true), 30), not_serving_soon),
        (Event::Observe(seen(G::Absent, false), 31), not_serving_late),
        (Event::Observe(seen(G::Absent, true), 31), not_serving_late),
        (Event::Observe(seen(G::Starting, false), 31), not_serving_late),
        (Event::Observe(seen(G::Starting, true), 31), not_serving_late),
        (Event::Observe(seen(G::Ready, false), 31), not_serving_late),
        (Event::Observe(seen(G::Ready, true), 31), serves),
        (Event::Observe(seen(broken(), false), 31), not_serving_late),
        (Event::Observe(seen(broken(), true), 31), not_serving_late),
    ];

    for (event, outcomes) in table {
        for (state, outcome) in State::ALL.into_iter().zip(outcomes) {
            let context = format!("{event:?} in {state:?}");
            let mut pool = pool("30000-30003");
            let mut tenant = in_state(state, &mut pool);
            let before = tenant.vpn.clone();
            let now = match event {
                Event::Observe(_, seconds) => after(seconds),
                _ => after(10),
            };
            let result = apply(&event, &mut tenant, &mut pool, now);
            match outcome {
                Stay => {
                    assert_eq!(result, Ok(()), "{context}");
                    assert_eq!(tenant.vpn, before, "{context}");
                }
                Refuse(error) => {
                    assert_eq!(result, Err(error), "{context}");
                    assert_eq!(tenant.vpn, before, "{context}");
                }
                Go(next) => {
                    assert_eq!(result, Ok(()), "{context}");
                    assert_eq!(tenant.vpn.state, next, "{context}");
                    assert_eq!(tenant.vpn.since, now, "{context}");
                    assert_eq!(tenant.vpn.failure.is_some(), next == Failed, "{context}");
                }
            }
        }
    }
}

#[test]
fn a_new_tenant_is_disabled_or_unavailable_by_its_plan() {
    for plan in Plan::ALL {
        let expected = if plan.has_vpn() {
            State::Disabled
        } else {
            State::Unavailable
        };
        assert_eq!(tenant(plan).vpn, Vpn::new(plan, START));
        assert_eq!(tenant(plan).vpn.state, expected);
    }
}

#[test]
fn enabling_takes_a_port_and_the_keys() {
    let mut pool = pool("30000-30003");
    let tenant = in_state(State::Enabling, &mut pool);
    let allocation = tenant.vpn.allocation.unwrap();
    assert_eq!(allocation.port, 30000);
    assert_eq!(allocation.keys, keys(1));
    assert_eq!(allocation.created_at, START);
    assert_eq!(tenant.vpn.generation, 1);
    assert_eq!(pool.holder(30000), Some(tenant.id));
}

#[test]
fn disabling_gives_back_the_port_and_forgets_the_keys_but_not_the_generation() {
    let mut pool = pool("30000-30003");
    let mut tenant = in_state(State::Enabled, &mut pool);
    tenant.disable(&mut pool, after(1)).unwrap();
    assert_eq!(tenant.vpn.allocation, None);
    assert_eq!(pool.holder(30000), None);
    tenant
        .enable(&mut pool, &[], Ok(keys(2)), after(2))
        .unwrap();
    assert_eq!(tenant.vpn.generation, 2);
    assert_eq!(tenant.vpn.allocation.unwrap().port, 30001, "reused last");
}

#[test]
fn a_downgrade_gives_back_the_port_and_forgets_the_keys() {
    for state in [State::Enabling, State::Enabled, State::Failed] {
        let mut pool = pool("30000-30003");
        let mut tenant = in_state(state, &mut pool);
        tenant.set_plan(Plan::Team, &mut pool, after(1));
        assert_eq!(tenant.plan, Plan::Team);
        assert_eq!(tenant.vpn.allocation, None);
        assert_eq!(pool.holder(30000), None);
    }
}

#[test]
fn regenerating_changes_the_keys_and_nothing_of_the_endpoint() {
    let mut pool = pool("30000-30003");
    let mut tenant = in_state(State::Enabled, &mut pool);
    tenant.regenerate(keys(2), after(5)).unwrap();
    let allocation = tenant.vpn.allocation.unwrap();
    assert_eq!(allocation.port, 30000);
    assert_eq!(allocation.keys, keys(2));
    assert_eq!(allocation.created_at, after(5));
    assert_eq!(tenant.vpn.generation, 2);
}

#[test]
fn a_fresh_attempt_after_a_failure_has_new_keys_and_the_same_port() {
    let mut pool = pool("30000-30003");
    let mut tenant = in_state(State::Failed, &mut pool);
    tenant
        .enable(&mut pool, &[], Ok(keys(2)), after(5))
        .unwrap();
    let allocation = tenant.vpn.allocation.unwrap();
    assert_eq!((allocation.port, allocation.keys), (30000, keys(2)));
    assert_eq!(tenant.vpn.generation, 2);
    assert_eq!(tenant.vpn.failure, None);
}

#[test]
fn a_fresh_attempt_moves_to_another_port_when_the_range_has_lost_the_old_one() {
    let mut pool = pool("30000-30003");
    let mut tenant = in_state(State::Failed, &mut pool);
    let mut pool = PortPool::new("31000-31000".parse().unwrap(), [(30000, tenant.id)], []).unwrap();
    tenant
        .enable(&mut pool, &[], Ok(keys(2)), after(5))
        .unwrap();
    assert_eq!(tenant.vpn.allocation.unwrap().port, 31000);
    assert_eq!(pool.holder(30000), None);
    assert_eq!(pool.holder(31000), Some(tenant.id));
}

#[test]
fn keys_that_could_not_be_made_fail_the_vpn_and_hold_no_port() {
    for state in [State::Disabled, State::Failed] {
        let mut pool = pool("30000-30003");
        let mut tenant = in_state(state, &mut pool);
        tenant
            .enable(&mut pool, &[], Err(KeyError::Encoding), after(1))
            .unwrap();
        assert_eq!(tenant.vpn.failure, Some(KeyError::Encoding.to_string()));
        assert_eq!(tenant.vpn.allocation, None);
        assert_eq!(pool.available(), 4);
        tenant.observe(&serving(), after(2));
        assert_eq!(tenant.vpn.state, State::Failed, "nothing to serve with");
        tenant
            .enable(&mut pool, &[], Ok(keys(2)), after(3))
            .unwrap();
        assert_eq!(tenant.vpn.state, State::Enabling);
    }
}

#[test]
fn a_subnet_stays_until_the_vpn_is_enabled_anew() {
    let mut pool = pool("30000-30003");
    let mut tenant = in_state(State::Enabled, &mut pool);
    let subnet = |tenant: &Tenant| tenant.vpn.allocation.as_ref().unwrap().subnet;
    let first = subnet(&tenant);
    tenant.regenerate(keys(2), after(1)).unwrap();
    assert_eq!(subnet(&tenant), first);
    tenant.reallocate(&mut pool, keys(3), after(2)).unwrap();
    assert_eq!(subnet(&tenant), first);
    tenant.observe(&serving(), after(3));
    tenant.disable(&mut pool, after(4)).unwrap();
    tenant
        .enable(&mut pool, &[first.into()], Ok(keys(4)), after(5))
        .unwrap();
    assert_ne!(subnet(&tenant), first, "it is in use by now");
}

#[test]
fn ranges_that_leave_no_subnet_fail_the_vpn_and_hold_no_port() {
    for state in [State::Disabled, State::Failed] {
        let mut pool = pool("30000-30003");
        let mut tenant = in_state(state, &mut pool);
        let all = ["10.0.0.0/8".parse().unwrap()];
        tenant
            .enable(&mut pool, &all, Ok(keys(2)), after(1))
            .unwrap();
        let failure = tenant.vpn.failure.as_deref().unwrap();
        assert!(failure.contains("leave no 10.X.Y.0/24"), "{failure}");
        assert_eq!(tenant.vpn.state, State::Failed);
        assert_eq!(tenant.vpn.allocation, None);
        assert_eq!(pool.available(), 4);
    }
}

#[test]
fn a_failure_names_its_reason() {
    let table = [
        (
            GatewayState::Absent,
            "the gateway did not answer within 30 s",
        ),
        (
            GatewayState::Starting,
            "the gateway did not answer within 30 s",
        ),
        (
            GatewayState::Ready,
            "the edge did not steer to the gateway within 30 s",
        ),
        (
            GatewayState::Failed("no wireguard".to_owned()),
            "no wireguard",
        ),
    ];
    for (gateway, reason) in table {
        let mut tenant = in_state(State::Enabling, &mut pool("30000-30003"));
        tenant.observe(&seen(gateway, false), after(31));
        assert_eq!(tenant.vpn.failure.as_deref(), Some(reason));
        assert!(tenant.vpn.allocation.is_some(), "it may still come right");
    }
}

#[test]
fn a_repair_has_the_whole_deadline_again() {
    let mut tenant = in_state(State::Enabled, &mut pool("30000-30003"));
    let absent = seen(GatewayState::Absent, false);
    tenant.observe(&absent, after(1000));
    tenant.observe(&absent, after(1030));
    assert_eq!(tenant.vpn.state, State::Enabling);
    tenant.observe(&absent, after(1031));
    assert_eq!(tenant.vpn.state, State::Failed);
    tenant.observe(&serving(), after(1032));
    assert_eq!(tenant.vpn.state, State::Enabled);
    assert_eq!(tenant.vpn.generation, 1, "the gateway is the same one");
}

#[test]
fn state_names_are_those_of_the_api() {
    let names = State::ALL.map(State::as_str);
    assert_eq!(
        names,
        ["unavailable", "disabled", "enabling", "enabled", "failed"]
    );
    for state in State::ALL {
        assert_eq!(
            serde_json::to_value(state).unwrap(),
            serde_json::Value::from(state.as_str())
        );
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let gateway = prop_oneof![
        Just(GatewayState::Absent),
        Just(GatewayState::Starting),
        Just(GatewayState::Ready),
        Just(GatewayState::Failed("broken".to_owned())),
    ];
    prop_oneof![
        3 => Just(Event::Enable),
        1 => Just(Event::EnableWithoutKeys),
        1 => Just(Event::Disable),
        1 => Just(Event::Regenerate),
        1 => Just(Event::PlanWithVpn),
        1 => Just(Event::PlanWithoutVpn),
        1 => any::<bool>().prop_map(Event::Ready),
        4 => (gateway, any::<bool>()).prop_map(|(g, s)| Event::Observe(seen(g, s), 0)),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_ports_keys_and_generations_stay_consistent(
        events in prop::collection::vec((0usize..3, any_event(), 0i64..40), 0..100)
    ) {
        // Three tenants and two ports, so that the pool runs dry.
        let mut pool = pool("30000-30001");
        let mut tenants: Vec<Tenant> = (1..=3)
            .map(|n| Tenant { id: Uuid::from_u128(n), ..tenant(Plan::Business) })
            .collect();
        let mut seconds = 0;
        for (which, event, elapsed) in events {
            seconds += elapsed;
            let before = tenants[which].clone();
            let pool_before = pool.clone();
            let result = apply(&event, &mut tenants[which], &mut pool, after(seconds));
            let tenant = &tenants[which];
            if result.is_err() {
                prop_assert_eq!(tenant, &before);
                prop_assert_eq!(&pool, &pool_before);
            }
            let vpn = &tenant.vpn;
            prop_assert!(vpn.generation >= before.vpn.generation);
            if let (Some(old), Some(new)) = (&before.vpn.allocation, &vpn.allocation)
                && vpn.generation == before.vpn.generation
            {
                prop_assert_eq!(old, new, "an allocation changed within a generation");
            }
            if vpn.state == before.vpn.state {
                prop_assert!(vpn.since >= before.vpn.since);
            } else {
                prop_assert_eq!(vpn.since, after(seconds));
            }
            prop_assert_eq!(tenant.plan.has_vpn(), vpn.state != State::Unavailable);
            prop_assert_eq!(vpn.failure.is_some(), vpn.state == State::Failed);
            match vpn.state {
                State::Unavailable | State::Disabled => prop_assert!(vpn.allocation.is_none()),
                State::Enabling | State::Enabled => prop_assert!(vpn.allocation.is_some()),
                State::Failed => {}
            }
            let held: Vec<(u16, Uuid)> = (30000..=30001)
                .filter_map(|port| Some((port, pool.holder(port)?)))
                .collect();
            let mut allocated: Vec<(u16, Uuid)> = tenants
                .iter()
                .filter_map(|t| Some((t.vpn.allocation.as_ref()?.port, t.id)))
                .collect();
            allocated.sort_unstable();
            prop_assert_eq!(held, allocated);
        }
    }
}
