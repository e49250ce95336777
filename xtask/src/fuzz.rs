//! `cargo xtask fuzz`: arbitrary frames through the decision, under libFuzzer
//! and AddressSanitizer.
//!
//! As cargo-fuzz builds it, without its command, which wants a nightly
//! compiler. An input that breaks something is left in `fuzz/findings`, where
//! the unit tests find it too.

use crate::setup::{self, Need};
use crate::workspace::{self, cargo};
use anyhow::{Context, Result};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Longer frames reach nothing that these do not.
const LONGEST: usize = 512;

/// As cargo-fuzz has them, in its version 0.13.
const RUSTFLAGS: [&str; 10] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Clink-dead-code",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

pub fn run(seconds: u64, keep: bool) -> Result<()> {
    setup::ready(&[Need::Fuzz])?;
    let package = workspace::root().join("vpn-edge-ebpf/fuzz");
    let target = workspace::target_dir().join("fuzz");
    let program = build(&package.join("Cargo.toml"), &target)?;

    // What is found goes to the first folder; the tree's is only read.
    let (found, corpus) = (target.join("corpus"), package.join("corpus"));
    fs::create_dir_all(&found)?;
    let mut findings = package.join("findings").into_os_string();
    findings.push("/");
    let mut fuzz = Command::new(&program);
    fuzz.arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .args(["-timeout=10", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}", findings.to_string_lossy()))
        .args([&found, &corpus]);
    workspace::run(&mut fuzz)?;
    if keep {
        let mut merge = Command::new(&program);
        merge.arg("-merge=1").args([&corpus, &found]);
        workspace::run(&mut merge)?;
    }
    Ok(())
}

fn build(manifest: &std::path::Path, target: &std::path::Path) -> Result<PathBuf> {
    // Named, so that build scripts and macros are built without the sanitizer.
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut build = cargo(["build", "--release", "--bin", "decide", "--locked"]);
    build
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .args(["--target", &triple])
        // Sanitizers are unstable: allowed here, and for this process alone.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    workspace::run(&mut build).context("the fuzzer does not build")?;
    Ok(target.join(triple).join("release/decide"))
}
