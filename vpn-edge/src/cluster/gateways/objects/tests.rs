use k8s_openapi::api::core::v1::Toleration;
use serde::Serialize;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::*;
use crate::cluster::crd::GatewayPod;
use crate::domain::tunnel::{Fixed, Peer};
use crate::wireguard::PrivateKey;

fn spec() -> GatewaySpec {
    GatewaySpec {
        tenant: Uuid::from_u128(0x7c9e_6679_7425_40de_944b_e07f_c1f9_0ae7),
        namespace: "tenant-acme".into(),
        tunnel: TunnelSpec {
            fixed: Fixed {
                port: 31_001,
                generation: 1_700_000_000,
                server_key: PrivateKey::from_bytes([7; 32]),
                addresses: vec!["10.42.128.1/24".parse().unwrap()],
                client: Peer {
                    public_key: PrivateKey::from_bytes([9; 32]).public(),
                    allowed_ips: vec!["10.42.128.2/32".parse().unwrap()],
                },
                mtu: None,
            },
            live: Live {
                networks: vec![
                    "10.97.1.0/24".parse().unwrap(),
                    "fd00:97:1::/64".parse().unwrap(),
                ],
                dns: IpAddr::from([10, 96, 0, 10]),
            },
        },
    }
}

fn place() -> GatewayTarget {
    GatewayTarget {
        namespace: "tenant-acme".into(),
        owner: OwnerReference {
            api_version: "vpn-edge.dev/v1alpha1".into(),
            kind: "VpnTenant".into(),
            name: "vpn".into(),
            uid: "0f4e2b1a".into(),
            controller: Some(true),
            block_owner_deletion: None,
        },
        pod: GatewayPod::default(),
    }
}

fn settings() -> Settings {
    Settings::new("registry.example.com/vpn-edge:1".into())
}

fn made(spec: &GatewaySpec, place: &GatewayTarget) -> Deployment {
    deployment(place, &PublicSpec::of(spec), &settings())
}

fn yaml(value: &impl Serialize) -> String {
    // By way of JSON, as the cluster gets it.
    serde_saphyr::to_string(&serde_json::to_value(value).unwrap()).unwrap()
}

#[test]
fn all_that_makes_up_a_gateway() {
    let (spec, place, settings) = (spec(), place(), settings());
    let shape = PublicSpec::of(&spec);
    insta::assert_snapshot!("deployment", yaml(&made(&spec, &place)));
    insta::assert_snapshot!("service", yaml(&service(&place, &shape)));
    insta::assert_snapshot!("policy", yaml(&policy(&place, &shape, &settings)));
}

#[test]
fn the_secret_has_the_configuration_and_nothing_else_has_a_key() {
    let (spec, place, settings) = (spec(), place(), settings());
    let secret = secret(&place, &spec);
    let data = secret.data.unwrap();
    let text = &data["gateway.json"].0;
    let back: GatewayConfig = serde_json::from_slice(text).unwrap();
    assert_eq!(back, config(&spec));
    assert!(!back.only_edge, "the Service leads to it too");
    let shape = PublicSpec::of(&spec);
    let rest = [
        yaml(&made(&spec, &place)),
        yaml(&service(&place, &shape)),
        yaml(&policy(&place, &shape, &settings)),
    ];
    let key = spec.tunnel.fixed.server_key.to_base64();
    assert!(rest.iter().all(|text| !text.contains(&*key)));
}

#[test]
fn a_shape_is_read_back_from_its_deployment() {
    let (mut spec, place, settings) = (spec(), place(), settings());
    for networks in [spec.tunnel.live.networks.clone(), Vec::new()] {
        spec.tunnel.live.networks = networks;
        let shape = PublicSpec::of(&spec);
        assert_eq!(
            PublicSpec::read(&deployment(&place, &shape, &settings)),
            Some(shape)
        );
    }
    let mut foreign = made(&spec, &place);
    foreign.metadata.annotations = None;
    assert_eq!(PublicSpec::read(&foreign), None);
}

