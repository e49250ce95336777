//! What somebody with the role `edit` in a tenant's namespace can do.

use std::collections::BTreeSet;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use lab::cluster::Identity;

use super::*;

/// A user with `edit` in the namespace and no other right.
fn editor(scene: &Scene, namespace: &str) -> Result<Client> {
    scene.apply(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\n\
         metadata: {{name: editor, namespace: {namespace}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}}\n\
         subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: editor}}]\n"
    ))?;
    let client = scene.cluster.client_as(Identity::User {
        name: "editor",
        group: None,
    })?;
    // The role is put together by a controller.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let may = async || Ok(secrets.list(&ListParams::default()).await.ok());
    scene.eventually("the role", may)?;
    Ok(client)
}

/// Every port that a status in the namespace ever named.
#[derive(Clone, Default)]
struct Published(Arc<Mutex<BTreeSet<u16>>>);

impl Published {
    fn follow(scene: &Scene, namespace: &str) -> (Self, Follower) {
        let published = Self::default();
        let tenants: Api<VpnTenant> = Api::namespaced(scene.client(), namespace);
        let seen = published.clone();
        let follow = async move {
            let mut events = watcher(tenants, watcher::Config::default()).boxed();
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(tenant) | Event::InitApply(tenant)) = event {
                    let port = tenant.status.and_then(|status| status.port);
                    seen.0.lock().expect("no panic").extend(port);
                }
            }
        };
        let start = async { Follower(tokio::spawn(follow)) };
        (published, scene.cluster.run(start))
    }

    fn ports(&self) -> BTreeSet<u16> {
        self.0.lock().expect("no panic").clone()
    }
}

/// Writes into the keys Secret.
fn forge(scene: &Scene, client: &Client, namespace: &str, name: &str, value: &str) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let value = ByteString(value.as_bytes().to_vec());
    let patch = Patch::Merge(json!({ "data": { name: value } }));
    let params = PatchParams::default();
    let patched = secrets.patch(KEYS, &params, &patch);
    scene.cluster.run(patched)?;
    Ok(())
}

#[test]
fn a_forged_port_is_never_published() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    scene.namespace("t-2")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let _follower = scene.follow(&registry);
    for number in 1..=2 {
        scene.apply(&yaml(number, &format!("t-{number}"), "enabled: true"))?;
    }
    let enabling = |status: &VpnTenantStatus| status.phase == Some(State::Enabling);
    let own = scene.status("t-1", enabling)?.port.context("a port")?;
    let victims = scene.status("t-2", enabling)?;
    let victims_port = victims.port.context("a port")?;
    let editor = editor(&scene, "t-1")?;
    let (published, _watch) = Published::follow(&scene, "t-1");

    // VXLAN of Flannel and Cilium, VXLAN of Calico, and another tenant's.
    for port in [8472, 4789, victims_port] {
        let before = scene.status("t-1", enabling)?.generation;
        forge(&scene, &editor, "t-1", "port", &port.to_string())?;
        // Back to what the Service holds.
        scene.status("t-1", |status| {
            status.generation > before && status.port == Some(own)
        })?;
        let secret = scene.secret("t-1")?.context("keys")?;
        ensure!(text(&secret, "port") == Some(own.to_string()), "{port}");
    }

    // A port of the pool that nobody holds, before the gateway's Service takes it.
    let free = (30_000..=30_009).find(|port| ![own, victims_port].contains(port));
    let free = free.context("a free port")?;
    forge(&scene, &editor, "t-1", "port", &free.to_string())?;
    let waits = scene.status("t-1", |status| is(status, "PortAllocated", "NotReserved"))?;
    ensure!(
        waits.port.is_none() && waits.endpoint.is_none(),
        "{waits:?}"
    );
    forge(&scene, &editor, "t-1", "port", &own.to_string())?;
    scene.status("t-1", |status| status.port == Some(own))?;

    let ports = published.ports();
    ensure!(ports == [own].into(), "{ports:?}");
    let now = scene.status("t-2", enabling)?;
    ensure!(
        now.port == victims.port && now.generation == victims.generation,
        "{now:?}"
    );
    Ok(())
}

#[test]
fn a_generation_that_is_none_leaves_the_status_to_be_written() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let _follower = scene.follow(&registry);
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    let enabling = |status: &VpnTenantStatus| status.phase == Some(State::Enabling);
    let mut before = scene.status("t-1", enabling)?.generation;
    let editor = editor(&scene, "t-1")?;
    let far = [u64::MAX, i64::MAX as u64, i64::MAX as u64 + 1].map(|number| number.to_string());
    for generation in far.iter().map(String::as_str).chain(["-1", "none", ""]) {
        forge(&scene, &editor, "t-1", "generation", generation)?;
        // It has other keys then, and goes on from where it was.
        let now = scene.status("t-1", |status| {
            status.phase == Some(State::Enabling) && status.generation > before
        })?;
        ensure!(now.generation < before + 10, "{generation}: {now:?}");
        before = now.generation;
    }
    Ok(())
}

