//! Which tokens are taken.

use jsonwebtoken::{DecodingKey, Validation, decode};
use ring::hmac;

use super::*;

#[tokio::test]
async fn a_good_token_names_its_caller() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let table = [
        (json!({}), "acme oidc:1 ada@acme.example"),
        (
            json!({"aud": ["other", "dashboard"]}),
            "acme oidc:1 ada@acme.example",
        ),
        (json!({"nbf": now() - 60, "email": null}), "acme oidc:1"),
        (
            json!({"groups": ["vpn-admins"], "organisation": null}),
            "admin oidc:1 ada@acme.example",
        ),
        // Clocks differ.
        (
            json!({"exp": now() - 5, "nbf": now() + 5}),
            "acme oidc:1 ada@acme.example",
        ),
    ];
    for (changes, expected) in table {
        let token = key.sign(&issuer.claims(changes));
        assert_eq!(server.ask(&token).await, (200, expected.to_owned()));
    }
    // The only key needs no name.
    let token = key.sign_as(&json!({"alg": "ES256"}), &issuer.claims(json!({})));
    assert_eq!(server.ask(&token).await, acme());
    let (status, text) = server.ask(&server.admin).await;
    assert!(status == 200 && text.starts_with("admin token:"), "{text}");
}

#[tokio::test]
async fn a_token_of_nobody_is_forbidden_and_says_which_claim_it_lacks() {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    let token = key.sign(&issuer.claims(json!({"organisation": "a b"})));
    let expected = Refused::NoOrganisation("organisation".to_owned());
    assert_eq!(server.ask(&token).await, refused(expected));
}

