//! Chooses which gateways are updated next.
//!
//! All relevant state is in the Deployments, so that another leader continues where
//! this one stopped. A gateway that served when a rollout replaced it is marked.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use kube::ResourceExt as _;

use super::objects::annotation;

/// The state of a gateway relative to its desired spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolloutState {
    /// Up to date.
    Current,
    /// Up to date, but not ready since a rollout replaced it.
    Unavailable,
    /// Its tenant changed how it should run.
    SpecChanged,
    /// Created with other settings.
    Outdated { serves: Serves },
}

/// Whether clients lose connections when the gateway is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    Yes,
    /// It served until an earlier rollout replaced it.
    Before,
    No,
}

impl RolloutState {
    /// The state of the gateway with this Deployment, whose desired state is
    /// `wanted`.
    #[must_use]
    pub fn of(live: &Deployment, wanted: &Deployment) -> Self {
        let differs = |key| live.annotations().get(key) != wanted.annotations().get(key);
        if differs(annotation::POD_SPEC) {
            return Self::SpecChanged;
        }
        let is_away = is_marked(live) && !is_done(live);
        if differs(annotation::APPLIED) {
            let serves = match (is_away, serves(live)) {
                (true, _) => Serves::Before,
                (false, true) => Serves::Yes,
                (false, false) => Serves::No,
            };
            return Self::Outdated { serves };
        }
        if is_away {
            Self::Unavailable
        } else {
            Self::Current
        }
    }
}

/// The gateways to apply now. `waits` tells which ones were refused recently.
///
/// Of the gateways that served before a rollout replaced them, only one, or one in a
/// hundred, may be unavailable at a time: a failing one blocks the rollout until it
/// is ready or the settings change again. Gateways that are new, have new keys or did
/// not serve before are not counted, so they block nothing.
#[must_use]
pub fn choose(all: &BTreeMap<String, RolloutState>, waits: impl Fn(&str) -> bool) -> Vec<&str> {
    let away = all
        .values()
        .filter(|state| **state == RolloutState::Unavailable);
    let room = (all.len() / 100).max(1).saturating_sub(away.count());
    let of = |wanted: RolloutState| {
        let found = all.iter().filter(move |(_, state)| **state == wanted);
        found
            .map(|(namespace, _)| &**namespace)
            .filter(|namespace| !waits(namespace))
    };
    let outdated = |serves| of(RolloutState::Outdated { serves });
    let mut chosen: Vec<&str> = of(RolloutState::SpecChanged).collect();
    if room > 0 {
        chosen.extend(outdated(Serves::No));
    }
    let counted = outdated(Serves::Before).chain(outdated(Serves::Yes));
    chosen.extend(counted.take(room));
    chosen
}

/// The rollout mark of the Deployment that replaces this one. `rolls` is true if
/// nobody asked for the gateway to be replaced.
#[must_use]
pub fn mark(before: Option<&Deployment>, rolls: bool) -> Option<String> {
    let before = before?;
    if rolls && serves(before) {
        return Some(Timestamp::now().to_string());
    }
    let mark = before.annotations().get(annotation::ROLLED).cloned();
    mark.filter(|_| !is_done(before))
}

/// A gateway that fails within this time after a rollout replaced it was broken by
/// the rollout; later, it failed by itself.
const PROBATION: SignedDuration = SignedDuration::from_mins(5);

/// Whether it is marked and has been ready for long enough.
#[must_use]
pub fn is_back(deployment: &Deployment, now: Timestamp) -> bool {
    let mark = deployment.annotations().get(annotation::ROLLED);
    mark.is_some_and(|mark| {
        let since = mark.parse().unwrap_or(Timestamp::UNIX_EPOCH);
        is_done(deployment) && now.duration_since(since) > PROBATION
    })
}

#[must_use]
pub fn is_marked(deployment: &Deployment) -> bool {
    deployment.annotations().contains_key(annotation::ROLLED)
}

fn status(deployment: &Deployment) -> DeploymentStatus {
    deployment.status.clone().unwrap_or_default()
}

/// Whether clients lose connections when the gateway's pod is replaced.
#[must_use]
pub fn serves(deployment: &Deployment) -> bool {
    status(deployment).ready_replicas.unwrap_or(0) > 0
}

