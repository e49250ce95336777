//! Which modules of a crate use which: no circles, and each room only what it may.
//!
//! Read from `use` items and from paths with `crate::`, `self::` and `super::`,
//! outside of tests. A module and what is inside of it count as one: between two
//! others, a use is one between the siblings that they are in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What rooms of `vpn-edge/src` may use of each other; those that are not named
/// put others together.
const ROOMS: &[(&str, &str)] = &[
    ("backoff", ""),
    ("wireguard", ""),
    ("domain", "wireguard"),
    ("netlink", ""),
    ("network", "netlink"),
    ("datapath", ""),
    ("http", ""),
    ("auth", "domain"),
    // Seams.
    ("registry", "domain"),
    ("gateways", "domain wireguard"),
    ("catalog", "domain"),
    ("sessions", "datapath domain"),
    ("audit", "auth domain registry"),
    // What is behind them, on one machine and in a cluster.
    (
        "local",
        "audit datapath domain gateway gateways netlink registry sessions wireguard",
    ),
    (
        "cluster",
        "agent audit backoff catalog domain gateway gateways netlink network registry sessions wireguard",
    ),
    // What is before them.
    (
        "agent",
        "conntrack datapath domain gateways network registry wireguard",
    ),
    ("controller", "backoff domain gateways registry"),
    (
        "gateway",
        "datapath domain ethtool gateways netlink wireguard",
    ),
    (
        "api",
        "audit auth catalog domain registry sessions wireguard",
    ),
    ("web", "api audit auth catalog domain sessions wireguard"),
];

type Module = Vec<String>;

/// A module's file, and the modules of the same crate that it names.
struct Uses<'a> {
    file: &'a Path,
    module: Module,
    named: BTreeSet<Module>,
}

/// Complaints about files, given by their paths below the root with their texts.
pub fn complaints(files: &[(PathBuf, String)]) -> Vec<String> {
    let mut crates: BTreeMap<PathBuf, BTreeMap<Module, (&Path, &str)>> = BTreeMap::new();
    for (file, text) in files {
        let parts: Module = file
            .iter()
            .map(|part| part.to_string_lossy().into())
            .collect();
        let Some(src) = parts.iter().position(|part| part == "src") else {
            continue;
        };
        let mut module = parts[src + 1..].to_vec();
        let name = module.pop().unwrap_or_default();
        let name = name.trim_end_matches(".rs");
        if !matches!(name, "mod" | "lib" | "main") {
            module.push(name.to_owned());
        }
        let is_test = |part: &String| part.ends_with("tests") || part == "testing";
        if !module.iter().any(is_test) && module.first().is_none_or(|first| first != "bin") {
            let root = parts[..src].iter().collect();
            let modules = crates.entry(root).or_default();
            modules.insert(module, (file.as_path(), text.as_str()));
        }
    }
    let mut found = Vec::new();
    for (root, modules) in &crates {
        let names = modules.keys().cloned().collect();
        let uses = modules.iter().map(|(module, &(file, text))| Uses {
            file,
            module: module.clone(),
            named: named(module, text, &names),
        });
        let uses: Vec<Uses<'_>> = uses.collect();
        if root == Path::new("vpn-edge") {
            found.extend(uses.iter().flat_map(strangers));
        }
        found.extend(circles(&uses));
    }
    found
}

fn strangers(uses: &Uses<'_>) -> Vec<String> {
    let room = uses.module.first().map_or("", String::as_str);
    let Some((_, may)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return Vec::new();
    };
    let others = uses.named.iter().filter_map(|module| module.first());
    let others: BTreeSet<_> = others.filter(|other| *other != room).collect();
    let allowed = |other: &&String| may.split(' ').any(|may| may == other.as_str());
    let strange = others.into_iter().filter(|other| !allowed(other));
    let tell = |other| format!("{}: {room} may not use {other}", uses.file.display());
    strange.map(tell).collect()
}

/// By the modules that are in the same one: who uses whom, and in which file.
type Siblings<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a Path>>;

fn circles(uses: &[Uses<'_>]) -> Vec<String> {
    let mut levels: BTreeMap<&[String], Siblings<'_>> = BTreeMap::new();
    for Uses {
        file,
        module,
        named,
    } in uses
    {
        for other in named {
            let same = module.iter().zip(other).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (module.get(same), other.get(same)) {
                let level = levels.entry(&module[..same]).or_default();
                level.entry(from).or_default().insert(to, file);
            }
        }
    }
    let mut found = Vec::new();
    for siblings in levels.values() {
        for (from, used) in siblings {
            for (to, file) in used {
                if reached(siblings, to).contains(from) {
                    let file = file.display();
                    found.push(format!(
                        "{file}: a circle: {from} uses {to}, which needs {from}"
                    ));
                }
            }
        }
    }
    found
}

fn reached<'a>(siblings: &Siblings<'a>, from: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::from([from]);
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        let used = siblings.get(module).into_iter().flat_map(BTreeMap::keys);
        next.extend(used.filter(|used| reached.insert(used)));
    }
    reached
}

