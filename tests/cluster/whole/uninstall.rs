//! What is installed as the documentation says is removed as it says, and all of it.

use anyhow::{Context, Result, ensure};
use lab::cluster::{MANIFESTS, SYSTEM};
use lab::topology::{A, B};
use nix::sys::signal::Signal;

use super::scene::Scene;
use super::{ACME, GLOBEX, yaml};

const PAGE: &str = include_str!("../../../docs/src/operate/uninstall.md");

/// What an edge leaves on its node.
const ON_A_NODE: &str = "
    find /sys/fs/bpf -type f ! -name '*.debug'
    ip -d link show | grep -o 'prog/xdp.*' || true
    for link in $(ls /sys/class/net); do tc filter show dev $link ingress; done
    ls /sys/class/net | grep vpn-edge || true
    grep . /proc/sys/net/ipv4/ip_local_reserved_ports || true";

/// kubectl's arguments in the page's commands to uninstall.
fn commands() -> Result<Vec<Vec<String>>> {
    let (_, rest) = PAGE
        .split_once("\nTo uninstall")
        .context("the page has no such paragraph")?;
    let block = rest.split("```").nth(1).context("no commands")?;
    let lines = block
        .lines()
        .filter_map(|line| line.strip_prefix("$ kubectl "));
    let words = |line: &str| -> Vec<String> {
        let line = line.replace("manifests/", &format!("{MANIFESTS}/"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    Ok(lines.map(words).collect())
}

#[test]
fn an_uninstalled_system_leaves_nothing() -> Result<()> {
    let mut scene = Scene::installed("bare-metal")?;
    for tenant in [&ACME, &GLOBEX] {
        scene.apply(&yaml(tenant, true))?;
        scene.await_phase(tenant, "enabled", 0)?;
    }
    let client = scene.connect(&scene.region.client_a, &ACME)?;
    let other = scene.connect(&scene.region.client_b, &GLOBEX)?;
    for (host, node) in scene.region.hosts() {
        let found = node.sh(ON_A_NODE)?;
        for part in ["ALLOCATIONS", "prog/xdp", "61000-61127"] {
            ensure!(found.contains(part), "{}: no {part} in {found}", host.name);
        }
    }

    let commands = commands()?;
    let (last, first) = commands.split_last().context("the page has no commands")?;
    ensure!(first.len() == 3, "{commands:?}");
    let run = |scene: &Scene, words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        scene.kubectl(&words)
    };
    for words in first {
        run(&scene, words)?;
    }
    client.await_cut(A.server)?;
    other.await_cut(B.server)?;
    let left = scene.left()?;
    ensure!(left.is_empty(), "of tenants: {left:?}");
    for (host, node) in scene.region.hosts() {
        let left = node.sh(ON_A_NODE)?;
        ensure!(left.is_empty(), "on {}: {left}", host.name);
    }

    // They are no pods here, and might be the first to go.
    for controller in &mut scene.controllers {
        controller.end(Signal::SIGTERM)?;
    }
    run(&scene, last)?;
    let kinds = "namespaces,crds,clusterroles,clusterrolebindings,deployments,daemonsets,pods,\
                 services,secrets,networkpolicies,configmaps,leases,\
                 validatingadmissionpolicies,validatingadmissionpolicybindings";
    let all = scene.kubectl(&["get", kinds, "-A", "-o", "name"])?;
    let left: Vec<&str> = all
        .lines()
        .filter(|name| name.contains("vpn-edge") || name.contains("vpntenant"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    ensure!(all.contains(ACME.namespace), "tenants' namespaces stay");
    ensure!(!all.contains(SYSTEM));
    Ok(())
}
