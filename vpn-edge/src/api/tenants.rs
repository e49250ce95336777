//! `/v1/tenants`: made, changed and removed by the admin, seen by members.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use uuid::Uuid;

use super::Api;
use super::body::{CreateTenant, PatchTenant, TenantBody, TenantList};
use super::error::ApiError;
use super::request::{TenantId, json};
use crate::domain::tenant::{check_networks, check_versions};
use crate::domain::{Tenant, VpnError};
use crate::identity::Caller;
use crate::registry::Change;

/// The tenant, if it exists and the caller sees it.
pub async fn find(api: &Api, caller: &Caller, id: Uuid) -> Result<Tenant, ApiError> {
    let tenant = api.registry.get(id).await?;
    let tenant = tenant.ok_or(VpnError::TenantNotFound)?;
    caller.check_sees(&tenant)?;
    Ok(tenant)
}

pub async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<TenantList>, ApiError> {
    let tenants = api.registry.list().await?;
    let seen = tenants.iter().filter(|t| caller.check_sees(t).is_ok());
    Ok(Json(TenantList {
        tenants: seen.map(|tenant| TenantBody::from(&**tenant)).collect(),
    }))
}

pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
) -> Result<Json<TenantBody>, ApiError> {
    let tenant = find(&api, &caller, id).await?;
    Ok(Json(TenantBody::from(&tenant)))
}

pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    caller.check_admin()?;
    let body: CreateTenant = json(request).await?;
    let id = body.id.unwrap_or_else(Uuid::new_v4);
    let mut tenant = Tenant::new(id, body.organisation, body.plan, Timestamp::now())?;
    if let Some(namespace) = body.namespace {
        tenant.set_namespace(namespace)?;
    }
    check_versions(&body.networks, api.settings.tunnel_ipv6)?;
    tenant.set_networks(body.networks)?;
    tenant.set_ready(body.ready);
    let tenant = api.registry.create(tenant).await?;
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
    find(&api, &caller, id).await?;
    caller.check_admin()?;
    let patch: PatchTenant = json(request).await?;
    if let Some(networks) = &patch.networks {
        check_versions(networks, api.settings.tunnel_ipv6)?;
        check_networks(networks)?;
    }
    let change: Change = Box::new(move |tenant, pool| {
        if let Some(plan) = patch.plan {
            tenant.set_plan(plan, pool, Timestamp::now());
        }
        if let Some(ready) = patch.ready {
            tenant.set_ready(ready);
        }
        if let Some(networks) = &patch.networks {
            tenant.networks.clone_from(networks);
        }
        Ok(())
    });
    let tenant = api.registry.update(id, change).await?;
    api.revoked(id, Some(&tenant)).await;
    Ok(Json(TenantBody::from(&tenant)))
}

pub async fn delete(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
) -> Result<StatusCode, ApiError> {
    find(&api, &caller, id).await?;
    caller.check_admin()?;
    if api.registry.delete(id).await? {
        api.revoked(id, None).await;
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(VpnError::TenantNotFound.into())
    }
}
