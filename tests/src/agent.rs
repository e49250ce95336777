//! `vpn-edge agent` on an edge: no registry and no gateways of its own, but a
//! file of allocations that it follows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::{Value, json};

use crate::edge::stdout;
use crate::node::{Node, Process, program};
use crate::region::{HEALTH_PORT, Host};

/// A tenant's port, as the file has it.
#[derive(Clone, Debug, Serialize)]
pub struct Allocation {
    pub port: u16,
    pub tenant: String,
    pub generation: u64,
    /// The gateway's, in base64.
    pub public_key: String,
    pub plan: String,
    /// Addresses of the node that the gateway is on. The port is closed
    /// without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Vec<String>>,
}

impl Allocation {
    /// Of a tenant with the port's number in its name, with a gateway on
    /// `host`.
    #[must_use]
    pub fn new(port: u16, public_key: &str, host: Option<&Host>) -> Self {
        Self {
            port,
            tenant: format!("7c9e6679-7425-40de-944b-{port:012}"),
            generation: 1,
            public_key: public_key.to_owned(),
            plan: "business".to_owned(),
            node: host.map(|host| [host.v4, host.v6].map(str::to_owned).to_vec()),
        }
    }
}

/// The daemon, and what it is started with.
pub struct Agent {
    pub node: Node,
    program: PathBuf,
    file: PathBuf,
    arguments: Vec<String>,
    /// In place of the file.
    kubeconfig: Option<PathBuf>,
    /// What it has of root's power, as Kubernetes names it; all without.
    capabilities: Option<Vec<String>>,
    daemon: Option<Process>,
}

impl Agent {
    /// The daemon as a node of a cluster, without starting it. Its uplinks are
    /// those of the default routes.
    ///
    /// # Errors
    ///
    /// When the program is not built, or the kubeconfig cannot be written.
    pub fn in_cluster(node: &Node, name: &str, kubeconfig: &str, more: &[&str]) -> Result<Self> {
        let path = node.folder.join("kubeconfig");
        fs::write(&path, kubeconfig)?;
        let v4 = format!("0.0.0.0:{HEALTH_PORT}");
        let own = ["--node", name, "--health", &v4];
        Ok(Self {
            node: node.clone(),
            program: program("vpn-edge")?,
            file: node.folder.join("allocations.json"),
            arguments: own.iter().chain(more).map(ToString::to_string).collect(),
            kubeconfig: Some(path),
            capabilities: None,
            daemon: None,
        })
    }

