//! Issuers that rotate, fall silent, and lie.

use futures_util::future::join_all;

use super::*;

#[tokio::test]
async fn a_new_key_counts_at_once_and_one_taken_away_until_the_issuer_is_asked() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let issuer = TestIssuer::start(&[&old]).await;
    let server = Server::start(&issuer, EAGER).await;
    let claims = issuer.claims(json!({}));
    assert_eq!(server.ask(&old.sign(&claims)).await, acme());
    issuer.has(&[&old, &new]);
    assert_eq!(server.ask(&new.sign(&claims)).await, acme());
    assert_eq!(server.ask(&old.sign(&claims)).await, acme());
    assert_eq!(issuer.asked(), 2);
    issuer.has(&[&new]);
    assert_eq!(server.ask(&old.sign(&claims)).await, acme());
    let unknown = Signer::new("unknown").sign(&claims);
    assert_eq!(server.ask(&unknown).await, refused(Invalid::UnknownKey));
    let gone = server.ask(&old.sign(&claims)).await;
    assert_eq!(gone, refused(Invalid::UnknownKey));
    assert_eq!(server.ask(&new.sign(&claims)).await, acme());
}

#[tokio::test]
async fn many_at_once_are_one_request_to_the_issuer() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let token = key.sign(&issuer.claims(json!({})));
    let answers = join_all((0..50).map(|_| server.ask(&token))).await;
    assert!(answers.iter().all(|answer| *answer == acme()));
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_no_flood_at_the_issuer() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let claims = issuer.claims(json!({}));
    assert_eq!(server.ask(&key.sign(&claims)).await, acme());
    let flood = (0..100).map(|number| {
        let token = Signer::new(&format!("unknown-{number}")).sign(&claims);
        let from = format!("198.51.100.{number}");
        answer(server.whoami(&token).header("X-Forwarded-For", from))
    });
    for got in join_all(flood).await {
        assert_eq!(got, refused(Invalid::UnknownKey));
    }
    assert_eq!(issuer.asked(), 1);
}

/// Asks all the time, by itself.
const RESTLESS: Ages = Ages {
    fresh: Duration::from_millis(10),
    retry: Duration::from_millis(10),
    ..EAGER
};

#[tokio::test]
async fn the_issuer_is_asked_for_withdrawn_keys_though_nobody_calls() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let issuer = TestIssuer::start(&[&old]).await;
    let server = Server::start(&issuer, RESTLESS).await;
    server.issuer().keep_fresh();
    let claims = issuer.claims(json!({}));
    assert_eq!(server.ask(&old.sign(&claims)).await, acme());
    issuer.has(&[&new]);
    // The one under way may have the old keys yet, the next has not, and when the
    // one after that begins it is known.
    let asked = issuer.asked();
    until(|| issuer.asked() > asked + 1).await;
    let known = server.issuer().known().await.unwrap();
    let gone = known.key(Some("old"), jsonwebtoken::Algorithm::ES256);
    assert_eq!(gone.err(), Some(Invalid::UnknownKey));
    let gone = server.ask(&old.sign(&claims)).await;
    assert_eq!(gone, refused(Invalid::UnknownKey));
    assert_eq!(server.ask(&new.sign(&claims)).await, acme());
}

#[tokio::test]
async fn who_hangs_up_does_not_keep_keys_from_being_fetched() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let token = key.sign(&issuer.claims(json!({})));
    let gate = issuer.said.gate.write().await;
    // What the server drops when its client is gone.
    let request = server.identity.verify(&token, IpAddr::from([127, 0, 0, 1]));
    tokio::select! {
        _ = request => panic!("the issuer has not answered yet"),
        () = until(|| issuer.asked() == 1) => {}
    }
    drop(gate);
    assert_eq!(server.ask(&token).await, acme());
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test]
async fn keys_go_on_being_used_while_the_issuer_is_away() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, RESTLESS).await;
    server.issuer().keep_fresh();
    let token = key.sign(&issuer.claims(json!({})));
    assert_eq!(server.ask(&token).await, acme());
    issuer.down(true);
    let tried = issuer.tried();
    until(|| issuer.tried() > tried + 3).await;
    assert_eq!(server.ask(&token).await, acme());
    let unknown = Signer::new("unknown").sign(&issuer.claims(json!({})));
    assert_eq!(server.ask(&unknown).await, refused(Invalid::UnknownKey));
}

