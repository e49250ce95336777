//! The cluster's gateway objects, as last observed.
//!
//! A written object is in the index immediately, so that nobody acts on its previous
//! state. Nothing older replaces it: versions only grow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use uuid::Uuid;

use super::objects::{PublicSpec, annotation};
use super::settings::GatewayTarget;
use super::state::state;
use crate::cluster::cache::{Cache, name, version};
use crate::cluster::{GATEWAY, TENANT, VpnTenant, label};
use crate::domain::{GatewayState, TunnelDigest};
use crate::gateways::Gateway;

/// Objects of one kind.
pub struct Objects<K> {
    cache: Cache<Arc<K>>,
    /// Namespaces with changes.
    news: BTreeSet<String>,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self {
            cache: Cache::default(),
            news: BTreeSet::new(),
        }
    }
}

impl<K: ResourceExt + Clone> Objects<K> {
    /// Applies an event of a watch of gateways' objects or of tenants. Returns the
    /// namespaces that changed.
    pub fn take(&mut self, event: &Event<K>) -> BTreeSet<String> {
        let keep = |object: &K| is_ours(object).then(|| kept(object.clone()));
        let changes = self.cache.take(event, keep);
        let changed = changes.into_iter().map(|change| change.name.0);
        let changed: BTreeSet<String> = changed.collect();
        self.news.extend(changed.iter().cloned());
        changed
    }

    /// Puts an object, unless a newer one is known.
    pub fn put(&mut self, object: K) {
        let (name, version) = (name(&object), version(&object));
        let change = self.cache.apply(name, version, kept(object));
        self.news.extend(change.map(|change| change.name.0));
    }

    /// Removes the gateway's object in the namespace, if it is for the port.
    fn forget(&mut self, namespace: &str, of: u16) {
        if self.get(namespace).and_then(|found| port(&**found)) == Some(of) {
            let name = (namespace.to_owned(), GATEWAY.to_owned());
            let change = self.cache.delete(&name, self.cache.version(&name));
            self.news.extend(change.map(|change| change.name.0));
        }
    }

    /// The gateway's object in the namespace.
    pub fn get(&self, namespace: &str) -> Option<&Arc<K>> {
        self.named(namespace, GATEWAY)
    }

    fn named(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.cache.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub fn within<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a K> {
        self.cache.within(namespace).map(|object| &**object)
    }

    pub fn all(&self) -> impl Iterator<Item = &K> {
        self.cache.iter().map(|(_, object)| &**object)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.cache.iter().map(|((namespace, _), _)| &**namespace)
    }
}

/// Whether the object may belong to a gateway, which has the gateway's name or label,
/// or is a tenant: some watches select more.
fn is_ours(object: &impl ResourceExt) -> bool {
    let label = object.labels().get(label::NAME);
    matches!(&*object.name_any(), GATEWAY | TENANT) || label.is_some_and(|name| name == GATEWAY)
}

/// The managed fields are not used here.
fn kept<K: ResourceExt>(mut object: K) -> Arc<K> {
    object.managed_fields_mut().clear();
    Arc::new(object)
}

#[derive(Default)]
pub struct Index {
    pub tenants: Objects<VpnTenant>,
    pub deployments: Objects<Deployment>,
    pub services: Objects<Service>,
    pub policies: Objects<NetworkPolicy>,
    /// Metadata only.
    pub secrets: Objects<PartialObjectMeta<Secret>>,
    pub pods: Objects<Pod>,
    /// By namespace, except for namespaces with changes.
    gateways: BTreeMap<String, Gateway>,
}

impl Index {
    /// The location of the tenant's gateway, if the namespace is that tenant's.
    pub fn place(&self, tenant: Uuid, namespace: &str) -> Option<GatewayTarget> {
        let found = self.tenants.named(namespace, TENANT)?;
        (found.spec.id == tenant.to_string()).then(|| place(found))?
    }

