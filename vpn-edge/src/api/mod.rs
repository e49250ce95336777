//! The HTTP API, version 1: tenants, and the VPN of each.
//!
//! Every answer that is not a success has the JSON body `{"error": "…"}`.

mod actions;
mod audit;
mod body;
mod error;
mod openapi;
mod request;
mod schema;
mod session;
mod tenants;
mod vpn;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;
use tokio::sync::watch;
use tower_http::trace::TraceLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::agent::Steered;
use crate::audit::Log;
use crate::auth::{self, Identity};
use crate::catalog::Databases;
use crate::domain::Pools;
use crate::registry::Registry;
use crate::sessions::Sessions;
use crate::web;

pub(crate) use actions::filename;
pub use body::{
    AuditList, AuditOutcome, AuditRecord, CreateTenant, ErrorBody, NewKeys, PatchTenant,
    TenantBody, TenantList, TenantVpn, VpnStatus,
};
pub(crate) use error::ApiError;
pub(crate) use request::TenantId;
pub(crate) use vpn::given_key;

/// Bytes that a request's body may have.
const MAX_BODY: usize = 64 * 1024;

/// How long a request may take, its body's arrival included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// What the clients' configurations say beside the tenant's own.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hosts of all endpoints.
    pub pools: Pools,
    pub dns: IpAddr,
    /// What clients route into the tunnel.
    pub allowed_ips: Vec<IpNet>,
    /// What no tunnel's subnet may overlap.
    pub cluster_ranges: Vec<IpNet>,
    /// Tunnels carry IPv6.
    pub tunnel_ipv6: bool,
}

/// What the API works on.
#[derive(Clone)]
pub struct Backends {
    pub registry: Arc<dyn Registry>,
    pub identity: Arc<Identity>,
    pub audit: Arc<dyn Log>,
    /// What the edge says that it steers by.
    pub steered: watch::Receiver<Steered>,
    /// Tells of live sessions.
    pub sessions: Arc<dyn Sessions>,
    pub databases: Arc<dyn Databases>,
}

/// What callers may do: see `actions`.
#[derive(Clone)]
pub(crate) struct Api {
    registry: Arc<dyn Registry>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) identity: Arc<Identity>,
    audit: Arc<dyn Log>,
    steered: watch::Receiver<Steered>,
    sessions: Arc<dyn Sessions>,
    pub(crate) databases: Arc<dyn Databases>,
}

impl Api {
    fn new(backends: Backends, settings: Settings) -> Api {
        Api {
            registry: backends.registry,
            settings: Arc::new(settings),
            identity: backends.identity,
            audit: backends.audit,
            steered: backends.steered,
            sessions: backends.sessions,
            databases: backends.databases,
        }
    }
}

/// The API's routes, under `/v1`, and `/auth`.
///
/// To be served with the peers' addresses, `ConnectInfo<SocketAddr>`: sign-ins
/// that fail are counted by them.
pub fn router(backends: Backends, settings: Settings) -> Router {
    all_routes(Api::new(backends, settings), REQUEST_DEADLINE)
}

/// The API's description, OpenAPI 3.1. `/auth` and the pages are for browsers, and
/// not in it.
pub fn openapi() -> OpenApi {
    openapi::complete(described().into_openapi())
}

/// The routes under `/v1` by what their handlers say of themselves.
fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::empty())
        .routes(routes!(openapi::document))
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::show, tenants::patch, tenants::delete))
        .routes(routes!(vpn::status))
        .routes(routes!(vpn::enable))
        .routes(routes!(vpn::disable))
        .routes(routes!(vpn::regenerate))
        .routes(routes!(vpn::config))
        .routes(routes!(session::show))
        .routes(routes!(audit::read))
}

fn all_routes(api: Api, deadline: Duration) -> Router {
    let sign_in = auth::router(api.identity.clone()).layer(middleware::from_fn_with_state(
        api.clone(),
        web::sign_in_trouble,
    ));
    Router::from(described())
        .merge(sign_in)
        .merge(web::router())
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(move |request, next| {
            within(deadline, request, next)
        }))
        .layer(middleware::from_fn_with_state(
            api.clone(),
            web::secure_headers,
        ))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .with_state(api)
}

/// Without the query: it may have a sign-in's code.
fn span(request: &Request) -> tracing::Span {
    tracing::debug_span!("request", method = %request.method(), path = request.uri().path())
}

async fn no_such_route(uri: Uri, headers: HeaderMap) -> Response {
    if web::wants_page(&headers) && !uri.path().starts_with("/v1/") {
        return web::not_found();
    }
    let message = format!("there is nothing at {}", uri.path());
    ApiError::status(StatusCode::NOT_FOUND, message).into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not allowed on {}", uri.path());
    ApiError::status(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn within(deadline: Duration, request: Request, next: Next) -> Response {
    match tokio::time::timeout(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("the request took longer than {deadline:?}");
            ApiError::status(StatusCode::REQUEST_TIMEOUT, message).into_response()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
