//! Gateways as pods of the cluster.
//!
//! Each is a Deployment of one pod in its tenant's namespace, with a Service, a
//! NetworkPolicy and a Secret, all of the same name. This module applies the desired
//! objects and reports their state.

mod apply_errors;
mod drift;
mod index;
pub mod objects;
mod pod;
mod rollout;
pub mod settings;
mod state;
mod stuck_pods;
mod sync;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use async_trait::async_trait;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use self::apply_errors::NotApplied;
use self::index::{Index, Objects, port};
use self::objects::PublicSpec;
use self::settings::GatewayTarget;
use crate::cluster::watch::{Selection, Tasks, Watches};
use crate::cluster::{CONTROLLERS_PAUSE, GATEWAY, MANAGER, label};
use crate::gateways::{Gateway, GatewaySpec, Gateways};

pub use pod::{INIT, MAIN};
pub use settings::Settings;

/// How long a gateway's pod may take to terminate.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Pause between checks of objects that are being deleted.
const PAUSE: Duration = Duration::from_millis(250);

/// See [`Gateways`].
pub struct KubeGateways {
    client: Client,
    settings: Settings,
    index: Arc<Mutex<Index>>,
    changes: watch::Sender<u64>,
    /// The namespaces whose gateways are to be checked.
    touched: Arc<Mutex<BTreeSet<String>>>,
    /// One per namespace, so that operations on a gateway do not interleave.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    errors: Mutex<apply_errors::ApplyErrors>,
    _watches: Tasks,
}

impl KubeGateways {
    /// Begins to watch the cluster's gateways, and returns when all are listed.
    /// Retries while the API server does not answer.
    ///
    /// # Errors
    ///
    /// If the API server refuses, with its message.
    pub async fn start(client: Client, settings: Settings) -> Result<Self> {
        let mut watches = Watches::new(client, CONTROLLERS_PAUSE);
        let gateways = Self::follow(&mut watches, settings);
        watches.start().await.map_err(Error::msg)?;
        Ok(gateways)
    }

    /// The same, on watches that are started later; to be used only then.
    pub fn follow(watches: &mut Watches, settings: Settings) -> Self {
        let gateways = Self {
            client: watches.client(),
            settings,
            index: Arc::default(),
            changes: watch::Sender::new(0),
            touched: Arc::default(),
            locks: Mutex::default(),
            errors: Mutex::default(),
            _watches: watches.tasks(),
        };
        let named = || Selection::Named(GATEWAY);
        gateways.feed(watches, Selection::All, |index| &mut index.tenants);
        gateways.feed(watches, named(), |index| &mut index.deployments);
        // All Services, as for the registry.
        gateways.feed(watches, Selection::All, |index| &mut index.services);
        gateways.feed(watches, named(), |index| &mut index.policies);
        gateways.feed(watches, named(), |index| &mut index.secrets);
        let pods = Selection::Labelled(label::NAME, GATEWAY);
        gateways.feed(watches, pods, |index| &mut index.pods);
        gateways
    }

