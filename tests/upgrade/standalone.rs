//! `vpn-edge standalone` over an earlier version's database.

use anyhow::{Context, Result, ensure};
use lab::edge::Edge;
use lab::topology::{B, Topology};
use serde_json::{Value, json};

use crate::fixture::{Fixture, each, ensure_audit, ensure_still};
use crate::machine::{self, DUAL_STACK, GIVEN, MADE, SERVER6, SIDE};

/// What the version's `tenant status` said, as far as it is to be the same. A
/// gateway that was on its way, or failed, is there by now.
fn wanted_states(fixture: &Fixture) -> Result<Value> {
    let mut states: Value = fixture.json("status.json")?;
    for status in states.as_object_mut().context("no states")?.values_mut() {
        let status = status.as_object_mut().context("no status")?;
        if status["port"].is_u64() {
            status.insert("state".into(), json!("enabled"));
            status.insert("failure".into(), Value::Null);
            // When the state was entered.
            status.remove("since");
        }
    }
    Ok(states)
}

/// The same of `tenant list`.
fn wanted_tenants(fixture: &Fixture) -> Result<Value> {
    let mut list: Value = fixture.json("tenants.json")?;
    let tenants = list["tenants"].as_array_mut().context("no tenants")?;
    for tenant in tenants {
        let state = &mut tenant["vpn"]["state"];
        if *state == "enabling" || *state == "failed" {
            *state = json!("enabled");
        }
    }
    Ok(list)
}

/// Sees that every tenant is as it was.
fn ensure_kept(fixture: &Fixture, edge: &Edge) -> Result<()> {
    machine::await_gateways(edge)?;
    ensure_still(&wanted_states(fixture)?, &machine::states(edge)?)?;
    ensure_still(&wanted_tenants(fixture)?, &edge.tenant(&["list"])?)
}

/// Sees that the configurations that clients downloaded lead to their networks.
fn ensure_clients(fixture: &Fixture, topology: &Topology) -> Result<()> {
    machine::client(fixture, "made", &topology.client_a, &SIDE)?;
    machine::client(fixture, "given", &topology.client_b, &B)?;
    let both = machine::client(fixture, "dual-stack", &topology.client_a, &SIDE)?;
    both.await_reach(SERVER6)
}

#[test]
fn tenants_of_an_earlier_database_are_as_they_were_and_clients_connect() -> Result<()> {
    each(|fixture| {
        let (topology, mut edge) = machine::restore(fixture)?;
        ensure_kept(fixture, &edge)?;
        for (id, name) in [(GIVEN, "given"), (DUAL_STACK, "dual-stack")] {
            let now = edge.configuration(id)?;
            let before = fixture.text(&format!("clients/{name}.conf"))?;
            ensure!(now == before, "{name} was\n{before}\nand is\n{now}");
        }
        ensure_clients(fixture, &topology)?;

        edge.stop()?;
        let database = edge.node.folder.join("vpn-edge.db");
        edge.vpn_edge(&["key", "rotate", "--database", &database.to_string_lossy()])?;
        edge.restart()?;
        ensure_kept(fixture, &edge)?;
        ensure_clients(fixture, &topology)
    })
}

#[test]
fn the_audit_log_and_the_tokens_of_an_earlier_version_are_good() -> Result<()> {
    each(|fixture| {
        let (_topology, edge) = machine::restore(fixture)?;
        let list = ["audit", "--output", "json", "--limit", "1000"];
        // Something is done, so that the log is written to.
        machine::await_gateways(&edge)?;
        edge.configuration(MADE)?;
        let audit = serde_json::from_str(&edge.vpn_edge(&list)?)?;
        ensure_audit(&fixture.json("audit.json")?, &audit)?;

        let token = fixture.text("token")?;
        let mut command = edge.node.command(edge.program());
        command
            .args(["tenant", "list"])
            .env("VPN_EDGE_TOKEN", token.trim());
        let output = edge.node.output(command)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    })
}
