//! Links in the pages: relative ones lead to a file, and to a heading in it.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The book: its pages link only to each other, and its summary lists them all.
const BOOK: &str = "docs/src";

/// Problems of the Markdown files, which are named by their paths below the root.
pub fn complaints(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut pages = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(root.join(file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        pages.insert(file.clone(), text);
    }
    let exists = |path: &Path| root.join(path).exists();
    let mut found: Vec<String> = pages
        .iter()
        .flat_map(|(file, text)| broken(file, text, &pages, &exists))
        .collect();
    found.extend(unlisted(&pages));
    Ok(found)
}

fn broken(
    file: &Path,
    text: &str,
    pages: &BTreeMap<PathBuf, String>,
    exists: &dyn Fn(&Path) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        for target in targets(line) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => file.to_path_buf(),
                path => resolved(file, path),
            };
            let page = pages.get(&path);
            let why = if !exists(&path) {
                "there is no such file"
            } else if file.starts_with(BOOK) && !path.starts_with(BOOK) {
                "the book has no such page: write the path instead of a link"
            } else if !heading.is_empty()
                && page.is_some_and(|page| !headings(page).any(|found| found == heading))
            {
                "the page has no such heading"
            } else {
                continue;
            };
            found.push(format!("{}:{number}: '{target}': {why}", file.display()));
        }
    }
    found
}

/// Pages of the book that its summary does not list.
fn unlisted(pages: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let summary = Path::new(BOOK).join("SUMMARY.md");
    let Some(text) = pages.get(&summary) else {
        return Vec::new();
    };
    let listed: Vec<PathBuf> = prose(text)
        .flat_map(|(_, line)| targets(line))
        .map(|target| resolved(&summary, target))
        .collect();
    pages
        .keys()
        .filter(|page| page.starts_with(BOOK) && **page != summary && !listed.contains(page))
        .map(|page| format!("{}: not listed in SUMMARY.md", page.display()))
        .collect()
}

/// Numbered lines outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        (!code && !fence).then_some((index + 1, line))
    })
}

/// Targets of a line's links and images.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let ends = [("](", ')'), (" src=\"", '"'), (" href=\"", '"')];
    ends.into_iter().flat_map(move |(start, end)| {
        line.split(start)
            .skip(1)
            .filter_map(move |rest| rest.split_once(end).map(|(target, _)| target))
    })
}

/// A link's path below the root.
fn resolved(file: &Path, link: &str) -> PathBuf {
    let mut path = file.parent().unwrap_or(Path::new("")).to_path_buf();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir if path.file_name().is_some() => {
                path.pop();
            }
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

/// Headings as links name them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text).filter_map(|(_, line)| {
        let title = line.strip_prefix('#')?.trim_start_matches('#').trim();
        let kept = title.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            letter if letter.is_alphanumeric() => Some(letter.to_ascii_lowercase()),
            _ => None,
        });
        Some(kept.collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pages: &[(&str, &str)]) -> Vec<String> {
        let pages: BTreeMap<PathBuf, String> = pages
            .iter()
            .map(|(file, text)| (PathBuf::from(file), (*text).to_owned()))
            .collect();
        let exists = |path: &Path| pages.contains_key(path) || path == Path::new("LICENSE");
        let mut found: Vec<String> = pages
            .iter()
            .flat_map(|(file, text)| broken(file, text, &pages, &exists))
            .collect();
        found.extend(unlisted(&pages));
        found
    }

    #[test]
    fn all_links_of_this_tree_resolve() {
        let root = crate::workspace::root();
        let files = crate::tidy::files(root, ".md").unwrap();
        assert!(files.contains(&PathBuf::from("README.md")), "{files:?}");
        assert_eq!(complaints(root, &files).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn links_that_resolve_are_no_complaint() {
        let guide = "# The guard\n## /healthz & `rates`\n[up](../../README.md)\n";
        let readme = "[a](LICENSE) [b](docs/guide.md#healthz--rates) <img src=\"LICENSE\">\n\
            [c](https://example.com/none) [d](#first-steps)\n# First steps\n\
            ```\n[not a link](none)\n```\n";
        let pages = [
            ("README.md", readme),
            ("docs/guide.md", &guide.replace("../../", "../")),
        ];
        assert_eq!(check(&pages), Vec::<String>::new());
    }

    #[test]
    fn a_link_to_no_file_or_no_heading_is_a_complaint() {
        let pages = [
            (
                "README.md",
                "\n[a](docs/none.md)\n[b](docs/a.md#two)\n[c](#x)",
            ),
            ("docs/a.md", "# One\n![p](../none.png)"),
        ];
        assert_eq!(
            check(&pages),
            [
                "README.md:2: 'docs/none.md': there is no such file",
                "README.md:3: 'docs/a.md#two': the page has no such heading",
                "README.md:4: '#x': the page has no such heading",
                "docs/a.md:2: '../none.png': there is no such file",
            ]
        );
    }

    #[test]
    fn the_book_links_to_its_own_pages_and_lists_them_all() {
        let pages = [
            ("docs/src/SUMMARY.md", "- [A](a.md)"),
            ("docs/src/a.md", "[license](../../LICENSE)"),
            ("docs/src/b.md", "# B"),
        ];
        assert_eq!(
            check(&pages),
            [
                "docs/src/a.md:1: '../../LICENSE': the book has no such page: \
                 write the path instead of a link",
                "docs/src/b.md: not listed in SUMMARY.md",
            ]
        );
    }
}
