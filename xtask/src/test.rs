//! `cargo xtask test`: the suites, each with what it needs.

use crate::kubernetes;
use crate::monitoring;
use crate::npm;
use crate::schemathesis;
use crate::setup::{self, Need};
use crate::workspace::{self, cargo};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

struct Suite {
    name: &'static str,
    about: &'static str,
    needs: &'static [Need],
    /// Cargo's arguments, in turn. All select the whole workspace, so that one
    /// set of features, and thus one build of the dependencies, serves all.
    cargo: &'static [&'static [&'static str]],
}

const SUITES: &[Suite] = &[
    Suite {
        name: "unit",
        about: "what needs no kernel: tests next to the code",
        needs: &[Need::Build],
        cargo: &[&["test", "--workspace", "--lib", "--bins", "--no-fail-fast"]],
    },
    Suite {
        name: "packets",
        about: "packet tables through the kernel's own test run",
        needs: &[Need::Build, Need::Bpf],
        cargo: &[&["test", "--workspace", "--test", "packets"]],
    },
    Suite {
        name: "agreement",
        about: "the kernel and the host judge random packets alike; VPN_EDGE_PACKETS=1000000 for many",
        needs: &[Need::Build, Need::Bpf],
        cargo: &[&["test", "--workspace", "--test", "agreement"]],
    },
    Suite {
        name: "lab",
        about: "real binaries and real WireGuard in network namespaces",
        needs: &[Need::Build, Need::Bpf, Need::Lab, Need::Tun],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "lab"],
        ],
    },
    Suite {
        name: "upgrade",
        about: "this build over what earlier versions left: databases, maps, gateways, clusters",
        needs: &[
            Need::Build,
            Need::Bpf,
            Need::Lab,
            Need::Tun,
            Need::Kubernetes,
        ],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "upgrade"],
        ],
    },
    Suite {
        name: "dual_stack",
        about: "IPv6 to the gateways and in the tunnels, with real WireGuard",
        needs: &[Need::Build, Need::Bpf, Need::Lab, Need::Tun],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "dual_stack"],
        ],
    },
    Suite {
        name: "inspect",
        about: "the operator's commands on a running edge, in network namespaces",
        needs: &[Need::Build, Need::Bpf, Need::Lab, Need::Tun],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "inspect"],
        ],
    },
    Suite {
        name: "guard",
        about: "floods, roaming, lost maps and revocation, against transfers in the lab",
        needs: &[Need::Build, Need::Bpf, Need::Lab, Need::Tun],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "guard"],
        ],
    },
    Suite {
        name: "metrics",
        about: "what Prometheus and a load balancer are told, and what they make of it",
        needs: &[Need::Build, Need::Bpf, Need::Lab, Need::Tun],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "metrics"],
        ],
    },
    Suite {
        name: "identity",
        about: "signing in with a real OpenID provider, in a network namespace",
        needs: &[Need::Build, Need::Bpf, Need::Lab, Need::Tun, Need::Npm],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "identity"],
        ],
    },
    Suite {
        name: "openapi",
        about: "generated requests at the API's description, over TLS",
        needs: &[
            Need::Build,
            Need::Bpf,
            Need::Lab,
            Need::Tun,
            Need::Schemathesis,
        ],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "openapi"],
        ],
    },
    Suite {
        name: "page",
        about: "the pages in Chromium: signing in, the VPN's life, accessibility, at both widths",
        needs: &[
            Need::Build,
            Need::Bpf,
            Need::Lab,
            Need::Tun,
            Need::Npm,
            Need::Browser,
        ],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "page"],
        ],
    },
    Suite {
        name: "demo",
        about: "the demo, its dashboard from outside, and that nothing of it stays",
        needs: &[Need::Build, Need::Bpf, Need::Lab, Need::Tun, Need::Demo],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "demo"],
        ],
    },
    Suite {
        name: "network",
        about: "the node's own network as it changes, neighbours and tracked connections",
        needs: &[Need::Build, Need::Lab],
        cargo: &[&["test", "--workspace", "--test", "network"]],
    },
    Suite {
        name: "preflight",
        about: "what a node lacks is found, and gone after the remedy, in network namespaces",
        needs: &[Need::Build, Need::Bpf, Need::Lab],
        cargo: &[&["test", "--workspace", "--test", "preflight"]],
    },
    Suite {
        name: "region",
        about: "the larger network: a load balancer, two edges, two workers, kube-proxy's rules",
        needs: &[
            Need::Build,
            Need::Bpf,
            Need::Lab,
            Need::Tun,
            Need::KubeProxy,
        ],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "region"],
        ],
    },
    Suite {
        name: "hairpin",
        about: "gateways on other nodes: by agents and by kube-proxy, IPv4 and IPv6, moves",
        needs: &[
            Need::Build,
            Need::Bpf,
            Need::Lab,
            Need::Tun,
            Need::KubeProxy,
        ],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "hairpin"],
        ],
    },
    Suite {
        name: "networks",
        about: "networks as they are: IPv6, several uplinks, path MTU, jumbo frames, changes underway",
        needs: &[
            Need::Build,
            Need::Bpf,
            Need::Lab,
            Need::Tun,
            Need::KubeProxy,
        ],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "networks"],
        ],
    },
    Suite {
        name: "cluster",
        about: "tenants of a Kubernetes cluster, from YAML to packets, over a real control plane",
        needs: &[
            Need::Build,
            Need::Bpf,
            Need::Lab,
            Need::Tun,
            Need::Kubernetes,
        ],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &["test", "--workspace", "--test", "cluster"],
        ],
    },
    Suite {
        name: "kernels",
        about: "packet tables and the lab's shortest case on Linux 6.1 and 6.12, in QEMU",
        needs: &[Need::Build, Need::Lab, Need::Kernels],
        cargo: &[
            &["build", "--workspace", "--bin", "vpn-edge"],
            &[
                "test",
                "--workspace",
                "--test",
                "kernels",
                "--",
                "--nocapture",
            ],
        ],
    },
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
pub fn needs(name: &str) -> &'static [Need] {
    let suite = SUITES.iter().find(|suite| suite.name == name);
    suite.map_or(&[], |suite| suite.needs)
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
    fn run(&self) -> Outcome {
        if let Err(lack) = setup::ready(self.needs) {
            return Outcome::Skipped(format!("{lack:#}"));
        }
        for args in self.cargo {
            let mut command = cargo(*args);
            if self.needs.contains(&Need::Kubernetes) {
                match kubernetes::folder() {
                    Ok(folder) => command.env(kubernetes::VARIABLE, folder),
                    Err(error) => return Outcome::Failed(format!("{error:#}")),
                };
                match monitoring::folder() {
                    Ok(folder) => command.env(monitoring::VARIABLE, folder),
                    Err(error) => return Outcome::Failed(format!("{error:#}")),
                };
            }
            if self.needs.contains(&Need::Npm) {
                match npm::folder() {
                    Ok(folder) => command.env(npm::VARIABLE, folder),
                    Err(error) => return Outcome::Failed(format!("{error:#}")),
                };
            }
            if self.needs.contains(&Need::Schemathesis) {
                match schemathesis::python() {
                    Ok(python) => command.env(schemathesis::VARIABLE, python),
                    Err(error) => return Outcome::Failed(format!("{error:#}")),
                };
            }
            if let Err(error) = workspace::run(&mut command) {
                return Outcome::Failed(format!("{error:#}"));
            }
        }
        Outcome::Ok
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
