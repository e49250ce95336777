//! An edge that is a node of a cluster, and what the controller would write.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use lab::agent::Agent;
use lab::cluster::{Cluster, Identity, Member};
use lab::node::{Lab, Node};
use serde_json::{Value, from_value, json};
use vpn_edge::cluster::{VpnTenant, crd};
use vpn_edge::wireguard::PrivateKey;

const RULES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../manifests/base/agent/rbac.yaml"
);

/// Who the agent is.
pub const AGENT: Identity<'static> = Identity::ServiceAccount {
    namespace: "vpn-edge-system",
    name: "vpn-edge-agent",
};

pub const EDGE: &str = "edge";
pub const WORKER: &str = "worker";

/// The address of a gateway's pod on the edge.
pub const POD: &str = "10.244.1.9";

pub struct Scene {
    pub cluster: Cluster,
    pub agent: Agent,
    /// The gateway's pod on the edge, behind `cali1`.
    pub pod: Node,
    pub edge: Node,
    _members: [Member; 2],
    _lab: Lab,
}

impl Scene {
    /// ```text
    /// world 192.0.2.1 ── eth0 192.0.2.2 edge ── cali1 ── pod 10.244.1.9
    ///                    10.255.1.2 api │
    ///          control plane 10.255.0.1 ┘
    /// ```
    ///
    /// The agent is not started.
    pub fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let (edge, world, pod) = (lab.node(EDGE)?, lab.node("world")?, lab.node("pod")?);
        edge.link("eth0", &world, "eth0")?;
        world.sh("ip address add 192.0.2.1/24 dev eth0")?;
        edge.sh("ip address add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")?;
        cluster.node().link("edge", &edge, "api")?;
        cluster.node().sh("ip address add 10.255.1.1/24 dev edge")?;
        edge.sh("ip address add 10.255.1.2/24 dev api; ip route add 10.255.0.1 via 10.255.1.1")?;
        plug(&edge, &pod, "cali1")?;
        edge.sh("sysctl -qw net.ipv4.ip_forward=1")?;

