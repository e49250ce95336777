//! Generated requests at the API's own description, by PyPI's schemathesis, over
//! TLS. `cargo xtask test openapi` installs it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::edge::Edge;
use lab::topology::{A, Topology, Uplink};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

const SERVER: &str = "https://127.0.0.1:8080";

/// Other numbers ask other things.
const SEED: &str = "6";

/// Of each route.
const EXAMPLES: &str = "50";

/// Checks that are left out. The description cannot say that a network has no
/// bits set after its prefix, nor what tunnels carry: what it allows may be
/// refused. And after a few bad tokens all are a 429, which is no 401.
const SPARED: &str = "positive_data_acceptance,ignored_auth";

/// An edge whose API has TLS.
struct World {
    edge: Edge,
    /// The certificate, which is its own authority.
    certificate: PathBuf,
    key: PathBuf,
    topology: Topology,
}

impl World {
    fn new() -> Result<Self> {
        let topology = Topology::new(Uplink::Veth)?;
        let node = &topology.edge;
        let certificate = node.folder.join("tls.crt");
        let key = node.folder.join("tls.key");
        write_pair(&certificate, &key)?;
        let edge = Edge::with(
            node,
            "eth0",
            &[
                ("--tls-certificate", &certificate.to_string_lossy()),
                ("--tls-key", &key.to_string_lossy()),
            ],
            &[
                ("VPN_EDGE_SERVER", SERVER),
                ("VPN_EDGE_CA", &certificate.to_string_lossy()),
            ],
        )?;
        Ok(Self {
            edge,
            certificate,
            key,
            topology,
        })
    }

    /// A token of the first tenant's organisation.
    fn member(&mut self) -> Result<String> {
        let tokens = self.topology.edge.folder.join("tokens");
        let tokens = tokens.to_string_lossy();
        let add = ["token", "add", "--organisation", A.organisation, "--file"];
        let token = self.edge.vpn_edge(&[&add[..], &[&tokens]].concat())?;
        self.edge.stop()?;
        self.edge.restart()?;
        Ok(token.trim().to_owned())
    }

    /// Asks whatever the description allows, and what it does not, as whoever has
    /// `token`; of one `tenant` alone where it is given. What came of it.
    fn ask(&self, token: Option<&str>, tenant: Option<&str>) -> Result<String> {
        let python = std::env::var_os("VPN_EDGE_SCHEMATHESIS")
            .context("VPN_EDGE_SCHEMATHESIS is not set: run `cargo xtask test openapi`")?;
        let node = &self.topology.edge;
        let settings = match tenant {
            Some(tenant) => format!("[parameters]\n\"path.id\" = '{tenant}'\n"),
            None => String::new(),
        };
        let file = node.folder.join("schemathesis.toml");
        std::fs::write(&file, settings)?;
        let mut command = node.command(python);
        command
            .args(["-m", "schemathesis.cli", "--no-color", "--config-file"])
            .arg(&file)
            .args(["run", "--checks=all", "--exclude-checks", SPARED])
            .args(["--seed", SEED, "--max-examples", EXAMPLES])
            .args(["--generation-database", "none", "--tls-verify"])
            .arg(&self.certificate)
            .arg(format!("{SERVER}/v1/openapi.json"));
        if let Some(token) = token {
            command.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        let output = node.output(command)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{said}\n{}", self.edge.log());
        Ok(said)
    }
}

/// A new certificate for the loopback interface.
fn write_pair(certificate: &PathBuf, key: &PathBuf) -> Result<()> {
    let pair = KeyPair::generate()?;
    let params = CertificateParams::new(["127.0.0.1".to_owned()])?;
    std::fs::write(certificate, params.self_signed(&pair)?.pem())?;
    std::fs::write(key, pair.serialize_pem())?;
    Ok(())
}

#[test]
fn the_api_is_as_it_is_described_to_everybody() -> Result<()> {
    let mut world = World::new()?;
    let member = world.member()?;
    let admin = world.edge.token().to_owned();
    println!("admin:\n{}", world.ask(Some(&admin), None)?);
    // It got as far as tenants, and what is done to them.
    let log = world
        .edge
        .vpn_edge(&["audit", "-o", "json", "--limit", "1000"])?;
    let log: Value = serde_json::from_str(&log)?;
    let records = log["records"].as_array().or(log.as_array());
    let records = records.with_context(|| log.to_string())?;
    for (action, status) in [("create", 201), ("change", 200), ("delete", 204)] {
        let done = records
            .iter()
            .any(|record| record["action"] == action && record["outcome"]["status"] == status);
        ensure!(done, "no {action} in {log}");
    }

    let said = world.ask(None, None)?;
    let routes = said.split("Selected: ").nth(1);
    let routes = routes.and_then(|rest| rest.split('/').next());
    let routes = routes.with_context(|| said.clone())?;
    let all = format!("401 Unauthorized ({routes} operations)");
    ensure!(said.contains(&all), "{all}:\n{said}");

    // Made only now: the admin deletes what it finds.
    let id = world.edge.create(&A)?;
    println!("member:\n{}", world.ask(Some(&member), Some(&id))?);
    // It got as far as the keys.
    let status = world.edge.tenant(&["status", &id])?;
    ensure!(status["generation"].as_u64() > Some(1), "{status}");
    ensure!(
        !world.edge.log().contains("panicked"),
        "{}",
        world.edge.log()
    );
    Ok(())
}

#[test]
fn the_client_needs_the_authority_and_a_new_certificate_is_taken_up() -> Result<()> {
    let world = World::new()?;
    let plain = world
        .edge
        .vpn_edge(&["tenant", "--server", "http://127.0.0.1:8080", "list"]);
    let plain = format!("{:#}", plain.unwrap_err());
    ensure!(plain.contains("cannot reach the API"), "{plain}");
    // The client trusts what is in the file now, and the daemon comes to have it.
    write_pair(&world.certificate, &world.key)?;
    let start = Instant::now();
    while let Err(error) = world.edge.tenant(&["list"]) {
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "{error:#}\n{}",
            world.edge.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
