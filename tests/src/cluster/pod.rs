//! One pod on a stand-in's node, from its start to its end.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Containers, RETRY};

/// What the API server last said about a pod.
#[derive(Clone)]
pub(super) enum Wanted {
    Running(Arc<Pod>),
    /// It is to end, and then to be deleted.
    Ending,
    /// It is deleted already.
    Gone,
}

impl Wanted {
    pub fn of(pod: &Pod) -> Self {
        match pod.metadata.deletion_timestamp {
            None => Self::Running(Arc::new(pod.clone())),
            Some(_) => Self::Ending,
        }
    }
}

/// A pod, and what it is reported with.
pub(super) struct Tended<C> {
    pub containers: Arc<C>,
    pub client: Client,
    /// The node's own.
    pub addresses: Vec<IpAddr>,
    pub pod: Arc<Pod>,
    pub wanted: watch::Receiver<Wanted>,
}

impl<C: Containers> Tended<C> {
    pub async fn tend(mut self) {
        if let Some(addresses) = self.start().await {
            self.keep(&addresses).await;
            // As long as it takes: the pod is not gone before.
            while self.call(C::stop).await.is_err() {
                sleep(RETRY).await;
            }
        }
        let gone = matches!(*self.wanted.borrow(), Wanted::Gone);
        if !gone {
            self.delete().await;
        }
    }

    /// The pod's addresses; none if it is to end before it has started.
    async fn start(&mut self) -> Option<Vec<IpAddr>> {
        let started = loop {
            if !self.is_wanted() {
                return None;
            }
            match self.call(C::start).await {
                Ok(addresses) => break addresses,
                Err(error) => {
                    let why = format!("{error:#}");
                    let _ = self.report(&waiting(&self.pod, &why)).await;
                    sleep(RETRY).await;
                }
            }
        };
        let spec = self.pod.spec.as_ref();
        let on_host = spec.is_some_and(|spec| spec.host_network == Some(true));
        Some(if on_host {
            self.addresses.clone()
        } else {
            started
        })
    }

    /// Reports the running pod, until it is to end.
    async fn keep(&mut self, addresses: &[IpAddr]) {
        let since = Time(Timestamp::now());
        let mut reported = None;
        while self.is_wanted() {
            let ready = matches!(self.call(C::ready).await, Ok(true));
            if reported != Some(ready) {
                let status = running(&self.pod, &self.addresses, addresses, &since, ready);
                if self.report(&status).await.is_ok() {
                    reported = Some(ready);
                }
            }
            tokio::select! {
                () = sleep(RETRY), if reported.is_none() || C::CHANGE => {}
                _ = self.wanted.changed() => {}
            }
        }
    }

    /// Whether it is to run; takes over changes of it.
    fn is_wanted(&mut self) -> bool {
        match &*self.wanted.borrow_and_update() {
            Wanted::Running(pod) => {
                self.pod = Arc::clone(pod);
                true
            }
            Wanted::Ending | Wanted::Gone => false,
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&C, &Pod) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (containers, pod) = (Arc::clone(&self.containers), Arc::clone(&self.pod));
        tokio::task::spawn_blocking(move || work(&containers, &pod)).await?
    }

    fn api(&self) -> Api<Pod> {
        let namespace = self.pod.namespace().unwrap_or_default();
        Api::namespaced(self.client.clone(), &namespace)
    }

    async fn report(&self, status: &Value) -> Result<()> {
        // The uid keeps it from a later pod of the same name.
        let patch = json!({ "metadata": { "uid": self.pod.uid() }, "status": status });
        let params = PatchParams::default();
        self.api()
            .patch_status(&self.pod.name_any(), &params, &Patch::Strategic(&patch))
            .await?;
        Ok(())
    }

    async fn delete(&self) {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: self.pod.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        loop {
            match self.api().delete(&self.pod.name_any(), &params).await {
                Ok(_) => return,
                // Not found, or another pod of the same name.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(_) => sleep(RETRY).await,
            }
        }
    }
}

fn running(pod: &Pod, host: &[IpAddr], addresses: &[IpAddr], since: &Time, ready: bool) -> Value {
    let now = Time(Timestamp::now());
    let conditions = [
        ("PodReadyToStartContainers", true),
        ("Initialized", true),
        ("ContainersReady", ready),
        ("Ready", ready),
    ]
    .map(|(kind, holds)| {
        let status = if holds { "True" } else { "False" };
        json!({ "type": kind, "status": status, "lastTransitionTime": now })
    });
    let finished = json!({ "terminated": {
        "exitCode": 0, "reason": "Completed", "startedAt": since, "finishedAt": since,
    }});
    json!({
        "phase": "Running",
        "startTime": since,
        "hostIP": host.first(),
        "hostIPs": ips(host),
        "podIP": addresses.first(),
        "podIPs": ips(addresses),
        "conditions": conditions,
        "initContainerStatuses": statuses(init_containers(pod), &finished, true),
        "containerStatuses":
            statuses(containers(pod), &json!({ "running": { "startedAt": since } }), ready),
    })
}

fn waiting(pod: &Pod, why: &str) -> Value {
    let state = json!({ "waiting": { "reason": "CreateContainerError", "message": why } });
    json!({
        "phase": "Pending",
        "containerStatuses": statuses(containers(pod), &state, false),
    })
}

fn statuses(containers: &[Container], state: &Value, ready: bool) -> Vec<Value> {
    let status = |container: &Container| {
        json!({
            "name": container.name,
            "image": container.image.as_deref().unwrap_or_default(),
            "imageID": "",
            "state": state,
            "started": state.get("running").is_some(),
            "ready": ready,
            "restartCount": 0,
        })
    };
    containers.iter().map(status).collect()
}

fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |spec| &spec.containers)
}

fn init_containers(pod: &Pod) -> &[Container] {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default()
}

fn ips(addresses: &[IpAddr]) -> Vec<Value> {
    let address = |address: &IpAddr| json!({ "ip": address });
    addresses.iter().map(address).collect()
}
