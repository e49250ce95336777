//! `/v1/tenants`: made, changed and removed by the admin, seen by members.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::body::{CreateTenant, PatchTenant, TenantBody, TenantList};
use super::error::ApiError;
use super::request::{TenantId, json};
use crate::identity::Caller;

pub async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<TenantList>, ApiError> {
    let tenants = api.seen(&caller).await?;
    let tenants = tenants.iter().map(|tenant| TenantBody::from(&**tenant));
    Ok(Json(TenantList {
        tenants: tenants.collect(),
    }))
}

pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
) -> Result<Json<TenantBody>, ApiError> {
    let tenant = api.find(&caller, id).await?;
    Ok(Json(TenantBody::from(&tenant)))
}

pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    caller.check_admin()?;
    let new: CreateTenant = json(request).await?;
    let tenant = api.create(&caller, new).await?;
    let location = [(header::LOCATION, format!("/v1/tenants/{}", tenant.id))];
    let body = Json(TenantBody::from(&tenant));
    Ok((StatusCode::CREATED, location, body).into_response())
}

pub async fn patch(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
    request: Request,
) -> Result<Json<TenantBody>, ApiError> {
    api.find(&caller, id).await?;
    // What a member may not do is not discussed, and refused whatever it says.
    let patch: PatchTenant = match caller.is_admin() {
        true => json(request).await?,
        false => PatchTenant::default(),
    };
    let tenant = api.patch(&caller, id, patch).await?;
    Ok(Json(TenantBody::from(&tenant)))
}

pub async fn delete(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
) -> Result<StatusCode, ApiError> {
    api.delete(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
