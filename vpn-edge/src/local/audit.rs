//! The audit log of one machine: a SQLite file beside the registry's.
//!
//! A separate file, because the registry's is rewritten whenever keys are removed,
//! which must not take long.

use std::ffi::OsString;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, TransactionBehavior};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::audit::{Action, Limits, Log, LogError, Outcome, Query, Record, living};
use crate::registry::Registry;

const LIMITS: Limits = Limits {
    records: 1000,
    gone: 1000,
};

/// `user_version` of the files.
const VERSION: i64 = 1;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS record (
        id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
        time TEXT NOT NULL,
        tenant TEXT NOT NULL CHECK (length(tenant) = 36),
        organisation TEXT NOT NULL,
        caller TEXT NOT NULL,
        admin INTEGER NOT NULL CHECK (admin IN (0, 1)),
        action TEXT NOT NULL,
        status INTEGER,
        error TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS record_of_tenant ON record (tenant, id);
    -- Tenants with records, and the newest of these.
    CREATE TABLE IF NOT EXISTS tenant (
        id TEXT PRIMARY KEY NOT NULL,
        last TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// Records in a SQLite file.
pub struct SqliteLog {
    connection: Arc<Mutex<Connection>>,
    registry: Arc<dyn Registry>,
    limits: Limits,
}

impl SqliteLog {
    /// Opens the log beside the registry's database, and creates it if missing.
    /// Tenants that `registry` does not have count as removed.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, with what to do about it.
    pub fn beside(database: &Path, registry: Arc<dyn Registry>) -> Result<SqliteLog, LogError> {
        let mut path = OsString::from(database);
        path.push(".audit");
        let path = PathBuf::from(path);
        let connection = open(&path).map_err(|error| {
            LogError(format!(
                "cannot open the audit log {}: {error}; repair it, or move it away to start a new one",
                path.display()
            ))
        })?;
        Ok(SqliteLog {
            connection: Arc::new(Mutex::new(connection)),
            registry,
            limits: LIMITS,
        })
    }

    /// With other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> SqliteLog {
        SqliteLog { limits, ..self }
    }

    /// Runs `work`, which blocks, on the database.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, LogError> {
        let connection = Arc::clone(&self.connection);
        let task = spawn_blocking(move || {
            // A panic rolls its transaction back.
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match task.await {
            Ok(outcome) => outcome.map_err(|error| LogError(error.to_string())),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(error) => Err(LogError(error.to_string())),
            },
        }
    }

    /// Removes the records of removed tenants, except for the latest ones.
    async fn forget(&self) -> Result<(), LogError> {
        let gone = self.limits.gone;
        let tenants = self.run(|connection| count(connection)).await?;
        if tenants <= gone {
            return Ok(());
        }
        let living = living(&*self.registry).await?;
        self.run(move |connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let known: Vec<String> = transaction
                .prepare("SELECT id FROM tenant ORDER BY last DESC")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let is_gone = |id: &String| !id.parse().is_ok_and(|id: Uuid| living.contains(&id));
            for id in known.iter().filter(|id| is_gone(id)).skip(gone) {
                transaction.execute("DELETE FROM record WHERE tenant = ?1", [id])?;
                transaction.execute("DELETE FROM tenant WHERE id = ?1", [id])?;
            }
            transaction.commit()
        })
        .await
    }
}

#[async_trait]
impl Log for SqliteLog {
    async fn begin(&self, record: Record) -> Result<(), LogError> {
        let limit = i64::try_from(self.limits.records).unwrap_or(i64::MAX);
        let new = self
            .run(move |connection| insert(connection, &record, limit))
            .await?;
        if new && let Err(error) = self.forget().await {
            tracing::warn!("cannot remove deleted tenants from the audit log: {error}");
        }
        Ok(())
    }

    async fn end(&self, _tenant: Uuid, id: Uuid, outcome: Outcome) -> Result<(), LogError> {
        self.run(move |connection| {
            let update = "UPDATE record SET status = ?2, error = ?3 WHERE id = ?1";
            connection.execute(update, (id.to_string(), outcome.status, outcome.error))?;
            Ok(())
        })
        .await
    }

