//! A whole life at the most talkative log level, and then a search of all that
//! it wrote for the keys that it made.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lab::client::Client;
use lab::edge::Edge;
use lab::node::Node;
use lab::topology::{A, Topology, Uplink};
use serde_json::Value;

/// A key in every form that something might write it in.
fn forms(key: &str) -> Result<Vec<Vec<u8>>> {
    let raw = STANDARD.decode(key)?;
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers: Vec<String> = raw.iter().map(u8::to_string).collect();
    let texts = [
        key.trim_end_matches('=').to_owned(),
        hex.to_uppercase(),
        hex,
        numbers.join(", "),
        numbers.join(","),
    ];
    let texts = texts.into_iter().map(String::into_bytes);
    Ok(texts.chain([raw]).collect())
}

fn has(bytes: &[u8], key: &str) -> Result<bool> {
    let found = |form: &Vec<u8>| bytes.windows(form.len()).any(|window| window == form);
    Ok(forms(key)?.iter().any(found))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            files.extend(self::files(&path)?);
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

struct Life {
    edge: Edge,
    /// Every private key that was made.
    keys: Vec<String>,
    turns: u32,
}

impl Life {
    fn node(&self) -> &Node {
        &self.edge.node
    }

    /// Takes note of the keys of a gateway and its client.
    fn look(&mut self, port: u16, configuration: &str) -> Result<()> {
        let config = format!("cat /run/vpn-edge/gateways/{port}/config.json");
        let config: Value = serde_json::from_str(&self.node().sh(&config)?)?;
        let server = config["private_key"].as_str().context("no key")?;
        let line = super::line(configuration, "PrivateKey");
        let client = line.strip_prefix("PrivateKey = ").context("no key")?;
        for key in [server, client] {
            ensure!(!self.keys.iter().any(|known| known == key), "an old key");
            self.keys.push(key.to_owned());
        }
        self.keep(port)
    }

    /// Keeps what goes with a gateway, and with processes.
    fn keep(&mut self, port: u16) -> Result<()> {
        self.turns += 1;
        let kept = self.node().folder.join(format!("processes-{}", self.turns));
        self.node().sh(&format!(
            "cp /run/vpn-edge/gateways/{port}/log {own}/gateway-{turn}.log
             for of in standalone gateway; do
                 pid=$(pgrep -of \"[v]pn-edge $of\")
                 cat /proc/$pid/cmdline /proc/$pid/environ
             done > {kept}",
            own = self.node().folder.display(),
            turn = self.turns,
            kept = kept.display(),
        ))?;
        let kept = fs::read(kept)?;
        for known in [&b"standalone\0"[..], b"gateway\0", b"RUST_LOG=trace\0"] {
            let found = kept.windows(known.len()).any(|window| window == known);
            ensure!(found, "not seen: {}", String::from_utf8_lossy(known));
        }
        Ok(())
    }

    /// Keeps the database's files as they are now, with the tenant in them.
    fn store(&self, name: &str, tenant: &str) -> Result<()> {
        let own = &self.node().folder;
        let kept = own.join(name);
        fs::create_dir(&kept)?;
        let mut all = Vec::new();
        for file in ["vpn-edge.db", "vpn-edge.db-wal", "vpn-edge.db.audit-wal"] {
            let from = own.join(file);
            if from.exists() {
                fs::copy(&from, kept.join(file))?;
                all.extend(fs::read(kept.join(file))?);
            }
        }
        let found = all
            .windows(tenant.len())
            .any(|bytes| bytes == tenant.as_bytes());
        ensure!(found, "the tenant is not in {}", kept.display());
        Ok(())
    }

    /// Where programs usually leave files, what is newer than this life.
    fn elsewhere(&self) -> Result<Vec<PathBuf>> {
        let mut find = self.node().command("find");
        find.args(["/tmp", "/var/tmp", "/var/log", "/var/lib", "-xdev"]);
        find.args(["-maxdepth", "2", "-type", "f", "-size", "-16M", "-newer"]);
        find.arg(self.node().folder.join("tokens"));
        let found = self.node().output(find)?.stdout;
        let found = String::from_utf8_lossy(&found);
        let files = found.lines().map(PathBuf::from);
        Ok(files
            .filter(|file| !file.starts_with(&self.node().folder))
            .collect())
    }

    /// All that is in files under /run.
    fn runtime(&self) -> Result<Vec<u8>> {
        let mut find = self.node().command("find");
        find.args(["/run", "-type", "f", "-exec", "cat", "{}", "+"]);
        Ok(self.node().output(find)?.stdout)
    }
}

#[test]
fn private_keys_are_in_nothing_that_a_whole_life_writes() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let environment = [("RUST_LOG", "trace"), ("RUST_BACKTRACE", "full")];
    let edge = Edge::with(&topology.edge, "eth0", &[], &environment)?;
    let mut life = Life {
        edge,
        keys: Vec::new(),
        turns: 0,
    };
    let own = life.node().folder.clone();
    let laptop = &topology.client_a;

    // What a process that may dump its memory leaves here.
    let mut dumper = life.node().command("sh");
    let folder = own.display();
    let dump = format!("cd {folder}; ulimit -c unlimited; kill -ABRT $$");
    dumper.args(["-c", &dump]);
    let dumped = life.node().output(dumper)?;
    ensure!(dumped.status.core_dumped(), "{:?}", dumped.status);
    let cores = || cores(&own);
    ensure!(
        !cores()?.is_empty(),
        "this machine's kernel.core_pattern puts cores where this test does not look: set it to \"core\""
    );
    for core in cores()? {
        fs::remove_file(core)?;
    }

    let tenant = life.edge.enabled(&A)?;
    Client::up(laptop, &tenant.configuration)?.await_reach(A.server)?;
    life.look(tenant.port, &tenant.configuration)?;
    life.store("stored-1", &tenant.id)?;
    ensure!(has(&life.runtime()?, &life.keys[0])?, "nothing is found");
    let mut download = life.node().command(life.edge.program());
    download
        .args(["tenant", "config", &tenant.id])
        .envs(environment)
        .env("VPN_EDGE_TOKEN", life.edge.token());
    let downloaded = life.node().output(download)?;
    ensure!(has(&downloaded.stdout, &life.keys[1])?, "{downloaded:?}");
    fs::write(own.join("download.log"), downloaded.stderr)?;

    life.edge.tenant(&["regenerate", &tenant.id])?;
    let second = life.edge.configuration(&tenant.id)?;
    Client::up(laptop, &second)?.await_reach(A.server)?;
    life.look(tenant.port, &second)?;
    life.store("stored-2", &tenant.id)?;

    // Both abort, with leave to dump all of their memory.
    let gateway = life.node().sh("pgrep -f '[v]pn-edge gateway'")?;
    let place = life.node().sh(&format!("readlink /proc/{gateway}/cwd"))?;
    ensure!(Path::new(&place) == own, "its core would be in {place}");
    life.node().sh(&format!(
        "prlimit --pid {gateway} --core=unlimited:unlimited; kill -ABRT {gateway}"
    ))?;
    life.node().await_sh(&format!("! kill -0 {gateway}"))?;
    let ended = life.edge.abort()?;
    ensure!(
        ended.signal() == Some(6) && !ended.core_dumped(),
        "{ended:?}"
    );

    life.store("stored-3", &tenant.id)?;

    // Under a new key all goes on, with the same configuration.
    let database = own.join("vpn-edge.db").display().to_string();
    let sealing = |own: &Path| -> Result<String> {
        let text = fs::read_to_string(own.join("vpn-edge.db.key"))?;
        Ok(text.lines().last().context("no key")?.to_owned())
    };
    // Only where a key may be is it found, in a search that does find.
    let places = ["vpn-edge.db.key.old", "vpn-edge.db.key"];
    life.keys.push(sealing(&own)?);
    let said = life
        .edge
        .vpn_edge(&["key", "rotate", "--database", &database])?;
    fs::write(own.join("rotate.out"), said)?;
    life.keys.push(sealing(&own)?);
    life.edge.restart()?;
    Client::up(laptop, &second)?.await_reach(A.server)?;
    life.edge.await_state(&tenant.id, "enabled")?;
    ensure!(life.edge.configuration(&tenant.id)? == second);
    life.keep(tenant.port)?;
    life.store("stored-4", &tenant.id)?;
    life.edge.tenant(&["disable", &tenant.id])?;
    let gateway = format!("! test -e /run/vpn-edge/gateways/{}", tenant.port);
    life.node().await_sh(&gateway)?;
    life.edge.stop()?;

    ensure!(life.keys.len() == 6);
    ensure!(life.keys[4] != life.keys[5], "the same key");
    fs::write(own.join("runtime"), life.runtime()?)?;
    ensure!(cores()?.is_empty(), "{:?}", cores()?);
    let mut seen = 0;
    for file in files(&own)?.into_iter().chain(life.elsewhere()?) {
        let bytes = match fs::read(&file) {
            // Others' files come and go.
            Err(_) if !file.starts_with(&own) => continue,
            read => read?,
        };
        for (number, key) in life.keys.iter().enumerate() {
            let its_own = number >= 4 && file.ends_with(places[number - 4]);
            let found = has(&bytes, key)?;
            ensure!(found == its_own, "key {number} in {}", file.display());
            seen += usize::from(found);
        }
    }
    ensure!(seen == places.len(), "{seen} of the places were searched");
    Ok(())
}

#[test]
fn a_key_in_the_environment_is_the_daemons_alone() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let key = STANDARD.encode([0xa5; 32]);
    let environment = [("RUST_LOG", "trace"), ("VPN_EDGE_KEY", &key)];
    let mut edge = Edge::with(&topology.edge, "eth0", &[], &environment)?;
    let own = edge.node.folder.clone();
    let tenant = edge.enabled(&A)?;
    Client::up(&topology.client_a, &tenant.configuration)?.await_reach(A.server)?;
    let environ = |of: &str| -> Result<Vec<u8>> {
        let mut cat = edge.node.command("sh");
        let script = format!("cat /proc/$(pgrep -of '[v]pn-edge {of}')/environ");
        cat.args(["-ec", &script]);
        let output = edge.node.output(cat)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(output.stdout)
    };
    ensure!(has(&environ("standalone")?, &key)?, "nothing is found");
    let gateway = environ("gateway")?;
    ensure!(!gateway.is_empty() && !has(&gateway, &key)?);
    edge.stop()?;
    for file in files(&own)? {
        ensure!(!has(&fs::read(&file)?, &key)?, "in {}", file.display());
    }
    ensure!(!own.join("vpn-edge.db.key").exists());
    Ok(())
}

fn cores(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = files(folder)?;
    let core = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("core")
    };
    files.retain(core);
    Ok(files)
}
