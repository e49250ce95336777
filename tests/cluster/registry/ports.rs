use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::*;

/// A Service of somebody's own that has this port of the nodes.
fn hand_made(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: default}}\n\
         spec: {{type: NodePort, ports: [{{port: 80, nodePort: {port}}}]}}\n"
    )
}

#[test]
fn two_registries_at_once_give_each_port_once() -> Result<()> {
    let scene = Scene::new()?;
    let pool = "vpn.example.com=30000-30029";
    let registries = [scene.registry(pool)?, scene.registry(pool)?];
    let all: Vec<Tenant> = (1..=40)
        .map(|n| tenant(n, &format!("t-{n}")))
        .collect::<Result<_>>()?;
    let outcomes = scene.cluster.run(async {
        for tenant in &all {
            namespace(scene.client(), &tenant.namespace).await?;
            registries[0].create(tenant.clone()).await?;
        }
        let known = async || Ok((registries[1].list().await?.len() == 40).then_some(()));
        eventually("both know all tenants", known).await?;
        // Each tenant is asked for by both at once.
        let mut asked = tokio::task::JoinSet::new();
        for registry in &registries {
            for tenant in &all {
                let (registry, id) = (Arc::clone(registry), tenant.id);
                asked.spawn(async move { (id, enable(&registry, id).await) });
            }
        }
        anyhow::Ok(asked.join_all().await)
    })?;
    let mut ports = BTreeSet::new();
    let mut enabled = BTreeMap::new();
    let mut none_left = BTreeSet::new();
    for (id, outcome) in &outcomes {
        match outcome {
            Ok(tenant) => {
                // Both may be told of the one outcome.
                let outcome = (port(tenant).context("a port")?, tenant.vpn.generation);
                let other = enabled.insert(*id, outcome);
                ensure!(
                    other.is_none_or(|other| other == outcome),
                    "{id} was enabled twice: {other:?} {outcome:?}"
                );
                ensure!(ports.insert(outcome.0) || other.is_some(), "a port twice");
            }
            Err(UpdateError::Refused(VpnError::NoPortsAvailable)) => {
                none_left.insert(*id);
            }
            Err(UpdateError::Refused(VpnError::BeingEnabled)) => {}
            Err(error) => anyhow::bail!("{id}: {error:?}"),
        }
    }
    ensure!(ports == (30000..=30029).collect(), "{ports:?}");
    ensure!(
        none_left
            .iter()
            .filter(|id| !enabled.contains_key(*id))
            .count()
            == 10,
        "{none_left:?}"
    );
    // What the cluster holds is what was said.
    for tenant in &all {
        let secret = scene.secret(&tenant.namespace)?;
        let stored = secret.and_then(|secret| text(&secret, "port"));
        let said = outcomes.iter().find_map(|(id, outcome)| {
            let tenant = outcome.as_ref().ok().filter(|_| *id == tenant.id)?;
            Some(port(tenant)?.to_string())
        });
        ensure!(stored == said, "{}: {stored:?} {said:?}", tenant.namespace);
        if let Some(stored) = stored {
            let service = scene.service(&tenant.namespace)?.context("a service")?;
            ensure!(node_port(&service).map(|port| port.to_string()) == Some(stored));
        }
    }
    Ok(())
}

#[test]
fn a_port_that_is_somebody_elses_is_not_given_out() -> Result<()> {
    let scene = Scene::new()?;
    for n in 1..=3 {
        scene.namespace(&format!("t-{n}"))?;
    }
    let registry = scene.registry("vpn.example.com=30000-30001")?;
    let follower = scene.follow(&registry);
    scene.apply(&hand_made(30000))?;
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    let first = scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    ensure!(first.port == Some(30001), "{first:?}");
    scene.apply(&yaml(2, "t-2", "enabled: true"))?;
    scene.status("t-2", |status| {
        is(status, "PortAllocated", "NoPortsAvailable")
    })?;
    // As soon as it is free, it is the waiting one's.
    scene.kubectl(&["delete", "service", "own"])?;
    let second = scene.status("t-2", |status| status.phase == Some(State::Enabling))?;
    ensure!(second.port == Some(30000), "{second:?}");

    // A pool that shrinks takes no port away, and one that grows gives more.
    drop(follower);
    drop(registry);
    let registry = scene.registry("other.example.com=30001-30001")?;
    let follower = scene.follow(&registry);
    scene.apply(&yaml(3, "t-3", "enabled: true"))?;
    scene.status("t-3", |status| {
        is(status, "PortAllocated", "NoPortsAvailable")
    })?;
    let kept = scene.status("t-2", |status| status.phase == Some(State::Enabling))?;
    ensure!(kept.port == Some(30000), "{kept:?}");
    ensure!(
        kept.endpoint.as_deref() == Some("vpn.example.com:30000"),
        "{kept:?}"
    );
    let moved =
        |status: &VpnTenantStatus| status.endpoint.as_deref() == Some("other.example.com:30001");
    scene.status("t-1", moved)?;
    drop(follower);
    drop(registry);
    let registry = scene.registry("vpn.example.com=30000-30002")?;
    let follower = scene.follow(&registry);
    let third = scene.status("t-3", |status| status.phase == Some(State::Enabling))?;
    ensure!(third.port == Some(30002), "{third:?}");

    // A port that was lost to somebody is not fought over.
    scene.remove_gateway("t-3")?;
    scene.apply(&hand_made(30002))?;
    drop(follower);
    drop(registry);
    let registry = scene.registry("vpn.example.com=30000-30003")?;
    let _follower = scene.follow(&registry);
    let again = scene.status("t-3", |status| status.port == Some(30003))?;
    ensure!(again.generation > third.generation, "{again:?}");
    ensure!(again.phase == Some(State::Enabling), "{again:?}");
    Ok(())
}
