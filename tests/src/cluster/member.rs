//! Nodes of the cluster, as the API server knows them.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use super::Cluster;

const NAMESPACE: &str = "kube-node-lease";
/// Often enough for the controller manager's grace period of 16 s.
const RENEWAL: Duration = Duration::from_secs(2);

/// A node of the cluster. Its lease is renewed until this is dropped; then the
/// cluster takes it for dead.
pub struct Member {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) client: Client,
    pub(super) runtime: Handle,
    heart: JoinHandle<()>,
}

impl Cluster {
    /// Adds a node that is ready, and has room for pods.
    ///
    /// # Errors
    ///
    /// When the API server refuses it.
    pub fn add_node(&self, name: &str, addresses: &[IpAddr]) -> Result<Member> {
        let client = self.client();
        self.run(register(&client, name, addresses))?;
        let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
        // The API server makes the leases' namespace soon after its start.
        self.eventually("the node's first lease", async || {
            Ok(Some(renew(&leases, name).await?))
        })?;
        let nodes: Api<Node> = Api::all(client.clone());
        self.eventually("a node that pods may run on", async || {
            let spec = nodes.get(name).await?.spec.unwrap_or_default();
            Ok(spec.taints.unwrap_or_default().is_empty().then_some(()))
        })?;
        let runtime = self.handle();
        let heart = runtime.spawn(beat(leases, name.to_owned()));
        Ok(Member {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            client,
            runtime,
            heart,
        })
    }
}

impl Member {
    /// The node's name in the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's own addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

async fn register(client: &Client, name: &str, addresses: &[IpAddr]) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let labels = json!({
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    });
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": labels },
    });
    let params = PatchParams::apply("lab").force();
    nodes.patch(name, &params, &Patch::Apply(&node)).await?;
    let now = Time(Timestamp::now());
    let conditions = [
        ("Ready", "True", "KubeletReady"),
        ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID"),
    ]
    .map(|(kind, status, reason)| {
        json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        })
    });
    let mut known: Vec<_> = addresses
        .iter()
        .map(|address| json!({ "type": "InternalIP", "address": address }))
        .collect();
    known.push(json!({ "type": "Hostname", "address": name }));
    let room = json!({ "cpu": "16", "memory": "64Gi", "pods": "200" });
    let status = json!({ "status": {
        "addresses": known,
        "capacity": room,
        "allocatable": room,
        "conditions": conditions,
    }});
    let params = PatchParams::default();
    nodes
        .patch_status(name, &params, &Patch::Strategic(&status))
        .await?;
    Ok(())
}

async fn beat(leases: Api<Lease>, name: String) {
    let mut beats = interval(RENEWAL);
    loop {
        beats.tick().await;
        // The API server may be away: the next one may succeed.
        let _ = timeout(RENEWAL, renew(&leases, &name)).await;
    }
}

async fn renew(leases: &Api<Lease>, name: &str) -> Result<()> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(16),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    let params = PatchParams::apply("lab").force();
    leases.patch(name, &params, &Patch::Apply(&lease)).await?;
    Ok(())
}
