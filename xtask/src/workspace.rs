//! Where the workspace lies, and its cargo.

use anyhow::{Context, Result, bail};
use std::collections::HashSet;
use std::env;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

/// What a crate takes of a core, on average.
const SECONDS_A_CRATE: usize = 2;

/// From what `cargo run` says, not from when xtask was built: clones may share
/// a target directory.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let package =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package).parent();
        root.expect("xtask lies in the workspace").into()
    })
}

pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

pub fn cargo<I: AsRef<str>>(args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for arg in args {
        command.arg(arg.as_ref());
    }
    // `cargo run` describes xtask's own package to xtask; crates that read
    // these variables would be rebuilt at every change of caller.
    for (name, _) in env::vars_os() {
        let name_ = name.to_string_lossy();
        if name_.starts_with("CARGO_PKG_") || name_.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command with this one's output; its failure is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Builds programs of the workspace.
///
/// All of it is selected, so that one set of features, and thus one build of the
/// dependencies, serves every command and suite.
pub fn build(programs: impl IntoIterator<Item = &'static str>) -> Result<()> {
    let mut build = cargo(["build", "--workspace"]);
    let mut first = true;
    for program in programs {
        first &= !target_dir().join("debug").join(program).exists();
        build.args(["--bin", program]);
    }
    if first {
        eprintln!("{}", first_build()?);
    }
    run(&mut build)
}

/// What a build of everything takes.
fn first_build() -> Result<String> {
    let tree = cargo(["tree", "--workspace", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}"])
        .output()
        .context("cannot run cargo")?;
    let tree = String::from_utf8_lossy(&tree.stdout);
    let crates: HashSet<&str> = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .collect();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let minutes = (crates.len() * SECONDS_A_CRATE).div_ceil(60 * cores);
    Ok(format!(
        "building {} crates, once: about {minutes} minutes on {cores} cores",
        crates.len()
    ))
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut line = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
