//! Bring your own key.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::topology::A;

#[test]
fn a_client_that_keeps_its_private_key_to_itself_connects() -> Result<()> {
    let (topology, edge) = super::start()?;
    let laptop = &topology.client_a;
    let own = laptop.folder.join("own.key");
    let new_key = || -> Result<String> {
        let own = own.display();
        laptop.sh(&format!("umask 077; wg genkey > {own}; wg pubkey < {own}"))
    };
    let tenant = edge.create(&A)?;
    edge.tenant(&["enable", &tenant, "--public-key", &new_key()?])?;
    let configuration = edge.configuration(&tenant)?;
    let refused = Client::up(laptop, &configuration).err();
    let refused = refused.context("wg took no key")?.to_string();
    ensure!(
        refused.contains("Key is not the correct length"),
        "{refused}"
    );
    let fill_in = |configuration: &str| -> Result<String> {
        Ok(configuration.replace("<your private key>", fs::read_to_string(&own)?.trim()))
    };
    let first = fill_in(&configuration)?;
    Client::up(laptop, &first)?.await_reach(A.server)?;

    edge.tenant(&["regenerate", &tenant, "--public-key", &new_key()?])?;
    Client::up(laptop, &first)?.await_cut(A.server)?;
    let second = fill_in(&edge.configuration(&tenant)?)?;
    Client::up(laptop, &second)?.await_reach(A.server)
}