    async fn read(&self, query: Query) -> Result<Vec<Record>, LogError> {
        // Each query has an index.
        let of = match query.tenant {
            Some(_) => "tenant = ?1",
            None => "?1 IS NULL",
        };
        let select = format!(
            "SELECT id, time, tenant, organisation, caller, admin, action, status, error
             FROM record WHERE {of} AND id < ?2 ORDER BY id DESC LIMIT ?3"
        );
        let tenant = query.tenant.map(|tenant| tenant.to_string());
        let before = query.before.unwrap_or(Uuid::max()).to_string();
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
        self.run(move |connection| {
            connection
                .prepare_cached(&select)?
                .query_map((tenant, before, limit), record)?
                .collect()
        })
        .await
    }
}

fn open(path: &Path) -> Result<Connection, String> {
    // SQLite gives its other files the same mode.
    let mode = Permissions::from_mode(0o600);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_permissions(mode))
        .map_err(|error| error.to_string())?;
    let sql = |error: rusqlite::Error| error.to_string();
    let connection = Connection::open(path).map_err(sql)?;
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;",
        )
        .map_err(sql)?;
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql)?;
    if version > VERSION {
        return Err(format!(
            "it has version {version} and this vpn-edge knows versions up to {VERSION}"
        ));
    }
    connection.execute_batch(TABLES).map_err(sql)?;
    connection
        .pragma_update(None, "user_version", VERSION)
        .map_err(sql)?;
    Ok(connection)
}

/// Returns whether it is the first record of its tenant.
fn insert(connection: &mut Connection, record: &Record, limit: i64) -> rusqlite::Result<bool> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (id, tenant) = (record.id.to_string(), record.tenant.to_string());
    transaction.execute(
        "INSERT INTO record (id, time, tenant, organisation, caller, admin, action)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            &id,
            record.time.to_string(),
            &tenant,
            &record.organisation,
            &record.caller,
            record.admin,
            record.action.as_str(),
        ),
    )?;
    // First the records as in `Record::is_lesser`, then all.
    for (which, limit) in [
        ("(action = 'download' OR status >= 400)", (limit + 1) / 2),
        ("TRUE", limit),
    ] {
        let delete = format!(
            "DELETE FROM record WHERE tenant = ?1 AND {which} AND id <= (
                 SELECT id FROM record WHERE tenant = ?1 AND {which}
                 ORDER BY id DESC LIMIT 1 OFFSET ?2
             )"
        );
        transaction.execute(&delete, (&tenant, limit))?;
    }
    let known = transaction.execute("UPDATE tenant SET last = ?2 WHERE id = ?1", (&tenant, &id))?;
    if known == 0 {
        transaction.execute(
            "INSERT INTO tenant (id, last) VALUES (?1, ?2)",
            (&tenant, &id),
        )?;
    }
    transaction.commit()?;
    Ok(known == 0)
}

fn count(connection: &Connection) -> rusqlite::Result<usize> {
    let count: i64 = connection.query_row("SELECT count(*) FROM tenant", [], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let status: Option<u16> = row.get(7)?;
    let error = row.get(8)?;
    let action: String = row.get(6)?;
    let action = Action::ALL
        .into_iter()
        .find(|known| known.as_str() == action)
        .ok_or_else(|| bad(6, format!("{action:?} is not an action").into()))?;
    Ok(Record {
        id: parsed(row, 0)?,
        time: parsed::<Timestamp>(row, 1)?,
        tenant: parsed(row, 2)?,
        organisation: row.get(3)?,
        caller: row.get(4)?,
        admin: row.get(5)?,
        action,
        outcome: status.map(|status| Outcome { status, error }),
    })
}

fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| bad(column, Box::new(error)))
}

fn bad(column: usize, error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error)
}

#[cfg(test)]
mod tests;
