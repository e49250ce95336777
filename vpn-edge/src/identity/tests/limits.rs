//! Sign-ins that fail too often.

use super::*;

/// Fails as often as is allowed, as that address.
async fn use_up(server: &Server, from: &str) {
    for _ in 0..failures::ALLOWED {
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

    // Nor is the issuer asked for what such an address comes with.
    let asked = issuer.asked();
    answer(from(&unknown, "192.0.2.1")).await;
    assert_eq!(issuer.asked(), asked);
    answer(from(&unknown, "192.0.2.2")).await;
    assert_eq!(issuer.asked(), asked + 1);
}

#[tokio::test]
async fn a_code_from_such_an_address_is_not_taken_to_the_issuer() {
    let issuer = TestIssuer::start(&[&Signer::new("1")]).await;
    let server = Server::start(&issuer, EAGER).await;
    use_up(&server, "192.0.2.1").await;
    let callback = |from: &'static str| {
        server
            .request(Method::GET, "/auth/callback?code=x&state=y")
            .header("X-Forwarded-For", from)
    };
    assert_eq!(answer(callback("192.0.2.1")).await.0, 429);
    assert_eq!(answer(callback("192.0.2.2")).await.0, 400);
}

#[test]
fn only_a_trusted_proxy_tells_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    Tokens::add(&file, &Role::Admin).unwrap();
    let mut identity = Identity::new(Tokens::load(&file).unwrap());
    let address = |identity: &Identity, peer: &str, said: &[&str]| {
        let mut request = axum::http::Request::builder();
        for said in said {
            request = request.header("X-Forwarded-For", *said);
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
    let table: [(&str, &[&str], &str); 7] = [
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
    ];
    for (peer, said, expected) in table {
        assert_eq!(address(&identity, peer, said), expected, "{said:?}");
    }
}