#[test]
fn the_names_of_keys_and_gateways_are_the_controllers() -> Result<()> {
    let scene = Scene::new()?;
    scene.cluster.install()?;
    scene.namespace("t-1")?;
    let controller = scene.cluster.client_as(Identity::ServiceAccount {
        namespace: "vpn-edge-system",
        name: "vpn-edge-controller",
    })?;
    let registry = scene.registry_as(controller, "vpn.example.com=30000-30009")?;
    let _follower = scene.follow(&registry);
    let editor = editor(&scene, "t-1")?;
    let secrets: Api<Secret> = Api::namespaced(editor.clone(), "t-1");
    let services: Api<Service> = Api::namespaced(editor, "t-1");
    let refused = |outcome: kube::Result<()>, what: &str| match outcome {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let words = "are written by the vpn-edge controller alone";
            ensure!(status.message.contains(words), "{what}: {status:?}");
            Ok(())
        }
        other => anyhow::bail!("{what}: {other:?}"),
    };
    let post = PostParams::default();
    let secret = |name: &str| from_value::<Secret>(json!({ "metadata": { "name": name } }));
    let service = |name: &str, port: u16| {
        from_value::<Service>(json!({
            "metadata": { "name": name },
            "spec": { "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] },
        }))
    };
    let try_create = |what: &str| -> Result<()> {
        for name in [KEYS, GATEWAY] {
            let made = scene.cluster.run(secrets.create(&post, &secret(name)?));
            refused(made.map(drop), &format!("{what}: create the Secret {name}"))?;
        }
        let own = service(GATEWAY, 30_007)?;
        let made = services.create(&post, &own);
        refused(
            scene.cluster.run(made).map(drop),
            &format!("{what}: create the Service"),
        )
    };
    // The API server takes a moment to load a policy.
    let trial = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    scene.cluster.eventually("the policy", async || {
        let made = secrets.create(&trial, &secret(KEYS)?).await;
        refused(made.map(drop), "try").map(Some)
    })?;
    try_create("before there is a tenant")?;

    // The controller's account may, and goes on with its work.
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    let id = Uuid::from_u128(1);
    let enabling = |status: &VpnTenantStatus| status.phase == Some(State::Enabling);
    scene.status("t-1", enabling)?;
    scene.cluster.run(serve(&registry, id))?;
    scene.cluster.run(regenerate(&registry, id))?;

    let patch = Patch::Merge(json!({ "metadata": { "labels": { "mine": "yes" } } }));
    let params = PatchParams::default();
    let run = |outcome, what: &str| refused(outcome, what);
    let patched = scene.cluster.run(secrets.patch(KEYS, &params, &patch));
    run(patched.map(drop), "patch the Secret")?;
    let patched = scene.cluster.run(services.patch(GATEWAY, &params, &patch));
    run(patched.map(drop), "patch the Service")?;
    let delete = DeleteParams::default();
    let deleted = scene.cluster.run(secrets.delete(KEYS, &delete));
    run(deleted.map(drop), "delete the Secret")?;
    let deleted = scene.cluster.run(services.delete(GATEWAY, &delete));
    run(deleted.map(drop), "delete the Service")?;
    let any = ListParams::default();
    let all = secrets.delete_collection(&delete, &any);
    run(scene.cluster.run(all).map(drop), "delete all Secrets")?;

    // Other names are the editor's own, and who administers the cluster may all.
    scene.cluster.run(secrets.create(&post, &secret("own")?))?;
    scene
        .cluster
        .run(services.create(&post, &service("own", 30_008)?))?;
    let admins: Api<Secret> = Api::namespaced(scene.client(), "t-1");
    scene.cluster.run(admins.patch(KEYS, &params, &patch))?;

    scene.cluster.run(serve(&registry, id))?;
    let disabled = scene.cluster.run(disable(&registry, id))?;
    ensure!(disabled.vpn.state == State::Disabled, "{disabled:?}");
    scene.cluster.run(enable(&registry, id))?;
    // Kubernetes' own controllers end a namespace.
    scene.kubectl(&["delete", "namespace", "t-1", "--timeout=60s"])?;
    let tenants: Api<VpnTenant> = Api::all(scene.client());
    let left = scene.cluster.run(tenants.list(&ListParams::default()))?;
    let left: Vec<_> = left.items.iter().map(ResourceExt::name_any).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