#[tokio::test]
async fn a_bad_token_is_refused_with_its_reason_and_nothing_of_itself() {
    let key = Signer::new("1");
    let stranger = Signer::new("1");
    let issuer = TestIssuer::start(&[&key, &Signer::new("2")]).await;
    let claims = issuer.claims(json!({}));
    let changed = |changes: Value| key.sign(&issuer.claims(changes));
    let good = key.sign(&claims);
    let unsigned_part = |alg: &str| unsigned(&json!({"alg": alg, "kid": "1"}), &claims);
    let by_hmac = |secret: &[u8]| {
        let message = unsigned_part("HS256");
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let tag = hmac::sign(&secret, message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let other_claims = good.replacen('.', "..", 1).replace("..", ".e30");
    let table = [
        (
            "alg none",
            format!("{}.", unsigned_part("none")),
            Invalid::Malformed,
        ),
        (
            "alg None",
            format!("{}.AAAA", unsigned_part("None")),
            Invalid::Malformed,
        ),
        (
            "public key as secret",
            by_hmac(key.pair.public_key().as_ref()),
            Invalid::Algorithm,
        ),
        (
            "the key's text as secret",
            by_hmac(key.jwk().to_string().as_bytes()),
            Invalid::Algorithm,
        ),
        ("no secret", by_hmac(b""), Invalid::Algorithm),
        (
            "another algorithm",
            key.sign_as(&json!({"alg": "ES384", "kid": "1"}), &claims),
            Invalid::Algorithm,
        ),
        (
            "RSA by a curve's key",
            key.sign_as(&json!({"alg": "RS256", "kid": "1"}), &claims),
            Invalid::Algorithm,
        ),
        (
            "a stranger's key",
            stranger.sign(&claims),
            Invalid::Signature,
        ),
        (
            "no signature",
            format!("{}.", unsigned_part("ES256")),
            Invalid::Signature,
        ),
        ("changed claims", other_claims, Invalid::Signature),
        (
            "a key of its own",
            stranger.sign_as(
                &json!({"alg": "ES256", "kid": "3", "jwk": stranger.jwk()}),
                &claims,
            ),
            Invalid::UnknownKey,
        ),
        (
            "keys elsewhere",
            stranger.sign_as(
                &json!({"alg": "ES256", "kid": "3", "jku": "http://127.0.0.1:1/"}),
                &claims,
            ),
            Invalid::UnknownKey,
        ),
        (
            "no key, of two",
            key.sign_as(&json!({"alg": "ES256"}), &claims),
            Invalid::UnknownKey,
        ),
        (
            "something critical",
            key.sign_as(
                &json!({"alg": "ES256", "kid": "1", "crit": ["b64"]}),
                &claims,
            ),
            Invalid::Malformed,
        ),
        (
            "expired",
            changed(json!({"exp": now() - 60})),
            Invalid::Expired,
        ),
        (
            "future",
            changed(json!({"nbf": now() + 120})),
            Invalid::NotYet,
        ),
        (
            "audience",
            changed(json!({"aud": "others"})),
            Invalid::Audience,
        ),
        (
            "audiences",
            changed(json!({"aud": ["others"]})),
            Invalid::Audience,
        ),
        (
            "issuer",
            changed(json!({"iss": "https://evil.example"})),
            Invalid::Issuer,
        ),
        (
            "no issuer",
            changed(json!({"iss": null})),
            Invalid::Incomplete,
        ),
        (
            "no audience",
            changed(json!({"aud": null})),
            Invalid::Incomplete,
        ),
        (
            "no expiry",
            changed(json!({"exp": null})),
            Invalid::Incomplete,
        ),
        (
            "no subject",
            changed(json!({"sub": null})),
            Invalid::Incomplete,
        ),
        (
            "expiry in words",
            changed(json!({"exp": "tomorrow"})),
            Invalid::Incomplete,
        ),
        ("no JWT", "a.b.c".to_owned(), Invalid::Malformed),
        (
            "too large",
            changed(json!({"x": "x".repeat(20_000)})),
            Invalid::Malformed,
        ),
        ("static", "vpe_unknown".to_owned(), Invalid::UnknownToken),
        ("five parts", "a.b.c.d.e".to_owned(), Invalid::UnknownToken),
    ];
    for (what, token, reason) in table {
        // Else there are soon too many failures.
        let server = Server::start(&issuer, PATIENT).await;
        assert_eq!(server.ask(&good).await, acme());
        let response = server.whoami(&token).send().await.unwrap();
        assert_eq!(response.status(), 401, "{what}");
        let challenge = format!(r#"Bearer error="invalid_token", error_description="{reason}""#);
        assert_eq!(response.headers()["www-authenticate"], *challenge, "{what}");
        let body = response.text().await.unwrap();
        assert_eq!(
            body,
            json!({"error": reason.to_string()}).to_string(),
            "{what}"
        );
    }
}

/// RFC 7515, section A.2, by its own key and signature.
#[test]
fn the_rfcs_rsa_example_is_verified() {
    keys::use_ring();
    let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let key = json!({"keys": [
        {"kty": "oct", "k": "AAAA", "alg": "HS256"},
        {"kty": "RSA", "n": n, "e": "AQAB", "use": "enc"},
        {"kty": "RSA", "n": n, "e": "AQAB", "alg": "RSA-OAEP"},
        {"kty": "unheard-of"},
        {"kty": "RSA", "n": n, "e": "AQAB"},
    ]});
    let set: keys::KeySet = serde_json::from_value(key).unwrap();
    let usable = set.usable();
    assert_eq!(usable.len(), 1, "{usable:?}");
    let verify = |token: &str, key: &DecodingKey| {
        let mut validation = Validation::new(usable[0].algorithm);
        validation.validate_exp = false;
        decode::<Value>(token, key, &validation)
    };
    let claims = verify(token, &usable[0].key).unwrap().claims;
    assert_eq!(claims["iss"], "joe");
    assert!(verify(&token.replace("cC4h", "cC4i"), &usable[0].key).is_err());
}

/// RFC 8037, section A.4: Ed25519.
#[test]
fn the_rfcs_ed25519_example_is_verified() {
    keys::use_ring();
    let set = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    ]});
    let set: keys::KeySet = serde_json::from_value(set).unwrap();
    let key = &set.usable()[0];
    let message = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature =
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let verify = |message: &str| {
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, key.algorithm)
    };
    assert!(verify(message).unwrap());
    assert!(!verify(&message.replace('R', "S")).unwrap());
}
