//! The VPN's states and refusals, to the byte.

use super::*;
use crate::wireguard::{ClientKey, PrivateKey};

const UPGRADE: &str = r#"{"error":"vpn_not_available","upgrade_required":true}"#;

/// Asserts what each of the VPN's actions answers, to a member and to the admin.
async fn assert_refused(server: &Server, tenant: &str, table: &[(&str, u16, &str)]) {
    for (action, status, body) in table {
        let method = if *action == "config" {
            Method::GET
        } else {
            Method::POST
        };
        let path = format!("{tenant}/vpn/{action}");
        for token in [&server.acme, &server.admin] {
            let request = server.request(token, method.clone(), &path);
            let response = request.send().await.unwrap();
            assert_eq!(response.headers()["content-type"], "application/json");
            assert_eq!(response.status().as_u16(), *status, "{action}");
            assert_eq!(response.text().await.unwrap(), *body, "{action}");
        }
    }
}

async fn state(server: &Server, tenant: &str) -> Value {
    let (status, text) = server.get(&server.acme, &format!("{tenant}/vpn")).await;
    assert_eq!(status, 200);
    value(&text)
}

#[tokio::test]
async fn a_plan_without_vpn_asks_for_an_upgrade() {
    let server = Server::start().await;
    for plan in ["developer", "team"] {
        let tenant = server.tenant("acme", plan, true).await;
        assert_eq!(state(&server, &tenant).await["state"], "unavailable");
        let table = [
            ("enable", 403, UPGRADE),
            ("disable", 403, UPGRADE),
            ("regenerate", 403, UPGRADE),
            ("config", 403, UPGRADE),
        ];
        assert_refused(&server, &tenant, &table).await;
    }
}

#[tokio::test]
async fn a_tenant_that_is_not_ready_is_refused() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", false).await;
    let table = [("enable", 409, r#"{"error":"tenant is not ready"}"#)];
    assert_refused(&server, &tenant, &table).await;
    assert_eq!(state(&server, &tenant).await["state"], "disabled");
}

#[tokio::test]
async fn a_disabled_vpn_can_only_be_enabled() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let not_enabled = r#"{"error":"VPN is not enabled"}"#;
    let table = [
        ("disable", 409, not_enabled),
        ("regenerate", 409, not_enabled),
        ("config", 409, not_enabled),
    ];
    assert_refused(&server, &tenant, &table).await;
}

#[tokio::test]
async fn while_enabling_everything_has_to_wait() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    server
        .post(&server.acme, &format!("{tenant}/vpn/enable"))
        .await;
    let wait = r#"{"error":"VPN is currently being enabled"}"#;
    let table = [
        ("enable", 409, wait),
        ("disable", 409, wait),
        ("regenerate", 409, wait),
        ("config", 409, wait),
    ];
    let before = server.registry.list().await.unwrap();
    assert_refused(&server, &tenant, &table).await;
    // Nor with a key of the client's own.
    let body = json!({ "public_key": PrivateKey::generate().unwrap().public() });
    let path = format!("{tenant}/vpn/enable");
    let again = server.send(&server.acme, Method::POST, &path, body).await;
    assert_eq!(again, (409, wait.to_owned()));
    assert_eq!(server.registry.list().await.unwrap(), before);
}

