//! `/v1/tenants`: made, changed and removed by the admin, seen by members.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::body::{CreateTenant, ErrorBody, PatchTenant, TenantBody, TenantList};
use super::error::ApiError;
use super::request::{TenantId, json};
use crate::auth::Caller;

/// The tenants that the caller sees.
#[utoipa::path(
    get,
    path = "/v1/tenants",
    operation_id = "list_tenants",
    tag = "tenants",
    responses(
        (status = 200, description = "The tenants, ordered by ID.", body = TenantList),
    )
)]
pub async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<TenantList>, ApiError> {
    let tenants = api.seen(&caller).await?;
    let tenants = tenants.iter().map(|tenant| TenantBody::from(&**tenant));
    Ok(Json(TenantList {
        tenants: tenants.collect(),
    }))
}

/// A tenant.
#[utoipa::path(
    get,
    path = "/v1/tenants/{id}",
    operation_id = "show_tenant",
    tag = "tenants",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    responses(
        (status = 200, description = "The tenant.", body = TenantBody),
    )
)]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
) -> Result<Json<TenantBody>, ApiError> {
    let tenant = api.find(&caller, id).await?;
    Ok(Json(TenantBody::from(&tenant)))
}

/// Adds a tenant. For admins.
#[utoipa::path(
    post,
    path = "/v1/tenants",
    operation_id = "create_tenant",
    tag = "tenants",
    request_body(content = CreateTenant),
    responses(
        (status = 201, description = "The new tenant.", body = TenantBody, headers(("Location" = String, description = "Its path."))),
        (status = 409, description = "A tenant with this ID or namespace exists.", body = ErrorBody),
    )
)]
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

/// Changes a tenant. For admins.
#[utoipa::path(
    patch,
    path = "/v1/tenants/{id}",
    operation_id = "patch_tenant",
    tag = "tenants",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    request_body(content = PatchTenant),
    responses(
        (status = 200, description = "The tenant as it is now.", body = TenantBody),
    )
)]
pub async fn patch(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
    request: Request,
) -> Result<Json<TenantBody>, ApiError> {
    api.find(&caller, id).await?;
    // A member's request is refused whatever its body is.
    let patch: PatchTenant = match caller.is_admin() {
        true => json(request).await?,
        false => PatchTenant::default(),
    };
    let tenant = api.patch(&caller, id, patch).await?;
    Ok(Json(TenantBody::from(&tenant)))
}

/// Removes a tenant with its VPN. For admins.
#[utoipa::path(
    delete,
    path = "/v1/tenants/{id}",
    operation_id = "delete_tenant",
    tag = "tenants",
    params(("id" = Uuid, Path, description = "The tenant's ID.")),
    responses(
        (status = 204, description = "The tenant is removed."),
    )
)]
pub async fn delete(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
) -> Result<StatusCode, ApiError> {
    api.delete(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