#[tokio::test]
async fn keys_of_an_issuer_that_stays_away_are_not_used_for_ever() {
    async fn until_told(server: &Server, token: &str, expected: (u16, String)) {
        let told = async {
            while server.ask(token).await != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(60), told).await;
        told.unwrap_or_else(|_| panic!("never told {expected:?}"));
    }
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let short = Ages {
        usable: Duration::from_secs(1),
        ..EAGER
    };
    let server = Server::start(&issuer, short).await;
    let token = key.sign(&issuer.claims(json!({})));
    until_told(&server, &token, acme()).await;
    issuer.down(true);
    until_told(&server, &token, refused(Refused::IssuerUnreachable)).await;
}

#[tokio::test]
async fn an_issuer_that_is_away_at_first_is_asked_again() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    issuer.down(true);
    let server = Server::start(&issuer, EAGER).await;
    let token = key.sign(&issuer.claims(json!({})));
    assert_eq!(
        server.ask(&token).await,
        refused(Refused::IssuerUnreachable)
    );
    // Tokens of the file need no issuer.
    assert_eq!(server.ask(&server.admin).await.0, 200);
    issuer.down(false);
    assert_eq!(server.ask(&token).await, acme());
}

#[tokio::test]
async fn keys_are_taken_from_nobody_else() {
    let key = Signer::new("1");
    type Lie = fn(&TestIssuer);
    let lies: [(&str, Lie); 5] = [
        ("the truth", |_| {}),
        ("another issuer's metadata", |issuer| {
            issuer.said.metadata.lock().unwrap()["issuer"] = json!("https://evil.example");
        }),
        ("a redirect", |issuer| {
            let url = format!("{}/moved", issuer.url);
            *issuer.said.moved.lock().unwrap() = Some(url);
        }),
        ("more than can be read", |issuer| {
            let padding = " ".repeat(1024 * 1024);
            issuer.said.keys.lock().unwrap().push_str(&padding);
        }),
        ("no key", |issuer| issuer.has(&[])),
    ];
    for (what, lie) in lies {
        let issuer = TestIssuer::start(&[&key]).await;
        lie(&issuer);
        let server = Server::start(&issuer, EAGER).await;
        let expected = match what {
            "the truth" => acme(),
            _ => refused(Refused::IssuerUnreachable),
        };
        let token = key.sign(&issuer.claims(json!({})));
        assert_eq!(server.ask(&token).await, expected, "{what}");
    }
}

#[tokio::test]
async fn keys_that_everybody_on_the_way_can_change_are_not_fetched() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    // Leads to this machine as well, but does not say so.
    let elsewhere = issuer.url.replace("127.0.0.1", "0.0.0.0");
    let keys = format!("{elsewhere}/keys");
    issuer.said.metadata.lock().unwrap()["jwks_uri"] = json!(keys);
    let server = Server::start(&issuer, EAGER).await;
    let token = key.sign(&issuer.claims(json!({})));
    let unreachable = refused(Refused::IssuerUnreachable);
    assert_eq!(server.ask(&token).await, unreachable);
    assert_eq!(issuer.asked(), 0);
    // They were there to be had.
    assert_eq!(answer(server.http.get(&keys)).await.0, 200);
}

#[test]
fn an_issuer_elsewhere_leads_nobody_to_this_machine() {
    let own = "http://127.0.0.1:8080/keys";
    for (issuer, url, good) in [
        ("https://id.example.com", "https://id.example.com/k", true),
        ("https://id.example.com", "https://keys.example.com/", true),
        ("https://id.example.com", own, false),
        ("https://id.example.com", "http://[::1]/keys", false),
        ("http://127.0.0.1:9090", own, true),
        ("http://127.0.0.1:9090", "http://id.example.com/k", false),
    ] {
        assert_eq!(issuer::endpoint(issuer, url).is_ok(), good, "{url}");
    }
}

#[test]
fn only_https_is_spoken_but_on_this_machine() {
    for good in [
        "https://id.example.com/realms/a",
        "http://127.0.0.1:8080",
        "http://[::1]:8080/x",
        "http://localhost/",
    ] {
        assert!(issuer::secure(good).is_ok(), "{good}");
    }
    for bad in [
        "http://id.example.com",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "id.example.com",
        "",
    ] {
        assert!(issuer::secure(bad).is_err(), "{bad}");
        assert!(Issuer::new(bad, None, PATIENT).is_err(), "{bad}");
    }
}
