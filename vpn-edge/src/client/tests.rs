use std::future::IntoFuture as _;

use clap::Parser;

use super::*;
use crate::api::tests::Server;
use crate::api::{AuditList, AuditOutcome, AuditRecord};
use crate::audit::Action;
use crate::domain::GatewayState;

#[derive(Debug, Parser)]
struct Tenant {
    #[command(flatten)]
    args: TenantArgs,
}

#[derive(Debug, Parser)]
struct Tokens {
    #[command(flatten)]
    args: TokenArgs,
}

/// What `vpn-edge tenant` prints, or its error as `main` shows it.
async fn tenant(server: &Server, token: &str, line: &str) -> Result<String, String> {
    tenant_at(token, &format!("{line} --server {}", server.url)).await
}

async fn tenant_at(token: &str, line: &str) -> Result<String, String> {
    let words = ["tenant", "--token", token]
        .into_iter()
        .chain(line.split_whitespace());
    let args = Tenant::try_parse_from(words).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    match execute(args.args, &mut out).await {
        Ok(()) => Ok(String::from_utf8(out).unwrap()),
        Err(error) => Err(format!("{error:#}")),
    }
}

#[derive(Debug, Parser)]
struct Audit {
    #[command(flatten)]
    args: AuditArgs,
}

/// The same of `vpn-edge audit`.
async fn audit(server: &Server, token: &str, line: &str) -> Result<String, String> {
    let words = ["audit", "--server", &server.url, "--token", token]
        .into_iter()
        .chain(line.split_whitespace());
    let args = Audit::try_parse_from(words).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    match audit::execute(args.args, &mut out).await {
        Ok(()) => Ok(String::from_utf8(out).unwrap()),
        Err(error) => Err(format!("{error:#}")),
    }
}

const ID: &str = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";

async fn create(server: &Server) {
    let line = format!(
        "create --id {ID} --organisation acme --plan business --ready --network 10.1.0.0/16"
    );
    tenant(server, &server.admin, &line).await.unwrap();
}

#[tokio::test]
async fn tenants_are_shown_in_tables() {
    let server = Server::start().await;
    create(&server).await;
    let list = tenant(&server, &server.acme, "list").await.unwrap();
    assert_eq!(
        list,
        "\
ID                                    ORGANISATION  PLAN      READY  NAMESPACE        VPN
6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44  acme          business  yes    tenant-6f1c2b1e  disabled
"
    );
    let show = tenant(&server, &server.acme, &format!("show {ID}")).await;
    assert_eq!(
        show.unwrap(),
        "\
id            6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44
organisation  acme
plan          business
ready         yes
namespace     tenant-6f1c2b1e
networks      10.1.0.0/16
vpn           disabled
"
    );
}

#[tokio::test]
async fn json_is_what_the_api_says() {
    let server = Server::start().await;
    create(&server).await;
    let text = tenant(&server, &server.acme, "list -o json").await.unwrap();
    let list: TenantList = serde_json::from_str(&text).unwrap();
    assert_eq!(list.tenants[0].id.to_string(), ID);
    let line = format!("status {ID} -o json");
    let text = tenant(&server, &server.acme, &line).await.unwrap();
    let status: VpnStatus = serde_json::from_str(&text).unwrap();
    assert_eq!(status.state, State::Disabled);
}

#[tokio::test]
async fn a_tenant_is_patched_and_deleted() {
    let server = Server::start().await;
    create(&server).await;
    let admin = &server.admin;
    let line = format!("patch {ID} --plan team --ready false --no-networks");
    let patched = tenant(&server, admin, &line).await.unwrap();
    for part in ["plan          team", "ready         no", "networks      -"] {
        assert!(patched.contains(part), "{patched}");
    }
    let line = format!("patch {ID} --network 10.2.0.0/16 --network 10.3.0.0/16");
    let patched = tenant(&server, admin, &line).await.unwrap();
    assert!(patched.contains("10.2.0.0/16, 10.3.0.0/16\n"), "{patched}");
    assert!(patched.contains("plan          team"), "{patched}");
    let line = format!("delete {ID}");
    assert_eq!(tenant(&server, admin, &line).await, Ok(String::new()));
    let list = tenant(&server, admin, "list").await.unwrap();
    assert_eq!(list.lines().count(), 1, "the header alone: {list}");
}

