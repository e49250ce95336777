//! Gateways whose pods nobody ends any more, as their nodes are dead or cut off.
//!
//! Such a pod stays, ending, until its node is back or is removed from the
//! cluster; and with it whatever waits for it: a Deployment that is deleted in
//! the foreground, and one that recreates its pod. No edge leads to it
//! meanwhile, as an ending pod is nobody's endpoint. So they go without it: a
//! Deployment that is deleted in the background is gone at once, and what was
//! its own ends as soon as somebody can end it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PropagationPolicy;
use kube::{Api, ResourceExt as _};

use super::{KubeGateways, rollout};

/// How long after its grace period a pod's end is overdue.
const OVERDUE: Duration = Duration::from_secs(5);

impl KubeGateways {
    /// The namespaces with a pod whose end is overdue.
    pub(super) fn overdue(&self) -> BTreeSet<String> {
        let now = Timestamp::now();
        let index = self.index();
        let overdue = index.pods.all().filter(|pod| is_overdue(pod, now));
        overdue.filter_map(|pod| pod.namespace()).collect()
    }

    /// Whether the namespace's Deployment has pods, of which each is to end and
    /// on a node that is down.
    ///
    /// # Errors
    ///
    /// When that cannot be told.
    pub(super) async fn is_lost(&self, namespace: &str) -> Result<bool> {
        let Some(nodes) = self.nodes_of_overdue(namespace) else {
            return Ok(false);
        };
        let api: Api<Node> = Api::all(self.client.clone());
        for node in nodes {
            if api.get_opt(&node).await?.is_some_and(|node| is_up(&node)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The nodes of the Deployment's pods, if all of those are overdue.
    fn nodes_of_overdue(&self, namespace: &str) -> Option<BTreeSet<String>> {
        let now = Timestamp::now();
        let index = self.index();
        let deployment = index.deployments.get(namespace)?;
        let own = index
            .pods
            .within(namespace)
            .filter(|pod| is_of(pod, deployment));
        let nodes = own.map(|pod| {
            let spec = pod.spec.as_ref().filter(|_| is_overdue(pod, now));
            spec?.node_name.clone()
        });
        let nodes: BTreeSet<String> = nodes.collect::<Option<_>>()?;
        (!nodes.is_empty()).then_some(nodes)
    }

    /// Puts another Deployment in place of one that waits for a lost pod, and
    /// tells whether there was one.
    ///
    /// # Errors
    ///
    /// When it could not be.
    pub(super) async fn replace(&self, namespace: &str) -> Result<bool> {
        let Some(_lock) = self.try_lock(namespace) else {
            return Ok(false);
        };
        let Some((place, shape, before)) = self.placed_in(namespace) else {
            return Ok(false);
        };
        if !self.is_lost(namespace).await? {
            return Ok(false);
        }
        tracing::warn!(tenant = %shape.tenant, "the gateway's node is down; not waiting for its pod");
        let mark = rollout::mark(Some(&before), false);
        self.delete::<Deployment>(namespace, shape.port, PropagationPolicy::Background)
            .await?;
        self.apply_all(&place, &shape, None, mark).await?;
        Ok(true)
    }
}

fn is_overdue(pod: &Pod, now: Timestamp) -> bool {
    // The time includes the grace period.
    let end = pod.metadata.deletion_timestamp.as_ref();
    end.is_some_and(|end| end.0 + OVERDUE < now)
}

/// Whether the pod is not left of an earlier Deployment.
fn is_of(pod: &Pod, deployment: &Deployment) -> bool {
    pod.metadata.creation_timestamp >= deployment.metadata.creation_timestamp
}

fn is_up(node: &Node) -> bool {
    let status = node.status.as_ref();
    let mut conditions = status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|found| found.type_ == "Ready" && found.status == "True")
}