        apply(&cluster, "definition.yaml", &crd::definition()?)?;
        apply(&cluster, "namespace.yaml", &namespace("vpn-edge-system"))?;
        apply(&cluster, "rbac.yaml", &fs::read_to_string(RULES)?)?;
        let named = [
            "wait",
            "--for=condition=Established",
            "crd/vpntenants.vpn-edge.dev",
        ];
        kubectl(&cluster, &named)?;
        let members = [
            cluster.add_node(EDGE, &[IpAddr::from([192, 0, 2, 2])])?,
            cluster.add_node(WORKER, &[IpAddr::from([192, 0, 2, 10])])?,
        ];
        let server = IpAddr::from([10, 255, 0, 1]);
        let kubeconfig = cluster.kubeconfig_for(AGENT, server)?;
        let agent = Agent::in_cluster(&edge, EDGE, &kubeconfig, &[])?;
        Ok(Self {
            cluster,
            agent,
            pod,
            edge,
            _members: members,
            _lab: lab,
        })
    }

    /// Enables a tenant with this port, of this generation, without a gateway.
    pub fn enable(&self, port: u16, generation: u64) -> Result<()> {
        let namespace = tenant(port);
        let namespaces: Api<Namespace> = Api::all(self.cluster.client());
        let own = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace },
        });
        self.cluster
            .run(namespaces.patch(&namespace, &ours(), &Patch::Apply(own)))?;
        let vpn: Api<VpnTenant> = Api::namespaced(self.cluster.client(), &namespace);
        let wanted = json!({
            "apiVersion": "vpn-edge.dev/v1alpha1", "kind": "VpnTenant",
            "metadata": { "name": "vpn" },
            "spec": {
                "id": id(port), "organisation": "acme", "plan": "business", "ready": true,
                "vpn": { "enabled": true },
            },
        });
        self.cluster
            .run(vpn.patch("vpn", &ours(), &Patch::Apply(wanted)))?;
        self.status(
            port,
            &json!({
                "phase": "enabling", "generation": generation, "port": port,
                "serverPublicKey": PrivateKey::from_bytes([7; 32]).public().to_string(),
            }),
        )
    }

    pub fn disable(&self, port: u16) -> Result<()> {
        let nothing = json!({ "phase": "disabled", "port": null, "serverPublicKey": null });
        self.status(port, &nothing)
    }

    fn status(&self, port: u16, status: &Value) -> Result<()> {
        let vpn: Api<VpnTenant> = Api::namespaced(self.cluster.client(), &tenant(port));
        let patch = Patch::Merge(json!({ "status": status }));
        let params = PatchParams::default();
        self.cluster.run(vpn.patch_status("vpn", &params, &patch))?;
        Ok(())
    }

    /// Puts the tenant's gateway on a node, ready or not.
    pub fn place(&self, port: u16, generation: u64, node: &str, ready: bool) -> Result<()> {
        let address = if node == EDGE { POD } else { "10.244.2.9" };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "vpn-edge-gateway-1",
                "labels": {
                    "app.kubernetes.io/name": "vpn-edge-gateway",
                    "kubernetes.io/service-name": "vpn-edge-gateway",
                    "vpn-edge.dev/tenant": id(port),
                    "vpn-edge.dev/generation": generation.to_string(),
                },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": port, "protocol": "UDP" }],
            "endpoints": [{
                "addresses": [address], "nodeName": node,
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
            }],
        });
        let slices = self.slices(port);
        let patch = Patch::Apply(from_value::<Value>(slice)?);
        self.cluster
            .run(slices.patch("vpn-edge-gateway-1", &ours(), &patch))?;
        Ok(())
    }

    /// Takes the tenant's gateway away.
    pub fn remove(&self, port: u16) -> Result<()> {
        let params = DeleteParams::default();
        self.cluster
            .run(self.slices(port).delete("vpn-edge-gateway-1", &params))?;
        Ok(())
    }

    fn slices(&self, port: u16) -> Api<EndpointSlice> {
        Api::namespaced(self.cluster.client(), &tenant(port))
    }

    /// Ports and what they are steered by, as the kernel has it.
    pub fn modes(&self) -> Result<BTreeMap<u16, String>> {
        let ports = self.agent.ports()?;
        let modes = ports.into_iter();
        let modes = modes.map(|(port, row)| (port, row["mode"].as_str().unwrap_or("?").to_owned()));
        Ok(modes.collect())
    }

    /// Waits until the port map is this.
    pub fn await_modes(&self, wanted: &[(u16, &str)]) -> Result<()> {
        let wanted = wanted
            .iter()
            .map(|(port, mode)| (*port, (*mode).to_owned()));
        let wanted: BTreeMap<u16, String> = wanted.collect();
        let agent = &self.agent;
        let arrived = self.cluster.eventually("the port map follows", async || {
            Ok((self.modes()? == wanted).then_some(()))
        });
        arrived.map_err(|error| {
            let modes = self.modes();
            error.context(format!("{modes:?} is not {wanted:?}\n{}", agent.log()))
        })
    }

    /// Waits until `/healthz` says this.
    pub fn await_said(&self, what: &str) -> Result<String> {
        self.cluster.eventually("what /healthz says", async || {
            let said = self.agent.health_said()?;
            Ok(said.contains(what).then_some(said))
        })
    }
}

/// Links the pod to the edge, as its CNI plugin would.
pub fn plug(edge: &Node, pod: &Node, interface: &str) -> Result<()> {
    edge.link(interface, pod, "eth0")?;
    pod.sh(&format!(
        "ip address add {POD}/32 dev eth0
         ip route add 192.0.2.0/24 dev eth0; ip route add 10.255.1.0/24 dev eth0"
    ))?;
    edge.sh(&format!("ip route add {POD} dev {interface}"))?;
    Ok(())
}

fn ours() -> PatchParams {
    PatchParams::apply("test").force()
}

pub fn tenant(port: u16) -> String {
    format!("tenant-{port}")
}

fn id(port: u16) -> String {
    format!("7c9e6679-7425-40de-944b-{port:012}")
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn apply(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let path = cluster.node().folder.join(name);
    fs::write(&path, text)?;
    kubectl(cluster, &["apply", "-f", &path.display().to_string()])
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    let output = cluster.kubectl(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(())
}
