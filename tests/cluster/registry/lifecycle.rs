use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use vpn_edge::registry::RegistryError;

use super::*;

#[test]
fn a_tenant_lives_through_the_registry() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let other = scene.registry("vpn.example.com=30000-30009")?;
    let run = &scene.cluster;

    let refused = run.run(registry.create(tenant(9, "nowhere")?));
    ensure!(
        matches!(&refused, Err(RegistryError::NoNamespace(name)) if name == "nowhere"),
        "{refused:?}"
    );
    let made = run.run(registry.create(tenant(1, "t-1")?))?;
    let id = made.id;
    ensure!(made.vpn.state == State::Disabled && made.ready, "{made:?}");
    ensure!(
        made.vpn.generation > 1_000_000_000_000,
        "starts at its creation, in milliseconds"
    );
    let again = run.run(registry.create(tenant(1, "default")?));
    ensure!(
        matches!(again, Err(RegistryError::AlreadyExists(_))),
        "{again:?}"
    );
    let again = run.run(registry.create(tenant(2, "t-1")?));
    ensure!(
        matches!(again, Err(RegistryError::AlreadyExists(_))),
        "{again:?}"
    );

    let enabled = run.run(enable(&registry, id))?;
    let port = port(&enabled).context("a port")?;
    ensure!(enabled.vpn.state == State::Enabling);
    ensure!(enabled.vpn.generation == made.vpn.generation + 1);
    let known = run.run(registry.get(id))?.context("there")?;
    ensure!(
        known.vpn.allocation == enabled.vpn.allocation,
        "its own write is seen at once"
    );
    let service = scene.service("t-1")?.context("a service")?;
    ensure!(node_port(&service) == Some(port), "{service:?}");
    let generation = service.labels().get(label::GENERATION);
    ensure!(
        generation == Some(&enabled.vpn.generation.to_string()),
        "{service:?}"
    );
    let secret = scene.secret("t-1")?.context("a secret")?;
    ensure!(text(&secret, "port") == Some(port.to_string()));
    let status = scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    ensure!(
        status.endpoint == Some(format!("vpn.example.com:{port}")),
        "{status:?}"
    );
    ensure!(is(&status, "GatewayReady", "Starting"), "{status:?}");
    let refused = run.run(enable(&registry, id));
    ensure!(matches!(
        refused,
        Err(UpdateError::Refused(VpnError::BeingEnabled))
    ));

    let served = run.run(serve(&registry, id))?;
    ensure!(served.vpn.state == State::Enabled);
    let status = scene.status("t-1", |status| status.phase == Some(State::Enabled))?;
    ensure!(condition(&status, "Ready") == Some((true, "Serving".to_owned())));
    scene.eventually("the other registry hears of it", async || {
        let tenant = other.get(id).await?.context("there")?;
        Ok((tenant.vpn.state == State::Enabled).then_some(()))
    })?;

    let rotated = run.run(regenerate(&other, id))?;
    ensure!(super::port(&rotated) == Some(port), "the port stays");
    ensure!(rotated.vpn.generation == enabled.vpn.generation + 1);
    let keys = |tenant: &Tenant| tenant.vpn.allocation.as_ref().map(|a| a.keys.clone());
    ensure!(keys(&rotated) != keys(&enabled));
    run.run(serve(&other, id))?;

    scene.eventually("the first one hears of it", async || {
        let tenant = registry.get(id).await?.context("there")?;
        let same = tenant.vpn.generation == rotated.vpn.generation;
        Ok((same && tenant.vpn.state == State::Enabled).then_some(()))
    })?;
    let disabled = run.run(disable(&registry, id))?;
    ensure!(disabled.vpn.allocation.is_none());
    ensure!(scene.secret("t-1")?.is_none(), "the keys are gone");
    let status = scene.status("t-1", |status| status.phase == Some(State::Disabled))?;
    ensure!(
        status.port.is_none() && status.server_public_key.is_none(),
        "{status:?}"
    );

    // Its old gateway has not been removed yet.
    let name = format!("{}=vpn-edge-gateway", label::NAME);
    scene.kubectl(&["label", "service", GATEWAY, "-n", "t-1", &name])?;
    let of = format!("vpn-edge.dev/port={port}");
    scene.kubectl(&["annotate", "service", GATEWAY, "-n", "t-1", &of])?;
    let enabled = run.run(enable(&registry, id))?;
    ensure!(
        super::port(&enabled) == Some(port),
        "it still holds the port"
    );
    ensure!(
        enabled.vpn.generation == rotated.vpn.generation + 1,
        "never back"
    );
    let service = scene.service("t-1")?.context("a service")?;
    ensure!(
        !service.labels().contains_key(label::NAME)
            && !service.annotations().contains_key("vpn-edge.dev/port"),
        "an old gateway's no more: {service:?}"
    );
    Ok(())
}

