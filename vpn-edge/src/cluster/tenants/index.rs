//! All known tenants and ports. Pure: events in, views out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use uuid::Uuid;

use super::convert::{KeysSecret, TenantObjects, created, keys_secret};
use crate::cluster::cache::{Cache, Change, Name};
use crate::cluster::port_service::{PortService, held};
use crate::cluster::{GATEWAY, KEYS, TENANT, VpnTenant};
use crate::domain::{Pools, PortPool, Ports, Tenant};

/// The holder of a port that no tenant holds.
const STRANGER: Uuid = Uuid::max();

/// A port that the API server refused is tried again after this long. Its holder is
/// not always visible: a deleted Service holds the port for a moment longer.
const REFUSED: SignedDuration = SignedDuration::from_secs(2);

/// Who holds the port that a tenant's keys Secret names. The API server decides this
/// by the Service that it allocated the node port to; the Secret is only a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// The tenant's own Service.
    Held,
    /// Nobody, and a pool has it: the gateway's Service takes it.
    Free,
    /// Another Service, or it is in no pool.
    Lost,
}

/// How a VpnTenant is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validity {
    Tenant(Arc<Tenant>),
    /// It is being deleted, and its finalizer stays until everything of it is
    /// removed.
    Leaving,
    /// It is not valid, for this reason.
    Invalid(String),
    /// An older VpnTenant, in this namespace, has the same ID.
    Duplicate(String),
}

impl Validity {
    /// Reason and message why it is not a tenant.
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
    services: Cache<PortService>,
    /// The namespaces of each ID, and the reverse.
    by_id: BTreeMap<String, BTreeSet<String>>,
    ids: BTreeMap<String, String>,
    /// The tenants and their namespaces, except for unsettled ones.
    settled: BTreeMap<Uuid, Arc<Tenant>>,
    settled_in: BTreeMap<String, Uuid>,
    /// Namespaces whose tenants changed since then.
    unsettled: BTreeSet<String>,
    /// Longest released first.
    released: Vec<u16>,
    refused: BTreeMap<u16, Timestamp>,
    news: News,
    /// Networks that no tunnel may overlap.
    cluster_ranges: Vec<IpNet>,
}

/// Changes since the last query.
#[derive(Debug, Default)]
pub struct News {
    /// Namespaces whose tenants changed.
    pub namespaces: BTreeSet<String>,
    /// Ports were freed.
    pub freed: bool,
}

/// The kinds of objects that are watched.
pub trait Kind: ResourceExt {
    /// Whether tenants are made from it.
    const TELLS: bool;

    /// Applies an event of a watch. Returns whether it changed anything.
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
    /// An empty index. Keys that an earlier version stored without a subnet get one
    /// that does not overlap `cluster_ranges`.
    pub fn new(cluster_ranges: Vec<IpNet>) -> Self {
        Self {
            cluster_ranges,
            ..Self::default()
        }
    }

    /// The objects of the tenant in a namespace.
    pub fn view(&self, namespace: &str) -> Option<TenantObjects> {
        Some(TenantObjects {
            namespace: namespace.to_owned(),
            resource: self.tenants.get(&name(namespace, TENANT))?.clone(),
            keys: self.keys.get(&name(namespace, KEYS)).cloned(),
            service: self.services.get(&name(namespace, GATEWAY)).cloned(),
        })
    }

    /// The tenant with an ID.
    pub fn find(&self, id: Uuid) -> Option<(TenantObjects, Arc<Tenant>)> {
        let view = self.view(&self.holder_of(&id.to_string())?)?;
        match self.validity(&view) {
            Validity::Tenant(tenant) => Some((view, tenant)),
            _ => None,
        }
    }

    /// All tenants, by ID.
    pub fn tenants(&mut self) -> Vec<Arc<Tenant>> {
        self.settle();
        self.settled.values().cloned().collect()
    }

