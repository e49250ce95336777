use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

use tempfile::TempDir;

use super::super::seal::KeyId;
use super::*;

const DATABASE: &str = "00112233445566778899aabbccddeeff";

fn scene() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    (dir, path)
}

fn ids(keys: &[SealingKey]) -> Vec<KeyId> {
    keys.iter().map(SealingKey::id).collect()
}

fn refused(path: &Path) -> String {
    KeyFile::open(path).err().expect("it opened")
}

/// A file with this text that nobody else may read.
fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    set_mode(path, 0o600);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_gives_the_keys_it_was_made_with() {
    let (_dir, path) = scene();
    assert!(KeyFile::open(&path).unwrap().is_none());
    let made = KeyFile::create(&path, DATABASE).unwrap();
    let keys = ids(made.keys());
    drop(made);
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    set_mode(&path, 0o400);
    let read = KeyFile::open(&path).unwrap().unwrap();
    assert_eq!((read.database(), ids(read.keys())), (DATABASE, keys));
    let again = KeyFile::create(&path, DATABASE).err().unwrap();
    assert!(again.contains("start again"), "{again}");
}

#[test]
fn only_its_owners_own_file_is_taken() {
    let (dir, path) = scene();
    drop(KeyFile::create(&path, DATABASE).unwrap());
    set_mode(&path, 0o640);
    assert!(refused(&path).contains("mode 640"));
    set_mode(&path, 0o600);
    chown(&path, Some(65_534), None).unwrap();
    assert!(refused(&path).contains("belongs to user 65534"));
    chown(&path, Some(0), None).unwrap();
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(refused(&link).contains("symbolic link"));
    assert!(refused(dir.path()).contains("is not a file"));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(refused(&fifo).contains("is not a file"));
    assert!(KeyFile::open(&path).unwrap().is_some());
}

#[test]
fn what_is_no_key_file_is_refused_and_not_shown() {
    let (_dir, path) = scene();
    let key = SealingKey::generate().unwrap().to_base64();
    for (text, says) in [
        (String::new(), "has no key"),
        (
            format!("# only a comment\ndatabase {DATABASE}\n"),
            "has no key",
        ),
        ("\nc2VjcmV0\n".to_owned(), "line 2 of"),
        (format!("{}\n", key.as_str()), "has no database's name"),
    ] {
        put(&path, &text);
        let refused = refused(&path);
        assert!(refused.contains(says), "{refused}");
        assert!(!refused.contains("c2VjcmV0") && !refused.contains(key.as_str()));
    }
}

#[test]
fn a_missing_folder_is_the_operators_to_make() {
    let (dir, _) = scene();
    let path = dir.path().join("none").join("key");
    assert!(KeyFile::open(&path).unwrap().is_none());
    let refused = KeyFile::create(&path, DATABASE).err().unwrap();
    let says = format!(
        "there is no folder {}: create it first",
        dir.path().join("none").display()
    );
    assert!(refused.contains(&says), "{refused}");
}

#[test]
fn one_has_it_at_a_time_through_all_that_is_written() {
    let (_dir, path) = scene();
    let in_use = || refused(&path).contains("in use by another vpn-edge");
    let mut file = KeyFile::create(&path, DATABASE).unwrap();
    assert!(in_use());
    file.add().unwrap();
    assert!(in_use());
    file.drop_others().unwrap();
    assert!(in_use());
    drop(file);
    assert!(KeyFile::open(&path).unwrap().is_some());
}

#[test]
fn dropped_keys_are_kept_aside() {
    let (_dir, path) = scene();
    let mut file = KeyFile::create(&path, DATABASE).unwrap();
    assert!(file.dropped().unwrap().is_empty());
    file.drop_others().unwrap();
    assert!(!with(&path, ".old").exists(), "there was nothing to drop");
    let first = file.keys()[0].id();
    file.add().unwrap();
    let second = file.keys()[0].id();
    assert_eq!(ids(file.keys()), [second, first]);
    file.drop_others().unwrap();
    assert_eq!(ids(&file.dropped().unwrap()), [first]);
    file.add().unwrap();
    let both = fs::read(&path).unwrap();
    file.drop_others().unwrap();
    let third = file.keys()[0].id();
    assert_eq!(ids(&file.dropped().unwrap()), [second, first]);
    drop(file);
    // Interrupted after the first of both files was written.
    fs::write(&path, both).unwrap();
    let mut file = KeyFile::open(&path).unwrap().unwrap();
    file.drop_others().unwrap();
    assert_eq!(ids(file.keys()), [third]);
    assert_eq!(ids(&file.dropped().unwrap()), [second, first], "once each");
}

#[test]
fn another_databases_dropped_keys_stop_a_rotation_before_it_begins() {
    let (_dir, path) = scene();
    let mut file = KeyFile::create(&path, DATABASE).unwrap();
    let before = fs::read(&path).unwrap();
    let old = with(&path, ".old");
    let key = SealingKey::generate().unwrap().to_base64();
    put(&old, &format!("database other\n{}\n", key.as_str()));
    let refused = file.add().err().unwrap();
    assert!(refused.contains("keys of another database"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn what_an_interrupted_write_left_goes() {
    let (dir, path) = scene();
    drop(KeyFile::create(&path, DATABASE).unwrap());
    for left in [".new", ".old.new"] {
        fs::write(with(&path, left), "half a key").unwrap();
    }
    drop(KeyFile::open(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
