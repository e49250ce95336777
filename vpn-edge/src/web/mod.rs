//! The pages for browsers: for tenants' people, and for the platform's admins.
//!
//! Each page is rendered completely here and works without a script; the script
//! updates it when something changes, and copies text. Callers, and what they may do,
//! are the API's (`api::actions`).
//!
//! | Route | Shows or does |
//! |---|---|
//! | `GET /sign-in` | how to sign in |
//! | `GET /`, `/tenants` | the tenants that the caller sees; a member's only one at once |
//! | `GET /tenants/{id}` | the VPN |
//! | `GET /audit?tenant=ID` | what callers did, for admins |
//! | `GET /tenants/{id}/configuration` | the client's configuration, with its QR code |
//! | `GET /tenants/{id}/disable`, `…/regenerate` | the warning before it |
//! | `POST /tenants/{id}/enable`, `…/disable`, `…/regenerate` | does it |

mod assets;
mod audit;
mod browser_user;
mod pages;
mod tenants;
mod vpn;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use crate::api::Api;
use crate::auth::{Refused, local_path};
use browser_user::{BrowserUser, parameter};
use pages::SignIn;

pub use browser_user::not_found;

/// The pages' routes.
pub(crate) fn router() -> Router<Api> {
    Router::new()
        .route("/", get(home))
        .route("/sign-in", get(sign_in))
        .route("/audit", get(audit::show))
        .route("/tenants", get(tenants::list))
        .route("/tenants/{id}", get(vpn::show))
        .route("/tenants/{id}/enable", get(vpn::back).post(vpn::enable))
        .route(
            "/tenants/{id}/disable",
            get(vpn::confirm_disable).post(vpn::disable),
        )
        .route(
            "/tenants/{id}/regenerate",
            get(vpn::confirm_regenerate).post(vpn::regenerate),
        )
        .route("/tenants/{id}/configuration", get(vpn::configuration))
        .merge(assets::router())
}

async fn home(_: BrowserUser) -> Redirect {
    Redirect::to("/tenants")
}

async fn sign_in(State(api): State<Api>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let back = parameter(query, "return").unwrap_or_default();
    let back = local_path(&back).unwrap_or("/");
    if api.identity.caller(&parts).await.is_ok() {
        return Redirect::to(back).into_response();
    }
    let mut page = SignIn::new(&api, back);
    if parameter(query, "ended").is_some() {
        page.problem = Some("Your session has ended. Sign in again.".to_owned());
    }
    page.into_response()
}

/// Shows a page to browsers if signing in or out fails.
pub(crate) async fn sign_in_trouble(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Response {
    let is_browser = wants_page(request.headers());
    let back = parameter(request.uri().query().unwrap_or_default(), "return");
    let response = next.run(request).await;
    let Some(refused) = response.extensions().get::<Refused>().cloned() else {
        return response;
    };
    if !is_browser {
        return response;
    }
    let back = back.as_deref().and_then(local_path).unwrap_or("/");
    let mut page = SignIn::new(&api, back);
    page.problem = Some(pages::message(&refused.into()).1);
    let (mut parts, _) = response.into_parts();
    for of_json in [
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::REFERRER_POLICY,
    ] {
        parts.headers.remove(of_json);
    }
    (parts, page.into_response()).into_response()
}

pub(crate) fn wants_page(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    accept.is_some_and(|value| value.to_str().is_ok_and(|text| text.contains("text/html")))
}

/// Security headers for everything that is served here.
pub(crate) async fn secure_headers(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
        img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
        frame-ancestors 'none'";
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    // Not `no-referrer`, with which forms would be sent without an origin.
    set(header::REFERRER_POLICY, "same-origin");
    set(
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    );
    set(
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    );
    set(
        HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=(), payment=()",
    );
    set(header::CACHE_CONTROL, "no-store");
    if api.identity.is_https() {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    response
}

#[cfg(test)]
mod tests;