    /// The gateways, or their remains, in all namespaces that have any.
    pub fn gateways(&mut self) -> Vec<Gateway> {
        for namespace in self.news() {
            match self.gateway(&namespace) {
                Some(gateway) => self.gateways.insert(namespace, gateway),
                None => self.gateways.remove(&namespace),
            };
        }
        self.gateways.values().cloned().collect()
    }

    /// Namespaces with changes of a gateway.
    fn news(&mut self) -> BTreeSet<String> {
        self.tenants.news.clear();
        let mut news = std::mem::take(&mut self.deployments.news);
        news.append(&mut self.services.news);
        news.append(&mut self.policies.news);
        news.append(&mut self.secrets.news);
        news.append(&mut self.pods.news);
        news
    }

    /// The namespace's gateway, or its remains.
    pub fn gateway(&self, namespace: &str) -> Option<Gateway> {
        let deployment = self.deployments.get(namespace);
        let shape = deployment.and_then(|deployment| PublicSpec::read(deployment));
        let (Some(deployment), Some(shape)) = (deployment, shape) else {
            // The last object that is deleted with a gateway.
            let policy = self.policies.get(namespace)?;
            return Some(Gateway {
                tenant: policy.labels().get(label::TENANT)?.parse().ok()?,
                generation: policy.labels().get(label::GENERATION)?.parse().ok()?,
                port: port(&**policy)?,
                digest: TunnelDigest::default(),
                state: GatewayState::Absent,
                location: None,
            });
        };
        let generation = shape.generation.to_string();
        let whole = has(&self.services, namespace, &generation)
            && has(&self.policies, namespace, &generation)
            && has(&self.secrets, namespace, &generation);
        Some(Gateway {
            tenant: shape.tenant,
            generation: shape.generation,
            port: shape.port,
            digest: shape.digest,
            state: if whole {
                state(deployment, self.pods.within(namespace))
            } else {
                GatewayState::Absent
            },
            location: None,
        })
    }

    /// The namespaces that have an object for the port.
    pub fn holders(&self, wanted: u16) -> BTreeSet<String> {
        fn of<K: ResourceExt>(objects: &Objects<K>, wanted: u16) -> impl Iterator<Item = &str> {
            let all = objects.cache.iter();
            all.filter(move |(_, object)| port(&***object) == Some(wanted))
                .map(|((namespace, _), _)| &**namespace)
        }
        of(&self.deployments, wanted)
            .chain(of(&self.services, wanted))
            .chain(of(&self.policies, wanted))
            .chain(of(&self.secrets, wanted))
            .map(str::to_owned)
            .collect()
    }

    /// Removes deleted objects from the index.
    pub fn forget(&mut self, namespace: &str, port: u16) {
        self.deployments.forget(namespace, port);
        self.services.forget(namespace, port);
        self.policies.forget(namespace, port);
        self.secrets.forget(namespace, port);
    }

    /// The namespace's gateway, with its current location.
    pub fn placed_in(
        &self,
        namespace: &str,
    ) -> Option<(GatewayTarget, PublicSpec, Arc<Deployment>)> {
        let deployment = self.deployments.get(namespace)?;
        let shape = PublicSpec::read(deployment)?;
        let place = self.place(shape.tenant, namespace)?;
        Some((place, shape, Arc::clone(deployment)))
    }
}

fn place(tenant: &VpnTenant) -> Option<GatewayTarget> {
    use kube::Resource as _;
    Some(GatewayTarget {
        namespace: tenant.namespace()?,
        owner: tenant.controller_owner_ref(&())?,
        pod: tenant.spec.gateway.clone(),
    })
}

fn has<K: ResourceExt + Clone>(objects: &Objects<K>, namespace: &str, generation: &str) -> bool {
    let found = objects.get(namespace);
    found.is_some_and(|object| {
        let found = object.labels().get(label::GENERATION);
        found.map(String::as_str) == Some(generation)
    })
}

/// The port that the object is for.
pub fn port(object: &impl ResourceExt) -> Option<u16> {
    object.annotations().get(annotation::PORT)?.parse().ok()
}
