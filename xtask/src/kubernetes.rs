//! `cargo xtask kubernetes`: a control plane, built once from its Go modules.

use crate::step::step;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells the tests where the programs are.
pub const VARIABLE: &str = "VPN_EDGE_KUBERNETES";

/// Each program, and the Go package that it is built from.
const PROGRAMS: [(&str, &str); 5] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
];

/// Whether `folder` can succeed; the error says what the machine lacks.
pub fn buildable() -> Result<()> {
    if given().is_some() || complete(&cached()?) {
        return Ok(());
    }
    let versions = fs::read_to_string(module().join("go.mod"))?;
    let wanted = required_go(&versions)?;
    let output = Command::new("go").arg("version").output();
    let Ok(output) = output else {
        bail!("Go {wanted} is needed to build Kubernetes: install it, or set KUBEBUILDER_ASSETS");
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("go1."));
    if version.and_then(numbers) < wanted.strip_prefix("1.").and_then(numbers) {
        bail!(
            "Go {wanted} is needed to build Kubernetes, and this is {}: install it, or set KUBEBUILDER_ASSETS",
            text.trim()
        );
    }
    Ok(())
}

/// The folder with the programs; builds them where nobody has yet.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = given() {
        if let Some(missing) = missing(&folder) {
            bail!(
                "KUBEBUILDER_ASSETS={}: there is no {missing} in it",
                folder.display()
            );
        }
        return Ok(folder);
    }
    let folder = cached()?;
    if !complete(&folder) {
        build(&folder)?;
    }
    Ok(folder)
}

fn given() -> Option<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
}

fn complete(folder: &Path) -> bool {
    missing(folder).is_none()
}

fn missing(folder: &Path) -> Option<&'static str> {
    let mut names = PROGRAMS.iter().map(|(name, _)| *name);
    names.find(|name| !folder.join(name).is_file())
}

fn module() -> PathBuf {
    workspace::root().join("tests/kubernetes")
}

/// What outlives the tree, for the tests of the cluster.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("vpn-edge/kubernetes"))
}

/// Where the programs of this tree's versions belong.
fn cached() -> Result<PathBuf> {
    let module = module();
    let versions = fs::read_to_string(module.join("go.mod"))?;
    let mut hasher = DefaultHasher::new();
    versions.hash(&mut hasher);
    fs::read(module.join("go.sum"))?.hash(&mut hasher);
    let key = format!("{}-{:016x}", kubernetes(&versions)?, hasher.finish());
    Ok(cache()?.join(key))
}

/// Whole or not at all: a build that is cut short leaves no half a folder.
fn build(folder: &Path) -> Result<()> {
    let versions = fs::read_to_string(module().join("go.mod"))?;
    let version = kubernetes(&versions)?;
    let name = folder.file_name().context("the folder has a name")?;
    let scratch = folder.with_file_name(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let built = compile(version, &scratch);
    if built.is_ok() && !complete(folder) {
        // Fails where another run was first.
        let _ = fs::rename(&scratch, folder);
    }
    let _ = fs::remove_dir_all(&scratch);
    built?;
    match missing(folder) {
        None => Ok(()),
        Some(missing) => bail!("{} has no {missing}", folder.display()),
    }
}

fn compile(version: &str, into: &Path) -> Result<()> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next(), numbers.next());
    let mut flags = "-s -w".to_owned();
    for (name, value) in [
        ("gitVersion", version),
        ("gitMajor", major.unwrap_or_default()),
        ("gitMinor", minor.unwrap_or_default()),
    ] {
        flags.push_str(&format!(" -X k8s.io/component-base/version.{name}={value}"));
    }
    let mut go = Command::new("go");
    go.current_dir(module())
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .args(["build", "-v", "-mod=readonly", "-trimpath", "-ldflags"])
        .arg(flags)
        .arg("-o")
        // With the slash it is a folder, for all packages at once.
        .arg(into.join(""))
        .args(PROGRAMS.map(|(_, package)| package));
    step(&format!("building Kubernetes {version}"), go)?;
    // Go names a program after its package's folder.
    fs::rename(into.join("server"), into.join("etcd"))?;
    Ok(())
}

fn kubernetes(versions: &str) -> Result<&str> {
    let mut lines = versions.lines();
    // Behind the version is a comment: go.mod names tools, and imports nothing.
    lines
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split_whitespace().next())
        .context("go.mod names no version of Kubernetes")
}

fn required_go(versions: &str) -> Result<&str> {
    let mut lines = versions.lines();
    lines
        .find_map(|line| line.strip_prefix("go "))
        .context("go.mod names no version of Go")
}

/// The parts of a version behind its `1.`
fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_of_the_module() {
        let versions = fs::read_to_string(module().join("go.mod")).unwrap();
        let version = kubernetes(&versions).unwrap();
        let numbers = version.strip_prefix("v1.").and_then(numbers);
        assert_eq!(numbers.map(|numbers| numbers.len()), Some(2), "{version}");
        assert!(required_go(&versions).unwrap().starts_with("1."));
    }

    #[test]
    fn versions_are_compared_by_numbers() {
        assert!(numbers("9.1") < numbers("26.0"));
        assert!(numbers("26.0") < numbers("26.8"));
        assert_eq!(numbers("27rc1"), None);
    }

    #[test]
    fn a_folder_without_a_program_is_not_complete() {
        assert_eq!(missing(Path::new("/nonexistent")), Some("etcd"));
    }
}
