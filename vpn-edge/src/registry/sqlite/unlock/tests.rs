use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tempfile::TempDir;

use super::super::seal::KeyId;
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
            let change: Change =
                Box::new(move |tenant, pool| tenant.enable(pool, Keys::generate_for(given), now));
            let tenant = registry.update(id, change).await.unwrap();
            scene.tenants.push(tenant);
        }
        scene
    }

    fn open(&self, source: &KeySource) -> Result<SqliteRegistry, RegistryError> {
        SqliteRegistry::open_with(&self.database, "30000-30019".parse().unwrap(), source)
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
        self.source.load().unwrap().unwrap().keys().to_vec()
    }

    /// What the private keys are encrypted under.
    fn sealed_under(&self) -> Vec<KeyId> {
        let (_lock, mut connection) = connect(&self.database).unwrap();
        let rows = rows(&begin(&mut connection).unwrap()).unwrap();
        let id = |row: &Stored| sealed_under(row.bytes.as_slice().try_into().unwrap());
        rows.iter().map(id).collect()
    }
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
        "it is encrypted under key {}, which is not at hand",
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
    SqliteRegistry::rotate_key(&scene.database, &scene.source).unwrap();
    let new = scene.keys();
    assert_eq!(new.len(), 1);
    assert_ne!(new[0].id(), old.id());
    assert_eq!(scene.sealed_under(), [new[0].id(); 5]);
    scene.assert_whole(&scene.source).await;
    scene.refused(&only(&old));
}

#[tokio::test]
async fn a_rotation_that_stops_anywhere_ends_with_the_next_start() {
    type Step = fn(&Scene, &mut Connection);
    let begin_it: Step = |scene, _| {
        let ring = scene.source.load().unwrap().unwrap();
        begin_rotation(&scene.source, &ring).unwrap();
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
    let reseal: Step = |scene, connection| drop(unlock(connection, &scene.source).unwrap());
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
        // And one after it works as ever.
        SqliteRegistry::rotate_key(&scene.database, &scene.source).unwrap();
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
    let refused = SqliteRegistry::rotate_key(&scene.database, &scene.source);
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
