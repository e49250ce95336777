use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use lab::cluster::Containers;
use lab::node::{Lab, Node, Process};

/// Pods of one container, each in a namespace behind the worker.
pub struct Namespaces {
    pub lab: Lab,
    pub worker: Node,
    pub running: Arc<Mutex<HashMap<String, Process>>>,
}

impl Containers for Namespaces {
    fn start(&self, pod: &Pod) -> Result<Vec<IpAddr>> {
        let mut running = self.running.lock().expect("nothing panics with it");
        let uid = pod.uid().context("a pod has a uid")?;
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let words = spec.containers[0].command.clone().unwrap_or_default();
        let [program, arguments @ ..] = &words[..] else {
            bail!("no command");
        };
        let host = u8::try_from(running.len() + 10)?;
        let address = Ipv4Addr::new(100, 64, 0, host);
        let node = self.lab.node(&uid)?;
        let link = format!("pod{host}");
        self.worker.link(&link, &node, "eth0")?;
        self.worker
            .sh(&format!("ip route add {address} dev {link}"))?;
        node.sh(&format!(
            "ip address add {address}/32 dev eth0; ip route add default dev eth0"
        ))?;
        let mut command = node.command(program);
        command.args(arguments);
        running.insert(uid, node.start("container", command)?);
        Ok(vec![address.into()])
    }

    fn ready(&self, pod: &Pod) -> Result<bool> {
        // Labels change without a new pod: a readiness that the test decides.
        Ok(!pod.labels().contains_key("broken"))
    }

    fn stop(&self, pod: &Pod) -> Result<()> {
        let uid = pod.uid().context("a pod has a uid")?;
        self.running
            .lock()
            .expect("nothing panics with it")
            .remove(&uid);
        Ok(())
    }
}
