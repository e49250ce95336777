use proptest::prelude::*;

use super::super::testing::{MADE, at, kept, resource, service, settings, stored};
use super::*;

fn index(tenants: &[(u128, &str, i64)]) -> Index {
    let mut index = Index::default();
    for (version, (id, namespace, after)) in (1..).zip(tenants) {
        VpnTenant::take(
            &mut index,
            &Event::Apply(resource(*id, namespace, *after, version)),
        );
    }
    index
}

fn put(index: &mut Index, namespace: &str, port: u16, version: u64) {
    let resource = index.view(namespace).unwrap().resource;
    let secret = stored(
        &resource,
        &kept(port, MADE.cast_unsigned() * 1000 + 1),
        version,
    );
    assert!(Secret::take(index, &Event::Apply(secret)));
}

fn validity(index: &Index, namespace: &str) -> Validity {
    index.validity(&index.view(namespace).unwrap())
}

fn listed(index: &mut Index) -> Vec<String> {
    let tenants = index.tenants();
    tenants.iter().map(|t| t.namespace.clone()).collect()
}

fn pool(index: &mut Index, namespace: &str) -> PortPool {
    let view = index.view(namespace).unwrap();
    let Validity::Tenant(tenant) = index.validity(&view) else {
        panic!("{namespace} is no tenant");
    };
    index.pool(&settings().pools, &view, &tenant, at(MADE))
}

#[test]
fn the_oldest_of_one_id_is_the_tenant() {
    let mut index = index(&[(1, "b", 0), (1, "a", 1), (2, "c", 0)]);
    assert!(matches!(validity(&index, "b"), Validity::Tenant(_)));
    assert_eq!(validity(&index, "a"), Validity::Duplicate("b".to_owned()));
    assert_eq!(listed(&mut index), ["b", "c"]);
    index.news();
    VpnTenant::take(&mut index, &Event::Delete(resource(1, "b", 0, 9)));
    assert!(matches!(validity(&index, "a"), Validity::Tenant(_)));
    let news = index.news().namespaces;
    assert!(news.contains("a") && news.contains("b"), "{news:?}");
    assert_eq!(listed(&mut index), ["a", "c"]);
}

#[test]
fn of_one_second_the_one_with_keys_is_the_tenant() {
    let mut index = index(&[(1, "a", 0), (1, "b", 0)]);
    assert_eq!(validity(&index, "b"), Validity::Duplicate("a".to_owned()));
    put(&mut index, "b", 30000, 9);
    assert_eq!(validity(&index, "a"), Validity::Duplicate("b".to_owned()));
}

#[test]
fn a_deleted_tenant_is_not_listed_and_nobody_takes_its_id_yet() {
    let mut index = index(&[(1, "a", 0), (1, "b", 1)]);
    let mut leaving = resource(1, "a", 0, 9);
    leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
    VpnTenant::take(&mut index, &Event::Apply(leaving));
    assert_eq!(validity(&index, "a"), Validity::Leaving);
    assert_eq!(validity(&index, "b"), Validity::Duplicate("a".to_owned()));
    assert!(index.tenants().is_empty() && index.has(Uuid::from_u128(1)));
}

#[test]
fn ports_are_held_by_keys_and_by_services_of_anybody() {
    let mut index = index(&[(1, "a", 0), (2, "b", 0)]);
    put(&mut index, "a", 30000, 5);
    for (namespace, name, port, version) in [
        ("x", "own", 30001, 6),
        ("a", GATEWAY, 30002, 7),
        ("x", "dns", 53, 8),
    ] {
        Service::take(
            &mut index,
            &Event::Apply(service(namespace, name, port, version)),
        );
    }
    let pool_of_b = pool(&mut index, "b");
    assert_eq!(pool_of_b.available(), 7);
    assert_eq!(pool_of_b.holder(30000), Some(Uuid::from_u128(1)));
    assert_eq!(pool_of_b.holder(30001), Some(STRANGER));
    assert_eq!(pool_of_b.holder(30002), Some(Uuid::from_u128(1)));
    // Its own Service's port is there for the tenant to take, and the first.
    let mut pool_of_a = pool(&mut index, "a");
    assert!(pool_of_a.keeps(30000, Uuid::from_u128(1)));
    assert_eq!(pool_of_a.allocate(Uuid::from_u128(1)), Some(30002));
}