#[test]
fn a_tenant_without_networks_is_let_to_none() {
    let (mut spec, place, settings) = (spec(), place(), settings());
    let rules = |spec: &GatewaySpec| {
        let shape = PublicSpec::of(spec);
        let policy = policy(&place, &shape, &settings);
        policy.spec.unwrap().egress.unwrap()
    };
    assert_eq!(rules(&spec).len(), 3);
    spec.tunnel.live.networks.clear();
    let egress = rules(&spec);
    assert_eq!(egress.len(), 2);
    assert!(
        egress
            .iter()
            .all(|rule| rule.to.as_ref().is_some_and(|to| !to.is_empty())),
        "an empty list is everything"
    );
}

#[test]
fn only_what_takes_another_pod_changes_the_template() {
    let (before, place) = (spec(), place());
    let template =
        |spec: &GatewaySpec, place: &GatewayTarget| made(spec, place).spec.unwrap().template;
    let same = |spec: &GatewaySpec| template(spec, &place) == template(&before, &place);

    let mut spec = before.clone();
    spec.tunnel.live.networks.pop();
    assert!(same(&spec), "networks change in place");
    assert_ne!(made(&spec, &place), made(&before, &place));

    let mut spec = before.clone();
    spec.tunnel.live.dns = IpAddr::from([10, 96, 0, 11]);
    assert!(same(&spec), "and the DNS server");
    assert_ne!(made(&spec, &place), made(&before, &place));

    let mut spec = before.clone();
    spec.tunnel.fixed.generation += 1;
    assert!(!same(&spec), "keys do not");

    let mut spec = before.clone();
    let address = "fd12:3456:789a::1/64".parse().unwrap();
    spec.tunnel.fixed.addresses.push(address);
    assert!(!same(&spec), "nor do addresses");

    let mut spec = before.clone();
    spec.tunnel.fixed.client.public_key = PrivateKey::from_bytes([8; 32]).public();
    assert!(!same(&spec), "nor does the client");

    let mut spec = before.clone();
    spec.tunnel.fixed.mtu = Some(1380);
    assert!(!same(&spec), "nor does the MTU");
}

/// An upgrade is not to replace pods that are as they are to be.
#[test]
fn a_gateway_of_an_earlier_build_is_known_by_its_annotations() {
    let (spec, place) = (spec(), place());
    let mut earlier = made(&spec, &place);
    let annotations = earlier.metadata.annotations.as_mut().unwrap();
    for key in [annotation::FIXED, annotation::LIVE] {
        annotations.remove(key).unwrap();
    }
    assert_eq!(PublicSpec::read(&earlier), Some(PublicSpec::of(&spec)));
    assert_eq!(
        pods_tunnel(&earlier).map(String::as_str),
        Some("aa63efe80a1be5a0")
    );
}

#[test]
fn a_pod_that_is_to_be_replaced_is_told_from_the_tunnel_that_it_was_made_for() {
    let (before, place) = (spec(), place());
    let mut after = before.clone();
    after.tunnel.fixed.mtu = Some(1380);
    let (before, after) = (PublicSpec::of(&before), PublicSpec::of(&after));
    let mut announced = deployment(&place, &before, &settings());
    let annotations = announced.metadata.annotations.as_mut().unwrap();
    annotations.extend(tunnel(&after));
    assert_eq!(PublicSpec::read(&announced), Some(after));
    assert_eq!(pods_tunnel(&announced), Some(&before.digest.fixed));
}

#[test]
fn what_a_tenant_sets_is_in_its_pod() {
    let mut place = place();
    let tolerations = vec![Toleration {
        key: Some("edge".into()),
        operator: Some("Exists".into()),
        ..Toleration::default()
    }];
    let resources = ResourceRequirements {
        limits: Some([("memory".into(), Quantity("1Gi".into()))].into()),
        ..ResourceRequirements::default()
    };
    let before = made(&spec(), &place);
    place.pod.node_selector = labels([("disk", "fast")]);
    place.pod.tolerations.clone_from(&tolerations);
    place.pod.resources = Some(resources.clone());
    let after = made(&spec(), &place);
    for key in [annotation::POD_SPEC, annotation::APPLIED] {
        let of = |made: &Deployment| made.metadata.annotations.clone().unwrap()[key].clone();
        assert_ne!(of(&before), of(&after), "{key}");
    }
    let pod = after.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.node_selector, Some(labels([("disk", "fast")])));
    assert_eq!(pod.tolerations, Some(tolerations));
    let all = pod
        .init_containers
        .unwrap()
        .into_iter()
        .chain(pod.containers);
    for container in all {
        assert_eq!(container.resources.as_ref(), Some(&resources));
    }
}
