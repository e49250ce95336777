//! The Prometheus operator's own definitions of what it follows, for the tests:
//! out of its Go module, kept beside the control plane's programs.

use crate::kubernetes;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells the tests where the definitions are.
pub const VARIABLE: &str = "VPN_EDGE_MONITORING";

const MODULE: &str = "github.com/prometheus-operator/prometheus-operator";
const VERSION: &str = "v0.85.0";
/// Of the module's content, as go.sum would have it.
const SUM: &str = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=";
const DEFINITIONS: [&str; 2] = [
    "monitoring.coreos.com_servicemonitors.yaml",
    "monitoring.coreos.com_podmonitors.yaml",
];

/// The folder with the definitions; fetches them where nobody has yet.
pub fn folder() -> Result<PathBuf> {
    let folder = kubernetes::cache()?.join(format!("monitoring-{VERSION}"));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if DEFINITIONS.iter().all(|name| folder.join(name).is_file()) {
        return Ok(folder);
    }
    let module = module()?;
    for name in DEFINITIONS {
        // Whole or not at all.
        let scratch = folder.join(format!(".{name}.{}", std::process::id()));
        let from = module.join("example/prometheus-operator-crd").join(name);
        fs::copy(&from, &scratch).with_context(|| format!("cannot copy {}", from.display()))?;
        fs::rename(scratch, folder.join(name))?;
    }
    Ok(folder)
}

/// Where Go has put the module. It is not in go.mod: there its requirements
/// would be the control plane's too.
fn module() -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.env("GOTOOLCHAIN", "local").env("GOWORK", "off").args([
        "mod",
        "download",
        "-json",
        &format!("{MODULE}@{VERSION}"),
    ]);
    let output = go
        .output()
        .with_context(|| format!("Go is needed to fetch {MODULE}: install it"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("cannot fetch {MODULE}: {said}");
    }
    let sum = field(&said, "Sum").unwrap_or_default();
    if sum != SUM {
        bail!("{MODULE} {VERSION} is not what it was: {sum} instead of {SUM}");
    }
    let folder = field(&said, "Dir").context("go names no folder")?;
    Ok(Path::new(folder).to_path_buf())
}

/// A text of Go's flat JSON, which has one on each line.
fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let start = format!("\"{name}\": \"");
    let mut lines = json.lines();
    let rest = lines.find_map(|line| line.trim().strip_prefix(&start))?;
    rest.trim_end_matches(',').strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_names() {
        let said = "{\n\t\"GoModSum\": \"h1:a\",\n\t\"Sum\": \"h1:b\",\n\t\"Dir\": \"/c\"\n}";
        assert_eq!(field(said, "Sum"), Some("h1:b"));
        assert_eq!(field(said, "Dir"), Some("/c"));
        assert_eq!(field(said, "Error"), None);
    }
}
