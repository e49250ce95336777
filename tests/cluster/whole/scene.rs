//! All of it: clients, the load balancer, two edges, two workers, and the
//! control plane with two controllers, each under the roles that are shipped.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use lab::agent::Agent;
use lab::client::Client;
use lab::cluster::{
    Cluster, Controller, Kubelet, MANIFESTS, Member, SERVER, SYSTEM, Worker, api, token,
};
use lab::node::{Node as Host, program};
use lab::region::{EDGES, Family, Region, WORKERS};
use lab::topology::{HOSTNAME, Side};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vpn_edge::cluster::{GATEWAY, VpnTenant};

pub struct Scene {
    pub controllers: Vec<Controller>,
    /// As [`lab::region::EDGES`], and then [`WORKERS`].
    pub agents: Vec<Agent>,
    /// By their places among the hosts, without those that died.
    kubelets: BTreeMap<usize, Kubelet>,
    members: BTreeMap<usize, Member>,
    /// What their pods are run by, which go on without a kubelet.
    workers: Vec<Worker>,
    pub cluster: Cluster,
    pub token: String,
    pub region: Region,
}

/// A tenant of the scene.
#[derive(Clone, Copy)]
pub struct Tenant {
    pub id: &'static str,
    pub namespace: &'static str,
    pub side: Side,
}

impl Scene {
    /// Everything runs, and there is no tenant.
    pub fn new() -> Result<Self> {
        let mut scene = Self::empty()?;
        scene.cluster.install()?;
        scene.start_agents()?;
        // Edges run no pods here.
        for edge in EDGES {
            scene.cluster.kubectl_said(&["cordon", edge.name])?;
        }
        scene.run_pods(2..4)?;
        scene.start_controllers()?;
        Ok(scene)
    }

    /// As [`Scene::new`], but installed by an overlay: the agents are pods, and
    /// only the controllers are not.
    pub fn installed(overlay: &str) -> Result<Self> {
        let mut scene = Self::empty()?;
        for edge in EDGES {
            scene.cluster.kubectl_said(&["cordon", edge.name])?;
        }
        scene.run_pods(0..4)?;
        let folder = format!("{MANIFESTS}/overlays/{overlay}");
        scene.kubectl(&["apply", "-k", &folder])?;
        let controller = "deployment/vpn-edge-controller";
        scene.kubectl(&["scale", "--replicas=0", "-n", SYSTEM, controller])?;
        let agent = "daemonset/vpn-edge-agent";
        scene.kubectl(&["rollout", "status", "-n", SYSTEM, agent, "--timeout=60s"])?;
        scene.start_controllers()?;
        Ok(scene)
    }

    /// Machines and control plane, with nothing of ours.
    fn empty() -> Result<Self> {
        let region = Region::new()?;
        // Pods have IPv4 alone, as a Worker makes them.
        for client in [&region.client_a, &region.client_b] {
            region.names(client, &[Family::V4])?;
        }
        let cluster = Cluster::start(&region.lab)?;
        for (number, (host, node)) in region.hosts().enumerate() {
            let net = format!("10.255.{}", number + 1);
            cluster.node().link(host.name, node, "api")?;
            cluster
                .node()
                .sh(&format!("ip address add {net}.1/30 dev {}", host.name))?;
            node.sh(&format!(
                "ip address add {net}.2/30 dev api; ip route add {SERVER} via {net}.1"
            ))?;
        }
        let mut members = BTreeMap::new();
        for (at, (host, _)) in region.hosts().enumerate() {
            let member = cluster.add_node(host.name, &[host.v4.parse()?, host.v6.parse()?])?;
            members.insert(at, member);
        }
        Ok(Self {
            controllers: Vec::new(),
            agents: Vec::new(),
            kubelets: BTreeMap::new(),
            members,
            workers: Vec::new(),
            token: token(cluster.node())?,
            cluster,
            region,
        })
    }

    fn start_agents(&mut self) -> Result<()> {
        let capabilities = self.cluster.agents_capabilities()?;
        for (host, node) in self.region.hosts() {
            let kubeconfig = self.cluster.agents_kubeconfig()?;
            let mut agent = Agent::in_cluster(node, host.name, &kubeconfig, &[])?;
            agent.prepare_node()?;
            agent.confine(&capabilities);
            agent.restart()?;
            let log = agent.log();
            ensure!(!log.contains("WARN"), "{log}");
            self.agents.push(agent);
        }
        Ok(())
    }

    /// Runs the pods of these hosts, counted as [`Region::hosts`] has them.
    fn run_pods(&mut self, which: Range<usize>) -> Result<()> {
        for (at, (_, node)) in self.region.hosts().enumerate() {
            if which.contains(&at) {
                // The workers' as the cluster routes them, and no edge has any.
                let range = Ipv4Addr::new(100, 62 + at as u8, 0, 9);
                let worker = Worker::new(&self.region.lab, node, self.cluster.client(), range)?;
                let kubelet = Kubelet::start(&self.members[&at], worker.clone());
                self.kubelets.insert(at, kubelet);
                self.workers.push(worker);
            }
        }
        Ok(())
    }

    fn start_controllers(&mut self) -> Result<()> {
        for number in 0..2 {
            let controller = Controller::start(&self.cluster, number, "30000-30019")?;
            self.controllers.push(controller);
        }
        Ok(())
    }

    /// Ends the controllers, and starts them with such an environment.
    pub fn change(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        for controller in &mut self.controllers {
            controller.end(Signal::SIGTERM)?;
        }
        for controller in &mut self.controllers {
            controller.change(environment);
            controller.launch()?;
        }
        Ok(())
    }

