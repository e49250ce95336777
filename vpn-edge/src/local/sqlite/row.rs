//! Tenants as rows, the schema of the database, and its migrations.

use std::str::FromStr;

use ipnet::IpNet;
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, named_params};
use uuid::Uuid;

use super::begin;
use super::seal::{AssociatedData, KeyRing, SEALED};
use crate::domain::subnet::tunnel_subnet;
use crate::domain::{Allocation, State, Tenant, Vpn};
use crate::wireguard::{ClientKey, Keys, PrivateKey, PublicKey};

/// The encrypted columns.
pub const SERVER_KEY: &str = "server_key";
pub const CLIENT_KEY: &str = "client_key";

/// The tables, one step a version; `user_version` counts the steps taken.
pub const MIGRATIONS: [&str; 3] = [
    "
    CREATE TABLE tenant (
        id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
        organisation TEXT NOT NULL CHECK (organisation <> ''),
        plan TEXT NOT NULL
            CHECK (plan IN ('developer', 'team', 'business', 'enterprise_cloud')),
        ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
        namespace TEXT NOT NULL UNIQUE,
        networks TEXT NOT NULL CHECK (json_valid(networks)),
        state TEXT NOT NULL
            CHECK (state IN ('unavailable', 'disabled', 'enabling', 'enabled', 'failed')),
        generation INTEGER NOT NULL CHECK (generation >= 0),
        since TEXT NOT NULL,
        failure TEXT CHECK ((failure IS NOT NULL) = (state = 'failed')),
        port INTEGER UNIQUE CHECK (port BETWEEN 1024 AND 65535),
        server_key BLOB CHECK (length(server_key) = 32),
        client_key BLOB CHECK (length(client_key) = 32),
        created_at TEXT,
        version INTEGER NOT NULL CHECK (version > 0),
        CHECK ((port IS NULL) = (server_key IS NULL)),
        CHECK ((port IS NULL) = (client_key IS NULL)),
        CHECK ((port IS NULL) = (created_at IS NULL)),
        CHECK (port IS NOT NULL OR state NOT IN ('enabling', 'enabled')),
        CHECK (port IS NULL OR state NOT IN ('unavailable', 'disabled'))
    ) STRICT;
    -- Ports that were held once, in the order of their release.
    CREATE TABLE released (
        turn INTEGER PRIMARY KEY,
        port INTEGER NOT NULL UNIQUE
    ) STRICT;
    -- The last generation of deleted tenants.
    CREATE TABLE deleted (
        id TEXT PRIMARY KEY NOT NULL,
        generation INTEGER NOT NULL
    ) STRICT;
",
    "
    -- Of its client a tenant has the private key or, if the client gave it, the
    -- public one. Constraints change only with the table.
    CREATE TABLE new (
        id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
        organisation TEXT NOT NULL CHECK (organisation <> ''),
        plan TEXT NOT NULL
            CHECK (plan IN ('developer', 'team', 'business', 'enterprise_cloud')),
        ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
        namespace TEXT NOT NULL UNIQUE,
        networks TEXT NOT NULL CHECK (json_valid(networks)),
        state TEXT NOT NULL
            CHECK (state IN ('unavailable', 'disabled', 'enabling', 'enabled', 'failed')),
        generation INTEGER NOT NULL CHECK (generation >= 0),
        since TEXT NOT NULL,
        failure TEXT CHECK ((failure IS NOT NULL) = (state = 'failed')),
        port INTEGER UNIQUE CHECK (port BETWEEN 1024 AND 65535),
        server_key BLOB,
        client_key BLOB,
        client_public_key BLOB CHECK (length(client_public_key) = 32),
        created_at TEXT,
        version INTEGER NOT NULL CHECK (version > 0),
        CHECK ((port IS NULL) = (server_key IS NULL)),
        CHECK ((port IS NOT NULL) = (client_key IS NOT NULL) + (client_public_key IS NOT NULL)),
        CHECK ((port IS NULL) = (created_at IS NULL)),
        CHECK (port IS NOT NULL OR state NOT IN ('enabling', 'enabled')),
        CHECK (port IS NULL OR state NOT IN ('unavailable', 'disabled'))
    ) STRICT;
    INSERT INTO new
        SELECT id, organisation, plan, ready, namespace, networks, state, generation, since,
               failure, port, server_key, client_key, NULL, created_at, version
        FROM tenant;
    DROP TABLE tenant;
    ALTER TABLE new RENAME TO tenant;
    -- One row. The name is what the database's key file knows it by. Private keys
    -- are encrypted by unlock.rs, since it takes keys; until the file was
    -- rewritten after that, they may be in its free pages as they were.
    CREATE TABLE sealing (
        database TEXT NOT NULL CHECK (length(database) = 32),
        state TEXT NOT NULL CHECK (state IN ('plain', 'unscrubbed', 'sealed'))
    ) STRICT;
    INSERT INTO sealing VALUES (lower(hex(randomblob(16))), 'plain');
",
    "
    -- Of the tunnel. Rows that have a port and were stored before get it when the
    -- registry is opened, as it takes the reserved ranges: see give_subnets().
    ALTER TABLE tenant ADD COLUMN subnet TEXT CHECK (subnet IS NULL OR port IS NOT NULL);
",
];

