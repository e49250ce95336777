//! What is known of all tenants and ports. Pure: events in, views out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use uuid::Uuid;

use super::convert::{KeysSecret, View, created, keys_secret};
use crate::cluster::cache::{Cache, Change, Name};
use crate::cluster::port_service::{Held, held};
use crate::cluster::{GATEWAY, KEYS, TENANT, VpnTenant};
use crate::domain::{Pools, PortPool, Ports, Tenant};

/// Who holds a port that no tenant holds.
const STRANGER: Uuid = Uuid::max();

/// A port that the API server refused is asked for again after this long. Who
/// holds it is not always seen: a Service that is gone holds it a moment longer.
const REFUSED: SignedDuration = SignedDuration::from_secs(2);

/// Who has the port that a tenant's keys Secret names. The API server decides it,
/// by the Service that it gave the node port to; the Secret is only a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// The tenant's own Service.
    Held,
    /// Nobody, and it is a port of a pool: the gateway's Service takes it.
    Free,
    /// Another Service, or no pool has it.
    Lost,
}

/// What a VpnTenant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Tenant(Arc<Tenant>),
    /// It was deleted, and goes once all it had is gone.
    Leaving,
    /// It is none, for this reason.
    Invalid(String),
    /// An older one, in this namespace, has the id.
    Duplicate(String),
}

