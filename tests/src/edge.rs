//! The edge node's daemon, and its API through its own client.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::node::{Node, Process, program};
use crate::topology::{HOSTNAME, Side, Topology, Uplink};

/// `vpn-edge standalone` on a node.
pub struct Edge {
    pub node: Node,
    program: PathBuf,
    token: String,
    arguments: BTreeMap<String, String>,
    environment: Vec<(String, String)>,
    daemon: Option<Process>,
}

impl Edge {
    /// Starts the daemon on the topology's edge and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn start(topology: &Topology, uplink: Uplink, more: &[(&str, &str)]) -> Result<Self> {
        let interface = match uplink {
            Uplink::Veth => "eth0",
            Uplink::Bridge => "br0",
        };
        Self::on(&topology.edge, interface, more)
    }

    /// Starts the daemon on any node and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn on(node: &Node, uplink: &str, more: &[(&str, &str)]) -> Result<Self> {
        Self::with(node, uplink, more, &[])
    }

    /// The same with variables in the environment of the daemon and its client.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn with(
        node: &Node,
        uplink: &str,
        more: &[(&str, &str)],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let node = node.clone();
        let program = program("vpn-edge")?;
        let tokens = node.folder.join("tokens");
        let mut add = node.command(&program);
        add.args(["token", "add", "--admin", "--file"]).arg(&tokens);
        let token = stdout(node.output(add)?)?;
        let database = node.folder.join("vpn-edge.db");
        let (tokens, database) = (tokens.display().to_string(), database.display().to_string());
        let arguments = [
            ("--uplink", uplink),
            ("--hostname", HOSTNAME),
            ("--tokens", &tokens),
            ("--database", &database),
        ];
        let mut edge = Self {
            node,
            program,
            token: token.trim().into(),
            arguments: arguments
                .iter()
                .chain(more)
                .map(|&(name, value)| (name.into(), value.into()))
                .collect(),
            environment: environment
                .iter()
                .map(|&(name, value)| (name.into(), value.into()))
                .collect(),
            daemon: None,
        };
        edge.restart()?;
        Ok(edge)
    }

    /// Starts the daemon, which must not be running, and waits until its API
    /// answers.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn restart(&mut self) -> Result<()> {
        // Entering the node leads to its root: a core would go there.
        let mut command = self.node.command("sh");
        command
            .args(["-c", "cd \"$0\" && exec \"$@\""])
            .arg(&self.node.folder)
            .arg(&self.program)
            .arg("standalone")
            .args(flat(&self.arguments))
            .envs(self.environment.iter().cloned());
        let mut daemon = self.node.start("daemon", command)?;
        let start = Instant::now();
        while self.tenant(&["list"]).is_err() {
            ensure!(daemon.running(), "the daemon ended:\n{}", daemon.log());
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "the daemon's API does not answer:\n{}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Starts the daemon with some arguments changed from now on.
    pub fn change(&mut self, changed: &[(&str, &str)]) {
        let changed = changed.iter();
        self.arguments
            .extend(changed.map(|&(name, value)| (name.into(), value.into())));
    }

    /// What the daemon says when it is started with some arguments `changed`
    /// and refuses to.
    ///
    /// # Errors
    ///
    /// When it does start, or ends otherwise.
    pub fn refused(&self, changed: &[(&str, &str)]) -> Result<String> {
        let mut arguments = self.arguments.clone();
        arguments.extend(
            changed
                .iter()
                .map(|&(name, value)| (name.into(), value.into())),
        );
        let mut command = self.node.command("timeout");
        command
            .arg("20")
            .arg(&self.program)
            .arg("standalone")
            .args(flat(&arguments));
        let output = self.node.output(command)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
        Ok(said)
    }

    /// The program under test.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The admin's token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A new token for the members of an organisation.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn member_token(&self, organisation: &str) -> Result<String> {
        let tokens = self.node.folder.join("tokens");
        let file = tokens.to_string_lossy();
        let add = [
            "token",
            "add",
            "--organisation",
            organisation,
            "--file",
            &file,
        ];
        Ok(self.vpn_edge(&add)?.trim().to_owned())
    }

    /// Kills the daemon as a crash would.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait()?;
        Ok(())
    }

    /// Aborts the daemon, with leave to dump its memory.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn abort(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        prlimit(&daemon, "--core=unlimited:unlimited")?;
        daemon.signal(Signal::SIGABRT)?;
        Ok(daemon.wait()?)
    }

    /// Ends the daemon as an operator would.
    ///
    /// # Errors
    ///
    /// When it does not run, or ends badly.
    pub fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.signal(Signal::SIGTERM)?;
        let status = daemon.wait()?;
        ensure!(
            status.success(),
            "the daemon ended with {status}:\n{}",
            daemon.log()
        );
        Ok(())
    }

    /// Lets the daemon open files only while fewer than `limit` are open. Files
    /// that are open stay so.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn limit_files(&self, limit: u32) -> Result<()> {
        let daemon = self.daemon.as_ref().context("no daemon runs")?;
        prlimit(daemon, &format!("--nofile={limit}:"))
    }

    /// How many files the daemon holds open.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn open_files(&self) -> Result<usize> {
        let daemon = self.daemon.as_ref().context("no daemon runs")?;
        Ok(std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count())
    }

    /// The names of the daemon's threads.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn threads(&self) -> Result<Vec<String>> {
        let daemon = self.daemon.as_ref().context("no daemon runs")?;
        let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))?;
        // One may end meanwhile.
        let names = threads
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        Ok(names.map(|name| name.trim().to_owned()).collect())
    }

    /// What the daemon printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs `vpn-edge` on the node.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn vpn_edge(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.node.command(&self.program);
        command
            .args(arguments)
            .env("VPN_EDGE_TOKEN", &self.token)
            .envs(self.environment.iter().cloned());
        let output = self.node.output(command)?;
        let log = self.node.folder.join("client.log");
        let mut log = File::options().append(true).create(true).open(log)?;
        log.write_all(&output.stderr)?;
        stdout(output)
    }

    /// Runs `vpn-edge tenant … -o json`.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn tenant(&self, arguments: &[&str]) -> Result<Value> {
        let all = [&["tenant", "-o", "json"], arguments].concat();
        let text = self.vpn_edge(&all)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// A new tenant that is ready for a VPN; its id.
    ///
    /// # Errors
    ///
    /// When the API refuses it.
    pub fn create(&self, side: &Side) -> Result<String> {
        let created = self.tenant(&[
            "create",
            "--organisation",
            side.organisation,
            "--plan",
            "business",
            "--ready",
            "--network",
            side.network,
        ])?;
        Ok(created["id"].as_str().context("no id")?.to_owned())
    }

    /// A new tenant with VPN enabled, and its configuration.
    ///
    /// # Errors
    ///
    /// When a step fails, with what it said.
    pub fn enabled(&self, side: &Side) -> Result<Tenant> {
        let id = self.create(side)?;
        let status = self.tenant(&["enable", &id])?;
        let port = status["port"].as_u64().context("no port")?;
        Ok(Tenant {
            configuration: self.configuration(&id)?,
            port: u16::try_from(port)?,
            id,
        })
    }

    /// The tenant's configuration as it is now.
    ///
    /// # Errors
    ///
    /// When the API refuses it.
    pub fn configuration(&self, id: &str) -> Result<String> {
        self.vpn_edge(&["tenant", "config", id])
    }

    /// Waits until the tenant's VPN is in `state`.
    ///
    /// # Errors
    ///
    /// When it is not after a while.
    pub fn await_state(&self, id: &str, state: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let status = self.tenant(&["status", id])?;
            if status["state"] == state {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(40) {
                bail!("not {state}: {status}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The port map, by port.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn ports(&self) -> Result<BTreeMap<u16, Value>> {
        let text = self.vpn_edge(&["ports", "-o", "json"])?;
        let rows: Vec<Value> = serde_json::from_str(&text)?;
        rows.into_iter()
            .map(|row| {
                let port = row["port"].as_u64().context("no port")?;
                Ok((u16::try_from(port)?, row))
            })
            .collect()
    }

    /// Waits until the port map is as `wanted` says.
    ///
    /// # Errors
    ///
    /// When it has not become so after a while.
    pub fn await_ports(&self, wanted: impl Fn(&BTreeMap<u16, Value>) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let ports = self.ports()?;
            if wanted(&ports) {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(20) {
                bail!("the port map stays {ports:#?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn prlimit(process: &Process, limit: &str) -> Result<()> {
    let status = Command::new("prlimit")
        .args([limit, "--pid"])
        .arg(process.pid().to_string())
        .status()?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}

/// An argument without a value is a flag.
fn flat(arguments: &BTreeMap<String, String>) -> impl Iterator<Item = &String> {
    arguments
        .iter()
        .flat_map(|(name, value)| [name, value])
        .filter(|word| !word.is_empty())
}

/// An enabled tenant.
pub struct Tenant {
    pub id: String,
    pub port: u16,
    pub configuration: String,
}

/// What the command printed.
///
/// # Errors
///
/// When it failed, with what it said.
pub fn stdout(output: Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}
