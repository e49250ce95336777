//! `cargo xtask fixtures`: has the `upgrade` suite keep what this version leaves behind.

use crate::setup;
use crate::test;
use crate::workspace::{self, cargo};
use anyhow::Result;

pub fn run() -> Result<()> {
    let environment = setup::ready(&test::needs("upgrade"))?;
    workspace::build(["vpn-edge"])?;
    let mut make = cargo(["test", "--workspace", "--test", "upgrade"]);
    make.args(["--", "--ignored", "--exact", "make::make"]);
    workspace::run(make.envs(environment))
}
