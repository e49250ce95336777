//! What is kept of what callers do.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::*;
use crate::audit::{LogError, Outcome, Query, Record};
use crate::local::SqliteLog;
use crate::registry::Registry;

/// A log that can fail, and can be slow.
pub struct Switched {
    log: SqliteLog,
    /// Begins are refused; outcomes are.
    pub begins_fail: AtomicBool,
    pub ends_fail: AtomicBool,
    /// Begins wait while this is true.
    pub held: watch::Sender<bool>,
    /// Begins so far.
    pub begins: watch::Sender<usize>,
}

impl Switched {
    pub fn new(database: &Path, registry: Arc<dyn Registry>) -> Switched {
        Switched {
            log: SqliteLog::beside(database, registry).unwrap(),
            begins_fail: AtomicBool::new(false),
            ends_fail: AtomicBool::new(false),
            held: watch::Sender::new(false),
            begins: watch::Sender::new(0),
        }
    }
}

#[async_trait]
impl Log for Switched {
    async fn begin(&self, record: Record) -> Result<(), LogError> {
        self.begins.send_modify(|begins| *begins += 1);
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        if self.begins_fail.load(Ordering::Relaxed) {
            return Err(LogError::from(crate::registry::RegistryError::Refused(
                "the disk is full".to_owned(),
            )));
        }
        self.log.begin(record).await
    }

    async fn end(&self, tenant: Uuid, id: Uuid, outcome: Outcome) -> Result<(), LogError> {
        if self.ends_fail.load(Ordering::Relaxed) {
            let full = crate::registry::RegistryError::Refused("the disk is full".to_owned());
            return Err(full.into());
        }
        self.log.end(tenant, id, outcome).await
    }

    async fn read(&self, query: Query) -> Result<Vec<Record>, LogError> {
        self.log.read(query).await
    }
}

impl Server {
    /// The log as the admin reads it, newest first.
    async fn audit(&self, query: &str) -> Vec<Value> {
        let (status, text) = self.get(&self.admin, &format!("/v1/audit{query}")).await;
        assert_eq!(status, 200, "{text}");
        value(&text)["records"].as_array().unwrap().clone()
    }

    /// Action, role and outcome of each record, newest first.
    async fn told(&self) -> Vec<(String, bool, Value)> {
        let told = |record: &Value| {
            let action = record["action"].as_str().unwrap().to_owned();
            let admin = record["admin"].as_bool().unwrap();
            (action, admin, record["outcome"].clone())
        };
        self.audit("").await.iter().map(told).collect()
    }
}

fn id(tenant: &str) -> &str {
    tenant.rsplit('/').next().unwrap()
}

fn subject(server: &Server, token: &str) -> String {
    let tokens = Tokens::load(&server.dir.path().join("tokens")).unwrap();
    tokens.caller(token).unwrap().subject
}

fn done(status: u16) -> Value {
    json!({ "status": status, "error": null })
}

fn refused(status: u16, error: &str) -> Value {
    json!({ "status": status, "error": error })
}

const UNRECORDED: &str = "nothing was done because the audit log cannot be written at the moment: \
                          try again, or ask the operator to check vpn-edge's log";

