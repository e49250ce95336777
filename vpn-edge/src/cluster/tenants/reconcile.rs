//! Reconciles VpnTenants: carries out their specs as if somebody had called the API.

mod events;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::events::{EventRecorder, Seen};
use super::Inner;
use super::blocker::Blocker;
use super::convert::TenantObjects;
use super::index::{Reservation, Validity};
use super::port_reservation::RESERVATION_TIMEOUT;
use super::request::{WriteError, with_timeout};
use crate::backoff::Backoff;
use crate::cluster::{FINALIZER, GATEWAY};
use crate::domain::{Keys, State, Tenant};
use crate::registry::{Change, RegistryError, UpdateError};
use crate::wireguard::PublicKey;

/// How often all tenants are reconciled, even without changes.
const ROUND: Duration = Duration::from_secs(30);

/// Maximum number of tenants reconciled at the same time.
const MAX_CONCURRENT: usize = 32;

/// First pause before a retry; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A step towards the spec of a VpnTenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The plan has no VPN, but there is one.
    EndPlan,
    Enable,
    Disable,
    Regenerate,
    /// The port belongs to somebody else, or is in no pool.
    Reallocate,
    /// Delete keys that belong to no tenant.
    DropKeys,
    /// Delete a Service that reserved a port and was not used.
    FreePort,
    /// Add the finalizer: there are keys, but nothing would clean them up.
    Guard,
    /// Remove the finalizer: nothing else of a deleted tenant is left.
    Release,
}

/// The next step, if there is one to take now.
pub fn next(
    view: &TenantObjects,
    validity: &Validity,
    reservation: Option<Reservation>,
    now: Timestamp,
) -> Option<Step> {
    let guarded = view
        .resource
        .finalizers()
        .iter()
        .any(|name| name == FINALIZER);
    let tenant = match validity {
        Validity::Tenant(tenant) => tenant,
        Validity::Invalid(_) => return None,
        Validity::Duplicate(_) => return view.keys.is_some().then_some(Step::DropKeys),
        Validity::Leaving => {
            return match &view.service {
                _ if view.keys.is_some() => Some(Step::DropKeys),
                // A gateway's Service is removed with the gateway.
                Some(service) => (!service.gateway).then_some(Step::FreePort),
                None => guarded.then_some(Step::Release),
            };
        }
    };
    let spec = &view.resource.spec;
    let Some(kept) = view.kept() else {
        if view.keys.is_some() {
            return Some(Step::DropKeys);
        }
        if spec.vpn.enabled && tenant.ready && tenant.vpn.state == State::Disabled {
            return Some(Step::Enable);
        }
        let claimed = view.service.as_ref().filter(|service| !service.gateway);
        let claimed = claimed.and_then(|service| service.claimed);
        return claimed
            .is_some_and(|claimed| now.duration_since(claimed) > RESERVATION_TIMEOUT)
            .then_some(Step::FreePort);
    };
    let other_keys = spec.vpn.key_generation > kept.key_generation
        || view.given() != Ok(kept.keys.client.given());
    match tenant.vpn.state {
        _ if !spec.plan.has_vpn() => Some(Step::EndPlan),
        State::Enabled | State::Failed if !spec.vpn.enabled => Some(Step::Disable),
        State::Enabled if other_keys => Some(Step::Regenerate),
        State::Failed if other_keys => Some(Step::Enable),
        _ if reservation == Some(Reservation::Lost) => Some(Step::Reallocate),
        _ => (!guarded).then_some(Step::Guard),
    }
}

/// The result of a reconciliation.
enum Outcome {
    /// Nothing to do until something changes.
    Done,
    /// Retry after a pause.
    Requeue,
}

struct Visit {
    namespace: String,
    outcome: Outcome,
    seen: Option<Seen>,
    cause: Cause,
}

/// What an attempt depends on, of the tenant's own resources: the VpnTenant's UID and
/// the generation of its spec, and the versions of keys and Service; not the status.
type Cause = (Option<(String, i64)>, [u64; 2]);

/// A pending retry.
struct Later {
    at: Instant,
    backoff: Backoff,
    cause: Cause,
}

