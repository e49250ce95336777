//! `/auth/…`: how browsers sign in and out.
//!
//! | Route | Does |
//! |---|---|
//! | `GET /auth/login?return=PATH` | sends the browser to the issuer |
//! | `POST /auth/login` | signs in with a pasted credential: the field `token`; `return` as above, or a field |
//! | `GET /auth/callback` | where the issuer sends the browser back to |
//! | `POST /auth/logout` | forgets the credential |

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::Identity;
use super::refused::Refused;
use super::request::SESSION;
use super::sign_in::{Attempt, error_code, local_path};

/// The cookie of a sign-in in progress.
const ATTEMPT: &str = "vpn-edge-sign-in";

/// How long a sign-in may take, in seconds.
const ATTEMPT_AGE: u32 = 600;

/// Size of a cookie, with its name and attributes, that every browser supports (RFC
/// 6265, section 6.1).
const MAX_COOKIE: usize = 4096;

/// Maximum size of the form with a pasted token, in bytes.
const MAX_FORM: usize = 32 * 1024;

/// The routes, for a router with any state.
pub fn router<S: Clone + Send + Sync + 'static>(identity: Arc<Identity>) -> Router<S> {
    Router::new()
        .route("/auth/login", get(begin).post(paste))
        .route("/auth/callback", get(callback))
        .route("/auth/logout", post(logout))
        .with_state(identity)
}

async fn begin(State(identity): State<Arc<Identity>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    answer(identity.begin(&parts).await)
}

async fn paste(State(identity): State<Arc<Identity>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_FORM).await else {
        return Refused::SignIn("the form is too large".to_owned()).into_response();
    };
    answer(identity.paste(&parts, &body).await)
}

async fn callback(State(identity): State<Arc<Identity>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let mut response = answer(identity.finish(&parts).await);
    // Whatever the result, this attempt is over.
    set_cookie(&mut response, &identity.attempt_cookie("", 0));
    response
}

async fn logout(State(identity): State<Arc<Identity>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    if let Err(refused) = identity.check_same_origin(&parts) {
        return refused.into_response();
    }
    let gone = format!("{}; Max-Age=0", identity.session_cookie(""));
    answer(Ok(Onward::new("/", &gone)))
}

/// A redirect and the cookie that is set with it.
struct Onward {
    location: String,
    cookie: String,
}

impl Onward {
    fn new(location: &str, cookie: &str) -> Onward {
        Onward {
            location: location.to_owned(),
            cookie: cookie.to_owned(),
        }
    }
}

impl Identity {
    async fn begin(&self, parts: &Parts) -> Result<Onward, Refused> {
        let (oidc, client) = self.client()?;
        let back = field(query(parts), "return").unwrap_or_default();
        let attempt = Attempt::new(&back).map_err(|error| {
            tracing::error!(%error, "cannot get random bytes");
            Refused::SignIn("the server cannot generate random numbers; try again later".to_owned())
        })?;
        let known = oidc.issuer.known().await?;
        let url = client.authorization_url(&oidc.issuer, &known.metadata, &attempt)?;
        let cookie = self.attempt_cookie(&attempt.to_cookie(), ATTEMPT_AGE);
        Ok(Onward::new(url.as_str(), &cookie))
    }

    async fn paste(&self, parts: &Parts, body: &Bytes) -> Result<Onward, Refused> {
        self.check_same_origin(parts)?;
        let token = field(body, "token").unwrap_or_default();
        let token = token.trim();
        if token.is_empty() {
            return Err(Refused::SignIn("no token was given".to_owned()));
        }
        self.verify(token, self.address(parts)).await?;
        let back = field(body, "return").or_else(|| field(query(parts), "return"));
        let back = back.unwrap_or_default();
        self.signed_in(token, local_path(&back).unwrap_or("/"))
    }