#[tokio::test]
async fn an_enabled_vpn_is_not_enabled_again() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let table = [("enable", 409, r#"{"error":"VPN is already enabled"}"#)];
    assert_refused(&server, &tenant, &table).await;
}

#[tokio::test]
async fn a_failed_vpn_says_why_and_enable_and_disable_lead_out_of_it() {
    let server = Server::start().await;
    for way_out in ["enable", "disable"] {
        let tenant = server.tenant("acme", "business", true).await;
        server
            .post(&server.acme, &format!("{tenant}/vpn/enable"))
            .await;
        let broken = GatewayState::Failed("the port is taken".to_owned());
        server.observe(&tenant, broken).await;
        let body = state(&server, &tenant).await;
        assert_eq!(body["state"], "failed");
        assert_eq!(body["failure"], "the port is taken");
        let not_enabled = r#"{"error":"VPN is not enabled"}"#;
        let table = [
            ("regenerate", 409, not_enabled),
            ("config", 409, not_enabled),
        ];
        assert_refused(&server, &tenant, &table).await;
        let (status, text) = server
            .post(&server.acme, &format!("{tenant}/vpn/{way_out}"))
            .await;
        assert!(status == 200 || status == 202, "{text}");
        assert_eq!(value(&text)["failure"], Value::Null);
    }
}

#[tokio::test]
async fn no_ports_left_is_a_503_until_one_is_freed() {
    let server = Server::with("30000-30000", REQUEST_DEADLINE).await;
    let first = server.enabled().await;
    let second = server.tenant("acme", "business", true).await;
    let table = [("enable", 503, r#"{"error":"no VPN ports available"}"#)];
    assert_refused(&server, &second, &table).await;
    assert_eq!(state(&server, &second).await["state"], "disabled");
    server
        .post(&server.acme, &format!("{first}/vpn/disable"))
        .await;
    let (status, text) = server
        .post(&server.acme, &format!("{second}/vpn/enable"))
        .await;
    assert_eq!((status, &value(&text)["port"]), (202, &json!(30000)));
}

#[tokio::test]
async fn the_status_has_the_same_shape_in_every_state() {
    let server = Server::start().await;
    let id = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";
    let tenant = format!("/v1/tenants/{id}");
    let body = json!({ "id": id, "organisation": "acme", "plan": "business", "ready": true });
    server
        .send(&server.admin, Method::POST, "/v1/tenants", body)
        .await;

    let mut body = state(&server, &tenant).await;
    let since = body["since"].take();
    assert!(
        since.as_str().unwrap().len() == 20,
        "to the second: {since}"
    );
    assert_eq!(
        body,
        json!({
            "state": "disabled", "endpoint": null, "port": null, "subnet": null,
            "client_address": null, "server_public_key": null, "client_public_key": null,
            "client_key_given": null, "created_at": null, "generation": 0, "since": null, "failure": null,
        })
    );

    let (status, text) = server
        .post(&server.acme, &format!("{tenant}/vpn/enable"))
        .await;
    assert_eq!(status, 202);
    let mut body = value(&text);
    for changing in [
        "since",
        "created_at",
        "server_public_key",
        "client_public_key",
    ] {
        assert!(body[changing].take().is_string(), "{changing}");
    }
    assert_eq!(
        body,
        json!({
            "state": "enabling", "endpoint": "vpn.example.org:30000", "port": 30000,
            "subnet": "10.55.59.0/24", "client_address": "10.55.59.2",
            "server_public_key": null, "client_public_key": null,
            "client_key_given": false, "created_at": null, "generation": 1, "since": null, "failure": null,
        })
    );

    server.observe(&tenant, GatewayState::Ready).await;
    assert_eq!(state(&server, &tenant).await["state"], "enabled");
    let (status, text) = server
        .post(&server.acme, &format!("{tenant}/vpn/disable"))
        .await;
    assert_eq!(status, 200);
    let mut body = value(&text);
    body["since"].take();
    assert_eq!(
        body,
        json!({
            "state": "disabled", "endpoint": null, "port": null, "subnet": null,
            "client_address": null, "server_public_key": null, "client_public_key": null,
            "client_key_given": null, "created_at": null, "generation": 1, "since": null, "failure": null,
        })
    );
}

#[tokio::test]
async fn the_configuration_is_a_file_that_wg_quick_takes() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let status = state(&server, &tenant).await;
    let response = server
        .request(&server.acme, Method::GET, &format!("{tenant}/vpn/config"))
        .send()
        .await
        .unwrap();
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(headers["cache-control"], "no-store");
    let name = format!("vpn-{}", &tenant["/v1/tenants/".len()..][..8]);
    assert!(name.len() <= 15);
    assert_eq!(
        headers["content-disposition"],
        format!("attachment; filename=\"{name}.conf\"").as_str()
    );
    let text = response.text().await.unwrap();
    let private = text.lines().nth(1).unwrap();
    let private = private.strip_prefix("PrivateKey = ").unwrap();
    let public = PrivateKey::from_base64(private).unwrap().public();
    assert_eq!(status["client_public_key"], public.to_string());
    let shown = |field: &str| status[field].as_str().unwrap().to_owned();
    assert_eq!(
        text,
        format!(
            "[Interface]\nPrivateKey = {private}\nAddress = {}/24\nDNS = 10.96.0.10\n\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.96.0.0/12, 10.0.0.0/8\n\
             Endpoint = {}\nPersistentKeepalive = 25\n",
            shown("client_address"),
            shown("server_public_key"),
            shown("endpoint"),
        )
    );
}

#[tokio::test]
async fn with_ipv6_in_the_tunnels_a_tenant_has_addresses_and_networks_of_both_versions() {
    let server = Server::dual_stack().await;
    let id = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";
    let tenant = format!("/v1/tenants/{id}");
    let networks = json!(["10.97.1.0/24", "fd00:97:1::/64"]);
    let body = json!({
        "id": id, "organisation": "acme", "plan": "business", "ready": true,
        "networks": networks,
    });
    let (status, text) = server
        .send(&server.admin, Method::POST, "/v1/tenants", body)
        .await;
    assert_eq!((status, &value(&text)["networks"]), (201, &networks));

    let body = state(&server, &tenant).await;
    assert_eq!(body.get("subnet6"), None, "it has none yet");
    server
        .post(&server.acme, &format!("{tenant}/vpn/enable"))
        .await;
    let body = state(&server, &tenant).await;
    assert_eq!(body["subnet"], "10.55.59.0/24");
    assert_eq!(body["subnet6"], "fd78:181c:f4b0::/64");
    assert_eq!(body["client_address6"], "fd78:181c:f4b0::2");
    server.observe(&tenant, GatewayState::Ready).await;
    let (_, text) = server
        .get(&server.acme, &format!("{tenant}/vpn/config"))
        .await;
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap();
    assert_eq!(
        line("Address"),
        "Address = 10.55.59.2/24, fd78:181c:f4b0::2/64"
    );
    assert_eq!(
        line("AllowedIPs"),
        "AllowedIPs = 10.96.0.0/12, 10.0.0.0/8, fd78:181c:f4b0::/64"
    );
}

#[tokio::test]
async fn regenerating_keeps_the_endpoint_and_the_address_and_changes_both_keys() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let before = state(&server, &tenant).await;
    let (status, text) = server
        .post(&server.acme, &format!("{tenant}/vpn/regenerate"))
        .await;
    assert_eq!(status, 202);
    let after = value(&text);
    assert_eq!(after["state"], "enabling");
    assert_eq!(after["generation"], 2);
    for same in ["endpoint", "port", "subnet", "client_address"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    for new in ["server_public_key", "client_public_key"] {
        assert_ne!(before[new], after[new], "{new}");
    }
}

#[tokio::test]
async fn a_downgrade_ends_the_vpn_and_an_upgrade_offers_it_again() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    for (plan, expected) in [("team", "unavailable"), ("enterprise_cloud", "disabled")] {
        let patch = json!({ "plan": plan });
        let (status, text) = server
            .send(&server.admin, Method::PATCH, &tenant, patch)
            .await;
        assert_eq!(status, 200);
        assert_eq!(value(&text)["vpn"]["state"], expected);
        assert_eq!(state(&server, &tenant).await["endpoint"], Value::Null);
    }
}

#[tokio::test]
async fn private_keys_are_in_the_configuration_alone() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let stored = server.registry.list().await.unwrap().remove(0);
    let keys = &stored.vpn.allocation.as_ref().unwrap().keys;
    let ClientKey::Made(client) = &keys.client else {
        panic!("nobody gave a key")
    };
    let patch = json!({ "ready": true });
    let (_, patched) = server
        .send(&server.admin, Method::PATCH, &tenant, patch)
        .await;
    let mut answers = vec![patched];
    for path in ["/v1/tenants", tenant.as_str(), &format!("{tenant}/vpn")] {
        answers.push(server.get(&server.admin, path).await.1);
    }
    for text in answers {
        assert!(!text.contains(keys.server.to_base64().as_str()), "{text}");
        assert!(!text.contains(client.to_base64().as_str()), "{text}");
    }
    let (_, config) = server
        .get(&server.acme, &format!("{tenant}/vpn/config"))
        .await;
    assert!(config.contains(client.to_base64().as_str()));
    assert!(!config.contains(keys.server.to_base64().as_str()));
}

