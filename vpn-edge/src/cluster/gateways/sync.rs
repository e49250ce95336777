//! Keeps gateways up to date: with their tenants' and the current settings, and with
//! the applied objects unchanged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::{Api, Error, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::apply_errors::NotApplied;
use super::index::{Index, Objects};
use super::objects::{self, PublicSpec, annotation};
use super::rollout::{self, RolloutState};
use super::settings::GatewayTarget;
use super::{KubeGateways, apply_errors, drift};
use crate::backoff::Backoff;
use crate::cluster::{GATEWAY, MANAGER, label};
use crate::domain::GatewayState;
use crate::domain::tunnel::digest;

/// How often states that change with time only are checked.
const TICK: Duration = Duration::from_secs(1);

/// First pause after a gateway was refused or its drift reverted; doubled up to the
/// longest, and reset after as long without a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The state of the sync. A new leader starts with an empty one.
#[derive(Default)]
struct GatewaySync {
    states: BTreeMap<String, RolloutState>,
    drifted: BTreeSet<String>,
    pauses: HashMap<(String, Purpose), RetryPause>,
    /// Digests of what the API server makes of applied objects, by namespace and
    /// kind, where that differs from what was applied.
    accepted: HashMap<(String, String), String>,
    /// Gateways that were logged as blocking the rollout.
    told: BTreeSet<String>,
}

/// The reason for a pause; other work continues.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    RollOut,
    ChangeBack,
    Replace,
}

struct RetryPause {
    next: Instant,
    length: Duration,
    backoff: Backoff,
}

impl KubeGateways {
    /// Updates gateways: immediately if tenants change how they run, a few at a time
    /// if they were created with other settings or by another version. Reverts drift,
    /// and replaces gateways that wait for a pod on a dead node. Runs forever; only
    /// one controller at a time may run it.
    /// controller at a time may.
    pub async fn keep_up(&self) {
        let mut changes = self.changes.subscribe();
        let mut sync = GatewaySync::default();
        let all: Vec<String> = {
            let index = self.index();
            index.deployments.namespaces().map(str::to_owned).collect()
        };
        self.touched().extend(all);
        loop {
            changes.mark_unchanged();
            sync.look(self);
            sync.roll_out(self).await;
            sync.revert_drift(self).await;
            sync.replace(self).await;
            let _ = timeout(TICK, changes.changed()).await;
        }
    }

    /// Applies the gateway if it is not up to date.
    async fn bring_up_to_date(&self, namespace: &str) -> Result<()> {
        let Some(_lock) = self.try_lock(namespace) else {
            return Ok(());
        };
        let Some((place, shape, before)) = self.placed_in(namespace) else {
            return Ok(());
        };
        let wanted = objects::deployment(&place, &shape, &self.settings);
        let rolls = match RolloutState::of(&before, &wanted) {
            RolloutState::Current | RolloutState::Unavailable => return Ok(()),
            RolloutState::SpecChanged => false,
            RolloutState::Outdated { .. } => true,
        };
        tracing::info!(tenant = %shape.tenant, "updating gateway");
        let mark = rollout::mark(Some(&before), rolls);
        let outcome = self.apply_all(&place, &shape, None, mark).await;
        self.note(namespace, shape.tenant, &outcome);
        outcome
    }

    /// Removes the rollout mark, whoever last wrote it.
    async fn unmark(&self, deployment: &Deployment) -> Result<()> {
        let api: Api<Deployment> = self.api(&deployment.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({ "metadata": {
            "resourceVersion": deployment.resource_version(),
            "annotations": { annotation::ROLLED: null },
        }}));
        let unmarked = api.patch(GATEWAY, &PatchParams::default(), &patch).await;
        let unmarked =
            unmarked.map_err(|error| apply_errors::describe((Deployment::kind(&()), error)))?;
        self.index().deployments.put(unmarked);
        Ok(())
    }

    /// The namespace's gateway, with its location, unless it is being deleted.
    pub(super) fn placed_in(
        &self,
        namespace: &str,
    ) -> Option<(GatewayTarget, PublicSpec, Arc<Deployment>)> {
        let placed = self.index().placed_in(namespace);
        placed.filter(|(_, _, deployment)| deployment.metadata.deletion_timestamp.is_none())
    }
}