#[test]
fn a_tenant_lives_by_yaml_alone() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let follower = scene.follow(&registry);
    let id = Uuid::from_u128(1);
    let tenants: Api<VpnTenant> = Api::namespaced(scene.client(), "t-1");

    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    let first = scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    scene.cluster.run(serve(&registry, id))?;
    scene.status("t-1", |status| is(status, "Ready", "Serving"))?;

    scene.apply(&yaml(1, "t-1", "enabled: true, keyGeneration: 1"))?;
    let second = scene.status("t-1", |status| status.key_generation == 1)?;
    ensure!(second.generation == first.generation + 1, "{second:?}");
    ensure!(second.port == first.port && second.server_public_key != first.server_public_key);
    scene.cluster.run(serve(&registry, id))?;

    // Lost keys are made anew.
    let secrets: Api<Secret> = Api::namespaced(scene.client(), "t-1");
    scene
        .cluster
        .run(secrets.delete(KEYS, &DeleteParams::default()))?;
    let third = scene.status("t-1", |status| status.generation == second.generation + 1)?;
    ensure!(third.port == first.port && third.server_public_key != second.server_public_key);
    ensure!(scene.secret("t-1")?.is_some());

    scene.cluster.run(serve(&registry, id))?;
    scene.apply(&yaml(1, "t-1", "enabled: false, keyGeneration: 1"))?;
    let status = scene.status("t-1", |status| status.phase == Some(State::Disabled))?;
    ensure!(
        condition(&status, "Ready") == Some((true, "Disabled".to_owned())),
        "{status:?}"
    );
    ensure!(scene.secret("t-1")?.is_none());

    let vpn = "enabled: true, keyGeneration: 1";
    scene.apply(&yaml(1, "t-1", vpn))?;
    scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    scene.apply(&yaml(1, "t-1", vpn).replace("business", "team"))?;
    let status = scene.status("t-1", |status| status.phase == Some(State::Unavailable))?;
    ensure!(
        condition(&status, "Ready") == Some((false, "PlanWithoutVpn".to_owned())),
        "{status:?}"
    );
    scene.apply(&yaml(1, "t-1", vpn).replace("ready: true", "ready: false"))?;
    scene.status("t-1", |status| {
        is(status, "PortAllocated", "TenantNotReady")
    })?;
    scene.apply(&yaml(1, "t-1", vpn))?;
    let last = scene.status("t-1", |status| status.phase == Some(State::Enabling))?;

    let shown = scene.kubectl(&["get", "vpntenants", "-A"])?;
    ensure!(
        shown.contains("acme") && shown.contains("enabling"),
        "{shown}"
    );
    scene.eventually("events tell of it", async || {
        let shown = scene.cluster.kubectl(&["get", "events", "-n", "t-1"])?;
        let shown = String::from_utf8(shown.stdout)?;
        let told = ["Enabling", "Enabled", "Disabled", "PlanWithoutVpn"];
        Ok(told
            .iter()
            .all(|reason| shown.contains(reason))
            .then_some(()))
    })?;

    // A finalizer holds it until nothing is left.
    scene.kubectl(&["delete", "vpntenant", "vpn", "-n", "t-1", "--wait=false"])?;
    scene.eventually("it is listed no more", async || {
        Ok(registry.list().await?.is_empty().then_some(()))
    })?;
    scene.eventually("the VpnTenant goes", async || {
        Ok(tenants.get_opt(TENANT).await?.is_none().then_some(()))
    })?;
    ensure!(scene.secret("t-1")?.is_none() && scene.service("t-1")?.is_none());

    // The same once more, with a gateway that somebody else removes.
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    let again = scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    ensure!(again.generation > last.generation, "{again:?}");
    let label = format!("{}=vpn-edge-gateway", label::NAME);
    scene.kubectl(&["label", "service", GATEWAY, "-n", "t-1", &label])?;
    ensure!(scene.cluster.run(registry.delete(id))?);
    ensure!(scene.cluster.run(registry.list())?.is_empty());
    ensure!(scene.secret("t-1")?.is_none(), "the keys go at once");
    ensure!(
        scene.cluster.run(tenants.get_opt(TENANT))?.is_some(),
        "it waits for its gateway"
    );
    scene.remove_gateway("t-1")?;
    scene.eventually("the VpnTenant goes", async || {
        Ok(tenants.get_opt(TENANT).await?.is_none().then_some(()))
    })?;
    drop(follower);
    Ok(())
}

