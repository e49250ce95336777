//! The HTTP API, version 1: tenants, and the VPN of each.
//!
//! Every answer that is not a success has the JSON body `{"error": "…"}`.

mod actions;
mod audit;
mod body;
mod error;
mod openapi;
mod refusals;
mod request;
mod schema;
mod session;
mod tenants;
mod vpn;

use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::Log;
use crate::auth::Identity;
use crate::catalog::Databases;
use crate::domain::{ActivePorts, Pools, TunnelSettings};
use crate::registry::Registry;
use crate::sessions::Sessions;

pub(crate) use actions::filename;
pub use body::{
    AuditList, AuditOutcome, AuditRecord, CreateTenant, ErrorBody, NewKeys, PatchTenant,
    TenantBody, TenantList, TenantVpn, VpnStatus,
};
pub(crate) use error::ApiError;
pub(crate) use request::TenantId;
pub(crate) use vpn::given_key;

/// Values of clients' configurations besides the tenant's own.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hosts of all endpoints.
    pub pools: Pools,
    /// Networks that clients route into the tunnel.
    pub allowed_ips: Vec<IpNet>,
    pub tunnels: TunnelSettings,
}

/// The interfaces that the API uses.
#[derive(Clone)]
pub struct Backends {
    pub registry: Arc<dyn Registry>,
    pub identity: Arc<Identity>,
    pub audit: Arc<dyn Log>,
    /// The ports that the edge steers.
    pub active_ports: watch::Receiver<ActivePorts>,
    /// Reports live sessions.
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
    active_ports: watch::Receiver<ActivePorts>,
    sessions: Arc<dyn Sessions>,
    pub(crate) databases: Arc<dyn Databases>,
}

impl Api {
    pub(crate) fn new(backends: Backends, settings: Settings) -> Api {
        Api {
            registry: backends.registry,
            settings: Arc::new(settings),
            identity: backends.identity,
            audit: backends.audit,
            active_ports: backends.active_ports,
            sessions: backends.sessions,
            databases: backends.databases,
        }
    }
}

/// The API's description, OpenAPI 3.1. `/auth` and the pages are for browsers and not
/// included.
pub fn openapi() -> OpenApi {
    openapi::complete(described().into_openapi())
}

/// The routes under `/v1`, with the descriptions of their handlers.
pub(crate) fn described() -> OpenApiRouter<Api> {
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

#[cfg(test)]
pub(crate) mod tests;
