//! A browser's session: pasted in, used, protected, forgotten.

use reqwest::Response;

use super::*;

impl Server {
    /// Sends the form with a pasted token, as this server's own page would.
    async fn paste(&self, token: &str, back: &str) -> Response {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .append_pair("return", back)
            .finish();
        let request = self.request(Method::POST, "/auth/login").body(form);
        let request = request.header("Sec-Fetch-Site", "same-origin");
        request.send().await.unwrap()
    }
}

/// The cookie of this name that an answer sets: its value and its attributes.
pub fn cookie_of(response: &Response, name: &str) -> Option<(String, String)> {
    let mut set = response.headers().get_all("set-cookie").iter();
    set.find_map(|value| {
        let (pair, attributes) = value.to_str().unwrap().split_once("; ")?;
        let (found, value) = pair.split_once('=')?;
        (found == name).then(|| (value.to_owned(), attributes.to_owned()))
    })
}

async fn start() -> (Server, String) {
    let key = Signer::new("1");
    let issuer = TestIssuer::start(&[&key]).await;
    let server = Server::start(&issuer, PATIENT).await;
    (server, key.sign(&issuer.claims(json!({}))))
}

#[tokio::test]
async fn a_pasted_token_is_the_session() {
    let (server, jwt) = start().await;
    for token in [jwt.as_str(), server.admin.as_str()] {
        let response = server.paste(&format!(" {token}\n"), "/tenants/1?a=b").await;
        assert_eq!(response.status(), 303);
        assert_eq!(response.headers()["location"], "/tenants/1?a=b");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let (value, attributes) = cookie_of(&response, SESSION).unwrap();
        assert_eq!(value, token);
        assert_eq!(attributes, "Path=/; HttpOnly; Secure; SameSite=Lax");
        let request = server.request(Method::GET, "/whoami");
        let request = request.header("Cookie", format!("a=b; {SESSION}={value}"));
        assert_eq!(answer(request).await.0, 200);
    }
    for bad in ["", "vpe_wrong", "a.b.c"] {
        let response = server.paste(bad, "/").await;
        assert!(response.status().is_client_error(), "{bad}");
        assert_eq!(cookie_of(&response, SESSION), None);
    }
    let response = server.paste(&jwt, "//evil.example").await;
    assert_eq!(response.headers()["location"], "/");
}

#[tokio::test]
async fn what_may_change_something_must_come_from_this_servers_pages() {
    let (server, jwt) = start().await;
    let own = server.url.as_str();
    let site = |value: &'static str| vec![("Sec-Fetch-Site", value)];
    let table: Vec<(Vec<(&str, &str)>, bool)> = vec![
        (site("same-origin"), true),
        (site("same-site"), false),
        (site("cross-site"), false),
        (site("none"), false),
        (vec![], false),
        (vec![("Origin", own)], true),
        (vec![("Origin", "http://evil.example")], false),
        (vec![("Origin", "http://127.0.0.1")], false),
        (vec![("Origin", "null")], false),
        (
            vec![
                ("Host", "vpn.example.com"),
                ("Origin", "https://vpn.example.com"),
            ],
            true,
        ),
        // Whoever is on the way can be that page.
        (
            vec![
                ("Host", "vpn.example.com"),
                ("Origin", "http://vpn.example.com"),
            ],
            false,
        ),
        // A browser that says both is to mean both.
        (
            vec![("Sec-Fetch-Site", "cross-site"), ("Origin", own)],
            false,
        ),
    ];
    let cookie = format!("{SESSION}={jwt}");
    for (headers, good) in table {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let mut request = server.request(method.clone(), "/whoami");
            let mut login = server.request(Method::POST, "/auth/login");
            let mut logout = server.request(Method::POST, "/auth/logout");
            for (name, value) in &headers {
                request = request.header(*name, *value);
                login = login.header(*name, *value);
                logout = logout.header(*name, *value);
            }
            let expected = if good {
                acme()
            } else {
                refused(Refused::CrossSite)
            };
            let got = answer(request.header("Cookie", &cookie)).await;
            assert_eq!(got, expected, "{method} {headers:?}");
            let login = answer(login.body(format!("token={jwt}"))).await.0;
            assert_eq!(login, if good { 303 } else { 403 }, "{headers:?}");
            let logout = answer(logout).await.0;
            assert_eq!(logout, if good { 303 } else { 403 }, "{headers:?}");
        }
    }
    // Reading changes nothing, and no page sends a bearer token by itself.
    let read = server
        .request(Method::GET, "/whoami")
        .header("Cookie", &cookie);
    assert_eq!(answer(read).await, acme());
    let bearer = server.request(Method::POST, "/whoami").bearer_auth(&jwt);
    assert_eq!(
        answer(bearer.header("Origin", "http://evil.example")).await,
        acme()
    );
}

