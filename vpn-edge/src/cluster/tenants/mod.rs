//! The registry of a cluster: a VpnTenant and a Secret for each tenant.
//!
//! Guarantees, with any number of processes: a port is held by one tenant, because
//! the API server allocates it to one Service; a change is stored whole or not at
//! all, with the keys Secret as its commit; and an interrupted change is completed or
//! reverted by the reconciler.

mod blocker;
mod conditions;
mod convert;
mod index;
mod port_reservation;
mod reconcile;
mod request;
mod status;
#[cfg(test)]
mod testing;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::watcher::Event;
use kube::{Api, Client, Error, ResourceExt as _};
use tokio::sync::{Notify, watch as tokio_watch};
use uuid::Uuid;

use self::blocker::Blocker;
use self::index::{Index, Kind};
use self::request::{WriteError, params, storage, with_timeout};
use crate::cluster::watch::{Selection, Tasks, Watches};
use crate::cluster::{CONTROLLERS_PAUSE, KEYS, TENANT, VpnTenant, VpnTenantSpec, VpnTenantStatus};
use crate::domain::{Pools, Tenant, TunnelSettings};
use crate::registry::{Change, Registry, RegistryError, UpdateError};

/// Settings that tenants and their status are made with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pools: Pools,
    pub tunnels: TunnelSettings,
}

/// Tenants in a cluster, watched for the lifetime of this value.
pub struct KubeRegistry {
    inner: Arc<Inner>,
    _watches: Tasks,
}

struct Inner {
    client: Client,
    settings: Settings,
    index: Mutex<Index>,
    changes: tokio_watch::Sender<u64>,
    news: Notify,
    problems: Mutex<Problems>,
}

/// How long gateway problems that another leader reported stay, until this one has
/// observed the gateways itself.
const SETTLING: Duration = Duration::from_secs(60);

/// Problems reported by the controller of this process.
#[derive(Default)]
struct Problems {
    of: BTreeMap<Uuid, String>,
    /// Tenants that had a problem.
    seen: BTreeSet<Uuid>,
    /// When reconciling began.
    since: Option<Instant>,
}

impl KubeRegistry {
    /// Watches the cluster's tenants, keys and ports. Returns once all are listed;
    /// retries while the API server does not answer.
    ///
    /// # Errors
    ///
    /// If the API server refuses: a definition or a permission is missing.
    pub async fn start(client: Client, settings: Settings) -> Result<Self, RegistryError> {
        let mut watches = Watches::new(client, CONTROLLERS_PAUSE);
        let registry = Self::follow(&mut watches, settings);
        watches.start().await.map_err(RegistryError::Open)?;
        Ok(registry)
    }

    /// The same, on watches that are started later; to be used only then.
    pub fn follow(watches: &mut Watches, settings: Settings) -> Self {
        let index = Index::new(settings.tunnels.cluster_ranges.clone());
        let inner = Arc::new(Inner {
            client: watches.client(),
            settings,
            index: Mutex::new(index),
            changes: tokio_watch::Sender::new(0),
            news: Notify::new(),
            problems: Mutex::default(),
        });
        let of = Arc::clone(&inner);
        watches.follow::<VpnTenant>(Selection::All, move |event| of.take(event));
        let of = Arc::clone(&inner);
        watches.follow::<Secret>(Selection::Named(KEYS), move |event| of.take(event));
        let of = Arc::clone(&inner);
        watches.follow::<Service>(Selection::All, move |event| of.take(event));
        Self {
            inner,
            _watches: watches.tasks(),
        }
    }

    /// Runs forever: reconciles VpnTenants, updates their status, and records Events.
    /// One process is enough; several do no harm.
    pub async fn run_reconciler(self: Arc<Self>) {
        reconcile::follow(Arc::clone(&self.inner)).await;
    }

    /// Runs `work` to its end, even if the caller goes away.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let task = tokio::spawn(work);
        task.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => RegistryError::Storage(error.into()),
        })
    }
}

#[async_trait]
impl Registry for KubeRegistry {
    async fn list(&self) -> Result<Vec<Arc<Tenant>>, RegistryError> {
        Ok(self.inner.with(Index::tenants))
    }

    async fn get(&self, id: Uuid) -> Result<Option<Tenant>, RegistryError> {
        let found = self.inner.with(|index| index.find(id));
        Ok(found.map(|(_, tenant)| Arc::unwrap_or_clone(tenant)))
    }

    async fn create(&self, tenant: Tenant) -> Result<Tenant, RegistryError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.create(tenant).await }).await?
    }

    async fn update(&self, id: Uuid, change: Change) -> Result<Tenant, UpdateError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.update(id, change, None).await })
            .await?
    }

    async fn delete(&self, id: Uuid) -> Result<bool, RegistryError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.delete(id).await }).await?
    }

    fn report(&self, problems: BTreeMap<Uuid, String>) {
        self.inner.report(problems);
    }

    fn changes(&self) -> tokio_watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}

