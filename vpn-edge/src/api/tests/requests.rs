//! Tenants' bodies, and what is wrong with a request.

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;
use crate::domain::Tenant;
use crate::registry::{Change, RegistryError, UpdateError};

#[tokio::test]
async fn a_tenant_is_created_shown_changed_and_deleted() {
    let server = Server::start().await;
    let id = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";
    let path = format!("/v1/tenants/{id}");
    let create = server
        .request(&server.admin, Method::POST, "/v1/tenants")
        .json(&json!({
            "id": id, "organisation": "acme", "plan": "business", "ready": true,
            "namespace": "kovra-abcd1234", "networks": ["10.244.0.0/16"],
        }));
    let response = create.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(response.headers()["location"], path.as_str());
    let created = response.text().await.unwrap();
    assert_eq!(
        created,
        "{\"id\":\"6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44\",\"organisation\":\"acme\",\
         \"plan\":\"business\",\"ready\":true,\"namespace\":\"kovra-abcd1234\",\
         \"networks\":[\"10.244.0.0/16\"],\"vpn\":{\"state\":\"disabled\"}}"
    );
    assert_eq!(server.get(&server.admin, &path).await, (200, created));

    let patch = json!({ "plan": "team", "ready": false, "networks": [] });
    let (status, text) = server
        .send(&server.admin, Method::PATCH, &path, patch)
        .await;
    assert_eq!(status, 200);
    let patched = value(&text);
    assert_eq!(
        patched,
        json!({
            "id": id, "organisation": "acme", "plan": "team", "ready": false,
            "namespace": "kovra-abcd1234", "networks": [], "vpn": { "state": "unavailable" },
        })
    );
    let nothing = server
        .send(&server.admin, Method::PATCH, &path, json!({}))
        .await;
    assert_eq!((nothing.0, value(&nothing.1)), (200, patched));

    let delete = || answer(server.request(&server.admin, Method::DELETE, &path));
    assert_eq!(delete().await, (204, String::new()));
    assert_eq!(delete().await, (404, error("tenant not found")));
}

#[tokio::test]
async fn what_is_left_out_has_a_default() {
    let server = Server::start().await;
    let body = json!({ "organisation": "acme", "plan": "team" });
    let (status, text) = server
        .send(&server.admin, Method::POST, "/v1/tenants", body)
        .await;
    assert_eq!(status, 201);
    let tenant = value(&text);
    let id = tenant["id"].as_str().unwrap();
    assert_eq!(tenant["namespace"], format!("tenant-{}", &id[..8]));
    assert_eq!(
        (&tenant["ready"], &tenant["networks"]),
        (&json!(false), &json!([]))
    );
}

#[tokio::test]
async fn an_id_and_a_namespace_are_used_once() {
    let server = Server::start().await;
    let id = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";
    let create = |id: &str, namespace: &str| {
        let body = json!({ "id": id, "organisation": "a", "plan": "team", "namespace": namespace });
        server.send(&server.admin, Method::POST, "/v1/tenants", body)
    };
    assert_eq!(create(id, "one").await.0, 201);
    assert_eq!(
        create(id, "two").await,
        (
            409,
            error(&format!("id {id} is already used by another tenant"))
        )
    );
    assert_eq!(
        create("6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e45", "one").await,
        (
            409,
            error("namespace one is already used by another tenant")
        )
    );
}

