//! Who may do what.

use super::*;

const NOT_FOUND: &str = r#"{"error":"tenant not found"}"#;

/// Every action on one tenant.
fn actions(tenant: &str) -> Vec<(Method, String)> {
    vec![
        (Method::GET, tenant.to_owned()),
        (Method::PATCH, tenant.to_owned()),
        (Method::DELETE, tenant.to_owned()),
        (Method::GET, format!("{tenant}/vpn")),
        (Method::POST, format!("{tenant}/vpn/enable")),
        (Method::POST, format!("{tenant}/vpn/disable")),
        (Method::POST, format!("{tenant}/vpn/regenerate")),
        (Method::GET, format!("{tenant}/vpn/config")),
    ]
}

#[tokio::test]
async fn without_a_known_token_nothing_is_told() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let mut all = actions(&tenant);
    all.push((Method::GET, "/v1/tenants".to_owned()));
    all.push((Method::POST, "/v1/tenants".to_owned()));
    for (method, path) in all {
        let url = format!("{}{path}", server.url);
        let bare = server.client.request(method.clone(), &url);
        let unknown = server.request("vpe_unknown", method.clone(), &path);
        let basic = server
            .client
            .request(method.clone(), &url)
            .header("Authorization", format!("Basic {}", server.admin.as_str()));
        // Nothing was sent that could be wrong.
        let wrong = r#"Bearer error="invalid_token", error_description="the token is not known; `vpn-edge token add` creates one""#;
        for (request, challenge) in [(bare, "Bearer"), (unknown, wrong), (basic, "Bearer")] {
            let response = request.send().await.unwrap();
            assert_eq!(
                response.status(),
                StatusCode::UNAUTHORIZED,
                "{method} {path}"
            );
            assert_eq!(response.headers()["www-authenticate"], challenge);
            let body = value(&response.text().await.unwrap());
            assert!(body["error"].as_str().unwrap().contains("token"), "{body}");
        }
    }
}

#[tokio::test]
async fn the_scheme_is_read_in_any_case() {
    let server = Server::start().await;
    let request = server
        .client
        .get(format!("{}/v1/tenants", server.url))
        .header("Authorization", format!("bEARER {}", server.acme.as_str()));
    assert_eq!(answer(request).await.0, 200);
}

#[tokio::test]
async fn anothers_an_unknown_and_a_malformed_tenant_look_the_same() {
    let server = Server::start().await;
    let theirs = server.enabled().await;
    let before = server.registry.list().await.unwrap();
    let unknown = format!("/v1/tenants/{}", Uuid::new_v4());
    let upper = theirs[12..].to_uppercase();
    let unhyphenated = format!("/v1/tenants/{}", theirs[12..].replace('-', ""));
    for tenant in [
        theirs.as_str(),
        unknown.as_str(),
        unhyphenated.as_str(),
        "/v1/tenants/1",
        "/v1/tenants/..%2F..%2Fetc",
        "/v1/tenants/%FF%00",
        &format!("/v1/tenants/{upper}x"),
    ] {
        for (method, path) in actions(tenant) {
            let got = answer(server.request(&server.rival, method.clone(), &path)).await;
            assert_eq!(got, (404, NOT_FOUND.to_owned()), "{method} {path}");
        }
    }
    for (method, path) in actions(&unknown) {
        let got = answer(server.request(&server.admin, method.clone(), &path)).await;
        assert_eq!(got, (404, NOT_FOUND.to_owned()), "{method} {path}");
    }
    assert_eq!(server.registry.list().await.unwrap(), before);
}