#[test]
fn what_is_seen_of_a_gateway_changes_no_spec() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let id = scene.cluster.run(registry.create(tenant(1, "t-1")?))?.id;
    scene.cluster.run(enable(&registry, id))?;
    // Off, before the gateway answers; and then it does.
    scene.apply(&yaml(1, "t-1", "enabled: false"))?;
    let served = scene.cluster.run(serve(&registry, id))?;
    ensure!(served.vpn.state == State::Enabled);
    let tenants: Api<VpnTenant> = Api::namespaced(scene.client(), "t-1");
    let enabled = async || anyhow::Ok(tenants.get(TENANT).await?.spec.vpn.enabled);
    ensure!(!scene.cluster.run(enabled())?, "it was switched on again");
    let _follower = scene.follow(&registry);
    scene.status("t-1", |status| status.phase == Some(State::Disabled))?;
    Ok(())
}

#[test]
fn a_client_brings_its_own_key_by_yaml_and_by_the_api() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let follower = scene.follow(&registry);
    let run = &scene.cluster;
    let id = Uuid::from_u128(1);
    let [first, second] = [(); 2].map(|()| own_key());
    let tenants: Api<VpnTenant> = Api::namespaced(scene.client(), "t-1");
    let wanted = || -> Result<Option<String>> {
        let tenant = run.run(tenants.get(TENANT))?;
        Ok(tenant.spec.vpn.client_public_key)
    };
    let kept = || -> Result<[Option<String>; 2]> {
        let secret = scene.secret("t-1")?.context("a secret")?;
        Ok(["clientPublicKey", "clientPrivateKey"].map(|name| text(&secret, name)))
    };
    let vpn = |key: &str| format!("enabled: true, clientPublicKey: {key:?}");

    scene.apply(&yaml(1, "t-1", &vpn(&first.to_string())))?;
    let status = scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    ensure!(
        status.client_public_key == Some(first.to_string()),
        "{status:?}"
    );
    ensure!(kept()? == [Some(first.to_string()), None]);
    run.run(serve(&registry, id))?;
    scene.status("t-1", |status| is(status, "Ready", "Serving"))?;

    // Another key means new keys at both ends, once.
    scene.apply(&yaml(1, "t-1", &vpn(&second.to_string())))?;
    let changed = scene.status("t-1", |status| {
        status.client_public_key == Some(second.to_string())
    })?;
    ensure!(changed.generation == status.generation + 1, "{changed:?}");
    ensure!(changed.port == status.port);
    ensure!(changed.server_public_key != status.server_public_key);
    ensure!(kept()? == [Some(second.to_string()), None]);
    run.run(serve(&registry, id))?;

    // By the API: the spec says it too, so that the follower leaves it be.
    for given in [Some(first), None, Some(second)] {
        let before = run.run(registry.get(id))?.context("there")?;
        let after = run.run(regenerate_for(&registry, id, given))?;
        ensure!(
            after.vpn.generation == before.vpn.generation + 1,
            "{after:?}"
        );
        let keys = &after.vpn.allocation.as_ref().context("keys")?.keys;
        ensure!(keys.client.given() == given, "{after:?}");
        ensure!(wanted()? == given.map(|key| key.to_string()));
        let [public, private] = kept()?;
        ensure!(public == given.map(|key| key.to_string()), "{public:?}");
        ensure!(private.is_none() == given.is_some());
        let served = run.run(serve(&registry, id))?;
        ensure!(served.vpn.generation == after.vpn.generation);
        scene.status("t-1", |status| {
            status.phase == Some(State::Enabled)
                && status.client_public_key == Some(keys.client.public().to_string())
        })?;
    }

    // A disabled tenant's next keys are as its spec says, and an enable's say.
    run.run(disable(&registry, id))?;
    scene.status("t-1", |status| status.phase == Some(State::Disabled))?;
    let made = run.run(enable(&registry, id))?;
    let keys = &made.vpn.allocation.as_ref().context("keys")?.keys;
    ensure!(keys.client.given().is_none() && wanted()?.is_none());
    drop(follower);

    let zero = format!("{}=", "A".repeat(43));
    for (bad, says) in [(zero.as_str(), "all zero"), ("nonsense", "should match")] {
        let refused = scene.apply(&yaml(1, "t-1", &vpn(bad)));
        let refused = refused.err().context("it was taken")?.to_string();
        ensure!(refused.contains(says), "{refused}");
    }
    Ok(())
}