#[tokio::test]
async fn a_wrong_body_is_answered_with_what_is_wrong() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let before = server.registry.list().await.unwrap();
    // Method, path, body, status, and a part of the error.
    let create = (Method::POST, "/v1/tenants");
    let patch = (Method::PATCH, tenant.as_str());
    let good = r#""organisation":"acme","plan":"team""#;
    let table = [
        (&create, String::new(), 400, "EOF while parsing"),
        (&create, "{".to_owned(), 400, "EOF while parsing"),
        (&create, "\u{0}".to_owned(), 400, "expected value"),
        (
            &create,
            "[]".to_owned(),
            422,
            "invalid type: sequence, expected a JSON object",
        ),
        (
            &patch,
            "[]".to_owned(),
            422,
            "invalid type: sequence, expected a JSON object",
        ),
        (
            &create,
            "{}".to_owned(),
            422,
            "missing field `organisation`",
        ),
        (
            &create,
            r#"{"organisation":"acme"}"#.to_owned(),
            422,
            "missing field `plan`",
        ),
        (
            &create,
            r#"{"organisation":"acme","plan":"gold"}"#.to_owned(),
            422,
            "plan: unknown variant `gold`, expected one of `developer`",
        ),
        (
            &create,
            r#"{"organisation":7,"plan":"team"}"#.to_owned(),
            422,
            "organisation: invalid type: integer `7`, expected a string",
        ),
        (
            &create,
            format!(r#"{{{good},"colour":1}}"#),
            422,
            "unknown field `colour`",
        ),
        (
            &create,
            format!(r#"{{{good},"id":"7"}}"#),
            422,
            "id: UUID parsing failed",
        ),
        (
            &create,
            format!(r#"{{{good},"ready":"yes"}}"#),
            422,
            "expected a boolean",
        ),
        (
            &create,
            format!(r#"{{{good},"networks":["here"]}}"#),
            422,
            "networks[0]: ",
        ),
        (
            &create,
            format!(r#"{{{good},"networks":["10.0.0.0/8","fd00::/8"]}}"#),
            422,
            "network fd00::/8 is IPv6, but tunnels are IPv4 only: remove it, or",
        ),
        (
            &create,
            format!(r#"{{{good},"networks":["0.0.0.0/0"]}}"#),
            422,
            "network 0.0.0.0/0 covers all addresses",
        ),
        (
            &create,
            format!(r#"{{{good},"namespace":"../etc"}}"#),
            422,
            "namespace \"../etc\" is not valid",
        ),
        (
            &create,
            r#"{"organisation":"a b","plan":"team"}"#.to_owned(),
            422,
            "organisation \"a b\" is not valid",
        ),
        (&patch, "nonsense".to_owned(), 400, "expected"),
        (
            &patch,
            r#"{"organisation":"rival"}"#.to_owned(),
            422,
            "unknown field `organisation`",
        ),
        (
            &patch,
            r#"{"plan":"gold"}"#.to_owned(),
            422,
            "unknown variant `gold`",
        ),
        (
            &patch,
            r#"{"networks":["10.0.0.1/8"]}"#.to_owned(),
            422,
            "network 10.0.0.1/8 has bits set after its prefix: write 10.0.0.0/8",
        ),
        (
            &patch,
            r#"{"networks":["fd00::/8"]}"#.to_owned(),
            422,
            "start vpn-edge with --tunnel-ipv6",
        ),
    ];
    for ((method, path), body, status, part) in table {
        let request = server
            .request(&server.admin, method.clone(), path)
            .header("Content-Type", "application/json")
            .body(body.clone());
        let (got, text) = answer(request).await;
        assert_eq!(got, status, "{body}: {text}");
        let json = value(&text);
        assert!(
            json["error"].as_str().unwrap().contains(part),
            "{body}: {text}"
        );
        assert_eq!(json.as_object().unwrap().len(), 1, "one shape: {text}");
    }
    assert_eq!(server.registry.list().await.unwrap(), before);
}

#[tokio::test]
async fn a_body_that_is_not_declared_json_is_a_415() {
    let server = Server::start().await;
    let request = server
        .request(&server.admin, Method::POST, "/v1/tenants")
        .body("{}");
    let (status, text) = answer(request).await;
    assert_eq!(status, 415);
    assert!(
        value(&text)["error"]
            .as_str()
            .unwrap()
            .contains("application/json")
    );
}

#[tokio::test]
async fn a_body_over_64_kib_is_a_413() {
    let server = Server::start().await;
    let send = |organisation: String| {
        let body = json!({ "organisation": organisation, "plan": "team" });
        server.send(&server.admin, Method::POST, "/v1/tenants", body)
    };
    assert_eq!(
        send("a".repeat(60 * 1024)).await.0,
        422,
        "not too long to be read"
    );
    let (status, text) = send("a".repeat(65 * 1024)).await;
    assert_eq!(status, 413);
    assert!(value(&text)["error"].is_string());
}

#[tokio::test]
async fn the_description_is_served_to_everybody() {
    let server = Server::start().await;
    let url = format!("{}/v1/openapi.json", server.url);
    let response = server.client.get(url).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let served = value(&response.text().await.unwrap());
    assert_eq!(served, serde_json::to_value(openapi()).unwrap());
}

#[tokio::test]
async fn an_unknown_route_is_a_404() {
    let server = Server::start().await;
    for path in [
        "/v1",
        "/v2/tenants",
        "/v1/tenants/",
        "/v1/tenants/1/vpn/enable/x",
    ] {
        let (status, text) = server.get(&server.admin, path).await;
        assert_eq!(
            (status, text),
            (404, error(&format!("there is nothing at {path}")))
        );
    }
}

#[tokio::test]
async fn a_wrong_method_is_a_405_with_the_right_ones() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let table = [
        (Method::DELETE, "/v1/tenants".to_owned(), "GET,HEAD,POST"),
        (Method::PUT, tenant.clone(), "GET,HEAD,PATCH,DELETE"),
        (Method::POST, format!("{tenant}/vpn"), "GET,HEAD"),
        (Method::GET, format!("{tenant}/vpn/enable"), "POST"),
    ];
    for (method, path, allow) in table {
        let request = server.request(&server.admin, method.clone(), &path);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["allow"], allow);
        let expected = error(&format!("{method} is not allowed on {path}"));
        assert_eq!(response.text().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_a_408() {
    let server = Server::with("30000-30099", Duration::from_millis(100)).await;
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/tenants HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{",
        server.admin.as_str()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert!(
        response.ends_with(&error("the request took longer than 100ms")),
        "{response}"
    );
}

/// A registry whose storage always fails.
struct Broken;

fn broken() -> RegistryError {
    RegistryError::Storage("disk I/O error".into())
}

#[async_trait]
impl Registry for Broken {
    async fn list(&self) -> Result<Vec<Arc<Tenant>>, RegistryError> {
        Err(broken())
    }

    async fn get(&self, _: Uuid) -> Result<Option<Tenant>, RegistryError> {
        Err(broken())
    }

    async fn create(&self, _: Tenant) -> Result<Tenant, RegistryError> {
        Err(broken())
    }

    async fn update(&self, _: Uuid, _: Change) -> Result<Tenant, UpdateError> {
        Err(broken().into())
    }

    async fn delete(&self, _: Uuid) -> Result<bool, RegistryError> {
        Err(broken())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

#[tokio::test]
async fn trouble_with_the_database_is_an_internal_error_without_its_cause() {
    let server = Server::start().await;
    let identity = Arc::new(Identity::new(
        Tokens::load(&server.dir.path().join("tokens")).unwrap(),
    ));
    let url = listen(router(
        Backends {
            registry: Arc::new(Broken),
            identity,
            audit: server.audit.clone(),
            active_ports: watch::channel(None).1,
            sessions: Arc::new(Everybody),
            databases: Arc::new(crate::catalog::Unknown),
        },
        settings(),
    ))
    .await;
    let tenant = format!("/v1/tenants/{}", Uuid::nil());
    let create = json!({ "organisation": "acme", "plan": "team" });
    for (method, path) in [
        (Method::GET, "/v1/tenants".to_owned()),
        (Method::POST, "/v1/tenants".to_owned()),
        (Method::GET, tenant.clone()),
        (Method::DELETE, tenant.clone()),
        (Method::GET, format!("{tenant}/vpn")),
        (Method::POST, format!("{tenant}/vpn/enable")),
        (Method::GET, format!("{tenant}/vpn/config")),
        (Method::GET, format!("{tenant}/vpn/session")),
    ] {
        let request = server
            .client
            .request(method, format!("{url}{path}"))
            .bearer_auth(server.admin.as_str())
            .json(&create);
        let got = answer(request).await;
        assert_eq!(got, (500, error("internal error")), "{path}");
    }
}
