//! Who did what to which tenant: a log that survives restarts, and the tenant.
//!
//! A record is written before the action and completed with its outcome afterwards:
//! nothing is changed and no configuration is handed out without a record. Logs are
//! bounded, see [`Limits`].

use std::collections::BTreeSet;
use std::fmt;

use async_trait::async_trait;
use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

use crate::auth::Caller;
use crate::domain::Tenant;
use crate::registry::{Registry, RegistryError};

/// Maximum length of a text in a record, in bytes.
const MAX_TEXT: usize = 512;

/// An action on a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Change,
    Delete,
    Enable,
    Disable,
    Regenerate,
    /// Download of a configuration.
    Download,
}

impl Action {
    pub const ALL: [Action; 7] = [
        Action::Create,
        Action::Change,
        Action::Delete,
        Action::Enable,
        Action::Disable,
        Action::Regenerate,
        Action::Download,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Change => "change",
            Action::Delete => "delete",
            Action::Enable => "enable",
            Action::Disable => "disable",
            Action::Regenerate => "regenerate",
            Action::Download => "download",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The outcome of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The HTTP status.
    pub status: u16,
    /// The message of the refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Outcome {
    /// Truncates the error to what a record can hold.
    pub fn new(status: u16, error: Option<String>) -> Outcome {
        let error = error.map(|error| bounded(&error));
        Outcome { status, error }
    }
}

/// An attempted action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// A UUIDv7: later records have larger ones.
    pub id: Uuid,
    /// When the action began, in milliseconds.
    pub time: Timestamp,
    pub tenant: Uuid,
    /// The tenant's organisation.
    pub organisation: String,
    /// [`Caller::subject`].
    pub caller: String,
    /// Whether the caller is an admin; otherwise a member of the organisation.
    pub admin: bool,
    pub action: Action,
    /// Missing while the action is under way, or if its outcome could not be
    /// recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl Record {
    /// The record of an action that begins now.
    pub fn begin(caller: &Caller, tenant: &Tenant, action: Action) -> Record {
        let now = Timestamp::now();
        Record {
            id: id(now),
            time: now.round(Unit::Millisecond).unwrap_or(now),
            tenant: tenant.id,
            organisation: bounded(&tenant.organisation),
            caller: bounded(&caller.subject),
            admin: caller.is_admin(),
            action,
            outcome: None,
        }
    }

    /// Whether the action changed nothing: a refused attempt or a download. These
    /// take at most half of a tenant's records, so that nobody can push changes out
    /// of the log by repeating requests.
    pub(crate) fn is_lesser(&self) -> bool {
        let refused = |outcome: &Outcome| outcome.status >= 400;
        self.action == Action::Download || self.outcome.as_ref().is_some_and(refused)
    }
}

/// A part of a log, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Records of one tenant, which may have been removed, or of all.
    pub tenant: Option<Uuid>,
    /// Records at most.
    pub limit: usize,
    /// Only records that are older than the one with this id.
    pub before: Option<Uuid>,
}

impl Query {
    /// Whether the record matches the query, ignoring the limit.
    pub(crate) fn takes(&self, record: &Record) -> bool {
        self.tenant.is_none_or(|tenant| tenant == record.tenant)
            && self.before.is_none_or(|before| record.id < before)
    }
}

/// How much is kept; the oldest records are removed first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records per tenant; at most half of them of attempts that changed nothing.
    pub records: usize,
    /// Number of removed tenants whose records are kept.
    pub gone: usize,
}

/// Why a log cannot be written or read, for the operator.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LogError(pub(crate) String);

impl From<RegistryError> for LogError {
    fn from(error: RegistryError) -> LogError {
        LogError(error.to_string())
    }
}

/// The store of audit records.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Stores the record of an action that is about to begin.
    ///
    /// # Errors
    ///
    /// If it may not have been stored: the action must not be done.
    async fn begin(&self, record: Record) -> Result<(), LogError>;

    /// Adds the outcome to the tenant's record, if it still exists.
    ///
    /// # Errors
    ///
    /// If the outcome may not have been stored.
    async fn end(&self, tenant: Uuid, id: Uuid, outcome: Outcome) -> Result<(), LogError>;

    /// # Errors
    ///
    /// If the log cannot be read.
    async fn read(&self, query: Query) -> Result<Vec<Record>, LogError>;
}

/// The IDs of all existing tenants.
pub(crate) async fn living(registry: &dyn Registry) -> Result<BTreeSet<Uuid>, LogError> {
    let tenants = registry.list().await?;
    Ok(tenants.iter().map(|tenant| tenant.id).collect())
}

/// RFC 9562, section 6.2, method 3: the sub-millisecond part comes before the random
/// bits.
fn id(time: Timestamp) -> Uuid {
    let nanoseconds = u128::try_from(time.as_nanosecond()).unwrap_or(0);
    let part = (nanoseconds % 1_000_000) * 4096 / 1_000_000;
    let mut bytes = [0; 10];
    bytes.copy_from_slice(&Uuid::new_v4().as_bytes()[..10]);
    bytes[..2].copy_from_slice(&(part as u16).to_be_bytes());
    Builder::from_unix_timestamp_millis((nanoseconds / 1_000_000) as u64, &bytes).into_uuid()
}

/// The text on one line, truncated to [`MAX_TEXT`] bytes.
fn bounded(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut bounded = String::new();
    for c in line {
        if bounded.len() + c.len_utf8() > MAX_TEXT {
            break;
        }
        bounded.push(c);
    }
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_records_have_larger_ids() {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |nanoseconds| id(start + jiff::SignedDuration::from_nanos(nanoseconds));
        let times = [
            0,
            500,
            300_000,
            999_999,
            1_000_000,
            1_000_300,
            5_000_000_000,
        ];
        let ids: Vec<Uuid> = times.into_iter().map(at).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
        let texts: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        assert!(texts.is_sorted(), "as texts too: {texts:?}");
    }

    #[test]
    fn a_text_becomes_one_line_of_bounded_length() {
        assert_eq!(bounded("over\nquota \u{1b}[2J"), "over quota  [2J");
        let long = "é".repeat(1000);
        assert_eq!(bounded(&long), "é".repeat(MAX_TEXT / 2));
        assert_eq!(bounded(&format!("a{long}")).len(), MAX_TEXT - 1);
    }

    #[test]
    fn actions_are_called_the_same_everywhere() {
        for action in Action::ALL {
            let json = serde_json::to_value(action).unwrap();
            assert_eq!(json, action.as_str());
        }
    }
}
