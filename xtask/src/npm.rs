//! What the tests of the pages take from npm, installed once: what drives a
//! browser, and an OpenID provider to sign in with.

use crate::step::step;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

/// Tells the tests where the packages are.
pub const VARIABLE: &str = "VPN_EDGE_NPM";

/// The folder with `node_modules`; fills it where nobody has yet.
pub fn folder() -> Result<PathBuf> {
    let source = workspace::root().join("tests/browser");
    let lock = fs::read(source.join("package-lock.json"))?;
    let mut hasher = DefaultHasher::new();
    lock.hash(&mut hasher);
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let key = format!("{:016x}", hasher.finish());
    let folder = base.join("vpn-edge/npm").join(&key);
    let complete = || folder.join("node_modules").is_dir();
    if complete() {
        return Ok(folder);
    }
    // Whole or not at all: an installation that is cut short leaves none.
    let scratch = folder.with_file_name(format!(".{key}.{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), scratch.join(file))?;
    }
    let mut npm = Command::new("npm");
    npm.current_dir(&scratch)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    let installed = step("installing the tests' npm packages", npm);
    if installed.is_ok() && !complete() {
        // Fails where another run was first.
        let _ = fs::rename(&scratch, &folder);
    }
    let _ = fs::remove_dir_all(&scratch);
    installed?;
    if !complete() {
        bail!("{} has no node_modules", folder.display());
    }
    Ok(folder)
}

/// Whether Node.js and npm are there, from wherever.
pub fn has_node() -> bool {
    ["node", "npm"].iter().all(|program| {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    })
}
