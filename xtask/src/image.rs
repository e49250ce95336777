//! Whether the image's recipe fits the tree. Building the image takes too long
//! for each change.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;

pub fn check(root: &Path) -> Result<()> {
    let read = |file: &str| {
        fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))
    };
    let recipe = read("manifests/Dockerfile")?;
    let toolchain = read("rust-toolchain.toml")?;
    let left_out = read(".dockerignore")?;
    let found = complaints(&recipe, &toolchain, &left_out, |file| {
        root.join(file).exists()
    });
    if !found.is_empty() {
        bail!("manifests/Dockerfile: {}", found.join("; "));
    }
    Ok(())
}

fn complaints(
    recipe: &str,
    toolchain: &str,
    left_out: &str,
    exists: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    let channel = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
        .unwrap_or("no channel");
    if !recipe.contains(&format!("/rust:{channel}-")) {
        found.push(format!("it is not built with Rust {channel}"));
    }
    for name in ["**/target", ".git"] {
        if !left_out.lines().any(|line| line == name) {
            found.push(format!(".dockerignore does not leave out {name}"));
        }
    }
    for line in recipe.lines() {
        let Some(words) = line.strip_prefix("COPY ") else {
            continue;
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        let (_, sources) = words.split_last().unwrap_or((&"", &[]));
        if sources.iter().any(|word| word.starts_with("--from=")) {
            continue;
        }
        for source in sources.iter().filter(|source| !exists(source)) {
            found.push(format!("{source} is not there"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOLCHAIN: &str = "[toolchain]\nchannel = \"1.95.0\"\n";
    const LEFT_OUT: &str = "**/target\n.git\n";

    fn said(recipe: &str) -> Vec<String> {
        complaints(recipe, TOOLCHAIN, LEFT_OUT, |file| file == ".")
    }

    #[test]
    fn the_tree_has_what_its_image_is_made_of() {
        assert!(said("ARG RUST=a/rust:1.95.0-b\nCOPY . .\nCOPY --from=build /x /y").is_empty());
        assert_eq!(
            said("ARG RUST=a/rust:1.95-b\nCOPY gone .\n"),
            ["it is not built with Rust 1.95.0", "gone is not there"]
        );
        assert_eq!(
            complaints("/rust:1.95.0-", TOOLCHAIN, "target\n.git\n", |_| true),
            [".dockerignore does not leave out **/target"]
        );
    }
}
