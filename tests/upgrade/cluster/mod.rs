//! The controller over what an earlier version's left in a cluster.

pub mod scene;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fixture::{each, ensure_audit, ensure_still};
use scene::{Scene, TENANTS};

/// Versions whose gateways get other pods by this build, on purpose, and why.
/// An entry goes with one in the changelog, under the version that did it: the
/// sessions of all clients start anew over it.
const ROLLS: [(&str, &str); 0] = [];

/// An object's kind, namespace and name.
type Name = [String; 3];

fn name(object: &Value) -> Name {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    [
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    ]
}

fn by_name(objects: Vec<Value>) -> BTreeMap<Name, Value> {
    let named = objects.into_iter().map(|object| (name(&object), object));
    named.collect()
}

/// An object but for its place in etcd, which changes with its encoding.
fn stored(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"].take();
    object
}

/// What of a VpnTenant's status is to be as it was: all but reasons, messages and
/// when they were written. There may be new conditions. While gateways get other
/// pods, phases and conditions change.
fn status(tenant: &Value, rolls: bool) -> Value {
    let mut status = tenant["status"].clone();
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let conditions = conditions.into_iter().map(|condition| {
        let kind = condition["type"].as_str().unwrap_or_default().to_owned();
        (kind, condition["status"].clone())
    });
    status["conditions"] = Value::Object(conditions.collect());
    if let Some(status) = status.as_object_mut() {
        status.remove("reason");
        if rolls {
            for field in ["phase", "since", "conditions"] {
                status.remove(field);
            }
        }
    }
    status
}

/// The namespaces' pods, by name and uid.
fn pods(objects: &BTreeMap<Name, Value>) -> BTreeMap<String, (String, String)> {
    let pods = objects.iter().filter(|([kind, ..], _)| kind == "Pod");
    pods.map(|([_, namespace, name], pod)| {
        let uid = pod["metadata"]["uid"].to_string();
        (namespace.clone(), (name.clone(), uid))
    })
    .collect()
}

/// Sees that every gateway has the pod that it had or, where it is to, another.
fn ensure_pods(scene: &Scene, before: &BTreeMap<Name, Value>, rolls: bool) -> Result<()> {
    let before = pods(before);
    ensure!(!before.is_empty(), "the fixture has no pods");
    if !rolls {
        let now = pods(&by_name(scene.objects()?));
        ensure!(
            before == now,
            "gateways have other pods: {before:?} {now:?}; if that has to be, say so in ROLLS and in the changelog"
        );
        return Ok(());
    }
    // One after the other.
    scene.cluster.eventually("other pods", async || {
        let now = pods(&by_name(scene.objects()?));
        for (namespace, pod) in &before {
            let now = now.get(namespace);
            ensure!(now.is_some() && now != Some(pod), "{namespace} has {now:?}");
        }
        Ok(Some(()))
    })
}

#[test]
fn tenants_keep_ports_keys_and_gateways_under_a_new_controller() -> Result<()> {
    each(|fixture| {
        let objects: Vec<Value> = fixture.json("cluster/objects.json")?;
        let mut scene = Scene::restored(fixture, &objects)?;
        let before = by_name(objects);
        scene.lead()?;
        scene.await_looked()?;

        let rolls = ROLLS.iter().any(|(from, _)| *from == fixture.version);
        ensure_pods(&scene, &before, rolls)?;
        let now = by_name(scene.objects()?);
        for (name, object) in &before {
            let [kind, _, called] = name;
            if kind == "Pod" || kind == "ReplicaSet" {
                continue;
            }
            let now = now.get(name).with_context(|| format!("{name:?} is gone"))?;
            match kind.as_str() {
                "VpnTenant" => {
                    ensure_still(&object["spec"], &now["spec"])?;
                    ensure_still(&status(object, rolls), &status(now, rolls))?;
                }
                // Its generation also counts annotations, which replace no pod.
                "Deployment" if !rolls => ensure!(
                    now["spec"] == object["spec"],
                    "{name:?} was {object} and is {now}"
                ),
                // Also their owners of fields, which have times.
                "Secret" | "Service" if !rolls || called == "vpn-edge-keys" => ensure!(
                    stored(object) == stored(now),
                    "{name:?} was {object} and is {now}"
                ),
                _ => {}
            }
        }

        for tenant in TENANTS.iter().filter(|tenant| tenant.connects) {
            let configuration = scene.vpn_edge(&["tenant", "config", tenant.id])?;
            let file = fixture.text(&format!("clients/cluster-{}.conf", tenant.name))?;
            ensure!(
                configuration == file,
                "was\n{file}\nand is\n{configuration}"
            );
        }
        let list = ["audit", "--output", "json", "--limit", "1000"];
        let audit = serde_json::from_str(&scene.vpn_edge(&list)?)?;
        ensure_audit(&fixture.json("cluster/audit.json")?, &audit)?;

        // Nobody who comes now gets a port that is held.
        let ports = |objects: &BTreeMap<Name, Value>| {
            let services = objects.iter().filter(|([kind, ..], _)| kind == "Service");
            services
                .map(|(_, service)| service["spec"]["ports"][0]["nodePort"].to_string())
                .collect::<Vec<_>>()
        };
        let port = scene.newcomer()?;
        ensure!(
            !ports(&before).contains(&port.to_string()),
            "{port} is held"
        );
        Ok(())
    })
}
