//! A cluster with one node that runs pods, and a controller.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail, ensure};
use lab::cluster::{Cluster, Controller, Kubelet, MANIFESTS, Member, SYSTEM, Worker, api, token};
use lab::node::{Lab, program};
use serde_json::Value;

use crate::fixture::Fixture;

/// The ports of the one pool.
const POOL: &str = "30000-30009";

/// A tenant of the cluster's fixtures.
pub struct Tenant {
    pub name: &'static str,
    pub id: &'static str,
    /// Of its spec, what is its own.
    pub spec: &'static str,
    /// It has a gateway that serves, and a client.
    pub connects: bool,
    /// In the end.
    pub phase: &'static str,
}

/// The public key of [`Tenant`] `given`; nobody has the private one.
const GIVEN: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

pub const TENANTS: [Tenant; 6] = [
    Tenant {
        name: "made",
        id: "00000000-0000-4000-8000-000000000011",
        spec: "{plan: business, ready: true, networks: [10.97.1.0/24], vpn: {enabled: true}}",
        connects: true,
        phase: "enabled",
    },
    Tenant {
        name: "given",
        id: "00000000-0000-4000-8000-000000000012",
        spec: "{plan: business, ready: true, networks: [10.97.2.0/24, 10.98.0.0/16], \
                vpn: {enabled: true, clientPublicKey: GIVEN}}",
        connects: true,
        phase: "enabled",
    },
    Tenant {
        name: "rotated",
        id: "00000000-0000-4000-8000-000000000013",
        spec: "{plan: enterprise_cloud, ready: true, vpn: {enabled: true}, \
                gateway: {resources: {requests: {memory: 48Mi}}}}",
        connects: true,
        phase: "enabled",
    },
    Tenant {
        name: "disabled",
        id: "00000000-0000-4000-8000-000000000014",
        spec: "{plan: business, ready: true, networks: [10.99.0.0/16], vpn: {enabled: true}}",
        connects: false,
        phase: "disabled",
    },
    Tenant {
        name: "unavailable",
        id: "00000000-0000-4000-8000-000000000015",
        spec: "{plan: team, ready: true}",
        connects: false,
        phase: "unavailable",
    },
    Tenant {
        name: "failed",
        id: "00000000-0000-4000-8000-000000000016",
        spec: "{plan: business, ready: true, vpn: {enabled: true}, \
                gateway: {nodeSelector: {disk: fast}}}",
        connects: false,
        phase: "failed",
    },
];

const NEWCOMER: Tenant = Tenant {
    name: "newcomer",
    id: "00000000-0000-4000-8000-000000000017",
    spec: "{plan: business, ready: true, vpn: {enabled: true}}",
    connects: true,
    phase: "enabled",
};

impl Tenant {
    pub fn namespace(&self) -> String {
        format!("tenant-{}", self.name)
    }

