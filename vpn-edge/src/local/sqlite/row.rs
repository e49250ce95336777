//! Tenants as rows.

use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction};
use uuid::Uuid;

use super::seal::{KeyRing, Place, SEALED};
use crate::domain::{Allocation, State, Tenant, Vpn};
use crate::wireguard::{ClientKey, Keys, PrivateKey, PublicKey};

/// The columns that are encrypted.
pub const SERVER_KEY: &str = "server_key";
pub const CLIENT_KEY: &str = "client_key";

pub const COLUMNS: &str = "id, organisation, plan, ready, namespace, networks, state, generation, \
                       since, failure, port, server_key, client_key, client_public_key, \
                       created_at, version";

/// Not `INSERT OR REPLACE`, which would drop another tenant that holds the port.
const ASSIGNMENTS: &str = "
    organisation = excluded.organisation, plan = excluded.plan, ready = excluded.ready,
    namespace = excluded.namespace, networks = excluded.networks, state = excluded.state,
    generation = excluded.generation, since = excluded.since, failure = excluded.failure,
    port = excluded.port, server_key = excluded.server_key, client_key = excluded.client_key,
    client_public_key = excluded.client_public_key, created_at = excluded.created_at,
    version = excluded.version";

pub fn list(connection: &Connection, ring: &KeyRing) -> rusqlite::Result<Vec<Tenant>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tenant ORDER BY id"))?
        .query_map([], |row| tenant(row, ring))?
        .collect()
}

pub fn get(connection: &Connection, ring: &KeyRing, id: Uuid) -> rusqlite::Result<Option<Tenant>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tenant WHERE id = ?1"))?
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
        let place = Place {
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
            server,
            client,
            given.map(PublicKey::as_bytes),
            allocation.map(|a| a.created_at.to_string()),
            tenant.version.cast_signed(),
        ))?;
    Ok(())
}

fn tenant(row: &Row<'_>, ring: &KeyRing) -> rusqlite::Result<Tenant> {
    let networks: String = row.get(5)?;
    let state: String = row.get(6)?;
    let (id, generation) = (parsed::<Uuid>(row, 0)?, unsigned(row, 7)?);
    let given = row.get::<_, Option<[u8; 32]>>(13)?;
    let private_key = |index: usize, column| {
        let place = Place {
            tenant: id,
            generation,
            given,
            column,
        };
        let sealed = row.get::<_, [u8; SEALED]>(index)?;
        let opened = ring.open(&sealed, place);
        opened.map_err(|error| unreadable(index, error))
    };
    let allocation = match row.get(10)? {
        Some(port) => Some(Allocation {
            port,
            keys: Keys {
                server: private_key(11, SERVER_KEY)?,
                client: match given {
                    Some(given) => ClientKey::Given(PublicKey::from_bytes(given)),
                    None => ClientKey::Made(private_key(12, CLIENT_KEY)?),
                },
            },
            created_at: parsed(row, 14)?,
        }),
        None => None,
    };
    Ok(Tenant {
        id,
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
            generation,
            since: parsed::<Timestamp>(row, 8)?,
            failure: row.get(9)?,
            allocation,
        },
        version: unsigned(row, 15)?,
    })
}

pub fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| unreadable(column, error))
}

pub fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column).map(i64::cast_unsigned)
}

fn unreadable(
    column: usize,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
}
