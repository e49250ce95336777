use std::collections::BTreeSet;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::domain::{GatewayState, Observed, Plan, State, VpnError};
use crate::wireguard::{ClientKey, Keys, PrivateKey};

fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

fn open(path: &Path) -> SqliteRegistry {
    SqliteRegistry::open(path, range("30000-30019"), &[]).unwrap()
}

fn open_error(path: &Path) -> String {
    match SqliteRegistry::open(path, range("30000-30019"), &[]) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

fn scratch() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    (dir, path)
}

fn now() -> Timestamp {
    Timestamp::now()
}

fn new_tenant(n: u128) -> Tenant {
    // The namespace is made from the id's first digits.
    let id = Uuid::from_u128(n << 96);
    let mut tenant = Tenant::new(id, "acme".to_owned(), Plan::Business, now()).unwrap();
    tenant.set_ready(true);
    tenant
        .set_networks(vec!["10.244.0.0/16".parse().unwrap()])
        .unwrap();
    tenant
}

async fn create(registry: &SqliteRegistry, n: u128) -> Uuid {
    registry.create(new_tenant(n)).await.unwrap().id
}

fn enable() -> Change {
    Box::new(|tenant, pool| tenant.enable(pool, &[], Keys::generate(), now()))
}

fn disable() -> Change {
    Box::new(|tenant, pool| tenant.disable(pool, now()))
}

fn serve() -> Change {
    let observed = Observed {
        gateway: GatewayState::Ready,
        steerable: true,
    };
    Box::new(move |tenant, _| {
        tenant.observe(&observed, now());
        Ok(())
    })
}

async fn enabled(registry: &SqliteRegistry, n: u128) -> Tenant {
    let id = create(registry, n).await;
    registry.update(id, enable()).await.unwrap();
    registry.update(id, serve()).await.unwrap()
}

fn port(tenant: &Tenant) -> u16 {
    tenant.vpn.allocation.as_ref().unwrap().port
}

/// Whether any file of the directory has these bytes.
fn on_disk(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[tokio::test]
async fn a_tenant_is_stored_with_all_it_has() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    let tenant = enabled(&registry, 7).await;
    assert_eq!(registry.get(tenant.id).await.unwrap(), Some(tenant.clone()));
    let plain = registry.create(new_tenant(3)).await.unwrap();
    assert_eq!(
        registry.list().await.unwrap(),
        [plain, tenant].map(Arc::new),
        "by id"
    );
    assert_eq!(registry.get(Uuid::nil()).await.unwrap(), None);
}

#[test]
fn a_missing_folder_is_made_and_one_that_cannot_be_is_named() {
    let (dir, path) = scratch();
    drop(open(&dir.path().join("new/folder/vpn-edge.db")));
    drop(open(&path));
    let error = open_error(&path.join("below/a/file.db"));
    assert!(error.contains("cannot make"), "{error}");
}

#[tokio::test]
async fn reopening_keeps_tenants_ports_and_the_order_of_release() {
    let (_dir, path) = scratch();
    let three = range("30000-30002");
    let registry = SqliteRegistry::open(&path, three, &[]).unwrap();
    let mut tenants = Vec::new();
    for n in 1..=3 {
        tenants.push(enabled(&registry, n).await);
    }
    registry.update(tenants[2].id, disable()).await.unwrap();
    registry.update(tenants[0].id, disable()).await.unwrap();
    let before = registry.list().await.unwrap();
    drop(registry);

    let registry = SqliteRegistry::open(&path, three, &[]).unwrap();
    assert_eq!(registry.list().await.unwrap(), before);
    let first = registry.update(tenants[0].id, enable()).await.unwrap();
    assert_eq!(port(&first), 30002, "released longest ago");
    let third = registry.update(tenants[2].id, enable()).await.unwrap();
    assert_eq!(port(&third), 30000);
}

#[tokio::test]
async fn an_id_or_a_namespace_is_used_once() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    let id = create(&registry, 1).await;
    let error = registry.create(new_tenant(1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("id {id} is already used by another tenant")
    );
    let mut other = new_tenant(2);
    other.set_namespace("tenant-00000001".to_owned()).unwrap();
    let error = registry.create(other).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "namespace tenant-00000001 is already used by another tenant"
    );
    assert_eq!(registry.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn twenty_enables_at_once_get_twenty_ports() {
    let (_dir, path) = scratch();
    let registry = Arc::new(open(&path));
    let mut ids = Vec::new();
    for n in 1..=20 {
        ids.push(create(&registry, n).await);
    }
    let tasks: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let registry = Arc::clone(&registry);
            tokio::spawn(async move { port(&registry.update(id, enable()).await.unwrap()) })
        })
        .collect();
    let mut ports = BTreeSet::new();
    for task in tasks {
        ports.insert(task.await.unwrap());
    }
    assert_eq!(ports, (30000..=30019).collect());
}

