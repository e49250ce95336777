//! A tenant's session as all edges of a cluster see it, and who hears of it.

use anyhow::{Context, Result, ensure};
use lab::cluster::{SYSTEM, api};
use lab::region::{EDGES, WORKERS};
use lab::topology::A;
use serde_json::Value;

use super::{ACME, Scene, yaml};

/// Where agents tell of sessions.
const PORT: u16 = 9097;

impl Scene {
    /// As a controller's API tells it.
    fn session(&self, controller: usize) -> Result<Value> {
        let text = self.tenant(controller, &["session", ACME.id, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What an agent answers to the controllers' node: its status.
    fn agent_says(&self, path: &str, token: Option<&str>) -> Result<String> {
        let token = token.map(|token| format!("-H 'Authorization: Bearer {token}'"));
        let said = self.cluster.node().sh(&format!(
            "curl -s -o /dev/null -w '%{{http_code}}' {} http://{}:{PORT}{path}",
            token.unwrap_or_default(),
            EDGES[0].v4
        ))?;
        Ok(said.trim().to_owned())
    }

    /// A page of a controller, as the admin's browser gets it.
    fn page(&self, controller: usize, path: &str) -> Result<String> {
        self.cluster.node().sh(&format!(
            "curl -sf -H 'Cookie: vpn-edge-session={}' -H 'Accept: text/html' http://127.0.0.1:{}{path}",
            self.token,
            api(controller)
        ))
    }

    fn token_of(&self, account: &str, audience: &[&str]) -> Result<String> {
        let create = ["create", "token", account, "-n", SYSTEM];
        let token = self.kubectl(&[&create[..], audience].concat())?;
        Ok(token.trim().to_owned())
    }
}

#[test]
fn all_edges_tell_controllers_of_a_session_and_nobody_else() -> Result<()> {
    let scene = Scene::installed("bare-metal")?;
    for (number, host) in EDGES.iter().chain(&WORKERS).enumerate() {
        let via = format!("10.255.{}.2", number + 1);
        let route = format!("ip route add {} via {via}", host.v4);
        scene.cluster.node().sh(&route)?;
    }
    scene.apply(&yaml(&ACME, true))?;
    scene.await_phase(&ACME, "enabled", 0)?;
    let before = scene.session(0)?;
    ensure!(
        before["connected"] == false && before["complete"] == true,
        "{before}\n{}",
        scene.controllers[0].log()
    );

    let client = scene.connect(&scene.region.client_a, &ACME)?;
    let told = [scene.session(0)?, scene.session(1)?];
    for told in &told {
        ensure!(
            told["connected"] == true && told["complete"] == true,
            "{told}"
        );
        ensure!(told["last_handshake"].is_string(), "{told}");
        let address = told["client"].as_str().unwrap_or_default();
        // Not an edge's, by which it came to the gateway's node.
        ensure!(address.starts_with(&format!("{}:", A.client)), "{told}");
    }
    ensure!(client.reaches(A.server));
    let later = scene.session(0)?;
    for way in ["received", "sent"] {
        let packets = |told: &Value| told[way]["packets"].as_u64().context("no packets");
        let (first, second) = (packets(&told[0])?, packets(&later)?);
        ensure!(0 < first && first < second, "{way}: {first}, then {second}");
    }

    let status = scene.tenant(0, &["status", ACME.id, "-o", "json"])?;
    let status: Value = serde_json::from_str(&status)?;
    let (port, generation) = (&status["port"], &status["generation"]);
    let path = format!("/sessions/{port}/{}/{generation}", ACME.id);
    let ours = ["--audience", "vpn-edge-agent"];
    let good = scene.token_of("vpn-edge-controller", &ours)?;
    let other_account = scene.token_of("vpn-edge-agent", &ours)?;
    let other_audience = scene.token_of("vpn-edge-controller", &[])?;
    for (path, token, wanted) in [
        (&path, None, "401"),
        (&path, Some("made-up"), "401"),
        (&path, Some(&*other_audience), "401"),
        (&path, Some(&*other_account), "401"),
        (&path, Some(&*good), "200"),
        // Again, when it is known.
        (&path, Some(&*good), "200"),
        (&path, Some(&*other_account), "401"),
        // Of keys that are no longer, nothing is told.
        (&format!("{path}0"), Some(&*good), "404"),
    ] {
        let said = scene.agent_says(path, token)?;
        ensure!(said == wanted, "{path} {token:?}: {said}, not {wanted}");
    }

    // The page of any controller has it all, as a tenant's people see it.
    let service = ["create", "service", "clusterip", "db-a1-rw", "--tcp=5432"];
    scene.kubectl(&[&service[..], &["-n", "kovra-acme"]].concat())?;
    for controller in 0..2 {
        let page = scene.page(controller, &format!("/tenants/{}", ACME.id))?;
        for words in [
            ">connected</span>",
            A.client,
            "USER:PASSWORD@db-a1-rw.kovra-acme.svc.cluster.local:5432/app",
            "Regenerate Keys",
        ] {
            ensure!(page.contains(words), "no {words:?} in {page}");
        }
        let audit = scene.page(controller, "/audit")?;
        ensure!(audit.contains("download"), "{audit}");
    }

    // One that does not answer costs nothing but what it alone knows.
    let lost = WORKERS[1 - scene.worker_of(&ACME)?].v4;
    let route = format!("ip route replace blackhole {lost}");
    scene.cluster.node().sh(&route)?;
    let partial = scene.session(0)?;
    ensure!(
        partial["connected"] == true && partial["complete"] == false,
        "{partial}"
    );

    scene.tenant(0, &["disable", ACME.id])?;
    let gone = scene.session(1)?;
    ensure!(
        gone["connected"] == false && gone["received"]["packets"] == 0,
        "{gone}"
    );
    Ok(())
}
