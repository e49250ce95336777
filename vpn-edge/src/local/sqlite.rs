//! The registry of one machine: a SQLite file.
//!
//! Guarantees: only one process has the file open; a change is stored completely or
//! not at all; private keys are stored only encrypted, and removed keys not at all.

mod key_file;
mod key_source;
mod row;
mod seal;
mod unlock;

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use self::row::{get, list, put, unsigned};
use self::unlock::Unlocked;
use crate::domain::{PortPool, PortRange, Ports as _, Tenant};
use crate::registry::{Change, Registry, RegistryError, UpdateError};

pub use self::key_source::{KEY_VARIABLE, KeySource};

/// Tenants in a SQLite file.
pub struct SqliteRegistry {
    store: Arc<Mutex<Store>>,
    changes: Arc<watch::Sender<u64>>,
}

struct Store {
    connection: Connection,
    keys: Unlocked,
    /// Built from the rows when the file is opened; always current afterwards,
    /// because nobody else writes the file.
    pool: PortPool,
    /// Removed keys may still be in the files.
    scrub_due: bool,
    /// The lock; declared last, so that the database is closed before it is released.
    _lock: File,
}

impl SqliteRegistry {
    /// Opens the registry in the file `path`, which is created if missing. Tenants
    /// get ports of `range`, and private keys are encrypted with a key from the file
    /// beside it. Fails if another process has it open.
    ///
    /// Tunnels whose subnets an earlier version did not store get subnets that do not
    /// overlap `cluster_ranges`.
    pub fn open(
        path: &Path,
        range: PortRange,
        cluster_ranges: &[IpNet],
    ) -> Result<SqliteRegistry, RegistryError> {
        SqliteRegistry::open_with(path, range, cluster_ranges, &KeySource::beside(path))
    }

    /// The same, with a key from another source.
    pub fn open_with(
        path: &Path,
        range: PortRange,
        cluster_ranges: &[IpNet],
        source: &KeySource,
    ) -> Result<SqliteRegistry, RegistryError> {
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|error| {
                RegistryError::Open(format!("cannot make {}: {error}", folder.display()))
            })?;
        }
        Ok(SqliteRegistry {
            store: Arc::new(Mutex::new(Store::open(
                path,
                range,
                cluster_ranges,
                source,
            )?)),
            changes: Arc::new(watch::Sender::new(0)),
        })
    }

    /// Encrypts the private keys in the file `path` with a new key. The new key
    /// replaces the old one in the file of `source`; the old one is kept in the file
    /// of that name plus `.old`. Nothing is lost if it is interrupted at any point,
    /// and the next open completes it.
    ///
    /// # Errors
    ///
    /// If another process has the registry or the key file open, a file cannot be
    /// read or written, or `source` is not a file or belongs to another database.
    pub fn rotate_key(path: &Path, source: &KeySource) -> Result<(), RegistryError> {
        let failed = |reason| RegistryError::Open(format!("{}: {reason}", path.display()));
        if !path.exists() {
            return Err(failed("there is none; name it with --database".to_owned()));
        }
        let (lock, mut connection) = connect(path).map_err(failed)?;
        let mut keys = unlock::unlock(&connection, source).map_err(failed)?;
        keys.renew().map_err(failed)?;
        keys.settle(&mut connection).map_err(failed)?;
        drop((connection, keys, lock));
        Ok(())
    }

    /// Runs `work`, which blocks, on the store. It completes even if the caller goes
    /// away.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, RegistryError> {
        let store = Arc::clone(&self.store);
        let task = spawn_blocking(move || {
            // A panic in a change leaves the store unchanged: the transaction is
            // rolled back, and the pool is replaced only after the commit.
            work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        task.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(error) => RegistryError::Storage(error.into()),
        })
    }

    /// Called from inside the blocking work, so that changes are announced even if
    /// the caller went away.
    fn notice(&self) -> impl FnOnce() + Send + 'static {
        let changes = Arc::clone(&self.changes);
        move || changes.send_modify(|count| *count += 1)
    }
}

#[async_trait]
impl Registry for SqliteRegistry {
    async fn list(&self) -> Result<Vec<Arc<Tenant>>, RegistryError> {
        let tenants = self
            .run(|store| list(&store.connection, &store.keys.ring))
            .await??;
        Ok(tenants.into_iter().map(Arc::new).collect())
    }

    async fn get(&self, id: Uuid) -> Result<Option<Tenant>, RegistryError> {
        self.run(move |store| Ok(get(&store.connection, &store.keys.ring, id)?))
            .await?
    }

