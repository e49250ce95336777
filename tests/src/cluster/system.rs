//! vpn-edge installed in a cluster, with what the project ships.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use nix::sys::signal::Signal;

use super::{Cluster, Identity};
use crate::node::{Node, Process, program};
use crate::topology::HOSTNAME;

/// The folder of what is shipped.
pub const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// The namespace of agents and controllers.
pub const SYSTEM: &str = "vpn-edge-system";

/// The control plane, as all nodes reach it.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

impl Cluster {
    /// Applies the resource's definition, and the roles of agents and
    /// controllers.
    ///
    /// # Errors
    ///
    /// When the API server refuses something.
    pub fn install(&self) -> Result<()> {
        for file in [
            "base/namespace.yaml",
            "base/crd.yaml",
            "base/admission.yaml",
            "base/agent/rbac.yaml",
            "base/controller/rbac.yaml",
        ] {
            let path = format!("{MANIFESTS}/{file}");
            self.kubectl_said(&["apply", "--namespace", SYSTEM, "-f", &path])?;
        }
        let definition = "crd/vpntenants.vpn-edge.dev";
        self.kubectl_said(&["wait", "--for=condition=Established", definition])?;
        Ok(())
    }

    /// What kubectl prints, as the admin.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn kubectl_said(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The kubeconfig of the agents' account.
    ///
    /// # Errors
    ///
    /// When it is not installed.
    pub fn agents_kubeconfig(&self) -> Result<String> {
        self.kubeconfig_for(account("vpn-edge-agent"), SERVER.into())
    }

    /// What the DaemonSet leaves its agents of root's power.
    ///
    /// # Errors
    ///
    /// When the manifest does not say.
    pub fn agents_capabilities(&self) -> Result<Vec<String>> {
        let path = format!("{MANIFESTS}/base/agent/daemonset.yaml");
        let arguments = ["create", "--dry-run=client", "-o", "json", "-f", &path];
        let set: DaemonSet = serde_json::from_str(&self.kubectl_said(&arguments)?)?;
        let template = set.spec.context("a DaemonSet has a spec")?.template;
        let pod = template.spec.context("a template has a spec")?;
        let all = pod.init_containers.iter().flatten().chain(&pod.containers);
        for container in all {
            let user = container
                .security_context
                .as_ref()
                .and_then(|own| own.run_as_user);
            ensure!(
                user == Some(0),
                "{} is not root, as the image is not",
                container.name
            );
        }
        let security = pod.containers[0].security_context.clone();
        let own = security.and_then(|security| security.capabilities);
        let own = own.context("it says which capabilities it needs")?;
        ensure!(own.drop == Some(vec!["ALL".to_owned()]), "{own:?}");
        Ok(own.add.unwrap_or_default())
    }
}

fn account(name: &'static str) -> Identity<'static> {
    Identity::ServiceAccount {
        namespace: SYSTEM,
        name,
    }
}

/// Makes the API's token file in the node, and gives back its one token.
///
/// # Errors
///
/// When it cannot be written.
pub fn token(node: &Node) -> Result<String> {
    let mut command = node.command(program("vpn-edge")?);
    let file = node.folder.join("tokens").display().to_string();
    command.args(["token", "add", "--file", &file, "--admin"]);
    let output = node.output(command)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A controller's port for its API, in the control plane's node.
#[must_use]
pub fn api(number: usize) -> usize {
    8080 + number
}

/// A controller in the control plane's node.
pub struct Controller {
    node: Node,
    number: usize,
    kubeconfig: PathBuf,
    pool: String,
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Controller {
    /// Starts one with the ports of `pool`, first and last; the node has a file
    /// of tokens already.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn start(cluster: &Cluster, number: usize, pool: &str) -> Result<Self> {
        let node = cluster.node().clone();
        let kubeconfig = node.folder.join("controller.kubeconfig");
        let own = cluster.kubeconfig_for(account("vpn-edge-controller"), SERVER.into())?;
        std::fs::write(&kubeconfig, own)?;
        let mut controller = Self {
            node,
            number,
            kubeconfig,
            pool: format!("{HOSTNAME}={pool}"),
            environment: Vec::new(),
            process: None,
        };
        controller.launch()?;
        Ok(controller)
    }

    /// Starts it with such variables in its environment from now on.
    pub fn change(&mut self, environment: &[(&str, &str)]) {
        let environment = environment.iter();
        self.environment = environment
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
    }

    /// Starts it, which must not be running, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.node.command(program("vpn-edge")?);
        let tokens = self.node.folder.join("tokens");
        let listen = format!("127.0.0.1:{}", api(self.number));
        let metrics = format!("127.0.0.1:{}", 9096 + self.number);
        let identity = format!("controller-{}", self.number);
        command
            .arg("controller")
            .args(["--pool", &self.pool, "--image", "vpn-edge:test"])
            .args(["--listen", &listen, "--metrics", &metrics])
            .args(["--namespace", SYSTEM, "--identity", &identity])
            .arg("--tokens")
            .arg(tokens)
            .envs(self.environment.iter().cloned())
            .env("KUBECONFIG", &self.kubeconfig);
        self.process = Some(self.node.start(&identity, command)?);
        let start = Instant::now();
        while self.asked("readyz").is_err() {
            let process = self.process.as_mut().context("it was started")?;
            ensure!(
                process.running() && start.elapsed().as_secs() < 30,
                "the controller is not ready:\n{}",
                process.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn asked(&self, path: &str) -> Result<String> {
        let port = 9096 + self.number;
        self.node
            .sh(&format!("curl -sf http://127.0.0.1:{port}/{path}"))
    }

    /// Whether it says that it leads.
    ///
    /// # Errors
    ///
    /// When it says nothing.
    pub fn leads(&self) -> Result<bool> {
        let metrics = self.asked("metrics")?;
        Ok(metrics.contains("vpn_edge_controller_leader 1"))
    }

    /// Ends it by a signal.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let mut process = self.process.take().context("no controller runs")?;
        process.signal(signal)?;
        process.wait()?;
        Ok(())
    }

    /// What it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}
