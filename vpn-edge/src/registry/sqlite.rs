//! The registry of one machine: a SQLite file.
//!
//! Guarantees: one process at a time has the file open; a change is stored
//! whole or not at all; keys that were removed are in no file afterwards.

mod schema;

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Change, Registry, RegistryError, UpdateError};
use crate::domain::{Allocation, PortPool, PortRange, Ports as _, State, Tenant, Vpn};
use crate::wireguard::{ClientKey, Keys, PrivateKey, PublicKey};

const COLUMNS: &str = "id, organisation, plan, ready, namespace, networks, state, generation, \
                       since, failure, port, server_key, client_key, client_public_key, \
                       created_at, version";

/// Not `INSERT OR REPLACE`, which would drop another tenant that holds the port.
const ASSIGNMENTS: &str = "
    organisation = excluded.organisation, plan = excluded.plan, ready = excluded.ready,
    namespace = excluded.namespace, networks = excluded.networks, state = excluded.state,
    generation = excluded.generation, since = excluded.since, failure = excluded.failure,
    port = excluded.port, server_key = excluded.server_key, client_key = excluded.client_key,
    client_public_key = excluded.client_public_key, created_at = excluded.created_at, version = excluded.version";

/// Tenants in a SQLite file.
pub struct SqliteRegistry {
    store: Arc<Mutex<Store>>,
    changes: Arc<watch::Sender<u64>>,
}

struct Store {
    connection: Connection,
    /// Rebuilt from the rows at open; right from then on, since nobody else
    /// writes the file.
    pool: PortPool,
    /// Removed keys may still be in the files.
    scrub_due: bool,
    /// Held, not read: last, so that the database is closed before it is free.
    _lock: File,
}

impl SqliteRegistry {
    /// Opens the registry in the file `path`, which is created when missing;
    /// tenants get ports of `range`. Fails when another process has it open.
    pub fn open(path: &Path, range: PortRange) -> Result<SqliteRegistry, RegistryError> {
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|error| {
                RegistryError::Open(format!("cannot make {}: {error}", folder.display()))
            })?;
        }
        Ok(SqliteRegistry {
            store: Arc::new(Mutex::new(Store::open(path, range)?)),
            changes: Arc::new(watch::Sender::new(0)),
        })
    }

    /// Runs `work`, which blocks, on the store. It ends even when the caller
    /// goes away.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, RegistryError> {
        let store = Arc::clone(&self.store);
        let task = spawn_blocking(move || {
            // A panic in a change leaves the store as it was: the transaction
            // rolls back and the pool is replaced after the commit alone.
            work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        task.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(error) => RegistryError::Storage(error.into()),
        })
    }

    /// Noticed from inside the blocking work, so that a caller who went away
    /// hides no change.
    fn notice(&self) -> impl FnOnce() + Send + 'static {
        let changes = Arc::clone(&self.changes);
        move || changes.send_modify(|count| *count += 1)
    }
}

#[async_trait]
impl Registry for SqliteRegistry {
    async fn list(&self) -> Result<Vec<Arc<Tenant>>, RegistryError> {
        let tenants = self.run(|store| list(&store.connection)).await??;
        Ok(tenants.into_iter().map(Arc::new).collect())
    }

    async fn get(&self, id: Uuid) -> Result<Option<Tenant>, RegistryError> {
        self.run(move |store| Ok(get(&store.connection, id)?))
            .await?
    }

    /// # Panics
    ///
    /// When the new tenant holds a port.
    async fn create(&self, tenant: Tenant) -> Result<Tenant, RegistryError> {
        assert!(
            tenant.vpn.allocation.is_none(),
            "a tenant is created without VPN"
        );
        let notice = self.notice();
        self.run(move |store| {
            let tenant = store.create(tenant)?;
            notice();
            Ok(tenant)
        })
        .await?
    }

    async fn update(&self, id: Uuid, change: Change) -> Result<Tenant, UpdateError> {
        let notice = self.notice();
        self.run(move |store| {
            let (tenant, changed) = store.update(id, change)?;
            if changed {
                notice();
            }
            Ok(tenant)
        })
        .await?
    }