#[tokio::test]
async fn a_dry_pool_refuses_and_recovers_with_the_port_that_was_freed() {
    let (_dir, path) = scratch();
    let registry = SqliteRegistry::open(&path, range("30000-30001"), &[]).unwrap();
    let first = enabled(&registry, 1).await;
    enabled(&registry, 2).await;
    let third = create(&registry, 3).await;
    let before = registry.get(third).await.unwrap().unwrap();
    let refused = registry.update(third, enable()).await.unwrap_err();
    assert!(matches!(
        refused,
        UpdateError::Refused(VpnError::NoPortsAvailable)
    ));
    assert_eq!(registry.get(third).await.unwrap().unwrap(), before);
    registry.update(first.id, disable()).await.unwrap();
    let third = registry.update(third, enable()).await.unwrap();
    assert_eq!(port(&third), port(&first));
}

#[tokio::test]
async fn only_what_changed_is_stored_and_announced() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    let changes = registry.changes();
    let count = || *changes.borrow();
    let tenant = registry.create(new_tenant(1)).await.unwrap();
    assert_eq!((count(), tenant.version), (1, 1));
    let same = registry.update(tenant.id, Box::new(|_, _| Ok(()))).await;
    assert_eq!(same.unwrap(), tenant);
    let refused = registry.update(tenant.id, disable()).await;
    assert!(matches!(
        refused,
        Err(UpdateError::Refused(VpnError::NotEnabled))
    ));
    assert_eq!(count(), 1);
    let tenant = registry.update(tenant.id, enable()).await.unwrap();
    assert_eq!((count(), tenant.version), (2, 2));
    assert!(registry.delete(tenant.id).await.unwrap());
    assert_eq!(count(), 3);
    assert!(!registry.delete(tenant.id).await.unwrap());
    assert_eq!(count(), 3);
    let gone = registry.update(tenant.id, enable()).await;
    assert!(matches!(gone, Err(UpdateError::NotFound)));
}

#[tokio::test]
async fn a_change_that_panics_leaves_everything_as_it_was() {
    let (_dir, path) = scratch();
    let registry = Arc::new(open(&path));
    let id = create(&registry, 1).await;
    let before = registry.get(id).await.unwrap();
    let panicking = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move {
            let change: Change = Box::new(|tenant, pool| {
                tenant.enable(pool, &[], Keys::generate(), now())?;
                panic!("in the middle")
            });
            registry.update(id, change).await
        }
    });
    assert!(panicking.await.unwrap_err().is_panic());
    assert_eq!(registry.get(id).await.unwrap(), before);
    let tenant = registry.update(id, enable()).await.unwrap();
    assert_eq!(port(&tenant), 30000);
}

#[tokio::test]
async fn a_tenant_that_comes_back_goes_on_with_its_generation() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    let old = enabled(&registry, 1).await;
    assert_eq!(old.vpn.generation, 1);
    registry.delete(old.id).await.unwrap();
    assert_eq!(create(&registry, 1).await, old.id);
    let new = registry.update(old.id, enable()).await.unwrap();
    assert_eq!(new.vpn.generation, 2);
    assert_ne!(port(&new), port(&old), "the old port is reused last");
}

/// A tenant's private keys as they are stored.
fn sealed(registry: &SqliteRegistry, id: Uuid) -> [Vec<u8>; 2] {
    let store = registry.store.lock().unwrap();
    let select = "SELECT server_key, client_key FROM tenant WHERE id = ?1";
    let row = |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?]);
    let found = store.connection.query_row(select, [id.to_string()], row);
    found.unwrap()
}

