//! This build started over what earlier versions left behind.
//!
//! `tests/fixtures/` has a folder a version, and each test runs over all of them.

mod cluster;
mod fixture;
mod gateways;
mod machine;
mod make;
mod maps;
mod standalone;
mod takeover;

use anyhow::{Result, ensure};

#[test]
fn the_manifests_ask_for_images_of_this_version() -> Result<()> {
    let folder = lab::cluster::MANIFESTS;
    for file in ["base", "overlays/bare-metal", "overlays/aws-nlb"] {
        let text = std::fs::read_to_string(format!("{folder}/{file}/kustomization.yaml"))?;
        let tag = format!("newTag: {}\n", env!("CARGO_PKG_VERSION"));
        ensure!(text.contains(&tag), "{file} has another tag than {tag}");
    }
    Ok(())
}