#[tokio::test]
async fn enable_waits_for_the_outcome() {
    let server = Server::start().await;
    create(&server).await;
    let path = format!("/v1/tenants/{ID}");
    let enable = format!("enable {ID}");
    let gateway = async {
        sleep(Duration::from_millis(300)).await;
        server.observe(&path, GatewayState::Ready).await;
    };
    let (status, ()) = tokio::join!(tenant(&server, &server.acme, &enable), gateway);
    let status = status.unwrap();
    assert!(
        status.starts_with("state              enabled\n"),
        "{status}"
    );
    assert!(
        status.contains("endpoint           vpn.example.org:30000\n"),
        "{status}"
    );
    assert!(
        status.contains("client address     10.55.59.2\n"),
        "{status}"
    );
}

#[tokio::test]
async fn an_enable_that_fails_says_why() {
    let server = Server::start().await;
    create(&server).await;
    let path = format!("/v1/tenants/{ID}");
    let enable = format!("enable {ID}");
    let gateway = async {
        sleep(Duration::from_millis(300)).await;
        let broken = GatewayState::Failed("the port is taken".to_owned());
        server.observe(&path, broken).await;
    };
    let (status, ()) = tokio::join!(tenant(&server, &server.acme, &enable), gateway);
    assert_eq!(
        status.unwrap_err(),
        "the VPN failed: the port is taken; enable it to try again, or disable it"
    );
}

#[tokio::test]
async fn without_waiting_the_state_is_enabling() {
    let server = Server::start().await;
    create(&server).await;
    let acme = &server.acme;
    let status = tenant(&server, acme, &format!("enable {ID} --no-wait")).await;
    assert!(status.unwrap().starts_with("state              enabling\n"));
    server
        .observe(&format!("/v1/tenants/{ID}"), GatewayState::Ready)
        .await;
    let status = tenant(&server, acme, &format!("regenerate {ID} --no-wait")).await;
    assert!(status.unwrap().contains("generation         2\n"));
    server
        .observe(&format!("/v1/tenants/{ID}"), GatewayState::Ready)
        .await;
    let status = tenant(&server, acme, &format!("disable {ID}")).await;
    assert!(status.unwrap().starts_with("state              disabled\n"));
}

#[tokio::test]
async fn a_client_can_bring_its_own_key() {
    let server = Server::start().await;
    create(&server).await;
    let acme = &server.acme;
    let key = crate::wireguard::PrivateKey::generate().unwrap().public();
    let enable = format!("enable {ID} --no-wait --public-key");
    let status = tenant(&server, acme, &format!("{enable} {key}")).await;
    let shown = format!("client public key  {key} (given)\n");
    assert!(status.as_ref().unwrap().contains(&shown), "{status:?}");
    let refused = tenant(&server, acme, &format!("{enable} nonsense")).await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("44 characters of base64"), "{refused}");
}

