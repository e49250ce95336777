//! Events of a VpnTenant, as shown by `kubectl describe`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::task::JoinSet;

use super::super::blocker::Blocker;
use super::super::convert::{ACCEPTED, TenantObjects};
use super::super::index::Validity;
use crate::domain::State;

/// Maximum length of an Event's note, in characters.
const NOTE: usize = 1024;

/// The observed state of a VpnTenant.
#[derive(Clone, Debug)]
pub struct Seen {
    reference: ObjectReference,
    is: Is,
    blocker: Blocker,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Is {
    Tenant {
        state: State,
        generation: u64,
        failure: Option<String>,
    },
    Leaving,
    /// It is not a tenant. Reason and message of the condition.
    Refused(String, String),
}

impl Seen {
    pub fn new(view: &TenantObjects, validity: &Validity, blocker: Blocker) -> Self {
        let mut blocker = blocker;
        let is = match validity {
            Validity::Tenant(tenant) => {
                let status = view.resource.status.clone().unwrap_or_default();
                blocker = blocker.or_published(&status, tenant);
                Is::Tenant {
                    state: tenant.vpn.state,
                    generation: tenant.vpn.generation,
                    failure: tenant.vpn.failure.clone(),
                }
            }
            Validity::Leaving => Is::Leaving,
            Validity::Invalid(_) | Validity::Duplicate(_) => {
                let (reason, message) = validity.refusal().unwrap_or_default();
                Is::Refused(reason.to_owned(), message)
            }
        };
        let reference = view.resource.object_ref(&());
        Self {
            reference,
            is,
            blocker,
        }
    }

    /// The state in its status, for which Events were recorded when it was written.
    /// None if there is no status yet.
    pub fn read(view: &TenantObjects) -> Option<Self> {
        let status = view.resource.status.as_ref()?;
        let mut conditions = status.conditions.iter();
        let refused = conditions.find(|told| told.type_ == ACCEPTED && told.status == "False");
        let is = match refused {
            Some(told) => Is::Refused(told.reason.clone(), told.message.clone()),
            None => {
                let state = status.phase?;
                let reason = status.reason.clone();
                Is::Tenant {
                    state,
                    generation: u64::try_from(status.generation).ok()?,
                    failure: reason.filter(|_| state == State::Failed),
                }
            }
        };
        Some(Self {
            reference: view.resource.object_ref(&()),
            is,
            blocker: Blocker::read(&status.conditions),
        })
    }
}

/// The last recorded state of a VpnTenant.
struct Published {
    seen: Seen,
    /// The message of the last blocker. One that comes and goes until it is resolved,
    /// such as a pod that crashes repeatedly, is recorded once.
    words: Option<String>,
}

impl Published {
    fn new(seen: Seen) -> Self {
        let words = seen.blocker.says().map(|(_, words)| words.to_owned());
        Self { seen, words }
    }
}

/// Records the changes of VpnTenants as Events.
pub struct EventRecorder {
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
    known: BTreeMap<String, Published>,
    under_way: JoinSet<()>,
}

impl EventRecorder {
    /// A recorder that knows the states recorded so far.
    pub fn new(client: Client, told: impl IntoIterator<Item = (String, Seen)>) -> Self {
        let reporter = Reporter {
            controller: "vpn-edge".to_owned(),
            instance: std::env::var("POD_NAME").ok(),
        };
        let told = told.into_iter();
        Self {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            client,
            reporter,
            known: told
                .map(|(name, seen)| (name, Published::new(seen)))
                .collect(),
            under_way: JoinSet::new(),
        }
    }

    /// Publishes the changes of a namespace's VpnTenant, without waiting.
    pub fn publish(&mut self, namespace: String, seen: Option<Seen>) {
        while self.under_way.try_join_next().is_some() {}
        let Some(seen) = seen else {
            self.known.remove(&namespace);
            return;
        };
        let before = self.known.remove(&namespace);
        let before = before.filter(|known| known.seen.reference.uid == seen.reference.uid);
        let (events, known) = diff(before, seen);
        if !events.is_empty() {
            let reference = known.seen.reference.clone();
            let recorder = self.recorder.clone();
            // A recorder aggregates events that differ only in their note.
            let fresh = Recorder::new(self.client.clone(), self.reporter.clone());
            self.under_way.spawn(async move {
                for event in events {
                    let recorder = match event.type_ {
                        EventType::Warning => &fresh,
                        EventType::Normal => &recorder,
                    };
                    if let Err(error) = recorder.publish(&event, &reference).await {
                        tracing::warn!("cannot publish Event: {error}");
                    }
                }
            });
        }
        self.known.insert(namespace, known);
    }
}

/// The Events to publish, and the state that is then recorded.
fn diff(before: Option<Published>, seen: Seen) -> (Vec<Event>, Published) {
    let change = change(before.as_ref().map(|known| &known.seen.is), &seen.is);
    let mut words = before.and_then(|known| known.words);
    let blocker = match seen.blocker.says() {
        Some((reason, now)) if words.as_deref() != Some(now) => {
            words = Some(now.to_owned());
            Some(event(EventType::Warning, reason, now.to_owned()))
        }
        Some(_) => None,
        None => {
            let enabling =
                matches!(&seen.is, Is::Tenant { state, .. } if *state == State::Enabling);
            words = words.filter(|_| enabling);
            None
        }
    };
    let events = change.into_iter().chain(blocker).collect();
    (events, Published { seen, words })
}

fn change(before: Option<&Is>, now: &Is) -> Option<Event> {
    if before == Some(now) {
        return None;
    }
    let normal = EventType::Normal;
    let (state, generation, failure) = match now {
        Is::Refused(reason, message) => {
            return Some(event(EventType::Warning, reason, message.clone()));
        }
        Is::Leaving => {
            let note = "keys, port and gateway are being released";
            return Some(event(normal, "Deleting", note.to_owned()));
        }
        Is::Tenant {
            state,
            generation,
            failure,
        } => (*state, *generation, failure),
    };
    let past = match before {
        Some(Is::Tenant {
            state, generation, ..
        }) => Some((*state, *generation)),
        _ => None,
    };
    if past == Some((state, generation)) {
        return None;
    }
    let (type_, reason, note) = match state {
        State::Enabling => {
            let note = format!(
                "port and keys of generation {generation} are allocated; waiting for the gateway"
            );
            (normal, "Enabling", note)
        }
        State::Enabled => (
            normal,
            "Enabled",
            "the gateway answers and the edge steers to it".to_owned(),
        ),
        State::Failed => (
            EventType::Warning,
            "Failed",
            failure.clone().unwrap_or_default(),
        ),
        // The initial state of every tenant.
        State::Disabled | State::Unavailable if past.is_none() => return None,
        State::Disabled => (normal, "Disabled", "port and keys are released".to_owned()),
        State::Unavailable => (
            normal,
            "PlanWithoutVpn",
            "the plan does not include the VPN; port and keys are released".to_owned(),
        ),
    };
    Some(event(type_, reason, note))
}

fn event(type_: EventType, reason: &str, note: String) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.chars().take(NOTE).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests;
