//! Makes the fixtures of this version: `cargo xtask fixtures`.
//!
//! Everything is what this build's own programs wrote, on the lab's machines and
//! in a real cluster.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use lab::client::Client;
use lab::cluster::MANIFESTS;
use lab::edge::{Edge, stdout};
use lab::topology::{A, B, Uplink};
use serde_json::{Value, to_value};
use vpn_edge::datapath;

use crate::cluster::scene::{Scene, TENANTS};
use crate::fixture::{FOLDER, write_json};
use crate::machine::{
    self, ARGUMENTS, DELETED, DISABLED, DUAL_STACK, ENABLING, FAILED, GIVEN, MADE, NETWORK6,
    OWN_KEY, SERVER6, UNAVAILABLE,
};
use crate::maps::{Layout, OBJECT, ports, values};

const AUDIT: [&str; 5] = ["audit", "--output", "json", "--limit", "1000"];

#[test]
#[ignore = "writes fixtures: cargo xtask fixtures"]
fn make() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let folder = Path::new(FOLDER).join(format!("v{version}"));
    ensure!(
        !folder.exists(),
        "{} is there already: what a version left behind does not change. Name a new version in \
         Cargo.toml, or delete the folder if that version is not out yet",
        folder.display()
    );
    // Whole or not at all.
    let unfinished = Path::new(FOLDER).join(format!(".v{version}"));
    let _ = fs::remove_dir_all(&unfinished);
    for name in ["standalone", "clients", "gateways", "maps", "cluster"] {
        fs::create_dir_all(unfinished.join(name))?;
    }
    machine(&unfinished)?;
    cluster(&unfinished)?;
    Ok(fs::rename(unfinished, folder)?)
}

/// What `standalone` leaves on a machine.
fn machine(folder: &Path) -> Result<()> {
    let topology = machine::topology()?;
    let mut edge = Edge::start(&topology, Uplink::Veth, &[])?;
    fs::write(folder.join("token"), format!("{}\n", edge.token()))?;
    create(&edge)?;
    let own = &folder.join(OWN_KEY).display().to_string();
    let public = topology
        .client_b
        .sh(&format!("wg genkey > {own}; wg pubkey < {own}"))?;
    edge.tenant(&["enable", MADE])?;
    edge.tenant(&["enable", GIVEN, "--public-key", &public])?;
    edge.tenant(&["enable", DUAL_STACK])?;
    edge.tenant(&["regenerate", DUAL_STACK])?;
    for id in [DISABLED, DELETED] {
        edge.tenant(&["enable", id])?;
    }
    edge.tenant(&["disable", DISABLED])?;
    edge.tenant(&["delete", DELETED])?;
    // Refusals are in the audit log, too.
    ensure!(edge.tenant(&["enable", UNAVAILABLE]).is_err());
    download(&edge, MADE, "made", folder)?;

    // From here on tunnels carry IPv6.
    edge.stop()?;
    edge.change(&ARGUMENTS);
    edge.restart()?;
    for id in [MADE, GIVEN, DUAL_STACK] {
        edge.await_state(id, "enabled")?;
    }
    let networks = ["--network", A.network, "--network", NETWORK6];
    edge.tenant(&[&["patch", DUAL_STACK][..], &networks].concat())?;
    download(&edge, GIVEN, "given", folder)?;
    let configuration = download(&edge, DUAL_STACK, "dual-stack", folder)?;
    // Traffic, so that the maps are those of a machine at work.
    let client = Client::up(&topology.client_a, &configuration)?;
    client.await_reach(A.server)?;
    client.await_reach(SERVER6)?;
    kernel(&edge, folder)?;
    gateways(&edge, folder)?;

    fail(&edge)?;
    write_json(&folder.join("status.json"), &machine::states(&edge)?)?;
    write_json(&folder.join("tenants.json"), &edge.tenant(&["list"])?)?;
    let audit = serde_json::from_str(&edge.vpn_edge(&AUDIT)?)?;
    write_json(&folder.join("audit.json"), &audit)?;
    edge.stop()?;
    for file in [
        "vpn-edge.db",
        "vpn-edge.db.key",
        "vpn-edge.db.audit",
        "tokens",
    ] {
        let from = edge.node.folder.join(file);
        fs::copy(from, folder.join("standalone").join(file))?;
    }
    Ok(())
}

fn create(edge: &Edge) -> Result<()> {
    let business = ["--plan", "business", "--ready"];
    for (id, organisation, words) in [
        (MADE, "acme", &["--network", A.network][..]),
        (GIVEN, "globex", &["--network", B.network]),
        (DUAL_STACK, "acme", &["--network", A.network]),
        (DISABLED, "initech", &["--network", "10.98.0.0/16"]),
        (DELETED, "initech", &[]),
        (FAILED, "hooli", &[]),
        (ENABLING, "hooli", &[]),
    ] {
        let who = ["create", "--id", id, "--organisation", organisation];
        edge.tenant(&[&who, &business[..], words].concat())?;
    }
    let words = ["--organisation", "umbrella", "--plan", "team", "--ready"];
    edge.tenant(&[&["create", "--id", UNAVAILABLE][..], &words].concat())?;
    Ok(())
}

