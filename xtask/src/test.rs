//! `cargo xtask test`: the suites, each with what it needs.

use crate::setup::{self, Environment, Need, Need::*};
use crate::workspace::{self, cargo};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

struct Suite {
    name: &'static str,
    about: &'static str,
    /// What it needs of the machine, and what beyond that.
    needs: &'static [Need],
    also: &'static [Need],
    /// What `cargo test` runs; the test target of the suite's name if empty.
    runs: &'static [&'static str],
}

/// A suite that runs vpn-edge in the lab.
const fn suite(name: &'static str, about: &'static str) -> Suite {
    Suite {
        name,
        about,
        needs: &[Build, Bpf, Lab, Tun, Daemon],
        also: &[],
        runs: &[],
    }
}

impl Suite {
    /// It needs these, and not what runs vpn-edge in the lab.
    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn also(self, also: &'static [Need]) -> Self {
        Self { also, ..self }
    }

    const fn runs(self, runs: &'static [&'static str]) -> Self {
        Self { runs, ..self }
    }
}

/// In the order in which they run.
#[rustfmt::skip] // a row a suite
const SUITES: &[Suite] = &[
    suite("unit", "what needs no kernel: tests next to the code")
        .needs(&[Build]).runs(&["--lib", "--bins", "--no-fail-fast"]),
    suite("packets", "packet tables through the kernel's own test run").needs(&[Build, Bpf]),
    suite("agreement", "the kernel and the host judge random packets alike; VPN_EDGE_PACKETS=1000000 for many")
        .needs(&[Build, Bpf]),
    suite("lab", "real binaries and real WireGuard in network namespaces"),
    suite("upgrade", "this build over what earlier versions left: databases, maps, gateways, clusters")
        .also(&[Kubernetes]),
    suite("dual_stack", "IPv6 to the gateways and in the tunnels, with real WireGuard"),
    suite("inspect", "the operator's commands on a running edge, in network namespaces"),
    suite("guard", "floods, roaming, lost maps and revocation, against transfers in the lab"),
    suite("metrics", "what Prometheus and a load balancer are told, and what they make of it"),
    suite("identity", "signing in with a real OpenID provider, in a network namespace").also(&[Npm]),
    suite("openapi", "generated requests at the API's description, over TLS").also(&[Schemathesis]),
    suite("page", "the pages in Chromium: signing in, the VPN's life, accessibility, at both widths")
        .also(&[Npm, Browser]),
    suite("demo", "the demo, its dashboard from outside, and that nothing of it stays").also(&[Demo]),
    suite("network", "the node's own network as it changes, neighbours and tracked connections")
        .needs(&[Build, Lab]),
    suite("preflight", "what a node lacks is found, and gone after the remedy, in network namespaces")
        .needs(&[Build, Bpf, Lab]),
    suite("region", "the larger network: a load balancer, two edges, two workers, kube-proxy's rules")
        .also(&[KubeProxy]),
    suite("hairpin", "gateways on other nodes: by agents and by kube-proxy, IPv4 and IPv6, moves")
        .also(&[KubeProxy]),
    suite("networks", "networks as they are: IPv6, several uplinks, path MTU, jumbo frames, changes underway")
        .also(&[KubeProxy]),
    suite("cluster", "tenants of a Kubernetes cluster, from YAML to packets, over a real control plane")
        .also(&[Kubernetes, Monitoring]),
    suite("kernels", "packet tables and the lab's shortest case on Linux 6.1 and 6.12, in QEMU")
        .needs(&[Build, Lab, Kernels, Daemon]).runs(&["--test", "kernels", "--", "--nocapture"]),
];

enum Outcome {
    Ok,
    Failed(String),
    Skipped(String),
}

/// The list for `--help` and for a name that is none.
pub fn suites() -> String {
    let mut list = "Suites:".to_owned();
    for suite in SUITES {
        list.push_str(&format!("\n  {:<10} {}", suite.name, suite.about));
    }
    list
}

/// What a suite needs of the machine.
pub fn needs(name: &str) -> Vec<Need> {
    let suite = SUITES.iter().find(|suite| suite.name == name);
    suite.map(Suite::all_needs).unwrap_or_default()
}

pub fn run(names: &[String]) -> Result<()> {
    if let Some(unknown) = names
        .iter()
        .find(|name| SUITES.iter().all(|suite| suite.name != **name))
    {
        bail!("no suite is called '{unknown}'\n{}", suites());
    }
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for suite in SUITES {
        if !names.is_empty() && !names.iter().any(|name| name == suite.name) {
            continue;
        }
        eprintln!("suite {}: {}", suite.name, suite.about);
        let started = Instant::now();
        let outcome = suite.run();
        lines.push(line(suite.name, &outcome, started.elapsed()));
        match outcome {
            Outcome::Ok => {}
            Outcome::Skipped(_) if !ci => {}
            Outcome::Failed(_) | Outcome::Skipped(_) => failed.push(suite.name),
        }
    }
    println!("\n{}", lines.join("\n"));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

impl Suite {
    fn all_needs(&self) -> Vec<Need> {
        [self.needs, self.also].concat()
    }

    fn run(&self) -> Outcome {
        let needs = self.all_needs();
        let environment = match setup::ready(&needs) {
            Ok(environment) => environment,
            Err(lack) => return Outcome::Skipped(format!("{lack:#}")),
        };
        match self.test(needs.contains(&Daemon), environment) {
            Ok(()) => Outcome::Ok,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        }
    }

    /// Selects the whole workspace, as [`workspace::build`] does.
    fn test(&self, daemon: bool, environment: Environment) -> Result<()> {
        if daemon {
            workspace::build(["vpn-edge"])?;
        }
        let mut test = cargo(["test", "--workspace"]);
        match self.runs {
            [] => test.args(["--test", self.name]),
            runs => test.args(runs),
        };
        workspace::run(test.envs(environment))
    }
}

fn line(name: &str, outcome: &Outcome, took: Duration) -> String {
    let (word, reason) = match outcome {
        Outcome::Ok => ("ok", None),
        Outcome::Failed(reason) => ("FAILED", Some(reason)),
        Outcome::Skipped(lack) => ("skipped", Some(lack)),
    };
    let seconds = took.as_secs_f64();
    match reason {
        None => format!("{name:<10} {word:<8} {seconds:>7.1} s"),
        Some(reason) => format!("{name:<10} {word:<8} {seconds:>7.1} s  {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_suite_is_refused_with_the_list_of_suites() {
        let error = run(&["nonsense".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("'nonsense'"), "{error}");
        for suite in SUITES {
            assert!(error.contains(suite.name), "{error}");
        }
    }

    #[test]
    fn a_skipped_suite_says_what_it_lacks() {
        let lack = Outcome::Skipped("root is needed".to_owned());
        let line = line("lab", &lack, Duration::from_millis(100));
        assert_eq!(line, "lab        skipped      0.1 s  root is needed");
    }
}
