//! `cargo xtask bench`: readies the machine, builds, and hands over to the lab's benchmarks.

use crate::setup::{self, Need};
use crate::workspace::{self, cargo};
use anyhow::Result;

pub fn run(names: &[String]) -> Result<()> {
    setup::ready(&[
        Need::Build,
        Need::Bpf,
        Need::Lab,
        Need::Tun,
        Need::KubeProxy,
    ])?;
    workspace::run(&mut cargo(["build", "--bin", "vpn-edge", "--bin", "bench"]))?;
    let mut bench = cargo(["run", "--quiet", "--bin", "bench", "--"]);
    workspace::run(bench.args(names))
}
