//! A gateway's state, computed from its Deployment and pods.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::pod;
use crate::cluster::label;
use crate::domain::GatewayState;

/// The state of the gateway of `deployment`. `pods` are the pods of its namespace, of
/// any generation.
#[must_use]
pub fn state<'a>(deployment: &Deployment, pods: impl Iterator<Item = &'a Pod>) -> GatewayState {
    if deployment.metadata.deletion_timestamp.is_some() {
        return GatewayState::Failed("it is being removed".into());
    }
    let wanted = generation(deployment.metadata.labels.as_ref());
    let own: Vec<&Pod> = pods
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| generation(pod.metadata.labels.as_ref()) == wanted)
        .collect();
    if own.iter().any(|pod| is_ready(pod)) {
        return GatewayState::Ready;
    }
    let failure = own.iter().find_map(|pod| failure(pod));
    match failure.or_else(|| refusal(deployment)) {
        Some(reason) => GatewayState::Failed(reason),
        None => GatewayState::Starting,
    }
}

fn generation(labels: Option<&std::collections::BTreeMap<String, String>>) -> Option<&String> {
    labels?.get(label::GENERATION)
}

fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|(status, ..)| status == "True")
}

/// A condition's status, reason and message.
fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|found| found.type_ == kind)?;
    Some((
        &found.status,
        found.reason.as_deref().unwrap_or_default(),
        found.message.as_deref().unwrap_or_default(),
    ))
}

/// Why a pod does not start.
fn failure(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if let Some(("False", "Unschedulable", message)) = condition(pod, "PodScheduled") {
        return Some(format!("its pod cannot be scheduled: {message}"));
    }
    if status.phase.as_deref() == Some("Failed") {
        let message = status.message.as_ref().or(status.reason.as_ref());
        let message = message.map_or("no reason given", String::as_str);
        return Some(format!("its pod has ended: {message}"));
    }
    let init = status.init_container_statuses.iter().flatten();
    let main = status.container_statuses.iter().flatten();
    init.chain(main).find_map(waiting)
}

/// Why a container does not run.
fn waiting(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let message = waiting.message.as_deref().unwrap_or("no reason given");
    match waiting.reason.as_deref()? {
        "CrashLoopBackOff" => Some(ended(container)),
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable" => {
            let image = &container.image;
            Some(format!("its image {image} cannot be pulled: {message}"))
        }
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PostStartHookError" => Some(format!("its container does not start: {message}")),
        // Starting.
        _ => None,
    }
}

/// Why a container that restarts repeatedly terminated last.
fn ended(container: &ContainerStatus) -> String {
    let last = container.last_state.as_ref();
    let Some(last) = last.and_then(|last| last.terminated.as_ref()) else {
        return "the gateway ended".into();
    };
    if last.reason.as_deref() == Some("OOMKilled") {
        return "the gateway exceeded its memory limit".into();
    }
    let said = last.message.as_deref().unwrap_or_default();
    let said = said.lines().rfind(|line| !line.trim().is_empty());
    let what = if container.name == pod::INIT {
        "its init container failed"
    } else {
        "the gateway ended"
    };
    match said {
        Some(line) => {
            let line = line.trim();
            format!("{what}: {}", line.strip_prefix("error: ").unwrap_or(line))
        }
        None => format!("{what} with exit code {}", last.exit_code),
    }
}

