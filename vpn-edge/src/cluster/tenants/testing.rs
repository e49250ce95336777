//! Resources as returned by an API server, for tests.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Secret, Service};
use serde_json::{from_value, json};
use uuid::Uuid;

use super::Settings;
use super::convert::{StoredKeys, TenantObjects, keys_secret, secret};
use crate::cluster::port_service::held;
use crate::cluster::{GATEWAY, TENANT, VpnTenant, VpnTenantSpec};
use crate::domain::{Keys, Plan, Pools, TunnelSettings};

pub const MADE: i64 = 1_750_000_000;

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub fn settings() -> Settings {
    Settings {
        pools: Pools::new(vec!["vpn.example.com=30000-30009".parse().unwrap()]).unwrap(),
        tunnels: TunnelSettings {
            cluster_ranges: Vec::new(),
            dns: IpAddr::from([10, 96, 0, 10]),
            ipv6: false,
            mtu: None,
        },
    }
}

/// With this ID, created this many seconds after [`MADE`].
pub fn resource(id: u128, namespace: &str, after: i64, version: u64) -> VpnTenant {
    let spec = json!({
        "id": Uuid::from_u128(id).to_string(),
        "organisation": "acme",
        "plan": Plan::Business,
        "ready": true,
        "vpn": { "enabled": true },
    });
    let spec: VpnTenantSpec = from_value(spec).unwrap();
    let mut resource = VpnTenant::new(TENANT, spec);
    resource.metadata.namespace = Some(namespace.to_owned());
    resource.metadata.uid = Some(format!("uid-{namespace}"));
    resource.metadata.resource_version = Some(version.to_string());
    let made = at(MADE + after);
    resource.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(made));
    resource
}

pub fn kept(port: u16, generation: u64) -> StoredKeys {
    StoredKeys {
        port,
        subnet: Some("10.42.128.0/24".parse().unwrap()),
        keys: Keys::generate().unwrap(),
        created_at: "2026-11-21T12:00:00.25Z".parse().unwrap(),
        generation,
        key_generation: 0,
    }
}

pub fn stored(resource: &VpnTenant, kept: &StoredKeys, version: u64) -> Secret {
    let mut secret = secret(resource, kept, Some(version.to_string()));
    secret.metadata.uid = Some("uid-keys".to_owned());
    secret
}

pub fn service(namespace: &str, name: &str, port: u16, version: u64) -> Service {
    from_value(json!({
        "metadata": { "name": name, "namespace": namespace, "resourceVersion": version.to_string() },
        "spec": { "ports": [{ "port": 80, "nodePort": port }] },
    }))
    .unwrap()
}

/// A tenant with keys for this port, and the Service that holds it.
pub fn view(port: u16, generation: u64) -> TenantObjects {
    let resource = resource(1, "t-1", 0, 5);
    let secret = stored(&resource, &kept(port, generation), 6);
    TenantObjects {
        namespace: "t-1".to_owned(),
        resource: resource.into(),
        keys: Some(keys_secret(&secret)),
        service: held(&service("t-1", GATEWAY, port, 7)),
    }
}