    async fn delete(&self, id: Uuid) -> Result<bool, RegistryError> {
        let notice = self.notice();
        self.run(move |store| {
            let deleted = store.delete(id)?;
            if deleted {
                notice();
            }
            Ok(deleted)
        })
        .await?
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Store {
    fn open(path: &Path, range: PortRange) -> Result<Store, RegistryError> {
        let failed = |reason: String| RegistryError::Open(format!("{}: {reason}", path.display()));
        let lock = lock(path).map_err(failed)?;
        // SQLite gives its other files the mode of this one.
        let mode = Permissions::from_mode(0o600);
        private_file(path)
            .and_then(|file| file.set_permissions(mode))
            .map_err(|error| failed(error.to_string()))?;
        let sql = |error: rusqlite::Error| failed(error.to_string());
        let mut connection = Connection::open(path).map_err(sql)?;
        connection
            .execute_batch(
                "PRAGMA locking_mode = EXCLUSIVE;
                 PRAGMA journal_mode = WAL;
                 PRAGMA secure_delete = ON;
                 PRAGMA temp_store = MEMORY;
                 PRAGMA foreign_keys = ON;",
            )
            .map_err(sql)?;
        schema::migrate(&mut connection).map_err(failed)?;
        let tenants = list(&connection).map_err(sql)?;
        let held = tenants
            .iter()
            .filter_map(|tenant| Some((tenant.vpn.allocation.as_ref()?.port, tenant.id)));
        let released = released(&connection).map_err(sql)?;
        let pool =
            PortPool::new(range, held, released).map_err(|error| failed(error.to_string()))?;
        let mut store = Store {
            connection,
            pool,
            // The last process may have ended before it was done with it.
            scrub_due: true,
            _lock: lock,
        };
        store.scrub();
        Ok(store)
    }

    fn create(&mut self, mut tenant: Tenant) -> Result<Tenant, RegistryError> {
        let transaction = begin(&mut self.connection)?;
        if get(&transaction, tenant.id)?.is_some() {
            return Err(RegistryError::AlreadyExists(format!("id {}", tenant.id)));
        }
        let namespace_taken = transaction
            .query_row(
                "SELECT 1 FROM tenant WHERE namespace = ?1",
                [&tenant.namespace],
                |_| Ok(()),
            )
            .optional()?
            .is_some();
        if namespace_taken {
            return Err(RegistryError::AlreadyExists(format!(
                "namespace {}",
                tenant.namespace
            )));
        }
        let id = tenant.id.to_string();
        let last_generation = transaction
            .query_row(
                "SELECT generation FROM deleted WHERE id = ?1",
                [&id],
                |row| unsigned(row, 0),
            )
            .optional()?;
        tenant.vpn.generation = last_generation.unwrap_or(tenant.vpn.generation);
        tenant.version = 1;
        transaction.execute("DELETE FROM deleted WHERE id = ?1", [&id])?;
        put(&transaction, &tenant)?;
        transaction.commit()?;
        Ok(tenant)
    }

    /// The tenant, and whether it changed.
    fn update(&mut self, id: Uuid, mut change: Change) -> Result<(Tenant, bool), UpdateError> {
        let transaction = begin(&mut self.connection)?;
        let before = get(&transaction, id)?.ok_or(UpdateError::NotFound)?;
        let mut tenant = before.clone();
        let mut pool = self.pool.clone();
        change(&mut tenant, &mut pool)?;
        if tenant == before && pool == self.pool {
            return Ok((before, false));
        }
        tenant.version = before.version + 1;
        put(&transaction, &tenant)?;
        if !pool.released().eq(self.pool.released()) {
            put_released(&transaction, &pool)?;
        }
        transaction.commit()?;
        self.pool = pool;
        let keys = |tenant: &Tenant| tenant.vpn.allocation.as_ref().map(|a| a.keys.clone());
        if keys(&before).is_some_and(|old| keys(&tenant) != Some(old)) {
            self.scrub_due = true;
        }
        self.scrub();
        Ok((tenant, true))
    }

    fn delete(&mut self, id: Uuid) -> Result<bool, RegistryError> {
        let transaction = begin(&mut self.connection)?;
        let Some(tenant) = get(&transaction, id)? else {
            return Ok(false);
        };
        let id = tenant.id.to_string();
        transaction.execute("DELETE FROM tenant WHERE id = ?1", [&id])?;
        transaction.execute(
            "INSERT INTO deleted (id, generation) VALUES (?1, ?2)",
            (&id, tenant.vpn.generation.cast_signed()),
        )?;
        let mut pool = self.pool.clone();
        if let Some(allocation) = &tenant.vpn.allocation {
            pool.release(allocation.port);
            put_released(&transaction, &pool)?;
            self.scrub_due = true;
        }
        transaction.commit()?;
        self.pool = pool;
        self.scrub();
        Ok(true)
    }

    /// Removes what is left of removed keys from the files. Should it fail, the
    /// next change tries again.
    fn scrub(&mut self) {
        if !self.scrub_due {
            return;
        }
        // Secure deletion zeroes freed cells, but a cell that moved to another
        // page can leave a copy behind: only a rewrite of the file is sure.
        let vacuum = self.connection.execute_batch("VACUUM");
        let truncated = vacuum.and_then(|()| {
            self.connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                    row.get::<_, bool>(0)
                })
        });
        match truncated {
            Ok(false) => self.scrub_due = false,
            Ok(true) => tracing::error!("removed keys may still be in the registry's log: busy"),
            Err(error) => {
                tracing::error!(%error, "removed keys may still be in the registry's files");
            }
        }
    }
}

