//! `cargo xtask demo`: readies the machine, builds, and hands over to the lab's demo.

use crate::setup::{self, Need};
use crate::workspace::{self, cargo};
use anyhow::Result;

pub fn run(args: &[String]) -> Result<()> {
    setup::ready(&[Need::Build, Need::Bpf, Need::Lab, Need::Tun, Need::Demo])?;
    workspace::build(["vpn-edge", "demo"])?;
    let mut demo = cargo(["run", "--quiet", "--bin", "demo", "--"]);
    workspace::run(demo.args(args))
}
