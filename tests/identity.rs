//! Signing in with a real OpenID provider: npm's `oidc-provider`, on the edge.
//! `cargo xtask test identity` installs it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::edge::{Edge, stdout};
use lab::node::Process;
use lab::topology::{Topology, Uplink};
use lab::web::{SECRET, SERVER, Scripts};
use serde_json::{Value, json};

/// An edge with a provider beside it.
struct World {
    edge: Edge,
    scripts: Scripts,
    provider: Option<Process>,
    _topology: Topology,
}

impl World {
    fn new() -> Result<Self> {
        let topology = Topology::new(Uplink::Veth)?;
        let scripts = Scripts::on(&topology.edge)?;
        let provider = scripts.provider()?;
        let options = scripts.sign_in_options();
        let edge = Edge::start(&topology, Uplink::Veth, &options)?;
        for organisation in ["acme", "globex"] {
            let arguments = [
                "create",
                "--organisation",
                organisation,
                "--plan",
                "business",
            ];
            edge.tenant(&arguments)?;
        }
        Ok(Self {
            edge,
            scripts,
            provider: Some(provider),
            _topology: topology,
        })
    }

    /// What a browser sees that signs in as `account`.
    fn sign_in(&self, back: &str, account: &str) -> Result<Value> {
        let command = self.scripts.command("sign_in", &[SERVER, back, account]);
        let said = stdout(self.edge.node.output(command)?)?;
        serde_json::from_str(&said).with_context(|| said.clone())
    }
}

fn organisations(seen: &Value) -> Vec<&str> {
    let tenants = seen["read"][1]["tenants"].as_array();
    let mut names: Vec<&str> = tenants
        .into_iter()
        .flatten()
        .filter_map(|tenant| tenant["organisation"].as_str())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn people_sign_in_with_a_real_provider() -> Result<()> {
    let world = World::new()?;
    let seen = world.sign_in("/tenants?a=b", "ada@acme")?;
    assert_eq!(seen["url"], format!("{SERVER}/tenants?a=b"), "{seen}");
    assert_eq!(seen["cookies"], json!(["vpn-edge-session"]), "{seen}");
    assert_eq!(seen["algorithm"], "RS256");
    assert_eq!(seen["read"][0], 200);
    assert_eq!(organisations(&seen), ["acme"]);
    assert_eq!(seen["bearer"], 200);
    assert_eq!(seen["signOut"][0], 303);

    let seen = world.sign_in("/", "root")?;
    assert_eq!(organisations(&seen), ["acme", "globex"], "{seen}");

    let seen = world.sign_in("//evil.example", "nobody")?;
    assert_eq!(seen["status"], 403, "{seen}");
    assert_eq!(seen["cookies"], json!([]));
    assert_eq!(seen["read"][0], 401);
    let said = seen["body"].as_str().unwrap_or_default();
    assert!(said.contains("app.organisation"), "{said}");

    // Nothing that a sign-in is made of is in the log.
    let log = world.edge.log();
    for word in ["code=", "eyJ", SECRET, "vpn-edge-session="] {
        assert!(!log.contains(word), "{word} in {log}");
    }
    Ok(())
}

#[test]
fn a_provider_with_new_keys_and_one_that_is_away() -> Result<()> {
    let mut world = World::new()?;
    assert_eq!(world.sign_in("/", "ada@acme")?["read"][0], 200);
    drop(world.provider.take());
    world.provider = Some(world.scripts.provider()?);
    let start = Instant::now();
    // It was asked for its keys a moment ago, and is not asked again at once.
    while world.sign_in("/", "ada@acme")?["read"][0] != 200 {
        ensure!(
            start.elapsed() < Duration::from_secs(40),
            "{}",
            world.edge.log()
        );
        std::thread::sleep(Duration::from_secs(3));
    }
    drop(world.provider.take());
    let status = format!(
        "node -e \"fetch('{SERVER}/auth/login', {{redirect: 'manual'}})
            .then(answer => console.log(answer.status))\""
    );
    // What is known of it goes on being used.
    assert_eq!(world.edge.node.sh(&status)?, "303");
    assert!(world.edge.tenant(&["list"]).is_ok());
    world.edge.stop()?;
    world.edge.restart()?;
    assert_eq!(world.edge.node.sh(&status)?, "503");
    assert!(
        world.edge.tenant(&["list"]).is_ok(),
        "tokens need no issuer"
    );
    Ok(())
}