/// Migrates the tables to the current schema.
///
/// # Errors
///
/// If it is another program's database, or its schema is newer.
pub fn migrate(connection: &mut Connection) -> Result<(), String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let number = |connection: &Connection, query: &str| {
        connection
            .query_row(query, [], |row| row.get::<_, i64>(0))
            .map_err(sql)
    };
    let version = number(connection, "PRAGMA user_version")?;
    let known = MIGRATIONS.len();
    if usize::try_from(version).is_ok_and(|version| version > known) {
        return Err(format!(
            "it has schema {version} and this vpn-edge knows schemas up to {known}; use the newer vpn-edge"
        ));
    }
    if version == 0 && number(connection, "SELECT count(*) FROM sqlite_schema")? > 0 {
        return Err("it is a database of another program; name another file".to_owned());
    }
    for (step, migration) in (1..)
        .zip(MIGRATIONS)
        .skip_while(|(step, _)| *step <= version)
    {
        let transaction = begin(connection).map_err(sql)?;
        transaction.execute_batch(migration).map_err(sql)?;
        transaction
            .pragma_update(None, "user_version", step)
            .map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    Ok(())
}

pub fn list(connection: &Connection, ring: &KeyRing) -> rusqlite::Result<Vec<Tenant>> {
    connection
        .prepare_cached("SELECT * FROM tenant ORDER BY id")?
        .query_map([], |row| tenant(row, ring))?
        .collect()
}

pub fn get(connection: &Connection, ring: &KeyRing, id: Uuid) -> rusqlite::Result<Option<Tenant>> {
    connection
        .prepare_cached("SELECT * FROM tenant WHERE id = ?1")?
        .query_row([id.to_string()], |row| tenant(row, ring))
        .optional()
}

pub fn put(transaction: &Transaction<'_>, ring: &KeyRing, tenant: &Tenant) -> rusqlite::Result<()> {
    let vpn = &tenant.vpn;
    let allocation = vpn.allocation.as_ref();
    let (made, given) = match allocation.map(|a| &a.keys.client) {
        Some(ClientKey::Made(key)) => (Some(key), None),
        Some(ClientKey::Given(key)) => (None, Some(key)),
        None => (None, None),
    };
    let sealed = |column, key: Option<&PrivateKey>| {
        let place = AssociatedData {
            tenant: tenant.id,
            generation: vpn.generation,
            given: given.map(|key| *key.as_bytes()),
            column,
        };
        let sealed = key.map(|key| ring.seal(key, place)).transpose();
        sealed.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
    };
    let server = sealed(SERVER_KEY, allocation.map(|a| &a.keys.server))?;
    let client = sealed(CLIENT_KEY, made)?;
    let networks = serde_json::to_string(&tenant.networks)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let values = named_params! {
        ":id": tenant.id.to_string(),
        ":organisation": tenant.organisation,
        ":plan": tenant.plan.as_str(),
        ":ready": tenant.ready,
        ":namespace": tenant.namespace,
        ":networks": networks,
        ":state": vpn.state.as_str(),
        ":generation": vpn.generation.cast_signed(),
        ":since": vpn.since.to_string(),
        ":failure": vpn.failure,
        ":port": allocation.map(|a| a.port),
        ":subnet": allocation.map(|a| a.subnet.to_string()),
        ":server_key": server,
        ":client_key": client,
        ":client_public_key": given.map(PublicKey::as_bytes),
        ":created_at": allocation.map(|a| a.created_at.to_string()),
        ":version": tenant.version.cast_signed(),
    };
    let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let columns: Vec<&str> = names
        .iter()
        .map(|name| name.trim_start_matches(':'))
        .collect();
    // Not `INSERT OR REPLACE`, which would drop another tenant that holds the port.
    let replaced: Vec<String> = columns
        .iter()
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    let statement = format!(
        "INSERT INTO tenant ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}",
        columns.join(", "),
        names.join(", "),
        replaced.join(", ")
    );
    transaction.prepare_cached(&statement)?.execute(values)?;
    Ok(())
}