/// The modules that a module's text names.
fn named(module: &Module, text: &str, modules: &BTreeSet<Module>) -> BTreeSet<Module> {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line));
    let code = code.collect::<Vec<_>>().join("\n");
    let code = code
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(&code);
    let mut paths = Vec::new();
    for item in code.split(';') {
        if let Some((before, tree)) = item.split_once("use ") {
            let before = before.rsplit('\n').next().unwrap_or_default().trim();
            if before.is_empty() || before.starts_with("pub") {
                expand("", tree, &mut paths);
            }
        }
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in code.split(|c| !is_path(c)) {
        paths.push(word.to_owned());
    }
    let named = paths
        .iter()
        .filter_map(|path| resolve(module, path, modules));
    named.collect()
}

/// The paths of what follows `use`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let inside = rest.trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &inside[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(&prefix, &inside[start..], paths);
}

/// The module that a path leads to, if it is one of the crate's.
fn resolve(module: &Module, path: &str, modules: &BTreeSet<Module>) -> Option<Module> {
    let (first, _) = path.split_once("::")?;
    let mut at = match first {
        "crate" => Module::new(),
        _ => module.clone(),
    };
    for part in path.split("::") {
        match part.split_whitespace().next().unwrap_or_default() {
            "crate" | "self" => {}
            "super" => {
                at.pop();
            }
            name => {
                at.push(name.to_owned());
                if !modules.contains(&at) {
                    at.pop();
                    break;
                }
            }
        }
    }
    (at != *module).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)]) -> Vec<String> {
        let files = files
            .iter()
            .map(|(file, text)| (file.into(), (*text).to_owned()));
        complaints(&files.collect::<Vec<_>>())
    }

    #[test]
    fn siblings_that_need_each_other_are_a_circle() {
        let circle = [
            ("a/src/lib.rs", "mod one; mod two; mod three;"),
            (
                "a/src/one.rs",
                "use std::fmt;\nuse crate::{three, two::Two as _};",
            ),
            ("a/src/two.rs", "fn f() { crate::three::deep::g() }"),
            ("a/src/three/mod.rs", "mod deep;"),
            (
                "a/src/three/deep.rs",
                "use super::super::one::{\n    One,\n};",
            ),
        ];
        let found = check(&circle);
        assert_eq!(
            found,
            [
                "a/src/one.rs: a circle: one uses three, which needs one",
                "a/src/one.rs: a circle: one uses two, which needs one",
                "a/src/three/deep.rs: a circle: three uses one, which needs three",
                "a/src/two.rs: a circle: two uses three, which needs two",
            ]
        );
        assert!(check(&circle[..4]).is_empty());
    }

    #[test]
    fn tests_and_comments_close_no_circle() {
        let files = [
            ("a/src/one.rs", "use crate::two::Two;"),
            (
                "a/src/two.rs",
                "// crate::one::One\n#[cfg(test)]\nmod tests {\n    use crate::one::One;\n}",
            ),
            ("a/src/two/tests.rs", "use crate::one::One;"),
        ];
        assert!(check(&files).is_empty());
    }

    #[test]
    fn a_module_and_what_is_in_it_are_no_circle() {
        let files = [
            ("a/src/one/mod.rs", "mod two;\nuse two::Two;"),
            ("a/src/one/two.rs", "use super::One;"),
        ];
        assert!(check(&files).is_empty());
    }

    #[test]
    fn rooms_use_what_they_may() {
        let uses = |file: &str, text: &str| {
            check(&[
                (file, text),
                ("vpn-edge/src/cluster/mod.rs", ""),
                ("vpn-edge/src/domain/mod.rs", ""),
            ])
        };
        assert_eq!(
            uses(
                "vpn-edge/src/local/netns.rs",
                "use crate::cluster::GATEWAY;"
            ),
            ["vpn-edge/src/local/netns.rs: local may not use cluster"]
        );
        assert!(uses("vpn-edge/src/local/netns.rs", "use crate::domain::Plan;").is_empty());
        assert!(
            uses(
                "vpn-edge/src/commands/agent.rs",
                "use crate::cluster::client;"
            )
            .is_empty()
        );
        assert!(uses("tests/src/local/netns.rs", "use crate::cluster::GATEWAY;").is_empty());
    }
}
