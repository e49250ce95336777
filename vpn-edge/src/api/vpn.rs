//! `/v1/tenants/{id}/vpn`: the VPN's state, its actions and the client's
//! configuration.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::actions::Configuration;
use super::body::{NewKeys, VpnStatus};
use super::error::ApiError;
use super::request::{Downloader, TenantId, json_or_nothing};
use crate::domain::Tenant;
use crate::identity::Caller;
use crate::wireguard::{KeyError, PublicKey};

type Status = Result<(StatusCode, Json<VpnStatus>), ApiError>;

pub async fn status(State(api): State<Api>, caller: Caller, TenantId(id): TenantId) -> Status {
    let tenant = api.find(&caller, id).await?;
    answer(&api, StatusCode::OK, &tenant)
}

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

pub async fn disable(State(api): State<Api>, caller: Caller, TenantId(id): TenantId) -> Status {
    let tenant = api.disable(&caller, id).await?;
    answer(&api, StatusCode::OK, &tenant)
}

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
        // The text is zeroed once it is sent.
        (headers, Body::from(Bytes::from_owner(self.text))).into_response()
    }
}

/// The public key that the client gives, if it does.
async fn given(request: Request) -> Result<Option<PublicKey>, ApiError> {
    let NewKeys { public_key } = json_or_nothing(request).await?;
    public_key.as_deref().map(given_key).transpose()
}

/// A client's public key out of a text that a caller gave.
pub fn given_key(text: &str) -> Result<PublicKey, ApiError> {
    text.parse().map_err(|error: KeyError| {
        let message = format!("public_key is not valid: {error}");
        ApiError::status(StatusCode::BAD_REQUEST, message)
    })
}

fn answer(api: &Api, status: StatusCode, tenant: &Tenant) -> Status {
    Ok((status, Json(api.status(tenant)?)))
}
