//! `cargo xtask screenshots`: has the `page` suite keep its pictures.

use crate::setup;
use crate::test;
use crate::workspace::{self, cargo};
use anyhow::Result;

/// Where the suite's pictures go.
const VARIABLE: &str = "VPN_EDGE_SCREENSHOTS";

pub fn run() -> Result<()> {
    let environment = setup::ready(&test::needs("page"))?;
    let folder = workspace::root().join("docs/src/images");
    workspace::build(["vpn-edge"])?;
    let mut pictures = cargo(["test", "--workspace", "--test", "page", "pictures"]);
    workspace::run(pictures.envs(environment).env(VARIABLE, &folder))
}