impl Inner {
    fn with<T>(&self, ask: impl FnOnce(&mut Index) -> T) -> T {
        // After a panic the maps still have only complete entries.
        ask(&mut self.index.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take<K: Kind>(&self, event: &Event<K>) {
        if self.with(|index| K::take(index, event)) {
            self.news.notify_one();
            if K::TELLS {
                self.changes.send_modify(|count| *count += 1);
            }
        }
    }

    /// Puts an object that a write returned into the index.
    fn put<K: Kind>(&self, object: K) {
        self.take(&Event::Apply(object));
    }

    fn report(&self, problems: BTreeMap<Uuid, String>) {
        let mut known = self.problems();
        if known.of == problems {
            return;
        }
        let ids = known.of.keys().chain(problems.keys());
        let changed = ids.filter(|id| known.of.get(id) != problems.get(id));
        self.with(|index| changed.for_each(|id| index.tell_of(*id)));
        known.seen.extend(problems.keys());
        known.of = problems;
        self.news.notify_one();
    }

    /// Begins reconciling, with the problems that others reported.
    fn settle_in(&self) {
        let mut known = self.problems();
        known.seen.clear();
        known.since = Some(Instant::now());
    }

    /// Why the gateway of the tenant with this status does not match the spec, if
    /// nothing else blocks it.
    fn problem(&self, id: Uuid, status: &VpnTenantStatus) -> Blocker {
        let known = self.problems();
        if let Some(words) = known.of.get(&id) {
            return Blocker::Gateway(words.clone());
        }
        let settles = known.since.is_some_and(|since| since.elapsed() < SETTLING);
        match Blocker::read(&status.conditions) {
            Blocker::Gateway(_) if settles && !known.seen.contains(&id) => Blocker::Unknown,
            _ => Blocker::None,
        }
    }

    fn problems(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that an object does not exist.
    fn remove_if(&self, tell: impl FnOnce(&mut Index) -> bool) {
        if self.with(tell) {
            self.news.notify_one();
            self.changes.send_modify(|count| *count += 1);
        }
    }

    async fn create(&self, tenant: Tenant) -> Result<Tenant, RegistryError> {
        let exists = || RegistryError::AlreadyExists(format!("id {}", tenant.id));
        if self.with(|index| index.has(tenant.id)) {
            return Err(exists());
        }
        let namespace = tenant.namespace.clone();
        let tenants: Api<VpnTenant> = Api::namespaced(self.client.clone(), &namespace);
        let resource = VpnTenant::new(TENANT, VpnTenantSpec::of(&tenant));
        let made = match with_timeout(tenants.create(&params(), &resource)).await {
            Ok(made) => made,
            Err(Error::Api(status)) if status.is_already_exists() => {
                return Err(RegistryError::AlreadyExists(format!(
                    "namespace {namespace}"
                )));
            }
            Err(Error::Api(status)) if status.is_not_found() => {
                return Err(RegistryError::NoNamespace(namespace));
            }
            Err(error) => return Err(storage(error)),
        };
        let uid = made.uid();
        self.put(made);
        match self.with(|index| index.find(tenant.id)) {
            Some((view, tenant)) if view.namespace == namespace => Ok(Arc::unwrap_or_clone(tenant)),
            // Somebody else created one at the same time.
            _ => {
                let preconditions = Preconditions {
                    uid,
                    resource_version: None,
                };
                let params = DeleteParams::default().preconditions(preconditions);
                let deleted = with_timeout(tenants.delete(TENANT, &params)).await;
                deleted.map_err(storage)?;
                Err(exists())
            }
        }
    }

    async fn delete(&self, id: Uuid) -> Result<bool, RegistryError> {
        let Some((view, _)) = self.with(|index| index.find(id)) else {
            return Ok(false);
        };
        let tenants: Api<VpnTenant> = Api::namespaced(self.client.clone(), &view.namespace);
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: view.resource.uid(),
            resource_version: None,
        });
        match with_timeout(tenants.delete(TENANT, &params)).await {
            Ok(_) => {}
            Err(Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                return Ok(false);
            }
            Err(error) => return Err(storage(error)),
        }
        self.refresh(&view.namespace).await.map_err(storage)?;
        let view = self
            .with(|index| index.view(&view.namespace))
            .unwrap_or(view);
        // The reconciler completes the rest as well.
        if view.deleting()
            && let Err(WriteError::Failed(error)) = self.delete_keys(&view).await
        {
            tracing::warn!(tenant = %id, "cannot delete the tenant's keys; retrying: {error}");
        }
        Ok(true)
    }
}
