//! The client of the Kubernetes API.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Config};

/// Seconds after which a watch ends and is started again, so that a connection that
/// died silently is detected by then.
pub const WATCH: u32 = 60;

/// Timeout for connecting to the API server.
const CONNECT: Duration = Duration::from_secs(5);

/// How long the API server may send nothing: longer than a watch lasts.
const SILENCE: Duration = Duration::from_secs(WATCH as u64 + 10);

/// A client of the cluster that KUBECONFIG names, or in which this process runs as a
/// pod. Does not connect yet.
///
/// # Errors
///
/// If there is neither, or it cannot be used.
pub async fn client() -> Result<Client> {
    let mut config = Config::infer().await.context(
        "no cluster configured: set KUBECONFIG to a kubeconfig file, \
         or run in a pod with a service account's token",
    )?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Client::try_from(config).context("cannot use the configuration of the cluster's client")
}

/// The image of the first container of the pod with this name.
///
/// # Errors
///
/// If there is no such pod.
/// When there is no such pod.
pub async fn own_image(client: Client, namespace: &str, name: &str) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let pod = pods.get_opt(name).await?;
    let spec = pod.and_then(|pod| pod.spec);
    let first = spec.and_then(|spec| spec.containers.into_iter().next());
    first
        .and_then(|container| container.image)
        .with_context(|| {
            format!("this is not the pod {namespace}/{name}: name the gateways' image with --image")
        })
}
