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
        "Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax"
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
    let bare = || server.request(Method::GET, &format!("/auth/callback?{query}"));
    assert_eq!(answer(bare()).await.0, 400);
    // With both: who knows which of them was planted.
    let both = bare().header("Cookie", format!("{}; {}", one.cookie, other.cookie));
    let expected = Refused::CookieTwice("vpn-edge-sign-in".to_owned());
    assert_eq!(answer(both).await, refused(expected));
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

/// A sign-in whose code the issuer has nothing for, ready to be sent.
async fn with_bad_code(server: &Server, from: &str) -> RequestBuilder {
    let begun = begin(server, "/").await;
    let path = format!("/auth/callback?code=c&state={}", begun.asked["state"]);
    let request = server.request(Method::GET, &path);
    let request = request.header("X-Forwarded-For", from);
    request.header("Cookie", &begun.cookie)
}

/// Signs in as that address: the status.
async fn sign_in(server: &Server, issuer: &TestIssuer, key: &Signer, from: &str) -> u16 {
    let begun = begin(server, "/").await;
    let claims = json!({"aud": "dashboard", "nonce": begun.asked["nonce"]});
    *issuer.said.id_token.lock().unwrap() = key.sign(&issuer.claims(claims));
    let path = format!("/auth/callback?code=c&state={}", begun.asked["state"]);
    let request = server.request(Method::GET, &path);
    let request = request.header("X-Forwarded-For", from);
    let outcome = answer(request.header("Cookie", &begun.cookie)).await;
    issuer.said.id_token.lock().unwrap().clear();
    outcome.0
}

#[tokio::test]
async fn bad_codes_are_limited_and_what_is_no_code_keeps_nobody_out() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let address = "192.0.2.1";
    for _ in 0..=sign_in_limiter::ALLOWED {
        // As a picture in any page could be, and a bad token.
        let stray = server.request(Method::GET, "/auth/callback?code=x&state=y");
        let stray = stray.header("X-Forwarded-For", address);
        assert_eq!(answer(stray).await.0, 400);
        let wrong = server.whoami("vpe_wrong");
        answer(wrong.header("X-Forwarded-For", address)).await;
    }
    for _ in 0..=sign_in_limiter::ALLOWED {
        assert_eq!(sign_in(&server, &issuer, &key, address).await, 303);
    }
    let asked = issuer.codes();
    for _ in 0..sign_in_limiter::ALLOWED {
        let request = with_bad_code(&server, address).await;
        assert_eq!(answer(request).await, refused(Invalid::Malformed));
    }
    assert_eq!(sign_in(&server, &issuer, &key, address).await, 429);
    assert_eq!(issuer.codes(), asked + sign_in_limiter::ALLOWED as usize);
    assert_eq!(sign_in(&server, &issuer, &key, "192.0.2.2").await, 303);
}

#[tokio::test]
async fn codes_that_come_together_are_counted_as_well() {
    let issuer = TestIssuer::start(&[&Signer::new("1")]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let (allowed, more) = (sign_in_limiter::ALLOWED as usize, 20);
    let mut requests = Vec::new();
    for _ in 0..allowed + more {
        requests.push(with_bad_code(&server, "192.0.2.1").await);
    }
    let gate = issuer.said.gate.write().await;
    let sent: Vec<_> = requests
        .into_iter()
        .map(|request| tokio::spawn(answer(request)))
        .collect();
    // Those are told at once, while the issuer thinks about the others.
    until(|| sent.iter().filter(|sent| sent.is_finished()).count() >= more).await;
    drop(gate);
    let mut statuses = Vec::new();
    for sent in sent {
        statuses.push(sent.await.unwrap().0);
    }
    statuses.sort_unstable();
    let expected = [vec![401u16; allowed], vec![429; more]].concat();
    assert_eq!(statuses, expected);
    assert_eq!(issuer.codes(), allowed);
}

#[tokio::test]
async fn codes_of_those_who_hang_up_are_counted_as_well() {
    let issuer = TestIssuer::start(&[&Signer::new("1")]).await;
    let server = Server::start(&issuer, PATIENT).await;
    for number in 1..=sign_in_limiter::ALLOWED as usize {
        let request = with_bad_code(&server, "192.0.2.1").await;
        let gate = issuer.said.gate.write().await;
        tokio::select! {
            _ = request.send() => panic!("the issuer has not answered yet"),
            () = until(|| issuer.codes() == number) => {}
        }
        // The server has hung up by then on the issuer.
        until(|| issuer.said.busy.load(Ordering::SeqCst) == 0).await;
        drop(gate);
    }
    let request = with_bad_code(&server, "192.0.2.1").await;
    assert_eq!(answer(request).await.0, 429);
}

#[tokio::test]
async fn the_issuer_is_asked_about_few_codes_at_the_same_time() {
    let issuer = TestIssuer::start(&[&Signer::new("1")]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let at_once = super::super::sign_in::EXCHANGES;
    let mut requests = Vec::new();
    for number in 0..3 * at_once {
        requests.push(with_bad_code(&server, &format!("192.0.2.{number}")).await);
    }
    let gate = issuer.said.gate.write().await;
    let sent: Vec<_> = requests
        .into_iter()
        .map(|request| tokio::spawn(answer(request)))
        .collect();
    until(|| issuer.said.busy.load(Ordering::SeqCst) >= at_once).await;
    // Were there more, they would come now.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(gate);
    for sent in sent {
        assert_eq!(sent.await.unwrap(), refused(Invalid::Malformed));
    }
    assert_eq!(issuer.said.busiest.load(Ordering::SeqCst), at_once);
}