#[tokio::test]
async fn removed_keys_are_in_no_file() {
    const REMOVED: usize = 60;
    let (dir, path) = scratch();
    let registry = SqliteRegistry::open(&path, range("30000-30299"), &[]).unwrap();
    // Enough tenants, of sizes that change, for pages to split and rows to move.
    let resize = |n: usize| -> Change {
        let networks: Vec<_> = (0..n as u32 * 37 % 65)
            .map(|i| Ipv4Net::new((0x0a00_0000 + (i << 8)).into(), 24).unwrap())
            .map(IpNet::V4)
            .collect();
        Box::new(move |tenant, _| {
            tenant.set_networks(networks.clone()).unwrap();
            Ok(())
        })
    };
    let mut tenants: Vec<Tenant> = Vec::new();
    for n in 0..150usize {
        let id = create(&registry, (n as u128 * 7919) % 1000 + 1).await;
        tenants.push(registry.update(id, enable()).await.unwrap());
        registry
            .update(tenants[n * 31 % tenants.len()].id, resize(n))
            .await
            .unwrap();
    }
    for tenant in &tenants {
        let keys = &tenant.vpn.allocation.as_ref().unwrap().keys;
        let ClientKey::Made(client) = &keys.client else {
            panic!("nobody gave a key")
        };
        for key in [&keys.server, client] {
            assert!(!on_disk(dir.path(), key.as_bytes()), "never in the clear");
        }
    }
    let first: Vec<_> = tenants.iter().map(|t| sealed(&registry, t.id)).collect();
    let regenerate: fn() -> Change =
        || Box::new(|tenant, _| tenant.regenerate(Keys::generate().unwrap(), now()));
    let downgrade: fn() -> Change = || {
        Box::new(|tenant, pool| {
            tenant.set_plan(Plan::Team, pool, now());
            Ok(())
        })
    };
    for (n, tenant) in tenants.iter().enumerate().take(REMOVED) {
        registry
            .update(tenants[n + 50].id, resize(n))
            .await
            .unwrap();
        registry.update(tenant.id, serve()).await.unwrap();
        let last = sealed(&registry, tenant.id);
        assert!(last.iter().all(|sealed| on_disk(dir.path(), sealed)));
        match n % 4 {
            0 => drop(registry.update(tenant.id, disable()).await.unwrap()),
            1 => drop(registry.update(tenant.id, regenerate()).await.unwrap()),
            2 => drop(registry.update(tenant.id, downgrade()).await.unwrap()),
            _ => assert!(registry.delete(tenant.id).await.unwrap()),
        }
        for sealed in first[n].iter().chain(&last) {
            assert!(!on_disk(dir.path(), sealed), "tenant {n}");
        }
    }
    let kept = sealed(&registry, tenants[REMOVED].id);
    assert!(on_disk(dir.path(), &kept[0]));
}

#[tokio::test]
async fn a_second_process_is_refused_until_the_first_has_closed_the_file() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    assert_eq!(
        open_error(&path),
        format!(
            "cannot open the registry: {}: it is in use by another vpn-edge; \
             stop that one first, or name another file",
            path.display()
        )
    );
    drop(registry);
    open(&path);
}

#[tokio::test]
async fn a_row_deleted_by_hand_while_closed_frees_its_port() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    let first = enabled(&registry, 1).await;
    let second = enabled(&registry, 2).await;
    drop(registry);
    let by_hand = Connection::open(&path).unwrap();
    by_hand
        .execute("DELETE FROM tenant WHERE id = ?1", [first.id.to_string()])
        .unwrap();
    drop(by_hand);
    let registry = open(&path);
    assert_eq!(registry.list().await.unwrap(), [Arc::new(second)]);
    assert_eq!(port(&enabled(&registry, 3).await), port(&first));
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    let (dir, path) = scratch();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let registry = open(&path);
    enabled(&registry, 1).await;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        names.push(entry.file_name().into_string().unwrap());
        assert_eq!(mode & 0o777, 0o600, "{names:?}");
    }
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "registry.db",
            "registry.db-wal",
            "registry.db.key",
            "registry.db.lock"
        ]
    );
}

#[test]
fn a_newer_schema_is_refused() {
    let (_dir, path) = scratch();
    drop(open(&path));
    let by_hand = Connection::open(&path).unwrap();
    by_hand.pragma_update(None, "user_version", 99).unwrap();
    drop(by_hand);
    assert_eq!(
        open_error(&path),
        format!(
            "cannot open the registry: {}: it has schema 99 and this vpn-edge knows \
             schemas up to 3; use the newer vpn-edge",
            path.display()
        )
    );
}

#[test]
fn a_file_of_something_else_is_refused_and_left_alone() {
    let (_dir, path) = scratch();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(other);
    assert!(open_error(&path).ends_with("it is a database of another program; name another file"));

    std::fs::write(
        &path,
        "certainly no database, but long enough to have a header",
    )
    .unwrap();
    assert!(open_error(&path).ends_with("file is not a database"));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("certainly no database"));
}

