//! The HTTP server by which an agent reports sessions to controllers only.
//!
//! A caller presents a token of the controllers' service account for the audience
//! [`AUDIENCE`], and the API server reviews it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use tokio::time::timeout;
use uuid::Uuid;

use crate::cluster::CONTROLLER;
use crate::sessions::{EdgeSessions, SessionQuery};

/// The audience of tokens that agents accept.
pub const AUDIENCE: &str = "vpn-edge-agent";

/// How long a positive review of a token is cached.
const TRUST: Duration = Duration::from_secs(60);

/// Timeout of a review; no controller waits longer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Admits controllers only.
struct TokenReviewer {
    reviews: Api<TokenReview>,
    /// The user name of the controllers' service account.
    user: String,
    /// Hashes of accepted tokens, and until when they are cached.
    good: Mutex<HashMap<Vec<u8>, Instant>>,
    /// At most one review at a time, which bounds the load that unknown callers
    /// cause.
    turn: tokio::sync::Mutex<()>,
}

/// Serves `/sessions/{port}/{tenant}/{generation}` to controllers in the client's own
/// namespace.
pub fn router(sessions: Arc<dyn EdgeSessions>, client: Client) -> Router {
    let namespace = client.default_namespace();
    let reviewer = Arc::new(TokenReviewer {
        user: format!("system:serviceaccount:{namespace}:{CONTROLLER}"),
        reviews: Api::all(client),
        good: Mutex::default(),
        turn: tokio::sync::Mutex::default(),
    });
    Router::new()
        .route("/sessions/{port}/{tenant}/{generation}", get(session))
        .with_state(sessions)
        .layer(middleware::from_fn_with_state(reviewer, checked))
}

async fn session(
    State(sessions): State<Arc<dyn EdgeSessions>>,
    Path((port, tenant, generation)): Path<(u16, Uuid, u64)>,
) -> Response {
    let query = SessionQuery { tenant, generation };
    match sessions.seen(port, query) {
        Ok(Some(seen)) => Json(seen).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => {
            tracing::error!("cannot look up a session: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn checked(
    State(reviewer): State<Arc<TokenReviewer>>,
    request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(header::AUTHORIZATION);
    let token = header
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let Some(token) = token else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    match reviewer.check(token).await {
        Ok(()) => next.run(request).await,
        Err(status) => status.into_response(),
    }
}

impl TokenReviewer {
    async fn check(&self, token: &str) -> Result<(), StatusCode> {
        let hash = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if self.good().contains_key(&hash) {
            return Ok(());
        }
        if !self.may_be_ours(token) {
            return Err(StatusCode::UNAUTHORIZED);
        }
        let _turn = self.turn.lock().await;
        if self.good().contains_key(&hash) {
            return Ok(());
        }
        let reviewed = timeout(TIMEOUT, self.review(token)).await;
        reviewed.unwrap_or(Err(StatusCode::SERVICE_UNAVAILABLE))?;
        self.good().insert(hash, Instant::now() + TRUST);
        Ok(())
    }

    /// Whether a token claims to be a controller's; others need no review.
    fn may_be_ours(&self, token: &str) -> bool {
        #[derive(Deserialize)]
        struct Claims {
            sub: String,
        }
        let claims = token.split('.').nth(1);
        let claims = claims.and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims: Option<Claims> = claims.and_then(|json| serde_json::from_slice(&json).ok());
        claims.is_some_and(|claims| claims.sub == self.user)
    }

    /// The tokens that are currently accepted.
    fn good(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Instant>> {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        good.retain(|_, until| *until > now);
        good
    }

    /// Has the API server review the token.
    async fn review(&self, token: &str) -> Result<(), StatusCode> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let review = self.reviews.create(&PostParams::default(), &review).await;
        let status = review.map_err(|error| {
            tracing::warn!("cannot review a token: {error}");
            StatusCode::SERVICE_UNAVAILABLE
        })?;
        let status = status.status.unwrap_or_default();
        // An API server without support for audiences returns none.
        let audiences = status.audiences.unwrap_or_default();
        let ours = audiences.iter().any(|audience| audience == AUDIENCE);
        if status.authenticated != Some(true) || !ours {
            return Err(StatusCode::UNAUTHORIZED);
        }
        let user = status.user.and_then(|user| user.username);
        if user.as_ref() == Some(&self.user) {
            Ok(())
        } else {
            Err(StatusCode::FORBIDDEN)
        }
    }
}
