//! The audit log of a cluster: one ConfigMap per tenant, in vpn-edge's own namespace,
//! so that it outlives the tenant and its namespace.
//!
//! Guarantee, with any number of writers: none overwrites another's records, because
//! each replaces a ConfigMap only in the version that it read.

mod page;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::take;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Error, ResourceExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use self::page::{Edit, LAST, Page, SELECTOR, name};
use crate::audit::{Limits, Log, LogError, Outcome, Query, Record, living};
use crate::backoff::Backoff;
use crate::cluster::{MANAGER, label};
use crate::registry::Registry;

const LIMITS: Limits = Limits {
    records: 200,
    gone: 1000,
};

/// Timeout of a write: shorter than that of a request to the API.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two writes of one ConfigMap, which combines records that arrive
/// together.
const PAUSE: Duration = Duration::from_millis(50);

/// Number of writes of one ConfigMap in a row, and the time until one more is
/// allowed: the API server's store keeps each version for some minutes, and repeated
/// API calls must not fill it.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(2);

/// Pause after a conflict, doubled with each.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// ConfigMaps that are read at once; and that are listed, by metadata only.
const MAX_CONCURRENT: usize = 16;
const NAMES: u32 = 500;

/// How many new ConfigMaps trigger a removal of deleted tenants' logs.
const FORGET_EVERY: usize = 32;

/// Records in ConfigMaps.
pub struct KubeLog {
    inner: Arc<Inner>,
}

struct Inner {
    maps: Api<ConfigMap>,
    registry: Arc<dyn Registry>,
    limits: Limits,
    /// Pending edits by tenant, while a task writes them.
    queues: Mutex<HashMap<Uuid, Vec<Waiting>>>,
    /// By tenant, the time at which its full burst is available again.
    paces: Mutex<HashMap<Uuid, Instant>>,
    /// ConfigMaps created.
    made: AtomicUsize,
}

struct Waiting {
    edit: Edit,
    written: oneshot::Sender<Result<(), LogError>>,
}

impl KubeLog {
    /// A log in ConfigMaps of `namespace`. Tenants that `registry` does not have
    /// count as removed.
    pub fn new(client: Client, namespace: &str, registry: Arc<dyn Registry>) -> KubeLog {
        KubeLog::with_limits(client, namespace, registry, LIMITS)
    }

    /// With other limits.
    pub fn with_limits(
        client: Client,
        namespace: &str,
        registry: Arc<dyn Registry>,
        limits: Limits,
    ) -> KubeLog {
        let inner = Inner {
            maps: Api::namespaced(client, namespace),
            registry,
            limits,
            queues: Mutex::default(),
            paces: Mutex::default(),
            made: AtomicUsize::new(0),
        };
        KubeLog {
            inner: Arc::new(inner),
        }
    }

    async fn write(&self, tenant: Uuid, edit: Edit) -> Result<(), LogError> {
        let (written, outcome) = oneshot::channel();
        let waiting = Waiting { edit, written };
        match self.inner.queues().entry(tenant) {
            Entry::Occupied(mut queue) => queue.get_mut().push(waiting),
            Entry::Vacant(queue) => {
                queue.insert(vec![waiting]);
                tokio::spawn(Arc::clone(&self.inner).work(tenant));
            }
        }
        let ended = |_| Err(LogError("vpn-edge is shutting down".to_owned()));
        outcome.await.unwrap_or_else(ended)
    }
}

#[async_trait]
impl Log for KubeLog {
    async fn begin(&self, record: Record) -> Result<(), LogError> {
        self.write(record.tenant, Edit::Begin(record)).await
    }

    async fn end(&self, tenant: Uuid, id: Uuid, outcome: Outcome) -> Result<(), LogError> {
        self.write(tenant, Edit::End(id, outcome)).await
    }

    async fn read(&self, query: Query) -> Result<Vec<Record>, LogError> {
        let inner = &self.inner;
        let mut found = Vec::new();
        if let Some(tenant) = query.tenant {
            let map = inner.maps.get_opt(&name(tenant)).await.map_err(failed)?;
            map.iter().for_each(|map| take_in(&mut found, map, query));
            return Ok(found);
        }
        let mut known = inner.known().await?;
        known.sort_by_key(|map| std::cmp::Reverse(last(map)));
        for some in known.chunks(MAX_CONCURRENT) {
            // Its newest record is older than those found so far.
            let newest = some.first().and_then(last);
            let oldest = found.last().map(|record: &Record| record.id.to_string());
            if found.len() == query.limit && newest < oldest {
                break;
            }
            let names: Vec<String> = some.iter().map(|map| map.name_any()).collect();
            let maps = names.iter().map(|name| inner.maps.get_opt(name));
            let maps = try_join_all(maps).await.map_err(failed)?;
            for map in maps.iter().flatten() {
                take_in(&mut found, map, query);
            }
        }
        Ok(found)
    }
}

