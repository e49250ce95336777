//! `cargo xtask bench`: readies the machine, builds, and hands over to the lab's benchmarks.

use crate::setup::{self, Need, Need::*};
use crate::workspace::{self, cargo};
use anyhow::Result;

/// The benchmarks by how their names begin, each with what it needs.
const GROUPS: [(&str, &[Need]); 4] = [
    ("program", &[]),
    ("path", &[Lab, KubeProxy]),
    ("revocation", &[Lab, Tun, Daemon]),
    ("cluster", &[Lab, Tun, Daemon, Kubernetes]),
];

pub fn run(names: &[String]) -> Result<()> {
    let needs = needs(names);
    let environment = setup::ready(&needs)?;
    let daemon = needs.contains(&Daemon).then_some("vpn-edge");
    workspace::build(["bench"].into_iter().chain(daemon))?;
    let mut bench = cargo(["run", "--quiet", "--bin", "bench", "--"]);
    workspace::run(bench.args(names).envs(environment))
}

/// What the benchmarks need whose names begin like one of `names`, or all.
fn needs(names: &[String]) -> Vec<Need> {
    let mut names = names.iter().map(String::as_str);
    let mut begun = Vec::new();
    while let Some(name) = names.next() {
        match name {
            // It takes a file.
            "--svg" => drop(names.next()),
            name => begun.push(name),
        }
    }
    let chosen = |group: &str| {
        begun.is_empty()
            || begun
                .iter()
                .any(|name| name.starts_with(group) || group.starts_with(name))
    };
    let groups = GROUPS.iter().filter(|(group, _)| chosen(group));
    let more = groups.flat_map(|(_, needs)| *needs).copied();
    [Build, Bpf].into_iter().chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<Need> {
        needs(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_the_chosen_benchmarks_use_is_set_up() {
        assert_eq!(of(&["program/data"]), [Build, Bpf]);
        assert_eq!(of(&["--svg", "cluster", "program"]), [Build, Bpf]);
        assert_eq!(of(&["p"]), [Build, Bpf, Lab, KubeProxy]);
        assert_eq!(of(&["revocation"]), [Build, Bpf, Lab, Tun, Daemon]);
        let all = of(&[]);
        assert!(
            [KubeProxy, Tun, Kubernetes]
                .iter()
                .all(|need| all.contains(need))
        );
        assert_eq!(of(&["--svg", "file"]), all);
    }
}