impl GatewaySync {
    /// Checks the gateways that changed.
    fn look(&mut self, gateways: &KubeGateways) {
        let touched = std::mem::take(&mut *gateways.touched());
        for namespace in touched {
            self.drifted.remove(&namespace);
            let Some((place, shape, deployment)) = gateways.placed_in(&namespace) else {
                self.states.remove(&namespace);
                self.accepted.retain(|(of, _), _| *of != namespace);
                continue;
            };
            let wanted = objects::deployment(&place, &shape, &gateways.settings);
            let state = RolloutState::of(&deployment, &wanted);
            if matches!(state, RolloutState::Current | RolloutState::Unavailable) {
                let service = objects::service(&place, &shape);
                let policy = objects::policy(&place, &shape, &gateways.settings);
                let index = gateways.index();
                if rollout::is_back(&deployment, Timestamp::now())
                    || self.has_drifted(&wanted, index.deployments.get(&namespace))
                    || self.has_drifted(&service, index.services.get(&namespace))
                    || self.has_drifted(&policy, index.policies.get(&namespace))
                {
                    self.drifted.insert(namespace.clone());
                }
            }
            if rollout::is_marked(&deployment) {
                // Checked again until it is ready.
                gateways.touched().insert(namespace.clone());
            }
            self.states.insert(namespace, state);
        }
        let now = Instant::now();
        self.pauses
            .retain(|_, pause| pause.next + pause.length > now);
    }

    async fn roll_out(&mut self, gateways: &KubeGateways) {
        let chosen = rollout::choose(&self.states, |namespace| {
            self.waits(namespace, Purpose::RollOut)
        });
        let chosen: Vec<String> = chosen.into_iter().map(str::to_owned).collect();
        self.tell(gateways);
        for namespace in chosen {
            if let Err(error) = gateways.bring_up_to_date(&namespace).await {
                tracing::error!(namespace, "cannot update gateway; retrying: {error:#}");
                self.pause(&namespace, Purpose::RollOut);
            }
            gateways.touched().insert(namespace);
        }
    }

    /// Logs once which failed gateways block a rollout.
    fn tell(&mut self, gateways: &KubeGateways) {
        let is_left = |state: &RolloutState| matches!(state, RolloutState::Outdated { .. });
        let is_under_way = self.states.values().any(is_left);
        let states = &self.states;
        let is_away = |namespace: &str| states.get(namespace) == Some(&RolloutState::Unavailable);
        let told = self.told.len();
        self.told
            .retain(|namespace| is_under_way && is_away(namespace));
        if told > 0 && self.told.is_empty() {
            tracing::info!("no gateway blocks the rollout any more");
        }
        if !is_under_way {
            return;
        }
        for (namespace, _) in states.iter().filter(|(of, _)| is_away(of)) {
            if self.told.contains(namespace) {
                continue;
            }
            let gateway = gateways.index().gateway(namespace);
            if let Some(gateway) = gateway
                && let GatewayState::Failed(reason) = gateway.state
            {
                tracing::error!(
                    tenant = %gateway.tenant,
                    namespace,
                    "rollout blocked until this gateway is ready or the settings change: {reason}"
                );
                self.told.insert(namespace.clone());
            }
        }
    }

    async fn revert_drift(&mut self, gateways: &KubeGateways) {
        for namespace in std::mem::take(&mut self.drifted) {
            if self.waits(&namespace, Purpose::ChangeBack) {
                self.drifted.insert(namespace);
                continue;
            }
            if let Err(error) = self.revert_drift_in(&namespace, gateways).await {
                tracing::error!(namespace, "cannot revert drift; retrying: {error:#}");
            }
            self.pause(&namespace, Purpose::ChangeBack);
            gateways.touched().insert(namespace);
        }
    }

    async fn revert_drift_in(&mut self, namespace: &str, gateways: &KubeGateways) -> Result<()> {
        let Some(_lock) = gateways.try_lock(namespace) else {
            return Ok(());
        };
        let Some((place, shape, deployment)) = gateways.placed_in(namespace) else {
            return Ok(());
        };
        let settings = &gateways.settings;
        let policy = objects::policy(&place, &shape, settings);
        self.restore(gateways, policy, |index| &mut index.policies)
            .await?;
        let service = objects::service(&place, &shape);
        self.restore(gateways, service, |index| &mut index.services)
            .await?;
        let mut wanted = objects::deployment(&place, &shape, settings);
        if rollout::is_back(&deployment, Timestamp::now()) {
            gateways.unmark(&deployment).await?;
        }
        if matches!(
            RolloutState::of(&deployment, &wanted),
            RolloutState::Current | RolloutState::Unavailable
        ) {
            objects::mark(&mut wanted, rollout::mark(Some(&deployment), false));
            objects::leave_out_digests(&mut wanted, &deployment);
            self.restore(gateways, wanted, |index| &mut index.deployments)
                .await?;
        }
        Ok(())
    }

