//! Issuers that rotate, fall silent, and lie.

use futures_util::future::join_all;

use super::*;

#[tokio::test]
async fn a_new_key_counts_at_once_and_one_taken_away_no_longer() {
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

#[tokio::test]
async fn keys_go_on_being_used_while_the_issuer_is_away_but_not_for_ever() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let stale = Ages {
        fresh: Duration::ZERO,
        ..EAGER
    };
    let server = Server::start(&issuer, stale).await;
    let too_old = Ages {
        usable: Duration::ZERO,
        ..EAGER
    };
    let strict = Server::start(&issuer, too_old).await;
    let token = key.sign(&issuer.claims(json!({})));
    assert_eq!(server.ask(&token).await, acme());
    issuer.down(true);
    for _ in 0..3 {
        assert_eq!(server.ask(&token).await, acme());
    }
    let unknown = Signer::new("unknown").sign(&issuer.claims(json!({})));
    assert_eq!(server.ask(&unknown).await, refused(Invalid::UnknownKey));
    assert_eq!(
        strict.ask(&token).await,
        refused(Refused::IssuerUnreachable)
    );
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
    let lies: [(&str, Lie); 6] = [
        ("the truth", |_| {}),
        ("another issuer's metadata", |issuer| {
            issuer.said.metadata.lock().unwrap()["issuer"] = json!("https://evil.example");
        }),
        ("a redirect", |issuer| {
            let url = format!("{}/moved", issuer.url);
            *issuer.said.moved.lock().unwrap() = Some(url);
        }),
        ("keys that everybody on the way can change", |issuer| {
            issuer.said.metadata.lock().unwrap()["jwks_uri"] = json!("http://192.0.2.1/keys");
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