/// Keeps the configuration as the tenant's member downloads it.
fn download(edge: &Edge, id: &str, name: &str, folder: &Path) -> Result<String> {
    let configuration = edge.configuration(id)?;
    fs::write(folder.join(format!("clients/{name}.conf")), &configuration)?;
    Ok(configuration)
}

/// What is in the kernel.
fn kernel(edge: &Edge, folder: &Path) -> Result<()> {
    let pins = datapath::folder(Path::new(datapath::DEFAULT_ROOT));
    let read = edge
        .node
        .inside(move || Ok((Layout::read(&pins)?, values(&pins.join("maps"))?)));
    let (layout, values) = read.join().expect("the thread does not panic")?;
    ensure!(
        layout.links.len() == 5,
        "not every program is on a link, as from Linux 6.6: {:?}",
        layout.links
    );
    write_json(&folder.join("maps/layout.json"), &to_value(layout)?)?;
    write_json(&folder.join("maps/values.json"), &values)?;
    write_json(&folder.join("maps/ports.json"), &ports(&edge.node)?)?;
    let object = folder.join(OBJECT);
    fs::write(&object, datapath::OBJECT)?;
    strip(&object)
}

/// Takes off an eBPF object what is for debuggers, which is most of it. Of its types
/// the verifier needs those of functions, which it then looks at one by one; where
/// these name paths of this machine, those are crossed out.
fn strip(object: &Path) -> Result<()> {
    // rustc comes with it, but not with the path to its own library.
    let script = r#"
        root=$(rustc --print sysroot)
        export LD_LIBRARY_PATH=$root/lib
        "$root/lib/rustlib/$(rustc --print host-tuple)/bin/rust-objcopy" --strip-debug "$0"
    "#;
    let output = Command::new("sh")
        .args(["-ec", script])
        .arg(object)
        .output()?;
    stdout(output)?;
    let mut bytes = fs::read(object)?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let home = std::env::home_dir();
    for folder in workspace.into_iter().chain(home.as_deref()) {
        let name = folder.as_os_str().as_encoded_bytes();
        let mut at = 0;
        while let Some(found) = bytes[at..]
            .windows(name.len())
            .position(|part| part == name)
        {
            at += found;
            bytes[at..at + name.len()].fill(b'.');
        }
    }
    Ok(fs::write(object, bytes)?)
}

/// What each gateway's folder has, and what its socket says.
fn gateways(edge: &Edge, folder: &Path) -> Result<()> {
    for port in edge.ports()?.into_keys() {
        let into = folder.join(format!("gateways/{port}"));
        fs::create_dir(&into)?;
        let from = format!("/run/vpn-edge/gateways/{port}");
        edge.node
            .sh(&format!("cp {from}/config.json {}", into.display()))?;
        let said = edge.node.inside(move || {
            let mut line = String::new();
            let stream = UnixStream::connect(format!("{from}/status.sock"))?;
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        });
        let said = said.join().expect("the thread does not panic")?;
        fs::write(into.join("status"), said)?;
    }
    Ok(())
}

/// Has a gateway fail, and another one on its way there.
fn fail(edge: &Edge) -> Result<()> {
    let broken = edge.node.folder.join("nft").display().to_string();
    edge.node.sh(&format!(
        "printf '#!/bin/sh\necho out of order >&2; exit 1\n' > {broken}
         chmod 755 {broken}
         mount --bind {broken} $(readlink -f $(command -v nft))"
    ))?;
    edge.tenant(&["enable", FAILED, "--no-wait"])?;
    edge.await_state(FAILED, "failed")?;
    edge.tenant(&["enable", ENABLING, "--no-wait"])?;
    edge.await_state(ENABLING, "enabling")
}

/// What a controller leaves in a cluster.
fn cluster(folder: &Path) -> Result<()> {
    let folder = &folder.join("cluster");
    let mut scene = Scene::new()?;
    scene.fill()?;
    for tenant in TENANTS.iter().filter(|tenant| tenant.connects) {
        let configuration = scene.vpn_edge(&["tenant", "config", tenant.id])?;
        let file = format!("../clients/cluster-{}.conf", tenant.name);
        fs::write(folder.join(file), configuration)?;
    }
    let audit = serde_json::from_str(&scene.vpn_edge(&AUDIT)?)?;
    write_json(&folder.join("audit.json"), &audit)?;
    scene.end()?;
    let objects: Vec<Value> = scene.objects()?;
    write_json(&folder.join("objects.json"), &objects.into())?;
    fs::copy(
        format!("{MANIFESTS}/base/crd.yaml"),
        folder.join("crd.yaml"),
    )?;
    Ok(())
}