    /// Applies YAML as a tenant's GitOps would.
    pub fn apply(&self, text: &str) -> Result<()> {
        let path = self.cluster.node().folder.join("applied.yaml");
        std::fs::write(&path, text)?;
        self.cluster
            .kubectl_said(&["apply", "-f", &path.display().to_string()])
            .map(drop)
    }

    /// Changes a tenant's spec.
    pub fn patch(&self, tenant: &Tenant, spec: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let params = PatchParams::default();
        self.cluster
            .run(self.resource(tenant).patch("vpn", &params, &patch))?;
        Ok(())
    }

    pub fn resource(&self, tenant: &Tenant) -> Api<VpnTenant> {
        Api::namespaced(self.cluster.client(), tenant.namespace)
    }

    /// Waits for a phase, and for keys of this generation at least of the
    /// spec's.
    pub fn await_phase(&self, tenant: &Tenant, phase: &str, key_generation: i64) -> Result<()> {
        let resource = self.resource(tenant);
        let arrived = self.cluster.eventually("the phase", async || {
            let status = resource.get("vpn").await?.status.unwrap_or_default();
            let now = status.phase.map_or("none", |phase| phase.as_str());
            if now == phase && status.key_generation == key_generation {
                return Ok(Some(()));
            }
            bail!("{status:?}")
        });
        arrived.map_err(|error| {
            let logs = self.controllers.iter().map(Controller::log);
            error.context(logs.collect::<Vec<_>>().join("\n--\n"))
        })
    }

    /// Runs `vpn-edge tenant` against the API of a controller.
    pub fn tenant(&self, controller: usize, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster.node().command(program("vpn-edge")?);
        command
            .arg("tenant")
            .args(arguments)
            .env("VPN_EDGE_TOKEN", &self.token)
            .env(
                "VPN_EDGE_SERVER",
                format!("http://127.0.0.1:{}", api(controller)),
            );
        let output = self.cluster.node().output(command)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        ensure!(
            output.status.success(),
            "vpn-edge tenant {arguments:?}: {}",
            text(output.stderr)
        );
        Ok(text(output.stdout))
    }

    /// Brings a client's tunnel up with the configuration as downloaded now.
    pub fn connect(&self, node: &Host, tenant: &Tenant) -> Result<Client> {
        let configuration = self.tenant(0, &["config", tenant.id])?;
        ensure!(configuration.contains(HOSTNAME), "{configuration}");
        let client = Client::up(node, &configuration)?;
        client.await_reach(tenant.side.server).map_err(|error| {
            let agents = self.agents.iter();
            let seen = agents.map(|agent| {
                let ports = agent.vpn_edge(&["ports"]).unwrap_or_default();
                let drops = agent.vpn_edge(&["drops"]).unwrap_or_default();
                format!("{}\n{ports}\n{drops}\n{}", agent.node.name, agent.log())
            });
            error.context(seen.collect::<Vec<_>>().join("\n"))
        })?;
        Ok(client)
    }

    /// The uids of the tenant's pods.
    pub fn pods(&self, tenant: &Tenant) -> Result<String> {
        let jsonpath = "-o=jsonpath={.items[*].metadata.uid}";
        self.kubectl(&["get", "pods", "-n", tenant.namespace, jsonpath])
    }

    /// The rules of the one gateway that runs.
    pub fn rules(&self) -> Result<String> {
        let look = |_: &mut lab::pod::Pod, node: &Host| node.sh("nft list table inet vpn-edge");
        let mut workers = self.workers.iter();
        let rules = workers.find_map(|worker| worker.with(GATEWAY, look));
        rules.context("no gateway runs")?
    }

    /// The worker that the tenant's pod is on.
    pub fn worker_of(&self, tenant: &Tenant) -> Result<usize> {
        let jsonpath = "-o=jsonpath={.items[*].spec.nodeName}";
        let arguments = ["get", "pods", "-n", tenant.namespace, jsonpath];
        let name = self.cluster.kubectl_said(&arguments)?;
        let at = WORKERS.iter().position(|worker| worker.name == name.trim());
        at.with_context(|| format!("no pod alone on a worker: {name:?}"))
    }

    /// Cuts a worker off from the control plane, with its pods running, and
    /// waits until it is taken for dead.
    pub fn lose_worker(&mut self, at: usize) -> Result<()> {
        let host = EDGES.len() + at;
        self.kubelets.remove(&host);
        self.members.remove(&host);
        let nodes: Api<Node> = Api::all(self.cluster.client());
        self.cluster.eventually("a dead node", async || {
            let status = nodes.get(WORKERS[at].name).await?.status;
            let conditions = status.and_then(|status| status.conditions);
            let mut conditions = conditions.into_iter().flatten();
            let is_down = conditions.any(|found| found.type_ == "Ready" && found.status != "True");
            Ok(is_down.then_some(()))
        })
    }

    /// The nodes of the tenant's pods that are not to end.
    pub fn nodes_of(&self, tenant: &Tenant) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client(), tenant.namespace);
        let pods = self.cluster.run(pods.list(&ListParams::default()))?;
        let stay = pods
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(stay.filter_map(|pod| pod.spec?.node_name).collect())
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl_said(arguments)
    }

    /// What is left of tenants in the whole cluster.
    pub fn left(&self) -> Result<Vec<String>> {
        let kinds = "vpntenants,deployments,services,secrets,networkpolicies,endpointslices,pods";
        let all = self.kubectl(&["get", kinds, "-A", "-o", "name"])?;
        let ours = |name: &&str| {
            ["vpntenant.", "/vpn-edge-gateway", "/vpn-edge-keys"]
                .iter()
                .any(|part| name.contains(part))
        };
        Ok(all.lines().filter(ours).map(str::to_owned).collect())
    }
}
