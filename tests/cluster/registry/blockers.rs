//! What the API server refuses, as whoever asked for it sees it.

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::{Event, ResourceQuota};
use kube::ResourceExt as _;
use kube::api::ListParams;
use vpn_edge::registry::RegistryError;

use super::*;

const POOL: &str = "vpn.example.com=30000-30009";

/// A policy of the cluster's that lets nobody keep keys in namespaces that are
/// labelled `keys=none`.
const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-keys}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {keys: none}}
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [secrets]}]
  validations: [{expression: "object.metadata.name != 'vpn-edge-keys'", message: keys belong in the vault}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-keys}
spec: {policyName: no-keys, validationActions: [Deny]}
"#;

/// The events of a VpnTenant, as reason and note.
fn events(scene: &Scene, namespace: &str) -> Result<Vec<(String, String)>> {
    let events: Api<Event> = Api::namespaced(scene.client(), namespace);
    let list = scene.cluster.run(events.list(&ListParams::default()))?;
    let told = list.items.into_iter().map(|event| {
        let note = event.message.unwrap_or_default();
        (event.reason.unwrap_or_default(), note)
    });
    Ok(told.collect())
}

/// Waits for an event of this reason whose note has these words, and sees that
/// there is one.
fn one_event(scene: &Scene, namespace: &str, reason: &str, words: &str) -> Result<()> {
    let ours = || -> Result<usize> {
        let told = events(scene, namespace)?.into_iter();
        Ok(told
            .filter(|(of, note)| of == reason && note.contains(words))
            .count())
    };
    let list: Api<Event> = Api::namespaced(scene.client(), namespace);
    scene.eventually("an event", async || {
        let told = list.list(&ListParams::default()).await?.items;
        let found = told.iter().any(|event| {
            event.reason.as_deref() == Some(reason)
                && event
                    .message
                    .as_ref()
                    .is_some_and(|note| note.contains(words))
        });
        Ok(found.then_some(()))
    })?;
    let count = ours()?;
    ensure!(
        count == 1,
        "{count} events: {:?}",
        events(scene, namespace)?
    );
    Ok(())
}

/// Waits until a tenant is refused in these words, and says so everywhere.
fn await_refusal(scene: &Scene, namespace: &str, words: &str) -> Result<()> {
    let said = |status: &VpnTenantStatus, type_: &str| {
        let mut conditions = status.conditions.iter();
        conditions.any(|condition| {
            condition.type_ == type_
                && condition.status == "False"
                && condition.reason == "ApplyFailed"
                && condition.message.starts_with("the cluster refuses it: ")
                && condition.message.contains(words)
        })
    };
    let status = scene.status(namespace, |status| {
        said(status, "Ready") && said(status, "PortAllocated")
    })?;
    ensure!(said(&status, "GatewayReady"), "{status:?}");
    let listed = scene.kubectl(&["get", "vpntenants", "-n", namespace])?;
    ensure!(listed.contains(words), "{listed}");
    one_event(scene, namespace, "ApplyFailed", words)
}

/// Waits until a tenant has what it asked for.
fn await_enabling(scene: &Scene, namespace: &str) -> Result<()> {
    let status = scene.status(namespace, |status| status.phase == Some(State::Enabling))?;
    ensure!(is(&status, "PortAllocated", "Allocated"), "{status:?}");
    ensure!(is(&status, "Ready", "Starting"), "{status:?}");
    ensure!(status.reason.is_none(), "{status:?}");
    Ok(())
}

#[test]
fn a_policy_that_refuses_keys_is_told_of_and_tried_again_with_pauses() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    scene.kubectl(&["label", "namespace", "t-1", "keys=none"])?;
    scene.apply(POLICY)?;
    let words = "keys belong in the vault";
    // It is in force a little later.
    let secrets: Api<Secret> = Api::namespaced(scene.client(), "t-1");
    scene.eventually("the policy is in force", async || {
        let secret = from_value(json!({ "metadata": { "name": "vpn-edge-keys" } }))?;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match secrets.create(&params, &secret).await {
            Err(error) if error.to_string().contains(words) => Ok(Some(())),
            other => bail!("{other:?}"),
        }
    })?;
    let registry = scene.registry(POOL)?;

    // Who calls is told, and what they asked for stays asked for.
    let id = scene.cluster.run(registry.create(tenant(1, "t-1")?))?.id;
    let refused = scene.cluster.run(enable(&registry, id));
    let Err(UpdateError::Registry(RegistryError::Refused(told))) = &refused else {
        bail!("{refused:?}");
    };
    ensure!(told.contains(words), "{told}");
    let claim = scene.service("t-1")?.context("its port is claimed")?;
    let _follower = scene.follow(&registry);
    await_refusal(&scene, "t-1", words)?;

    // Its own steps are no news that would have it try again at once.
    let tenants: Api<VpnTenant> = Api::namespaced(scene.client(), "t-1");
    let before = scene.cluster.run(tenants.get(TENANT))?;
    let others = ["t-2", "t-3", "t-4"];
    for (number, namespace) in (2..).zip(others) {
        scene.namespace(namespace)?;
        scene.apply(&yaml(number, namespace, "enabled: true"))?;
        await_enabling(&scene, namespace)?;
    }
    let after = scene.cluster.run(tenants.get(TENANT))?;
    ensure!(
        before.resource_version() == after.resource_version(),
        "{after:?}"
    );
    let again = scene.service("t-1")?.context("its port is claimed")?;
    ensure!(
        claim.resource_version() == again.resource_version(),
        "{again:?}"
    );
    one_event(&scene, "t-1", "ApplyFailed", words)?;

    scene.kubectl(&["delete", "validatingadmissionpolicybinding", "no-keys"])?;
    await_enabling(&scene, "t-1")
}

