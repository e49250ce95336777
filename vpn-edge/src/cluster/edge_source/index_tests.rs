use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};

use super::*;
use crate::wireguard::PrivateKey;

const HOME: &str = "worker-1";

/// As the API server tells of it, each time in another version.
fn parse<O: DeserializeOwned>(mut object: Value) -> O {
    static VERSION: AtomicU64 = AtomicU64::new(1);
    let version = VERSION.fetch_add(1, Relaxed);
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    from_value(object).unwrap()
}

fn key() -> String {
    PrivateKey::from_bytes([1; 32]).public().to_string()
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn namespace(number: u128) -> String {
    format!("tenant-{number}")
}

/// A VpnTenant with a port, as the API has it.
fn tenant(number: u128, generation: i64, port: u16) -> Value {
    json!({
        "metadata": { "name": "vpn", "namespace": namespace(number) },
        "spec": { "id": id(number), "plan": "business", "organisation": "acme", "ready": true },
        "status": {
            "phase": "enabling", "generation": generation, "port": port,
            "serverPublicKey": key(), "endpoint": "vpn.example.com",
        },
    })
}

/// A slice with one ready endpoint on a node.
fn slice(number: u128, generation: u64, port: u16, node: &str, address: &str) -> Value {
    let v6 = address.contains(':');
    json!({
        "metadata": {
            "name": format!("vpn-edge-gateway-{}", if v6 { "v6" } else { "v4" }),
            "namespace": namespace(number),
            "labels": {
                "app.kubernetes.io/name": "vpn-edge-gateway",
                "kubernetes.io/service-name": "vpn-edge-gateway",
                "vpn-edge.dev/tenant": id(number),
                "vpn-edge.dev/generation": generation.to_string(),
            },
        },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": [{ "port": port, "protocol": "UDP" }],
        "endpoints": [{
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": node,
            "targetRef": { "kind": "Pod", "name": "gateway-1" },
        }],
    })
}

fn node(name: &str, addresses: &[&str]) -> Value {
    let addresses = addresses
        .iter()
        .map(|one| json!({ "type": "InternalIP", "address": one }));
    let mut addresses: Vec<Value> = addresses.collect();
    addresses.insert(0, json!({ "type": "Hostname", "address": name }));
    addresses.insert(1, json!({ "type": "ExternalIP", "address": "203.0.113.1" }));
    json!({
        "metadata": { "name": name },
        "spec": { "podCIDR": "10.244.1.0/24" },
        "status": { "addresses": addresses, "images": [{ "names": ["big"], "sizeBytes": 1 }] },
    })
}

fn list<R: Row>(table: &mut Table<R>, objects: &[Value]) -> bool
where
    R::Object: DeserializeOwned,
{
    table.feed(&Event::Init);
    for object in objects {
        table.feed(&Event::InitApply(parse(object.clone())));
    }
    table.feed(&Event::InitDone)
}

/// An index that has been told all of this.
fn index(tenants: &[Value], slices: &[Value]) -> Index {
    let mut index = Index::new(HOME);
    list(&mut index.tenants, tenants);
    list(&mut index.slices, slices);
    let nodes = [
        node(HOME, &["198.51.100.21"]),
        node(
            "worker-2",
            &["198.51.100.22", "2001:db8::22", "198.51.100.99"],
        ),
        node("nowhere", &[]),
    ];
    list(&mut index.nodes, &nodes);
    index
}

fn seen(tenants: &[Value], slices: &[Value]) -> Seen {
    index(tenants, slices).seen().unwrap()
}

/// What the one gateway of the world is like.
fn gateway(tenants: &[Value], slices: &[Value]) -> (Gateway, BTreeMap<u16, Addresses>) {
    let Seen { desired, here } = seen(tenants, slices);
    let [gateway] = desired.gateways.as_slice() else {
        panic!("{desired:#?}");
    };
    (gateway.clone(), here)
}

fn addresses(all: &[&str]) -> Addresses {
    first_of_each(all.iter().map(|one| one.parse().unwrap()))
}

#[test]
fn there_is_no_world_before_all_is_listed() {
    let mut index = Index::new(HOME);
    assert_eq!(index.missing(), ["vpntenants", "endpointslices", "nodes"]);
    list(&mut index.tenants, &[]);
    list(&mut index.slices, &[]);
    assert_eq!((index.seen(), index.missing()), (None, vec!["nodes"]));
    // Of a watch without a list.
    index.nodes.feed(&Event::Apply(parse(node(HOME, &[]))));
    assert_eq!(index.seen(), None);
    assert!(list(&mut index.nodes, &[]), "known to be none is news");
    assert_eq!(index.seen(), Some(Seen::default()));
    assert!(!index.has_node());
    list(&mut index.nodes, &[node(HOME, &[])]);
    assert!(index.has_node());
}

#[test]
fn all_addresses_of_all_other_nodes_are_edges() {
    let mut index = Index::new(HOME);
    list(&mut index.tenants, &[]);
    list(&mut index.slices, &[]);
    let addressed = |name: &str, addresses: &[(&str, &str)]| -> Value {
        let addresses = addresses.iter();
        let addresses: Vec<Value> = addresses
            .map(|(kind, address)| json!({ "type": kind, "address": address }))
            .collect();
        json!({ "metadata": { "name": name }, "status": { "addresses": addresses } })
    };
    let nodes = [
        addressed(HOME, &[("InternalIP", "198.51.100.21")]),
        addressed(
            "worker-2",
            &[
                ("Hostname", "198.51.100.250"),
                ("InternalIP", "198.51.100.22"),
                ("InternalIP", "2001:db8::22"),
                ("InternalIP", "198.51.100.99"),
                ("ExternalIP", "203.0.113.22"),
                ("InternalIP", "worker-2.example.com"),
            ],
        ),
        addressed("worker-3", &[("InternalIP", "2001:db8::23")]),
        addressed("nowhere", &[]),
    ];
    list(&mut index.nodes, &nodes);
    let edges = |index: &Index| -> Vec<String> {
        let edges = index.seen().unwrap().desired.edges;
        edges.iter().map(ToString::to_string).collect()
    };
    let expected = [
        "198.51.100.22",
        "198.51.100.99",
        "203.0.113.22",
        "2001:db8::22",
        "2001:db8::23",
    ];
    assert_eq!(edges(&index), expected);

    assert!(index.nodes.feed(&Event::Delete(parse(nodes[2].clone()))));
    assert_eq!(edges(&index), expected[..4]);
    let moved = addressed("worker-2", &[("InternalIP", "198.51.100.99")]);
    assert!(index.nodes.feed(&Event::Apply(parse(moved))));
    assert_eq!(edges(&index), ["198.51.100.99"]);
}

#[test]
fn a_gateway_elsewhere_is_at_its_nodes_internal_addresses() {
    let v4 = slice(1, 3, 31_000, "worker-2", "10.244.2.9");
    let v6 = slice(1, 3, 31_000, "worker-2", "fd00:10:244:2::9");
    let located = |slices: &[Value]| gateway(&[tenant(1, 3, 31_000)], slices).0.location;
    let there = |all: &[&str]| Some(Location::There(addresses(all)));
    // Of the IP versions that its pod has.
    assert_eq!(
        located(std::slice::from_ref(&v4)),
        there(&["198.51.100.22"])
    );
    assert_eq!(located(std::slice::from_ref(&v6)), there(&["2001:db8::22"]));
    let both = [v4, v6];
    assert_eq!(located(&both), there(&["198.51.100.22", "2001:db8::22"]));
    let (gateway, here) = gateway(&[tenant(1, 3, 31_000)], &both);
    assert_eq!(gateway.state, GatewayState::Ready);
    assert_eq!(
        (gateway.port, gateway.generation, gateway.tenant),
        (31_000, 3, id(1))
    );
    assert!(here.is_empty());
}

#[test]
fn a_gateway_here_is_told_by_its_pods_addresses_of_both_versions() {
    let slices = [
        slice(1, 3, 31_000, HOME, "10.244.1.9"),
        slice(1, 3, 31_000, HOME, "fd00:1::9"),
    ];
    let (gateway, here) = gateway(&[tenant(1, 3, 31_000)], &slices);
    assert_eq!(
        (gateway.location, gateway.state),
        (None, GatewayState::Ready)
    );
    let pod = addresses(&["10.244.1.9", "fd00:1::9"]);
    assert_eq!(here, BTreeMap::from([(31_000, pod)]));
}

#[test]
fn a_gateway_without_a_place_to_send_to_has_no_location() {
    let tenants = [tenant(1, 3, 31_000)];
    for node in ["unknown", "nowhere"] {
        let (gateway, here) = gateway(&tenants, &[slice(1, 3, 31_000, node, "10.244.2.9")]);
        assert_eq!(gateway.location, None, "{node}");
        assert!(here.is_empty());
    }
    let mut nowhere = slice(1, 3, 31_000, "worker-2", "10.244.2.9");
    nowhere["endpoints"][0]
        .as_object_mut()
        .unwrap()
        .remove("nodeName");
    assert_eq!(gateway(&tenants, &[nowhere]).0.location, None);
}

#[test]
fn readiness_is_the_endpoints() {
    let tenants = [tenant(1, 3, 31_000)];
    let state = |conditions: Value| {
        let mut slice = slice(1, 3, 31_000, "worker-2", "10.244.2.9");
        slice["endpoints"][0]["conditions"] = conditions;
        let (gateway, _) = gateway(&tenants, &[slice]);
        assert_eq!(
            gateway.location.is_some(),
            gateway.state == GatewayState::Ready
        );
        gateway.state
    };
    use GatewayState::{Ready, Starting};
    for (conditions, wanted) in [
        (json!({ "ready": true }), Ready),
        // Not known counts as ready.
        (json!({}), Ready),
        (json!({ "ready": false }), Starting),
        (
            json!({ "ready": false, "serving": false, "terminating": true }),
            Starting,
        ),
        // It answers until it ends.
        (
            json!({ "ready": false, "serving": true, "terminating": true }),
            Ready,
        ),
        (
            json!({ "ready": false, "serving": true, "terminating": false }),
            Starting,
        ),
    ] {
        assert_eq!(state(conditions.clone()), wanted, "{conditions}");
    }
    let mut empty = slice(1, 3, 31_000, "worker-2", "10.244.2.9");
    empty["endpoints"] = json!([]);
    assert_eq!(gateway(&tenants, &[empty]).0.state, Starting);
}

#[test]
fn one_that_is_ready_comes_before_one_that_ends() {
    let mut slice = slice(1, 3, 31_000, HOME, "10.244.1.9");
    slice["endpoints"][0]["conditions"] =
        json!({ "ready": false, "serving": true, "terminating": true });
    let fresh = json!({
        "addresses": ["10.244.2.9"], "nodeName": "worker-2",
        "conditions": { "ready": true }, "targetRef": { "name": "gateway-2" },
    });
    slice["endpoints"].as_array_mut().unwrap().push(fresh);
    let (gateway, here) = gateway(&[tenant(1, 3, 31_000)], &[slice]);
    assert!(matches!(gateway.location, Some(Location::There(_))));
    assert!(here.is_empty());
}

#[test]
fn only_who_holds_a_port_is_told_of() {
    let holds = |change: fn(&mut Value)| {
        let mut tenant = tenant(1, 3, 31_000);
        change(&mut tenant);
        seen(&[tenant], &[]).desired.allocated.len()
    };
    assert_eq!(holds(|_| {}), 1);
    assert_eq!(
        holds(|tenant| tenant["status"]["phase"] = json!("failed")),
        1
    );
    let changes: [fn(&mut Value); 8] = [
        |tenant| drop(tenant["status"].as_object_mut().unwrap().remove("port")),
        |tenant| {
            drop(
                tenant["status"]
                    .as_object_mut()
                    .unwrap()
                    .remove("serverPublicKey"),
            )
        },
        |tenant| drop(tenant.as_object_mut().unwrap().remove("status")),
        |tenant| tenant["status"]["serverPublicKey"] = json!("none"),
        |tenant| tenant["status"]["generation"] = json!(-1),
        |tenant| tenant["spec"]["plan"] = json!("unheard_of"),
        |tenant| tenant["metadata"]["name"] = json!("another"),
        |tenant| tenant["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(holds(change), 0, "change {number}");
    }
}

#[test]
fn a_gateway_that_is_nobodys_any_more_is_told_of_until_it_is_gone() {
    let mut disabled = tenant(1, 3, 31_000);
    disabled["status"] = json!({ "phase": "disabled", "generation": 3 });
    let mut deleted = tenant(1, 3, 31_000);
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for tenant in [disabled, deleted] {
        let slices = [slice(1, 3, 31_000, "worker-2", "10.244.2.9")];
        assert_eq!(
            gateway(std::slice::from_ref(&tenant), &slices).0.port,
            31_000
        );
        let Seen { desired, here } = seen(&[tenant], &[]);
        assert!(desired.allocated.is_empty() && desired.gateways.is_empty() && here.is_empty());
    }
}

#[test]
fn nobody_speaks_for_a_tenant_of_another_namespace() {
    let tenants = [tenant(1, 3, 31_000), tenant(2, 1, 31_001)];
    let right = slice(1, 3, 31_000, "worker-2", "10.244.2.9");
    // Tenant 2's namespace has a Service that says it is tenant 1's gateway.
    let mut forged = slice(1, 3, 31_000, HOME, "10.244.1.66");
    forged["metadata"]["namespace"] = json!(namespace(2));
    // Its own gateway says that it has tenant 1's port.
    let crooked = slice(2, 9, 31_000, HOME, "10.244.1.66");
    // Another Service of tenant 1's namespace has all labels but the name.
    let mut unnamed = slice(1, 3, 31_000, HOME, "10.244.1.66");
    unnamed["metadata"]["name"] = json!("another");
    unnamed["metadata"]["labels"]["kubernetes.io/service-name"] = json!("another");
    for other in [forged, crooked, unnamed] {
        let (gateway, here) = gateway(&tenants, &[right.clone(), other]);
        assert_eq!(gateway.tenant, id(1));
        assert!(matches!(gateway.location, Some(Location::There(_))));
        assert!(here.is_empty());
    }
    let stranger = slice(7, 1, 31_002, HOME, "10.244.1.66");
    assert_eq!(seen(&tenants, &[stranger]).desired.gateways, []);
}

#[test]
fn the_gateway_of_the_tenants_generation_is_the_one() {
    let tenants = [tenant(1, 4, 31_000)];
    for generations in [[3, 4], [4, 3], [4, 5], [5, 4]] {
        let mut slices =
            generations.map(|generation| slice(1, generation, 31_000, "worker-2", "10.244.2.9"));
        slices[1]["metadata"]["name"] = json!("another");
        assert_eq!(
            gateway(&tenants, &slices).0.generation,
            4,
            "{generations:?}"
        );
    }
}

#[test]
fn of_two_that_claim_a_port_all_edges_believe_the_same() {
    let created = |number, generation, time: &str| {
        let mut tenant = tenant(number, generation, 31_000);
        tenant["metadata"]["creationTimestamp"] = json!(time);
        tenant
    };
    // A generation is what a tenant may have forged.
    let tenants = [
        created(1, 3, "2026-11-30T10:00:00Z"),
        created(2, i64::MAX, "2026-11-30T10:00:01Z"),
    ];
    let holder = |slices: &[Value]| {
        let holders = [[0, 1], [1, 0]].map(|order| {
            let tenants = order.map(|place| tenants[place].clone());
            let desired = seen(&tenants, slices).desired;
            assert_eq!(desired.allocated.len(), 1);
            desired.allocated[0].tenant
        });
        assert_eq!(
            holders[0], holders[1],
            "the order of the list changes nothing"
        );
        holders[0]
    };
    assert_eq!(holder(&[]), id(1), "the older");
    let of = |number, generation| slice(number, generation, 31_000, HOME, "10.244.1.9");
    let newest = i64::MAX.cast_unsigned();
    assert_eq!(holder(&[of(2, newest)]), id(2), "who has a gateway there");
    assert_eq!(holder(&[of(2, 4)]), id(1), "a gateway of other keys");
    assert_eq!(holder(&[of(1, 3), of(2, newest)]), id(1));
}

#[test]
fn what_says_nothing_new_is_no_change() {
    let mut index = index(&[tenant(1, 3, 31_000)], &[]);
    let mut same = tenant(1, 3, 31_000);
    same["status"]["phase"] = json!("enabled");
    let apply = |value: Value| Event::Apply(parse(value));
    assert!(!index.tenants.feed(&apply(same)));
    assert!(!list(&mut index.tenants, &[tenant(1, 3, 31_000)]));
    assert!(index.tenants.feed(&apply(tenant(1, 4, 31_000))));
    let gone = parse(tenant(9, 1, 31_009));
    assert!(!index.tenants.feed(&Event::Delete(gone)));

    let beat = node(HOME, &["198.51.100.21"]);
    assert!(!index.nodes.feed(&Event::Apply(parse(beat))));
}

#[test]
fn a_list_that_is_read_anew_counts_when_it_is_complete() {
    let mut index = index(&[tenant(1, 3, 31_000), tenant(2, 1, 31_001)], &[]);
    let before = index.seen();
    assert!(!index.tenants.feed(&Event::Init));
    let kept = parse(tenant(2, 1, 31_001));
    assert!(!index.tenants.feed(&Event::InitApply(kept)));
    assert_eq!(index.seen(), before);
    // It fails half-way, and begins again.
    index.tenants.feed(&Event::Init);
    let kept = parse(tenant(1, 3, 31_000));
    index.tenants.feed(&Event::InitApply(kept));
    assert!(index.tenants.feed(&Event::InitDone));
    let allocated = index.seen().unwrap().desired.allocated;
    assert_eq!(allocated.len(), 1);
    assert_eq!(allocated[0].tenant, id(1));
}

/// What becomes of one resource, the last of which is what is there in the end.
#[derive(Clone, Debug)]
enum Step {
    Tenant(u128, Option<(i64, u16)>),
    Slice(u128, bool, Option<(u64, u16, usize)>),
    Node(usize, Option<u8>),
    /// The lists are read anew.
    Relist(usize),
}

const NAMES: [&str; 3] = [HOME, "worker-2", "worker-3"];

fn any_step() -> impl Strategy<Value = Step> {
    let (few, ports) = (0..3_u128, 31_000..31_003_u16);
    let tenant = proptest::option::weighted(0.8, (1..3_i64, ports.clone()));
    let slice = proptest::option::weighted(0.8, (1..3_u64, ports, 0..3_usize));
    prop_oneof![
        4 => (few.clone(), tenant).prop_map(|(who, what)| Step::Tenant(who, what)),
        4 => (few, any::<bool>(), slice).prop_map(|(who, v6, what)| Step::Slice(who, v6, what)),
        2 => (0..3_usize, proptest::option::weighted(0.8, 1..9_u8))
            .prop_map(|(which, what)| Step::Node(which, what)),
        1 => (0..3_usize).prop_map(Step::Relist),
    ]
}

/// The cluster, by what a list of each kind would return.
#[derive(Default)]
struct Stored {
    tenants: BTreeMap<u128, Value>,
    slices: BTreeMap<(u128, bool), Value>,
    nodes: BTreeMap<usize, Value>,
}

fn store<K: Ord, R: Row>(
    objects: &mut BTreeMap<K, Value>,
    table: &mut Table<R>,
    key: K,
    object: Option<Value>,
) where
    R::Object: DeserializeOwned,
{
    match object {
        Some(object) => {
            objects.insert(key, object.clone());
            table.feed(&Event::Apply(parse(object)));
        }
        None => {
            if let Some(object) = objects.remove(&key) {
                table.feed(&Event::Delete(parse(object)));
            }
        }
    }
}

impl Stored {
    fn step(&mut self, index: &mut Index, step: &Step) {
        match *step {
            Step::Tenant(who, what) => {
                let object = what.map(|(generation, port)| tenant(who, generation, port));
                store(&mut self.tenants, &mut index.tenants, who, object);
            }
            Step::Slice(who, v6, what) => {
                let object = what.map(|(generation, port, node)| {
                    let address = if v6 { "fd00:1::9" } else { "10.244.1.9" };
                    slice(who, generation, port, NAMES[node], address)
                });
                store(&mut self.slices, &mut index.slices, (who, v6), object);
            }
            Step::Node(which, what) => {
                let object = what.map(|last| node(NAMES[which], &[&format!("192.0.2.{last}")]));
                store(&mut self.nodes, &mut index.nodes, which, object);
            }
            Step::Relist(kind) => self.list(index, kind),
        }
    }

    fn list(&self, index: &mut Index, kind: usize) {
        let values = |all: Vec<&Value>| all.into_iter().cloned().collect::<Vec<_>>();
        match kind {
            0 => list(&mut index.tenants, &values(self.tenants.values().collect())),
            1 => list(&mut index.slices, &values(self.slices.values().collect())),
            _ => list(&mut index.nodes, &values(self.nodes.values().collect())),
        };
    }
}

/// The kind and the resource that a step is about; the order of steps about
/// the same stays.
fn subject(step: &Step) -> (u8, u128, bool) {
    match *step {
        Step::Tenant(who, _) => (0, who, false),
        Step::Slice(who, v6, _) => (1, who, v6),
        Step::Node(which, _) => (2, which as u128, false),
        Step::Relist(_) => (3, 0, false),
    }
}

proptest! {
    #[test]
    fn whatever_the_order_of_events_the_world_is_the_same(
        steps in proptest::collection::vec(any_step(), 0..40),
        swaps in proptest::collection::vec(0..40_usize, 0..200),
    ) {
        let mut other = steps.clone();
        for place in swaps {
            if place + 1 < other.len() && subject(&other[place]) != subject(&other[place + 1]) {
                other.swap(place, place + 1);
            }
        }
        let run = |steps: &[Step]| {
            let (mut index, mut stored) = (Index::new(HOME), Stored::default());
            (0..3).for_each(|kind| stored.list(&mut index, kind));
            for step in steps {
                stored.step(&mut index, step);
            }
            (index.seen().unwrap(), stored)
        };
        let (seen, stored) = run(&steps);
        prop_assert_eq!(&seen, &run(&other).0);
        // And as if all had been there from the first.
        let mut fresh = Index::new(HOME);
        (0..3).for_each(|kind| stored.list(&mut fresh, kind));
        prop_assert_eq!(&seen, &fresh.seen().unwrap());
        let ports: Vec<u16> = seen.desired.gateways.iter().map(|gateway| gateway.port).collect();
        prop_assert!(ports.is_sorted_by(|one, next| one < next), "one gateway a port");
    }
}
