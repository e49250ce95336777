//! `cargo xtask screenshots`: has the `page` suite keep its pictures.

use crate::npm;
use crate::setup;
use crate::test;
use crate::workspace::{self, cargo};
use anyhow::Result;

/// Where the suite's pictures go.
const VARIABLE: &str = "VPN_EDGE_SCREENSHOTS";

pub fn run() -> Result<()> {
    setup::ready(test::needs("page"))?;
    let folder = workspace::root().join("docs/src/images");
    workspace::run(&mut cargo(["build", "--workspace", "--bin", "vpn-edge"]))?;
    let mut pictures = cargo(["test", "--workspace", "--test", "page", "pictures"]);
    pictures
        .env(npm::VARIABLE, npm::folder()?)
        .env(VARIABLE, &folder);
    workspace::run(&mut pictures)
}