/// Why the Deployment has no pod: a quota, or a policy of its namespace.
fn refusal(deployment: &Deployment) -> Option<String> {
    let status = deployment.status.as_ref()?;
    // Otherwise the condition is about an earlier spec.
    if status.observed_generation < deployment.metadata.generation {
        return None;
    }
    let mut conditions = status.conditions.iter().flatten();
    conditions.find_map(|found| {
        let message: Cow<str> = match &found.message {
            Some(message) => message.into(),
            None => "no reason given".into(),
        };
        match (&*found.type_, &*found.status) {
            ("ReplicaFailure", "True") => Some(format!("the cluster refuses its pod: {message}")),
            ("Progressing", "False") => Some(format!("its pod does not become ready: {message}")),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(generation: u64, status: Value) -> Deployment {
        let text = json!({
            "metadata": { "generation": 7, "labels": { label::GENERATION: generation.to_string() } },
            "status": status,
        });
        serde_json::from_value(text).unwrap()
    }

    fn pod(generation: u64, status: Value) -> Pod {
        let text = json!({
            "metadata": { "labels": { label::GENERATION: generation.to_string() } },
            "status": status,
        });
        serde_json::from_value(text).unwrap()
    }

    fn ready() -> Value {
        json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] })
    }

    fn containers(kind: &str, name: &str, state: Value, last: Value) -> Value {
        json!({ "phase": "Pending", kind: [{
            "name": name, "image": "vpn-edge:1", "imageID": "", "ready": false, "restartCount": 3,
            "state": state, "lastState": last,
        }]})
    }

    fn waiting_for(reason: &str, message: &str) -> Value {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        containers("containerStatuses", pod::MAIN, state, json!({}))
    }

    fn crashed(kind: &str, name: &str, terminated: Value) -> Value {
        let state = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
        containers(kind, name, state, json!({ "terminated": terminated }))
    }

    fn is(status: Value) -> GatewayState {
        state(&deployment(3, json!({})), [pod(3, status)].iter())
    }

    #[track_caller]
    fn fails(status: Value, reason: &str) {
        assert_eq!(is(status), GatewayState::Failed(reason.into()));
    }

    #[test]
    fn a_ready_pod_of_the_generation_is_a_ready_gateway() {
        assert_eq!(is(ready()), GatewayState::Ready);
    }

    #[test]
    fn a_pod_on_its_way_is_a_gateway_that_starts() {
        assert_eq!(is(json!({ "phase": "Pending" })), GatewayState::Starting);
        for reason in ["ContainerCreating", "PodInitializing"] {
            assert_eq!(is(waiting_for(reason, "")), GatewayState::Starting);
        }
        let none: [Pod; 0] = [];
        let unobserved = state(&deployment(3, json!({})), none.iter());
        assert_eq!(unobserved, GatewayState::Starting);
        let running = json!({ "phase": "Running", "conditions": [
            { "type": "PodScheduled", "status": "True" }, { "type": "Ready", "status": "False" },
        ]});
        assert_eq!(is(running), GatewayState::Starting);
    }

    #[test]
    fn pods_of_other_generations_and_ending_ones_do_not_count() {
        let asked = deployment(3, json!({}));
        let old = pod(2, ready());
        assert_eq!(state(&asked, [old].iter()), GatewayState::Starting);
        let mut ending = pod(3, ready());
        ending.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-11-21T00:00:00Z")).unwrap();
        assert_eq!(
            state(&asked, [ending.clone()].iter()),
            GatewayState::Starting
        );
        let failed = pod(2, waiting_for("ErrImagePull", "no such image"));
        assert_eq!(state(&asked, [failed].iter()), GatewayState::Starting);
        // Beside one that does, they do no harm.
        let both = [ending, pod(3, ready())];
        assert_eq!(state(&asked, both.iter()), GatewayState::Ready);
    }

    #[test]
    fn failures_have_a_users_words() {
        fails(
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False",
                "reason": "Unschedulable", "message": "0/3 nodes are available" }] }),
            "its pod cannot be scheduled: 0/3 nodes are available",
        );
        for reason in ["ErrImagePull", "ImagePullBackOff"] {
            fails(
                waiting_for(reason, "not found"),
                "its image vpn-edge:1 cannot be pulled: not found",
            );
        }
        fails(
            waiting_for("CreateContainerConfigError", "secret \"x\" not found"),
            "its container does not start: secret \"x\" not found",
        );
        fails(
            json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on memory" }),
            "its pod has ended: The node was low on memory",
        );
    }

    #[test]
    fn a_crash_loop_tells_what_the_gateway_said_last() {
        let said = "INFO gateway\nerror: cannot set up NAT: nft: no\n\n";
        fails(
            crashed(
                "containerStatuses",
                pod::MAIN,
                json!({ "exitCode": 1, "message": said }),
            ),
            "the gateway ended: cannot set up NAT: nft: no",
        );
        fails(
            crashed(
                "initContainerStatuses",
                pod::INIT,
                json!({ "exitCode": 1, "message": "error: no TUN" }),
            ),
            "its init container failed: no TUN",
        );
        fails(
            crashed("containerStatuses", pod::MAIN, json!({ "exitCode": 139 })),
            "the gateway ended with exit code 139",
        );
        fails(
            crashed(
                "containerStatuses",
                pod::MAIN,
                json!({ "exitCode": 137, "reason": "OOMKilled" }),
            ),
            "the gateway exceeded its memory limit",
        );
    }

    #[test]
    fn a_deployment_without_a_pod_tells_why_once_it_was_looked_at() {
        let none: [Pod; 0] = [];
        let refused = |observed: i64| {
            json!({ "observedGeneration": observed, "conditions": [
                { "type": "Progressing", "status": "True" },
                { "type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity" },
            ]})
        };
        assert_eq!(
            state(&deployment(3, refused(7)), none.iter()),
            GatewayState::Failed("the cluster refuses its pod: violates PodSecurity".into())
        );
        assert_eq!(
            state(&deployment(3, refused(6)), none.iter()),
            GatewayState::Starting
        );
        // A pod that runs all the same has the last word.
        let running = [pod(3, ready())];
        assert_eq!(
            state(&deployment(3, refused(7)), running.iter()),
            GatewayState::Ready
        );
    }

    #[test]
    fn a_deployment_that_is_deleted_serves_nobody() {
        let mut deleted = deployment(3, json!({}));
        deleted.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-11-21T00:00:00Z")).unwrap();
        let running = [pod(3, ready())];
        assert!(matches!(
            state(&deleted, running.iter()),
            GatewayState::Failed(_)
        ));
    }
}
