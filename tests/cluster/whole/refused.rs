//! What the API server refuses of a gateway, while everything runs.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use lab::topology::A;
use serde_json::{Value, json};
use vpn_edge::cluster::VpnTenantStatus;

use super::*;

impl Scene {
    /// Waits for a condition of this status and reason whose message has these
    /// words.
    fn await_condition(&self, type_: &str, status: &str, reason: &str, words: &str) -> Result<()> {
        let resource = self.resource(&ACME);
        let wait = self.cluster.eventually("the condition", async || {
            let now: VpnTenantStatus = resource.get("vpn").await?.status.unwrap_or_default();
            let mut conditions = now.conditions.iter();
            let is = conditions.any(|condition| {
                condition.type_ == type_
                    && condition.status == status
                    && condition.reason == reason
                    && condition.message.contains(words)
            });
            ensure!(is, "{now:?}");
            Ok(Some(()))
        });
        wait.map_err(|error| {
            let logs = self.controllers.iter().map(|one| one.log());
            error.context(logs.collect::<Vec<_>>().join("\n--\n"))
        })
    }

    /// Waits for an event of this reason with these words, and sees that there
    /// is one.
    fn one_event(&self, reason: &str, words: &str) -> Result<()> {
        let events: Api<Event> = Api::namespaced(self.cluster.client(), ACME.namespace);
        let count = self.cluster.eventually("an event", async || {
            let told = events.list(&ListParams::default()).await?.items;
            let ours = told.iter().filter(|event| {
                event.reason.as_deref() == Some(reason)
                    && event
                        .message
                        .as_ref()
                        .is_some_and(|note| note.contains(words))
            });
            Ok(Some(ours.count()).filter(|count| *count > 0))
        })?;
        ensure!(count == 1, "{count} events {reason}: {words}");
        Ok(())
    }

    fn set_pod(&self, gateway: &Value) -> Result<()> {
        self.patch(&ACME, &json!({ "gateway": gateway }))
    }
}

#[test]
fn what_is_refused_of_a_gateway_is_reported_until_it_is_corrected() -> Result<()> {
    let scene = Scene::new()?;
    // A gateway that no API server takes, from the start.
    let greedy = yaml(&ACME, true)
        + "  gateway: {resources: {requests: {memory: 64Mi}, limits: {memory: 32Mi}}}\n";
    scene.apply(&greedy)?;
    let words = "must be less than or equal to memory limit";
    scene.await_condition("GatewayReady", "False", "GatewayDegraded", words)?;
    scene.await_condition("Ready", "False", "GatewayDegraded", words)?;
    scene.await_condition(
        "Ready",
        "False",
        "GatewayDegraded",
        "the cluster refuses its Deployment",
    )?;
    let listed = scene.kubectl(&["get", "vpntenants", "-n", ACME.namespace])?;
    ensure!(
        listed.contains("enabling") && listed.contains(words),
        "{listed}"
    );
    scene.one_event("GatewayDegraded", words)?;
    scene.set_pod(&json!({ "resources": null }))?;
    scene.await_phase(&ACME, "enabled", 0)?;
    scene.await_condition("Ready", "True", "Serving", "")?;
    let client = scene.connect(&scene.region.client_a, &ACME)?;

    // One that serves goes on as it was.
    let nonsense = json!({ "tolerations": [{ "key": "k", "operator": "Exists", "value": "v" }] });
    scene.set_pod(&nonsense)?;
    let words = "value must be empty when `operator` is 'Exists'";
    scene.await_condition("Ready", "False", "GatewayDegraded", words)?;
    scene.await_condition("GatewayReady", "True", "Serving", "")?;
    scene.one_event("GatewayDegraded", words)?;
    ensure!(client.reaches(A.server));
    scene.set_pod(&json!({ "tolerations": [] }))?;
    scene.await_condition("Ready", "True", "Serving", "")?;

    // So does one whose tunnel cannot lead where it is to lead.
    scene.patch(&ACME, &json!({ "networks": [A.network, "fd00:97::/64"] }))?;
    scene.await_condition("Ready", "False", "GatewayDegraded", "fd00:97::/64")?;
    scene.await_condition("GatewayReady", "True", "Serving", "")?;
    scene.one_event("GatewayDegraded", "fd00:97::/64")?;
    ensure!(client.reaches(A.server));
    scene.patch(&ACME, &json!({ "networks": [A.network] }))?;
    scene.await_condition("Ready", "True", "Serving", "")?;
    ensure!(client.reaches(A.server));

    // The API's callers hear it in the same words.
    scene.apply(&yaml(&GLOBEX, false))?;
    scene.await_phase(&GLOBEX, "disabled", 0)?;
    let namespace = GLOBEX.namespace;
    scene.apply(&format!(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: tight, namespace: {namespace}}}\n\
         spec: {{hard: {{count/secrets: '0'}}}}\n"
    ))?;
    let jsonpath = "--for=jsonpath={.status.hard}";
    scene.kubectl(&[
        "wait",
        jsonpath,
        "--timeout=60s",
        "resourcequota/tight",
        "-n",
        namespace,
    ])?;
    let refused = scene
        .tenant(0, &["enable", GLOBEX.id])
        .unwrap_err()
        .to_string();
    let words = "the cluster refuses it: secrets \"vpn-edge-keys\" is forbidden: exceeded quota";
    ensure!(
        refused.contains("(503)") && refused.contains(words),
        "{refused}"
    );
    scene.kubectl(&["delete", "resourcequota", "tight", "-n", namespace])?;
    scene.await_phase(&GLOBEX, "enabled", 0)
}
