//! The HTTP router: the API, signing in, and the pages.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::trace::TraceLayer;

use crate::api::{self, Api, ApiError, Backends, Settings};
use crate::{auth, web};

/// Maximum size of a request's body, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// How long a request may take, including the transfer of its body.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// The API's routes under `/v1`, `/auth`, and the pages.
///
/// Must be served with `ConnectInfo<SocketAddr>`, by which failed sign-ins are
/// counted.
pub fn router(backends: Backends, settings: Settings) -> Router {
    all_routes(Api::new(backends, settings), REQUEST_DEADLINE)
}

pub(crate) fn all_routes(api: Api, deadline: Duration) -> Router {
    let sign_in = auth::router(api.identity.clone()).layer(middleware::from_fn_with_state(
        api.clone(),
        web::sign_in_trouble,
    ));
    Router::from(api::described())
        .merge(sign_in)
        .merge(web::router())
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(move |request, next| {
            within(deadline, request, next)
        }))
        .layer(middleware::from_fn_with_state(
            api.clone(),
            web::secure_headers,
        ))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .with_state(api)
}

/// Without the query, which may contain a sign-in's code.
fn span(request: &Request) -> tracing::Span {
    tracing::debug_span!("request", method = %request.method(), path = request.uri().path())
}

async fn no_such_route(uri: Uri, headers: HeaderMap) -> Response {
    if web::wants_page(&headers) && !uri.path().starts_with("/v1/") {
        return web::not_found();
    }
    let message = format!("there is nothing at {}", uri.path());
    ApiError::status(StatusCode::NOT_FOUND, message).into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not allowed on {}", uri.path());
    ApiError::status(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn within(deadline: Duration, request: Request, next: Next) -> Response {
    match tokio::time::timeout(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("the request took longer than {deadline:?}");
            ApiError::status(StatusCode::REQUEST_TIMEOUT, message).into_response()
        }
    }
}
