//! The token file of one machine.
//!
//! It has one line per token, with the hash of the token only:
//!
//! ```text
//! # platform team
//! <64 hexadecimal digits> admin
//! <64 hexadecimal digits> organisation acme
//! ```
//!
//! The hash is BLAKE2s-256 over the token's text. A token is 32 random bytes,
//! so a fast hash gives nothing away.
//!
//! A running daemon reads the file again when it has changed, and a revocation
//! must not depend on the rest of the file:
//!
//! - A token counts only while its line is there and valid.
//! - A hash in two lines grants nothing, even where one of them is not valid:
//!   either could be the one that was meant.
//! - A file with an invalid line grants nothing that the last file without one
//!   did not: an organisation's name that was broken over two lines leaves a
//!   valid line with another name.
//! - While the file cannot be read, the tokens of the last successful read count
//!   for [`GRACE`], then none.
//! - While the file is missing, no token counts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::fs::{DirBuilder, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::mem::replace;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake2::{Blake2s256, Digest as _};
use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use super::caller::{Caller, Role};
use crate::domain::tenant::{ORGANISATION_RULE, check_organisation};

/// Prefix of tokens, by which leaked ones can be recognised.
const PREFIX: &str = "vpe_";

/// How long the last known tokens are accepted after their file became unreadable.
const GRACE: Duration = Duration::from_secs(60);

/// Pause between attempts to read an unreadable file.
const RETRY: Duration = Duration::from_secs(1);

/// Maximum size of a token file, in bytes: some 50,000 tokens.
const MAX_FILE: u64 = 4 << 20;

/// Maximum number of invalid lines that a message names.
const MAX_NAMED: usize = 5;

type Hash = [u8; 32];

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error(
        "the token file {0} is missing; `vpn-edge token add --file {0} --admin` creates it with a first token"
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

/// The tokens of a file, which is read again when it changes.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    /// Whether the file may be missing.
    optional: bool,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// The holders of the accepted tokens.
    callers: HashMap<Hash, Caller>,
    /// The holders in the last file without an invalid line.
    valid: HashMap<Hash, Caller>,
    file: FileState,
}

/// The result of the last check of the file.
#[derive(Debug)]
enum FileState {
    Read {
        /// The version of the file that `callers` are from.
        version: Version,
        /// The message about its invalid lines.
        invalid: Option<String>,
    },
    Missing,
    Unreadable {
        error: String,
        /// When the first attempt failed.
        since: Instant,
        /// When the last attempt failed.
        tried: Instant,
        /// Whether the time for which `callers` are accepted is over.
        refused: bool,
    },
}

/// Changes with every edit, change of mode, or replacement of a file.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    mode: u32,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file's contents.
#[derive(Debug)]
struct Contents {
    callers: HashMap<Hash, Caller>,
    invalid: Vec<InvalidLine>,
}

/// A line's number and what is wrong with it; never its text, which could be a token.
#[derive(Debug, PartialEq, Eq)]
struct InvalidLine {
    number: usize,
    reason: String,
}

impl Tokens {
    /// # Errors
    ///
    /// If the file is missing, cannot be read, or has an invalid line.
    pub fn load(path: &Path) -> Result<Tokens, TokenFileError> {
        let (contents, version) = read_valid(path)?;
        let file = FileState::Read {
            version,
            invalid: None,
        };
        Ok(Tokens::of(path, false, contents.callers, file))
    }

    /// Like [`Tokens::load`], but the file may be missing, now and later.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or has an invalid line.
    pub fn load_if_any(path: &Path) -> Result<Tokens, TokenFileError> {
        match Tokens::load(path) {
            Err(TokenFileError::Missing(_)) => {
                Ok(Tokens::of(path, true, HashMap::new(), FileState::Missing))
            }
            loaded => Ok(Tokens {
                optional: true,
                ..loaded?
            }),
        }
    }

    fn of(path: &Path, optional: bool, callers: HashMap<Hash, Caller>, file: FileState) -> Tokens {
        Tokens {
            path: path.to_owned(),
            optional,
            known: Mutex::new(Known {
                valid: callers.clone(),
                callers,
                file,
            }),
        }
    }

    /// The holder of this token.
    pub fn caller(&self, token: &str) -> Option<Caller> {
        self.caller_at(token, Instant::now())
    }

