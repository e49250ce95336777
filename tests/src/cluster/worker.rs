//! A node of the cluster whose pods are for real.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod as Asked, Secret};
use kube::{Api, Client, ResourceExt};
use tokio::runtime::Handle;

use super::{Containers, account};
use crate::node::{Lab, Node};
use crate::pod::{Pod, Secrets};

/// The worker, as its pods see it: their next hop.
const WORKER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Runs pods behind a node of the lab, each in a node of its own, with an
/// address out of the worker's range; or in the worker itself, if they are on
/// the host's network.
#[derive(Clone)]
pub struct Worker {
    lab: Lab,
    node: Node,
    /// Reads the Secrets that pods mount.
    client: Client,
    /// The last one that was given out.
    last: Arc<Mutex<Ipv4Addr>>,
    running: Arc<Mutex<HashMap<String, Running>>>,
}

/// A pod that runs, and where.
struct Running {
    name: String,
    node: Node,
    pod: Pod,
    /// Its network is the worker's.
    on_host: bool,
}

impl Worker {
    /// A worker on `node`, which forwards from here on. The pods' addresses
    /// follow `range`; routes to them are the test's, but for the worker's own.
    ///
    /// # Errors
    ///
    /// When the node does not forward.
    pub fn new(lab: &Lab, node: &Node, client: Client, range: Ipv4Addr) -> Result<Self> {
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        Ok(Self {
            lab: lab.clone(),
            node: node.clone(),
            client,
            last: Arc::new(Mutex::new(range)),
            running: Arc::default(),
        })
    }

    /// Looks at the running pod whose name begins so, and at its node.
    pub fn with<T>(&self, name: &str, look: impl FnOnce(&mut Pod, &Node) -> T) -> Option<T> {
        let mut running = self.running();
        let mut all = running.values_mut();
        let found = all.find(|running| running.name.starts_with(name))?;
        Some(look(&mut found.pod, &found.node))
    }

    /// How many pods run.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.running().len()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().expect("nothing panics with it")
    }

    /// The Secrets that the pod mounts, as they are now.
    fn secrets(&self, pod: &Asked) -> Result<Secrets> {
        let secrets: Api<Secret> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let volumes = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        let mut found = Secrets::new();
        for source in volumes.filter_map(|volume| volume.secret.as_ref()) {
            let name = source.secret_name.clone().unwrap_or_default();
            let secret = Handle::current().block_on(secrets.get(&name))?;
            found.insert(name, secret.data.unwrap_or_default());
        }
        Ok(found)
    }

    /// Runs a pod of the host's network.
    fn start_on_host(&self, uid: String, pod: &Asked) -> Result<()> {
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let mut secrets = self.secrets(pod)?;
        let projected = spec.volumes.iter().flatten();
        for volume in projected.filter(|volume| volume.projected.is_some()) {
            let account = Handle::current().block_on(account::files(&self.client, pod))?;
            secrets.insert(volume.name.clone(), account);
        }
        let namespace = pod.namespace().unwrap_or_default();
        let spec = account::resolved(&self.client, &namespace, spec);
        let spec = Handle::current().block_on(spec)?;
        let running = Running {
            name: pod.name_any(),
            pod: Pod::run(&spec, &secrets, &self.node)?,
            node: self.node.clone(),
            on_host: true,
        };
        self.running().insert(uid, running);
        Ok(())
    }
}

impl Containers for Worker {
    fn start(&self, pod: &Asked) -> Result<Vec<IpAddr>> {
        let uid = pod.uid().context("a pod has a uid")?;
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        if spec.host_network == Some(true) {
            self.start_on_host(uid, pod)?;
            return Ok(Vec::new());
        }
        let secrets = self.secrets(pod)?;
        let address = {
            let mut last = self.last.lock().expect("nothing panics with it");
            *last = Ipv4Addr::from(u32::from(*last) + 1);
            *last
        };
        // Numbered, as a pod may be started again after it could not be.
        let [_, _, c, d] = address.octets();
        let node = self.lab.node(&format!("{uid}-{c}-{d}"))?;
        let link = format!("pod{c}-{d}");
        self.node.link(&link, &node, "eth0")?;
        let run = || {
            self.node.sh(&format!(
                "ip address add {WORKER}/32 dev {link}; ip route add {address} dev {link}"
            ))?;
            node.sh(&format!(
                "ip address add {address}/32 dev eth0
                 ip route add default via {WORKER} dev eth0 onlink"
            ))?;
            Pod::run(spec, &secrets, &node)
        };
        let pod = Running {
            name: pod.name_any(),
            pod: run().inspect_err(|_| {
                let _ = self.node.sh(&format!("ip link del {link}"));
            })?,
            node: node.clone(),
            on_host: false,
        };
        self.running().insert(uid, pod);
        Ok(vec![address.into()])
    }

    fn ready(&self, pod: &Asked) -> Result<bool> {
        let uid = pod.uid().context("a pod has a uid")?;
        let secrets = self.secrets(pod);
        let mut running = self.running();
        let found = running.get_mut(&uid).context("it was never started")?;
        // Without an API server, they stay as they are.
        if let Ok(secrets) = secrets
            && !found.on_host
        {
            found.pod.update(&secrets)?;
        }
        found.pod.check()?;
        Ok(true)
    }

    fn stop(&self, pod: &Asked) -> Result<()> {
        let uid = pod.uid().context("a pod has a uid")?;
        let found = self.running().remove(&uid);
        if let Some(found) = found {
            // After the grace period it is killed.
            let _ = found.pod.stop();
            if !found.on_host {
                let _ = found.node.sh("ip link del eth0");
            }
        }
        Ok(())
    }
}