#[test]
fn the_database_itself_refuses_what_must_not_be() {
    let (_dir, path) = scratch();
    drop(open(&path));
    let by_hand = Connection::open(&path).unwrap();
    let insert = |id: u128, state: &str, port: Option<u16>| {
        let key = port.map(|_| [1u8; 32]);
        by_hand.execute(
            "INSERT INTO tenant (id, organisation, plan, ready, namespace, networks, state,
                 generation, since, port, server_key, client_key, created_at, version)
             VALUES (?1, 'acme', 'business', 1, ?1, '[]', ?2, 1, 't', ?3, ?4, ?4, ?5, 1)",
            (
                Uuid::from_u128(id).to_string(),
                state,
                port,
                key,
                port.map(|_| "t"),
            ),
        )
    };
    insert(1, "enabled", Some(30000)).unwrap();
    insert(2, "enabled", Some(30000)).expect_err("a port held twice");
    insert(3, "disabled", Some(30001)).expect_err("keys while disabled");
    by_hand
        .execute("UPDATE tenant SET client_key = NULL", [])
        .expect_err("neither a key that was made nor one that was given");
    by_hand
        .execute("UPDATE tenant SET client_public_key = client_key", [])
        .expect_err("both");
    insert(4, "enabled", None).expect_err("enabled without a port");
    insert(5, "paused", None).expect_err("an unknown state");
    insert(6, "disabled", None).unwrap();
}

#[tokio::test]
async fn a_key_that_was_given_is_kept_and_no_private_one_beside_it() {
    let (_dir, path) = scratch();
    let given = PrivateKey::generate().unwrap().public();
    let stored = {
        let registry = open(&path);
        let id = create(&registry, 1).await;
        let change: Change = Box::new(move |tenant, pool| {
            tenant.enable(pool, &[], Keys::generate_for(Some(given)), now())
        });
        registry.update(id, change).await.unwrap()
    };
    assert_eq!(open(&path).get(stored.id).await.unwrap(), Some(stored));
    let private: Option<Vec<u8>> = Connection::open(&path)
        .unwrap()
        .query_row("SELECT client_key FROM tenant", [], |row| row.get(0))
        .unwrap();
    assert_eq!(private, None);
}

#[tokio::test]
async fn what_the_first_schema_held_is_kept() {
    let (dir, path) = scratch();
    let id = Uuid::from_u128(1);
    let old = Connection::open(&path).unwrap();
    old.execute_batch(row::MIGRATIONS[0]).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    old.execute(
        "INSERT INTO tenant VALUES (?1, 'acme', 'business', 1, 'acme-1', '[\"10.1.0.0/16\"]',
         'enabled', 7, ?2, NULL, 30003, ?3, ?4, ?2, 9)",
        (id.to_string(), "2026-11-21T12:00:00Z", [1u8; 32], [2u8; 32]),
    )
    .unwrap();
    old.execute_batch("INSERT INTO released (port) VALUES (30001)")
        .unwrap();
    drop(old);
    assert!(on_disk(dir.path(), &[1; 32]));
    let registry = open(&path);
    assert!(!on_disk(dir.path(), &[1; 32]) && !on_disk(dir.path(), &[2; 32]));
    let tenant = registry.get(id).await.unwrap().unwrap();
    let allocation = tenant.vpn.allocation.clone().unwrap();
    assert_eq!(
        (tenant.vpn.state, tenant.vpn.generation),
        (State::Enabled, 7)
    );
    assert_eq!((tenant.version, allocation.port), (9, 30003));
    assert_eq!(allocation.keys.server, PrivateKey::from_bytes([1; 32]));
    let client = ClientKey::Made(PrivateKey::from_bytes([2; 32]));
    assert_eq!(allocation.keys.client, client);
    let next = enabled(&registry, 2).await;
    assert_eq!(port(&next), 30000, "neither held nor released lately");
}

