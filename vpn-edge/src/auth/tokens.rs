//! The token file of one machine.
//!
//! It has a line a token, and of the token its hash alone:
//!
//! ```text
//! # platform team
//! <64 hexadecimal digits> admin
//! <64 hexadecimal digits> organisation acme
//! ```
//!
//! The hash is BLAKE2s-256 over the token's text. A token is 32 random bytes,
//! so a fast hash gives nothing away.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake2::{Blake2s256, Digest as _};
use zeroize::Zeroizing;

use super::caller::{Caller, Role};
use crate::domain::tenant::check_organisation;

/// What a token starts with, so that one is recognised where it should not be.
const PREFIX: &str = "vpe_";

type Hash = [u8; 32];

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error(
        "the token file {0} is missing; `vpn-edge token add --file {0} --admin` makes it with a first token"
    )]
    Missing(PathBuf),
    #[error("cannot read or write the token file {0}: {1}")]
    Io(PathBuf, std::io::Error),
    #[error("the token file {0} can be written by others than its owner; run chmod 600 {0}")]
    WritableByOthers(PathBuf),
    #[error("{path}, line {line}: {reason}")]
    Line {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("{0}")]
    Organisation(#[from] crate::domain::tenant::InvalidTenant),
    #[error("the operating system gave no random bytes for a token: {0}")]
    Random(getrandom::Error),
}

/// The tokens of a file, which is read again when it has changed.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    callers: HashMap<Hash, Caller>,
    /// The file that `callers` are from; `None` when it is gone.
    version: Option<Version>,
}

/// Inode, length, and modification time in seconds and nanoseconds: differs
/// between a file and what it was before an edit.
type Version = (u64, u64, i64, i64);

impl Tokens {
    /// # Errors
    ///
    /// That the file is missing, or cannot be used.
    pub fn load(path: &Path) -> Result<Tokens, TokenFileError> {
        let (callers, version) = read(path)?;
        Ok(Tokens::of(path, callers, Some(version)))
    }

    /// As [`Tokens::load`], but a file that is missing knows nobody until it is
    /// there.
    ///
    /// # Errors
    ///
    /// That the file cannot be used.
    pub fn load_if_any(path: &Path) -> Result<Tokens, TokenFileError> {
        match Tokens::load(path) {
            Err(TokenFileError::Missing(_)) => Ok(Tokens::of(path, HashMap::new(), None)),
            loaded => loaded,
        }
    }

    fn of(path: &Path, callers: HashMap<Hash, Caller>, version: Option<Version>) -> Tokens {
        Tokens {
            path: path.to_owned(),
            known: Mutex::new(Known { callers, version }),
        }
    }

    /// Who holds this token. A file that cannot be read any more keeps the
    /// tokens it had; one that was removed knows nobody.
    pub fn caller(&self, token: &str) -> Option<Caller> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version = std::fs::metadata(&self.path).ok().as_ref().map(version);
        if version != known.version {
            known.version = version;
            match read(&self.path) {
                Ok((callers, version)) => {
                    known.callers = callers;
                    known.version = Some(version);
                }
                Err(error @ TokenFileError::Missing(_)) => {
                    tracing::error!(%error, "nobody may call the API");
                    known.callers.clear();
                }
                Err(error) => tracing::error!(%error, "tokens stay as they were"),
            }
        }
        known.callers.get(&hash(token)).cloned()
    }

    /// Makes a token for `role`, adds its hash to the file, which is created
    /// when missing, and returns it: it is nowhere else.
    pub fn add(path: &Path, role: &Role) -> Result<Zeroizing<String>, TokenFileError> {
        let role = match role {
            Role::Admin => "admin".to_owned(),
            Role::Member { organisation } => {
                check_organisation(organisation)?;
                format!("organisation {organisation}")
            }
        };
        match read(path) {
            Ok(_) | Err(TokenFileError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(TokenFileError::Random)?;
        let mut token = Zeroizing::new(PREFIX.to_owned());
        URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut token);

        let mut line = String::new();
        for byte in hash(&token) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{byte:02x}");
        }
        line = format!("{line} {role}\n");
        append(path, &line).map_err(|error| TokenFileError::Io(path.to_owned(), error))?;
        Ok(token)
    }
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let newline = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    file.write_all(format!("{newline}{line}").as_bytes())
}