    /// Feeds the index from a watch.
    fn feed<K>(
        &self,
        watches: &mut Watches,
        selection: Selection,
        objects: fn(&mut Index) -> &mut Objects<K>,
    ) where
        K: Resource<DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (index, changes) = (Arc::clone(&self.index), self.changes.clone());
        let touched = Arc::clone(&self.touched);
        watches.follow(selection, move |event| {
            let mut index = index.lock().expect("no panic under this lock");
            let changed = objects(&mut index).take(event);
            drop(index);
            if !changed.is_empty() {
                let mut touched = touched.lock().expect("no panic under this lock");
                touched.extend(changed);
                changes.send_modify(|count| *count += 1);
            }
        });
    }

    /// Applies all objects of the gateway; no Secret if there is none. For `mark` see
    /// [`objects::annotation::ROLLED`].
    async fn apply_all(
        &self,
        place: &GatewayTarget,
        shape: &PublicSpec,
        secret: Option<Secret>,
        mark: Option<String>,
    ) -> Result<()> {
        self.apply_around(place, shape, secret).await?;
        let mut deployment = objects::deployment(place, shape, &self.settings);
        objects::mark(&mut deployment, mark);
        let deployment = self
            .apply(&deployment)
            .await
            .map_err(apply_errors::describe)?;
        self.index().deployments.put(deployment);
        self.touched().insert(place.namespace.clone());
        self.changed();
        Ok(())
    }

    /// Applies all objects except the Deployment.
    async fn apply_around(
        &self,
        place: &GatewayTarget,
        shape: &PublicSpec,
        secret: Option<Secret>,
    ) -> Result<()> {
        // First, because no pod may run without it, and the remains of an attempt are
        // found by it.
        let policy = objects::policy(place, shape, &self.settings);
        let policy = self.apply(&policy).await.map_err(apply_errors::describe)?;
        self.index().policies.put(policy);
        if let Some(secret) = secret {
            let Secret { metadata, .. } =
                self.apply(&secret).await.map_err(apply_errors::describe)?;
            self.index().secrets.put(PartialObjectMeta {
                metadata,
                ..PartialObjectMeta::default()
            });
        }
        let service = objects::service(place, shape);
        let service = self.apply(&service).await.map_err(apply_errors::describe)?;
        self.index().services.put(service);
        Ok(())
    }

    /// Updates what can be changed in place, and leaves the pod to the rollout.
    async fn announce(
        &self,
        place: &GatewayTarget,
        shape: &PublicSpec,
        secret: Secret,
    ) -> Result<()> {
        self.apply_around(place, shape, Some(secret)).await?;
        let annotations = objects::tunnel(shape);
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        let api: Api<Deployment> = self.api(&place.namespace);
        let announced = api.patch(GATEWAY, &PatchParams::default(), &patch).await;
        let announced =
            announced.map_err(|error| apply_errors::describe((Deployment::kind(&()), error)))?;
        self.index().deployments.put(announced);
        self.touched().insert(place.namespace.clone());
        self.changed();
        Ok(())
    }

    async fn apply<K>(&self, object: &K) -> Result<K, NotApplied>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + Serialize + DeserializeOwned,
    {
        let api: Api<K> = self.api(&object.namespace().unwrap_or_default());
        let params = PatchParams::apply(MANAGER).force();
        let applied = api.patch(GATEWAY, &params, &Patch::Apply(object)).await;
        applied.map_err(|error| (K::kind(&()), error))
    }

    /// Deletes the gateway's object of this kind, if it is still for the port.
    async fn delete<K>(
        &self,
        namespace: &str,
        wanted: u16,
        propagation: PropagationPolicy,
    ) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = self.api(namespace);
        let what = || format!("cannot delete the {} {namespace}/{GATEWAY}", K::kind(&()));
        let found = api.get_metadata_opt(GATEWAY).await.with_context(what)?;
        let Some(found) = found.filter(|found| port(found) == Some(wanted)) else {
            return Ok(());
        };
        let params = DeleteParams {
            propagation_policy: Some(propagation),
            preconditions: Some(Preconditions {
                uid: found.uid(),
                // With a version as precondition, the API server does not complete a
                // foreground deletion, and such an object does not change any more.
                resource_version: match found.metadata.deletion_timestamp {
                    Some(_) => None,
                    None => found.resource_version(),
                },
            }),
            ..DeleteParams::default()
        };
        match api.delete(GATEWAY, &params).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            deleted => deleted.map(|_| ()).with_context(what),
        }
    }

    /// Waits until the Deployment for the port is deleted with its pods.
    async fn await_end(&self, namespace: &str, wanted: u16) -> Result<()> {
        let api: Api<Deployment> = self.api(namespace);
        let started = Instant::now();
        loop {
            let found = api.get_metadata_opt(GATEWAY).await?;
            if found.is_none_or(|found| port(&found) != Some(wanted)) {
                return Ok(());
            }
            if self.is_lost(namespace).await? {
                return self.let_go(namespace, wanted).await;
            }
            if started.elapsed() > TIMEOUT {
                bail!("the gateway's pod in {namespace} does not terminate");
            }
            sleep(PAUSE).await;
        }
    }

    /// Deletes the Deployment without waiting for its pods.
    async fn let_go(&self, namespace: &str, port: u16) -> Result<()> {
        tracing::warn!(
            namespace,
            port,
            "the gateway's node is down; not waiting for its pod"
        );
        self.delete::<Deployment>(namespace, port, PropagationPolicy::Background)
            .await
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn lock(&self, namespace: &str) -> OwnedMutexGuard<()> {
        self.lock_of(namespace).lock_owned().await
    }

    /// None while another operation holds it.
    fn try_lock(&self, namespace: &str) -> Option<OwnedMutexGuard<()>> {
        self.lock_of(namespace).try_lock_owned().ok()
    }

    fn lock_of(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().expect("no panic under this lock");
        Arc::clone(locks.entry(namespace.to_owned()).or_default())
    }

    fn touched(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.touched.lock().expect("no panic under this lock")
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no panic under this lock")
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl Gateways for KubeGateways {
    async fn ensure(&self, spec: &GatewaySpec) -> Result<()> {
        let place = self.index().place(spec.tenant, &spec.namespace);
        let place = place.with_context(|| {
            let (tenant, namespace) = (spec.tenant, &spec.namespace);
            format!("there is no VpnTenant with the id {tenant} in {namespace}")
        })?;
        let _lock = self.lock(&place.namespace).await;
        let before = self.index().deployments.get(&place.namespace).cloned();
        if let Some(before) = &before
            && before.metadata.deletion_timestamp.is_some()
        {
            match port(&**before) {
                Some(port) if self.is_lost(&place.namespace).await? => {
                    self.let_go(&place.namespace, port).await?;
                }
                _ => bail!("the previous gateway has not terminated yet"),
            }
        }
        let shape = PublicSpec::of(spec);
        let secret = objects::secret(&place, spec);
        if before
            .as_deref()
            .is_some_and(|before| waits(before, &shape))
        {
            return self.announce(&place, &shape, secret).await;
        }
        let mark = rollout::mark(before.as_deref(), false);
        self.apply_all(&place, &shape, Some(secret), mark).await
    }

    async fn remove(&self, port: u16) -> Result<()> {
        use PropagationPolicy::{Background, Foreground};
        let holders = self.index().holders(port);
        for namespace in holders {
            let _lock = self.lock(&namespace).await;
            self.delete::<Secret>(&namespace, port, Background).await?;
            // It stays until its pods are gone.
            self.delete::<Deployment>(&namespace, port, Foreground)
                .await?;
            self.await_end(&namespace, port).await?;
            // From here on others can take the port, and must not meet the remains of
            // this gateway. Edges have closed the port before.
            self.delete::<Service>(&namespace, port, Background).await?;
            // Last, because pods need it to their end, and the remains are found by
            // it.
            self.delete::<NetworkPolicy>(&namespace, port, Background)
                .await?;
            self.index().forget(&namespace, port);
        }
        self.changed();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Gateway>> {
        Ok(self.index().gateways())
    }

    fn apply_errors(&self) -> BTreeMap<Uuid, String> {
        KubeGateways::apply_errors(self)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Whether replacing the gateway would end its clients' sessions for a reason other
/// than new keys: then it is replaced by the rollout.
fn waits(before: &Deployment, shape: &PublicSpec) -> bool {
    let has_same_keys = PublicSpec::read(before).is_some_and(|before| {
        (before.tenant, before.generation, before.port)
            == (shape.tenant, shape.generation, shape.port)
    });
    let is_other = objects::pods_tunnel(before) != Some(&shape.digest.fixed);
    has_same_keys && is_other && rollout::serves(before)
}
