//! What a gateway of an earlier version says to the daemon that takes it over.

use std::io::Write as _;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, to_value};
use vpn_edge::gateway::{GatewayConfig, Phase, subscribe};

use crate::fixture::{Fixture, each, ensure_still};

/// The ports of the version's gateways.
pub fn ports(fixture: &Fixture) -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for entry in std::fs::read_dir(fixture.path("gateways"))? {
        ports.push(entry?.file_name().to_string_lossy().parse()?);
    }
    ensure!(!ports.is_empty(), "there are no gateways");
    Ok(ports)
}

#[test]
fn the_configuration_of_an_earlier_gateway_is_read_whole() -> Result<()> {
    each(|fixture| {
        for port in ports(fixture)? {
            let name = format!("gateways/{port}/config.json");
            let config = GatewayConfig::read(&fixture.path(&name))?;
            ensure!(config.tunnel.fixed.port == port, "{config:?}");
            ensure_still(&fixture.json(&name)?, &to_value(&config)?)?;
        }
        Ok(())
    })
}

#[test]
fn the_status_of_an_earlier_gateway_is_understood() -> Result<()> {
    each(|fixture| {
        for port in ports(fixture)? {
            let said = fixture.text(&format!("gateways/{port}/status"))?;
            let folder = tempfile::tempdir()?;
            let socket = folder.path().join("status.sock");
            let listener = UnixListener::bind(&socket)?;
            let gateway = std::thread::spawn({
                let said = said.clone();
                move || listener.accept()?.0.write_all(said.as_bytes())
            });
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let status = runtime.block_on(async {
                let mut subscription = subscribe(&socket).await?;
                subscription.next().await.context("no status")
            })?;
            gateway.join().expect("the thread does not panic")?;
            let said: Value = serde_json::from_str(&said)?;
            ensure!(
                matches!(status.phase, Phase::Ready { .. }) && status.port == port,
                "{status:?}"
            );
            ensure_still(&said, &to_value(&status)?)?;
        }
        Ok(())
    })
}
