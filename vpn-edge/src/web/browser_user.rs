//! Visitors of pages, and the answers when a page cannot be shown.

use axum::extract::{FromRequestParts, Path};
use axum::http::Method;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect, Response};
use uuid::Uuid;

use super::pages::ErrorPage;
use crate::api::{Api, ApiError, TenantId};
use crate::auth::{Caller, Refused};
use crate::domain::VpnError;

/// A caller with a browser.
pub struct BrowserUser(pub Caller);

impl FromRequestParts<Api> for BrowserUser {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<BrowserUser, Response> {
        match api.identity.caller(parts).await {
            Ok(caller) => Ok(BrowserUser(caller)),
            Err(refused) => Err(turned_away(parts, refused)),
        }
    }
}

/// A visitor who followed a link of these pages or typed the address: for requests
/// that are recorded or reveal keys.
pub struct SameSite(pub Caller);

impl FromRequestParts<Api> for SameSite {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<SameSite, Response> {
        let BrowserUser(caller) = BrowserUser::from_request_parts(parts, api).await?;
        match api.identity.check_own_link(parts) {
            Ok(()) => Ok(SameSite(caller)),
            // Also after signing in: the page above has the link.
            Err(_) => {
                let path = parts.uri.path();
                let above = path.rsplit_once('/').map_or("/", |(above, _)| above);
                Err(Redirect::to(above).into_response())
            }
        }
    }
}

/// The tenant in a page's path.
pub struct TenantPath(pub Uuid);

impl FromRequestParts<Api> for TenantPath {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<TenantPath, Response> {
        let Path(text) = Path::<String>::from_request_parts(parts, api)
            .await
            .map_err(|_| not_found())?;
        // If the visitor is not signed in, the argument before reports that first.
        TenantId::parse(&text)
            .map(TenantPath)
            .map_err(|_| not_found())
    }
}

fn turned_away(parts: &Parts, refused: Refused) -> Response {
    let ended = match refused {
        Refused::Missing => "",
        // The credential expired or was revoked, or the issuer's key is no longer
        // valid.
        Refused::Invalid(_) => "&ended",
        refused => return ErrorPage::from(ApiError::from(refused)).into_response(),
    };
    let back = match (&parts.method, parts.uri.path_and_query()) {
        (&Method::GET, Some(path)) => path.as_str(),
        _ => "/",
    };
    let back: String = form_urlencoded::byte_serialize(back.as_bytes()).collect();
    Redirect::to(&format!("/sign-in?return={back}{ended}")).into_response()
}

/// The answer for a missing page, or one that the visitor may not know of.
pub fn not_found() -> Response {
    ErrorPage::from(ApiError::from(VpnError::TenantNotFound)).into_response()
}

/// A parameter of a query or form, the first with that name.
pub fn parameter(text: &str, name: &str) -> Option<String> {
    let mut fields = form_urlencoded::parse(text.as_bytes());
    let (_, value) = fields.find(|(found, _)| found == name)?;
    Some(value.into_owned())
}