impl Standing {
    /// Reason and message of why it is no tenant.
    pub fn refusal(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Tenant(_) | Self::Leaving => None,
            Self::Invalid(reason) => Some(("Invalid", reason.clone())),
            Self::Duplicate(namespace) => {
                let message = format!(
                    "the id is used by the VpnTenant in namespace {namespace}: choose another id"
                );
                Some(("DuplicateId", message))
            }
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Index {
    tenants: Cache<Arc<VpnTenant>>,
    keys: Cache<KeysSecret>,
    services: Cache<Held>,
    /// Namespaces of each id, and the other way round.
    by_id: BTreeMap<String, BTreeSet<String>>,
    ids: BTreeMap<String, String>,
    /// The tenants, and the namespaces of each, but for what is unsettled.
    settled: BTreeMap<Uuid, Arc<Tenant>>,
    settled_in: BTreeMap<String, Uuid>,
    /// Namespaces of whose tenants something is new since then.
    unsettled: BTreeSet<String>,
    /// Longest released first.
    released: Vec<u16>,
    refused: BTreeMap<u16, Timestamp>,
    news: News,
    /// Networks that no tunnel may overlap.
    cluster_ranges: Vec<IpNet>,
}

/// What happened since it was asked last.
#[derive(Debug, Default)]
pub struct News {
    /// Namespaces of whose tenants something is new.
    pub namespaces: BTreeSet<String>,
    /// Ports were freed.
    pub freed: bool,
}

/// The kinds of objects that are watched.
pub trait Kind: ResourceExt {
    /// Tenants are made of it.
    const TELLS: bool;

    /// Takes in what a watch tells. Says whether it was news.
    fn take(index: &mut Index, event: &Event<Self>) -> bool
    where
        Self: Sized;
}

impl Kind for VpnTenant {
    const TELLS: bool = true;

    fn take(index: &mut Index, event: &Event<Self>) -> bool {
        let keep = |tenant: &VpnTenant| Some(Arc::new(tenant.clone()));
        let changes = index.tenants.take(event, keep);
        changes
            .iter()
            .for_each(|of| index.tenant_changed(&of.name.0));
        !changes.is_empty()
    }
}

impl Kind for Secret {
    const TELLS: bool = true;

    fn take(index: &mut Index, event: &Event<Self>) -> bool {
        let keep = |secret: &Secret| {
            let ours = secret.metadata.name.as_deref() == Some(KEYS);
            ours.then(|| keys_secret(secret))
        };
        let changes = index.keys.take(event, keep);
        changes.iter().for_each(|of| index.keys_changed(of));
        !changes.is_empty()
    }
}

impl Kind for Service {
    const TELLS: bool = false;

    fn take(index: &mut Index, event: &Event<Self>) -> bool {
        let changes = index.services.take(event, held);
        changes.iter().for_each(|of| index.service_changed(of));
        !changes.is_empty()
    }
}

fn name(namespace: &str, name: &str) -> Name {
    (namespace.to_owned(), name.to_owned())
}

impl Index {
    /// Nothing is known yet. Keys that an earlier build stored without a subnet have
    /// one clear of `cluster_ranges`.
    pub fn new(cluster_ranges: Vec<IpNet>) -> Self {
        Self {
            cluster_ranges,
            ..Self::default()
        }
    }

    /// All that is known of the tenant of a namespace.
    pub fn view(&self, namespace: &str) -> Option<View> {
        Some(View {
            namespace: namespace.to_owned(),
            resource: self.tenants.get(&name(namespace, TENANT))?.clone(),
            keys: self.keys.get(&name(namespace, KEYS)).cloned(),
            service: self.services.get(&name(namespace, GATEWAY)).cloned(),
        })
    }

    /// The tenant of an id.
    pub fn find(&self, id: Uuid) -> Option<(View, Arc<Tenant>)> {
        let view = self.view(&self.holder_of(&id.to_string())?)?;
        match self.standing(&view) {
            Standing::Tenant(tenant) => Some((view, tenant)),
            _ => None,
        }
    }

    /// All tenants, by id.
    pub fn tenants(&mut self) -> Vec<Arc<Tenant>> {
        self.settle();
        self.settled.values().cloned().collect()
    }

    /// Makes tenants of what is new.
    fn settle(&mut self) {
        let unsettled = std::mem::take(&mut self.unsettled);
        // Of two of one id, news of either may change which of them it is.
        let of_their_ids = unsettled.iter().filter_map(|namespace| {
            let id = self.ids.get(namespace)?;
            self.by_id.get(id)
        });
        let namespaces: BTreeSet<String> =
            of_their_ids.flatten().chain(&unsettled).cloned().collect();
        for namespace in &namespaces {
            if let Some(id) = self.settled_in.remove(namespace) {
                self.settled.remove(&id);
            }
        }
        for namespace in namespaces {
            let standing = self.view(&namespace).map(|view| self.standing(&view));
            if let Some(Standing::Tenant(tenant)) = standing {
                self.settled_in.insert(namespace, tenant.id);
                self.settled.insert(tenant.id, tenant);
            }
        }
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        let tenants = self.tenants.iter().filter(|((_, name), _)| name == TENANT);
        tenants.map(|((namespace, _), _)| namespace.as_str())
    }

    pub fn standing(&self, view: &View) -> Standing {
        if view.deleting() {
            return Standing::Leaving;
        }
        match self.holder_of(&view.resource.spec.id) {
            Some(holder) if holder != view.namespace => return Standing::Duplicate(holder),
            _ => {}
        }
        match view.tenant(&self.cluster_ranges) {
            Ok(tenant) => Standing::Tenant(Arc::new(tenant)),
            Err(reason) => Standing::Invalid(reason),
        }
    }

    /// Whether somebody has this id, a deleted one included.
    pub fn has(&self, id: Uuid) -> bool {
        self.by_id.contains_key(&id.to_string())
    }

    /// The namespace whose tenant an id is: the oldest. Of one second, times
    /// being no finer, one that has keys.
    fn holder_of(&self, id: &str) -> Option<String> {
        let namespaces = self.by_id.get(id)?.iter();
        let first = namespaces.min_by_key(|namespace| {
            let made = self
                .tenants
                .get(&name(namespace, TENANT))
                .map(|t| created(t));
            let keys = self.keys.get(&name(namespace, KEYS));
            let kept = keys.is_some_and(|keys| keys.kept.is_some());
            (made, !kept, (*namespace).clone())
        });
        first.cloned()
    }

    /// The ports as they are for this tenant. It is offered first what its
    /// Service holds already, then ports in an order of its own, which makes
    /// two tenants seldom ask for the same, and last those released lately.
    pub fn pool(
        &mut self,
        pools: &Pools,
        view: &View,
        tenant: &Tenant,
        now: Timestamp,
    ) -> PortPool {
        self.settle();
        let mut holders = self.holders(now);
        let allocated = tenant.vpn.allocation.as_ref().map(|a| a.port);
        // Its own, but not what its keys are for: free for it to take.
        holders.retain(|port, holder| *holder != tenant.id || Some(*port) == allocated);
        let claim = view.claim();
        let turns: BTreeMap<u16, usize> = self.released.iter().copied().zip(1..).collect();
        let mut free: Vec<u16> = pools.ports().filter(|p| !holders.contains_key(p)).collect();
        free.sort_by_cached_key(|port| {
            (
                Some(*port) != claim,
                turns.get(port).copied().unwrap_or(0),
                Reverse(weight(tenant.id, *port)),
            )
        });
        PortPool::over(pools.ranges(), holders, free).expect("a map has each port once")
    }

    /// Who holds each port. A Service settles it where two think they do, as
    /// the API server gives each port to one.
    fn holders(&self, now: Timestamp) -> BTreeMap<u16, Uuid> {
        let mut holders = BTreeMap::new();
        for ((namespace, _), keys) in self.keys.iter() {
            if let Some(kept) = &keys.kept {
                holders.insert(kept.port, self.holder(namespace));
            }
        }
        for (port, refused) in &self.refused {
            if now.duration_since(*refused) < REFUSED {
                holders.entry(*port).or_insert(STRANGER);
            }
        }
        for ((namespace, name), service) in self.services.iter() {
            let ours = name == GATEWAY;
            let holder = if ours {
                self.holder(namespace)
            } else {
                STRANGER
            };
            holders.extend(service.ports.iter().map(|port| (*port, holder)));
        }
        holders
    }

    /// Who has the port of these keys; none if there are no keys.
    ///
    /// A port that has left its pool stays the tenant's for as long as its
    /// Service holds it.
    pub fn reservation(&self, view: &View, pools: &Pools) -> Option<Reservation> {
        let port = view.kept()?.port;
        if view.reserves(port) {
            return Some(Reservation::Held);
        }
        let taken = || {
            let mut services = self.services.iter();
            services.any(|(_, service)| service.ports.contains(&port))
        };
        if !pools.contains(port) || taken() {
            return Some(Reservation::Lost);
        }
        Some(Reservation::Free)
    }

    /// The tenant that holds what a namespace has; nobody's else.
    fn holder(&self, namespace: &str) -> Uuid {
        self.settled_in.get(namespace).copied().unwrap_or(STRANGER)
    }

    /// Takes note that the API server did not give out this port.
    pub fn refuse(&mut self, port: u16, now: Timestamp) {
        self.refused.insert(port, now);
    }

    /// Versions of VpnTenant, keys and gateway's Service as they are known.
    pub fn versions(&self, namespace: &str) -> [u64; 3] {
        [
            self.tenants.version(&name(namespace, TENANT)),
            self.keys.version(&name(namespace, KEYS)),
            self.services.version(&name(namespace, GATEWAY)),
        ]
    }

    /// Takes note that a tenant's keys of this version were the last. Says
    /// whether that was news.
    pub fn absent_keys(&mut self, namespace: &str, version: u64) -> bool {
        let change = self.keys.delete(&name(namespace, KEYS), version);
        change.iter().for_each(|of| self.keys_changed(of));
        change.is_some()
    }

    /// The same for a gateway's Service.
    pub fn absent_service(&mut self, namespace: &str, version: u64) -> bool {
        let change = self.services.delete(&name(namespace, GATEWAY), version);
        change.iter().for_each(|of| self.service_changed(of));
        change.is_some()
    }

    /// The same for a VpnTenant.
    pub fn absent_tenant(&mut self, namespace: &str, version: u64) -> bool {
        let change = self.tenants.delete(&name(namespace, TENANT), version);
        change.iter().for_each(|of| self.tenant_changed(&of.name.0));
        change.is_some()
    }

    /// Something outside the resources is new about the tenant of this id.
    pub fn tell_of(&mut self, id: Uuid) {
        self.news.namespaces.extend(self.holder_of(&id.to_string()));
    }

    pub fn news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    fn free(&mut self, ports: Vec<u16>) {
        self.news.freed |= !ports.is_empty();
        for port in ports {
            self.refused.remove(&port);
            self.released.retain(|released| *released != port);
            self.released.push(port);
        }
    }

    fn keys_changed(&mut self, change: &Change<KeysSecret>) {
        if self.keys.get(&change.name).is_none()
            && let Some(kept) = change.before.as_ref().and_then(|keys| keys.kept.as_ref())
        {
            self.free(vec![kept.port]);
        }
        self.note(&change.name.0);
    }

    /// Tells its tenant, or the one whose port a stranger's Service has.
    fn service_changed(&mut self, Change { name, before }: &Change<Held>) {
        if name.1 == GATEWAY {
            self.note(&name.0);
        }
        if self.services.get(name).is_none()
            && let Some(before) = before
        {
            self.free(before.ports.clone());
        }
        let ports = self.services.get(name).map(|service| &service.ports);
        let ports = ports.map_or(&[][..], Vec::as_slice);
        let lost = self.keys.iter().filter(|(_, keys)| {
            let port = keys.kept.as_ref().map(|kept| kept.port);
            port.is_some_and(|port| ports.contains(&port))
        });
        let lost = lost.map(|((namespace, _), _)| namespace.clone());
        self.news.namespaces.extend(lost);
    }

    fn tenant_changed(&mut self, namespace: &str) {
        self.note(namespace);
        let tenant = self.tenants.get(&name(namespace, TENANT));
        let id = tenant.map(|tenant| tenant.spec.id.clone());
        let before = match &id {
            Some(id) => self.ids.insert(namespace.to_owned(), id.clone()),
            None => self.ids.remove(namespace),
        };
        if let Some(id) = &id {
            let namespaces = self.by_id.entry(id.clone()).or_default();
            namespaces.insert(namespace.to_owned());
        }
        if let Some(before) = before
            .as_ref()
            .filter(|before| Some(*before) != id.as_ref())
            && let Some(namespaces) = self.by_id.get_mut(before)
        {
            namespaces.remove(namespace);
        }
        // Who else has the id may now have it alone, or no longer.
        for id in before.iter().chain(&id) {
            let others = self.by_id.get(id).cloned().unwrap_or_default();
            others.iter().for_each(|namespace| self.note(namespace));
            if others.is_empty() {
                self.by_id.remove(id);
            }
        }
    }

    /// Takes note that something is new of a namespace's tenant.
    fn note(&mut self, namespace: &str) {
        self.news.namespaces.insert(namespace.to_owned());
        self.unsettled.insert(namespace.to_owned());
    }
}

/// Ports for one tenant, looked up when the first is asked for: most changes
/// take none.
pub struct Offer<F> {
    gather: F,
    gathered: Option<PortPool>,
}

impl<F: Fn() -> PortPool> Offer<F> {
    pub fn new(gather: F) -> Self {
        Self {
            gather,
            gathered: None,
        }
    }

    fn pool(&mut self) -> &mut PortPool {
        self.gathered.get_or_insert_with(&self.gather)
    }
}

impl<F: Fn() -> PortPool> Ports for Offer<F> {
    fn allocate(&mut self, holder: Uuid) -> Option<u16> {
        self.pool().allocate(holder)
    }

    fn release(&mut self, port: u16) -> bool {
        self.pool().release(port)
    }

    fn keeps(&mut self, port: u16, holder: Uuid) -> bool {
        self.pool().keeps(port, holder)
    }
}

/// A number for each pair of tenant and port, spread evenly (splitmix64).
fn weight(id: Uuid, port: u16) -> u64 {
    let (high, low) = id.as_u64_pair();
    let mix = |seed: u64| {
        let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mix(mix(mix(high) ^ low) ^ u64::from(port))
}

#[cfg(test)]
mod tests;