#[tokio::test]
async fn every_action_is_kept_with_who_did_it_and_what_came_of_it() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let post = async |token: &str, action: &str| {
        server
            .post(token, &format!("{tenant}/vpn/{action}"))
            .await
            .0
    };
    let (admin, acme) = (&server.admin, &server.acme);
    assert_eq!(post(acme, "disable").await, 409);
    assert_eq!(post(acme, "enable").await, 202);
    assert_eq!(post(acme, "regenerate").await, 409);
    server.observe(&tenant, GatewayState::Ready).await;
    let config = format!("{tenant}/vpn/config");
    assert_eq!(server.get(acme, &config).await.0, 200);
    assert_eq!(post(admin, "regenerate").await, 202);
    server.observe(&tenant, GatewayState::Ready).await;
    assert_eq!(post(admin, "disable").await, 200);
    assert_eq!(server.get(admin, &config).await.0, 409);
    let networks = json!({ "networks": ["0.0.0.0/0"] });
    assert_eq!(
        server.send(admin, Method::PATCH, &tenant, networks).await.0,
        422
    );
    let plan = json!({ "plan": "team" });
    assert_eq!(
        server.send(admin, Method::PATCH, &tenant, plan).await.0,
        200
    );
    assert_eq!(post(acme, "enable").await, 403);
    let delete = server.request(admin, Method::DELETE, &tenant);
    assert_eq!(answer(delete).await.0, 204);

    let everything =
        "network 0.0.0.0/0 covers all addresses: list the ranges that the tenant may reach";
    let expected = [
        ("create", true, done(201)),
        ("disable", false, refused(409, "VPN is not enabled")),
        ("enable", false, done(202)),
        (
            "regenerate",
            false,
            refused(409, "VPN is currently being enabled"),
        ),
        ("download", false, done(200)),
        ("regenerate", true, done(202)),
        ("disable", true, done(200)),
        ("download", true, refused(409, "VPN is not enabled")),
        ("change", true, refused(422, everything)),
        ("change", true, done(200)),
        ("enable", false, refused(403, "vpn_not_available")),
        ("delete", true, done(204)),
    ];
    let mut told = server.told().await;
    told.reverse();
    let expected = expected.map(|(action, admin, outcome)| (action.to_owned(), admin, outcome));
    assert_eq!(told, expected);
    // The tenant is gone, and all of its records are there, and complete.
    let records = server.audit(&format!("?tenant={}", id(&tenant))).await;
    assert_eq!(records.len(), expected.len());
    for record in &records {
        let token = if record["admin"] == true { admin } else { acme };
        assert_eq!(record["caller"], subject(&server, token).as_str());
        assert_eq!(record["tenant"], id(&tenant));
        assert_eq!(record["organisation"], "acme");
    }
    let times: Vec<jiff::Timestamp> = records
        .iter()
        .map(|record| record["time"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(
        times.is_sorted_by(|newer, older| newer >= older),
        "{times:?}"
    );
}

#[tokio::test]
async fn no_record_has_a_secret() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let (_, config) = server
        .get(&server.acme, &format!("{tenant}/vpn/config"))
        .await;
    let key = config
        .lines()
        .find_map(|line| line.strip_prefix("PrivateKey = "))
        .unwrap();
    let (_, log) = server.get(&server.admin, "/v1/audit").await;
    assert!(log.contains("download"), "{log}");
    for secret in [key, &server.admin, &server.acme] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn a_members_try_at_what_is_the_admins_is_kept_as_refused() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let acme = &server.acme;
    let patch = server.request(acme, Method::PATCH, &tenant).body("{");
    assert_eq!(answer(patch).await.0, 403);
    let delete = server.request(acme, Method::DELETE, &tenant);
    assert_eq!(answer(delete).await.0, 403);
    let expected = [
        ("delete".to_owned(), false, refused(403, "admin only")),
        ("change".to_owned(), false, refused(403, "admin only")),
        ("create".to_owned(), true, done(201)),
    ];
    assert_eq!(server.told().await, expected);
}

