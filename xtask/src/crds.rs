//! `cargo xtask crds`: the resources' definitions, out of the types.

use crate::setup::{self, Need};
use crate::workspace::{self, cargo};
use anyhow::{Context, Result, bail};

pub fn run() -> Result<()> {
    setup::ready(&[Need::Build])?;
    workspace::build(["vpn-edge"])?;
    let mut print = cargo(["run", "--quiet", "--bin", "vpn-edge", "--", "crd"]);
    let output = print.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    let path = workspace::root().join("manifests/base/crd.yaml");
    std::fs::write(&path, output.stdout)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