    /// Recomputes the tenants that changed.
    fn settle(&mut self) {
        let unsettled = std::mem::take(&mut self.unsettled);
        // If two have the same ID, a change of either may decide which one is the
        // tenant.
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
            let validity = self.view(&namespace).map(|view| self.validity(&view));
            if let Some(Validity::Tenant(tenant)) = validity {
                self.settled_in.insert(namespace, tenant.id);
                self.settled.insert(tenant.id, tenant);
            }
        }
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        let tenants = self.tenants.iter().filter(|((_, name), _)| name == TENANT);
        tenants.map(|((namespace, _), _)| namespace.as_str())
    }

    pub fn validity(&self, view: &TenantObjects) -> Validity {
        if view.deleting() {
            return Validity::Leaving;
        }
        match self.holder_of(&view.resource.spec.id) {
            Some(holder) if holder != view.namespace => return Validity::Duplicate(holder),
            _ => {}
        }
        match view.tenant(&self.cluster_ranges) {
            Ok(tenant) => Validity::Tenant(Arc::new(tenant)),
            Err(reason) => Validity::Invalid(reason),
        }
    }

    /// Whether the ID is in use, including by a tenant that is being deleted.
    pub fn has(&self, id: Uuid) -> bool {
        self.by_id.contains_key(&id.to_string())
    }

    /// The namespace that has the ID: the oldest one. Creation times have a
    /// resolution of one second; if equal, one with keys.
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

    /// The ports for this tenant: first the one that its Service already holds, then
    /// ports in a tenant-specific order, so that two tenants rarely ask for the same,
    /// and last those that were released recently.
    pub fn pool(
        &mut self,
        pools: &Pools,
        view: &TenantObjects,
        tenant: &Tenant,
        now: Timestamp,
    ) -> PortPool {
        self.settle();
        let mut holders = self.holders(now);
        let allocated = tenant.vpn.allocation.as_ref().map(|a| a.port);
        // Its own ports are free for it, except for the one of its keys.
        holders.retain(|port, holder| *holder != tenant.id || Some(*port) == allocated);
        let reservation = view.reserved_port();
        let turns: BTreeMap<u16, usize> = self.released.iter().copied().zip(1..).collect();
        let mut free: Vec<u16> = pools.ports().filter(|p| !holders.contains_key(p)).collect();
        free.sort_by_cached_key(|port| {
            (
                Some(*port) != reservation,
                turns.get(port).copied().unwrap_or(0),
                Reverse(weight(tenant.id, *port)),
            )
        });
        PortPool::over(pools.ranges(), holders, free).expect("a map has each port once")
    }

    /// The holder of each port. If two tenants claim a port, the Service decides,
    /// since the API server allocates each port to only one.
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

    /// Who holds the port of the tenant's keys; none without keys.
    ///
    /// A port that is in no pool any more stays the tenant's while its Service holds
    /// it.
    pub fn reservation(&self, view: &TenantObjects, pools: &Pools) -> Option<Reservation> {
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

    /// The tenant in the namespace, or the stranger's ID.
    fn holder(&self, namespace: &str) -> Uuid {
        self.settled_in.get(namespace).copied().unwrap_or(STRANGER)
    }

    /// Records that the API server did not allocate this port.
    pub fn refuse(&mut self, port: u16, now: Timestamp) {
        self.refused.insert(port, now);
    }

    /// Known versions of VpnTenant, keys and the gateway's Service.
    pub fn versions(&self, namespace: &str) -> [u64; 3] {
        [
            self.tenants.version(&name(namespace, TENANT)),
            self.keys.version(&name(namespace, KEYS)),
            self.services.version(&name(namespace, GATEWAY)),
        ]
    }

    /// Records that a tenant's keys were deleted at this version. Returns whether
    /// that was new.
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

    /// Marks the tenant with this ID as changed by something outside the resources.
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

    /// Marks its tenant, or the one whose port a stranger's Service has, as changed.
    fn service_changed(&mut self, Change { name, before }: &Change<PortService>) {
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

    /// Marks a namespace's tenant as changed.
    fn note(&mut self, namespace: &str) {
        self.news.namespaces.insert(namespace.to_owned());
        self.unsettled.insert(namespace.to_owned());
    }
}

/// Ports for one tenant, determined when the first is requested: most changes need
/// none.
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

/// A number for each pair of tenant and port, evenly distributed (splitmix64).
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
