//! How the agent reaches the API server.

use std::time::Duration;

use ::kube::{Client, Config};
use anyhow::{Context, Result};

/// How long the API server may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long it may be silent, which is longer than a watch is.
const SILENCE: Duration = Duration::from_secs(super::WATCH as u64 + 10);

/// A client of the cluster that KUBECONFIG names, or that this runs in as a pod.
/// The API server is not asked yet.
///
/// # Errors
///
/// When there is neither, or it cannot be used.
pub async fn client() -> Result<Client> {
    let mut config = Config::infer().await.context(
        "no cluster to ask: name a kubeconfig with KUBECONFIG, \
         or run in a pod with a service account's token",
    )?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Client::try_from(config).context("the settings of the cluster cannot be used")
}
