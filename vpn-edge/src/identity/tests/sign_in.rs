//! The authorization-code flow, step by step.

use std::collections::HashMap;

use ring::digest::{SHA256, digest};

use super::browsers::cookie_of;
use super::*;

/// A sign-in that was sent to the issuer.
struct Begun {
    /// What the issuer was asked.
    asked: HashMap<String, String>,
    cookie: String,
}

async fn begin(server: &Server, back: &str) -> Begun {
    let path = format!("/auth/login?return={back}");
    let response = server.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(response.status(), 303);
    assert_eq!(response.headers()["cache-control"], "no-store");
    let location = response.headers()["location"].to_str().unwrap();
    let url = Url::parse(location).unwrap();
    assert_eq!(url.path(), "/authorize");
    let (value, attributes) = cookie_of(&response, "vpn-edge-sign-in").unwrap();
    assert_eq!(
        attributes,
        "Path=/auth; Max-Age=600; HttpOnly; Secure; SameSite=Lax"
    );
    Begun {
        asked: url.query_pairs().into_owned().collect(),
        cookie: format!("vpn-edge-sign-in={value}"),
    }
}

async fn finish(server: &Server, begun: &Begun, query: &str) -> reqwest::Response {
    let path = format!("/auth/callback?{query}");
    let request = server.request(Method::GET, &path);
    let response = request.header("Cookie", &begun.cookie).send().await;
    let response = response.unwrap();
    let (value, _) = cookie_of(&response, "vpn-edge-sign-in").unwrap();
    assert!(value.is_empty(), "the attempt is over");
    response
}

#[tokio::test]
async fn a_browser_signs_in_and_comes_back_to_where_it_was() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let begun = begin(&server, "/tenants/1%3Fa%3Db").await;
    let asked = &begun.asked;
    // The endpoint's own query stays.
    assert_eq!(asked["tenant"], "1");
    assert_eq!(asked["response_type"], "code");
    assert_eq!(asked["client_id"], "dashboard");
    assert_eq!(asked["scope"], "openid email");
    assert_eq!(
        asked["redirect_uri"],
        format!("{}/auth/callback", server.url)
    );
    assert_eq!(asked["code_challenge_method"], "S256");

    let claims = json!({"aud": "dashboard", "nonce": asked["nonce"]});
    let token = key.sign(&issuer.claims(claims));
    issuer.said.id_token.lock().unwrap().clone_from(&token);
    let query = format!("code=c%26d&state={}", asked["state"]);
    let response = finish(&server, &begun, &query).await;
    assert_eq!(response.status(), 303);
    assert_eq!(response.headers()["location"], "/tenants/1?a=b");
    let (value, _) = cookie_of(&response, SESSION).unwrap();
    assert_eq!(value, token);
    let request = server.request(Method::GET, "/whoami");
    let request = request.header("Cookie", format!("{SESSION}={value}"));
    assert_eq!(answer(request).await, acme());

    let form = issuer.said.form.lock().unwrap().clone();
    let form: HashMap<_, _> = form_urlencoded::parse(form.as_bytes())
        .into_owned()
        .collect();
    assert_eq!(form["grant_type"], "authorization_code");
    assert_eq!(form["code"], "c&d");
    assert_eq!(form["client_id"], "dashboard");
    assert_eq!(form["redirect_uri"], asked["redirect_uri"]);
    let challenge = digest(&SHA256, form["code_verifier"].as_bytes());
    assert_eq!(URL_SAFE_NO_PAD.encode(challenge), asked["code_challenge"]);
}

#[tokio::test]
async fn what_does_not_belong_to_the_sign_in_ends_it() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let table = [
        (json!({}), "code=c&state=STATE", 303),
        (json!({}), "code=c&state=other", 400),
        (json!({}), "code=c", 400),
        (json!({}), "state=STATE", 400),
        (json!({}), "error=access_denied&state=STATE", 400),
        (
            json!({}),
            "code=c&state=STATE&iss=https%3A%2F%2Fevil.example",
            400,
        ),
        (json!({"nonce": "other"}), "code=c&state=STATE", 401),
        (json!({"nonce": null}), "code=c&state=STATE", 401),
        // Good for the API, but made out to another client.
        (json!({"aud": "vpn"}), "code=c&state=STATE", 401),
        (json!({"azp": "other"}), "code=c&state=STATE", 401),
        (json!({"exp": now() - 60}), "code=c&state=STATE", 401),
        (json!({"organisation": null}), "code=c&state=STATE", 403),
        (json!({"more": "x".repeat(4096)}), "code=c&state=STATE", 400),
    ];
    for (number, (changes, query, expected)) in table.into_iter().enumerate() {
        let begun = begin(&server, "/").await;
        let mut claims = json!({"aud": "dashboard", "nonce": begun.asked["nonce"]});
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let token = key.sign(&issuer.claims(claims));
        *issuer.said.id_token.lock().unwrap() = token;
        let query = query.replace("STATE", &begun.asked["state"]);
        let path = format!("/auth/callback?{query}");
        let request = server.request(Method::GET, &path);
        // Each from an address of its own, else there are soon too many.
        let request = request.header("X-Forwarded-For", format!("192.0.2.{number}"));
        let response = request
            .header("Cookie", &begun.cookie)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), expected, "{changes} {query}");
        assert_eq!(cookie_of(&response, SESSION).is_some(), expected == 303);
    }
    // Without the cookie that began it, or with another browser's.
    let (one, other) = (begin(&server, "/").await, begin(&server, "/").await);
    let query = format!("code=c&state={}", one.asked["state"]);
    assert_eq!(finish(&server, &other, &query).await.status(), 400);
    let bare = server.request(Method::GET, &format!("/auth/callback?{query}"));
    assert_eq!(answer(bare).await.0, 400);
}

#[tokio::test]
async fn no_sign_in_leads_anywhere_else() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    for back in [
        "//evil.example",
        "https:%2F%2Fevil.example",
        "/%5Cevil.example",
        "",
    ] {
        let begun = begin(&server, back).await;
        let claims = json!({"aud": "dashboard", "nonce": begun.asked["nonce"]});
        *issuer.said.id_token.lock().unwrap() = key.sign(&issuer.claims(claims));
        let query = format!("code=c&state={}", begun.asked["state"]);
        let response = finish(&server, &begun, &query).await;
        assert_eq!(response.headers()["location"], "/", "{back}");
    }
}
