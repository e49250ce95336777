//! Metrics for Prometheus, and the health check for load balancers.
//!
//! The maps are read on each request, and never in between.

mod collector;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, watch};

use crate::agent::{Source, SyncStatus};
use crate::auth::Identity;
use crate::datapath::{Programs, Reader};
use crate::domain::PortRange;
use collector::Snapshot;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Name and help of a gauge that controllers export as well.
pub(crate) const TOKEN_FILE_READABLE: (&str, &str) = (
    "token_file_readable",
    "Whether the token file can be read and all of its lines are valid (1), or not (0).",
);

/// The sources of metrics.
pub struct Sources {
    pub reader: Reader,
    pub programs: Programs,
    pub agent: Arc<SyncStatus>,
    /// The ports for tenants.
    pub ports: Vec<PortRange>,
    pub uplinks: Vec<String>,
    /// Folder on bpffs with the agent's pins.
    pub bpffs: PathBuf,
    /// The API's identities, if this process serves it.
    pub identity: Option<Arc<Identity>>,
    /// Whether the daemon is shutting down.
    pub draining: watch::Receiver<bool>,
}

#[derive(Clone)]
struct Metrics {
    sources: Arc<Sources>,
    /// The agent's source.
    source: Arc<dyn Source>,
    /// One snapshot at a time, however many requests there are.
    turn: Arc<Mutex<()>>,
}

/// `/healthz`, for load balancers, and `/metrics`, which contains tenants' names.
pub fn routers(sources: Sources, source: Arc<dyn Source>) -> (Router, Router) {
    let state = Metrics {
        sources: Arc::new(sources),
        source,
        turn: Arc::default(),
    };
    let health = Router::new().route("/healthz", get(healthz));
    let metrics = Router::new().route("/metrics", get(metrics));
    (health.with_state(state.clone()), metrics.with_state(state))
}

async fn metrics(State(metrics): State<Metrics>) -> Response {
    let Metrics {
        sources,
        source,
        turn,
    } = metrics;
    let turn = turn.lock_owned().await;
    let text = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        render(Snapshot::take(&sources, source.outage().is_none())?)
    });
    let error = match text.await.map_err(anyhow::Error::from) {
        Ok(Ok(text)) => return ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(Err(error)) | Err(error) => error,
    };
    tracing::error!("cannot collect metrics: {error:#}");
    let message = format!("cannot collect metrics: {error:#}\n");
    (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
}

fn render(snapshot: Snapshot) -> anyhow::Result<String> {
    let mut registry = Registry::with_prefix("vpn_edge");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

async fn healthz(State(metrics): State<Metrics>) -> (StatusCode, String) {
    let Metrics {
        sources, source, ..
    } = metrics;
    if *sources.draining.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".into());
    }
    if let Err(reason) = sources.agent.health() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"));
    }
    let mut said = "ok".to_owned();
    // Traffic continues, and other edges have no newer state.
    if let Some(trouble) = source.outage() {
        said = format!("{said}, with the last known state: {trouble}");
    }
    // Traffic does not depend on the token file.
    let identity = sources.identity.as_ref();
    if let Some(problem) = identity.and_then(|identity| identity.token_file_problem()) {
        said = format!("{said}, but {problem}");
    }
    (StatusCode::OK, said + "\n")
}