#[tokio::test]
async fn strangers_and_made_up_tenants_leave_no_record() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let unknown = format!("/v1/tenants/{}", Uuid::new_v4());
    let everything = |tenant: &str| {
        vec![
            (Method::PATCH, tenant.to_owned()),
            (Method::DELETE, tenant.to_owned()),
            (Method::POST, format!("{tenant}/vpn/enable")),
            (Method::POST, format!("{tenant}/vpn/disable")),
            (Method::POST, format!("{tenant}/vpn/regenerate")),
            (Method::GET, format!("{tenant}/vpn/config")),
        ]
    };
    for (method, path) in everything(&tenant) {
        for token in [server.rival.as_str(), "vpe_unknown"] {
            let got = answer(server.request(token, method.clone(), &path)).await.0;
            assert!(matches!(got, 401 | 404), "{method} {path}: {got}");
        }
    }
    for (method, path) in everything(&unknown) {
        let got = answer(server.request(&server.admin, method.clone(), &path)).await;
        assert_eq!(got.0, 404, "{method} {path}");
    }
    let create = json!({ "id": id(&unknown), "organisation": "acme", "plan": "team" });
    let got = server
        .send(&server.acme, Method::POST, "/v1/tenants", create)
        .await;
    assert_eq!(got.0, 403);
    // Nor do looks, and what cannot be read.
    assert_eq!(
        server.get(&server.acme, &format!("{tenant}/vpn")).await.0,
        200
    );
    let nonsense = server
        .request(&server.admin, Method::PATCH, &tenant)
        .body("{");
    assert_ne!(answer(nonsense).await.0, 200);
    assert_eq!(
        server.told().await,
        [("create".to_owned(), true, done(201))]
    );
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let server = Server::start().await;
    let idle = server.tenant("acme", "business", true).await;
    let active = server.enabled().await;
    let before = server.registry.list().await.unwrap();
    let log = server.audit("").await;
    server.audit.begins_fail.store(true, Ordering::Relaxed);
    let create = json!({ "organisation": "acme", "plan": "team" });
    let plan = json!({ "plan": "team" });
    let nothing = Value::Null;
    for (method, path, body) in [
        (Method::POST, "/v1/tenants".to_owned(), &create),
        (Method::PATCH, idle.clone(), &plan),
        (Method::DELETE, idle.clone(), &nothing),
        (Method::POST, format!("{idle}/vpn/enable"), &nothing),
        (Method::POST, format!("{active}/vpn/disable"), &nothing),
        (Method::POST, format!("{active}/vpn/regenerate"), &nothing),
        (Method::GET, format!("{active}/vpn/config"), &nothing),
    ] {
        let mut request = server.request(&server.admin, method.clone(), &path);
        if !body.is_null() {
            request = request.json(body);
        }
        assert_eq!(
            answer(request).await,
            (503, error(UNRECORDED)),
            "{method} {path}"
        );
    }
    assert_eq!(server.registry.list().await.unwrap(), before);
    // To look asks for no record.
    assert_eq!(
        server.get(&server.acme, &format!("{idle}/vpn")).await.0,
        200
    );
    server.audit.begins_fail.store(false, Ordering::Relaxed);
    assert_eq!(server.audit("").await, log);
    let enable = format!("{idle}/vpn/enable");
    assert_eq!(server.post(&server.acme, &enable).await.0, 202);
}

#[tokio::test]
async fn an_outcome_that_cannot_be_recorded_is_unknown_and_the_answer_as_it_was() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    server.audit.ends_fail.store(true, Ordering::Relaxed);
    let enable = format!("{tenant}/vpn/enable");
    assert_eq!(server.post(&server.acme, &enable).await.0, 202);
    let told = server.told().await;
    assert_eq!(told[0], ("enable".to_owned(), false, Value::Null));
}