    /// # Panics
    ///
    /// If the new tenant holds a port.
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
    fn open(
        path: &Path,
        range: PortRange,
        cluster_ranges: &[IpNet],
        source: &KeySource,
    ) -> Result<Store, RegistryError> {
        let failed = |reason: String| RegistryError::Open(format!("{}: {reason}", path.display()));
        let sql = |error: rusqlite::Error| failed(error.to_string());
        let (lock, mut connection) = connect(path).map_err(failed)?;
        let mut keys = unlock::unlock(&connection, source).map_err(failed)?;
        let settled = keys.settle(&mut connection);
        match &settled {
            Err(error) if !keys.sealed => {
                return Err(failed(format!(
                    "private keys may still be in its files as they were before they were \
                     encrypted: {error}; free disk space and start again"
                )));
            }
            // Every key that can decrypt them is still available.
            Err(error) => tracing::error!("{error}; retrying at the next start"),
            Ok(()) => {}
        }
        row::give_subnets(&mut connection, cluster_ranges).map_err(failed)?;
        let tenants = list(&connection, &keys.ring).map_err(sql)?;
        let held = tenants
            .iter()
            .filter_map(|tenant| Some((tenant.vpn.allocation.as_ref()?.port, tenant.id)));
        let released = released(&connection).map_err(sql)?;
        let pool =
            PortPool::new(range, held, released).map_err(|error| failed(error.to_string()))?;
        Ok(Store {
            connection,
            keys,
            pool,
            scrub_due: settled.is_err(),
            _lock: lock,
        })
    }

    fn create(&mut self, mut tenant: Tenant) -> Result<Tenant, RegistryError> {
        let transaction = begin(&mut self.connection)?;
        if get(&transaction, &self.keys.ring, tenant.id)?.is_some() {
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
                |row| unsigned(row, "generation"),
            )
            .optional()?;
        tenant.vpn.generation = last_generation.unwrap_or(tenant.vpn.generation);
        tenant.version = 1;
        transaction.execute("DELETE FROM deleted WHERE id = ?1", [&id])?;
        put(&transaction, &self.keys.ring, &tenant)?;
        transaction.commit()?;
        Ok(tenant)
    }

    /// The tenant, and whether it changed.
    fn update(&mut self, id: Uuid, mut change: Change) -> Result<(Tenant, bool), UpdateError> {
        let transaction = begin(&mut self.connection)?;
        let before = get(&transaction, &self.keys.ring, id)?.ok_or(UpdateError::NotFound)?;
        let mut tenant = before.clone();
        let mut pool = self.pool.clone();
        change(&mut tenant, &mut pool)?;
        if tenant == before && pool == self.pool {
            return Ok((before, false));
        }
        tenant.version = before.version + 1;
        put(&transaction, &self.keys.ring, &tenant)?;
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
        let Some(tenant) = get(&transaction, &self.keys.ring, id)? else {
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

    /// Removes the remains of removed keys from the files. If it fails, the next
    /// change retries.
    fn scrub(&mut self) {
        if !self.scrub_due {
            return;
        }
        match scrub(&self.connection) {
            Ok(()) => self.scrub_due = false,
            Err(error) => tracing::error!("{error}"),
        }
    }
}

/// Rewrites the files, so that no remains of removed data are left in them.
fn scrub(connection: &Connection) -> Result<(), String> {
    let left = |error| format!("removed keys may still be in the registry's files: {error}");
    // Secure deletion zeroes freed cells, but a cell that moved to another page can
    // leave a copy behind: only rewriting the file is safe.
    let busy = connection
        .execute_batch("VACUUM")
        .and_then(|()| {
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                row.get::<_, bool>(0)
            })
        })
        .map_err(|error| left(error.to_string()))?;
    if busy {
        return Err(left("its log is busy".to_owned()));
    }
    Ok(())
}

/// Opens the database at this path, with exclusive access and the current schema.
fn connect(path: &Path) -> Result<(File, Connection), String> {
    let lock = lock(path)?;
    // SQLite gives its other files the same mode.
    let mode = Permissions::from_mode(0o600);
    private_file(path)
        .and_then(|file| file.set_permissions(mode))
        .map_err(|error| error.to_string())?;
    let sql = |error: rusqlite::Error| error.to_string();
    let mut connection = Connection::open(path).map_err(sql)?;
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA secure_delete = ON;
             PRAGMA temp_store = MEMORY;
             PRAGMA foreign_keys = ON;",
        )
        .map_err(sql)?;
    row::migrate(&mut connection)?;
    Ok((lock, connection))
}

/// An exclusive lock, held while the file is open.
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
