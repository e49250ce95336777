//! A pod's containers, run as its template says.
//!
//! Each container has a root of its own: the machine's programs, with this
//! workspace's `vpn-edge` in place of an image. Its volumes, capabilities and
//! what it may write to are as Kubernetes has them; images, limits, seccomp and
//! users other than root are not looked at.

mod root;
mod volumes;

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, PodSpec, Secret};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use nix::sys::signal::Signal;

use crate::node::{Node, Process};

pub use volumes::Secrets;
use volumes::Volumes;

/// A running pod. It ends when dropped, at once.
pub struct Pod {
    spec: PodSpec,
    node: Node,
    volumes: Volumes,
    running: BTreeMap<String, Process>,
}

impl Pod {
    /// Runs the pod's init containers to their ends, and starts the others. The
    /// node is the pod's own: its network is the pod's.
    ///
    /// # Errors
    ///
    /// When a container fails, with what it printed, or asks for what this
    /// cannot give.
    pub fn run(spec: &PodSpec, secrets: &Secrets, node: &Node) -> Result<Self> {
        let mut pod = Self {
            spec: spec.clone(),
            node: node.clone(),
            volumes: Volumes::make(spec.volumes.as_deref().unwrap_or_default(), secrets, node)?,
            running: BTreeMap::new(),
        };
        for container in spec.init_containers.iter().flatten() {
            let output = node.output(pod.command(container, None)?)?;
            let printed = [output.stdout, output.stderr].concat();
            ensure!(
                output.status.success(),
                "{}: {}: {}",
                container.name,
                output.status,
                String::from_utf8_lossy(&printed).trim()
            );
        }
        for container in &spec.containers {
            let process = node.start(&container.name, pod.command(container, None)?)?;
            pod.running.insert(container.name.clone(), process);
        }
        Ok(pod)
    }

    /// Whether every container runs, and its probes agree: the startup and the
    /// readiness probe, if they are commands or HTTP.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check(&mut self) -> Result<()> {
        for container in &self.spec.containers {
            let process = self.running.get_mut(&container.name);
            let process = process.context("a container was never started")?;
            if !process.running() {
                bail!("{} has ended: {}", container.name, process.log().trim());
            }
            let probes = [&container.startup_probe, &container.readiness_probe];
            for probe in probes.into_iter().flatten() {
                if let Some(http) = &probe.http_get {
                    self.get(container, http)?;
                    continue;
                }
                let exec = probe.exec.as_ref();
                let exec = exec.context("a probe that is neither a command nor HTTP")?;
                let words = exec.command.as_deref().unwrap_or_default();
                self.exec(&container.name, words)?;
            }
        }
        Ok(())
    }

    fn get(&self, container: &Container, probe: &HTTPGetAction) -> Result<()> {
        let port = match &probe.port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => {
                let mut ports = container.ports.iter().flatten();
                let port = ports.find(|port| port.name.as_ref() == Some(name));
                port.context("a probe of an unknown port")?.container_port
            }
        };
        let path = probe.path.as_deref().unwrap_or_default();
        let command = format!("curl -sf http://127.0.0.1:{port}{path}");
        self.node.sh(&command).map(drop)
    }

    /// Runs a command in a container, and gives back what it printed.
    ///
    /// # Errors
    ///
    /// When it fails, with what it printed.
    pub fn exec(&self, container: &str, words: &[impl AsRef<str>]) -> Result<String> {
        let mut all = self.spec.containers.iter();
        let found = all.find(|found| found.name == container);
        let found = found.with_context(|| format!("no container {container}"))?;
        let words: Vec<String> = words.iter().map(|word| word.as_ref().to_owned()).collect();
        crate::edge::stdout(self.node.output(self.command(found, Some(&words))?)?)
    }

    /// Mounts the Secrets as they are now, as a kubelet does in time.
    ///
    /// # Errors
    ///
    /// When one is missing.
    pub fn update(&mut self, secrets: &Secrets) -> Result<()> {
        self.volumes.update(secrets)
    }

    /// The containers' process, by name.
    #[must_use]
    pub fn process(&self, container: &str) -> Option<&Process> {
        self.running.get(container)
    }

    /// What a container printed so far.
    #[must_use]
    pub fn log(&self, container: &str) -> String {
        self.process(container)
            .map(Process::log)
            .unwrap_or_default()
    }

    /// Ends the containers as a kubelet does, and waits for them.
    ///
    /// # Errors
    ///
    /// When one is still there after the pod's grace period.
    pub fn stop(mut self) -> Result<()> {
        let grace = self.spec.termination_grace_period_seconds.unwrap_or(30);
        let running = &mut self.running;
        for process in running
            .values_mut()
            .filter_map(|p| p.running().then_some(p))
        {
            process.signal(Signal::SIGTERM)?;
        }
        let start = std::time::Instant::now();
        while running.values_mut().any(Process::running) {
            ensure!(
                i64::try_from(start.elapsed().as_secs())? < grace,
                "a container did not end in {grace} s"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(())
    }

    /// The container's own command, or another in its place.
    fn command(&self, container: &Container, instead: Option<&[String]>) -> Result<Command> {
        let words = match instead {
            Some(words) => words.to_vec(),
            None => {
                let entrypoint = || vec!["vpn-edge".to_owned()];
                let command = container.command.clone().unwrap_or_else(entrypoint);
                command
                    .into_iter()
                    .chain(container.args.clone().unwrap_or_default())
                    .collect()
            }
        };
        root::command(&self.node, container, &words, &self.volumes)
    }
}

/// One Secret, by name, for [`Pod::run`].
#[must_use]
pub fn secrets(all: impl IntoIterator<Item = Secret>) -> Secrets {
    let all = all.into_iter();
    all.filter_map(|secret| Some((secret.metadata.name?, secret.data.unwrap_or_default())))
        .collect()
}
