use anyhow::{Result, ensure};

use super::*;

#[test]
fn two_of_one_id_are_told_apart_by_age() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    scene.namespace("t-2")?;
    let registry = scene.registry("vpn.example.com=30000-30009")?;
    let _follower = scene.follow(&registry);
    scene.apply(&yaml(1, "t-1", "enabled: true"))?;
    scene.status("t-1", |status| status.phase == Some(State::Enabling))?;
    scene.apply(&yaml(1, "t-2", "enabled: true"))?;
    let second = scene.status("t-2", |status| is(status, "Accepted", "DuplicateId"))?;
    ensure!(
        second.phase == Some(State::Failed) && second.port.is_none(),
        "{second:?}"
    );
    let reason = second.reason.unwrap_or_default();
    ensure!(
        reason == "the id is used by the VpnTenant in namespace t-1: choose another id",
        "{reason}"
    );
    let tenants = scene.cluster.run(registry.list())?;
    ensure!(
        tenants.len() == 1 && tenants[0].namespace == "t-1",
        "{tenants:?}"
    );
    ensure!(scene.secret("t-2")?.is_none());
    // Once the first is gone, the second is served.
    scene.kubectl(&["delete", "vpntenant", "vpn", "-n", "t-1"])?;
    let second = scene.status("t-2", |status| status.phase == Some(State::Enabling))?;
    ensure!(is(&second, "Accepted", "Accepted"), "{second:?}");
    Ok(())
}

#[test]
fn kubectl_says_what_is_wrong_with_a_vpn_tenant() -> Result<()> {
    let scene = Scene::new()?;
    scene.namespace("t-1")?;
    let good = yaml(1, "t-1", "enabled: false, keyGeneration: 2");
    scene.apply(&good)?;
    let with = |networks: &str| {
        let networks = format!("networks: [{networks}], vpn:");
        good.replace("vpn: {", &format!("{networks} {{"))
    };
    let id = Uuid::from_u128(1).to_string();
    let other = Uuid::from_u128(2).to_string();
    let table = [
        (
            good.replace(&id, &other),
            "id is immutable: create another VpnTenant",
        ),
        (
            good.replace("name: vpn,", "name: another,"),
            "a namespace has one VpnTenant, and its name is vpn",
        ),
        (
            good.replace("keyGeneration: 2", "keyGeneration: 1"),
            "keyGeneration must not decrease",
        ),
        (
            good.replace(&id, "tenant-1"),
            "spec.id in body should match",
        ),
        (
            good.replace("organisation: acme", "organisation: a cme"),
            "spec.organisation in body should match",
        ),
        (
            good.replace("plan: business", "plan: gold"),
            "supported values: \"developer\", \"team\", \"business\", \"enterprise_cloud\"",
        ),
        (
            with("10.97.1.1/24"),
            "each network is in CIDR notation with no bits set after its prefix, such as 10.97.1.0/24",
        ),
        (
            with("0.0.0.0/0"),
            "a network must not cover all addresses: list the ranges that the tenant may reach",
        ),
        (with("10.97.0.0/24, 10.97.0.0/24"), "Duplicate value"),
    ];
    for (yaml, message) in table {
        let refused = scene.apply(&yaml).expect_err(&yaml).to_string();
        ensure!(refused.contains(message), "{yaml}\n{refused}");
    }
    scene.apply(&with("10.97.1.0/24, 'fd00:97::/64'"))?;
    Ok(())
}