    /// Starts the daemon with `eth0` as its uplink and its health check open to
    /// the balancer, and waits until it is healthy.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn start(node: &Node, allocations: &[Allocation], more: &[&str]) -> Result<Self> {
        let mut agent = Self::prepare(node, more)?;
        agent.write(allocations)?;
        agent.restart()?;
        Ok(agent)
    }

    /// The daemon without starting it, and without a file of allocations.
    ///
    /// # Errors
    ///
    /// When the program is not built.
    pub fn prepare(node: &Node, more: &[&str]) -> Result<Self> {
        let file = node.folder.join("allocations.json");
        let path = file.display().to_string();
        let v4 = format!("0.0.0.0:{HEALTH_PORT}");
        let own = ["--allocations", &path, "--uplink", "eth0", "--health", &v4];
        Ok(Self {
            node: node.clone(),
            program: program("vpn-edge")?,
            file,
            arguments: own.iter().chain(more).map(ToString::to_string).collect(),
            kubeconfig: None,
            capabilities: None,
            daemon: None,
        })
    }

    /// Has the daemon run with these capabilities and no others, from its next
    /// start on.
    pub fn confine(&mut self, capabilities: &[String]) {
        self.capabilities = Some(capabilities.to_vec());
    }

    /// Starts the daemon, which must not be running, and waits until it is
    /// healthy.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.await_health(200)
    }

    /// Starts the daemon, which must not be running, and waits for nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.command();
        command.arg("agent").args(&self.arguments);
        self.daemon = Some(self.node.start("agent", command)?);
        Ok(())
    }

    /// Prepares the node for the daemon, as an init container does.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn prepare_node(&self) -> Result<String> {
        let mut command = self.command();
        command.args(["agent", "prepare"]).args(&self.arguments);
        stdout(self.node.output(command)?)
    }

    fn command(&self) -> Command {
        let mut command = match &self.capabilities {
            None => self.node.command(&self.program),
            Some(capabilities) => {
                let named = capabilities.iter().map(|name| name.to_lowercase());
                let kept: String = named.map(|name| format!(",+{name}")).collect();
                let mut command = self.node.command("setpriv");
                command
                    .arg("--no-new-privs")
                    .arg(format!("--bounding-set=-all{kept}"))
                    .arg(&self.program);
                command
            }
        };
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        command
    }

    /// What `agent check` finds with the daemon's options: its status, and what it
    /// prints.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn check(&self) -> Result<Output> {
        let mut command = self.command();
        command.args(["agent", "check"]).args(&self.arguments);
        self.node.output(command)
    }

    /// What `/healthz` says.
    ///
    /// # Errors
    ///
    /// When nothing answers.
    pub fn health_said(&self) -> Result<String> {
        self.node
            .sh(&format!("curl -s 127.0.0.1:{HEALTH_PORT}/healthz"))
    }

    /// Kills the daemon as a crash would.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no agent runs")?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait()?;
        Ok(())
    }

    /// Tells the daemon to drain and end, and does not wait for it.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn terminate(&self) -> Result<()> {
        let daemon = self.daemon.as_ref().context("no agent runs")?;
        daemon.signal(Signal::SIGTERM)
    }

    /// Ends the daemon as an operator would, and waits while it drains.
    ///
    /// # Errors
    ///
    /// When it does not run, or ends badly.
    pub fn stop(&mut self) -> Result<()> {
        self.terminate()?;
        let mut daemon = self.daemon.take().context("no agent runs")?;
        let status = daemon.wait()?;
        let log = daemon.log();
        ensure!(status.success(), "the agent ended with {status}:\n{log}");
        Ok(())
    }

    /// Puts other allocations in place, at once.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, allocations: &[Allocation]) -> Result<()> {
        self.write_text(&json!({ "allocations": allocations }).to_string())
    }

    /// Puts any text in place of the allocations, at once.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_text(&self, text: &str) -> Result<()> {
        let unfinished = self.file.with_extension("new");
        fs::write(&unfinished, text)?;
        Ok(fs::rename(unfinished, &self.file)?)
    }

    /// Where the allocations are read from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What `/healthz` answers on the node: its status.
    ///
    /// # Errors
    ///
    /// When nothing answers.
    pub fn health(&self) -> Result<u16> {
        crate::region::health(&self.node, "127.0.0.1".parse()?)
    }

    /// Waits until `/healthz` answers with `status`.
    ///
    /// # Errors
    ///
    /// When it does not after a while, or the daemon ends.
    pub fn await_health(&mut self, status: u16) -> Result<()> {
        let start = Instant::now();
        loop {
            let health = self.health();
            if health.as_ref().is_ok_and(|health| *health == status) {
                return Ok(());
            }
            let daemon = self.daemon.as_mut().context("no agent runs")?;
            ensure!(daemon.running(), "the agent ended:\n{}", daemon.log());
            if start.elapsed() > Duration::from_secs(20) {
                bail!("/healthz answers {health:?}\n{}", daemon.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `vpn-edge` on the node.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn vpn_edge(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.node.command(&self.program);
        command.args(arguments);
        stdout(self.node.output(command)?)
    }

    /// The port map, by port.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn ports(&self) -> Result<BTreeMap<u16, Value>> {
        let rows = self.rows(&["ports", "-o", "json"])?;
        rows.into_iter()
            .map(|row| {
                let port = row["port"].as_u64().context("no port")?;
                Ok((u16::try_from(port)?, row))
            })
            .collect()
    }

    /// The flows that the edge knows.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn flows(&self) -> Result<Vec<Value>> {
        self.rows(&["flows", "-o", "json"])
    }

    fn rows(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let text = self.vpn_edge(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("no list: {text}"))
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

    /// What the daemon printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Process::log).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::WORKERS;

    #[test]
    fn a_closed_port_names_no_node() {
        let open = Allocation::new(31_000, "key", Some(&WORKERS[0]));
        let closed = Allocation::new(31_001, "key", None);
        assert_eq!(
            json!([open, closed]),
            json!([
                {
                    "port": 31_000,
                    "tenant": "7c9e6679-7425-40de-944b-000000031000",
                    "generation": 1,
                    "public_key": "key",
                    "plan": "business",
                    "node": ["198.51.100.21", "2001:db8:100::21"],
                },
                {
                    "port": 31_001,
                    "tenant": "7c9e6679-7425-40de-944b-000000031001",
                    "generation": 1,
                    "public_key": "key",
                    "plan": "business",
                },
            ])
        );
    }
}
