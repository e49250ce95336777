//! What each path of a packet costs: a table in the repository, which a change
//! of the programs has to change too.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::interpreter::{Calls, Cost};

/// By which variable, and how, the table is written anew.
pub const WRITE: &str = "VPN_EDGE_WRITE_COSTS";
pub const COMMAND: &str = "VPN_EDGE_WRITE_COSTS=1 cargo test --workspace --test packets costs::";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// What the programs were built by: another compiler makes other
    /// instructions of the same source.
    pub compiler: String,
    pub paths: Vec<Path>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub name: String,
    /// What becomes of the packet.
    pub outcome: String,
    pub cost: Cost,
}

/// What built an object, by its debug information.
///
/// # Errors
///
/// When it has none.
pub fn compiler(object: &[u8]) -> Result<String> {
    const BEFORE: &[u8] = b"(rustc version ";
    let at = object
        .windows(BEFORE.len())
        .position(|bytes| bytes == BEFORE);
    let at = at.context("the programs have no debug information")?;
    let version = object[at + BEFORE.len()..].split(|byte| b" )\0".contains(byte));
    let version = version.into_iter().next().unwrap_or_default();
    Ok(format!("rustc {}", String::from_utf8_lossy(version)))
}

impl Costs {
    /// What differs in `now`, a line each; nothing if nothing does.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if self.compiler != now.compiler {
            changes.push(format!(
                "compiler: {} -> {}, which changes instructions by itself",
                self.compiler, now.compiler
            ));
        }
        let of =
            |costs: &Self, name: &str| costs.paths.iter().find(|path| path.name == name).cloned();
        for path in &now.paths {
            match of(self, &path.name) {
                Some(before) => changes.extend(before.changes(path)),
                None => changes.push(format!("{}: new in the table", path.name)),
            }
        }
        for path in &self.paths {
            if of(now, &path.name).is_none() {
                changes.push(format!("{}: no longer counted", path.name));
            }
        }
        changes
    }
}

impl Path {
    fn changes(&self, now: &Self) -> Option<String> {
        let mut changes = Vec::new();
        if self.outcome != now.outcome {
            changes.push(format!("outcome {} -> {}", self.outcome, now.outcome));
        }
        let (before, after) = (self.cost.instructions, now.cost.instructions);
        if before != after {
            let by = after as i64 - before as i64;
            changes.push(format!("instructions {before} -> {after} ({by:+})"));
        }
        changes.extend(differences(
            "look-ups in ",
            &self.cost.lookups,
            &now.cost.lookups,
        ));
        changes.extend(differences(
            "calls of ",
            &self.cost.helpers,
            &now.cost.helpers,
        ));
        (!changes.is_empty()).then(|| format!("{}: {}", self.name, changes.join(", ")))
    }
}

fn differences(what: &str, before: &Calls, after: &Calls) -> Vec<String> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, calls) in &before.0 {
        counts.entry(name).or_default().0 += calls;
    }
    for (name, calls) in &after.0 {
        counts.entry(name).or_default().1 += calls;
    }
    let changed = counts
        .into_iter()
        .filter(|(_, (before, after))| before != after);
    let mut changes: Vec<String> = changed
        .map(|(name, (before, after))| format!("{what}{name} {before} -> {after}"))
        .collect();
    if changes.is_empty() && before != after {
        changes.push(format!("{what}another order: {before} -> {after}"));
    }
    changes
}