    fn yaml(&self) -> String {
        format!(
            "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: vpn-edge.dev/v1alpha1
kind: VpnTenant
metadata: {{name: vpn, namespace: {namespace}}}
spec: {{id: {id}, organisation: acme, {spec}
",
            namespace = self.namespace(),
            id = self.id,
            spec = self.spec.replace("GIVEN", GIVEN).trim_start_matches('{'),
        )
    }
}

pub struct Scene {
    controller: Option<Controller>,
    _kubelet: Kubelet,
    worker: Worker,
    _member: Member,
    token: String,
    pub cluster: Cluster,
    _lab: Lab,
}

impl Scene {
    /// A cluster in which this build is installed, with no tenant.
    pub fn new() -> Result<Self> {
        let (lab, cluster, member) = Self::empty()?;
        cluster.install()?;
        let mut scene = Self::with_pods(lab, cluster, member)?;
        scene.lead()?;
        Ok(scene)
    }

    /// A cluster that has what the version left, with this build's definitions
    /// and roles applied over it, and no controller yet.
    pub fn restored(fixture: &Fixture, objects: &[Value]) -> Result<Self> {
        let (lab, mut cluster, member) = Self::empty()?;
        let definition = fixture.path("cluster/crd.yaml").display().to_string();
        cluster.kubectl_said(&["apply", "-f", &definition])?;
        let established = ["wait", "--for=condition=Established"];
        cluster.kubectl_said(&[&established[..], &["crd/vpntenants.vpn-edge.dev"]].concat())?;
        let namespace = format!("{MANIFESTS}/base/namespace.yaml");
        cluster.kubectl_said(&["apply", "-f", &namespace])?;
        cluster.restore(objects)?;
        cluster.install()?;
        let scene = Self::with_pods(lab, cluster, member)?;
        let connect = TENANTS.iter().filter(|tenant| tenant.connects).count();
        scene.cluster.eventually("the gateways' pods", async || {
            Ok((scene.worker.pods() == connect).then_some(()))
        })?;
        for tenant in TENANTS.iter().filter(|tenant| tenant.connects) {
            let ready = ["wait", "--for=condition=Available", "--timeout=60s"];
            let gateway = ["deployment/vpn-edge-gateway", "-n", &tenant.namespace()];
            scene
                .cluster
                .kubectl_said(&[&ready[..], &gateway].concat())?;
        }
        Ok(scene)
    }

    fn empty() -> Result<(Lab, Cluster, Member)> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let member = cluster.add_node("worker", &[IpAddr::from([192, 0, 2, 1])])?;
        Ok((lab, cluster, member))
    }

    fn with_pods(lab: Lab, cluster: Cluster, member: Member) -> Result<Self> {
        let node = lab.node("worker")?;
        let range = Ipv4Addr::new(100, 64, 1, 0);
        let worker = Worker::new(&lab, &node, cluster.client(), range)?;
        Ok(Self {
            controller: None,
            _kubelet: Kubelet::start(&member, worker.clone()),
            worker,
            _member: member,
            token: token(cluster.node())?,
            cluster,
            _lab: lab,
        })
    }

    /// Starts this build's controller, and waits until it leads.
    pub fn lead(&mut self) -> Result<()> {
        let controller = Controller::start(&self.cluster, 0, POOL)?;
        let leads = self
            .cluster
            .eventually("a leader", async || Ok(controller.leads()?.then_some(())));
        leads.with_context(|| controller.log())?;
        self.controller = Some(controller);
        Ok(())
    }

    /// Waits until the controller has looked at all gateways: until it has
    /// changed back what somebody changes now.
    pub fn await_looked(&self) -> Result<()> {
        for tenant in TENANTS.iter().filter(|tenant| tenant.connects) {
            let namespace = tenant.namespace();
            let policy = ["networkpolicy", "vpn-edge-gateway", "-n", &namespace];
            let egress = || {
                let path = "jsonpath={.spec.egress}";
                self.cluster
                    .kubectl_said(&[&["get"], &policy[..], &["-o", path]].concat())
            };
            let before = egress()?;
            let open = ["--type=merge", "-p", r#"{"spec":{"egress":[{}]}}"#];
            self.cluster
                .kubectl_said(&[&["patch"], &policy[..], &open].concat())?;
            let looked = self
                .cluster
                .eventually("its policy is changed back", async || {
                    Ok((egress()? == before).then_some(()))
                });
            looked.with_context(|| self.log())?;
        }
        Ok(())
    }

    /// Makes the tenants, by YAML and by the API.
    pub fn fill(&self) -> Result<()> {
        for tenant in &TENANTS {
            self.apply(tenant)?;
        }
        for tenant in TENANTS.iter().filter(|tenant| tenant.connects) {
            self.await_phase(tenant, "enabled")?;
        }
        let of = |name: &str| {
            let found = TENANTS.iter().find(|tenant| tenant.name == name);
            found.context("no such tenant")
        };
        self.await_phase(of("disabled")?, "enabled")?;
        self.vpn_edge(&["tenant", "disable", of("disabled")?.id])?;
        self.vpn_edge(&["tenant", "regenerate", of("rotated")?.id])?;
        ensure!(
            self.vpn_edge(&["tenant", "enable", of("unavailable")?.id])
                .is_err()
        );
        for tenant in &TENANTS {
            self.await_phase(tenant, tenant.phase)?;
        }
        // Until the old pods are gone.
        let connect = TENANTS.iter().filter(|tenant| tenant.connects).count();
        self.cluster.eventually("the gateways' pods", async || {
            Ok((self.worker.pods() == connect).then_some(()))
        })
    }

    /// Makes one more tenant; the port that it got.
    pub fn newcomer(&self) -> Result<u64> {
        self.apply(&NEWCOMER)?;
        self.await_phase(&NEWCOMER, "enabled")?;
        let status = self.vpn_edge(&["tenant", "status", NEWCOMER.id, "--output", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        status["port"].as_u64().context("no port")
    }

    fn apply(&self, tenant: &Tenant) -> Result<()> {
        let path = self.cluster.node().folder.join("applied.yaml");
        std::fs::write(&path, tenant.yaml())?;
        let path = path.display().to_string();
        self.cluster.kubectl_said(&["apply", "-f", &path]).map(drop)
    }

    fn await_phase(&self, tenant: &Tenant, phase: &str) -> Result<()> {
        let namespace = tenant.namespace();
        let path = "jsonpath={.status.phase}";
        let get = ["get", "vpntenant", "vpn", "-n", &namespace, "-o", path];
        let arrived = self.cluster.eventually("the phase", async || {
            let now = self.cluster.kubectl_said(&get)?;
            if now == phase {
                return Ok(Some(()));
            }
            bail!("{} is {now:?} and not {phase}", tenant.name)
        });
        arrived.with_context(|| self.log())
    }

    fn log(&self) -> String {
        let controller = self.controller.as_ref();
        controller.map(Controller::log).unwrap_or_default()
    }

    /// What `vpn-edge` prints that asks the controller's API.
    pub fn vpn_edge(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster.node().command(program("vpn-edge")?);
        command
            .args(arguments)
            .env("VPN_EDGE_TOKEN", &self.token)
            .env("VPN_EDGE_SERVER", format!("http://127.0.0.1:{}", api(0)));
        lab::edge::stdout(self.cluster.node().output(command)?)
    }

    /// All that there is of the tenants, as the API server has it: in their
    /// namespaces, and in that of the system.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let get = |arguments: &[&str]| -> Result<Vec<Value>> {
            let json = ["-o", "json", "--show-managed-fields"];
            let text = self
                .cluster
                .kubectl_said(&[&["get"], arguments, &json].concat())?;
            let list: Value = serde_json::from_str(&text)?;
            Ok(list["items"].as_array().context("no list")?.clone())
        };
        let namespaces: Vec<String> = TENANTS.iter().map(Tenant::namespace).collect();
        let names: Vec<&str> = namespaces.iter().map(String::as_str).collect();
        let mut objects = get(&[&["namespaces"], &names[..]].concat())?;
        let kinds = "vpntenants,secrets,services,deployments,replicasets,pods,networkpolicies";
        for namespace in &names {
            objects.extend(get(&[kinds, "-n", namespace])?);
        }
        objects.extend(get(&["leases", "-n", SYSTEM])?);
        let maps = get(&["configmaps", "-n", SYSTEM])?;
        objects.extend(maps.into_iter().filter(|map| {
            let name = map["metadata"]["name"].as_str();
            name.is_some_and(|name| name.starts_with("vpn-edge-audit-"))
        }));
        Ok(objects)
    }

    /// Ends the controller as an operator would.
    pub fn end(&mut self) -> Result<()> {
        let mut controller = self.controller.take().context("no controller runs")?;
        controller.end(nix::sys::signal::Signal::SIGTERM)
    }
}
