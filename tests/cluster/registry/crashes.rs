use anyhow::{Context, Result, ensure};
use lab::cluster::Identity;
use serde_json::Value;

use super::*;

/// What a registry may do, less one thing: there it stops, with what came
/// before stored and nothing tidied up.
fn account(scene: &Scene, name: &'static str, group: &str, lacks: &str) -> Result<Client> {
    let rule = |group: &str, resource: &str, verbs: &[&str]| -> Value {
        let verbs: Vec<_> = verbs
            .iter()
            .filter(|verb| format!("{verb} {resource}") != lacks)
            .collect();
        json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs })
    };
    let all = [
        "get", "list", "watch", "create", "update", "patch", "delete",
    ];
    let objects = json!([
        {
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": "default" },
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": name },
            "rules": [
                rule("", "services", &all),
                rule("", "secrets", &all),
                rule(group, "vpntenants", &all),
                rule(group, "vpntenants/status", &all),
                rule(group, "vpntenants/finalizers", &all),
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": "default" }],
        },
    ]);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    scene.apply(&list.to_string())?;
    let client = scene.cluster.client_as(Identity::ServiceAccount {
        namespace: "default",
        name,
    })?;
    Ok(client)
}

const POOL: &str = "vpn.example.com=30000-30009";
const GROUP: &str = "vpn-edge.dev";

/// Each stops enabling, rotating and disabling at another step.
const STOPS: [(&str, &str); 6] = [
    ("no-spec", "patch vpntenants"),
    ("no-service", "create services"),
    ("no-secret", "create secrets"),
    ("no-status", "update vpntenants/status"),
    ("no-rotation", "update secrets"),
    ("no-revocation", "delete secrets"),
];

#[test]
fn whoever_stops_between_two_steps_leaves_a_valid_state() -> Result<()> {
    let scene = Scene::new()?;
    let run = &scene.cluster;
    let admin = scene.registry(POOL)?;
    for (n, (name, lacks)) in (1..).zip(STOPS) {
        scene.namespace(name)?;
        let id = run.run(admin.create(tenant(n, name)?))?.id;
        let broken = scene.registry_as(account(&scene, name, GROUP, lacks)?, POOL)?;
        let enabled = run.run(enable(&broken, id));
        let stopped = n <= 3;
        ensure!(enabled.is_err() == stopped, "{name}: {enabled:?}");
        ensure!(scene.secret(name)?.is_some() != stopped, "{name}");
        ensure!(scene.service(name)?.is_some() == (n >= 3), "{name}");
        if n < 5 {
            continue;
        }
        run.run(serve(&broken, id))?;
        let before = run.run(broken.get(id))?.context("there")?;
        if n == 5 {
            ensure!(run.run(regenerate(&broken, id)).is_err(), "{name}");
            let after = run.run(broken.get(id))?.context("there")?;
            ensure!(
                after.vpn == before.vpn,
                "keys that are not stored are not in force"
            );
        } else {
            ensure!(run.run(disable(&broken, id)).is_err(), "{name}");
            ensure!(scene.secret(name)?.is_some());
        }
    }
    // Somebody new, who knows only what is stored.
    let fresh = scene.registry(POOL)?;
    let _follower = scene.follow(&fresh);
    let mut ports = std::collections::BTreeSet::new();
    for (n, (name, _)) in (1..).zip(STOPS) {
        let phase = match n {
            // Nothing had been asked for yet.
            1 | 6 => State::Disabled,
            5 => State::Enabled,
            _ => State::Enabling,
        };
        let status = scene.status(name, |status| status.phase == Some(phase))?;
        let tenant = run.run(fresh.get(Uuid::from_u128(n)))?.context("there")?;
        let secret = scene.secret(name)?;
        let stored = secret.as_ref().and_then(|secret| text(secret, "port"));
        ensure!(
            stored == status.port.map(|port| port.to_string()),
            "{name}: {status:?}"
        );
        ensure!(port(&tenant) == status.port, "{name}");
        if let Some(port) = status.port {
            ensure!(ports.insert(port), "{name}: {port} twice");
            let service = scene.service(name)?.context("a service")?;
            ensure!(node_port(&service) == Some(port), "{name}");
            let generation = secret.and_then(|secret| text(&secret, "generation"));
            ensure!(generation == Some(status.generation.to_string()), "{name}");
        }
    }
    Ok(())
}

#[test]
fn a_claim_that_nothing_came_of_is_given_up() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry(POOL)?;
    let id = scene.cluster.run(registry.create(tenant(1, "t-1")?))?.id;
    let broken = scene.registry_as(account(&scene, "no-secret", GROUP, "create secrets")?, POOL)?;
    ensure!(scene.cluster.run(enable(&broken, id)).is_err());
    ensure!(scene.service("t-1")?.is_some());
    scene.apply(&yaml(1, "t-1", "enabled: false"))?;
    let _follower = scene.follow(&registry);
    scene.status("t-1", |status| is(status, "Ready", "Disabled"))?;
    ensure!(
        scene.service("t-1")?.is_some(),
        "somebody may be about to use it"
    );
    let long_ago = "vpn-edge.dev/claimed=2026-01-01T00:00:00Z";
    scene.kubectl(&[
        "annotate",
        "--overwrite",
        "service",
        GATEWAY,
        "-n",
        "t-1",
        long_ago,
    ])?;
    scene.eventually("the port is free", async || {
        Ok(scene.service_async("t-1").await?.is_none().then_some(()))
    })
}
