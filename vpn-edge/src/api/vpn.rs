//! `/v1/tenants/{id}/vpn`: the VPN's state, its actions and the client's
//! configuration.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;

use super::Api;
use super::body::{NewKeys, VpnStatus};
use super::error::ApiError;
use super::request::{Downloader, TenantId, json_or_nothing};
use super::tenants::find;
use crate::domain::Tenant;
use crate::domain::subnet::{client_address, client_address6, tunnel_subnet, tunnel_subnet6};
use crate::identity::Caller;
use crate::registry::Change;
use crate::wireguard::{ClientConfig, KeyError, Keys, PublicKey};

type Status = Result<(StatusCode, Json<VpnStatus>), ApiError>;

pub async fn status(State(api): State<Api>, caller: Caller, TenantId(id): TenantId) -> Status {
    let tenant = find(&api, &caller, id).await?;
    answer(&api, StatusCode::OK, &tenant)
}

pub async fn enable(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
    request: Request,
) -> Status {
    find(&api, &caller, id).await?;
    let given = given(request).await?;
    let change: Change = Box::new(move |tenant, pool| {
        caller.check_sees(tenant)?;
        tenant.enable(pool, Keys::generate_for(given), Timestamp::now())
    });
    let tenant = api.registry.update(id, change).await?;
    answer(&api, StatusCode::ACCEPTED, &tenant)
}

pub async fn disable(State(api): State<Api>, caller: Caller, TenantId(id): TenantId) -> Status {
    let change: Change = Box::new(move |tenant, pool| {
        caller.check_sees(tenant)?;
        tenant.disable(pool, Timestamp::now())
    });
    let tenant = api.registry.update(id, change).await?;
    api.revoked(id, Some(&tenant)).await;
    answer(&api, StatusCode::OK, &tenant)
}

pub async fn regenerate(
    State(api): State<Api>,
    caller: Caller,
    TenantId(id): TenantId,
    request: Request,
) -> Status {
    find(&api, &caller, id).await?;
    let given = given(request).await?;
    // Without new keys the old ones stay in force, and the caller has to know.
    let keys = Keys::generate_for(given).map_err(ApiError::internal)?;
    let change: Change = Box::new(move |tenant, _| {
        caller.check_sees(tenant)?;
        tenant.regenerate(keys.clone(), Timestamp::now())
    });
    let tenant = api.registry.update(id, change).await?;
    api.revoked(id, Some(&tenant)).await;
    answer(&api, StatusCode::ACCEPTED, &tenant)
}

/// The public key that the client gives, if it does.
async fn given(request: Request) -> Result<Option<PublicKey>, ApiError> {
    let NewKeys { public_key } = json_or_nothing(request).await?;
    let refused = |error: KeyError| {
        let message = format!("public_key is not valid: {error}");
        ApiError::status(StatusCode::BAD_REQUEST, message)
    };
    let key = public_key.map(|text| text.parse()).transpose();
    key.map_err(refused)
}

pub async fn config(
    State(api): State<Api>,
    Downloader(caller): Downloader,
    TenantId(id): TenantId,
) -> Result<Response, ApiError> {
    let tenant = find(&api, &caller, id).await?;
    let allocation = tenant.configuration()?;
    let subnet = subnet(&api, &tenant)?;
    let address = Ipv4Net::new(client_address(subnet), subnet.prefix_len());
    let mut addresses = vec![IpNet::V4(address.map_err(ApiError::internal)?)];
    let mut allowed_ips = api.settings.allowed_ips.clone();
    if let Some(subnet6) = subnet6(&api, &tenant) {
        let address = Ipv6Net::new(client_address6(subnet6), subnet6.prefix_len());
        addresses.push(address.map_err(ApiError::internal)?.into());
        // The gateway itself: no range of the cluster's can be meant to have it.
        if !allowed_ips
            .iter()
            .any(|net| net.contains(&IpNet::V6(subnet6)))
        {
            allowed_ips.push(subnet6.into());
        }
    }
    let text = ClientConfig {
        key: allocation.keys.client.clone(),
        addresses,
        dns: api.settings.dns,
        server_public_key: allocation.keys.server.public(),
        allowed_ips,
        endpoint: api.settings.pools.endpoint(allocation.port),
    }
    .render();
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{}\"", filename(&tenant)),
        ),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    // The text is zeroed once it is sent.
    Ok((headers, Body::from(Bytes::from_owner(text))).into_response())
}

/// `wg-quick` names the interface after the file, and the kernel takes 15
/// characters (IFNAMSIZ less its end).
fn filename(tenant: &Tenant) -> String {
    let id = tenant.id.simple().to_string();
    format!("vpn-{}.conf", &id[..8])
}

fn subnet(api: &Api, tenant: &Tenant) -> Result<Ipv4Net, ApiError> {
    tunnel_subnet(tenant.id, &api.settings.cluster_ranges).map_err(ApiError::internal)
}

fn subnet6(api: &Api, tenant: &Tenant) -> Option<Ipv6Net> {
    let ipv6 = api.settings.tunnel_ipv6;
    ipv6.then(|| tunnel_subnet6(tenant.id))
}

fn answer(api: &Api, status: StatusCode, tenant: &Tenant) -> Status {
    let vpn = &tenant.vpn;
    let mut body = VpnStatus {
        state: vpn.state,
        endpoint: None,
        port: None,
        subnet: None,
        client_address: None,
        subnet6: None,
        client_address6: None,
        server_public_key: None,
        client_public_key: None,
        client_key_given: None,
        created_at: None,
        generation: vpn.generation,
        since: whole_second(vpn.since),
        failure: vpn.failure.clone(),
    };
    if let Some(allocation) = &vpn.allocation {
        let subnet = subnet(api, tenant)?;
        body.endpoint = Some(api.settings.pools.endpoint(allocation.port));
        body.port = Some(allocation.port);
        body.subnet = Some(subnet);
        body.client_address = Some(client_address(subnet));
        body.subnet6 = subnet6(api, tenant);
        body.client_address6 = body.subnet6.map(client_address6);
        body.server_public_key = Some(allocation.keys.server.public());
        body.client_public_key = Some(allocation.keys.client.public());
        body.client_key_given = Some(allocation.keys.client.given().is_some());
        body.created_at = Some(whole_second(allocation.created_at));
    }
    Ok((status, Json(body)))
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
