//! Where sealing keys come from: a file that is made on the first start, or an
//! environment variable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::seal::{KeyRing, SealingKey};

/// Environment variable that may hold the keys instead of a file: base64, with
/// white space between them if there are more.
pub const KEY_VARIABLE: &str = "VPN_EDGE_KEY";

const HEADER: &str = "\
# What private keys in vpn-edge's database are encrypted under. Without this
# file nobody can read them; keep its backup away from the database's. The first
# key encrypts; those below are of a rotation that has not ended.
";

/// See the module.
#[derive(Clone)]
pub enum KeySource {
    File(PathBuf),
    Given(KeyRing),
}

impl KeySource {
    /// What the environment variable has; else `file`; else the file beside
    /// `database` of its name and `.key`.
    ///
    /// # Errors
    ///
    /// When there is both a file and the variable, or the variable has no keys;
    /// in words for the operator.
    pub fn of(file: Option<PathBuf>, database: &Path) -> Result<KeySource, String> {
        match (std::env::var(KEY_VARIABLE).map(Zeroizing::new), file) {
            (Ok(_), Some(_)) => Err(format!(
                "there are both --key-file and {KEY_VARIABLE}: use one of them"
            )),
            (Ok(text), None) => Ok(KeySource::Given(given(&text)?)),
            (Err(_), Some(file)) => Ok(KeySource::File(file)),
            (Err(_), None) => Ok(KeySource::beside(database)),
        }
    }

    pub fn beside(database: &Path) -> KeySource {
        let mut name = database.as_os_str().to_owned();
        name.push(".key");
        KeySource::File(name.into())
    }

    /// As messages call it.
    pub fn name(&self) -> String {
        match self {
            KeySource::File(path) => path.display().to_string(),
            KeySource::Given(_) => KEY_VARIABLE.to_owned(),
        }
    }

    /// The keys; none when the file is missing.
    ///
    /// # Errors
    ///
    /// In words for the operator.
    pub fn load(&self) -> Result<Option<KeyRing>, String> {
        match self {
            KeySource::File(path) => read(path),
            KeySource::Given(ring) => Ok(Some(ring.clone())),
        }
    }
}

fn given(text: &str) -> Result<KeyRing, String> {
    let keys = text.split_whitespace().map(SealingKey::from_base64);
    let keys: Option<Vec<SealingKey>> = keys.collect();
    keys.and_then(KeyRing::new).ok_or_else(|| {
        format!(
            "{KEY_VARIABLE} is no key: it takes base64 of 32 bytes, as `head -c 32 /dev/urandom | base64` prints"
        )
    })
}

fn read(path: &Path) -> Result<Option<KeyRing>, String> {
    let shown = path.display();
    let unreadable = |error: io::Error| format!("cannot read {shown}: {error}");
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown} has mode {mode:03o}, so that others may read it: run `chmod 600 {shown}`, \
             and `vpn-edge key rotate` if somebody may have done so"
        ));
    }
    let text = Zeroizing::new(io::read_to_string(file).map_err(unreadable)?);
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            let key = SealingKey::from_base64(line);
            keys.push(key.ok_or_else(|| {
                format!("line {number} of {shown} is no key: restore the file from a backup")
            })?);
        }
    }
    let ring = KeyRing::new(keys);
    let empty = || format!("{shown} has no key: restore it from a backup");
    ring.map(Some).ok_or_else(empty)
}

/// Writes the file, mode 0600, whole or not at all; it is on the disk when this
/// returns.
///
/// # Errors
///
/// In words for the operator.
pub fn write(path: &Path, keys: &[SealingKey]) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let mut text = Zeroizing::new(HEADER.to_owned());
    for key in keys {
        text.push_str(&key.to_base64());
        text.push('\n');
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    // One of an interrupted attempt may be there, with a mode of its own.
    if let Err(error) = fs::remove_file(&unfinished)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)?;
    let folder = path.parent().filter(|parent| *parent != Path::new(""));
    let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    folder.sync_all().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_the_keys_it_was_written_with_to_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(read(&path).unwrap().is_none());
        let keys = [(); 2].map(|()| SealingKey::generate().unwrap());
        write(&path, &keys).unwrap();
        let ids = |keys: &[SealingKey]| keys.iter().map(SealingKey::id).collect::<Vec<_>>();
        let ring = read(&path).unwrap().unwrap();
        assert_eq!(ids(ring.keys()), ids(&keys));
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        mode(0o640);
        let refused = read(&path).err().unwrap();
        assert!(refused.contains("mode 640"), "{refused}");
        mode(0o400);
        assert!(read(&path).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (text, says) in [
            ("", "has no key"),
            ("# only a comment\n", "has no key"),
            ("\nc2VjcmV0\n", "line 2 of"),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let refused = read(&path).err().unwrap();
            assert!(refused.contains(says), "{refused}");
            assert!(!refused.contains("c2VjcmV0"), "{refused}");
        }
        assert!(!given("c2VjcmV0").err().unwrap().contains("c2VjcmV0"));
        let [first, second] = [(); 2].map(|()| SealingKey::generate().unwrap());
        let both = format!("{} {}", &*first.to_base64(), &*second.to_base64());
        assert_eq!(given(&both).unwrap().first().id(), first.id());
    }
}
