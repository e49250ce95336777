//! `cargo xtask fixtures`: has the `upgrade` suite keep what this version leaves behind.

use crate::kubernetes;
use crate::setup;
use crate::test;
use crate::workspace::{self, cargo};
use anyhow::Result;

pub fn run() -> Result<()> {
    setup::ready(test::needs("upgrade"))?;
    workspace::run(&mut cargo(["build", "--workspace", "--bin", "vpn-edge"]))?;
    let mut make = cargo(["test", "--workspace", "--test", "upgrade"]);
    make.args(["--", "--ignored", "--exact", "make::make"])
        .env(kubernetes::VARIABLE, kubernetes::folder()?);
    workspace::run(&mut make)
}