#[tokio::test]
async fn a_server_that_makes_keys_all_the_same_is_found_out() {
    let server = Server::start().await;
    create(&server).await;
    let made = tenant(
        &server,
        &server.acme,
        &format!("enable {ID} --no-wait -o json"),
    )
    .await;
    let made: serde_json::Value = serde_json::from_str(&made.unwrap()).unwrap();
    // One from before clients had keys of their own: it reads no body.
    let path = format!("/v1/tenants/{ID}/vpn/enable");
    let answer = axum::routing::post(move || async { axum::Json(made) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route(&path, answer);
    tokio::spawn(axum::serve(listener, router).into_future());
    let key = crate::wireguard::PrivateKey::generate().unwrap().public();
    for (more, refused) in [("", false), (&*format!(" --public-key {key}"), true)] {
        let line = format!("enable {ID} --no-wait --server {url}{more}");
        let outcome = tenant_at(&server.acme, &line).await;
        assert_eq!(outcome.is_err(), refused, "{outcome:?}");
        let says = format!("the VPN does not have the key {key}: the server may be older");
        assert!(outcome.err().is_none_or(|error| error.starts_with(&says)));
    }
}

#[tokio::test]
async fn the_configuration_goes_to_a_file_of_its_owner_alone() {
    let server = Server::start().await;
    create(&server).await;
    let acme = &server.acme;
    tenant(&server, acme, &format!("enable {ID} --no-wait"))
        .await
        .unwrap();
    server
        .observe(&format!("/v1/tenants/{ID}"), GatewayState::Ready)
        .await;
    let printed = tenant(&server, acme, &format!("config {ID}"))
        .await
        .unwrap();
    assert!(
        printed.starts_with("[Interface]\nPrivateKey = "),
        "{printed}"
    );

    let file = server.dir.path().join("vpn.conf");
    std::fs::write(&file, "an older and much longer file\n".repeat(100)).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let line = format!("config {ID} --out {}", file.display());
    assert_eq!(tenant(&server, acme, &line).await, Ok(String::new()));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), printed);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let line = format!(
        "config {ID} --out {}/missing/vpn.conf",
        server.dir.path().display()
    );
    let error = tenant(&server, acme, &line).await.unwrap_err();
    assert!(error.starts_with("cannot write "), "{error}");
}

#[tokio::test]
async fn refusals_are_in_the_apis_words_with_what_to_do() {
    let server = Server::start().await;
    create(&server).await;
    let line = format!("disable {ID}");
    assert_eq!(
        tenant(&server, &server.acme, &line).await.unwrap_err(),
        "the API refused (409): VPN is not enabled: enable it first with `vpn-edge tenant enable`"
    );
    assert_eq!(
        tenant(&server, &server.rival, &line).await.unwrap_err(),
        "the API refused (404): tenant not found: \
         `vpn-edge tenant list` shows the tenants that your token may see"
    );
    assert_eq!(
        tenant(&server, "vpe_unknown", &line).await.unwrap_err(),
        "the API refused (401): the token is not known; `vpn-edge token add` creates one"
    );
    let line = format!("delete {ID}");
    assert_eq!(
        tenant(&server, &server.acme, &line).await.unwrap_err(),
        "the API refused (403): admin only"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let mut server = Server::start().await;
    // Nothing listens on the discard port.
    server.url = "http://127.0.0.1:9".to_owned();
    let error = tenant(&server, &server.admin, "list").await.unwrap_err();
    let expected = "cannot reach the API at http://127.0.0.1:9/; is it running there? \
                    name another with --server: ";
    assert!(error.starts_with(expected), "{error}");
}

#[tokio::test]
async fn a_token_comes_from_a_file_and_its_absence_is_explained() {
    let server = Server::start().await;
    let file = server.dir.path().join("token");
    std::fs::write(&file, format!("{}\n", server.acme.as_str())).unwrap();
    assert_eq!(token(None, Some(&file)).unwrap(), server.acme);
    let missing = server.dir.path().join("missing");
    let error = token(None, Some(&missing)).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the token file "), "{error}");
    let error = token(None, None).unwrap_err().to_string();
    assert!(error.starts_with("no token: set VPN_EDGE_TOKEN"), "{error}");
}

#[test]
fn the_token_is_not_in_the_arguments_debug_output() {
    let words = ["tenant", "--token", "vpe_secret", "list"];
    let args = Tenant::try_parse_from(words).unwrap();
    let shown = format!("{args:?}");
    assert!(
        shown.contains("Token(…)") && !shown.contains("secret"),
        "{shown}"
    );
}

#[test]
fn token_add_prints_a_token_that_the_file_then_knows() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    let add = |role: &[&str]| {
        let words = ["token", "add", "--file", file.to_str().unwrap()];
        let args = Tokens::try_parse_from(words.iter().chain(role)).map_err(|e| e.to_string())?;
        let mut out = Vec::new();
        execute_token(args.args, &mut out).map_err(|error| format!("{error:#}"))?;
        Ok::<_, String>(String::from_utf8(out).unwrap())
    };
    let admin = add(&["--admin"]).unwrap();
    let acme = add(&["--organisation", "acme"]).unwrap();
    let tokens = crate::auth::Tokens::load(&file).unwrap();
    let role = |token: &str| Some(tokens.caller(token.trim_end())?.role);
    assert_eq!(role(&admin), Some(auth::Role::Admin));
    let organisation = "acme".to_owned();
    assert_eq!(role(&acme), Some(auth::Role::Member { organisation }));
    assert!(add(&[]).unwrap_err().contains("--admin"));
    assert!(add(&["--admin", "--organisation", "acme"]).is_err());
    assert!(
        add(&["--organisation", "a b"])
            .unwrap_err()
            .contains("is not valid")
    );
}

