//! Unlocks a database with its keys.
//!
//! A rotation has four steps, each synced to disk before the next begins: the key
//! file gets a new first key; all private keys are encrypted with it in one
//! transaction; the database is rewritten; the other keys are dropped from the file.
//! Opening the database performs the last three steps if any are due, so that an
//! interrupted rotation is completed by a later start.

use rusqlite::Connection;
use zeroize::Zeroizing;

use super::key_file::KeyFile;
use super::key_source::{KEY_VARIABLE, KeySource};
use super::row::{CLIENT_KEY, SERVER_KEY, parsed, unsigned};
use super::seal::{AssociatedData, KeyId, KeyRing, SEALED, SealError, sealed_under};
use super::{begin, scrub};
use crate::wireguard::PrivateKey;

/// The keys that decrypt a database.
pub struct Unlocked {
    pub ring: KeyRing,
    /// Whether the files contain nothing unencrypted.
    pub sealed: bool,
    /// None if the keys are from the environment.
    file: Option<KeyFile>,
}

/// Finds the keys of this database, and checks that they decrypt all of its private
/// keys. Creates a key file if there is none and nothing is encrypted yet.
///
/// # Errors
///
/// For the operator.
pub fn unlock(connection: &Connection, source: &KeySource) -> Result<Unlocked, String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let (name, state) = sealing(connection).map_err(sql)?;
    let plain = state == PLAIN;
    let rows = rows(connection).map_err(sql)?;
    let (mut ring, file) = match source {
        KeySource::Given(ring) => (ring.clone(), None),
        KeySource::File(path) => {
            let file = match KeyFile::open(path)? {
                Some(file) => file,
                None if plain || rows.is_empty() => {
                    let file = KeyFile::create(path, &name)?;
                    tracing::info!(file = %path.display(), "made a key for private keys; back it up");
                    file
                }
                None => {
                    return Err(format!(
                        "its private keys are encrypted, and the key file {} is missing: \
                         restore it from a backup, or name another with --key-file or a key in \
                         {KEY_VARIABLE}",
                        path.display()
                    ));
                }
            };
            if file.database() != name {
                return Err(format!(
                    "the key file {} belongs to database {}, but this is database {name}: give its \
                     own with --key-file, or for a new database a file that does not exist yet",
                    path.display(),
                    file.database()
                ));
            }
            (ring_of(&file), Some(file))
        }
    };
    if let Some(file) = &file
        && !plain
        && !rows
            .iter()
            .all(|row| row.under().is_none_or(|id| ring.has(id)))
    {
        // For a backup from before a rotation.
        ring = ring.and(&file.dropped()?);
    }
    for row in &rows {
        row.open(&ring, plain).map_err(|error| {
            let advice = match error {
                SealError::UnknownKey(_) => format!(
                    "restore that key's file from a backup, or name another than {} with \
                     --key-file or a key in {KEY_VARIABLE}",
                    source.name()
                ),
                _ => "restore the database from a backup".to_owned(),
            };
            let tenant = row.place.tenant;
            format!("cannot read a private key of tenant {tenant}: {error}; {advice}")
        })?;
    }
    Ok(Unlocked {
        ring,
        sealed: state == "sealed",
        file,
    })
}

fn ring_of(file: &KeyFile) -> KeyRing {
    KeyRing::new(file.keys().to_vec()).expect("a key file has a key")
}

impl Unlocked {
    /// Adds a new first key.
    ///
    /// # Errors
    ///
    /// For the operator.
    pub fn renew(&mut self) -> Result<(), String> {
        let Some(file) = &mut self.file else {
            return Err(format!(
                "its key is in {KEY_VARIABLE}: put a new one before it there, with a space between, \
                 start once, and then take the old one out"
            ));
        };
        file.add()?;
        // The other keys may be from an earlier rotation.
        self.ring = ring_of(file).and(self.ring.keys());
        Ok(())
    }

    /// Encrypts all private keys with the first key, removes earlier copies from the
    /// database's files, and drops the other keys.
    ///
    /// # Errors
    ///
    /// For the operator. If it is not [`sealed`](Self::sealed) then, the database
    /// must not be used; otherwise it can be, and the next call continues.
    pub fn settle(&mut self, connection: &mut Connection) -> Result<(), String> {
        self.reseal(connection)?;
        scrub(connection)?;
        if !self.sealed {
            let done = "UPDATE sealing SET state = 'sealed'";
            connection
                .execute(done, [])
                .map_err(|error| error.to_string())?;
            self.sealed = true;
        }
        if let Some(file) = &mut self.file {
            if file.keys().len() > 1 {
                file.drop_others()?;
                tracing::info!(key = %self.ring.first().id(), "private keys are encrypted under a new key");
            }
            self.ring = ring_of(file);
        }
        Ok(())
    }

    fn reseal(&self, connection: &mut Connection) -> Result<(), String> {
        let sql = |error: rusqlite::Error| error.to_string();
        let transaction = begin(connection).map_err(sql)?;
        let (_, state) = sealing(&transaction).map_err(sql)?;
        let plain = state == PLAIN;
        for row in rows(&transaction).map_err(sql)? {
            if !plain && row.under() == Some(self.ring.first().id()) {
                continue;
            }
            let key = row.open(&self.ring, plain);
            let sealed = key.and_then(|key| self.ring.seal(&key, row.place));
            let sealed = sealed.map_err(|error| error.to_string())?;
            let update = format!("UPDATE tenant SET {} = ?1 WHERE id = ?2", row.place.column);
            transaction
                .execute(&update, (sealed, row.place.tenant.to_string()))
                .map_err(sql)?;
        }
        if plain {
            let done = "UPDATE sealing SET state = 'unscrubbed'";
            transaction.execute(done, []).map_err(sql)?;
        }
        transaction.commit().map_err(sql)
    }
}

/// The database's mark that its private keys are not encrypted.
const PLAIN: &str = "plain";

/// The database's name, and how far its private keys are encrypted.
fn sealing(connection: &Connection) -> rusqlite::Result<(String, String)> {
    let select = "SELECT database, state FROM sealing";
    connection.query_row(select, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// A stored private key.
struct Stored {
    place: AssociatedData,
    bytes: Zeroizing<Vec<u8>>,
}

impl Stored {
    /// The ID of the key that decrypts it, if it is sealed.
    fn under(&self) -> Option<KeyId> {
        self.bytes.as_slice().try_into().ok().map(sealed_under)
    }

    fn open(&self, ring: &KeyRing, plain: bool) -> Result<PrivateKey, SealError> {
        let bytes = self.bytes.as_slice();
        if plain {
            let key: &[u8; 32] = bytes.try_into().map_err(|_| SealError::Forged)?;
            return Ok(PrivateKey::from_bytes(*key));
        }
        let sealed: &[u8; SEALED] = bytes.try_into().map_err(|_| SealError::Forged)?;
        ring.open(sealed, self.place)
    }
}

fn rows(connection: &Connection) -> rusqlite::Result<Vec<Stored>> {
    let mut rows = Vec::new();
    for column in [SERVER_KEY, CLIENT_KEY] {
        let select = format!(
            "SELECT id, generation, client_public_key, {column} FROM tenant
             WHERE {column} IS NOT NULL"
        );
        let mut select = connection.prepare(&select)?;
        let found = select.query_map([], |row| {
            let place = AssociatedData {
                tenant: parsed(row, "id")?,
                generation: unsigned(row, "generation")?,
                given: row.get("client_public_key")?,
                column,
            };
            let bytes = Zeroizing::new(row.get(column)?);
            Ok(Stored { place, bytes })
        })?;
        for row in found {
            rows.push(row?);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
