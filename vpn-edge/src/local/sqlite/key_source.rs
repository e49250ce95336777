//! The source of sealing keys: a file, or an environment variable.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::seal::{KeyRing, SealingKey};

/// Environment variable that may hold the keys instead of a file: base64, separated
/// by white space if there are several.
pub const KEY_VARIABLE: &str = "VPN_EDGE_KEY";

/// See the module.
#[derive(Clone)]
pub enum KeySource {
    /// Created if it is missing and nothing in the database is encrypted yet.
    File(PathBuf),
    Given(KeyRing),
}

impl KeySource {
    /// The environment variable if it is set; otherwise `file`; otherwise the
    /// database's name plus `.key`.
    ///
    /// # Errors
    ///
    /// If both a file and the variable are given, or the variable contains no valid
    /// keys; for the operator.
    pub fn of(file: Option<PathBuf>, database: &Path) -> Result<KeySource, String> {
        KeySource::choose(std::env::var_os(KEY_VARIABLE), file, database)
    }

    fn choose(
        variable: Option<OsString>,
        file: Option<PathBuf>,
        database: &Path,
    ) -> Result<KeySource, String> {
        match (variable, file) {
            (Some(_), Some(_)) => Err(format!(
                "there are both --key-file and {KEY_VARIABLE}: use one of them"
            )),
            (Some(variable), None) => {
                let bytes = Zeroizing::new(variable.into_vec());
                Ok(KeySource::Given(given(&bytes)?))
            }
            (None, Some(file)) => Ok(KeySource::File(file)),
            (None, None) => Ok(KeySource::beside(database)),
        }
    }

    pub fn beside(database: &Path) -> KeySource {
        let mut name = database.as_os_str().to_owned();
        name.push(".key");
        KeySource::File(name.into())
    }

    /// The name in messages.
    pub fn name(&self) -> String {
        match self {
            KeySource::File(path) => path.display().to_string(),
            KeySource::Given(_) => KEY_VARIABLE.to_owned(),
        }
    }
}

fn given(bytes: &[u8]) -> Result<KeyRing, String> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let keys = text.split_whitespace().map(SealingKey::from_base64);
    let keys: Option<Vec<SealingKey>> = keys.collect();
    keys.and_then(KeyRing::new).ok_or_else(|| {
        format!(
            "{KEY_VARIABLE} is not a key: it must be base64 of 32 bytes, as `head -c 32 /dev/urandom | base64` prints"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(variable: Option<&[u8]>, file: Option<&str>) -> Result<KeySource, String> {
        let variable = variable.map(|bytes| OsString::from_vec(bytes.to_vec()));
        KeySource::choose(variable, file.map(PathBuf::from), Path::new("/a/b.db"))
    }

    #[test]
    fn the_variable_or_a_file_has_the_keys() {
        let keys = [(); 2].map(|()| SealingKey::generate().unwrap());
        let both = format!("{}\n{}", &*keys[0].to_base64(), &*keys[1].to_base64());
        let source = choose(Some(both.as_bytes()), None).unwrap();
        let KeySource::Given(ring) = &source else {
            panic!("a file: {}", source.name());
        };
        assert_eq!(ring.first().id(), keys[0].id());
        assert!(ring.has(keys[1].id()));
        assert_eq!(source.name(), "VPN_EDGE_KEY");
        assert_eq!(choose(None, None).unwrap().name(), "/a/b.db.key");
        assert_eq!(choose(None, Some("/c")).unwrap().name(), "/c");
        let refused = choose(Some(both.as_bytes()), Some("/c")).err().unwrap();
        assert!(refused.contains("use one of them"), "{refused}");
    }

    #[test]
    fn a_variable_without_a_key_is_refused_and_not_shown() {
        let key = SealingKey::generate().unwrap();
        let spoilt = [key.to_base64().as_bytes(), b" c2VjcmV0"].concat();
        let texts: [&[u8]; 5] = [b"", b" ", b"c2VjcmV0", b"\xff", &spoilt];
        for text in texts {
            let refused = choose(Some(text), None).err().unwrap();
            assert!(refused.contains("is not a key"), "{refused}");
            assert!(!refused.contains("c2VjcmV0"), "{refused}");
        }
    }
}
