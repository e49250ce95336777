//! Gateways whose pods cannot terminate because their nodes are down or unreachable.
//!
//! Such a pod stays in the API until its node is back or is removed from the cluster,
//! and with it what waits for it: a Deployment that is deleted in the foreground, and
//! one that recreates its pod. No edge steers to it meanwhile, since a terminating
//! pod is no ready endpoint. So vpn-edge does not wait: a Deployment that is deleted
//! in the background is gone immediately, and its pods terminate when their node can
//! do so.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PropagationPolicy;
use kube::{Api, ResourceExt as _};

use super::{KubeGateways, rollout};

/// How long after its grace period a pod's termination is overdue.
const OVERDUE: Duration = Duration::from_secs(5);

impl KubeGateways {
    /// The namespaces with an overdue pod.
    pub(super) fn overdue(&self) -> BTreeSet<String> {
        let now = Timestamp::now();
        let index = self.index();
        let overdue = index.pods.all().filter(|pod| is_overdue(pod, now));
        overdue.filter_map(|pod| pod.namespace()).collect()
    }

    /// Whether the namespace's Deployment has pods, and each of them is terminating
    /// on a node that is down.
    ///
    /// # Errors
    ///
    /// If the API server cannot be queried.
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

    /// Replaces a Deployment that waits for a lost pod. Returns whether there was
    /// one.
    ///
    /// # Errors
    ///
    /// If it could not be replaced.
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
    // The deletion time includes the grace period.
    let end = pod.metadata.deletion_timestamp.as_ref();
    end.is_some_and(|end| end.0 + OVERDUE < now)
}

/// Whether the pod belongs to this Deployment and not to an earlier one.
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