    /// Applies the object again if it differs from what was applied.
    async fn restore<K>(
        &mut self,
        gateways: &KubeGateways,
        mut wanted: K,
        objects: fn(&mut Index) -> &mut Objects<K>,
    ) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + Serialize + DeserializeOwned,
    {
        let namespace = wanted.namespace().unwrap_or_default();
        let live = objects(&mut gateways.index()).get(&namespace).cloned();
        if !self.has_drifted(&wanted, live.as_ref()) {
            return Ok(());
        }
        tracing::warn!(namespace, kind = %K::kind(&()), "reverting drift");
        // Must not overwrite what the registry or others have written meanwhile.
        wanted.meta_mut().resource_version = live.and_then(|live| live.resource_version());
        let applied = match gateways.apply(&wanted).await {
            Err((_, Error::Api(status))) if status.is_conflict() => return Ok(()),
            // For example because another Service has the node port.
            Err((_, Error::Api(_))) => {
                let api: Api<K> = gateways.api(&namespace);
                put_spec(&api, &wanted)
                    .await
                    .map_err(apply_errors::describe)?
            }
            // Server-side apply keeps list entries that others added.
            Ok(applied) if !drift::holds(&unversioned(&wanted), &applied) => {
                wanted.meta_mut().resource_version = applied.resource_version();
                objects(&mut gateways.index()).put(applied);
                let api: Api<K> = gateways.api(&namespace);
                match put_spec(&api, &wanted).await {
                    Err((_, Error::Api(status))) if status.is_conflict() => return Ok(()),
                    written => written.map_err(apply_errors::describe)?,
                }
            }
            applied => applied.map_err(apply_errors::describe)?,
        };
        wanted.meta_mut().resource_version = None;
        if !drift::holds(&wanted, &applied) {
            let kind = K::kind(&()).into_owned();
            tracing::warn!(
                namespace,
                kind,
                "the API server changes what is applied; accepting it"
            );
            self.accepted
                .insert((namespace, kind), spec_digest(&applied));
        }
        objects(&mut gateways.index()).put(applied);
        Ok(())
    }

    /// Whether the object exists, is for the gateway's keys, and was changed.
    fn has_drifted<K>(&self, wanted: &K, live: Option<&Arc<K>>) -> bool
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let Some(live) = live.filter(|live| live.meta().deletion_timestamp.is_none()) else {
            return false;
        };
        let generation = |object: &K| object.labels().get(label::GENERATION).cloned();
        // With other keys, it is about to be applied by the controller.
        if generation(wanted) != generation(live) || drift::holds(wanted, &**live) {
            return false;
        }
        let key = (
            live.namespace().unwrap_or_default(),
            K::kind(&()).into_owned(),
        );
        self.accepted.get(&key) != Some(&spec_digest(&**live))
    }

    /// Replaces gateways that wait for a pod on a dead node.
    async fn replace(&mut self, gateways: &KubeGateways) {
        for namespace in gateways.overdue() {
            if self.waits(&namespace, Purpose::Replace) {
                continue;
            }
            if let Err(error) = gateways.replace(&namespace).await {
                tracing::error!(
                    namespace,
                    "cannot replace the gateway on a dead node; retrying: {error:#}"
                );
            }
            self.pause(&namespace, Purpose::Replace);
            gateways.touched().insert(namespace);
        }
    }

    fn waits(&self, namespace: &str, purpose: Purpose) -> bool {
        let pause = self.pauses.get(&(namespace.to_owned(), purpose));
        pause.is_some_and(|pause| pause.next > Instant::now())
    }

    fn pause(&mut self, namespace: &str, purpose: Purpose) {
        let key = (namespace.to_owned(), purpose);
        let longest = match purpose {
            // The pod terminates when its node is back.
            Purpose::Replace => FIRST_PAUSE * 4,
            Purpose::RollOut | Purpose::ChangeBack => LONGEST_PAUSE,
        };
        let before = self.pauses.get(&key).map(|pause| pause.backoff);
        let mut backoff = before.unwrap_or(Backoff::new(FIRST_PAUSE, longest));
        let length = backoff.pause();
        let pause = RetryPause {
            next: Instant::now() + length,
            length,
            backoff,
        };
        self.pauses.insert(key, pause);
    }
}

fn unversioned<K: Resource + Clone>(object: &K) -> K {
    let mut object = object.clone();
    object.meta_mut().resource_version = None;
    object
}

/// Replaces the spec including its lists, because apply would keep list entries that
/// others added.
async fn put_spec<K>(api: &Api<K>, wanted: &K) -> Result<K, NotApplied>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": wanted.resource_version() },
        "spec": spec(wanted),
    }));
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    let written = api.patch(GATEWAY, &params, &patch).await;
    written.map_err(|error| (K::kind(&()), error))
}

fn spec(object: &impl Serialize) -> Value {
    let mut object = serde_json::to_value(object).expect("an object is JSON");
    object["spec"].take()
}

fn spec_digest(object: &impl Serialize) -> String {
    digest(&spec(object))
}