fn await_quota(scene: &Scene, namespace: &str, name: &str) -> Result<()> {
    let quotas: Api<ResourceQuota> = Api::namespaced(scene.client(), namespace);
    scene.eventually("a quota in force", async || {
        let status = quotas.get(name).await?.status;
        Ok(status.filter(|status| status.hard.is_some()).map(drop))
    })
}

#[test]
fn a_quota_is_told_of_until_there_is_room() -> Result<()> {
    let scene = Scene::new()?;
    for (number, namespace, what) in [
        (1, "t-1", "count/secrets"),
        (2, "t-2", "services.nodeports"),
    ] {
        scene.namespace(namespace)?;
        scene.apply(&format!(
            "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: tight, namespace: {namespace}}}\n\
             spec: {{hard: {{{what}: '0'}}}}\n"
        ))?;
        await_quota(&scene, namespace, "tight")?;
        scene.apply(&yaml(number, namespace, "enabled: true"))?;
    }
    let registry = scene.registry(POOL)?;
    let _follower = scene.follow(&registry);
    for namespace in ["t-1", "t-2"] {
        await_refusal(&scene, namespace, "exceeded quota: tight")?;
    }
    // Other words are another event.
    scene.apply(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: other, namespace: t-1}\n\
         spec: {hard: {count/secrets: '0'}}\n",
    )?;
    await_quota(&scene, "t-1", "other")?;
    scene.kubectl(&["delete", "resourcequota", "tight", "-n", "t-1"])?;
    await_refusal(&scene, "t-1", "exceeded quota: other")?;
    for (namespace, name) in [("t-1", "other"), ("t-2", "tight")] {
        scene.kubectl(&["delete", "resourcequota", name, "-n", namespace])?;
        await_enabling(&scene, namespace)?;
    }
    Ok(())
}

#[test]
fn a_pool_outside_the_clusters_ports_is_reported_until_it_is_corrected() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    let registry = scene.registry("vpn.example.com=40000-40009")?;
    let follower = scene.follow(&registry);
    let words = "The range of valid ports is 30000-32767";
    await_refusal(&scene, "t-1", words)?;
    drop((follower, registry));
    let registry = scene.registry(POOL)?;
    let _follower = scene.follow(&registry);
    await_enabling(&scene, "t-1")
}

#[test]
fn a_new_leader_tells_nothing_twice() -> Result<()> {
    let scene = Scene::new()?;
    let all = ["t-1", "t-2", "t-3", "t-4"];
    for namespace in all {
        scene.namespace(namespace)?;
    }
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    let pool = "vpn.example.com=30000-30001";
    let registry = scene.registry(pool)?;
    let follower = scene.follow(&registry);
    // Of all kinds: one that is enabled, one whose gateway is awaited, one
    // that waits for a port, one of a taken id.
    scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    scene.cluster.run(serve(&registry, Uuid::from_u128(1)))?;
    for (number, namespace) in [(2, "t-2"), (3, "t-3"), (1, "t-4")] {
        scene.apply(&yaml(number, namespace, "enabled: true"))?;
        if namespace == "t-2" {
            scene.status("t-2", |status| status.phase == Some(State::Enabling))?;
        }
    }
    let expected = [
        ("t-1", "Enabled"),
        ("t-2", "Enabling"),
        ("t-3", "NoPortsAvailable"),
        ("t-4", "DuplicateId"),
    ];
    for (namespace, reason) in expected {
        one_event(&scene, namespace, reason, "")?;
    }
    let told = || {
        let told = all.iter().map(|namespace| events(&scene, namespace));
        told.collect::<Result<Vec<_>>>()
    };
    let before = told()?;
    drop((follower, registry));

    let registry = scene.registry(pool)?;
    let _follower = scene.follow(&registry);
    // It is at work, and has looked at the others before.
    scene.namespace("t-5")?;
    scene.apply(&yaml(2, "t-5", "enabled: true"))?;
    one_event(&scene, "t-5", "DuplicateId", "")?;
    ensure!(before == told()?, "{before:?}\n{:?}", told()?);
    Ok(())
}