impl Display for Costs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# What the programs execute for one packet, by its path. Written by:"
        )?;
        writeln!(f, "#     {COMMAND}")?;
        writeln!(
            f,
            "# {:<41} | outcome               | instructions | map look-ups | calls of other helpers",
            "path"
        )?;
        writeln!(f, "compiler: {}", self.compiler)?;
        for Path {
            name,
            outcome,
            cost,
        } in &self.paths
        {
            let Cost {
                instructions,
                lookups,
                helpers,
            } = cost;
            let line =
                format!("{name:<43} | {outcome:<21} | {instructions:>12} | {lookups} | {helpers}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl FromStr for Costs {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut costs = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(compiler) = line.strip_prefix("compiler: ") {
                costs.compiler = compiler.into();
                continue;
            }
            let fields: Vec<&str> = line.split('|').map(str::trim).collect();
            let [name, outcome, instructions, lookups, helpers] = fields[..] else {
                bail!("a path has five fields: {line}");
            };
            costs.paths.push(Path {
                name: name.into(),
                outcome: outcome.into(),
                cost: Cost {
                    instructions: instructions.parse().context(line.to_owned())?,
                    lookups: lookups.parse().context(line.to_owned())?,
                    helpers: helpers.parse().context(line.to_owned())?,
                },
            });
        }
        Ok(costs)
    }
}

impl Display for Calls {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let calls = self.0.iter().map(|(name, calls)| match calls {
            1 => name.clone(),
            calls => format!("{name} x{calls}"),
        });
        f.write_str(&calls.collect::<Vec<_>>().join(" "))
    }
}

impl FromStr for Calls {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut calls: Vec<(String, usize)> = Vec::new();
        for word in text.split_whitespace() {
            match word.strip_prefix('x').map(str::parse) {
                Some(Ok(count)) => {
                    let last = calls.last_mut();
                    last.context("a count of nothing")?.1 = count;
                }
                _ => calls.push((word.into(), 1)),
            }
        }
        let mut names: Vec<&String> = calls.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        ensure!(names.len() == calls.len(), "a name stands twice in {text}");
        Ok(Self(calls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(text: &str) -> Costs {
        format!("compiler: rustc 1\n{text}").parse().unwrap()
    }

    const DATA: &str = "xdp/data | redirect | 286 | EDGE LIMITS x2 | redirect";

    #[test]
    fn a_table_reads_as_it_was_written() {
        let table = costs(&format!("{DATA}\ntcp | pass | 50 | |\n"));
        assert_eq!(table.paths.len(), 2);
        assert_eq!(table.paths[0].cost.lookups.0[1], ("LIMITS".into(), 2));
        assert_eq!(table.to_string().parse::<Costs>().unwrap(), table);
        assert_eq!(table.changes(&table), <[&str; 0]>::default());
    }

    #[test]
    fn each_change_is_told_with_both_numbers() {
        let change = |now: &str| costs(DATA).changes(&costs(now)).join("\n");
        for (now, told) in [
            (
                "xdp/data | redirect | 297 | EDGE LIMITS x3 | redirect",
                "xdp/data: instructions 286 -> 297 (+11), look-ups in LIMITS 2 -> 3",
            ),
            (
                "xdp/data | redirect | 280 | EDGE | jiffies64",
                "xdp/data: instructions 286 -> 280 (-6), look-ups in LIMITS 2 -> 0, \
                 calls of jiffies64 0 -> 1, calls of redirect 1 -> 0",
            ),
            (
                "xdp/data | pass | 286 | LIMITS x2 EDGE | redirect",
                "xdp/data: outcome redirect -> pass, \
                 look-ups in another order: EDGE LIMITS x2 -> LIMITS x2 EDGE",
            ),
            (
                "tc/data | redirect | 286 | EDGE LIMITS x2 | redirect",
                "tc/data: new in the table\nxdp/data: no longer counted",
            ),
        ] {
            assert_eq!(change(now), told);
        }
        let other = Costs {
            compiler: "rustc 2".into(),
            ..costs(DATA)
        };
        assert_eq!(
            costs(DATA).changes(&other),
            ["compiler: rustc 1 -> rustc 2, which changes instructions by itself"]
        );
    }

    #[test]
    fn the_compiler_is_known_by_the_debug_information() {
        let object = b"\0clang LLVM (rustc version 1.95.0 (59807616e 2026-04-14))\0";
        assert_eq!(compiler(object).unwrap(), "rustc 1.95.0");
        assert!(compiler(b"stripped").is_err());
    }
}
