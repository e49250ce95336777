//! A Kubernetes control plane in one node of the lab.
//!
//! etcd, API server, controller manager and scheduler are the real ones. All
//! listen in the control plane's node alone, whose network no other shares;
//! whatever node is linked to it reaches the API server at its address. What
//! runs containers is the test's own, see [`Containers`].

mod account;
mod certificates;
mod connect;
mod identity;
mod kubelet;
mod member;
mod pod;
mod programs;
mod restore;
mod system;
mod worker;

use std::future::Future;
use std::net::IpAddr;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::runtime::{self, Handle, Runtime};
use tokio::time::{sleep, timeout};

use crate::node::{Lab, Node, Process};
use certificates::Authority;
use identity::Proof;
use programs::{Programs, SHOWN};

pub use identity::Identity;
pub use kubelet::{Containers, Kubelet};
pub use member::Member;
pub use system::{Controller, MANIFESTS, SERVER, SYSTEM, api, token};
pub use worker::Worker;

/// Where the API server listens, on all addresses of its node.
pub const PORT: u16 = 6443;

/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// How long a wait may take before it has failed.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running control plane. It ends when dropped.
pub struct Cluster {
    client: Client,
    authority: Authority,
    programs: Programs,
    api_server: Option<Process>,
    /// etcd, controller manager, scheduler.
    others: Vec<Process>,
    node: Node,
    /// Missing only while this is dropped.
    runtime: Option<Runtime>,
}

impl Cluster {
    /// A control plane in a node of its own, at 10.255.0.1. Other nodes reach
    /// it once linked, with routes: [`Cluster::node`].
    ///
    /// # Errors
    ///
    /// When it does not come up; the error has the ends of the logs.
    pub fn start(lab: &Lab) -> Result<Self> {
        let node = lab.node("control-plane")?;
        node.sh("ip address add 10.255.0.1/32 dev lo")?;
        Self::start_on(&node, &[IpAddr::from([10, 255, 0, 1])])
    }

    /// A control plane in this node, which has these addresses, an IPv4 one
    /// first.
    ///
    /// # Errors
    ///
    /// When it does not come up; the error has the ends of the logs.
    pub fn start_on(node: &Node, addresses: &[IpAddr]) -> Result<Self> {
        let authority = Authority::new()?;
        let programs = Programs::prepare(node, addresses, &authority)?;
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let client = runtime.block_on(connect::client(node, &programs.admin()?))?;
        let mut cluster = Self {
            client,
            authority,
            programs,
            api_server: None,
            others: Vec::new(),
            node: node.clone(),
            runtime: Some(runtime),
        };
        cluster.others.push(cluster.programs.etcd()?);
        cluster.start_api_server()?;
        cluster.others.push(cluster.programs.controller_manager()?);
        cluster.others.push(cluster.programs.scheduler()?);
        // The controller manager makes it: from here on pods are admitted.
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), "default");
        cluster.await_up("the default service account", async || {
            Ok(accounts.get_opt("default").await?.is_some())
        })?;
        Ok(cluster)
    }

    /// The node that all of it runs in.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The admin's client. It works on every thread, on the runtime of
    /// [`Cluster::run`].
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client for somebody, who reaches the API server as the admin does.
    ///
    /// # Errors
    ///
    /// When there is no such service account.
    pub fn client_as(&self, who: Identity<'_>) -> Result<Client> {
        self.client_in(&self.node, who, IpAddr::from([127, 0, 0, 1]))
    }

    /// A client for somebody in another node, who reaches the API server at
    /// this address.
    ///
    /// # Errors
    ///
    /// When there is no such service account.
    pub fn client_in(&self, node: &Node, who: Identity<'_>, server: IpAddr) -> Result<Client> {
        let kubeconfig = self.kubeconfig_for(who, server)?;
        self.run(connect::client(node, &kubeconfig))
    }

    /// A kubeconfig for somebody who reaches the API server at this address,
    /// which must be one that the cluster was started with.
    ///
    /// # Errors
    ///
    /// When there is no such service account.
    pub fn kubeconfig_for(&self, who: Identity<'_>, server: IpAddr) -> Result<String> {
        let (namespace, proof) = match who {
            Identity::User { name, group } => {
                let pair = self.authority.client(name, group)?;
                ("default", Proof::Certificate(pair))
            }
            Identity::ServiceAccount { namespace, name } => {
                (namespace, Proof::Token(self.token(namespace, name)?))
            }
        };
        let authority = &self.authority.certificate;
        Ok(identity::kubeconfig(authority, server, namespace, &proof))
    }

    /// A token for a service account, good for an hour.
    ///
    /// # Errors
    ///
    /// When there is no such service account.
    pub fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let request = TokenRequest::default();
        let answer = self.run(async {
            let params = PostParams::default();
            accounts
                .create_token_request(account, &params, &request)
                .await
        });
        let token = answer?.status.and_then(|status| status.token);
        token.context("a token request without a token")
    }

    /// The authority that signed the API server's certificate, as PEM.
    #[must_use]
    pub fn certificate_authority(&self) -> &str {
        &self.authority.certificate
    }

    /// Runs kubectl as the admin, from the root folder.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        let mut kubectl = self.programs.kubectl();
        kubectl.args(args);
        self.node.output(kubectl)
    }

    /// Runs a future to its end.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.handle().block_on(future)
    }

    /// Asks again and again until there is an answer. An error is an answer
    /// that may yet change.
    ///
    /// # Errors
    ///
    /// When there is none after a while, with the last error.
    pub fn eventually<T>(
        &self,
        what: &str,
        ask: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.run(eventually(what, ask))
    }

    /// Kills the API server. What it has stored stays.
    pub fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not come up; the error has the ends of the logs.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.api_server = Some(self.programs.api_server()?);
        let client = self.client();
        self.await_up("the API server", async || {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(client.request_text(request).await? == "ok")
        })
    }

    /// Waits as long as all programs run.
    fn await_up(&mut self, what: &str, check: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let handle = self.handle();
        let start = Instant::now();
        let mut last = String::new();
        let why = loop {
            match handle.block_on(async { timeout(TIMEOUT, check()).await }) {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => last = format!("{error:#}"),
                Err(_) => last = "no answer".to_owned(),
            }
            let mut programs = self.api_server.iter_mut().chain(&mut self.others);
            if programs.any(|program| !program.running()) {
                break "a program ended".to_owned();
            }
            if start.elapsed() > TIMEOUT {
                break last;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let programs = self.api_server.iter().chain(&self.others);
        let logs: Vec<String> = programs
            .map(|program| format!("--- {}\n{}", program.name(), program.tail(SHOWN)))
            .collect();
        bail!("{what} does not come up: {why}\n{}", logs.join("\n"))
    }

    fn handle(&self) -> Handle {
        let runtime = self.runtime.as_ref();
        runtime.expect("is there until dropped").handle().clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Without waiting for a callback of the test that does not return.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

/// As [`Cluster::eventually`], for use in futures.
///
/// # Errors
///
/// When there is no answer after a while, with the last error.
pub async fn eventually<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < TIMEOUT {
        match timeout(TIMEOUT, ask()).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) => last = None,
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(anyhow!("no answer")),
        }
        sleep(RETRY / 2).await;
    }
    let last = last.unwrap_or_else(|| anyhow!("did not happen"));
    Err(last.context(what.to_owned()))
}
