//! `/v1/tenants/{id}/vpn/session`: who is connected, as the edges see it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use uuid::Uuid;

use super::Api;
use super::error::ApiError;
use super::request::TenantId;
use crate::auth::Caller;
use crate::domain::Tenant;
use crate::sessions::{Session, SessionError};

/// The session of the tenant's client, as the edges see it.
#[utoipa::path(
    get,
    path = "/v1/tenants/{id}/vpn/session",
    operation_id = "show_session",
    tag = "vpn",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    responses((status = 200, description = "The current session.", body = Session))
)]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
) -> Result<Json<Session>, ApiError> {
    api.session(&caller, id).await.map(Json)
}

impl Api {
    /// The live session of a tenant that the caller sees.
    pub async fn session(&self, caller: &Caller, id: Uuid) -> Result<Session, ApiError> {
        let tenant = self.find(caller, id).await?;
        self.session_of(&tenant).await
    }

    pub async fn session_of(&self, tenant: &Tenant) -> Result<Session, ApiError> {
        Ok(self.sessions.session(tenant).await?)
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> ApiError {
        match error {
            SessionError::Maps(_) => ApiError::internal(error),
            SessionError::Edges(_) => {
                tracing::warn!("{error}");
                let message = "the edges cannot be reached at the moment: try again".to_owned();
                ApiError::status(StatusCode::SERVICE_UNAVAILABLE, message)
            }
        }
    }
}
