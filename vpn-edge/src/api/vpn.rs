//! `/v1/tenants/{id}/vpn`: the VPN's state, its actions and the client's
//! configuration.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::actions::Configuration;
use super::body::{ErrorBody, NewKeys, VpnStatus};
use super::error::ApiError;
use super::request::{Downloader, TenantId, json_or_nothing};
use crate::auth::Caller;
use crate::domain::Tenant;
use crate::wireguard::{KeyError, PublicKey};

type Status = Result<(StatusCode, Json<VpnStatus>), ApiError>;

/// A tenant's VPN.
#[utoipa::path(
    get,
    path = "/v1/tenants/{id}/vpn",
    operation_id = "show_vpn",
    tag = "vpn",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    responses(
        (status = 200, description = "The VPN's current state.", body = VpnStatus),
    )
)]
pub async fn status(State(api): State<Api>, caller: Caller, TenantId(id): TenantId) -> Status {
    let tenant = api.find(&caller, id).await?;
    answer(&api, StatusCode::OK, &tenant)
}

/// Enables the VPN.
#[utoipa::path(
    post,
    path = "/v1/tenants/{id}/vpn/enable",
    operation_id = "enable_vpn",
    tag = "vpn",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    request_body(content = ref("#/components/schemas/NewKeys"), content_type = "application/json"),
    responses(
        (status = 202, description = "The VPN is being enabled.", body = VpnStatus),
        (status = 403, description = "The plan does not include the VPN, or the caller may not do this.", body = ErrorBody),
        (status = 409, description = "The VPN is already enabled or being enabled, or the tenant is not ready. Nothing has changed.", body = ErrorBody),
        (status = 503, description = "No port is free, or a service that this depends on cannot be reached.", body = ErrorBody),
    )
)]
pub async fn enable(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
    request: Request,
) -> Status {
    api.find(&caller, id).await?;
    let given = given(request).await?;
    let tenant = api.enable(&caller, id, given).await?;
    answer(&api, StatusCode::ACCEPTED, &tenant)
}

/// Disables the VPN and removes its keys.
#[utoipa::path(
    post,
    path = "/v1/tenants/{id}/vpn/disable",
    operation_id = "disable_vpn",
    tag = "vpn",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    responses(
        (status = 200, description = "The VPN is disabled.", body = VpnStatus),
        (status = 403, description = "The plan does not include the VPN, or the caller may not do this.", body = ErrorBody),
        (status = 409, description = "The VPN is not enabled.", body = ErrorBody),
    )
)]
pub async fn disable(State(api): State<Api>, caller: Caller, TenantId(id): TenantId) -> Status {
    let tenant = api.disable(&caller, id).await?;
    answer(&api, StatusCode::OK, &tenant)
}

/// Replaces the keys of both ends.
#[utoipa::path(
    post,
    path = "/v1/tenants/{id}/vpn/regenerate",
    operation_id = "regenerate_vpn",
    tag = "vpn",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    request_body(content = ref("#/components/schemas/NewKeys"), content_type = "application/json"),
    responses(
        (status = 202, description = "The old keys are revoked, and the VPN is being enabled with new ones.", body = VpnStatus),
        (status = 403, description = "The plan does not include the VPN, or the caller may not do this.", body = ErrorBody),
        (status = 409, description = "The VPN is not enabled.", body = ErrorBody),
    )
)]
pub async fn regenerate(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
    request: Request,
) -> Status {
    api.find(&caller, id).await?;
    let given = given(request).await?;
    let tenant = api.regenerate(&caller, id, given).await?;
    answer(&api, StatusCode::ACCEPTED, &tenant)
}

/// The client's configuration.
#[utoipa::path(
    get,
    path = "/v1/tenants/{id}/vpn/config",
    operation_id = "download_config",
    tag = "vpn",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    responses(
        (status = 200, description = "A file for wg-quick.", body = String, content_type = "text/plain"),
        (status = 403, description = "The plan does not include the VPN, or the caller may not do this.", body = ErrorBody),
        (status = 409, description = "The VPN is not enabled.", body = ErrorBody),
    )
)]
pub async fn config(
    State(api): State<Api>,
    Downloader(caller): Downloader,
    TenantId(id): TenantId,
) -> Result<Response, ApiError> {
    let configuration = api.configuration(&caller, id).await?;
    Ok(configuration.into_response())
}

impl IntoResponse for Configuration {
    fn into_response(self) -> Response {
        let disposition = format!("attachment; filename=\"{}\"", self.filename);
        let headers = [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
            (header::CONTENT_DISPOSITION, disposition),
            (header::CACHE_CONTROL, "no-store".to_owned()),
        ];
        // The buffer is zeroed after it is sent.
        (headers, Body::from(Bytes::from_owner(self.text))).into_response()
    }
}

/// The client-provided public key, if there is one.
async fn given(request: Request) -> Result<Option<PublicKey>, ApiError> {
    let NewKeys { public_key } = json_or_nothing(request).await?;
    public_key.as_deref().map(given_key).transpose()
}

/// Parses a client-provided public key.
pub fn given_key(text: &str) -> Result<PublicKey, ApiError> {
    text.parse().map_err(|error: KeyError| {
        let message = format!("public_key is not valid: {error}");
        ApiError::status(StatusCode::BAD_REQUEST, message)
    })
}

fn answer(api: &Api, status: StatusCode, tenant: &Tenant) -> Status {
    Ok((status, Json(api.status(tenant))))
}
