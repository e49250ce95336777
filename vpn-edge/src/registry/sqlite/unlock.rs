//! The way from a database and keys to one that can be read.
//!
//! A rotation, each step of which is on the disk before the next begins: the key
//! file gets a new first key; all private keys are encrypted under it, in one
//! transaction; the file loses the others. Whoever opens the database takes the
//! last two steps, if there is anything to do, so that an interrupted rotation
//! ends with the next start.

use rusqlite::{Connection, Transaction};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::key_file::{self, KEY_VARIABLE, KeySource};
use super::row::{CLIENT_KEY, SERVER_KEY, parsed, unsigned};
use super::seal::{KeyRing, Place, SEALED, SealError, SealingKey, sealed_under};
use super::{begin, schema};
use crate::wireguard::PrivateKey;

/// The sealing keys of this database, all of whose private keys are encrypted
/// under the first of them afterwards. A key file is made where there is none
/// and nothing to be read with it.
///
/// # Errors
///
/// In words for the operator.
pub fn unlock(connection: &mut Connection, source: &KeySource) -> Result<KeyRing, String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let transaction = begin(connection).map_err(sql)?;
    let version: i64 = transaction
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql)?;
    let plain = version < schema::SEALED;
    let rows = rows(&transaction).map_err(sql)?;
    let ring = match (source.load()?, source) {
        (Some(ring), _) => ring,
        (None, KeySource::File(path)) if plain || rows.is_empty() => {
            let key = SealingKey::generate().map_err(|error| error.to_string())?;
            key_file::write(path, std::slice::from_ref(&key))?;
            tracing::info!(file = %path.display(), "made a key for private keys; back it up");
            KeyRing::new(vec![key]).expect("it has a key")
        }
        (None, _) => {
            return Err(format!(
                "its private keys are encrypted, and the key file {} is missing: restore it \
                 from a backup, or name another with --key-file or a key in {KEY_VARIABLE}",
                source.name()
            ));
        }
    };
    for row in rows {
        let resealed = row.resealed(&ring, plain).map_err(|error| {
            let (name, tenant) = (source.name(), row.tenant);
            let advice = match error {
                SealError::UnknownKey(_) => format!(
                    "restore that key's file from a backup, or name another than {name} with \
                     --key-file or a key in {KEY_VARIABLE}"
                ),
                _ => "restore the database from a backup".to_owned(),
            };
            format!("cannot read a private key of tenant {tenant}: {error}; {advice}")
        })?;
        if let Some(sealed) = resealed {
            let update = format!("UPDATE tenant SET {} = ?1 WHERE id = ?2", row.column);
            transaction
                .execute(&update, (sealed, row.tenant.to_string()))
                .map_err(sql)?;
        }
    }
    transaction
        .pragma_update(None, "user_version", schema::SEALED)
        .map_err(sql)?;
    transaction.commit().map_err(sql)?;
    Ok(ring)
}

/// A new key, which all private keys are to be encrypted under.
///
/// # Errors
///
/// In words for the operator.
pub fn begin_rotation(source: &KeySource, ring: &KeyRing) -> Result<(), String> {
    let KeySource::File(path) = source else {
        return Err(format!(
            "its key is in {KEY_VARIABLE}: put a new one before it there, with a space between, \
             start once, and then take the old one out"
        ));
    };
    let mut keys = vec![SealingKey::generate().map_err(|error| error.to_string())?];
    keys.extend_from_slice(ring.keys());
    key_file::write(path, &keys)
}

/// Drops the keys that nothing is encrypted under any more.
///
/// # Errors
///
/// In words for the operator.
pub fn end_rotation(source: &KeySource, ring: &KeyRing) -> Result<(), String> {
    match source {
        KeySource::File(path) if ring.keys().len() > 1 => {
            key_file::write(path, &ring.keys()[..1])?;
            tracing::info!(file = %path.display(), key = %ring.first().id(), "private keys are encrypted under a new key");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A private key as it is stored.
struct Stored {
    tenant: Uuid,
    generation: u64,
    column: &'static str,
    bytes: Zeroizing<Vec<u8>>,
}

impl Stored {
    /// As it is to be stored, if that is otherwise.
    fn resealed(&self, ring: &KeyRing, plain: bool) -> Result<Option<[u8; SEALED]>, SealError> {
        let place = Place {
            tenant: self.tenant,
            generation: self.generation,
            column: self.column,
        };
        let bytes = self.bytes.as_slice();
        let key = if plain {
            let key: [u8; 32] = bytes.try_into().map_err(|_| SealError::Forged)?;
            PrivateKey::from_bytes(key)
        } else {
            let sealed: [u8; SEALED] = bytes.try_into().map_err(|_| SealError::Forged)?;
            let key = ring.open(&sealed, place)?;
            if sealed_under(&sealed) == ring.first().id() {
                return Ok(None);
            }
            key
        };
        ring.seal(&key, place).map(Some)
    }
}

fn rows(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<Stored>> {
    let mut rows = Vec::new();
    for column in [SERVER_KEY, CLIENT_KEY] {
        let select =
            format!("SELECT id, generation, {column} FROM tenant WHERE {column} IS NOT NULL");
        let mut select = transaction.prepare(&select)?;
        let found = select.query_map([], |row| {
            Ok(Stored {
                tenant: parsed(row, 0)?,
                generation: unsigned(row, 1)?,
                column,
                bytes: Zeroizing::new(row.get(2)?),
            })
        })?;
        for row in found {
            rows.push(row?);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