#[tokio::test]
async fn anothers_tenant_differs_from_none_in_no_byte() {
    let server = Server::start().await;
    let theirs = server.enabled().await;
    let unknown = format!("/v1/tenants/{}", Uuid::new_v4());
    for ((method, anothers), (_, nobodys)) in actions(&theirs).into_iter().zip(actions(&unknown)) {
        let mut answers = Vec::new();
        for path in [&anothers, &nobodys] {
            let request = server.request(&server.rival, method.clone(), path);
            let response = request.send().await.unwrap();
            let version = response.version();
            let mut headers = response.headers().clone();
            headers.remove("date").unwrap();
            let status = response.status();
            answers.push((version, status, headers, response.bytes().await.unwrap()));
        }
        assert_eq!(answers[0], answers[1], "{method} {anothers}");
        assert_eq!(answers[0].1, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_browser_downloads_a_configuration_from_this_servers_pages_alone() {
    let server = Server::start().await;
    let path = format!("{}/vpn/config", server.enabled().await);
    let table = [
        (Some("same-origin"), 200),
        // Typed, or a bookmark.
        (Some("none"), 200),
        (Some("same-site"), 403),
        (Some("cross-site"), 403),
        (None, 403),
    ];
    for (site, expected) in table {
        let by = |credential: reqwest::RequestBuilder| match site {
            Some(site) => credential.header("Sec-Fetch-Site", site),
            None => credential,
        };
        let url = format!("{}{path}", server.url);
        let cookie = format!("{}={}", crate::auth::SESSION, server.acme.as_str());
        let browser = server.client.get(url).header("Cookie", cookie);
        assert_eq!(answer(by(browser)).await.0, expected, "{site:?}");
        // No page sends a bearer token by itself.
        let program = server.request(&server.acme, Method::GET, &path);
        assert_eq!(answer(by(program)).await.0, 200, "{site:?}");
    }
}

#[tokio::test]
async fn members_do_not_create_change_or_delete_tenants() {
    let server = Server::start().await;
    let tenant = server.tenant("acme", "business", true).await;
    let refused = (403, r#"{"error":"admin only"}"#.to_owned());
    let patch = json!({ "plan": "team" });
    let create = json!({ "organisation": "acme", "plan": "business" });
    let token = &server.acme;
    assert_eq!(
        server
            .send(token, Method::POST, "/v1/tenants", create)
            .await,
        refused
    );
    assert_eq!(
        server.send(token, Method::PATCH, &tenant, patch).await,
        refused
    );
    let delete = server.request(token, Method::DELETE, &tenant);
    assert_eq!(answer(delete).await, refused);
    // Also where the body is wrong: what a member may not do is not discussed.
    let nonsense = server.request(token, Method::POST, "/v1/tenants").body("{");
    assert_eq!(answer(nonsense).await, refused);
    assert_eq!(server.registry.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_member_lists_and_sees_its_organisations_tenants() {
    let server = Server::start().await;
    let ours = server.tenant("acme", "business", true).await;
    let theirs = server.tenant("rival", "team", false).await;
    let listed = |text: String| -> Vec<String> {
        let tenants = value(&text)["tenants"].clone();
        let id = |tenant: &Value| format!("/v1/tenants/{}", tenant["id"].as_str().unwrap());
        tenants.as_array().unwrap().iter().map(id).collect()
    };
    let (_, text) = server.get(&server.acme, "/v1/tenants").await;
    assert_eq!(listed(text), std::slice::from_ref(&ours));
    let (_, text) = server.get(&server.admin, "/v1/tenants").await;
    let mut both = [ours.clone(), theirs];
    both.sort();
    assert_eq!(listed(text), both);
    assert_eq!(server.get(&server.acme, &ours).await.0, 200);
}

#[tokio::test]
async fn a_member_runs_its_vpn_from_end_to_end() {
    let server = Server::start().await;
    let tenant = server.enabled().await;
    let token = &server.acme;
    assert_eq!(
        server.get(token, &format!("{tenant}/vpn/config")).await.0,
        200
    );
    assert_eq!(
        server
            .post(token, &format!("{tenant}/vpn/regenerate"))
            .await
            .0,
        202
    );
    server.observe(&tenant, GatewayState::Ready).await;
    assert_eq!(
        server.post(token, &format!("{tenant}/vpn/disable")).await.0,
        200
    );
}

#[tokio::test]
async fn the_admin_works_every_organisations_vpn() {
    let server = Server::start().await;
    let tenant = server.tenant("rival", "enterprise_cloud", true).await;
    let enable = format!("{tenant}/vpn/enable");
    assert_eq!(server.post(&server.admin, &enable).await.0, 202);
    server.observe(&tenant, GatewayState::Ready).await;
    let config = format!("{tenant}/vpn/config");
    assert_eq!(server.get(&server.admin, &config).await.0, 200);
}

#[tokio::test]
async fn a_token_added_or_taken_away_counts_at_once() {
    let server = Server::start().await;
    let file = server.dir.path().join("tokens");
    let member = Role::Member {
        organisation: "new".to_owned(),
    };
    let token = Tokens::add(&file, &member).unwrap();
    assert_eq!(server.get(&token, "/v1/tenants").await.0, 200);
    std::fs::write(&file, "# nobody\n").unwrap();
    assert_eq!(server.get(&token, "/v1/tenants").await.0, 401);
    assert_eq!(server.get(&server.admin, "/v1/tenants").await.0, 401);
}