/// Whether the pod matches the Deployment and is ready.
fn is_done(deployment: &Deployment) -> bool {
    let status = status(deployment);
    status.observed_generation >= deployment.metadata.generation
        && status.replicas == Some(1)
        && status.updated_replicas == Some(1)
        && status.ready_replicas == Some(1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::RolloutState::{Current, SpecChanged, Unavailable};
    use super::*;

    const YES: RolloutState = RolloutState::Outdated {
        serves: Serves::Yes,
    };
    const BEFORE: RolloutState = RolloutState::Outdated {
        serves: Serves::Before,
    };
    const NO: RolloutState = RolloutState::Outdated { serves: Serves::No };

    /// Of gateways named by number, those that are chosen.
    fn chosen(states: &[RolloutState], refused: &[usize]) -> Vec<usize> {
        let name = |number: usize| format!("{number:04}");
        let all = states.iter().enumerate();
        let all = all.map(|(number, state)| (name(number), *state)).collect();
        let refused: Vec<String> = refused.iter().map(|number| name(*number)).collect();
        let chosen = choose(&all, |namespace| {
            refused.iter().any(|name| name == namespace)
        });
        chosen
            .iter()
            .map(|namespace| namespace.parse().unwrap())
            .collect()
    }

    #[test]
    fn one_that_serves_is_replaced_at_a_time() {
        for (states, refused, expected) in [
            (&[Current, Current][..], &[][..], &[][..]),
            (&[YES, YES, YES], &[], &[0]),
            (&[Current, YES, YES], &[], &[1]),
            // Those that are new or broken by themselves are current too.
            (&[Unavailable, YES, YES], &[], &[]),
            // What was refused is set aside before anybody is counted.
            (&[YES, YES, YES], &[0], &[1]),
            (&[YES, YES], &[0, 1], &[]),
            // Who has lost the gateway to an earlier roll-out comes first.
            (&[YES, YES, BEFORE], &[], &[2]),
            (&[BEFORE, Unavailable], &[], &[]),
            // Who has nothing to lose waits for nobody, but for a failing
            // roll-out.
            (&[NO, YES, NO, YES], &[], &[0, 2, 1]),
            (&[NO, Unavailable, YES], &[], &[]),
            (&[NO, NO], &[1], &[0]),
            // What a tenant sets waits for nothing.
            (&[Unavailable, SpecChanged, YES, SpecChanged], &[], &[1, 3]),
            (&[SpecChanged, YES], &[0], &[1]),
        ] {
            assert_eq!(chosen(states, refused), expected, "{states:?}");
        }
    }

    #[test]
    fn of_many_one_in_a_hundred_are_replaced_at_a_time() {
        let mut states = vec![YES; 299];
        assert_eq!(chosen(&states, &[]), [0, 1]);
        states[0] = Unavailable;
        assert_eq!(chosen(&states, &[]), [1]);
        states[1] = Unavailable;
        assert_eq!(chosen(&states, &[]), [0; 0]);
        states.push(Current);
        assert_eq!(chosen(&states, &[]), [2]);
    }

    fn deployment(annotations: &Value, status: &Value) -> Deployment {
        let text = json!({
            "metadata": { "generation": 3, "annotations": annotations }, "status": status,
        });
        serde_json::from_value(text).unwrap()
    }

    /// A Deployment with such a status, as it was applied.
    fn applied(applied: &str, is_marked: bool, status: &Value) -> Deployment {
        let mut annotations = json!({ annotation::POD_SPEC: "a", annotation::APPLIED: applied });
        if is_marked {
            annotations[annotation::ROLLED] = json!("2026-11-21T00:00:00Z");
        }
        deployment(&annotations, status)
    }

    fn statuses() -> (Value, [Value; 4]) {
        let all = json!({
            "observedGeneration": 3, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1,
        });
        let but = |field: &str, value: Value| {
            let mut status = all.clone();
            status[field] = value;
            status
        };
        let unfinished = [
            but("observedGeneration", json!(2)),
            but("updatedReplicas", json!(null)),
            but("replicas", json!(2)),
            but("readyReplicas", json!(null)),
        ];
        (all, unfinished)
    }

    #[test]
    fn a_gateway_is_away_until_its_new_pod_is_ready() {
        let (done, unfinished) = statuses();
        let wanted = applied("new", false, &json!({}));
        let is = |live| RolloutState::of(&live, &wanted);
        assert_eq!(is(applied("new", true, &done)), Current);
        for status in &unfinished {
            assert_eq!(is(applied("new", true, status)), Unavailable, "{status}");
            assert_eq!(is(applied("new", false, status)), Current, "{status}");
            assert_eq!(is(applied("old", true, status)), BEFORE, "{status}");
        }
        assert_eq!(is(applied("old", true, &done)), YES);
        assert_eq!(is(applied("old", false, &done)), YES);
        assert_eq!(is(applied("old", false, &json!({}))), NO);
        let other = json!({ annotation::POD_SPEC: "b", annotation::APPLIED: "old" });
        assert_eq!(is(deployment(&other, &done)), SpecChanged);
    }

    #[test]
    fn a_gateway_is_back_once_it_has_served_for_a_while() {
        let (done, unfinished) = statuses();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (soon, late) = (at("2026-11-21T00:05:00Z"), at("2026-11-21T00:05:01Z"));
        assert!(is_back(&applied("new", true, &done), late));
        assert!(!is_back(&applied("new", true, &done), soon));
        assert!(!is_back(&applied("new", false, &done), late));
        for status in &unfinished {
            assert!(!is_back(&applied("new", true, status), late), "{status}");
        }
    }

    #[test]
    fn the_mark_stays_until_the_gateway_is_back() {
        let (done, unfinished) = statuses();
        assert_eq!(mark(None, true), None);
        assert!(mark(Some(&applied("old", false, &done)), true).is_some());
        assert_eq!(mark(Some(&applied("old", false, &done)), false), None);
        assert_eq!(mark(Some(&applied("old", false, &json!({}))), true), None);
        assert_eq!(mark(Some(&applied("old", true, &done)), false), None);
        for status in &unfinished {
            let before = applied("old", true, status);
            let kept = mark(Some(&before), false);
            assert_eq!(kept.as_deref(), Some("2026-11-21T00:00:00Z"), "{status}");
        }
    }
}
