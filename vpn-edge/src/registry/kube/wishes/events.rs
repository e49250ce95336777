//! Events of a VpnTenant: what `kubectl describe` tells of its past.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::task::JoinSet;

use super::super::convert::View;
use super::super::index::Standing;
use crate::domain::{State, VpnError};

/// What a VpnTenant was like when it was looked at.
#[derive(Clone, Debug)]
pub struct Seen {
    reference: ObjectReference,
    is: Is,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Is {
    Tenant {
        state: State,
        generation: u64,
        failure: Option<String>,
        hindered: Option<VpnError>,
    },
    Leaving,
    /// For this reason.
    Refused(String),
}

impl Seen {
    pub fn new(view: &View, standing: &Standing, hindered: Option<VpnError>) -> Self {
        let is = match standing {
            Standing::Tenant(tenant) => Is::Tenant {
                state: tenant.vpn.state,
                generation: tenant.vpn.generation,
                failure: tenant.vpn.failure.clone(),
                hindered,
            },
            Standing::Leaving => Is::Leaving,
            Standing::Invalid(reason) => Is::Refused(reason.clone()),
            Standing::Duplicate(namespace) => {
                Is::Refused(format!("the id belongs to the VpnTenant in {namespace}"))
            }
        };
        let reference = view.resource.object_ref(&());
        Self { reference, is }
    }
}

/// Tells what changed since it last heard of a VpnTenant.
pub struct Teller {
    recorder: Recorder,
    known: BTreeMap<String, Seen>,
    under_way: JoinSet<()>,
}

impl Teller {
    pub fn new(client: Client) -> Self {
        let reporter = Reporter {
            controller: "vpn-edge".to_owned(),
            instance: std::env::var("POD_NAME").ok(),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            known: BTreeMap::new(),
            under_way: JoinSet::new(),
        }
    }

    /// Publishes, without waiting for it, what is new about a namespace.
    pub fn tell(&mut self, namespace: String, seen: Option<Seen>) {
        while self.under_way.try_join_next().is_some() {}
        let Some(seen) = seen else {
            self.known.remove(&namespace);
            return;
        };
        let before = self.known.get(&namespace);
        let before = before.filter(|known| known.reference.uid == seen.reference.uid);
        if let Some(event) = event(before.map(|known| &known.is), &seen.is) {
            let (recorder, reference) = (self.recorder.clone(), seen.reference.clone());
            self.under_way.spawn(async move {
                if let Err(error) = recorder.publish(&event, &reference).await {
                    tracing::warn!("an event is lost: {error}");
                }
            });
        }
        self.known.insert(namespace, seen);
    }
}

fn event(before: Option<&Is>, now: &Is) -> Option<Event> {
    if before == Some(now) {
        return None;
    }
    let normal = EventType::Normal;
    let (type_, reason, note) = match now {
        Is::Refused(reason) => (EventType::Warning, "Refused", reason.clone()),
        Is::Leaving => (
            normal,
            "Leaving",
            "keys, port and gateway are given up".to_owned(),
        ),
        Is::Tenant {
            hindered: Some(hindered),
            ..
        } => {
            let note = format!("the VPN cannot be had now, trying again: {hindered}");
            (EventType::Warning, "Hindered", note)
        }
        Is::Tenant {
            state,
            generation,
            failure,
            ..
        } => {
            let past = match before {
                Some(Is::Tenant {
                    state, generation, ..
                }) => Some((*state, *generation)),
                _ => None,
            };
            if past == Some((*state, *generation)) {
                return None;
            }
            match state {
                State::Enabling => {
                    let note = format!(
                        "port and keys are there, of generation {generation}; the gateway is awaited"
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
                // As every tenant begins.
                State::Disabled | State::Unavailable if past.is_none() => return None,
                State::Disabled => (normal, "Disabled", "port and keys are given up".to_owned()),
                State::Unavailable => (
                    normal,
                    "PlanWithoutVpn",
                    "the plan does not include the VPN; port and keys are given up".to_owned(),
                ),
            }
        }
    };
    Some(Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    })
}
