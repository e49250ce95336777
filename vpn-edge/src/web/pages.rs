//! The data of the pages.

use askama::Template;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::api::{Api, ApiError, AuditRecord, VpnStatus};
use crate::auth::{Caller, Refused};
use crate::domain::{Plan, State, Tenant, VpnError};
use crate::sessions::{Session, Traffic};

/// Initial buffer for pages with secrets: larger ones would be moved in memory,
/// leaving a copy behind.
const ROOM: usize = 256 * 1024;

#[derive(Template)]
#[template(path = "sign_in.html")]
pub struct SignIn {
    browser_user: Option<Caller>,
    pub problem: Option<String>,
    /// Whether an OpenID issuer is set up.
    single_sign_on: bool,
    /// The URL for signing in, by either way.
    action: String,
}

impl SignIn {
    pub fn new(api: &Api, back: &str) -> SignIn {
        let to: String = form_urlencoded::byte_serialize(back.as_bytes()).collect();
        SignIn {
            browser_user: None,
            problem: None,
            single_sign_on: api.identity.has_sign_in(),
            action: format!("/auth/login?return={to}"),
        }
    }
}

/// Shown instead of a page that failed.
#[derive(Template)]
#[template(path = "error.html")]
pub struct ErrorPage {
    browser_user: Option<Caller>,
    title: &'static str,
    message: String,
    status: StatusCode,
}

impl From<ApiError> for ErrorPage {
    fn from(error: ApiError) -> ErrorPage {
        let (status, message) = message(&error);
        ErrorPage {
            browser_user: None,
            title: match status {
                StatusCode::NOT_FOUND => "Not found",
                StatusCode::FORBIDDEN => "Not allowed",
                _ => "That did not work",
            },
            message,
            status,
        }
    }
}

/// An error's message for people.
pub fn message(error: &ApiError) -> (StatusCode, String) {
    let message = match error {
        ApiError::Vpn(error) => match error {
            VpnError::NotAvailable => {
                "Your plan does not include the VPN. Upgrade to Business or Enterprise Cloud."
            }
            VpnError::TenantNotFound => "There is nothing here that you may see.",
            VpnError::TenantNotReady => {
                "The tenant is still being provisioned. Wait until it is ready."
            }
            VpnError::AlreadyEnabled => "The VPN is already enabled.",
            VpnError::NotEnabled => "The VPN is not enabled.",
            VpnError::BeingEnabled => "The VPN is being enabled. Wait until it is, and try again.",
            VpnError::NoPortsAvailable => "All ports for VPNs are in use. Try again later.",
        }
        .to_owned(),
        ApiError::Refused(Refused::AdminOnly) => "Only admins may see this.".to_owned(),
        ApiError::Refused(refused) => sentence(&refused.to_string()),
        // Fields have other names on the pages.
        ApiError::Status(_, message) => sentence(&message.replace("public_key", "the public key")),
        ApiError::Internal => "An internal error occurred. Try again later.".to_owned(),
    };
    (error.code(), message)
}

/// The API's message as a sentence.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

#[derive(Template)]
#[template(path = "tenants.html")]
pub struct Tenants {
    pub browser_user: Option<Caller>,
    pub admin: bool,
    pub pools: Vec<PoolUse>,
    pub states: Vec<(State, usize)>,
    pub all_states: [State; 5],
    pub filter: Filter,
    pub rows: Vec<Row>,
    /// Position of the first row, from one, among all that match.
    pub first: usize,
    pub last: usize,
    pub total: usize,
    pub previous: Option<String>,
    pub next: Option<String>,
}

pub struct PoolUse {
    pub name: String,
    pub used: usize,
    pub size: usize,
}

impl PoolUse {
    /// The number from which on the pool is nearly full.
    fn high(&self) -> usize {
        self.size * 9 / 10
    }
}

pub struct Row {
    pub id: Uuid,
    pub namespace: String,
    pub organisation: String,
    pub plan: &'static str,
    pub state: &'static str,
    pub port: Option<u16>,
}

/// Which tenants are listed.
#[derive(Default)]
pub struct Filter {
    pub search: String,
    pub state: Option<State>,
}