fn hash(token: &str) -> Hash {
    Blake2s256::digest(token.as_bytes()).into()
}

fn version(metadata: &Metadata) -> Version {
    (
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

fn read(path: &Path) -> Result<(HashMap<Hash, Caller>, Version), TokenFileError> {
    let io = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => TokenFileError::Missing(path.to_owned()),
        _ => TokenFileError::Io(path.to_owned(), error),
    };
    let mut file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if metadata.mode() & 0o022 != 0 {
        return Err(TokenFileError::WritableByOthers(path.to_owned()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(io)?;
    let callers = parse(&text).map_err(|(line, reason)| TokenFileError::Line {
        path: path.to_owned(),
        line,
        reason,
    })?;
    Ok((callers, version(&metadata)))
}

/// The error is the line's number and what is wrong with it, never its text: it
/// could be a token.
fn parse(text: &str) -> Result<HashMap<Hash, Caller>, (usize, String)> {
    let mut callers = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |reason: &str| (number, reason.to_owned());
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let hash = parse_hash(words[0]).ok_or_else(|| {
            wrong("a line starts with a token's hash, 64 hexadecimal digits; `vpn-edge token add` writes such lines")
        })?;
        let role = match words[1..] {
            ["admin"] => Role::Admin,
            ["organisation", organisation] => {
                check_organisation(organisation).map_err(|error| wrong(&error.to_string()))?;
                Role::Member {
                    organisation: organisation.to_owned(),
                }
            }
            _ => {
                return Err(wrong(
                    "after the hash comes `admin` or `organisation <name>`",
                ));
            }
        };
        // Enough of the hash to find the line by, and nothing of the token.
        let subject = format!("token:{}", &words[0][..8]);
        if callers.insert(hash, Caller { role, subject }).is_some() {
            return Err(wrong(
                "this hash is in the file twice; remove one of the lines",
            ));
        }
    }
    Ok(callers)
}

fn parse_hash(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    let digits = text.as_bytes();
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        (dir, path)
    }

    fn role(tokens: &Tokens, token: &str) -> Option<Role> {
        tokens.caller(token).map(|caller| caller.role)
    }

    fn member() -> Role {
        Role::Member {
            organisation: "acme".to_owned(),
        }
    }

    #[test]
    fn a_token_names_its_caller_and_is_not_in_the_file() {
        let (_dir, path) = scratch();
        let admin = Tokens::add(&path, &Role::Admin).unwrap();
        let acme = Tokens::add(&path, &member()).unwrap();
        assert!(
            admin.starts_with("vpe_") && admin.len() == 4 + 43,
            "{}",
            admin.len()
        );
        let tokens = Tokens::load(&path).unwrap();
        assert_eq!(role(&tokens, &admin), Some(Role::Admin));
        assert_eq!(role(&tokens, &acme), Some(member()));
        assert_eq!(role(&tokens, "vpe_unknown"), None);
        assert_eq!(role(&tokens, ""), None);
        let text = std::fs::read_to_string(&path).unwrap();
        let caller = tokens.caller(&admin).unwrap();
        assert_eq!(caller.subject, format!("token:{}", &text[..8]));
        assert!(!text.contains(admin.as_str()) && !text.contains(acme.as_str()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_changed_file_needs_no_restart() {
        let (_dir, path) = scratch();
        let first = Tokens::add(&path, &Role::Admin).unwrap();
        let tokens = Tokens::load(&path).unwrap();
        let second = Tokens::add(&path, &member()).unwrap();
        assert_eq!(role(&tokens, &second), Some(member()));
        std::fs::write(&path, "nonsense\n").unwrap();
        assert_eq!(
            role(&tokens, &first),
            Some(Role::Admin),
            "a slip locks nobody out"
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(role(&tokens, &first), None);
        let third = Tokens::add(&path, &Role::Admin).unwrap();
        assert_eq!(role(&tokens, &third), Some(Role::Admin));
        assert_eq!(role(&tokens, &second), None);
    }

    #[test]
    fn a_line_added_by_hand_without_an_end_is_not_damaged() {
        let (_dir, path) = scratch();
        let line = format!("# by hand\n\n{} admin", "0f".repeat(32));
        std::fs::write(&path, &line).unwrap();
        Tokens::add(&path, &member()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("{line}\n")));
        assert_eq!(parse(&text).unwrap().len(), 2);
    }

    #[test]
    fn a_bad_line_is_named_by_file_and_number_but_not_shown() {
        let hash = "0f".repeat(32);
        let table = [
            (
                "vpe_c2VjcmV0 admin".to_owned(),
                "a line starts with a token's hash, 64 hexadecimal digits; `vpn-edge token add` writes such lines",
            ),
            (
                hash.clone(),
                "after the hash comes `admin` or `organisation <name>`",
            ),
            (
                format!("{hash} organisation"),
                "after the hash comes `admin` or `organisation <name>`",
            ),
            (
                format!("{hash} admin acme"),
                "after the hash comes `admin` or `organisation <name>`",
            ),
            (
                format!("{hash} organisation -a"),
                "organisation \"-a\" is not valid: use 1 to 64 letters, digits, '.', '_' and '-', and start with a letter or digit",
            ),
        ];
        for (line, reason) in table {
            let (_dir, path) = scratch();
            std::fs::write(&path, format!("# comment\n{line}\n")).unwrap();
            let expected = format!("{}, line 2: {reason}", path.display());
            assert_eq!(Tokens::load(&path).unwrap_err().to_string(), expected);
            let added = Tokens::add(&path, &Role::Admin).unwrap_err();
            assert_eq!(
                added.to_string(),
                expected,
                "nothing is added to a bad file"
            );
        }
        let twice = format!("{hash} admin\n{hash} organisation acme");
        assert_eq!(parse(&twice).unwrap_err().0, 2);
    }

    #[test]
    fn the_first_token_makes_the_folder_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vpn-edge/tokens");
        let token = Tokens::add(&path, &Role::Admin).unwrap();
        let tokens = Tokens::load(&path).unwrap();
        assert_eq!(role(&tokens, &token), Some(Role::Admin));
        let folder = std::fs::metadata(dir.path().join("vpn-edge")).unwrap();
        assert_eq!(folder.mode() & 0o777, 0o700);
    }

    #[test]
    fn a_missing_file_is_an_error_that_says_how_to_make_it() {
        let (_dir, path) = scratch();
        let shown = path.display();
        assert_eq!(
            Tokens::load(&path).unwrap_err().to_string(),
            format!(
                "the token file {shown} is missing; `vpn-edge token add --file {shown} --admin` \
                 makes it with a first token"
            )
        );
    }

    #[test]
    fn a_missing_file_that_may_be_missing_counts_once_it_is_there() {
        let (_dir, path) = scratch();
        let tokens = Tokens::load_if_any(&path).unwrap();
        assert_eq!(role(&tokens, "vpe_unknown"), None);
        let admin = Tokens::add(&path, &Role::Admin).unwrap();
        assert_eq!(role(&tokens, &admin), Some(Role::Admin));
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(Tokens::load_if_any(&path).is_err());
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let (_dir, path) = scratch();
        Tokens::add(&path, &Role::Admin).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        let error = Tokens::load(&path).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("run chmod 600 {}", path.display())),
            "{error}"
        );
    }

    #[test]
    fn a_token_for_an_impossible_organisation_is_refused() {
        let (_dir, path) = scratch();
        let role = Role::Member {
            organisation: "a b".to_owned(),
        };
        assert!(Tokens::add(&path, &role).is_err());
        assert!(!path.exists());
    }
}