/// Runs forever.
pub async fn follow(inner: Arc<Inner>) {
    let told = inner.with(|index| {
        let told =
            |namespace: &str| Some((namespace.to_owned(), Seen::read(&index.view(namespace)?)?));
        index.namespaces().filter_map(told).collect::<Vec<_>>()
    });
    let mut events = EventRecorder::new(inner.client.clone(), told);
    let mut due: BTreeSet<String> = BTreeSet::new();
    let mut under_way = JoinSet::new();
    let mut busy: BTreeSet<String> = BTreeSet::new();
    // Namespaces that changed while they were being reconciled.
    let mut missed: BTreeSet<String> = BTreeSet::new();
    let mut later: BTreeMap<String, Later> = BTreeMap::new();
    inner.settle_in();
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while busy.len() < MAX_CONCURRENT
            && let Some(namespace) = due.iter().find(|due| !busy.contains(*due)).cloned()
        {
            due.remove(&namespace);
            busy.insert(namespace.clone());
            let inner = Arc::clone(&inner);
            under_way.spawn(async move { inner.visit(namespace).await });
        }
        let soonest = later.values().map(|later| later.at).min();
        let soonest = soonest.unwrap_or_else(|| Instant::now() + ROUND);
        tokio::select! {
            () = inner.news.notified() => {
                let news = inner.with(|index| index.news());
                for namespace in news.namespaces {
                    // A change caused by an attempt itself is no reason for another
                    // attempt.
                    let waits = later.get(&namespace);
                    if waits.is_none_or(|later| later.cause != inner.cause(&namespace)) {
                        due.insert(namespace);
                    } else if busy.contains(&namespace) {
                        missed.insert(namespace);
                    }
                }
                if news.freed {
                    // The API server may allocate them only a moment later.
                    due.extend(later.keys().cloned());
                    for later in later.values_mut() {
                        later.at = Instant::now() + FIRST_PAUSE;
                        later.backoff.reset();
                    }
                }
            }
            _ = round.tick() => {
                let all = inner.with(|index| index.namespaces().map(str::to_owned).collect::<Vec<_>>());
                later.retain(|namespace, _| all.contains(namespace));
                due.extend(all);
            }
            () = sleep_until(soonest) => {
                let now = Instant::now();
                for (namespace, later) in &mut later {
                    if later.at <= now {
                        due.insert(namespace.clone());
                        later.at = now + LONGEST_PAUSE;
                    }
                }
            }
            Some(visit) = under_way.join_next() => match visit {
                Ok(Visit { namespace, outcome, seen, cause }) => {
                    busy.remove(&namespace);
                    let missed = missed.remove(&namespace);
                    match outcome {
                        Outcome::Done => {
                            later.remove(&namespace);
                            if missed {
                                due.insert(namespace.clone());
                            }
                        }
                        Outcome::Requeue => {
                            let known = later.get(&namespace).map(|later| later.backoff);
                            let first = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                            let mut backoff = known.unwrap_or(first);
                            let at = Instant::now() + backoff.pause();
                            let next = Later { at, backoff, cause };
                            later.insert(namespace.clone(), next);
                        }
                    }
                    events.publish(namespace, seen);
                }
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            },
        }
    }
}

impl Inner {
    /// Does for a tenant what can be done now.
    async fn visit(&self, namespace: String) -> Visit {
        let mut blocker = Blocker::Unknown;
        let (asked, _) = self.cause(&namespace);
        let outcome = match self.serve(&namespace, &mut blocker).await {
            Ok(outcome) => outcome,
            Err(WriteError::Failed(UpdateError::NotFound)) => Outcome::Done,
            Err(WriteError::Failed(error)) => {
                tracing::warn!(namespace, "cannot reconcile VpnTenant; retrying: {error}");
                Outcome::Requeue
            }
            Err(WriteError::Conflict | WriteError::Taken(_)) => {
                if let Err(error) = self.refresh(&namespace).await {
                    tracing::warn!(namespace, "cannot read VpnTenant: {error}");
                }
                Outcome::Requeue
            }
        };
        let seen = self.with(|index| {
            let view = index.view(&namespace)?;
            Some(Seen::new(&view, &index.validity(&view), blocker))
        });
        Visit {
            // The spec as it was at the start, the other resources as they are now.
            cause: (asked, self.cause(&namespace).1),
            namespace,
            outcome,
            seen,
        }
    }

    fn cause(&self, namespace: &str) -> Cause {
        self.with(|index| {
            let asked = index.view(namespace).and_then(|view| {
                let metadata = &view.resource.metadata;
                Some((metadata.uid.clone()?, metadata.generation?))
            });
            let [_, keys, service] = index.versions(namespace);
            (asked, [keys, service])
        })
    }

    /// Sets `blocker` to what blocks the tenant, as far as that is known.
    async fn serve(&self, namespace: &str, blocker: &mut Blocker) -> Result<Outcome, WriteError> {
        let now = Timestamp::now();
        let known = self.with(|index| {
            let view = index.view(namespace)?;
            let validity = index.validity(&view);
            let reservation = index.reservation(&view, &self.settings.pools);
            Some((view, validity, reservation))
        });
        let Some((view, validity, reservation)) = known else {
            return Ok(Outcome::Done);
        };
        let outcome = self.step(&view, &validity, reservation, now).await;
        *blocker = match &outcome {
            Ok((_, blocker)) => blocker.clone(),
            Err(WriteError::Failed(UpdateError::Registry(error @ RegistryError::Refused(_)))) => {
                Blocker::Refused(error.to_string())
            }
            Err(_) => return outcome.map(|(outcome, _)| outcome),
        };
        if let (Validity::Tenant(tenant), Blocker::None) = (&validity, &*blocker) {
            let status = view.resource.status.clone().unwrap_or_default();
            *blocker = self.problem(tenant.id, &status);
        }
        self.show(namespace, blocker).await?;
        outcome.map(|(outcome, _)| outcome)
    }