impl Filter {
    pub fn is_all(&self) -> bool {
        self.search.is_empty() && self.state.is_none()
    }

    fn is_state(&self, state: &State) -> bool {
        self.state == Some(*state)
    }
}

#[derive(Template)]
#[template(path = "vpn.html")]
pub struct Vpn {
    pub browser_user: Option<Caller>,
    pub problem: Option<String>,
    pub plan: &'static str,
    pub state: State,
    pub vpn: VpnStatus,
    pub filename: String,
    pub interface: String,
    /// Their hosts.
    pub databases: Vec<String>,
    /// Whether these are the tenant's databases, not just examples.
    pub named: bool,
    pub dns: String,
    /// The session, if the edges could be queried.
    pub session: Option<Session>,
    /// The rejected key.
    pub given: String,
    pub tenant: Tenant,
    pub status: StatusCode,
}

#[derive(Template)]
#[template(path = "confirm.html")]
pub struct Confirm {
    pub browser_user: Option<Caller>,
    pub problem: Option<String>,
    pub title: &'static str,
    pub disable: bool,
    pub given: String,
    pub tenant: Tenant,
    pub status: StatusCode,
}

#[derive(Template)]
#[template(path = "configuration.html")]
pub struct Configuration {
    pub browser_user: Option<Caller>,
    pub tenant: Tenant,
    pub text: Zeroizing<String>,
    /// As SVG. None if the text has a line to fill in.
    pub qr: Option<Zeroizing<String>>,
}

#[derive(Template)]
#[template(path = "audit.html")]
pub struct Audit {
    pub browser_user: Option<Caller>,
    /// The tenant whose records are shown; none for all.
    pub of: Option<Uuid>,
    pub records: Vec<AuditRecord>,
    /// Link to older records.
    pub older: Option<String>,
}

/// A plan's name for people.
pub fn plan_name(plan: Plan) -> &'static str {
    match plan {
        Plan::Developer => "Developer",
        Plan::Team => "Team",
        Plan::Business => "Business",
        Plan::EnterpriseCloud => "Enterprise Cloud",
    }
}

/// A time as HTML, for people and for programs.
fn time_element(time: &Timestamp) -> String {
    let text = time.strftime("%-d %B %Y, %H:%M:%S UTC");
    format!("<time datetime=\"{time}\">{text}</time>")
}

/// Packets and bytes in a readable form.
fn traffic(traffic: &Traffic) -> String {
    let Traffic { packets, bytes } = traffic;
    let mut amount = *bytes as f64;
    let mut units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, larger);
    }
    let digits = usize::from(unit != "bytes");
    format!("{amount:.digits$} {unit} in {packets} packets")
}

/// The first digits of a tenant's ID, as in its namespace.
fn short(id: &Uuid) -> String {
    id.simple().to_string()[..8].to_owned()
}

/// Renders a page with its status.
fn page(status: StatusCode, template: &impl Template) -> Response {
    let mut text = Zeroizing::new(String::with_capacity(ROOM));
    if let Err(error) = template.render_into(&mut *text) {
        tracing::error!(%error, "cannot render a page");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    let body = Body::from(Bytes::from_owner(text));
    (status, headers, body).into_response()
}

impl IntoResponse for SignIn {
    fn into_response(self) -> Response {
        page(StatusCode::OK, &self)
    }
}

impl IntoResponse for ErrorPage {
    fn into_response(self) -> Response {
        page(self.status, &self)
    }
}

impl IntoResponse for Tenants {
    fn into_response(self) -> Response {
        page(StatusCode::OK, &self)
    }
}

impl IntoResponse for Vpn {
    fn into_response(self) -> Response {
        page(self.status, &self)
    }
}

impl IntoResponse for Audit {
    fn into_response(self) -> Response {
        page(StatusCode::OK, &self)
    }
}

impl IntoResponse for Confirm {
    fn into_response(self) -> Response {
        page(self.status, &self)
    }
}

impl IntoResponse for Configuration {
    fn into_response(self) -> Response {
        page(StatusCode::OK, &self)
    }
}
