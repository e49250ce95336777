//! Who is connected, as the API tells it.

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::edge::Edge;
use lab::topology::{A, B};
use serde_json::Value;

fn session(edge: &Edge, id: &str) -> Result<Value> {
    edge.tenant(&["session", id])
}

fn packets(session: &Value) -> Result<[u64; 2]> {
    let of = |way: &str| session[way]["packets"].as_u64().context("no packets");
    Ok([of("received")?, of("sent")?])
}

/// Sees that nobody is connected, nor was with these keys.
fn ensure_nobody(session: &Value) -> Result<()> {
    let nobody = session["connected"] == false
        && session["last_handshake"].is_null()
        && session["client"].is_null()
        && session["complete"] == true;
    ensure!(nobody, "{session}");
    Ok(())
}

#[test]
fn a_session_is_told_from_its_first_handshake_to_its_end() -> Result<()> {
    let (topology, edge) = super::start()?;
    let (a, b) = (edge.enabled(&A)?, edge.enabled(&B)?);
    let before = session(&edge, &a.id)?;
    ensure_nobody(&before)?;
    ensure!(packets(&before)? == [0, 0], "{before}");

    let client = Client::up(&topology.client_a, &a.configuration)?;
    client.await_reach(A.server)?;
    let first = session(&edge, &a.id)?;
    ensure!(first["connected"] == true, "{first}");
    ensure!(first["last_handshake"].is_string(), "{first}");
    let address = first["client"].as_str().unwrap_or_default();
    ensure!(address.starts_with(&format!("{}:", A.client)), "{first}");
    ensure!(client.reaches(A.server));
    let second = session(&edge, &a.id)?;
    for (first, second) in packets(&first)?.into_iter().zip(packets(&second)?) {
        ensure!(0 < first && first < second, "{first}, then {second}");
    }
    ensure!(second["client"] == first["client"], "{second}");
    let table = edge.vpn_edge(&["tenant", "session", &a.id])?;
    ensure!(
        table.contains("connected") && table.contains(address),
        "{table}"
    );

    // The other tenant's is another.
    let other = session(&edge, &b.id)?;
    ensure_nobody(&other)?;
    ensure!(packets(&other)? == [0, 0], "{other}");
    let rivals = edge.vpn_edge(&[
        "token",
        "add",
        "--organisation",
        B.organisation,
        "--file",
        &edge.node.folder.join("tokens").display().to_string(),
    ])?;
    let asked = ["tenant", "--token", rivals.trim(), "session"];
    edge.node
        .await_sh(&format!(
            "{} tenant --token {} list",
            edge.program().display(),
            rivals.trim()
        ))
        .context("the new token is not known")?;
    edge.vpn_edge(&[&asked[..], &[&b.id]].concat())?;
    let refused = edge.vpn_edge(&[&asked[..], &[&a.id]].concat()).unwrap_err();
    ensure!(refused.to_string().contains("(404)"), "{refused}");

    // Nobody has come with the new keys yet.
    edge.tenant(&["regenerate", &a.id])?;
    ensure_nobody(&session(&edge, &a.id)?)?;
    let client = Client::up(&topology.client_a, &edge.configuration(&a.id)?)?;
    client.await_reach(A.server)?;
    ensure!(session(&edge, &a.id)?["connected"] == true);

    edge.tenant(&["disable", &a.id])?;
    let gone = session(&edge, &a.id)?;
    ensure_nobody(&gone)?;
    ensure!(packets(&gone)? == [0, 0], "{gone}");
    Ok(())
}