#[tokio::test]
async fn what_is_revoked_is_answered_when_the_edge_no_longer_steers_by_it() {
    for action in ["disable", "regenerate"] {
        let server = Server::start().await;
        let tenant = server.enabled().await;
        let id: Uuid = tenant.rsplit('/').next().unwrap().parse().unwrap();
        let steers = |open: Vec<(u16, (Uuid, u64))>| {
            server
                .active_ports
                .send_replace(Some(open.into_iter().collect()));
        };
        let generation = state(&server, &tenant).await["generation"]
            .as_u64()
            .unwrap();
        let others = (30_001, (Uuid::new_v4(), 1));
        steers(vec![(30_000, (id, generation)), others]);

        let path = format!("{tenant}/vpn/{action}");
        let request = server.request(&server.acme, Method::POST, &path).send();
        let mut request = tokio::spawn(request);
        while state(&server, &tenant).await["state"] == "enabled" {
            tokio::task::yield_now().await;
        }
        let early = tokio::time::timeout(Duration::from_millis(100), &mut request).await;
        assert!(
            early.is_err(),
            "{action} was answered before the edge acted"
        );
        // Another tenant's port, and the new keys' own, hold nothing up.
        let mut open = vec![others];
        if action == "regenerate" {
            open.push((30_000, (id, generation + 1)));
        }
        steers(open);
        let response = request.await.unwrap().unwrap();
        assert!(response.status().is_success(), "{action}");
    }
}

