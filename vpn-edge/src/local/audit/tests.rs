use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::auth::{Caller, Role};
use crate::domain::{Plan, Tenant};
use crate::local::sqlite::SqliteRegistry;

struct Scene {
    registry: Arc<SqliteRegistry>,
    log: SqliteLog,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("registry.db");
        let ports = "30000-30009".parse().unwrap();
        let registry = Arc::new(SqliteRegistry::open(&database, ports, &[]).unwrap());
        let log = SqliteLog::beside(&database, registry.clone()).unwrap();
        Scene {
            registry,
            log,
            folder,
        }
    }

    fn limited(records: usize, gone: usize) -> Scene {
        let mut scene = Scene::new();
        scene.log = scene.log.with_limits(Limits { records, gone });
        scene
    }

    fn reopen(mut self) -> Scene {
        let database = self.folder.path().join("registry.db");
        let limits = self.log.limits;
        // What was open is closed before it is opened again.
        let other = self.folder.path().join("other.db");
        self.log = SqliteLog::beside(&other, self.registry.clone()).unwrap();
        self.log = SqliteLog::beside(&database, self.registry.clone())
            .unwrap()
            .with_limits(limits);
        self
    }

    /// A tenant, which the registry has if it lives.
    async fn tenant(&self, number: u128, lives: bool) -> Tenant {
        let id = Uuid::from_u128(number);
        let mut tenant = Tenant::new(id, "acme".to_owned(), Plan::Team, Timestamp::now()).unwrap();
        tenant.set_namespace(format!("tenant-{number}")).unwrap();
        if lives {
            tenant = self.registry.create(tenant).await.unwrap();
        }
        tenant
    }

    async fn begin(&self, tenant: &Tenant, action: Action) -> Record {
        let record = Record::begin(&caller(), tenant, action);
        self.log.begin(record.clone()).await.unwrap();
        record
    }

    async fn read(
        &self,
        tenant: Option<&Tenant>,
        limit: usize,
        before: Option<Uuid>,
    ) -> Vec<Record> {
        let tenant = tenant.map(|tenant| tenant.id);
        let query = Query {
            tenant,
            limit,
            before,
        };
        self.log.read(query).await.unwrap()
    }
}

fn caller() -> Caller {
    Caller {
        role: Role::Admin,
        subject: "oidc:alice alice@example.com".to_owned(),
    }
}

#[tokio::test]
async fn records_and_outcomes_survive_a_restart() {
    let scene = Scene::new();
    let tenant = scene.tenant(1, true).await;
    let mut first = scene.begin(&tenant, Action::Enable).await;
    let outcome = Outcome::new(409, Some("tenant is not ready".to_owned()));
    scene
        .log
        .end(tenant.id, first.id, outcome.clone())
        .await
        .unwrap();
    first.outcome = Some(outcome);
    // Whoever began this one died.
    let second = scene.begin(&tenant, Action::Delete).await;
    let scene = scene.reopen();
    assert_eq!(scene.read(None, 10, None).await, [second, first]);
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_overlap() {
    let scene = Scene::new();
    let tenants = [scene.tenant(1, true).await, scene.tenant(2, true).await];
    let mut all = Vec::new();
    for number in 0..10 {
        all.insert(0, scene.begin(&tenants[number % 2], Action::Download).await);
    }
    let first = scene.read(None, 4, None).await;
    // What comes meanwhile moves nothing.
    scene.begin(&tenants[0], Action::Download).await;
    let second = scene.read(None, 4, Some(first[3].id)).await;
    let third = scene.read(None, 4, Some(second[3].id)).await;
    assert_eq!([first, second, third].concat(), all);
    let of_one = scene.read(Some(&tenants[1]), 3, Some(all[2].id)).await;
    assert_eq!(of_one, [&all[4], &all[6], &all[8]].map(Clone::clone));
}

#[tokio::test]
async fn the_oldest_records_of_a_tenant_make_room_for_its_own_alone() {
    let scene = Scene::limited(5, 10);
    let (busy, quiet) = (scene.tenant(1, true).await, scene.tenant(2, true).await);
    let kept = scene.begin(&quiet, Action::Create).await;
    let mut all = Vec::new();
    for _ in 0..20 {
        all.insert(0, scene.begin(&busy, Action::Change).await);
    }
    assert_eq!(scene.read(Some(&busy), 100, None).await, all[..5]);
    assert_eq!(scene.read(Some(&quiet), 100, None).await, [kept]);
    // The outcome of what is no longer kept is no error.
    let outcome = Outcome::new(200, None);
    scene.log.end(busy.id, all[19].id, outcome).await.unwrap();
    assert_eq!(scene.read(Some(&busy), 100, None).await, all[..5]);
}

#[tokio::test]
async fn tries_and_downloads_push_out_no_change() {
    let scene = Scene::limited(4, 10);
    let tenant = scene.tenant(1, true).await;
    let change = scene.begin(&tenant, Action::Enable).await;
    let mut tries = Vec::new();
    for number in 0..9 {
        let action = [Action::Download, Action::Disable][number % 2];
        let record = scene.begin(&tenant, action).await;
        let outcome = Outcome::new([200, 409][number % 2], None);
        scene.log.end(tenant.id, record.id, outcome).await.unwrap();
        tries.insert(0, record.id);
    }
    let kept = scene.read(Some(&tenant), 100, None).await;
    let kept: Vec<Uuid> = kept.iter().map(|record| record.id).collect();
    assert_eq!(kept, [tries[0], tries[1], change.id]);
}

#[tokio::test]
async fn of_tenants_that_are_gone_the_last_are_remembered() {
    let scene = Scene::limited(5, 3);
    let lives = scene.tenant(100, true).await;
    scene.begin(&lives, Action::Create).await;
    let mut gone = Vec::new();
    for number in 0..8 {
        let tenant = scene.tenant(number, false).await;
        scene.begin(&tenant, Action::Create).await;
        gone.push(tenant);
    }
    // Acted on, the oldest of those that are left is the newest.
    scene.begin(&gone[5], Action::Download).await;
    let last = scene.tenant(50, false).await;
    scene.begin(&last, Action::Create).await;
    let records = scene.read(None, 100, None).await;
    let mut tenants: Vec<u128> = records.iter().map(|r| r.tenant.as_u128()).collect();
    tenants.dedup();
    assert_eq!(tenants, [50, 5, 7, 5, 100]);
}

#[tokio::test]
async fn nobody_else_reads_the_file() {
    let scene = Scene::new();
    let tenant = scene.tenant(1, true).await;
    scene.begin(&tenant, Action::Enable).await;
    let mut files = 0;
    for file in std::fs::read_dir(scene.folder.path()).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_string_lossy().contains(".audit") {
            files += 1;
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600, "{file:?}");
        }
    }
    assert!(files >= 1);
}

#[tokio::test]
async fn a_file_that_is_no_log_is_named_with_what_to_do() {
    let scene = Scene::new();
    let database = scene.folder.path().join("bad.db");
    let file = scene.folder.path().join("bad.db.audit");
    std::fs::write(
        &file,
        "this is no database, whatever it is called\n".repeat(10),
    )
    .unwrap();
    let error = SqliteLog::beside(&database, scene.registry.clone());
    let error = error.err().unwrap().to_string();
    let start = format!("cannot open the audit log {}: ", file.display());
    assert!(error.starts_with(&start), "{error}");
    assert!(
        error.ends_with("move it away to start a new one"),
        "{error}"
    );
}