/// Once the log has so many records with outcomes.
async fn settled(server: &Server, records: usize) -> Vec<(String, bool, Value)> {
    loop {
        let told = server.told().await;
        if told.len() == records && told.iter().all(|(.., outcome)| !outcome.is_null()) {
            return told;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_action_goes_on_to_its_end_when_the_client_hangs_up() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    server.audit.held.send_replace(true);
    let mut begins = server.audit.begins.subscribe();
    let enable = server.request(&server.acme, Method::POST, &format!("{tenant}/vpn/enable"));
    let hung_up = tokio::spawn(enable.send());
    begins.wait_for(|begins| *begins == 2).await.unwrap();
    hung_up.abort();
    assert!(hung_up.await.unwrap_err().is_cancelled());
    // The server has seen it by the time it answers others on new connections.
    let other = reqwest::Client::new().get(format!("{}{tenant}", server.url));
    assert_eq!(answer(other.bearer_auth(server.acme.as_str())).await.0, 200);
    server.audit.held.send_replace(false);
    let told = settled(&server, 2).await;
    assert_eq!(told[0], ("enable".to_owned(), false, done(202)));
    let (_, status) = server.get(&server.acme, &format!("{tenant}/vpn")).await;
    assert_eq!(value(&status)["state"], "enabling");
}

#[tokio::test]
async fn an_action_goes_on_to_its_end_after_the_requests_deadline() {
    let server = Server::with("30000-30099", Duration::from_millis(300)).await;
    let tenant = server.tenant("acme", "business", true).await;
    server.audit.held.send_replace(true);
    let late = server
        .post(&server.acme, &format!("{tenant}/vpn/enable"))
        .await;
    assert_eq!(late.0, 408);
    server.audit.held.send_replace(false);
    let told = settled(&server, 2).await;
    assert_eq!(told[0], ("enable".to_owned(), false, done(202)));
}

#[tokio::test]
async fn the_log_is_read_in_pages() {
    let server = Server::start().await;
    let tenants = [
        server.tenant("acme", "business", true).await,
        server.tenant("rival", "business", true).await,
    ];
    for _ in 0..3 {
        for tenant in &tenants {
            server
                .post(&server.admin, &format!("{tenant}/vpn/disable"))
                .await;
        }
    }
    let all = server.audit("").await;
    assert_eq!(all.len(), 8);
    let (mut read, mut query) = (Vec::new(), "?limit=3".to_owned());
    let mut pages = 0;
    loop {
        let (_, text) = server
            .get(&server.admin, &format!("/v1/audit{query}"))
            .await;
        let page = value(&text);
        read.extend(page["records"].as_array().unwrap().clone());
        pages += 1;
        let Some(next) = page["next"].as_str() else {
            break;
        };
        query = format!("?limit=3&before={next}");
    }
    assert_eq!((read, pages), (all.clone(), 3));
    let of_one = server
        .audit(&format!("?limit=2&tenant={}", id(&tenants[0])))
        .await;
    assert_eq!(of_one, [all[1].clone(), all[3].clone()]);
    let of_none = server.audit(&format!("?tenant={}", Uuid::new_v4())).await;
    assert!(of_none.is_empty(), "{of_none:?}");
}

#[tokio::test]
async fn the_log_is_the_admins_and_a_bad_query_is_answered_with_what_to_do() {
    let server = Server::start().await;
    let forbidden = (403, error("admin only"));
    assert_eq!(server.get(&server.acme, "/v1/audit").await, forbidden);
    assert_eq!(
        server.get(&server.acme, "/v1/audit?limit=x").await,
        forbidden
    );
    assert_eq!(server.get("vpe_unknown", "/v1/audit").await.0, 401);
    let limit = "limit is not a number from 1 to 1000";
    let tenant = "tenant is not a UUID: correct it, or leave it out";
    let before = "before is not a record's id: use `next` of the previous answer";
    for (query, words) in [
        ("limit=0", limit),
        ("limit=1001", limit),
        ("limit=-1", limit),
        ("limit=", limit),
        ("tenant=acme", tenant),
        ("tenant=6f1c2b1e5f0e4d639d510c8f2a7b3e44", tenant),
        ("before=1", before),
        ("limit=1&limit=2", "limit is given twice: leave one out"),
        (
            "from=1",
            "unknown parameter \"from\": use tenant, limit or before",
        ),
    ] {
        let got = server
            .get(&server.admin, &format!("/v1/audit?{query}"))
            .await;
        assert_eq!(got, (400, error(words)), "{query}");
    }
    for query in ["", "?", "?limit=1", "?limit=1000"] {
        assert!(server.audit(query).await.is_empty(), "{query}");
    }
}
