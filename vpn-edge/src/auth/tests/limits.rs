//! Sign-ins that fail too often.

use super::*;

/// Fails as often as is allowed, as that address.
async fn use_up(server: &Server, from: &str) {
    for _ in 0..sign_in_limiter::ALLOWED {
        let request = server.whoami("vpe_wrong").header("X-Forwarded-For", from);
        assert_eq!(answer(request).await, refused(Invalid::UnknownToken));
    }
}

#[tokio::test]
async fn an_address_that_fails_too_often_waits_and_good_credentials_do_not() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, EAGER).await;
    let claims = issuer.claims(json!({}));
    let (good, unknown) = (key.sign(&claims), Signer::new("2").sign(&claims));
    use_up(&server, "192.0.2.1").await;

    let from = |token: &str, address: &str| {
        let request = server.whoami(token);
        request.header("X-Forwarded-For", address.to_owned())
    };
    for token in ["vpe_wrong", "a.b.c", &unknown] {
        let response = from(token, "192.0.2.1").send().await.unwrap();
        assert_eq!(response.status(), 429);
        let wait: u64 = response.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=61).contains(&wait), "{wait}");
        assert!(!response.headers().contains_key("www-authenticate"));
    }
    assert_eq!(answer(from(&good, "192.0.2.1")).await, acme());
    assert_eq!(answer(from(&server.admin, "192.0.2.1")).await.0, 200);
    let other = answer(from("vpe_wrong", "192.0.2.2")).await;
    assert_eq!(other, refused(Invalid::UnknownToken));

    // Not even where the issuer has to be asked first.
    let new = Signer::new("new");
    issuer.has(&[&key, &new]);
    assert_eq!(answer(from(&new.sign(&claims), "192.0.2.1")).await, acme());
}

#[tokio::test]
async fn a_session_that_has_ended_is_no_failure() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let expired = key.sign(&issuer.claims(json!({"exp": now() - 60})));
    let early = key.sign(&issuer.claims(json!({"nbf": now() + 600})));
    for _ in 0..=sign_in_limiter::ALLOWED {
        assert_eq!(server.ask(&expired).await, refused(Invalid::Expired));
        assert_eq!(server.ask(&early).await, refused(Invalid::NotYet));
    }
    let wrong = refused(Invalid::UnknownToken);
    for _ in 0..sign_in_limiter::ALLOWED {
        assert_eq!(server.ask("vpe_wrong").await, wrong);
    }
    assert_eq!(server.ask("vpe_wrong").await.0, 429);
    assert_eq!(server.ask(&expired).await, refused(Invalid::Expired));
}

#[test]
fn only_a_trusted_proxy_tells_addresses() {
    let (_dir, mut identity, _) = identity();
    let address = |identity: &Identity, peer: &str, said: &[&str]| {
        let mut request = axum::http::Request::builder();
        for said in said {
            // Bytes by their number.
            let bytes: Vec<u8> = said.chars().map(|c| c as u8).collect();
            let said = axum::http::HeaderValue::from_bytes(&bytes).unwrap();
            request = request.header("X-Forwarded-For", said);
        }
        let peer: SocketAddr = peer.parse().unwrap();
        let request = request.extension(axum::extract::ConnectInfo(peer));
        let (parts, ()) = request.body(()).unwrap().into_parts();
        identity.address(&parts).to_string()
    };
    let forged = ["192.0.2.66"];
    assert_eq!(address(&identity, "192.0.2.1:1", &forged), "192.0.2.1");
    assert_eq!(
        address(&identity, "[::ffff:192.0.2.1]:1", &forged),
        "192.0.2.1"
    );
    identity.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let table: [(&str, &[&str], &str); 13] = [
        ("192.0.2.1:1", &forged, "192.0.2.1"),
        ("10.0.0.1:1", &[], "10.0.0.1"),
        ("10.0.0.1:1", &["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1:1", &["192.0.2.66, 192.0.2.1"], "192.0.2.1"),
        (
            "10.0.0.1:1",
            &["192.0.2.66", "192.0.2.1,10.0.0.2"],
            "192.0.2.1",
        ),
        ("10.0.0.1:1", &["192.0.2.66, nonsense"], "10.0.0.1"),
        ("[::ffff:10.0.0.1]:1", &["2001:db8::1"], "2001:db8::1"),
        // As other proxies write it.
        ("10.0.0.1:1", &["192.0.2.1:4711"], "192.0.2.1"),
        ("10.0.0.1:1", &["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1:1", &["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1:1", &["[::ffff:192.0.2.1]"], "192.0.2.1"),
        // What a client sent before does not hide what the proxy says.
        ("10.0.0.1:1", &["\u{ff}, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1:1", &["nonsense", "192.0.2.1"], "192.0.2.1"),
    ];
    for (peer, said, expected) in table {
        assert_eq!(address(&identity, peer, said), expected, "{said:?}");
    }
}
