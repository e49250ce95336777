//! Objects that another cluster had, put under the API server as they were.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Cluster;
use super::programs::ETCD;

impl Cluster {
    /// Puts these objects into etcd while the API server is away: it would give
    /// them other uids and generations, and take the status and the owners of
    /// fields off them. Their namespaces and definitions must be there.
    ///
    /// # Errors
    ///
    /// When an object is of no known kind, or etcd does not take it.
    pub fn restore(&mut self, objects: &[Value]) -> Result<()> {
        self.stop_api_server();
        let puts = objects.iter().map(|object| {
            let key = key(object)?;
            let mut object = object.clone();
            // Its place in the other etcd.
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            let value = serde_json::to_vec(&object)?;
            Ok(json!({ "requestPut": { "key": STANDARD.encode(key), "value": STANDARD.encode(value) } }))
        });
        let all = puts.collect::<Result<Vec<Value>>>()?;
        // As many as etcd takes at once.
        for some in all.chunks(100) {
            let path = self.node.folder.join("restored.json");
            std::fs::write(&path, json!({ "success": some }).to_string())?;
            let path = path.display();
            let answer = self
                .node
                .sh(&format!("curl -sS {ETCD}/v3/kv/txn --data @{path}"))?;
            let answer: Value = serde_json::from_str(&answer).context(answer.clone())?;
            ensure!(answer["succeeded"] == true, "etcd: {answer}");
        }
        self.start_api_server()
    }
}

/// Where the API server keeps an object.
fn key(object: &Value) -> Result<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
    let folder = match kind.as_deref() {
        Some("ConfigMap") => "configmaps",
        Some("Deployment") => "deployments",
        Some("Lease") => "leases",
        Some("Namespace") => "namespaces",
        Some("NetworkPolicy") => "networkpolicies",
        Some("Pod") => "pods",
        Some("ReplicaSet") => "replicasets",
        Some("Secret") => "secrets",
        Some("Service") => "services/specs",
        Some("VpnTenant") => "vpn-edge.dev/vpntenants",
        kind => bail!("{kind:?} is kept nowhere"),
    };
    let name = text(&metadata["name"]).context("an object has a name")?;
    let place = text(&metadata["namespace"])
        .map_or(name.clone(), |namespace| format!("{namespace}/{name}"));
    Ok(format!("/registry/{folder}/{place}"))
}
