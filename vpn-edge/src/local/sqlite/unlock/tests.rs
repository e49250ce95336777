use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

use super::super::seal::KeyId;
use super::super::seal::SealingKey;
use super::super::{SqliteRegistry, connect, scrub};
use super::*;
use crate::domain::{Keys, Plan, Tenant};
use crate::registry::{Change, Registry as _, RegistryError};

struct Scene {
    _dir: TempDir,
    database: PathBuf,
    key_file: PathBuf,
    source: KeySource,
    tenants: Vec<Tenant>,
}

impl Scene {
    /// A closed registry with keys that were made and one that was given.
    async fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("registry.db");
        let key_file = dir.path().join("key");
        let source = KeySource::File(key_file.clone());
        let mut scene = Scene {
            _dir: dir,
            database,
            key_file,
            source,
            tenants: Vec::new(),
        };
        let registry = scene.open(&scene.source).unwrap();
        let given = Keys::generate().unwrap().client.public();
        for (n, given) in [(1, None), (2, Some(given)), (3, None)] {
            let (id, now) = (Uuid::from_u128(n << 96), Timestamp::now());
            let mut tenant = Tenant::new(id, "acme".to_owned(), Plan::Business, now).unwrap();
            tenant.set_ready(true);
            registry.create(tenant).await.unwrap();
            let change: Change = Box::new(move |tenant, pool| {
                tenant.enable(pool, &[], Keys::generate_for(given), now)
            });
            let tenant = registry.update(id, change).await.unwrap();
            scene.tenants.push(tenant);
        }
        scene
    }

    fn open(&self, source: &KeySource) -> Result<SqliteRegistry, RegistryError> {
        SqliteRegistry::open_with(&self.database, "30000-30019".parse().unwrap(), &[], source)
    }

    fn refused(&self, source: &KeySource) -> String {
        self.open(source).err().expect("it opened").to_string()
    }

    async fn assert_whole(&self, source: &KeySource) {
        let registry = self.open(source).unwrap();
        let tenants = registry.list().await.unwrap();
        assert!(tenants.iter().map(|tenant| &**tenant).eq(&self.tenants));
    }

    fn keys(&self) -> Vec<SealingKey> {
        keys_in(&self.key_file)
    }

    fn old(&self) -> PathBuf {
        self.key_file.with_extension("old")
    }

    fn rotate(&self) -> Result<(), RegistryError> {
        SqliteRegistry::rotate_key(&self.database, &self.source)
    }

    /// Another database, and where it is.
    fn copy(&self) -> PathBuf {
        let copy = self.database.with_extension("copy");
        fs::copy(&self.database, &copy).unwrap();
        copy
    }

    /// What the private keys are encrypted under.
    fn sealed_under(&self) -> Vec<KeyId> {
        let (_lock, mut connection) = connect(&self.database).unwrap();
        let rows = rows(&begin(&mut connection).unwrap()).unwrap();
        let id = |row: &Stored| sealed_under(row.bytes.as_slice().try_into().unwrap());
        rows.iter().map(id).collect()
    }
}

/// Whoever has it open.
fn keys_in(file: &Path) -> Vec<SealingKey> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().filter_map(SealingKey::from_base64).collect()
}

fn only(key: &SealingKey) -> KeySource {
    KeySource::Given(KeyRing::new(vec![key.clone()]).unwrap())
}

#[tokio::test]
async fn a_key_is_made_once_and_opens_what_it_sealed() {
    let scene = Scene::new().await;
    let made = scene.keys();
    assert_eq!(made.len(), 1);
    scene.assert_whole(&scene.source).await;
    assert_eq!(scene.keys()[0].id(), made[0].id());
    scene.assert_whole(&only(&made[0])).await;
    assert_eq!(scene.sealed_under(), [made[0].id(); 5]);
}

#[tokio::test]
async fn without_the_right_key_nothing_opens_and_nothing_is_lost() {
    let scene = Scene::new().await;
    let right = scene.keys().remove(0);
    let other = SealingKey::generate().unwrap();
    let refused = scene.refused(&only(&other));
    let says = format!(
        "it is encrypted under key {}, which is not available",
        right.id()
    );
    assert!(refused.contains(&says), "{refused}");
    fs::rename(&scene.key_file, scene.key_file.with_extension("away")).unwrap();
    let refused = scene.refused(&scene.source);
    assert!(
        refused.contains("is missing: restore it from a backup"),
        "{refused}"
    );
    assert!(!scene.key_file.exists(), "no other is made in its place");
    fs::rename(scene.key_file.with_extension("away"), &scene.key_file).unwrap();
    scene.assert_whole(&scene.source).await;
}

