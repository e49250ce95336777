//! The pages as people use them: Debian's Chromium on the edge, driven by npm's
//! `playwright-core`. What it sees is judged in `browser/*.mjs`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::client::Client;
use lab::edge::{Edge, stdout};
use lab::node::{Node, Process};
use lab::topology::{A, B, Topology, Uplink};
use lab::web::{SERVER, Scripts};
use serde_json::{Value, json};

/// Seconds that a browser may take for a script.
const TIMEOUT: u32 = 150;

/// Bytes that a picture may have in the repository.
const LARGEST_PICTURE: u64 = 150_000;

/// Organisation, id, plan, whether it is ready, and what it may reach.
type Seat = (&'static str, &'static str, &'static str, bool, &'static str);

const ACME: Seat = (
    A.organisation,
    "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "business",
    true,
    A.network,
);
const GLOBEX: Seat = (
    B.organisation,
    "0f4e2b1a-93c8-4d6e-8a57-6b1d2c3e4f50",
    "enterprise_cloud",
    true,
    B.network,
);
const INITECH: Seat = (
    "initech",
    "5b8e0d3c-2f6a-4c1e-9d47-8a3b6c5d4e2f",
    "team",
    true,
    "10.97.3.0/24",
);
const HOOLI: Seat = (
    "hooli",
    "c2a4f6e8-1b3d-4f5a-8c7e-9d0b2a4c6e81",
    "business",
    false,
    "10.97.4.0/24",
);

/// An edge with tenants in different states of life.
struct World {
    edge: Edge,
    scripts: Scripts,
    tokens: Value,
    _provider: Option<Process>,
    topology: Topology,
}

impl World {
    fn new() -> Result<Self> {
        Self::start(false)
    }

    /// With the provider, if that is to answer.
    fn start(provider: bool) -> Result<Self> {
        let topology = Topology::new(Uplink::Veth)?;
        let node = &topology.edge;
        let scripts = Scripts::on(node)?;
        let provider = provider.then(|| scripts.provider()).transpose()?;
        let edge = Edge::start(&topology, Uplink::Veth, &scripts.sign_in_options())?;
        for seat in [ACME, GLOBEX, INITECH, HOOLI] {
            create(&edge, &seat)?;
        }
        let mut tokens = json!({ "admin": edge.token() });
        for (organisation, ..) in [ACME, GLOBEX, INITECH, HOOLI] {
            tokens[organisation] = edge.member_token(organisation)?.into();
        }
        Ok(Self {
            tokens,
            _provider: provider,
            scripts,
            topology,
            edge,
        })
    }

    fn node(&self) -> &Node {
        &self.topology.edge
    }

    /// Runs a script, which fails with what is wrong.
    fn browse(&self, script: &str) -> Result<()> {
        let ids: Value = [ACME, GLOBEX, INITECH, HOOLI]
            .iter()
            .map(|(organisation, id, ..)| (organisation.to_string(), json!(id)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let known = json!({
            "server": SERVER,
            "tokens": self.tokens,
            "ids": ids,
            "client": A.client,
            "folder": self.node().folder.join("pictures"),
        });
        let node = self.scripts.command(script, &[&known.to_string()]);
        let mut bounded = self.node().command("timeout");
        bounded
            .arg("--kill-after=5")
            .arg(TIMEOUT.to_string())
            .arg(node.get_program())
            .args(node.get_args())
            .envs(
                node.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        let said = stdout(self.node().output(bounded)?);
        said.with_context(|| format!("{script}.mjs; the daemon says:\n{}", self.edge.log()))?;
        Ok(())
    }
}

fn create(edge: &Edge, (organisation, id, plan, ready, network): &Seat) -> Result<()> {
    let namespace = format!("kovra-{organisation}");
    let mut arguments = vec!["create", "--id", id, "--organisation", organisation];
    arguments.extend([
        "--namespace",
        &namespace,
        "--plan",
        plan,
        "--network",
        network,
    ]);
    if *ready {
        arguments.push("--ready");
    }
    edge.tenant(&arguments).map(drop)
}

#[test]
fn people_sign_in_by_token_and_by_provider_and_out() -> Result<()> {
    World::start(true)?.browse("signing")
}

#[test]
fn a_member_takes_the_vpn_through_its_life() -> Result<()> {
    World::new()?.browse("life")
}

#[test]
fn the_live_session_is_followed() -> Result<()> {
    let world = World::new()?;
    world.edge.tenant(&["enable", ACME.1])?;
    world.edge.await_state(ACME.1, "enabled")?;
    let configuration = world.edge.configuration(ACME.1)?;
    let laptop = world.topology.client_a.clone();
    let [looked, connected] =
        ["looked", "connected"].map(|what| world.node().folder.join(format!("pictures-{what}")));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<Client> {
            let start = Instant::now();
            while !looked.exists() {
                ensure!(start.elapsed() < Duration::from_secs(60), "nobody looks");
                std::thread::sleep(Duration::from_millis(100));
            }
            std::fs::write(&connected, "")?;
            let client = Client::up(&laptop, &configuration)?;
            client.await_reach(A.server)?;
            Ok(client)
        });
        let seen = world.browse("session");
        let _client = client.join().expect("no panic")?;
        seen
    })
}

