//! What must be absent from the tree, which no compiler checks.

use crate::links;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

use crate::modules;

struct Rule {
    /// Paths below the root that the rule covers, and those it spares.
    within: &'static str,
    except: &'static str,
    words: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        within: "vpn-edge/src/domain",
        except: "-",
        words: &[
            "tokio",
            "async fn",
            "aya::",
            "kube::",
            "std::fs",
            "std::process",
            "TcpStream",
            "UdpSocket",
        ],
        why: "the domain decides and does no I/O",
    },
    Rule {
        within: "vpn-edge/src",
        except: "vpn-edge/src/datapath",
        words: &["aya::"],
        why: "datapath/ is the only place that knows aya",
    },
    Rule {
        within: "vpn-edge/src",
        except: "vpn-edge/src/cluster",
        words: &["kube::", "k8s_openapi"],
        why: "cluster/ is the only place that knows Kubernetes",
    },
    Rule {
        within: "vpn-edge/src",
        except: "vpn-edge/src/local",
        words: &["rusqlite"],
        why: "local/ is the only place that knows SQLite",
    },
    Rule {
        within: "",
        except: "xtask/src/tidy.rs",
        words: &["FIXME", "TODO", "XXX", "todo!(", "unimplemented!(", "dbg!("],
        why: "finish it, or file an issue",
    },
];

const LONGEST_FILE: usize = 700;

/// Words that the glossary has another one for, in names and in texts.
const WORDS: &[(&str, &str)] = &[
    ("errand", "task"),
    ("glance", "summary"),
    ("hinder", "block"),
    ("hindered", "blocked"),
    ("hindrance", "blocker"),
    ("journey", "path"),
    ("mend", "repair"),
    ("mended", "repaired"),
    ("mends", "repairs"),
    ("noticed", "observed"),
    ("patience", "timeout"),
    ("rung", "hook"),
    ("shelf", "cache"),
    ("teller", "recorder"),
    ("troubles", "problems"),
    ("upkeep", "sync"),
    ("wish", "spec"),
    ("wished", "requested"),
    ("wishes", "spec"),
];

/// What earlier versions wrote, which is still read.
const OLD_NAMES: &[&str] = &[
    "\"Hindered\"",
    "`Hindered`",
    "\"vpn-edge.dev/wish\"",
    "`rung`",
];

pub fn check(root: &Path) -> Result<()> {
    let mut sources = Vec::new();
    for file in files(root, ".rs")? {
        let text = fs::read_to_string(root.join(&file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        sources.push((file, text));
    }
    let words = sources
        .iter()
        .flat_map(|(file, text)| complaints(file, text));
    let mut found: Vec<String> = words.collect();
    found.extend(modules::complaints(&sources));
    let mut pages = Vec::new();
    for file in files(root, ".md")? {
        let text = fs::read_to_string(root.join(&file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        pages.push((file, text));
    }
    for (file, text) in sources.iter().chain(&pages) {
        found.extend(other_words(file, text));
    }
    found.extend(links::complaints(root, &files(root, ".md")?)?);
    if !found.is_empty() {
        bail!("\n{}", found.join("\n"));
    }
    Ok(())
}

fn complaints(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        found.push(format!(
            "{}: {lines} lines, more than {LONGEST_FILE}",
            file.display()
        ));
    }
    for rule in RULES {
        if !file.starts_with(rule.within) || file.starts_with(rule.except) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = rule.words.iter().find(|word| line.contains(**word)) {
                let (file, number) = (file.display(), number + 1);
                found.push(format!("{file}:{number}: '{word}': {}", rule.why));
            }
        }
    }
    found
}

/// Uses of [`WORDS`].
fn other_words(file: &Path, text: &str) -> Vec<String> {
    if file == Path::new("xtask/src/tidy.rs") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut line = line.to_owned();
        for name in OLD_NAMES {
            line = line.replace(name, "");
        }
        for word in words_of(&line) {
            if let Some((_, plain)) = WORDS.iter().find(|(refused, _)| *refused == word) {
                let (file, number) = (file.display(), number + 1);
                found.push(format!(
                    "{file}:{number}: '{word}': write '{plain}' or the like"
                ));
            }
        }
    }
    found
}

/// The words of a line, those that names are made of included, in lower case.
fn words_of(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for letter in line.chars() {
        let begins = letter.is_ascii_uppercase() && before.is_ascii_lowercase();
        if begins || !letter.is_ascii_alphabetic() {
            words.push(String::new());
        }
        if letter.is_ascii_alphabetic() {
            let word = words.last_mut().expect("there is one at first");
            word.push(letter.to_ascii_lowercase());
        }
        before = letter;
    }
    words
}

/// Every file whose name ends so, by its path below the root.
pub fn files(root: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if name != "target" && name != "node_modules" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(end) {
                files.push(path.strip_prefix(root)?.to_path_buf());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, text: &str) -> Vec<String> {
        complaints(Path::new(file), text)
    }

    #[test]
    fn the_domain_may_do_no_io() {
        assert_eq!(
            check("vpn-edge/src/domain/plan.rs", "use tokio::time;").len(),
            1
        );
        assert!(check("vpn-edge/src/agent/mod.rs", "use tokio::time;").is_empty());
    }

    #[test]
    fn only_the_datapath_may_name_aya() {
        assert_eq!(
            check("vpn-edge/src/agent/mod.rs", "\nuse aya::Ebpf;"),
            ["vpn-edge/src/agent/mod.rs:2: 'aya::': datapath/ is the only place that knows aya"]
        );
        assert!(check("vpn-edge/src/datapath/mod.rs", "use aya::Ebpf;").is_empty());
    }

    #[test]
    fn only_the_cluster_and_one_machine_name_their_libraries() {
        let (cluster, local) = (
            "vpn-edge/src/cluster/crd.rs",
            "vpn-edge/src/local/sqlite.rs",
        );
        for (text, home) in [
            ("use kube::Client;", cluster),
            ("use k8s_openapi::ByteString;", cluster),
            ("use rusqlite::Row;", local),
        ] {
            assert!(check(home, text).is_empty());
            assert_eq!(check("vpn-edge/src/commands/agent.rs", text).len(), 1);
        }
    }

    #[test]
    fn a_file_stays_within_the_longest_length() {
        assert!(check("a.rs", &"\n".repeat(LONGEST_FILE)).is_empty());
        assert_eq!(check("a.rs", &"\n".repeat(LONGEST_FILE + 1)).len(), 1);
    }

    #[test]
    fn words_are_found_in_names_and_in_texts() {
        let uses = |line: &str| other_words(Path::new("a.rs"), line).len();
        assert_eq!(
            uses("let mended = Hindrance::of(JOURNEY, follow_wishes);"),
            4
        );
        assert_eq!(uses("// recommended, amended and Troubleshooting"), 0);
        assert_eq!(uses(r#"const BEFORE: &str = "Hindered";"#), 0);
    }
}