#[tokio::test]
async fn the_status_shows_the_tunnels_ipv6_beside_ipv4() {
    let server = Server::dual_stack().await;
    let line = format!(
        "create --id {ID} --organisation acme --plan business --ready --network fd00:97:1::/64"
    );
    let created = tenant(&server, &server.admin, &line).await.unwrap();
    assert!(
        created.contains("networks      fd00:97:1::/64\n"),
        "{created}"
    );
    let line = format!("enable --no-wait {ID}");
    let status = tenant(&server, &server.acme, &line).await.unwrap();
    for part in [
        "subnet             10.55.59.0/24, fd78:181c:f4b0::/64\n",
        "client address     10.55.59.2, fd78:181c:f4b0::2\n",
    ] {
        assert!(status.contains(part), "{status}");
    }
}

#[test]
fn the_audit_log_is_shown_in_a_table() {
    let record = |second: i64, caller: &str, admin, action, outcome| AuditRecord {
        id: Uuid::nil(),
        time: jiff::Timestamp::from_millisecond(1_800_000_000_123 + second * 1000).unwrap(),
        tenant: ID.parse().unwrap(),
        organisation: "acme".to_owned(),
        caller: caller.to_owned(),
        admin,
        action,
        outcome,
    };
    let outcome = |status, error: Option<&str>| {
        let error = error.map(str::to_owned);
        Some(AuditOutcome { status, error })
    };
    let alice = "oidc:7f3 alice@example.com";
    let refused = outcome(409, Some("VPN is not enabled"));
    let shown = render::audit(&[
        record(3, "token:0a1b2c3d", true, Action::Delete, None),
        record(2, alice, false, Action::Disable, refused),
        record(1, alice, false, Action::Download, outcome(200, None)),
    ]);
    assert_eq!(
        shown,
        "\
TIME                      TENANT                                ORGANISATION  CALLER                      AS      ACTION    OUTCOME
2027-01-15T08:00:03.123Z  6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44  acme          token:0a1b2c3d              admin   delete    unknown
2027-01-15T08:00:02.123Z  6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44  acme          oidc:7f3 alice@example.com  member  disable   409 VPN is not enabled
2027-01-15T08:00:01.123Z  6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44  acme          oidc:7f3 alice@example.com  member  download  200
"
    );
}

#[tokio::test]
async fn the_audit_log_is_as_long_as_asked_for() {
    let server = Server::start().await;
    create(&server).await;
    let (admin, acme) = (&server.admin, &server.acme);
    tenant(&server, acme, &format!("disable {ID}"))
        .await
        .unwrap_err();
    let shown = audit(&server, admin, "").await.unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(
        lines[1].ends_with("member  disable  409 VPN is not enabled"),
        "{shown}"
    );
    assert!(lines[2].ends_with("admin   create   201"), "{shown}");

    let json = |text: String| serde_json::from_str::<AuditList>(&text).unwrap();
    let newest = json(audit(&server, admin, "--limit 1 -o json").await.unwrap());
    assert_eq!(newest.records.len(), 1);
    assert_eq!(newest.next, Some(newest.records[0].id));
    let line = format!("--tenant {ID} -o json");
    let all = json(audit(&server, admin, &line).await.unwrap());
    assert_eq!((all.records.len(), all.next), (2, None));
    assert_eq!(all.records[0], newest.records[0]);
    let line = format!("--tenant {} --limit 5", Uuid::nil());
    let none = audit(&server, admin, &line).await.unwrap();
    assert_eq!(none.lines().count(), 1, "the header alone: {none}");
    assert_eq!(
        audit(&server, acme, "").await.unwrap_err(),
        "the API refused (403): admin only"
    );
}
