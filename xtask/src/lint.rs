//! `cargo xtask lint`: form, clippy on both targets, licences, and the tree's own rules.

use crate::setup::{self, Need};
use crate::workspace::{self, cargo};
use crate::{build_ebpf, image, tidy};
use anyhow::{Result, anyhow, bail};
use std::process::Command;

pub fn run() -> Result<()> {
    setup::ready(&[Need::Build, Need::Lint])?;
    let ebpf = || -> Result<Command> {
        let target = workspace::target_dir().join("ebpf");
        let mut clippy = build_ebpf::cargo("clippy", workspace::root(), &target)
            .map_err(|error| anyhow!(error))?;
        clippy.args(["--", "--deny", "warnings"]);
        Ok(clippy)
    };
    let checks: [(&str, Result<()>); 6] = [
        (
            "fmt",
            workspace::run(&mut cargo(["fmt", "--all", "--check"])),
        ),
        (
            "clippy",
            workspace::run(&mut cargo([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ])),
        ),
        (
            "clippy for the kernel",
            ebpf().and_then(|mut clippy| workspace::run(&mut clippy)),
        ),
        // Advisories are left out: their database is fetched from outside,
        // which a build machine need not reach.
        (
            "deny",
            workspace::run(&mut cargo(["deny", "check", "bans", "licenses", "sources"])),
        ),
        ("tidy", tidy::check(workspace::root())),
        ("image", image::check(workspace::root())),
    ];
    println!();
    let mut failed = false;
    for (name, result) in checks {
        match result {
            Ok(()) => println!("{name}: ok"),
            Err(error) => {
                println!("{name}: FAILED  {error:#}");
                failed = true;
            }
        }
    }
    if failed {
        bail!("the tree breaks its rules");
    }
    Ok(())
}
