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

use self::events::{Seen, Teller};
use super::Inner;
use super::claim::CLAIM;
use super::convert::View;
use super::hindrance::Hindrance;
use super::index::{Reservation, Standing};
use super::request::{Miss, prompt};
use crate::backoff::Backoff;
use crate::cluster::{FINALIZER, GATEWAY};
use crate::domain::{Keys, State, Tenant};
use crate::registry::{Change, RegistryError, UpdateError};
use crate::wireguard::PublicKey;

/// How often all tenants are reconciled, even without changes.
const ROUND: Duration = Duration::from_secs(30);

/// Maximum number of tenants reconciled at the same time.
const AT_ONCE: usize = 32;

/// First pause before a retry; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A step towards the spec of a VpnTenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
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
    view: &View,
    standing: &Standing,
    reservation: Option<Reservation>,
    now: Timestamp,
) -> Option<Wish> {
    let guarded = view
        .resource
        .finalizers()
        .iter()
        .any(|name| name == FINALIZER);
    let tenant = match standing {
        Standing::Tenant(tenant) => tenant,
        Standing::Invalid(_) => return None,
        Standing::Duplicate(_) => return view.keys.is_some().then_some(Wish::DropKeys),
        Standing::Leaving => {
            return match &view.service {
                _ if view.keys.is_some() => Some(Wish::DropKeys),
                // A gateway's Service is removed with the gateway.
                Some(service) => (!service.gateway).then_some(Wish::FreePort),
                None => guarded.then_some(Wish::Release),
            };
        }
    };
    let spec = &view.resource.spec;
    let Some(kept) = view.kept() else {
        if view.keys.is_some() {
            return Some(Wish::DropKeys);
        }
        if spec.vpn.enabled && tenant.ready && tenant.vpn.state == State::Disabled {
            return Some(Wish::Enable);
        }
        let claimed = view.service.as_ref().filter(|service| !service.gateway);
        let claimed = claimed.and_then(|service| service.claimed);
        return claimed
            .is_some_and(|claimed| now.duration_since(claimed) > CLAIM)
            .then_some(Wish::FreePort);
    };
    let other_keys = spec.vpn.key_generation > kept.key_generation
        || view.given() != Ok(kept.keys.client.given());
    match tenant.vpn.state {
        _ if !spec.plan.has_vpn() => Some(Wish::EndPlan),
        State::Enabled | State::Failed if !spec.vpn.enabled => Some(Wish::Disable),
        State::Enabled if other_keys => Some(Wish::Regenerate),
        State::Failed if other_keys => Some(Wish::Enable),
        _ if reservation == Some(Reservation::Lost) => Some(Wish::Reallocate),
        _ => (!guarded).then_some(Wish::Guard),
    }
}

/// The result of a reconciliation.
enum Came {
    /// Nothing to do until something changes.
    Settled,
    /// Retry after a pause.
    Hindered,
}

