//! A controller's health, readiness and metrics.

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

use crate::auth::Identity;
use crate::domain::State as Phase;
use crate::metrics::TOKEN_FILE_READABLE;
use crate::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Health {
    leads: watch::Receiver<bool>,
    registry: Arc<dyn Registry>,
    identity: Arc<Identity>,
}

/// `/healthz`, `/readyz` and `/metrics`. A controller is ready once it has listed its
/// resources: all controllers serve the API, not only the leader.
pub fn router(
    leads: watch::Receiver<bool>,
    registry: Arc<dyn Registry>,
    identity: Arc<Identity>,
) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Health {
            leads,
            registry,
            identity,
        })
}

/// A restart would not repair the token file.
async fn healthz(State(health): State<Health>) -> String {
    match health.identity.token_file_problem() {
        None => "ok\n".to_owned(),
        Some(problem) => format!("ok, but {problem}\n"),
    }
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
    let mut all = prometheus_client::registry::Registry::with_prefix("vpn_edge");
    let readable = Gauge::<i64>::default();
    readable.set(health.identity.token_file_problem().is_none().into());
    let (name, help) = TOKEN_FILE_READABLE;
    all.register(name, help, readable);
    let registry = all.sub_registry_with_prefix("controller");
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
    if text::encode(&mut text, &all).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;
    use crate::auth::{Role, Tokens};
    use crate::local::SqliteRegistry;

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn an_invalid_token_file_is_told_and_ends_no_controller() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("registry.db");
        let registry =
            SqliteRegistry::open(&database, "30000-30099".parse().unwrap(), &[]).unwrap();
        let file = dir.path().join("tokens");
        Tokens::add(&file, &Role::Admin).unwrap();
        let identity = Identity::new(Tokens::load(&file).unwrap());
        let leads = watch::channel(true).1;
        let router = router(leads, Arc::new(registry), Arc::new(identity));

        let ok = (StatusCode::OK, "ok\n".to_owned());
        assert_eq!(get(&router, "/healthz").await, ok);
        let (_, metrics) = get(&router, "/metrics").await;
        for series in [
            "vpn_edge_token_file_readable 1",
            "vpn_edge_controller_leader 1",
            "vpn_edge_controller_tenants{state=\"enabled\"} 0",
        ] {
            assert!(metrics.lines().any(|line| line == series), "{metrics}");
        }

        std::fs::write(&file, "nonsense\n").unwrap();
        let (status, said) = get(&router, "/healthz").await;
        let start = format!("ok, but the token file {} has invalid", file.display());
        assert!(said.starts_with(&start), "{said}");
        assert_eq!(status, StatusCode::OK);
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::OK);
        let (_, metrics) = get(&router, "/metrics").await;
        let series = "vpn_edge_token_file_readable 0";
        assert!(metrics.lines().any(|line| line == series), "{metrics}");
    }
}