#[test]
fn what_the_api_has_done_no_follower_does_again() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let _follower = scene.follow(&registry);
    let run = &scene.cluster;
    let id = Uuid::from_u128(1);
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    let start = run.run(serve(&registry, id))?.vpn.generation;
    // Each time the follower sees the spec change, as it does for anybody's change.
    for turn in 1..=20 {
        let after = run.run(regenerate_for(&registry, id, Some(own_key())))?;
        ensure!(after.vpn.generation == start + turn, "{after:?}");
        run.run(serve(&registry, id))?;
    }
    let last = run.run(registry.get(id))?.context("there")?;
    ensure!(last.vpn.generation == start + 20, "{last:?}");
    Ok(())
}

#[test]
fn of_two_keys_that_are_given_at_once_one_is_taken_and_one_refused() -> Result<()> {
    let scene = Scene::new()?;
    let registries = [
        scene.registry("vpn.example.com=30000-30009")?,
        scene.registry("vpn.example.com=30000-30009")?,
    ];
    let run = &scene.cluster;
    let being_enabled = |outcome: &Result<Tenant, UpdateError>| {
        matches!(outcome, Err(UpdateError::Refused(VpnError::BeingEnabled)))
    };
    for number in 1..=5 {
        let namespace = format!("t-{number}");
        scene.namespace(&namespace)?;
        let id = run
            .run(registries[0].create(tenant(number, &namespace)?))?
            .id;
        for registry in &registries {
            scene.eventually("both know it", async || Ok(registry.get(id).await?))?;
        }
        let keys = [(); 2].map(|()| own_key());
        let outcomes: [_; 2] = run
            .run(async {
                let [first, second] = &registries;
                tokio::join!(
                    enable_for(first, id, Some(keys[0])),
                    enable_for(second, id, Some(keys[1])),
                )
            })
            .into();
        let taken = usize::from(outcomes[0].is_err());
        let enabled = outcomes[taken].as_ref().ok().context("one is taken")?;
        let client = &enabled.vpn.allocation.as_ref().context("keys")?.keys.client;
        ensure!(client.given() == Some(keys[taken]), "{outcomes:?}");
        ensure!(being_enabled(&outcomes[1 - taken]), "{outcomes:?}");
        let secret = scene.secret(&namespace)?.context("a secret")?;
        ensure!(text(&secret, "clientPublicKey") == Some(keys[taken].to_string()));
    }

    // Nor is a key replaced that the spec asks for and nobody has carried out.
    scene.namespace("t-9")?;
    let [first, second] = [(); 2].map(|()| own_key());
    let vpn = format!("enabled: true, clientPublicKey: {:?}", first.to_string());
    scene.apply(&yaml(9, "t-9", &vpn))?;
    let (registry, id) = (&registries[0], Uuid::from_u128(9));
    scene.eventually("it is known", async || Ok(registry.get(id).await?))?;
    for other in [Some(second), None] {
        let refused = run.run(enable_for(registry, id, other));
        ensure!(being_enabled(&refused), "{refused:?}");
    }
    run.run(enable_for(registry, id, Some(first)))?;
    Ok(())
}

#[test]
fn an_older_definition_of_the_resource_refuses_a_given_key() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let run = &scene.cluster;
    let id = run.run(registry.create(tenant(1, "t-1")?))?.id;
    let vpn = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/vpn";
    let remove = format!(r#"[{{"op": "remove", "path": "{vpn}/properties/clientPublicKey"}}]"#);
    let definition = "crd/vpntenants.vpn-edge.dev";
    scene.kubectl(&["patch", definition, "--type=json", "-p", &remove])?;
    let key = own_key();
    let field = format!(r#"{{"spec": {{"vpn": {{"clientPublicKey": "{key}"}}}}}}"#);
    let dry = [
        "patch",
        "vpntenant",
        "vpn",
        "-n",
        "t-1",
        "--type=merge",
        "--dry-run=server",
    ];
    let shown = [&dry[..], &["-o=yaml", "-p", &field]].concat();
    scene.eventually("the definition holds", async || {
        let shown = scene.kubectl(&shown)?;
        Ok((!shown.contains("clientPublicKey:")).then_some(()))
    })?;

    let refused = run.run(enable_for(&registry, id, Some(key)));
    let refused = refused.err().context("it was taken")?.to_string();
    ensure!(refused.ends_with("apply the new manifests"), "{refused}");
    ensure!(scene.secret("t-1")?.is_none());
    let tenants: Api<VpnTenant> = Api::namespaced(scene.client(), "t-1");
    ensure!(!run.run(tenants.get(TENANT))?.spec.vpn.enabled);
    let made = run.run(enable(&registry, id))?;
    ensure!(made.vpn.state == State::Enabling, "{made:?}");
    Ok(())
}