#[test]
fn a_port_is_the_tenants_whose_service_holds_it() {
    use Reservation::{Free, Held, Lost};
    let mut index = index(&[(1, "a", 0)]);
    let reservation = |index: &Index| {
        let view = index.view("a").unwrap();
        index.reservation(&view, &settings().pools)
    };
    assert_eq!(reservation(&index), None, "no keys");
    put(&mut index, "a", 30000, 5);
    assert_eq!(reservation(&index), Some(Free), "nobody has a Service yet");
    Service::take(&mut index, &Event::Apply(service("a", GATEWAY, 30000, 6)));
    assert_eq!(reservation(&index), Some(Held));
    Service::take(&mut index, &Event::Delete(service("a", GATEWAY, 30000, 7)));
    index.news();
    Service::take(&mut index, &Event::Apply(service("x", "own", 30000, 8)));
    assert_eq!(reservation(&index), Some(Lost));
    assert!(index.news().namespaces.contains("a"));
    assert!(!pool(&mut index, "a").keeps(30000, Uuid::from_u128(1)));
    // No pool has it: the tenant's if its Service holds it, as when a pool shrank,
    // and else nobody's to ask for.
    put(&mut index, "a", 8472, 9);
    assert_eq!(reservation(&index), Some(Lost));
    Service::take(&mut index, &Event::Apply(service("a", GATEWAY, 8472, 10)));
    assert_eq!(reservation(&index), Some(Held));
}

#[test]
fn refused_ports_are_tried_again_after_a_while_and_freed_ones_come_last() {
    let mut index = index(&[(1, "a", 0), (2, "b", 0)]);
    index.refuse(30003, at(MADE));
    assert_eq!(pool(&mut index, "a").holder(30003), Some(STRANGER));
    let view = index.view("a").unwrap();
    let tenant = view.tenant(&[]).unwrap();
    let later = at(MADE + 2);
    assert_eq!(
        index
            .pool(&settings().pools, &view, &tenant, later)
            .available(),
        10
    );
    put(&mut index, "b", 30005, 5);
    let keys = stored(&index.view("b").unwrap().resource, &kept(30005, 1), 6);
    Secret::take(&mut index, &Event::Delete(keys));
    assert!(index.news().freed);
    let last = index
        .pool(&settings().pools, &view, &tenant, later)
        .released()
        .last();
    assert_eq!(last, Some(30005));
}

#[test]
fn tenants_seldom_ask_for_the_same_port_first() {
    let tenants: Vec<(u128, String)> = (1..=100).map(|n| (n, format!("t-{n}"))).collect();
    let tenants: Vec<_> = tenants
        .iter()
        .map(|(n, name)| (*n, name.as_str(), 0))
        .collect();
    let mut index = index(&tenants);
    let mut firsts = BTreeMap::new();
    for (_, namespace, _) in &tenants {
        let first = pool(&mut index, namespace).released().next().unwrap();
        *firsts.entry(first).or_insert(0) += 1;
        assert_eq!(
            pool(&mut index, namespace).released().next(),
            Some(first),
            "as before"
        );
    }
    assert_eq!(firsts.len(), 10);
    assert!(firsts.values().all(|asked| *asked < 25), "{firsts:?}");
}

proptest! {
    /// Whatever happens to tenants that share ids, and whenever one asks.
    #[test]
    fn what_is_settled_is_what_all_of_it_would_be(
        steps in prop::collection::vec((0..5u8, 0..3usize, 1..3u128, any::<bool>()), 1..40),
    ) {
        let mut index = Index::default();
        for (version, (step, namespace, id, ask)) in (1..).zip(steps) {
            let namespace = ["a", "b", "c"][namespace];
            let mut tenant = resource(id, namespace, 0, version);
            match step {
                0 | 1 => {
                    VpnTenant::take(&mut index, &Event::Apply(tenant));
                }
                2 => {
                    tenant.metadata.deletion_timestamp = tenant.metadata.creation_timestamp.clone();
                    VpnTenant::take(&mut index, &Event::Apply(tenant));
                }
                3 => {
                    VpnTenant::take(&mut index, &Event::Delete(tenant));
                }
                _ if index.view(namespace).is_some() => put(&mut index, namespace, 30000, version),
                _ => {}
            }
            if ask {
                index.tenants();
            }
        }
        let settled = index.tenants();
        index.settled.clear();
        index.settled_in.clear();
        index.unsettled = index.namespaces().map(str::to_owned).collect();
        prop_assert_eq!(settled, index.tenants());
    }
}
