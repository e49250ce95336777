//! Why a caller is rejected. No reason reveals anything of the credential.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// What is wrong with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the token is not known; `vpn-edge token add` creates one")]
    UnknownToken,
    #[error("the token is not a readable JWT, or its algorithm is not accepted")]
    Malformed,
    #[error("the token is not signed with one of the issuer's keys")]
    UnknownKey,
    #[error("the token's algorithm is not the one of its key")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired; sign in again")]
    Expired,
    #[error("the token is not valid yet; check the clocks")]
    NotYet,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token lacks one of the claims exp, iss, aud and sub")]
    Incomplete,
    #[error("the token does not belong to this sign-in")]
    Nonce,
}

impl Invalid {
    /// Whether the issuer signed it, but for another time: such a token was not
    /// guessed.
    pub fn is_of_another_time(self) -> bool {
        matches!(self, Invalid::Expired | Invalid::NotYet)
    }
}

/// Why a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a bearer token is missing; send the header Authorization: Bearer <token>")]
    Missing,
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// The time to wait.
    #[error("too many failed sign-ins from this address; wait a minute")]
    TooMany(Duration),
    /// The name of the claim.
    #[error(
        "signed in, but the token has no organisation: its claim {0} is missing or not a valid name"
    )]
    NoOrganisation(String),
    /// The caller sees the tenant, but may not do the action.
    #[error("admin only")]
    AdminOnly,
    #[error("the request comes from another site")]
    CrossSite,
    /// The name of the cookie. One of the two is not from here.
    #[error("the cookie {0} was sent twice; clear the cookies of this site and its domain")]
    CookieTwice(String),
    #[error("the OpenID issuer cannot be reached at the moment; try again")]
    IssuerUnreachable,
    #[error("no OpenID issuer is set up here; sign in with a token")]
    NoSignIn,
    /// What was wrong.
    #[error("the sign-in failed: {0}")]
    SignIn(String),
}

impl Refused {
    pub fn status(&self) -> StatusCode {
        match self {
            Refused::Missing | Refused::Invalid(_) => StatusCode::UNAUTHORIZED,
            Refused::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Refused::NoOrganisation(_) | Refused::AdminOnly | Refused::CrossSite => {
                StatusCode::FORBIDDEN
            }
            Refused::IssuerUnreachable => StatusCode::SERVICE_UNAVAILABLE,
            Refused::NoSignIn => StatusCode::NOT_FOUND,
            Refused::SignIn(_) | Refused::CookieTwice(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let message = self.to_string();
        let mut response = (self.status(), Json(json!({ "error": message }))).into_response();
        // Used by pages instead of the JSON.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        match self {
            // RFC 6750, section 3.1: no error code if no credential was sent.
            Refused::Missing => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Refused::Invalid(invalid) => {
                let challenge =
                    format!("Bearer error=\"invalid_token\", error_description=\"{invalid}\"");
                if let Ok(challenge) = HeaderValue::from_str(&challenge) {
                    headers.insert(header::WWW_AUTHENTICATE, challenge);
                }
            }
            Refused::TooMany(wait) => {
                headers.insert(header::RETRY_AFTER, (wait.as_secs() + 1).into());
            }
            _ => {}
        }
        response
    }
}
