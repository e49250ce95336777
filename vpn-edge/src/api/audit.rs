//! `/v1/audit`, and how actions get there.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use tracing::Instrument as _;
use uuid::Uuid;

use super::Api;
use super::body::{AuditList, AuditRecord};
use super::error::ApiError;
use crate::audit::{Action, LogError, Outcome, Query, Record};
use crate::auth::Caller;
use crate::domain::Tenant;

/// Records in an answer: default and maximum.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// The message of a refused action: nothing has been changed.
const UNRECORDED: &str = "nothing was done because the audit log cannot be written at the moment: \
                          try again, or ask the operator to check vpn-edge's log";

/// What callers did, newest first. For admins.
#[utoipa::path(
    get,
    path = "/v1/audit",
    operation_id = "read_audit",
    tag = "audit",
    params(
        ("tenant" = Option<Uuid>, Query, description = "Only records of this tenant, which may have been removed."),
        ("limit" = Option<usize>, Query, description = "Maximum number of records.", minimum = 1, maximum = 1000),
        ("before" = Option<Uuid>, Query, description = "Only records older than this one: `next` of the previous answer."),
    ),
    responses((status = 200, description = "Records.", body = AuditList))
)]
pub async fn read(
    State(api): State<Api>,
    caller: Caller,
    RawQuery(text): RawQuery,
) -> Result<Json<AuditList>, ApiError> {
    caller.check_admin()?;
    let query = query(text.as_deref().unwrap_or_default())?;
    Ok(Json(api.audit(&caller, query).await?))
}

impl Api {
    /// What callers did, for an admin.
    pub async fn audit(&self, caller: &Caller, query: Query) -> Result<AuditList, ApiError> {
        caller.check_admin()?;
        let Query { limit, .. } = query;
        let more = Query {
            limit: limit.saturating_add(1),
            ..query
        };
        let mut found = self.audit.read(more).await.map_err(|error| {
            tracing::error!("cannot read the audit log: {error}");
            let message = "the audit log cannot be read at the moment: try again, \
                           or check vpn-edge's log";
            ApiError::status(StatusCode::SERVICE_UNAVAILABLE, message.to_owned())
        })?;
        let older = found.len() > limit;
        found.truncate(limit);
        Ok(AuditList {
            next: found.last().filter(|_| older).map(|record| record.id),
            records: found.into_iter().map(AuditRecord::from).collect(),
        })
    }

    /// Does `work` on a tenant that the caller sees, and records it before it begins.
    /// It completes even if the caller goes away.
    pub(super) async fn recorded<T, W>(
        &self,
        caller: &Caller,
        tenant: &Tenant,
        action: Action,
        work: impl FnOnce(Api, Caller) -> W,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let record = Record::begin(caller, tenant, action);
        let (id, tenant) = (record.id, record.tenant);
        let work = work(self.clone(), caller.clone());
        let audit = self.audit.clone();
        let task = async move {
            audit.begin(record).await.map_err(|error: LogError| {
                tracing::error!(%tenant, %action, "cannot write the audit log; action refused: {error}");
                ApiError::status(StatusCode::SERVICE_UNAVAILABLE, UNRECORDED.to_owned())
            })?;
            let outcome = work.await;
            let told = match &outcome {
                Ok(_) => Outcome::new(success(action), None),
                Err(error) => Outcome::new(error.code().as_u16(), Some(error.message())),
            };
            if let Err(error) = audit.end(tenant, id, told).await {
                tracing::error!(%tenant, %action, "cannot add the outcome to audit record {id}: {error}");
            }
            outcome
        };
        match tokio::spawn(task.in_current_span()).await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(ApiError::internal(error)),
            },
        }
    }
}

/// The HTTP status of a successful action.
fn success(action: Action) -> u16 {
    match action {
        Action::Create => 201,
        Action::Delete => 204,
        Action::Enable | Action::Regenerate => 202,
        Action::Change | Action::Disable | Action::Download => 200,
    }
}

/// Parses a URL's query.
fn query(text: &str) -> Result<Query, ApiError> {
    let wrong = |message: String| ApiError::status(StatusCode::BAD_REQUEST, message);
    let (mut tenant, mut limit, mut before) = (None, None, None);
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let twice = match &*name {
            "tenant" => {
                let id = uuid(&value).ok_or_else(|| {
                    wrong("tenant is not a UUID: correct it, or leave it out".to_owned())
                })?;
                tenant.replace(id).is_some()
            }
            "before" => {
                let id = uuid(&value).ok_or_else(|| {
                    wrong(
                        "before is not a record's id: use `next` of the previous answer".to_owned(),
                    )
                })?;
                before.replace(id).is_some()
            }
            "limit" => {
                let number = value.parse().ok();
                let number = number.filter(|number| (1..=MAX_LIMIT).contains(number));
                let number = number
                    .ok_or_else(|| wrong(format!("limit is not a number from 1 to {MAX_LIMIT}")))?;
                limit.replace(number).is_some()
            }
            _ => {
                let message = format!("unknown parameter {name:?}: use tenant, limit or before");
                return Err(wrong(message));
            }
        };
        if twice {
            return Err(wrong(format!("{name} is given twice: leave one out")));
        }
    }
    Ok(Query {
        tenant,
        limit: limit.unwrap_or(DEFAULT_LIMIT),
        before,
    })
}

/// Only in the canonical form.
fn uuid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|_| text.len() == 36)
}
