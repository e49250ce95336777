//! Tenants' databases, found by their Services.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use crate::catalog::{CLUSTER_DOMAIN, Databases};
use crate::domain::Tenant;

/// PostgreSQL's port.
pub const PORT: u16 = 5432;

/// Timeout of the request to the API server.
const DEADLINE: Duration = Duration::from_secs(1);

/// Maximum number of names per tenant.
const MOST: usize = 20;

/// The Services of the tenant's namespace that lead to PostgreSQL.
pub struct Services {
    client: Client,
}

impl Services {
    pub fn new(client: Client) -> Services {
        Services { client }
    }
}

#[async_trait]
impl Databases for Services {
    async fn hosts(&self, tenant: &Tenant) -> Vec<String> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), &tenant.namespace);
        let all = ListParams::default();
        let listed = tokio::time::timeout(DEADLINE, services.list(&all)).await;
        let Ok(Ok(listed)) = listed else {
            return Vec::new();
        };
        let mut hosts: Vec<String> = listed
            .iter()
            .filter(|service| is_database(service))
            .map(|service| {
                let (name, namespace) = (service.name_any(), &tenant.namespace);
                format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
            })
            .collect();
        hosts.sort();
        hosts.truncate(MOST);
        hosts
    }
}

/// CloudNativePG creates three Services per database. Only the one for writes is
/// listed.
fn is_database(service: &Service) -> bool {
    let name = service.name_any();
    let ports = service.spec.iter().filter_map(|spec| spec.ports.as_ref());
    let mut ports = ports.flatten();
    ports.any(|port| port.port == i32::from(PORT))
        && !name.ends_with("-ro")
        && !name.ends_with("-r")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_takes_writes_to_postgresql_is_a_database() {
        let service = |name: &str, port: u16| -> Service {
            serde_json::from_value(json!({
                "metadata": { "name": name },
                "spec": { "ports": [{ "port": port }] },
            }))
            .unwrap()
        };
        for (name, port, expected) in [
            ("db-a1-rw", 5432, true),
            ("db-a1-ro", 5432, false),
            ("db-a1-r", 5432, false),
            ("postgres", 5432, true),
            ("shop-rw", 80, false),
        ] {
            assert_eq!(is_database(&service(name, port)), expected, "{name}");
        }
    }
}
