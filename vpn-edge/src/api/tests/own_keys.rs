//! Tenants that bring their own key.

use super::*;
use crate::wireguard::{ClientKey, PrivateKey, PublicKey};

fn new_key() -> PublicKey {
    PrivateKey::generate().unwrap().public()
}

impl Server {
    async fn act(&self, tenant: &str, action: &str, body: Value) -> (u16, Value) {
        let path = format!("{tenant}/vpn/{action}");
        let (status, text) = self.send(&self.acme, Method::POST, &path, body).await;
        (status, value(&text))
    }

    async fn client_key(&self) -> Option<ClientKey> {
        let tenant = self.registry.list().await.unwrap().remove(0);
        let allocation = tenant.vpn.allocation.as_ref()?;
        Some(allocation.keys.client.clone())
    }
}

#[tokio::test]
async fn a_given_key_is_the_clients_until_another_is_given_or_made() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let [first, second] = [new_key(), new_key()];
    for (action, given) in [("enable", first), ("regenerate", second)] {
        let body = json!({ "public_key": given });
        let (status, body) = server.act(&tenant, action, body).await;
        assert_eq!(status, 202, "{body}");
        assert_eq!(body["client_public_key"], given.to_string());
        assert_eq!(body["client_key_given"], true);
        assert_eq!(server.client_key().await, Some(ClientKey::Given(given)));
        server.observe(&tenant, GatewayState::Ready).await;
        let path = format!("{tenant}/vpn/config");
        let (_, config) = server.get(&server.acme, &path).await;
        let head = format!(
            "[Interface]\n# Fill in the private key of the public key {given}.\n\
             PrivateKey = <your private key>\nAddress = "
        );
        assert!(config.starts_with(&head), "{config}");
    }
    // Whoever gives none has keys made.
    let (status, body) = server.act(&tenant, "regenerate", json!({})).await;
    assert_eq!((status, &body["client_key_given"]), (202, &json!(false)));
    assert_ne!(body["client_public_key"], second.to_string());
    assert!(matches!(
        server.client_key().await,
        Some(ClientKey::Made(_))
    ));
}

#[tokio::test]
async fn what_is_no_key_is_refused_and_changes_nothing() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let zero = format!("{}=", "A".repeat(43));
    let no_key = "public_key is not valid: a WireGuard key is 44 characters of base64 for \
                  32 bytes; `wg genkey` and `wg pubkey` print such keys";
    let weak = "public_key is not valid: this public key is one of the few that give every \
                session the same secret; `wg genkey | wg pubkey` prints a good one";
    for action in ["enable", "regenerate"] {
        for (key, message) in [("", no_key), ("c2hvcnQ=", no_key), (&zero, weak)] {
            let body = json!({ "public_key": key });
            let (status, body) = server.act(&tenant, action, body).await;
            assert_eq!((status, &body["error"]), (400, &json!(message)), "{action}");
        }
        let (status, body) = server
            .act(&tenant, action, json!({ "publicKey": "" }))
            .await;
        assert_eq!(status, 422, "{body}");
        // A key that would go unnoticed is worse than none.
        let path = format!("{tenant}/vpn/{action}");
        let untyped = server.request(&server.acme, Method::POST, &path);
        let body = json!({ "public_key": new_key() }).to_string();
        let (status, text) = answer(untyped.body(body)).await;
        assert_eq!(status, 415, "{text}");
        assert_eq!(server.client_key().await, None);
    }
    let rivals = server.tenant("rival", "business", true).await;
    for tenant in [rivals, format!("/v1/tenants/{}", Uuid::new_v4())] {
        let (status, body) = server
            .act(&tenant, "enable", json!({ "public_key": "" }))
            .await;
        assert_eq!(
            (status, body),
            (404, json!({ "error": "tenant not found" }))
        );
    }
}
