//! What Kubernetes and Prometheus ask of a controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use crate::domain::State as Phase;
use crate::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Health {
    leads: watch::Receiver<bool>,
    registry: Arc<dyn Registry>,
}

/// `/healthz`, `/readyz` and `/metrics`. Whoever has its resources is ready: the
/// API answers on all controllers, not on the leader alone.
pub fn router(leads: watch::Receiver<bool>, registry: Arc<dyn Registry>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Health { leads, registry })
}

async fn ready(State(health): State<Health>) -> Response {
    match health.registry.list().await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => {
            let message = format!("not ready: {error}\n");
            (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

async fn metrics(State(health): State<Health>) -> Response {
    let mut registry = prometheus_client::registry::Registry::with_prefix("vpn_edge_controller");
    let leads = Gauge::<i64>::default();
    leads.set(i64::from(*health.leads.borrow()));
    registry.register(
        "leader",
        "Whether this controller leads (1) or waits (0).",
        leads,
    );
    if let Ok(tenants) = health.registry.list().await {
        let mut counts: BTreeMap<&str, i64> =
            Phase::ALL.iter().map(|state| (state.as_str(), 0)).collect();
        for tenant in &tenants {
            *counts.entry(tenant.vpn.state.as_str()).or_default() += 1;
        }
        let family = Family::<OfState, Gauge>::default();
        for (state, count) in counts {
            family.get_or_create(&OfState { state }).set(count);
        }
        registry.register("tenants", "Tenants by the state of their VPN.", family);
    }
    let mut text = String::new();
    if text::encode(&mut text, &registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}