/// An exclusive lock for as long as the file is open.
fn lock(path: &Path) -> Result<File, String> {
    let mut name = OsString::from(path);
    name.push(".lock");
    let name = PathBuf::from(name);
    let file =
        private_file(&name).map_err(|error| format!("cannot open {}: {error}", name.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(
            "it is in use by another vpn-edge; stop that one first, or name another file"
                .to_owned(),
        ),
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", name.display())),
    }
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn list(connection: &Connection) -> rusqlite::Result<Vec<Tenant>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tenant ORDER BY id"))?
        .query_map([], tenant)?
        .collect()
}

fn get(connection: &Connection, id: Uuid) -> rusqlite::Result<Option<Tenant>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tenant WHERE id = ?1"))?
        .query_row([id.to_string()], tenant)
        .optional()
}

fn put(transaction: &Transaction<'_>, tenant: &Tenant) -> rusqlite::Result<()> {
    let vpn = &tenant.vpn;
    let allocation = vpn.allocation.as_ref();
    let (made, given) = match allocation.map(|a| &a.keys.client) {
        Some(ClientKey::Made(key)) => (Some(key), None),
        Some(ClientKey::Given(key)) => (None, Some(key)),
        None => (None, None),
    };
    let networks = serde_json::to_string(&tenant.networks)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    transaction
        .prepare_cached(&format!(
            "INSERT INTO tenant ({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
             ON CONFLICT (id) DO UPDATE SET {ASSIGNMENTS}"
        ))?
        .execute((
            tenant.id.to_string(),
            &tenant.organisation,
            tenant.plan.as_str(),
            tenant.ready,
            &tenant.namespace,
            networks,
            vpn.state.as_str(),
            vpn.generation.cast_signed(),
            vpn.since.to_string(),
            &vpn.failure,
            allocation.map(|a| a.port),
            allocation.map(|a| a.keys.server.as_bytes()),
            made.map(PrivateKey::as_bytes),
            given.map(PublicKey::as_bytes),
            allocation.map(|a| a.created_at.to_string()),
            tenant.version.cast_signed(),
        ))?;
    Ok(())
}

fn released(connection: &Connection) -> rusqlite::Result<Vec<u16>> {
    connection
        .prepare("SELECT port FROM released ORDER BY turn")?
        .query_map([], |row| row.get(0))?
        .collect()
}

fn put_released(transaction: &Transaction<'_>, pool: &PortPool) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM released", [])?;
    let mut insert = transaction.prepare_cached("INSERT INTO released (port) VALUES (?1)")?;
    for port in pool.released() {
        insert.execute([port])?;
    }
    Ok(())
}

fn tenant(row: &Row<'_>) -> rusqlite::Result<Tenant> {
    let networks: String = row.get(5)?;
    let state: String = row.get(6)?;
    let allocation = match row.get(10)? {
        Some(port) => Some(Allocation {
            port,
            keys: Keys {
                server: private_key(row, 11)?,
                client: match row.get::<_, Option<[u8; 32]>>(13)? {
                    Some(given) => ClientKey::Given(PublicKey::from_bytes(given)),
                    None => ClientKey::Made(private_key(row, 12)?),
                },
            },
            created_at: parsed(row, 14)?,
        }),
        None => None,
    };
    Ok(Tenant {
        id: parsed(row, 0)?,
        organisation: row.get(1)?,
        plan: parsed(row, 2)?,
        ready: row.get(3)?,
        namespace: row.get(4)?,
        networks: serde_json::from_str(&networks).map_err(|error| unreadable(5, error))?,
        vpn: Vpn {
            state: State::ALL
                .into_iter()
                .find(|known| known.as_str() == state)
                .ok_or_else(|| unreadable(6, format!("unknown state {state}")))?,
            generation: unsigned(row, 7)?,
            since: parsed::<Timestamp>(row, 8)?,
            failure: row.get(9)?,
            allocation,
        },
        version: unsigned(row, 15)?,
    })
}

fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| unreadable(column, error))
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column).map(i64::cast_unsigned)
}

fn private_key(row: &Row<'_>, column: usize) -> rusqlite::Result<PrivateKey> {
    let bytes = Zeroizing::new(row.get::<_, [u8; 32]>(column)?);
    Ok(PrivateKey::from_bytes(*bytes))
}

fn unreadable(
    column: usize,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
}

impl From<rusqlite::Error> for RegistryError {
    fn from(error: rusqlite::Error) -> RegistryError {
        RegistryError::Storage(error.into())
    }
}

impl From<rusqlite::Error> for UpdateError {
    fn from(error: rusqlite::Error) -> UpdateError {
        UpdateError::Registry(error.into())
    }
}

#[cfg(test)]
mod tests;