fn tenant(row: &Row<'_>, ring: &KeyRing) -> rusqlite::Result<Tenant> {
    let state: String = row.get("state")?;
    let (id, generation) = (parsed::<Uuid>(row, "id")?, unsigned(row, "generation")?);
    let given = row.get::<_, Option<[u8; 32]>>("client_public_key")?;
    let private_key = |column| {
        let place = AssociatedData {
            tenant: id,
            generation,
            given,
            column,
        };
        let sealed = row.get::<_, [u8; SEALED]>(column)?;
        let opened = ring.open(&sealed, place);
        opened.map_err(|error| unreadable(row, column, error))
    };
    let allocation = match row.get("port")? {
        Some(port) => Some(Allocation {
            port,
            subnet: parsed(row, "subnet")?,
            keys: Keys {
                server: private_key(SERVER_KEY)?,
                client: match given {
                    Some(given) => ClientKey::Given(PublicKey::from_bytes(given)),
                    None => ClientKey::Made(private_key(CLIENT_KEY)?),
                },
            },
            created_at: parsed(row, "created_at")?,
        }),
        None => None,
    };
    let networks: String = row.get("networks")?;
    let networks = serde_json::from_str(&networks);
    Ok(Tenant {
        id,
        organisation: row.get("organisation")?,
        plan: parsed(row, "plan")?,
        ready: row.get("ready")?,
        namespace: row.get("namespace")?,
        networks: networks.map_err(|error| unreadable(row, "networks", error))?,
        vpn: Vpn {
            state: State::ALL
                .into_iter()
                .find(|known| known.as_str() == state)
                .ok_or_else(|| unreadable(row, "state", format!("unknown state {state}")))?,
            generation,
            since: parsed::<Timestamp>(row, "since")?,
            failure: row.get("failure")?,
            allocation,
        },
        version: unsigned(row, "version")?,
    })
}

/// Stores the subnets of tunnels that an earlier version computed but did not store.
pub fn give_subnets(connection: &mut Connection, cluster_ranges: &[IpNet]) -> Result<(), String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let transaction = begin(connection).map_err(sql)?;
    let without: Vec<Uuid> = transaction
        .prepare("SELECT id FROM tenant WHERE port IS NOT NULL AND subnet IS NULL")
        .and_then(|mut select| select.query_map([], |row| parsed(row, "id"))?.collect())
        .map_err(sql)?;
    for id in without {
        let subnet = tunnel_subnet(id, cluster_ranges).map_err(|error| error.to_string())?;
        transaction
            .execute(
                "UPDATE tenant SET subnet = ?2 WHERE id = ?1",
                (id.to_string(), subnet.to_string()),
            )
            .map_err(sql)?;
    }
    transaction.commit().map_err(sql)
}

pub fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| unreadable(row, column, error))
}

pub fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    row.get(column).map(i64::cast_unsigned)
}

fn unreadable(
    row: &Row<'_>,
    column: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    let index = row.as_ref().column_index(column).unwrap_or_default();
    rusqlite::Error::FromSqlConversionFailure(index, Type::Text, error.into())
}
