//! The file with the sealing keys of one database.
//!
//! It is locked while it is open: two databases, one of which may be a copy of the
//! other, cannot rotate the same file at the same time. A key that a rotation drops
//! is first stored in the file of that name plus `.old`, for backups of the database
//! from before.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::seal::SealingKey;

const HEADER: &str = "\
# What private keys in vpn-edge's database are encrypted under. Without this
# file nobody can read them; keep its backup away from the database's.
";

/// An open key file.
pub struct KeyFile {
    path: PathBuf,
    /// The name of the database that the keys belong to.
    database: String,
    /// Newest first; never empty.
    keys: Vec<SealingKey>,
    /// Held as a lock, not read.
    lock: File,
}

impl KeyFile {
    /// None if the file does not exist.
    ///
    /// # Errors
    ///
    /// If it cannot be read or another process has it open; for the operator.
    pub fn open(path: &Path) -> Result<Option<KeyFile>, String> {
        loop {
            let Some(file) = open(path)? else {
                return Ok(None);
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(format!(
                        "the key file {} is in use by another vpn-edge; stop that one first",
                        path.display()
                    ));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(format!("cannot lock {}: {error}", path.display()));
                }
            }
            // A rotation may have replaced the file before it released this one.
            let Some(now) = open(path)? else {
                continue;
            };
            let place = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
            if !matches!((place(&file), place(&now)), (Ok(a), Ok(b)) if a == b) {
                continue;
            }
            let (database, keys) = read(&file, path)?;
            // The remains of an interrupted write may contain keys.
            for left in [".new", ".old.new"].map(|more| with(path, more)) {
                // A read-only folder refuses to remove even missing files.
                if fs::symlink_metadata(&left).is_err() {
                    continue;
                }
                match fs::remove_file(&left) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(file = %left.display(), "cannot remove keys that are not in use: {error}");
                    }
                    _ => {}
                }
            }
            return Ok(Some(KeyFile {
                path: path.to_owned(),
                database,
                keys,
                lock: file,
            }));
        }
    }

    /// Creates a file with a new key.
    ///
    /// # Errors
    ///
    /// For the operator.
    pub fn create(path: &Path, database: &str) -> Result<KeyFile, String> {
        let keys = vec![SealingKey::generate().map_err(|error| error.to_string())?];
        let lock = write(path, database, &keys, true)?;
        Ok(KeyFile {
            path: path.to_owned(),
            database: database.to_owned(),
            keys,
            lock,
        })
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    pub fn keys(&self) -> &[SealingKey] {
        &self.keys
    }

    /// Keys that earlier rotations dropped.
    ///
    /// # Errors
    ///
    /// If their file cannot be read or belongs to another database; for the operator.
    pub fn dropped(&self) -> Result<Vec<SealingKey>, String> {
        let path = with(&self.path, ".old");
        let Some(file) = open(&path)? else {
            return Ok(Vec::new());
        };
        let (database, keys) = read(&file, &path)?;
        if database != self.database {
            return Err(format!(
                "{} has keys of another database: move it away",
                path.display()
            ));
        }
        Ok(keys)
    }

    /// Adds a new first key.
    ///
    /// # Errors
    ///
    /// For the operator.
    pub fn add(&mut self) -> Result<(), String> {
        // Fails early, before anything depends on it.
        self.dropped()?;
        let mut keys = vec![SealingKey::generate().map_err(|error| error.to_string())?];
        keys.extend_from_slice(&self.keys);
        self.replace(keys)
    }

    /// Drops all keys except the first.
    ///
    /// # Errors
    ///
    /// For the operator.
    pub fn drop_others(&mut self) -> Result<(), String> {
        let mut dropped = self.keys[1..].to_vec();
        if dropped.is_empty() {
            return Ok(());
        }
        for key in self.dropped()? {
            if !dropped.iter().any(|known| known.id() == key.id()) {
                dropped.push(key);
            }
        }
        write(&with(&self.path, ".old"), &self.database, &dropped, false)?;
        self.replace(self.keys[..1].to_vec())
    }

    fn replace(&mut self, keys: Vec<SealingKey>) -> Result<(), String> {
        self.lock = write(&self.path, &self.database, &keys, false)?;
        self.keys = keys;
        Ok(())
    }
}

fn with(path: &Path, more: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(more);
    name.into()
}

fn open(path: &Path) -> Result<Option<File>, String> {
    let shown = path.display();
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    match file {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => Err(format!(
            "{shown} is a symbolic link, which a rotation would replace: name the file itself"
        )),
        Err(error) => Err(format!("cannot read {shown}: {error}")),
    }
}

/// The database's name and the keys.
fn read(mut file: &File, path: &Path) -> Result<(String, Vec<SealingKey>), String> {
    let shown = path.display();
    let unreadable = |error: io::Error| format!("cannot read {shown}: {error}");
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    let (mode, owner) = (meta.mode() & 0o777, meta.uid());
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown} has mode {mode:03o}, so that others may read it: run `chmod 600 {shown}`, \
             and `vpn-edge key rotate` if somebody may have done so"
        ));
    }
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(format!(
            "{shown} belongs to user {owner}, who may read it: run `chown root {shown}`, and \
             `vpn-edge key rotate` if somebody may have done so"
        ));
    }
    // Allocated at its full size: a growing buffer would leave copies of keys behind.
    let room = usize::try_from(meta.len()).unwrap_or(0).saturating_add(1);
    let mut text = Zeroizing::new(String::with_capacity(room));
    file.read_to_string(&mut text).map_err(unreadable)?;
    let (mut database, mut keys) = (None, Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("database ") {
            database = Some(name.trim().to_owned());
        } else if !line.is_empty() && !line.starts_with('#') {
            let key = SealingKey::from_base64(line);
            keys.push(key.ok_or_else(|| {
                format!("line {number} of {shown} is not a key: restore the file from a backup")
            })?);
        }
    }
    let lacks = |what| format!("{shown} has no {what}: restore it from a backup");
    if keys.is_empty() {
        return Err(lacks("key"));
    }
    Ok((database.ok_or_else(|| lacks("database's name"))?, keys))
}

/// Writes a key file with mode 0600, completely or not at all; on return it is synced
/// to disk and locked. A `new` file does not replace an existing one.
fn write(path: &Path, database: &str, keys: &[SealingKey], new: bool) -> Result<File, String> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    let folder = File::open(parent).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!(
            "cannot write {}: there is no folder {}: create it first, with mode 700",
            path.display(),
            parent.display()
        ),
        _ => failed(error),
    })?;
    // One writer at a time: the file to lock may not exist yet.
    folder.lock().map_err(failed)?;
    if new && fs::symlink_metadata(path).is_ok() {
        return Err(format!(
            "{} was created by another vpn-edge just now: start again",
            path.display()
        ));
    }
    let unfinished = with(path, ".new");
    // The remains of an interrupted attempt may have another mode.
    if let Err(error) = fs::remove_file(&unfinished)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let lines = keys.iter().map(|key| key.to_base64().len() + 1);
    let room = HEADER.len() + database.len() + 16 + lines.sum::<usize>();
    let mut text = Zeroizing::new(String::with_capacity(room));
    for part in [HEADER, "database ", database, "\n"] {
        text.push_str(part);
    }
    for key in keys {
        text.push_str(&key.to_base64());
        text.push('\n');
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed)?;
    let written = file
        .lock()
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&unfinished, path))
        .and_then(|()| folder.sync_all());
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            // It may contain keys.
            drop(fs::remove_file(&unfinished));
            Err(failed(error))
        }
    }
}

#[cfg(test)]
mod tests;