#[test]
fn an_origin_is_that_of_the_address_or_else_of_what_was_asked() {
    let (_dir, mut identity, _) = identity();
    let check = |identity: &Identity, uri: &str, origin: &str| {
        let request = axum::http::Request::builder().uri(uri);
        let request = request.header("Origin", origin).body(());
        let (parts, ()) = request.unwrap().into_parts();
        identity.check_same_origin(&parts).is_ok()
    };
    let (here, there) = ("https://vpn.example.com", "https://b.example.com");
    let asked = format!("{here}/x");
    assert!(check(&identity, &asked, here));
    assert!(!check(&identity, &asked, there));
    assert!(!check(&identity, "/x", here));
    identity.public = Some(there.parse().unwrap());
    assert!(check(&identity, &asked, there));
    assert!(check(&identity, "/x", there));
    assert!(!check(&identity, &asked, here));
}

#[tokio::test]
async fn by_https_the_cookies_are_this_hosts_alone() {
    let issuer = TestIssuer::start(&[&Signer::new("1")]).await;
    let public = Some("https://vpn.example.com");
    let server = Server::start_at(&issuer, PATIENT, public).await;
    let name = format!("__Host-{SESSION}");
    let response = server.paste(&server.admin, "/").await;
    let (value, attributes) = cookie_of(&response, &name).unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; Secure; SameSite=Lax");
    let whoami = |name: &str| {
        let request = server.request(Method::GET, "/whoami");
        request.header("Cookie", format!("{name}={value}"))
    };
    assert_eq!(answer(whoami(&name)).await.0, 200);
    // This one another host of example.com can set.
    assert_eq!(answer(whoami(SESSION)).await, refused(Refused::Missing));

    let login = server.request(Method::GET, "/auth/login");
    let login = login.send().await.unwrap();
    let (_, attributes) = cookie_of(&login, "__Host-vpn-edge-sign-in").unwrap();
    assert_eq!(
        attributes,
        "Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax"
    );
    let logout = server.request(Method::POST, "/auth/logout");
    let logout = logout.header("Sec-Fetch-Site", "same-origin");
    let logout = logout.send().await.unwrap();
    assert!(cookie_of(&logout, &name).unwrap().0.is_empty());
}

#[test]
fn a_certificate_of_its_own_is_https_as_well() {
    let (_dir, identity, _) = identity();
    assert_eq!(
        (identity.is_https(), &*identity.cookie_name(SESSION)),
        (false, SESSION)
    );
    let identity = Identity {
        tls: true,
        ..identity
    };
    assert!(identity.is_https());
    assert_eq!(identity.cookie_name(SESSION), format!("__Host-{SESSION}"));
}

#[test]
fn a_link_of_a_browser_that_names_no_site_is_told_by_its_page() {
    let (_dir, identity, _) = identity();
    let own = |referer: Option<&str>, site: Option<&str>| {
        let mut request =
            http::Request::get("/tenants/1/configuration").header("Host", "127.0.0.1:8080");
        for (name, value) in [("Referer", referer), ("Sec-Fetch-Site", site)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        identity.check_own_link(&parts).is_ok()
    };
    let page = Some("http://127.0.0.1:8080/tenants/1");
    assert!(own(page, None));
    assert!(!own(
        Some("http://evil.example/http://127.0.0.1:8080/"),
        None
    ));
    assert!(!own(None, None));
    assert!(!own(page, Some("cross-site")));
}

#[tokio::test]
async fn a_session_that_comes_twice_is_nobodys() {
    let (server, jwt) = start().await;
    let own = format!("{SESSION}={jwt}");
    let planted = format!("{SESSION}={}", server.admin.as_str());
    for cookies in [
        vec![format!("{own}; {planted}")],
        vec![format!("{planted}; a=b; {own}")],
        vec![own.clone(), planted.clone()],
    ] {
        let mut request = server.request(Method::GET, "/whoami");
        for cookie in cookies {
            request = request.header("Cookie", cookie);
        }
        let expected = Refused::CookieTwice(SESSION.to_owned());
        assert_eq!(answer(request).await, refused(expected));
    }
}

#[tokio::test]
async fn a_bearer_token_goes_before_the_cookie() {
    let (server, jwt) = start().await;
    let cookie = format!("{SESSION}={jwt}");
    let wrong = server.whoami("vpe_wrong").header("Cookie", &cookie);
    assert_eq!(answer(wrong).await, refused(Invalid::UnknownToken));
    let basic = server.request(Method::GET, "/whoami");
    let basic = basic
        .header("Authorization", "Basic eDp5")
        .header("Cookie", &cookie);
    assert_eq!(answer(basic).await, refused(Refused::Missing));
}

#[tokio::test]
async fn signing_out_has_the_browser_forget() {
    let (server, _) = start().await;
    let request = server.request(Method::POST, "/auth/logout");
    let request = request.header("Sec-Fetch-Site", "same-origin");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 303);
    let (value, attributes) = cookie_of(&response, SESSION).unwrap();
    assert!(value.is_empty() && attributes.ends_with("Max-Age=0"));
    // No link and no picture signs anybody out.
    let get = server.request(Method::GET, "/auth/logout");
    assert_eq!(answer(get).await.0, 405);
}