#[tokio::test]
async fn a_subnet_that_was_given_out_is_kept_when_other_ranges_are_reserved() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    let tenant = enabled(&registry, 1).await;
    drop(registry);
    let subnet = |tenant: &Tenant| tenant.vpn.allocation.as_ref().unwrap().subnet;
    let given = subnet(&tenant);
    let reserved = [IpNet::from(given)];
    let open = || SqliteRegistry::open(&path, range("30000-30019"), &reserved).unwrap();
    let stored = async || open().get(tenant.id).await.unwrap().unwrap();
    assert_eq!(stored().await, tenant);

    // As a build left it that stored none.
    let by_hand = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    by_hand("UPDATE tenant SET subnet = NULL");
    let worked_out = subnet(&stored().await);
    assert_ne!(worked_out, given, "clear of what is reserved now");
    by_hand(&format!("UPDATE tenant SET subnet = '{given}'"));
    assert_eq!(stored().await, tenant);
    // A subnet is worked out once.
    by_hand("UPDATE tenant SET subnet = NULL");
    drop(open());
    let none = SqliteRegistry::open(&path, range("30000-30019"), &[]).unwrap();
    let again = none.get(tenant.id).await.unwrap().unwrap();
    assert_eq!(subnet(&again), worked_out);
}

#[tokio::test]
async fn without_a_subnet_to_give_a_database_of_an_earlier_build_stays_shut() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    enabled(&registry, 1).await;
    drop(registry);
    let by_hand = Connection::open(&path).unwrap();
    by_hand
        .execute_batch("UPDATE tenant SET subnet = NULL")
        .unwrap();
    drop(by_hand);
    let all = ["10.0.0.0/8".parse().unwrap()];
    let error = SqliteRegistry::open(&path, range("30000-30019"), &all);
    let error = error.err().expect("it opened").to_string();
    assert!(error.contains("reserve less of 10.0.0.0/8"), "{error}");
}

#[tokio::test]
async fn keys_that_may_be_in_free_pages_unencrypted_stop_the_opening() {
    let (dir, path) = scratch();
    let registry = open(&path);
    let stored = enabled(&registry, 1).await;
    drop(registry);
    let by_hand = |sql: &str| {
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    let plain = |hex: &str| {
        by_hand(&format!(
            "UPDATE tenant SET server_key = x'{hex}', client_key = x'{hex}';
             UPDATE sealing SET state = 'plain'"
        ));
    };
    // No index can be made that needs a function which there is not, so that the
    // file cannot be rewritten.
    let stuck = "CREATE INDEX stuck ON released (abs(port));
                 PRAGMA writable_schema = ON;
                 UPDATE sqlite_schema SET sql = replace(sql, 'abs', 'none') WHERE name = 'stuck'";
    plain(&"01".repeat(32));
    by_hand(stuck);
    for _ in 0..2 {
        let error = open_error(&path);
        assert!(error.contains("no such function: none"), "{error}");
        assert!(
            error.ends_with("free disk space and start again"),
            "{error}"
        );
    }
    by_hand("DROP INDEX stuck");
    let registry = open(&path);
    assert!(!on_disk(dir.path(), &[1; 32]));
    let tenant = registry.get(stored.id).await.unwrap().unwrap();
    let keys = tenant.vpn.allocation.unwrap().keys;
    assert_eq!(keys.server, PrivateKey::from_bytes([1; 32]));
    drop(registry);
    // What is encrypted may wait.
    by_hand(stuck);
    drop(open(&path));
}

#[tokio::test]
async fn a_row_that_cannot_be_read_stops_the_opening() {
    let (_dir, path) = scratch();
    let registry = open(&path);
    create(&registry, 1).await;
    drop(registry);
    let by_hand = Connection::open(&path).unwrap();
    by_hand
        .execute("UPDATE tenant SET since = 'yesterday'", [])
        .unwrap();
    drop(by_hand);
    let error = open_error(&path);
    assert!(error.contains("registry.db: Conversion error"), "{error}");
}

#[tokio::test]
async fn networks_of_both_versions_are_kept_as_text_like_ever() {
    let (_dir, path) = scratch();
    let networks: Vec<IpNet> = ["10.97.1.0/24", "fd00:97:1::/64"]
        .map(|network| network.parse().unwrap())
        .into();
    let id = {
        let registry = open(&path);
        let id = create(&registry, 1).await;
        let networks = networks.clone();
        let change: Change = Box::new(move |tenant, _| {
            tenant.set_networks(networks.clone()).unwrap();
            Ok(())
        });
        registry.update(id, change).await.unwrap();
        id
    };
    let text: String = Connection::open(&path)
        .unwrap()
        .query_row("SELECT networks FROM tenant", [], |row| row.get(0))
        .unwrap();
    assert_eq!(text, r#"["10.97.1.0/24","fd00:97:1::/64"]"#);
    let tenant = open(&path).get(id).await.unwrap().unwrap();
    assert_eq!(tenant.networks, networks);
}