#[tokio::test]
async fn a_ciphertext_of_another_tenant_is_refused() {
    let scene = Scene::new().await;
    let by_hand = Connection::open(&scene.database).unwrap();
    let id = |n: usize| scene.tenants[n].id.to_string();
    let swap = "UPDATE tenant SET server_key =
                (SELECT server_key FROM tenant WHERE id = ?1) WHERE id = ?2";
    by_hand.execute(swap, [id(0), id(1)]).unwrap();
    drop(by_hand);
    let refused = scene.refused(&scene.source);
    assert!(
        refused.contains("it was changed, or is another tenant's"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_rotation_replaces_the_key_and_keeps_all_else() {
    let scene = Scene::new().await;
    let old = scene.keys().remove(0);
    scene.rotate().unwrap();
    let new = scene.keys();
    assert_eq!(new.len(), 1);
    assert_ne!(new[0].id(), old.id());
    assert_eq!(scene.sealed_under(), [new[0].id(); 5]);
    scene.assert_whole(&scene.source).await;
    scene.refused(&only(&old));
    assert_eq!(keys_in(&scene.old())[0].id(), old.id());
}

#[tokio::test]
async fn a_backup_from_before_a_rotation_opens_while_the_old_key_is_there() {
    let scene = Scene::new().await;
    let backup = scene.copy();
    scene.rotate().unwrap();
    scene.rotate().unwrap();
    fs::copy(&backup, &scene.database).unwrap();
    scene.assert_whole(&scene.source).await;
    assert_eq!(scene.sealed_under(), [scene.keys()[0].id(); 5]);
    fs::copy(&backup, &scene.database).unwrap();
    fs::remove_file(scene.old()).unwrap();
    let refused = scene.refused(&scene.source);
    assert!(refused.contains("which is not available"), "{refused}");
}

#[tokio::test]
async fn a_key_file_is_of_one_database() {
    let scene = Scene::new().await;
    let before = fs::read(&scene.key_file).unwrap();
    // One that is new, and one with keys of its own.
    let other = Scene::new().await;
    let new = scene.database.with_extension("new");
    for database in [&new, &other.database] {
        let range = "30000-30019".parse().unwrap();
        let opened = SqliteRegistry::open_with(database, range, &[], &scene.source);
        let rotated = SqliteRegistry::rotate_key(database, &scene.source);
        for refused in [opened.err().unwrap(), rotated.err().unwrap()] {
            let refused = refused.to_string();
            assert!(
                refused.contains("give its own with --key-file"),
                "{refused}"
            );
        }
    }
    assert_eq!(fs::read(&scene.key_file).unwrap(), before);
    scene.assert_whole(&scene.source).await;
}

#[tokio::test]
async fn a_copy_cannot_take_its_originals_key_away() {
    let scene = Scene::new().await;
    let copy = scene.copy();
    let registry = scene.open(&scene.source).unwrap();
    let refused = SqliteRegistry::rotate_key(&copy, &scene.source);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("in use by another vpn-edge"), "{refused}");
    drop(registry);
    // Nobody can tell it from the original, which still opens.
    SqliteRegistry::rotate_key(&copy, &scene.source).unwrap();
    SqliteRegistry::rotate_key(&copy, &scene.source).unwrap();
    scene.assert_whole(&scene.source).await;
}

#[tokio::test]
async fn what_keeps_a_rotation_from_its_end_does_not_keep_the_registry_closed() {
    let scene = Scene::new().await;
    let old = scene.keys().remove(0);
    let (lock, connection) = connect(&scene.database).unwrap();
    let mut keys = unlock(&connection, &scene.source).unwrap();
    keys.renew().unwrap();
    drop((connection, keys, lock));
    // The old key finds no place to go to.
    fs::create_dir(scene.old()).unwrap();
    scene.assert_whole(&scene.source).await;
    assert_eq!(scene.keys().len(), 2);
    // Nor is the database to be written, as on a full disk.
    let by_hand = Connection::open(&scene.database).unwrap();
    let stop = "CREATE TRIGGER stop BEFORE UPDATE ON tenant BEGIN SELECT RAISE(FAIL, 'full'); END";
    by_hand.execute_batch(stop).unwrap();
    drop(by_hand);
    let seals = |keys: &[SealingKey]| {
        keys.iter()
            .position(|key| key.id() == scene.sealed_under()[0])
    };
    assert_eq!(seals(&scene.keys()), Some(0));
    let (lock, connection) = connect(&scene.database).unwrap();
    let mut keys = unlock(&connection, &scene.source).unwrap();
    fs::remove_dir(scene.old()).unwrap();
    keys.renew().unwrap();
    drop((connection, keys, lock));
    scene.assert_whole(&scene.source).await;
    assert_eq!(seals(&scene.keys()), Some(1));
    let by_hand = Connection::open(&scene.database).unwrap();
    by_hand.execute_batch("DROP TRIGGER stop").unwrap();
    drop(by_hand);
    scene.assert_whole(&scene.source).await;
    assert_eq!((seals(&scene.keys()), scene.keys().len()), (Some(0), 1));
    let dropped = keys_in(&scene.old());
    assert_eq!(dropped.len(), 2);
    assert!(dropped.iter().any(|key| key.id() == old.id()));
}

#[tokio::test]
async fn a_given_key_cannot_be_put_in_anothers_place() {
    let scene = Scene::new().await;
    let by_hand = Connection::open(&scene.database).unwrap();
    let other = Keys::generate().unwrap().client.public();
    let swap = "UPDATE tenant SET client_public_key = ?1 WHERE client_public_key NOTNULL";
    let changed = by_hand.execute(swap, [other.as_bytes()]).unwrap();
    assert_eq!(changed, 1);
    drop(by_hand);
    let refused = scene.refused(&scene.source);
    assert!(refused.contains("it was changed"), "{refused}");
}

#[tokio::test]
async fn a_rotation_that_stops_anywhere_ends_with_the_next_start() {
    type Step = fn(&Scene, &mut Connection);
    let begin_it: Step = |scene, connection| {
        unlock(connection, &scene.source).unwrap().renew().unwrap();
    };
    let half: Step = |_, connection| {
        // A transaction that does not come to its end.
        let transaction = begin(connection).unwrap();
        transaction
            .execute(
                "UPDATE tenant SET server_key = x'00' WHERE port NOTNULL",
                [],
            )
            .unwrap();
    };
    let reseal: Step = |scene, connection| {
        let keys = unlock(connection, &scene.source).unwrap();
        keys.reseal(connection).unwrap();
    };
    let scrub_it: Step = |_, connection| scrub(connection).unwrap();
    let write_half: Step = |scene, _| {
        let mut name = scene.key_file.clone().into_os_string();
        name.push(".new");
        fs::write(Path::new(&name), "half a key").unwrap();
    };
    let crashes: [&[Step]; 8] = [
        &[],
        &[write_half],
        &[begin_it],
        &[begin_it, half],
        &[begin_it, reseal],
        &[begin_it, reseal, scrub_it],
        &[begin_it, reseal, scrub_it, write_half],
        &[begin_it, begin_it, write_half],
    ];
    for (n, steps) in crashes.into_iter().enumerate() {
        let scene = Scene::new().await;
        let old = scene.keys().remove(0);
        let (lock, mut connection) = connect(&scene.database).unwrap();
        for step in steps {
            step(&scene, &mut connection);
        }
        drop((connection, lock));
        scene.assert_whole(&scene.source).await;
        let keys = scene.keys();
        assert_eq!(keys.len(), 1, "crash {n}");
        assert_eq!(scene.sealed_under(), [keys[0].id(); 5], "crash {n}");
        assert_eq!(keys[0].id() == old.id(), n < 2, "crash {n}");
        let kept = n >= 2 && keys_in(&scene.old()).iter().any(|key| key.id() == old.id());
        assert_eq!(kept, n >= 2, "crash {n}: nothing is lost");
        // And one after it works as ever.
        scene.rotate().unwrap();
        assert_ne!(scene.keys()[0].id(), keys[0].id());
        scene.assert_whole(&scene.source).await;
    }
}

#[tokio::test]
async fn given_keys_are_rotated_by_giving_another_before_them() {
    let scene = Scene::new().await;
    let old = scene.keys().remove(0);
    let new = SealingKey::generate().unwrap();
    let refused = SqliteRegistry::rotate_key(&scene.database, &only(&old));
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("put a new one before it there"),
        "{refused}"
    );
    let both = KeyRing::new(vec![new.clone(), old.clone()]).unwrap();
    scene.assert_whole(&KeySource::Given(both)).await;
    scene.assert_whole(&only(&new)).await;
    scene.refused(&only(&old));
}

#[tokio::test]
async fn only_a_database_that_is_there_and_not_in_use_is_rotated() {
    let scene = Scene::new().await;
    let registry = scene.open(&scene.source).unwrap();
    let key = scene.keys().remove(0);
    let refused = scene.rotate();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("in use by another vpn-edge"), "{refused}");
    assert_eq!(scene.keys()[0].id(), key.id());
    drop(registry);
    let missing = scene.database.with_extension("missing");
    let refused = SqliteRegistry::rotate_key(&missing, &scene.source);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("name it with --database"), "{refused}");
    assert!(!missing.exists());
}
