//! `cargo xtask bench`: readies the machine, builds, and hands over to the lab's benchmarks.

use crate::kubernetes;
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
        Need::Kubernetes,
    ])?;
    workspace::run(&mut cargo(["build", "--bin", "vpn-edge", "--bin", "bench"]))?;
    let mut bench = cargo(["run", "--quiet", "--bin", "bench", "--"]);
    bench.env(kubernetes::VARIABLE, kubernetes::folder()?);
    workspace::run(bench.args(names))
}