struct Visit {
    namespace: String,
    came: Came,
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
            |namespace: &str| Some((namespace.to_owned(), Seen::told(&index.view(namespace)?)?));
        index.namespaces().filter_map(told).collect::<Vec<_>>()
    });
    let mut teller = Teller::new(inner.client.clone(), told);
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
        while busy.len() < AT_ONCE
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
                Ok(Visit { namespace, came, seen, cause }) => {
                    busy.remove(&namespace);
                    let missed = missed.remove(&namespace);
                    match came {
                        Came::Settled => {
                            later.remove(&namespace);
                            if missed {
                                due.insert(namespace.clone());
                            }
                        }
                        Came::Hindered => {
                            let known = later.get(&namespace).map(|later| later.backoff);
                            let first = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                            let mut backoff = known.unwrap_or(first);
                            let at = Instant::now() + backoff.pause();
                            let next = Later { at, backoff, cause };
                            later.insert(namespace.clone(), next);
                        }
                    }
                    teller.tell(namespace, seen);
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
        let mut hindered = Hindrance::Unknown;
        let (asked, _) = self.cause(&namespace);
        let came = match self.serve(&namespace, &mut hindered).await {
            Ok(came) => came,
            Err(Miss::Failed(UpdateError::NotFound)) => Came::Settled,
            Err(Miss::Failed(error)) => {
                tracing::warn!(namespace, "cannot reconcile VpnTenant; retrying: {error}");
                Came::Hindered
            }
            Err(Miss::Conflict | Miss::Taken(_)) => {
                if let Err(error) = self.refresh(&namespace).await {
                    tracing::warn!(namespace, "cannot read VpnTenant: {error}");
                }
                Came::Hindered
            }
        };
        let seen = self.with(|index| {
            let view = index.view(&namespace)?;
            Some(Seen::new(&view, &index.standing(&view), hindered))
        });
        Visit {
            // The spec as it was at the start, the other resources as they are now.
            cause: (asked, self.cause(&namespace).1),
            namespace,
            came,
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

    /// Sets `hindered` to what blocks the tenant, as far as that is known.
    async fn serve(&self, namespace: &str, hindered: &mut Hindrance) -> Result<Came, Miss> {
        let now = Timestamp::now();
        let known = self.with(|index| {
            let view = index.view(namespace)?;
            let standing = index.standing(&view);
            let reservation = index.reservation(&view, &self.settings.pools);
            Some((view, standing, reservation))
        });
        let Some((view, standing, reservation)) = known else {
            return Ok(Came::Settled);
        };
        let outcome = self.step(&view, &standing, reservation, now).await;
        *hindered = match &outcome {
            Ok((_, hindered)) => hindered.clone(),
            Err(Miss::Failed(UpdateError::Registry(error @ RegistryError::Refused(_)))) => {
                Hindrance::Refused(error.to_string())
            }
            Err(_) => return outcome.map(|(came, _)| came),
        };
        if let (Standing::Tenant(tenant), Hindrance::Nothing) = (&standing, &*hindered) {
            let status = view.resource.status.clone().unwrap_or_default();
            *hindered = self.trouble(tenant.id, &status);
        }
        self.show(namespace, hindered).await?;
        outcome.map(|(came, _)| came)
    }

    /// Takes the next step towards the spec.
    async fn step(
        &self,
        view: &View,
        standing: &Standing,
        reservation: Option<Reservation>,
        now: Timestamp,
    ) -> Result<(Came, Hindrance), Miss> {
        let wish = next(view, standing, reservation, now);
        // The key of a valid tenant is valid.
        let given = view.given().ok().flatten();
        let ranges = &self.settings.tunnels.cluster_ranges;
        Ok(match (wish, standing) {
            (Some(wish), Standing::Tenant(tenant))
                if change(wish, given, ranges, now).is_some() =>
            {
                match self.change(tenant, wish, given, now).await? {
                    Hindrance::Nothing => (Came::Settled, Hindrance::Nothing),
                    hindered => (Came::Hindered, hindered),
                }
            }
            (Some(wish), _) => (self.tidy(view, wish).await?, Hindrance::Nothing),
            (None, _) => (Came::Settled, Hindrance::Nothing),
        })
    }

    async fn change(
        &self,
        tenant: &Tenant,
        wish: Wish,
        given: Option<PublicKey>,
        now: Timestamp,
    ) -> Result<Hindrance, Miss> {
        let ranges = &self.settings.tunnels.cluster_ranges;
        let Some(change) = change(wish, given, ranges, now) else {
            return Ok(Hindrance::Nothing);
        };
        match self.update(tenant.id, change, Some(wish)).await {
            Ok(after) => {
                if after.vpn != tenant.vpn {
                    tracing::info!(tenant = %tenant.id, ?wish, to = ?after.vpn.state, "reconciled");
                }
                Ok(Hindrance::Nothing)
            }
            Err(UpdateError::Refused(error)) => Ok(Hindrance::of(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Steps that change no tenant.
    async fn tidy(&self, view: &View, wish: Wish) -> Result<Came, Miss> {
        match (wish, &view.service) {
            (Wish::DropKeys, _) => self.delete_keys(view).await?,
            (Wish::FreePort, Some(service)) => {
                self.delete_service(&view.namespace, service).await?;
            }
            (Wish::Guard, _) => {
                let mut finalizers = view.resource.finalizers().to_vec();
                finalizers.push(FINALIZER.to_owned());
                self.set_finalizers(view, &finalizers).await?;
            }
            (Wish::Release, _) => {
                let deployments: Api<Deployment> =
                    Api::namespaced(self.client.clone(), &view.namespace);
                // Deployments are not watched here.
                if prompt(deployments.get_metadata_opt(GATEWAY))
                    .await?
                    .is_some()
                {
                    return Ok(Came::Hindered);
                }
                let mut finalizers = view.resource.finalizers().to_vec();
                finalizers.retain(|name| name != FINALIZER);
                self.set_finalizers(view, &finalizers).await?;
                self.refresh(&view.namespace).await?;
            }
            _ => {}
        }
        Ok(Came::Settled)
    }

    async fn set_finalizers(&self, view: &View, finalizers: &[String]) -> Result<(), Miss> {
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
    wish: Wish,
    given: Option<PublicKey>,
    cluster_ranges: &[IpNet],
    now: Timestamp,
) -> Option<Change> {
    Some(match wish {
        Wish::EndPlan => Box::new(move |tenant, pool| {
            tenant.set_plan(tenant.plan, pool, now);
            Ok(())
        }),
        Wish::Enable => {
            let ranges = cluster_ranges.to_vec();
            Box::new(move |tenant, pool| {
                tenant.enable(pool, &ranges, Keys::generate_for(given), now)
            })
        }
        Wish::Disable => Box::new(move |tenant, pool| tenant.disable(pool, now)),
        Wish::Regenerate => {
            let keys = Keys::generate_for(given).ok()?;
            Box::new(move |tenant, _| tenant.regenerate(keys.clone(), now))
        }
        Wish::Reallocate => {
            let keys = Keys::generate_for(given).ok()?;
            Box::new(move |tenant, pool| tenant.reallocate(pool, keys.clone(), now))
        }
        Wish::DropKeys | Wish::FreePort | Wish::Guard | Wish::Release => return None,
    })
}

#[cfg(test)]
mod tests;