    fn caller_at(&self, token: &str, now: Instant) -> Option<Caller> {
        let hash = hash(token);
        self.refresh(now).callers.get(&hash).cloned()
    }

    /// What is wrong with the file, if anything: it cannot be read, has invalid
    /// lines, or is missing although it must exist.
    pub fn problem(&self) -> Option<String> {
        self.problem_at(Instant::now())
    }

    fn problem_at(&self, now: Instant) -> Option<String> {
        match &self.refresh(now).file {
            FileState::Read { invalid, .. } => invalid.clone(),
            FileState::Missing if self.optional => None,
            FileState::Missing => Some(TokenFileError::Missing(self.path.clone()).to_string()),
            FileState::Unreadable {
                error,
                refused: false,
                ..
            } => {
                let seconds = GRACE.as_secs();
                Some(format!("{error}; its tokens are refused after {seconds} s"))
            }
            FileState::Unreadable {
                error,
                refused: true,
                ..
            } => Some(format!("{error}; its tokens are refused")),
        }
    }

    /// Checks the file, and reads it if it has changed or could not be read before.
    /// Concurrent callers wait, and get the result of the first.
    fn refresh(&self, now: Instant) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = std::fs::metadata(&self.path).map(|metadata| version(&metadata));
        match (&found, &known.file) {
            (Ok(found), FileState::Read { version, .. }) if found == version => {}
            (Err(error), _) if error.kind() == ErrorKind::NotFound => known.missing(&self.path),
            (_, FileState::Unreadable { tried, .. })
                if now.saturating_duration_since(*tried) < RETRY => {}
            _ => match read(&self.path) {
                Ok((contents, version)) => known.read(&self.path, contents, version),
                Err(TokenFileError::Missing(_)) => known.missing(&self.path),
                Err(error) => known.unreadable(&error, now),
            },
        }
        known.end_grace(now);
        known
    }

    /// Generates a token for `role`, adds its hash to the file, which is created if
    /// missing, and returns it. The token is stored nowhere else.
    pub fn add(path: &Path, role: &Role) -> Result<Zeroizing<String>, TokenFileError> {
        let role = match role {
            Role::Admin => "admin".to_owned(),
            Role::Member { organisation } => {
                check_organisation(organisation)?;
                format!("organisation {organisation}")
            }
        };
        match read_valid(path) {
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

impl Known {
    fn read(&mut self, path: &Path, contents: Contents, version: Version) {
        let Contents {
            mut callers,
            invalid,
        } = contents;
        if invalid.is_empty() {
            self.valid.clone_from(&callers);
        } else {
            callers.retain(|hash, caller| {
                let valid = self.valid.get(hash);
                valid.is_some_and(|valid| valid.role == caller.role)
            });
        }
        let invalid = describe(path, &invalid);
        if let Some(invalid) = &invalid {
            tracing::error!("{invalid}");
        }
        self.callers = callers;
        let before = replace(&mut self.file, FileState::Read { version, invalid });
        if !matches!(before, FileState::Read { .. }) {
            tracing::info!(path = %path.display(), "the token file can be read again");
        }
    }

    fn missing(&mut self, path: &Path) {
        self.callers.clear();
        let before = replace(&mut self.file, FileState::Missing);
        if !matches!(before, FileState::Missing) {
            let error = TokenFileError::Missing(path.to_owned());
            tracing::error!(%error, "the tokens of the file are refused");
        }
    }

    fn unreadable(&mut self, error: &TokenFileError, now: Instant) {
        let (since, refused) = match self.file {
            FileState::Unreadable { since, refused, .. } => (since, refused),
            FileState::Read { .. } | FileState::Missing => {
                let seconds = GRACE.as_secs();
                tracing::error!(%error, "cannot read the token file; its tokens are refused after {seconds} s");
                (now, false)
            }
        };
        self.file = FileState::Unreadable {
            error: error.to_string(),
            since,
            tried: now,
            refused,
        };
    }

    fn end_grace(&mut self, now: Instant) {
        if let FileState::Unreadable {
            error,
            since,
            refused,
            ..
        } = &mut self.file
            && !*refused
            && now.saturating_duration_since(*since) >= GRACE
        {
            tracing::error!(%error, "cannot read the token file; its tokens are refused until it can be read");
            *refused = true;
            self.callers.clear();
        }
    }
}

/// The message about invalid lines.
fn describe(path: &Path, invalid: &[InvalidLine]) -> Option<String> {
    if invalid.is_empty() {
        return None;
    }
    let mut lines: Vec<String> = invalid
        .iter()
        .take(MAX_NAMED)
        .map(|InvalidLine { number, reason }| format!("line {number}: {reason}"))
        .collect();
    if let Some(more @ 1..) = invalid.len().checked_sub(MAX_NAMED) {
        lines.push(format!("and {more} more"));
    }
    let (path, lines) = (path.display(), lines.join("; "));
    Some(format!(
        "the token file {path} has invalid lines, and grants nothing new until they are corrected: {lines}"
    ))
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
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let newline = match bytes.last() {
        None | Some(b'\n') => "",
        Some(_) => "\n",
    };
    file.write_all(format!("{newline}{line}").as_bytes())
}

fn hash(token: &str) -> Hash {
    Blake2s256::digest(token.as_bytes()).into()
}

fn version(metadata: &Metadata) -> Version {
    Version {
        device: metadata.dev(),
        inode: metadata.ino(),
        mode: metadata.mode(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// The contents of the file, if all of its lines are valid.
fn read_valid(path: &Path) -> Result<(Contents, Version), TokenFileError> {
    let (mut contents, version) = read(path)?;
    if contents.invalid.is_empty() {
        return Ok((contents, version));
    }
    let InvalidLine { number, reason } = contents.invalid.swap_remove(0);
    Err(TokenFileError::Line {
        path: path.to_owned(),
        line: number,
        reason,
    })
}

fn read(path: &Path) -> Result<(Contents, Version), TokenFileError> {
    let io = |error: Error| match error.kind() {
        ErrorKind::NotFound => TokenFileError::Missing(path.to_owned()),
        _ => TokenFileError::Io(path.to_owned(), error),
    };
    // Without this flag, opening a FIFO would wait for a writer.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = options.open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(io(Error::other("it is not a regular file")));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(TokenFileError::WritableByOthers(path.to_owned()));
    }
    let mut bytes = Vec::new();
    let mut file = file.take(MAX_FILE + 1);
    file.read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io(Error::other(format!(
            "it has more than {MAX_FILE} bytes"
        ))));
    }
    // The character that replaces what is not UTF-8 is valid in comments alone.
    let contents = parse(&String::from_utf8_lossy(&bytes));
    Ok((contents, version(&metadata)))
}

fn parse(text: &str) -> Contents {
    let mut callers = HashMap::new();
    let mut invalid = Vec::new();
    // The first line of each hash, valid or not.
    let mut first = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let outcome = parse_line(line).and_then(|(hash, caller)| match first.entry(hash) {
            Entry::Vacant(entry) => {
                entry.insert(number);
                callers.insert(hash, caller?);
                Ok(())
            }
            Entry::Occupied(first) => {
                callers.remove(&hash);
                let first = first.get();
                Err(format!(
                    "its hash is in line {first} too, and neither counts; remove one of them"
                ))
            }
        });
        if let Err(reason) = outcome {
            invalid.push(InvalidLine { number, reason });
        }
    }
    Contents { callers, invalid }
}

/// The hash in the line, and its holder.
fn parse_line(line: &str) -> Result<(Hash, Result<Caller, String>), String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let hash = parse_hash(words[0]).ok_or(
        "a line starts with a token's hash, 64 hexadecimal digits; `vpn-edge token add` writes such lines",
    )?;
    // Enough of the hash to find the line, and nothing of the token.
    let subject = format!("token:{}", &words[0][..8]);
    let caller = parse_role(&words[1..]).map(|role| Caller { role, subject });
    Ok((hash, caller))
}

fn parse_role(words: &[&str]) -> Result<Role, String> {
    match *words {
        ["admin"] => Ok(Role::Admin),
        ["organisation", organisation] => match check_organisation(organisation) {
            Ok(()) => Ok(Role::Member {
                organisation: organisation.to_owned(),
            }),
            Err(_) => Err(format!(
                "the organisation's name is not valid: {ORGANISATION_RULE}"
            )),
        },
        _ => Err("after the hash comes `admin` or `organisation <name>`".to_owned()),
    }
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
mod tests;
