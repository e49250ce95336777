//! What a version left behind, as `tests/fixtures/` keeps it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Where the versions' folders are.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// One version's folder.
pub struct Fixture {
    pub version: String,
    folder: PathBuf,
}

impl Fixture {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn text(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_str(&self.text(name)?).with_context(|| name.to_owned())
    }
}

/// Runs a test over every version that there is a folder of.
pub fn each(test: impl Fn(&Fixture) -> Result<()>) -> Result<()> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(FOLDER)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix('v') {
            let (version, folder) = (version.to_owned(), entry.path());
            versions.push(Fixture { version, folder });
        }
    }
    versions.sort_by(|a, b| a.version.cmp(&b.version));
    ensure!(!versions.is_empty(), "there are no fixtures in {FOLDER}");
    for fixture in versions {
        test(&fixture).with_context(|| format!("over version {}", fixture.version))?;
    }
    Ok(())
}

/// Sees that everything that was said is still said; there may be more.
pub fn ensure_still(before: &Value, now: &Value) -> Result<()> {
    fn lost(at: &str, before: &Value, now: &Value) -> Vec<String> {
        match (before, now) {
            (Value::Object(fields), Value::Object(_)) => fields
                .iter()
                .flat_map(|(key, value)| lost(&format!("{at}.{key}"), value, &now[key]))
                .collect(),
            (Value::Array(all), Value::Array(others)) if all.len() == others.len() => all
                .iter()
                .zip(others)
                .enumerate()
                .flat_map(|(place, (value, other))| lost(&format!("{at}[{place}]"), value, other))
                .collect(),
            _ if before == now => Vec::new(),
            _ => vec![format!("{at} was {before} and is {now}")],
        }
    }
    let lost = lost("", before, now);
    ensure!(lost.is_empty(), "{}", lost.join("\n"));
    Ok(())
}

/// Sees that the records of the audit log that there were are there, in their
/// order. Both lists are as `vpn-edge audit --output json` prints them.
pub fn ensure_audit(before: &Value, now: &Value) -> Result<()> {
    let of = |list: &Value| -> Result<Vec<Value>> {
        Ok(list["records"].as_array().context("no records")?.clone())
    };
    let (before, mut now) = (of(before)?, of(now)?);
    ensure!(!before.is_empty(), "the fixture has no records");
    // Newest first: what was done since comes before them.
    ensure!(now.len() >= before.len(), "of {before:?} only {now:?}");
    now.drain(..now.len() - before.len());
    ensure_still(&before.into(), &now.into())
}

/// Writes JSON that a diff can show.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(fs::write(
        path,
        format!("{}\n", serde_json::to_string_pretty(value)?),
    )?)
}