    /// Takes the next step towards the spec.
    async fn step(
        &self,
        view: &TenantObjects,
        validity: &Validity,
        reservation: Option<Reservation>,
        now: Timestamp,
    ) -> Result<(Outcome, Blocker), WriteError> {
        let step = next(view, validity, reservation, now);
        // The key of a valid tenant is valid.
        let given = view.given().ok().flatten();
        let ranges = &self.settings.tunnels.cluster_ranges;
        Ok(match (step, validity) {
            (Some(step), Validity::Tenant(tenant))
                if change(step, given, ranges, now).is_some() =>
            {
                match self.change(tenant, step, given, now).await? {
                    Blocker::None => (Outcome::Done, Blocker::None),
                    blocker => (Outcome::Requeue, blocker),
                }
            }
            (Some(step), _) => (self.tidy(view, step).await?, Blocker::None),
            (None, _) => (Outcome::Done, Blocker::None),
        })
    }

    async fn change(
        &self,
        tenant: &Tenant,
        step: Step,
        given: Option<PublicKey>,
        now: Timestamp,
    ) -> Result<Blocker, WriteError> {
        let ranges = &self.settings.tunnels.cluster_ranges;
        let Some(change) = change(step, given, ranges, now) else {
            return Ok(Blocker::None);
        };
        match self.update(tenant.id, change, Some(step)).await {
            Ok(after) => {
                if after.vpn != tenant.vpn {
                    tracing::info!(tenant = %tenant.id, ?step, to = ?after.vpn.state, "reconciled");
                }
                Ok(Blocker::None)
            }
            Err(UpdateError::Refused(error)) => Ok(Blocker::of(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Steps that change no tenant.
    async fn tidy(&self, view: &TenantObjects, step: Step) -> Result<Outcome, WriteError> {
        match (step, &view.service) {
            (Step::DropKeys, _) => self.delete_keys(view).await?,
            (Step::FreePort, Some(service)) => {
                self.delete_service(&view.namespace, service).await?;
            }
            (Step::Guard, _) => {
                let mut finalizers = view.resource.finalizers().to_vec();
                finalizers.push(FINALIZER.to_owned());
                self.set_finalizers(view, &finalizers).await?;
            }
            (Step::Release, _) => {
                let deployments: Api<Deployment> =
                    Api::namespaced(self.client.clone(), &view.namespace);
                // Deployments are not watched here.
                if with_timeout(deployments.get_metadata_opt(GATEWAY))
                    .await?
                    .is_some()
                {
                    return Ok(Outcome::Requeue);
                }
                let mut finalizers = view.resource.finalizers().to_vec();
                finalizers.retain(|name| name != FINALIZER);
                self.set_finalizers(view, &finalizers).await?;
                self.refresh(&view.namespace).await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    async fn set_finalizers(
        &self,
        view: &TenantObjects,
        finalizers: &[String],
    ) -> Result<(), WriteError> {
        let patch = json!({ "metadata": {
            "resourceVersion": view.resource.resource_version(),
            "finalizers": finalizers,
        }});
        self.patch_tenant(&view.namespace, &patch).await?;
        Ok(())
    }
}

/// The change of the tenant for a step, if it is one. `given` is the client-provided
/// key.
fn change(
    step: Step,
    given: Option<PublicKey>,
    cluster_ranges: &[IpNet],
    now: Timestamp,
) -> Option<Change> {
    Some(match step {
        Step::EndPlan => Box::new(move |tenant, pool| {
            tenant.set_plan(tenant.plan, pool, now);
            Ok(())
        }),
        Step::Enable => {
            let ranges = cluster_ranges.to_vec();
            Box::new(move |tenant, pool| {
                tenant.enable(pool, &ranges, Keys::generate_for(given), now)
            })
        }
        Step::Disable => Box::new(move |tenant, pool| tenant.disable(pool, now)),
        Step::Regenerate => {
            let keys = Keys::generate_for(given).ok()?;
            Box::new(move |tenant, _| tenant.regenerate(keys.clone(), now))
        }
        Step::Reallocate => {
            let keys = Keys::generate_for(given).ok()?;
            Box::new(move |tenant, pool| tenant.reallocate(pool, keys.clone(), now))
        }
        Step::DropKeys | Step::FreePort | Step::Guard | Step::Release => return None,
    })
}

#[cfg(test)]
mod tests;