    /// Unlike a credential, a code costs a request to the issuer, so none is accepted
    /// from an address with too many failures. It is counted before the request, so
    /// that neither concurrency nor disconnecting circumvents the limit; but only if
    /// it belongs to a sign-in that began here, since any site can send a browser to
    /// this URL.
    async fn finish(&self, parts: &Parts) -> Result<Onward, Refused> {
        let (attempt, code) = self.answered(parts)?;
        let from = self.address(parts);
        self.codes
            .add(from, Instant::now())
            .map_err(Refused::TooMany)?;
        let outcome = self.redeem(&attempt, &code).await;
        if !matches!(outcome, Err(Refused::SignIn(_) | Refused::Invalid(_))) {
            self.codes.take_back(from);
        }
        outcome
    }

    async fn redeem(&self, attempt: &Attempt, code: &str) -> Result<Onward, Refused> {
        let (oidc, client) = self.client()?;
        let (token, claims) = client.id_token(&oidc.issuer, code, attempt).await?;
        oidc.mapping.caller(&claims)?;
        self.signed_in(&token, &attempt.back)
    }

    /// The attempt that the issuer's response belongs to, and its code.
    fn answered(&self, parts: &Parts) -> Result<(Attempt, String), Refused> {
        let (oidc, _) = self.client()?;
        let attempt = self
            .cookie(parts, ATTEMPT)?
            .and_then(Attempt::from_cookie)
            .ok_or_else(|| wrong("it took too long, or cookies are off; start again"))?;
        let query = query(parts);
        let state = field(query, "state").unwrap_or_default();
        if !attempt.is_state(&state) {
            return Err(wrong("it was started in another window; start again"));
        }
        // RFC 9207: the response must be from the issuer that was asked.
        if field(query, "iss").is_some_and(|issuer| issuer != oidc.issuer.name()) {
            return Err(wrong("another issuer answered"));
        }
        if let Some(error) = field(query, "error") {
            return Err(wrong(&format!(
                "the issuer answered {}",
                error_code(&error)
            )));
        }
        let code = field(query, "code").ok_or_else(|| wrong("the issuer returned no code"))?;
        Ok((attempt, code))
    }

    fn signed_in(&self, credential: &str, back: &str) -> Result<Onward, Refused> {
        let cookie = self.session_cookie(credential);
        if cookie.len() > MAX_COOKIE {
            return Err(wrong(
                "the token is too large for a cookie; have the issuer put fewer claims in it",
            ));
        }
        Ok(Onward::new(back, &cookie))
    }

    /// No Max-Age: the credential has its own expiry, and the browser drops the
    /// cookie when it closes.
    fn session_cookie(&self, credential: &str) -> String {
        let name = self.cookie_name(SESSION);
        format!("{name}={credential}; Path=/; HttpOnly; Secure; SameSite=Lax")
    }

    fn attempt_cookie(&self, value: &str, age: u32) -> String {
        let name = self.cookie_name(ATTEMPT);
        format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; Secure; SameSite=Lax")
    }
}

fn answer(outcome: Result<Onward, Refused>) -> Response {
    let mut response = match outcome {
        Ok(onward) => {
            let location = [(header::LOCATION, onward.location)];
            let mut response = (StatusCode::SEE_OTHER, location).into_response();
            set_cookie(&mut response, &onward.cookie);
            response
        }
        Err(refused) => refused.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The URL contains a code.
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}

fn set_cookie(response: &mut Response, cookie: &str) {
    if let Ok(mut cookie) = HeaderValue::from_str(cookie) {
        cookie.set_sensitive(true);
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}

fn query(parts: &Parts) -> &[u8] {
    parts.uri.query().unwrap_or_default().as_bytes()
}

/// A field of a form, the first with that name.
fn field(form: &[u8], name: &str) -> Option<String> {
    let mut fields = form_urlencoded::parse(form);
    let (_, value) = fields.find(|(found, _)| found == name)?;
    Some(value.into_owned())
}

fn wrong(what: &str) -> Refused {
    Refused::SignIn(what.to_owned())
}
