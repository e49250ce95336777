//! A tenant's VPN: its page, its actions and its configuration.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use qrcode::render::svg;
use qrcode::{EcLevel, QrCode};
use tokio::time::timeout;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::browser_user::{BrowserUser, SameSite, TenantPath, parameter};
use super::pages::{self, Confirm, ErrorPage, message, plan_name};
use crate::api::{Api, ApiError, filename, given_key};
use crate::auth::Caller;
use crate::catalog::CLUSTER_DOMAIN;
use crate::domain::{self, Tenant};
use crate::wireguard::PublicKey;

/// How long a page waits for the edges.
const TIMEOUT: Duration = Duration::from_secs(2);

type Page = Result<Response, ErrorPage>;

pub async fn show(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    TenantPath(id): TenantPath,
) -> Page {
    let tenant = api.find(&caller, id).await?;
    Ok(page(&api, caller, tenant).await?.into_response())
}

/// For reloading the answer of a refused form.
pub async fn back(_: BrowserUser, TenantPath(id): TenantPath) -> Response {
    to_page(id)
}

pub async fn enable(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    TenantPath(id): TenantPath,
    body: Bytes,
) -> Page {
    let tenant = api.find(&caller, id).await?;
    let given = given(&body);
    let outcome = match key(&given) {
        Ok(key) => api.enable(&caller, id, key).await,
        Err(error) => Err(error),
    };
    let Err(error) = outcome else {
        return Ok(to_page(id));
    };
    // The tenant's current state is more useful than the one that was requested.
    let tenant = api.find(&caller, id).await.unwrap_or(tenant);
    let (status, message) = message(&error);
    let mut page = page(&api, caller, tenant).await?;
    page.given = given;
    page.status = status;
    page.problem = Some(message);
    Ok(page.into_response())
}

pub async fn confirm_disable(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    TenantPath(id): TenantPath,
) -> Page {
    let tenant = api.find(&caller, id).await?;
    Ok(confirm(caller, tenant, true).into_response())
}

pub async fn confirm_regenerate(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    TenantPath(id): TenantPath,
) -> Page {
    let tenant = api.find(&caller, id).await?;
    Ok(confirm(caller, tenant, false).into_response())
}

pub async fn disable(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    TenantPath(id): TenantPath,
) -> Page {
    let tenant = api.find(&caller, id).await?;
    match api.disable(&caller, id).await {
        Ok(_) => Ok(to_page(id)),
        Err(error) => Ok(refused(confirm(caller, tenant, true), &error)),
    }
}

pub async fn regenerate(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    TenantPath(id): TenantPath,
    body: Bytes,
) -> Page {
    let tenant = api.find(&caller, id).await?;
    let given = given(&body);
    let outcome = match key(&given) {
        Ok(key) => api.regenerate(&caller, id, key).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(_) => Ok(to_page(id)),
        Err(error) => {
            let mut page = confirm(caller, tenant, false);
            page.given = given;
            Ok(refused(page, &error))
        }
    }
}

pub async fn configuration(
    State(api): State<Api>,
    SameSite(caller): SameSite,
    TenantPath(id): TenantPath,
) -> Page {
    let tenant = api.find(&caller, id).await?;
    let text = api.configuration(&caller, id).await?.text;
    let made = tenant.configuration().map_err(ApiError::from)?;
    let qr = match made.keys.client.given() {
        Some(_) => None,
        None => Some(qr_code(&text)?),
    };
    let page = pages::Configuration {
        browser_user: Some(caller),
        tenant,
        text,
        qr,
    };
    Ok(page.into_response())
}

fn to_page(id: Uuid) -> Response {
    Redirect::to(&format!("/tenants/{id}")).into_response()
}

async fn page(api: &Api, caller: Caller, tenant: Tenant) -> Result<pages::Vpn, ApiError> {
    let filename = filename(&tenant);
    let (session, mut databases) = match tenant.vpn.state {
        domain::State::Enabled => {
            let session = timeout(TIMEOUT, api.session_of(&tenant));
            let (session, hosts) = tokio::join!(session, api.databases.hosts(&tenant));
            (session.ok().and_then(Result::ok), hosts)
        }
        _ => (None, Vec::new()),
    };
    // If their names are unknown, the page shows what they look like.
    let named = !databases.is_empty();
    if !named {
        let namespace = &tenant.namespace;
        databases.push(format!("DATABASE-rw.{namespace}.svc.{CLUSTER_DOMAIN}"));
    }
    Ok(pages::Vpn {
        browser_user: Some(caller),
        problem: None,
        plan: plan_name(tenant.plan),
        state: tenant.vpn.state,
        vpn: api.status(&tenant),
        interface: filename.trim_end_matches(".conf").to_owned(),
        filename,
        databases,
        named,
        dns: api.settings.tunnels.dns.to_string(),
        session,
        given: String::new(),
        tenant,
        status: StatusCode::OK,
    })
}

fn confirm(caller: Caller, tenant: Tenant, disable: bool) -> Confirm {
    Confirm {
        browser_user: Some(caller),
        problem: None,
        title: match disable {
            true => "Disable VPN",
            false => "Regenerate Keys",
        },
        disable,
        given: String::new(),
        tenant,
        status: StatusCode::OK,
    }
}

fn refused(mut page: Confirm, error: &ApiError) -> Response {
    let (status, message) = message(error);
    page.status = status;
    page.problem = Some(message);
    page.into_response()
}

fn given(form: &Bytes) -> String {
    let form = String::from_utf8_lossy(form);
    let given = parameter(&form, "public_key").unwrap_or_default();
    given.trim().to_owned()
}

/// The client's own key, unless the field is empty.
fn key(given: &str) -> Result<Option<PublicKey>, ApiError> {
    match given {
        "" => Ok(None),
        text => given_key(text).map(Some),
    }
}

/// A QR code of the text, black on white in any colour scheme, because many readers
/// require that.
fn qr_code(text: &str) -> Result<Zeroizing<String>, ApiError> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M);
    let code = code.map_err(ApiError::internal)?;
    let picture = code.render::<svg::Color>().min_dimensions(320, 320).build();
    let picture = Zeroizing::new(picture);
    // Inline SVG has no XML declaration.
    let start = picture.find("<svg").unwrap_or_default();
    Ok(Zeroizing::new(picture[start..].to_owned()))
}
