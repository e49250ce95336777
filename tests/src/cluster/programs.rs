//! The control plane's programs, and how they are run here.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::PORT;
use super::certificates::Authority;
use super::identity::{Identity, Proof, kubeconfig};
use crate::node::{Node, Process};

/// How much of a log is shown when something went wrong.
pub(super) const SHOWN: usize = 40;

pub(super) const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
/// The first of the Services' addresses, which is the API server's own.
const OWN_SERVICES: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const SERVICES: &str = "10.96.0.0/12,fd00:96::/112";

/// Starts the programs in a node, with all that they read and write in its
/// folder.
pub(super) struct Programs {
    folder: PathBuf,
    node: Node,
    address: IpAddr,
}

/// By default they ask the API server for little a second, which is what a
/// measurement with many tenants would measure.
const UNLIMITED: [&str; 2] = ["--kube-api-qps=2000", "--kube-api-burst=4000"];

impl Programs {
    /// Finds the programs, and writes keys and certificates for them.
    pub fn prepare(node: &Node, addresses: &[IpAddr], authority: &Authority) -> Result<Self> {
        let address = *addresses.first().context("the cluster has no address")?;
        let programs = Self {
            folder: folder()?,
            node: node.clone(),
            address,
        };
        let mut names: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        names.extend(["127.0.0.1", "localhost", "kubernetes"].map(str::to_owned));
        names.extend(["kubernetes.default", "kubernetes.default.svc"].map(str::to_owned));
        names.extend(OWN_SERVICES.map(str::to_owned));
        let server = authority.server(names)?;
        programs.write("ca.pem", &authority.certificate)?;
        programs.write("server.pem", &server.certificate)?;
        programs.write("server.key", &server.key)?;
        let accounts = rcgen::KeyPair::generate()?;
        programs.write("accounts.key", &accounts.serialize_pem())?;
        programs.write("accounts.pub", &accounts.public_key_pem())?;
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let user = format!("system:{name}");
            programs.kubeconfig(name, authority, &user, None)?;
        }
        if let Identity::User { name, group } = Identity::ADMIN {
            programs.kubeconfig(name, authority, name, group)?;
        }
        Ok(programs)
    }

    pub fn etcd(&self) -> Result<Process> {
        let mut etcd = self.command("etcd");
        etcd.arg(self.option("data-dir", "etcd"))
            .arg("--name=lab")
            .arg(format!("--listen-client-urls={ETCD}"))
            .arg(format!("--advertise-client-urls={ETCD}"))
            .arg(format!("--listen-peer-urls={ETCD_PEER}"))
            .arg(format!("--initial-advertise-peer-urls={ETCD_PEER}"))
            .arg(format!("--initial-cluster=lab={ETCD_PEER}"))
            // What it holds is to outlive the API server, not the machine.
            .args(["--unsafe-no-fsync", "--log-level=warn"]);
        self.start("etcd", etcd)
    }

    pub fn api_server(&self) -> Result<Process> {
        let mut server = self.command("kube-apiserver");
        server
            .arg(format!("--etcd-servers={ETCD}"))
            .arg(format!("--secure-port={PORT}"))
            .arg(format!("--advertise-address={}", self.address))
            .arg(self.option("client-ca-file", "ca.pem"))
            .arg(self.option("tls-cert-file", "server.pem"))
            .arg(self.option("tls-private-key-file", "server.key"))
            .arg(self.option("cert-dir", "kube-apiserver"))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(self.option("service-account-key-file", "accounts.pub"))
            .arg(self.option("service-account-signing-key-file", "accounts.key"))
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            .args(["--authorization-mode=RBAC", "--allow-privileged=true"]);
        self.start("kube-apiserver", server)
    }

    pub fn controller_manager(&self) -> Result<Process> {
        let mut manager = self.client("kube-controller-manager");
        manager
            .arg(self.option("root-ca-file", "ca.pem"))
            .arg(self.option("service-account-private-key-file", "accounts.key"))
            .arg(self.option("cert-dir", "kube-controller-manager"))
            .arg("--use-service-account-credentials=true")
            // A test of a dead node need not wait for the default's 50 s.
            .args([
                "--node-monitor-period=1s",
                "--node-monitor-grace-period=16s",
            ]);
        manager.args(UNLIMITED);
        self.start("kube-controller-manager", manager)
    }

    pub fn scheduler(&self) -> Result<Process> {
        let mut scheduler = self.client("kube-scheduler");
        scheduler.args(UNLIMITED);
        self.start("kube-scheduler", scheduler)
    }

    /// As the admin. Its caches go to the node's folder.
    pub fn kubectl(&self) -> Command {
        let mut kubectl = self.command("kubectl");
        kubectl
            .env("KUBECONFIG", self.path("admin.kubeconfig"))
            .env("HOME", &self.node.folder);
        kubectl
    }

    /// The admin's kubeconfig, which works in the control plane's node.
    pub fn admin(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("admin.kubeconfig"))?)
    }

    fn client(&self, name: &str) -> Command {
        let kubeconfig = format!("{name}.kubeconfig");
        let mut command = self.command(name);
        command
            .arg(self.option("kubeconfig", &kubeconfig))
            .arg(self.option("authentication-kubeconfig", &kubeconfig))
            .arg(self.option("authorization-kubeconfig", &kubeconfig))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        command
    }

    fn kubeconfig(
        &self,
        file: &str,
        authority: &Authority,
        user: &str,
        group: Option<&str>,
    ) -> Result<()> {
        let proof = Proof::Certificate(authority.client(user, group)?);
        let server = IpAddr::from([127, 0, 0, 1]);
        let text = kubeconfig(&authority.certificate, server, "default", &proof);
        self.write(&format!("{file}.kubeconfig"), &text)
    }

    fn command(&self, name: &str) -> Command {
        self.node.command(self.folder.join(name))
    }

    fn start(&self, name: &str, command: Command) -> Result<Process> {
        Ok(self.node.start(name, command)?.show_last(SHOWN))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.node.folder.join(name)
    }

    fn option(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.path(file).display())
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.path(name), text)?)
    }
}

fn folder() -> Result<PathBuf> {
    let given = env::var_os("VPN_EDGE_KUBERNETES").or_else(|| env::var_os("KUBEBUILDER_ASSETS"));
    let folder = given.context(
        "VPN_EDGE_KUBERNETES is not set: use `cargo xtask test`, or set it to what `cargo xtask kubernetes` prints",
    )?;
    let folder = Path::new(&folder).to_path_buf();
    ensure!(
        folder.join("kube-apiserver").is_file(),
        "there is no kube-apiserver in {}",
        folder.display()
    );
    Ok(folder)
}