#[test]
fn members_bring_keys_of_their_own() -> Result<()> {
    World::new()?.browse("own_key")
}

#[test]
fn each_state_says_what_it_means_and_what_to_do() -> Result<()> {
    World::new()?.browse("states")
}

#[test]
fn all_of_it_works_without_a_script() -> Result<()> {
    World::new()?.browse("no_script")
}

#[test]
fn members_see_their_own_tenants_and_admins_all() -> Result<()> {
    let world = World::new()?;
    world.edge.tenant(&["enable", ACME.1])?;
    world.browse("seeing")
}

#[test]
fn every_page_is_accessible_at_every_width_in_both_schemes() -> Result<()> {
    let world = World::new()?;
    world.edge.tenant(&["enable", ACME.1])?;
    let own = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    world
        .edge
        .tenant(&["enable", GLOBEX.1, "--public-key", own])?;
    world.browse("every_page")
}

/// Kept where `VPN_EDGE_SCREENSHOTS` says.
#[test]
fn pictures() -> Result<()> {
    let world = World::new()?;
    let more: [Seat; 4] = [
        (
            "monarch",
            "91f0b7d2-6c3e-4a58-b1d9-2e4f6a8c0b13",
            "business",
            true,
            "10.97.5.0/24",
        ),
        (
            "piedpiper",
            "3d6a9c1f-8e2b-4570-a4c6-7f1e5b9d3a28",
            "business",
            true,
            "10.97.6.0/24",
        ),
        (
            "stark",
            "e85c2b4d-0f7a-49e3-8d16-b3a7c9f5e142",
            "enterprise_cloud",
            true,
            "10.97.7.0/24",
        ),
        (
            "vandelay",
            "4b1d7e9a-5c3f-4826-9e0b-d6f8a2c4b757",
            "developer",
            true,
            "10.97.8.0/24",
        ),
    ];
    for seat in &more {
        create(&world.edge, seat)?;
    }
    for (_, id, ..) in [ACME, GLOBEX, more[0], more[2]] {
        world.edge.tenant(&["enable", id])?;
    }
    let folder = world.node().folder.join("pictures");
    std::fs::create_dir(&folder)?;
    world.browse("pictures")?;
    let kept = std::env::var_os("VPN_EDGE_SCREENSHOTS");
    let mut count = 0;
    for file in std::fs::read_dir(&folder)? {
        let file = file?;
        let size = file.metadata()?.len();
        let name = file.file_name();
        ensure!(size < LARGEST_PICTURE, "{}: {size} bytes", name.display());
        if let Some(kept) = kept.as_deref().map(Path::new) {
            std::fs::create_dir_all(kept)?;
            std::fs::copy(file.path(), kept.join(name))?;
        }
        count += 1;
    }
    if count == 0 {
        bail!("no picture was taken");
    }
    Ok(())
}
