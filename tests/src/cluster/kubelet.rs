//! A stand-in for a node's kubelet: the API server's side of it is whole, and
//! what a container is, the test says.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::Member;
use super::pod::{Tended, Wanted};

/// What runs a pod's containers. Each call may take its time: other pods do
/// not wait for it.
pub trait Containers: Send + Sync + 'static {
    /// Whether one that was ready may be no longer.
    const CHANGE: bool = true;

    /// Starts what the pod's template says, and gives back the pod's addresses,
    /// which do not matter where it is on the host's network.
    ///
    /// # Errors
    ///
    /// When it cannot, and has left nothing. The pod's status says why, and it
    /// is tried again.
    fn start(&self, pod: &Pod) -> Result<Vec<IpAddr>>;

    /// Whether a started pod is ready. Asked for again and again, if that may
    /// change.
    ///
    /// # Errors
    ///
    /// When that cannot be told: the pod is not ready then.
    fn ready(&self, _pod: &Pod) -> Result<bool> {
        Ok(true)
    }

    /// Ends what was started, with the pod's grace period. After it the pod is
    /// deleted.
    ///
    /// # Errors
    ///
    /// When it cannot; it is tried again.
    fn stop(&self, pod: &Pod) -> Result<()>;
}

/// A running stand-in. When dropped, its pods are as with a dead kubelet:
/// nothing stops them, and nobody reports.
pub struct Kubelet {
    task: JoinHandle<()>,
}

impl Kubelet {
    /// Runs the pods that are bound to the node. Those that an earlier stand-in
    /// of the node has left are started anew.
    pub fn start<C: Containers>(member: &Member, containers: C) -> Self {
        let pods = Pods {
            containers: Arc::new(containers),
            client: member.client.clone(),
            addresses: member.addresses.clone(),
            known: HashMap::new(),
            listed: HashSet::new(),
            tasks: JoinSet::new(),
        };
        let task = member.runtime.spawn(pods.follow(member.name.clone()));
        Self { task }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The pods of a node, by their uids.
struct Pods<C> {
    containers: Arc<C>,
    client: Client,
    addresses: Vec<IpAddr>,
    known: HashMap<String, watch::Sender<Wanted>>,
    /// Those in the list that is being read.
    listed: HashSet<String>,
    /// One for each pod; they end with this.
    tasks: JoinSet<()>,
}

impl<C: Containers> Pods<C> {
    async fn follow(mut self, node: String) {
        let all: Api<Pod> = Api::all(self.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let mut events = std::pin::pin!(watcher::watcher(all, config));
        while let Some(event) = events.next().await {
            while self.tasks.try_join_next().is_some() {}
            match event {
                Ok(event) => self.take(event),
                // The API server is away. The watcher does not wait by itself.
                Err(_) => tokio::time::sleep(super::RETRY).await,
            }
        }
    }

    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.extend(pod.uid());
                self.apply(&pod);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.known.retain(|uid, wanted| {
                    let stays = listed.contains(uid);
                    if !stays {
                        wanted.send_replace(Wanted::Gone);
                    }
                    stays
                });
            }
            Event::Apply(pod) => self.apply(&pod),
            Event::Delete(pod) => {
                if let Some(wanted) = pod.uid().and_then(|uid| self.known.remove(&uid)) {
                    wanted.send_replace(Wanted::Gone);
                }
            }
        }
    }

    fn apply(&mut self, pod: &Pod) {
        let Some(uid) = pod.uid() else { return };
        if let Some(wanted) = self.known.get(&uid) {
            wanted.send_replace(Wanted::of(pod));
            return;
        }
        let (sender, wanted) = watch::channel(Wanted::of(pod));
        self.known.insert(uid, sender);
        let tended = Tended {
            containers: Arc::clone(&self.containers),
            client: self.client.clone(),
            addresses: self.addresses.clone(),
            pod: Arc::new(pod.clone()),
            wanted,
        };
        self.tasks.spawn(tended.tend());
    }
}
