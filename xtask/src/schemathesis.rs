//! What throws requests at the API in the tests: PyPI's schemathesis, installed
//! once.

use crate::step::step;
use crate::workspace;
use anyhow::{Context, Result};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

/// Tells the tests where its Python is.
pub const VARIABLE: &str = "VPN_EDGE_SCHEMATHESIS";

/// The virtual environment's Python; makes it where nobody has yet.
pub fn python() -> Result<PathBuf> {
    let requirements = workspace::root().join("tests/openapi/requirements.txt");
    let version = Command::new("python3").arg("--version").output();
    let mut hasher = DefaultHasher::new();
    fs::read(&requirements)?.hash(&mut hasher);
    // An environment is of one Python.
    version
        .context("cannot run python3")?
        .stdout
        .hash(&mut hasher);
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let key = format!("{:016x}", hasher.finish());
    let folder = base.join("vpn-edge/schemathesis").join(&key);
    let python = folder.join("bin/python");
    if python.exists() {
        return Ok(python);
    }
    // Whole or not at all: an installation that is cut short leaves none. Its
    // Python finds its packages wherever it is, unlike the scripts beside it.
    let scratch = folder.with_file_name(format!(".{key}.{}", std::process::id()));
    let install = || {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(&scratch);
        step("making a Python environment", venv)?;
        let mut pip = Command::new(scratch.join("bin/python"));
        pip.args(["-m", "pip", "install", "--no-deps", "--only-binary=:all:"])
            .args(["--disable-pip-version-check", "--requirement"])
            .arg(&requirements);
        step("installing schemathesis", pip)?;
        // Fails where another run was first.
        let _ = fs::rename(&scratch, &folder);
        Ok(())
    };
    let installed = install();
    let _ = fs::remove_dir_all(&scratch);
    installed.map(|()| python)
}

/// Whether Python can make environments with pip in them, from wherever it is.
pub fn has_venv() -> bool {
    let mut python = Command::new("python3");
    let output = python.args(["-c", "import ensurepip, venv"]).output();
    output.is_ok_and(|output| output.status.success())
}