#[tokio::test]
async fn an_edge_that_does_not_act_holds_no_answer_up_for_good() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let id: Uuid = tenant.rsplit('/').next().unwrap().parse().unwrap();
    let stuck = [(30_000, (id, 1))].into_iter().collect();
    server.active_ports.send_replace(Some(stuck));
    let (status, text) = server
        .post(&server.acme, &format!("{tenant}/vpn/disable"))
        .await;
    assert_eq!(status, 200, "{text}");
}

#[tokio::test]
async fn a_session_is_shown_to_whom_the_tenant_is() {
    let server = Server::start().await;
    let path = server.enabled().await;
    let session = format!("{path}/vpn/session");
    let (_, status) = server.get(&server.acme, &format!("{path}/vpn")).await;
    let port = value(&status)["port"].clone();
    let wanted = json!({
        "connected": true,
        "last_handshake": "1970-01-01T00:00:00Z",
        "client": format!("203.0.113.9:{port}"),
        "received": { "packets": 3, "bytes": 300 },
        "sent": { "packets": 4, "bytes": 400 },
        "complete": true,
    });
    for token in [&server.acme, &server.admin] {
        let (status, text) = server.get(token, &session).await;
        assert_eq!((status, value(&text)), (200, wanted.clone()));
    }
    let none = format!("/v1/tenants/{}/vpn/session", Uuid::nil());
    let hidden = server.get(&server.rival, &session).await;
    assert_eq!(hidden.0, 404);
    assert_eq!(hidden, server.get(&server.acme, &none).await);

    server
        .post(&server.acme, &format!("{path}/vpn/disable"))
        .await;
    let (status, text) = server.get(&server.acme, &session).await;
    let wanted = json!({
        "connected": false,
        "last_handshake": null,
        "client": null,
        "received": { "packets": 0, "bytes": 0 },
        "sent": { "packets": 0, "bytes": 0 },
        "complete": true,
    });
    assert_eq!((status, value(&text)), (200, wanted));
}