/// The ID of a ConfigMap's newest record.
fn last(map: &PartialObjectMeta<ConfigMap>) -> Option<String> {
    map.annotations().get(LAST).cloned()
}

/// Merges the records that match the query into `found`, newest first.
fn take_in(found: &mut Vec<Record>, map: &ConfigMap, query: Query) {
    let records = Page::read(map).records.into_iter();
    found.extend(records.filter(|record| query.takes(record)));
    found.sort_by_key(|record| std::cmp::Reverse(record.id));
    found.truncate(query.limit);
}

impl Inner {
    fn queues(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<Waiting>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to pause before the tenant's next write.
    fn pause(&self, tenant: Uuid) -> Duration {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        paces.retain(|_, full| *full > now);
        let full = paces.entry(tenant).or_insert(now);
        *full += REFILL;
        let room = REFILL * BURST;
        full.duration_since(now).saturating_sub(room).max(PAUSE)
    }

    /// Writes the tenant's pending edits, all that arrived meanwhile in one write,
    /// until there are none.
    async fn work(self: Arc<Self>, tenant: Uuid) {
        loop {
            let waiting = match self.queues().entry(tenant) {
                Entry::Occupied(mut queue) if !queue.get().is_empty() => take(queue.get_mut()),
                Entry::Occupied(queue) => {
                    queue.remove();
                    return;
                }
                Entry::Vacant(_) => return,
            };
            let (edits, waiting): (Vec<Edit>, Vec<_>) = waiting
                .into_iter()
                .map(|waiting| (waiting.edit, waiting.written))
                .unzip();
            let late = |_| Err(LogError("the API server did not answer in time".to_owned()));
            let outcome = timeout(TIMEOUT, self.store(tenant, &edits)).await;
            let outcome = outcome.unwrap_or_else(late);
            let new = matches!(outcome, Ok(true));
            for written in waiting {
                // The caller may have given up.
                let _ = written.send(outcome.clone().map(|_| ()));
            }
            if new
                && self
                    .made
                    .fetch_add(1, Ordering::Relaxed)
                    .is_multiple_of(FORGET_EVERY)
            {
                tokio::spawn(Arc::clone(&self).forget());
            }
            sleep(self.pause(tenant)).await;
        }
    }

    /// Returns whether a ConfigMap was created.
    async fn store(&self, tenant: Uuid, edits: &[Edit]) -> Result<bool, LogError> {
        let name = name(tenant);
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let mut backoff = Backoff::new(FIRST_PAUSE, TIMEOUT);
        loop {
            let map = self.maps.get_opt(&name).await.map_err(failed)?;
            let mut page = map.as_ref().map(Page::read).unwrap_or_default();
            for edit in edits {
                page.take(edit);
            }
            let new = map.is_none();
            if new && page.records.is_empty() {
                // The outcome of a record that is not kept any more.
                return Ok(false);
            }
            let version = map.and_then(|map| map.resource_version());
            let map = page.write(tenant, self.limits.records, version);
            let written = match new {
                true => self.maps.create(&params, &map).await,
                false => self.maps.replace(&name, &params, &map).await,
            };
            match written {
                Ok(_) => return Ok(new),
                Err(Error::Api(status))
                    if status.is_conflict()
                        || status.is_already_exists()
                        // But not if the namespace is missing.
                        || (!new && status.is_not_found()) =>
                {
                    sleep(backoff.pause()).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Removes the logs of removed tenants, except for the latest ones.
    async fn forget(self: Arc<Self>) {
        if let Err(error) = self.try_forget().await {
            tracing::warn!("cannot remove deleted tenants from the audit log: {error}");
        }
    }

    /// The metadata of all ConfigMaps of the log.
    async fn known(&self) -> Result<Vec<PartialObjectMeta<ConfigMap>>, LogError> {
        let mut known = Vec::new();
        let mut params = ListParams::default().labels(SELECTOR).limit(NAMES);
        loop {
            let list = self.maps.list_metadata(&params).await.map_err(failed)?;
            known.extend(list.items);
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(known),
            }
        }
    }

    async fn try_forget(&self) -> Result<(), LogError> {
        let mut known = self.known().await?;
        if known.len() <= self.limits.gone {
            return Ok(());
        }
        let living = living(&*self.registry).await?;
        known.retain(|map: &PartialObjectMeta<ConfigMap>| {
            let tenant = map.labels().get(label::TENANT);
            let tenant = tenant.and_then(|id| id.parse().ok());
            !tenant.is_some_and(|id: Uuid| living.contains(&id))
        });
        known.sort_by_key(|map| std::cmp::Reverse(last(map)));
        for map in known.iter().skip(self.limits.gone) {
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: map.uid(),
                resource_version: map.resource_version(),
            });
            match self.maps.delete(&map.name_any(), &params).await {
                Ok(_) => {}
                // Written or deleted meanwhile.
                Err(Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

fn failed(error: Error) -> LogError {
    match error {
        Error::Api(status) => LogError(status.message),
        error => LogError(error.to_string()),
    }
}
