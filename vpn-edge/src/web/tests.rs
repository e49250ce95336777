//! The pages over real HTTP; a real browser looks at them in the suite `page`.

use reqwest::header::{self, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder};

use crate::api::tests::Server;
use crate::domain::GatewayState;
use crate::registry::Registry;
use crate::wireguard::PrivateKey;

/// A browser that is signed in by a token.
struct Browser<'a> {
    server: &'a Server,
    client: Client,
    token: &'a str,
}

/// What it was answered.
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl<'a> Browser<'a> {
    fn new(server: &'a Server, token: &'a str) -> Browser<'a> {
        let client = Client::builder().redirect(Policy::none()).build().unwrap();
        Browser {
            server,
            client,
            token,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .client
            .request(method, format!("{}{path}", self.server.url))
            .header(header::ACCEPT, "text/html,application/xhtml+xml");
        match self.token {
            "" => request,
            token => request.header(header::COOKIE, format!("vpn-edge-session={token}")),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        let request = self.request(Method::GET, path);
        answer(request.header("sec-fetch-site", "same-origin")).await
    }

    async fn submit(&self, path: &str, form: &str) -> Answer {
        let request = self
            .request(Method::POST, path)
            .header("sec-fetch-site", "same-origin")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        answer(request.body(form.to_owned())).await
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

impl Answer {
    fn location(&self) -> &str {
        assert_eq!(self.status, 303, "{}", self.text);
        self.headers[header::LOCATION].to_str().unwrap()
    }

    fn shows(&self, words: &[&str]) {
        for word in words {
            assert!(self.text.contains(word), "no {word:?} in {}", self.text);
        }
    }

    fn hides(&self, words: &[&str]) {
        for word in words {
            assert!(!self.text.contains(word), "{word:?} in {}", self.text);
        }
    }
}

/// The page of the tenant that the API has at `path`.
fn page(path: &str) -> &str {
    path.strip_prefix("/v1").unwrap()
}

async fn enabled(server: &Server, browser: &Browser<'_>) -> String {
    let path = server.tenant("acme", "business", true).await;
    let at = browser.submit(&format!("{}/enable", page(&path)), "").await;
    assert_eq!(at.location(), page(&path));
    server.observe(&path, GatewayState::Ready).await;
    path
}

#[tokio::test]
async fn strangers_are_asked_to_sign_in_and_come_back() {
    let server = Server::start().await;
    let browser = Browser::new(&server, "");
    let path = "/tenants?search=a%20b";
    let to = "/sign-in?return=%2Ftenants%3Fsearch%3Da%2520b";
    assert_eq!(browser.get(path).await.location(), to);
    let answer = browser.get(to).await;
    assert_eq!(answer.status, 200);
    answer.shows(&[
        "action=\"/auth/login?return=%2Ftenants%3Fsearch%3Da%2520b\"",
        "With a token",
    ]);
    // No issuer is set up, and nothing has ended.
    answer.hides(&["With your organisation", "has ended"]);

    let id = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";
    let posted = browser.submit(&format!("/tenants/{id}/enable"), "").await;
    assert_eq!(posted.location(), "/sign-in?return=%2F");
    for path in ["/", &format!("/tenants/{id}"), "/tenants/x/configuration"] {
        assert!(
            browser.get(path).await.location().starts_with("/sign-in?"),
            "{path}"
        );
    }

    let stale = Browser::new(&server, "vpnedge_gone").get("/tenants").await;
    assert_eq!(stale.location(), "/sign-in?return=%2Ftenants&ended");
    browser
        .get(stale.location())
        .await
        .shows(&["Your session has ended"]);
    let known = Browser::new(&server, &server.acme);
    let path = "/sign-in?return=%2Ftenants";
    assert_eq!(known.get(path).await.location(), "/tenants");
    let path = "/sign-in?return=%2F%2Fevil.example";
    assert_eq!(known.get(path).await.location(), "/");
}

#[tokio::test]
async fn a_failed_sign_in_is_a_page_for_browsers_alone() {
    let server = Server::start().await;
    let browser = Browser::new(&server, "");
    let answer = browser.submit("/auth/login", "token=wrong").await;
    assert_eq!(answer.status, 401);
    assert_eq!(
        answer.headers[header::CONTENT_TYPE],
        "text/html; charset=utf-8"
    );
    answer.shows(&["The token is not known", "role=\"alert\"", "name=\"token\""]);
    let request = Client::new()
        .post(format!("{}/auth/login", server.url))
        .header("sec-fetch-site", "same-origin")
        .body("token=wrong");
    let answer = self::answer(request).await;
    assert_eq!(
        (
            answer.status,
            answer.headers[header::CONTENT_TYPE].to_str().unwrap()
        ),
        (401, "application/json")
    );

    let form = format!("token={}&return=%2Ftenants", *server.acme);
    assert_eq!(
        browser.submit("/auth/login", &form).await.location(),
        "/tenants"
    );
}

#[tokio::test]
async fn whatever_is_served_tells_browsers_what_they_may_do_with_it() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let tenant = server.tenant("acme", "business", true).await;
    for path in [
        "/sign-in",
        page(&tenant),
        &tenant,
        "/nothing",
        "/v1/nothing",
        "/assets/style.css",
    ] {
        let answer = browser.get(path).await;
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';"), "{path} {policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(policy.contains("form-action 'self'"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "same-origin");
        let kept = match path {
            "/assets/style.css" => "no-cache",
            _ => "no-store",
        };
        assert_eq!(header("cache-control"), kept, "{path}");
        // This server is not known to be reached by HTTPS.
        assert!(!answer.headers.contains_key("strict-transport-security"));
        // Neither styles nor scripts within a page, which the policy forbids.
        answer.hides(&["<style", " style=", " onclick=", "<script>"]);
    }
    let first = browser.get("/assets/style.css").await;
    let again = browser
        .request(Method::GET, "/assets/style.css")
        .header(header::IF_NONE_MATCH, &first.headers[header::ETAG]);
    let again = answer(again).await;
    assert_eq!((again.status, again.text.len()), (304, 0));
}

#[tokio::test]
async fn the_page_says_what_each_state_means_and_leads_on() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let (enable, disable) = ("Enable VPN</button>", ">Disable VPN</a>");
    let (download, regenerate) = (">Download configuration</a>", ">Regenerate Keys</a>");

    let path = server.tenant("acme", "team", true).await;
    let answer = browser.get(page(&path)).await;
    answer.shows(&[
        "class=\"state unavailable\"",
        "Team plan does not include the VPN",
        "Upgrade",
    ]);
    answer.hides(&[enable, disable, download, regenerate, "data-follow"]);

    let path = server.tenant("acme", "business", false).await;
    let answer = browser.get(page(&path)).await;
    answer.shows(&[
        "class=\"state disabled\"",
        "<button class=\"primary\" disabled",
    ]);
    answer.shows(&["still being provisioned"]);

    let path = server.tenant("acme", "enterprise_cloud", true).await;
    let answer = browser.get(page(&path)).await;
    answer.shows(&["class=\"state disabled\"", enable, "Enterprise Cloud plan"]);
    answer.hides(&[disable, download, regenerate, "Endpoint", "\" disabled"]);

    browser.submit(&format!("{}/enable", page(&path)), "").await;
    let answer = browser.get(page(&path)).await;
    answer.shows(&["class=\"state enabling\"", "data-follow=\"fast\""]);
    answer.shows(&[
        "<noscript><meta http-equiv=\"refresh\"",
        "vpn.example.org:30",
    ]);
    answer.hides(&[enable, disable, download, regenerate]);

    server.observe(&path, GatewayState::Ready).await;
    let answer = browser.get(page(&path)).await;
    let status = browser.get(&format!("{path}/vpn")).await.text;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    for field in [
        "endpoint",
        "client_address",
        "server_public_key",
        "client_public_key",
    ] {
        answer.shows(&[status[field].as_str().unwrap()]);
    }
    answer.shows(&["class=\"state enabled\"", download, regenerate, disable]);
    answer.shows(&[
        "<time datetime=\"",
        "macOS",
        "Linux",
        "Windows",
        "iOS",
        "Android",
    ]);
    answer.shows(&["sslmode=require", "10.96.0.10"]);
    answer.hides(&[enable, "http-equiv"]);

    let reason = "<script>alert(1)</script> died";
    server
        .observe(&path, GatewayState::Failed(reason.to_owned()))
        .await;
    server
        .observe(&path, GatewayState::Failed(reason.to_owned()))
        .await;
    let answer = browser.get(page(&path)).await;
    answer.shows(&[
        "class=\"state failed\"",
        "alert(1)",
        "died",
        enable,
        disable,
    ]);
    answer.hides(&["<script>alert", download]);
}

#[tokio::test]
async fn what_disconnects_people_is_warned_of_first() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let path = enabled(&server, &browser).await;
    let before = browser.get(&format!("{path}/vpn/config")).await.text;

    let warning = browser.get(&format!("{}/regenerate", page(&path))).await;
    warning.shows(&["stops working at once", "method=\"post\"", "Cancel"]);
    assert_eq!(
        browser.get(&format!("{path}/vpn/config")).await.text,
        before
    );
    let done = browser
        .submit(&format!("{}/regenerate", page(&path)), "")
        .await;
    assert_eq!(done.location(), page(&path));
    server.observe(&path, GatewayState::Ready).await;
    assert_ne!(
        browser.get(&format!("{path}/vpn/config")).await.text,
        before
    );

    let warning = browser.get(&format!("{}/disable", page(&path))).await;
    warning.shows(&[
        "disconnects all active sessions",
        "method=\"post\"",
        "Cancel",
    ]);
    let done = browser
        .submit(&format!("{}/disable", page(&path)), "")
        .await;
    assert_eq!(done.location(), page(&path));
    browser
        .get(page(&path))
        .await
        .shows(&["class=\"state disabled\""]);

    // Twice, from another window.
    for action in ["disable", "regenerate"] {
        let refused = browser
            .submit(&format!("{}/{action}", page(&path)), "")
            .await;
        assert_eq!(refused.status, 409);
        refused.shows(&["The VPN is not enabled.", "role=\"alert\""]);
    }
}

#[tokio::test]
async fn refused_changes_say_why_and_keep_what_was_typed() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let path = server.tenant("acme", "business", true).await;
    let enable = format!("{}/enable", page(&path));

    let bad = browser
        .submit(&enable, "public_key=%22%3E%3Cscript%3Ex")
        .await;
    assert_eq!(bad.status, 400);
    bad.shows(&[
        "The public key is not valid",
        "script",
        "<details class=\"plain\" open>",
    ]);
    bad.hides(&["<script>x", "\"><script"]);

    let key = PrivateKey::generate().unwrap().public();
    let form: String = form_urlencoded::byte_serialize(key.to_string().as_bytes()).collect();
    let form = format!("public_key=+{form}%0A");
    assert_eq!(browser.submit(&enable, &form).await.location(), page(&path));
    let again = browser.submit(&enable, &form).await;
    assert_eq!(again.status, 409);
    again.shows(&["being enabled", "class=\"state enabling\""]);
    // That page follows the state, too.
    assert_eq!(browser.get(&enable).await.location(), page(&path));
    server.observe(&path, GatewayState::Ready).await;
    let answer = browser.get(page(&path)).await;
    answer.shows(&[&key.to_string(), "only on your device"]);
    let answer = browser.get(&format!("{}/configuration", page(&path))).await;
    answer.shows(&["There is no QR code", "&#60;your private key&#62;"]);
    answer.hides(&["<svg"]);

    let team = server.tenant("acme", "team", true).await;
    let refused = browser.submit(&format!("{}/enable", page(&team)), "").await;
    assert_eq!(refused.status, 403);
    refused.shows(&["Upgrade to Business or Enterprise Cloud"]);
}

#[tokio::test]
async fn no_other_site_changes_or_downloads_anything() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let path = enabled(&server, &browser).await;
    for action in ["enable", "disable", "regenerate"] {
        let path = format!("{}/{action}", page(&path));
        for site in ["cross-site", "same-site", "none"] {
            let request = browser.request(Method::POST, &path);
            let refused = answer(request.header("sec-fetch-site", site)).await;
            assert_eq!(refused.status, 403, "{action} {site}");
            refused.shows(&["from another site"]);
        }
        // And of a browser that says nothing of it.
        let refused = answer(browser.request(Method::POST, &path)).await;
        assert_eq!(refused.status, 403, "{action}");
    }
    let path = format!("{}/configuration", page(&path));
    let request = browser.request(Method::GET, &path);
    let away = answer(request.header("sec-fetch-site", "cross-site")).await;
    assert_eq!(format!("{}/configuration", away.location()), path);
    assert_eq!(browser.get(&path).await.status, 200);
}

#[tokio::test]
async fn the_configuration_is_shown_as_it_is_downloaded() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let path = enabled(&server, &browser).await;
    let file = browser.get(&format!("{path}/vpn/config")).await.text;
    let shown = browser.get(&format!("{}/configuration", page(&path))).await;
    assert_eq!(shown.status, 200);
    assert_eq!(shown.headers[header::CACHE_CONTROL], "no-store");
    shown.shows(&[&format!("<code id=\"configuration\">{file}</code>"), "<svg"]);
    shown.hides(&["<?xml"]);

    let other = server.tenant("acme", "business", true).await;
    let refused = browser
        .get(&format!("{}/configuration", page(&other)))
        .await;
    assert_eq!(refused.status, 409);
    refused.shows(&["The VPN is not enabled."]);
}

#[tokio::test]
async fn another_organisations_tenant_is_no_tenant() {
    let server = Server::start().await;
    let path = server.tenant("acme", "business", true).await;
    let browser = Browser::new(&server, &server.rival);
    let unknown = "/tenants/6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";
    for rest in ["", "/disable", "/regenerate", "/configuration"] {
        let other = browser.get(&format!("{}{rest}", page(&path))).await;
        let none = browser.get(&format!("{unknown}{rest}")).await;
        assert_same(&other, &none);
        assert_same(&none, &browser.get(&format!("/tenants/x{rest}")).await);
    }
    for rest in ["/enable", "/disable", "/regenerate"] {
        let other = browser.submit(&format!("{}{rest}", page(&path)), "").await;
        let none = browser.submit(&format!("{unknown}{rest}"), "").await;
        assert_same(&other, &none);
    }
    browser.get("/tenants").await.hides(&["acme"]);
}

fn assert_same(one: &Answer, other: &Answer) {
    assert_eq!(one.status, 404);
    assert_eq!((one.status, &one.text), (other.status, &other.text));
    let without_date = |answer: &Answer| {
        let mut headers = answer.headers.clone();
        headers.remove(header::DATE);
        headers
    };
    assert_eq!(without_date(one), without_date(other));
}

#[tokio::test]
async fn tenants_are_listed_searched_and_paged() {
    let server = Server::start().await;
    let admin = Browser::new(&server, &server.admin);
    let member = Browser::new(&server, &server.acme);
    member
        .get("/tenants")
        .await
        .shows(&["There are no tenants yet"]);
    let path = enabled(&server, &member).await;
    // A member's only tenant is what it came for; an admin came for all.
    assert_eq!(member.get("/tenants").await.location(), page(&path));
    assert_eq!(member.get("/").await.location(), "/tenants");
    let seen = admin.get("/tenants").await;
    seen.shows(&["1–1 of 1", "1 of 1000 ports in use", "1 enabled, 0 failed"]);

    for _ in 0..60 {
        server.tenant("rival", "team", true).await;
    }
    let seen = admin.get("/tenants").await;
    seen.shows(&[
        "1–50 of 61",
        "href=\"/tenants?search=&#38;page=2\"",
        ">acme<",
    ]);
    seen.hides(&["rel=\"prev\""]);
    let seen = admin.get("/tenants?page=2").await;
    seen.shows(&["51–61 of 61", "rel=\"prev\""]);
    seen.hides(&["rel=\"next\""]);
    admin.get("/tenants?page=99").await.shows(&["51–61 of 61"]);
    admin.get("/tenants?page=x").await.shows(&["1–50 of 61"]);

    let id = id(&path);
    let tenant = server.registry.get(id.parse().unwrap()).await.unwrap();
    let port = tenant.unwrap().vpn.allocation.unwrap().port;
    for search in ["ACME", id, &id[..8], &port.to_string()] {
        let seen = admin.get(&format!("/tenants?search={search}")).await;
        seen.shows(&["1–1 of 1", &format!("href=\"{}\"", page(&path))]);
    }
    let seen = admin.get("/tenants?state=enabled").await;
    seen.shows(&["1–1 of 1", "<option selected>enabled</option>"]);
    let seen = admin.get("/tenants?search=%3Cb%3E").await;
    seen.shows(&["No tenant matches"]);
    seen.hides(&["<b>"]);

    let seen = member.get("/tenants?search=rival").await;
    seen.shows(&["No tenant matches"]);
    seen.hides(&["Port pool", "ports in use"]);
}

#[tokio::test]
async fn what_is_not_there_is_a_page_for_browsers_and_json_for_programs() {
    let server = Server::start().await;
    let browser = Browser::new(&server, "");
    let answer = browser.get("/nothing").await;
    assert_eq!(answer.status, 404);
    answer.shows(&["<h1>Not found</h1>"]);
    let answer = browser.get("/v1/nothing").await;
    assert_eq!(answer.status, 404);
    answer.shows(&["{\"error\":\"there is nothing at /v1/nothing\"}"]);
}

#[tokio::test]
async fn a_refusal_while_failed_stays_to_be_read() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let path = enabled(&server, &browser).await;
    for _ in 0..2 {
        let reason = "it died".to_owned();
        server.observe(&path, GatewayState::Failed(reason)).await;
    }
    let follows = "data-follow=\"fast\"";
    browser.get(page(&path)).await.shows(&["it died", follows]);
    let enable = format!("{}/enable", page(&path));
    let refused = browser.submit(&enable, "public_key=bad").await;
    refused.shows(&["The public key is not valid", "value=\"bad\""]);
    refused.hides(&[follows]);
}

#[tokio::test]
async fn the_live_session_is_shown_while_there_can_be_one() {
    let server = Server::start().await;
    let browser = Browser::new(&server, &server.acme);
    let path = enabled(&server, &browser).await;
    let seen = browser.get(page(&path)).await;
    seen.shows(&[
        "data-follow=\"slow\"",
        "data-live=\"session\"",
        "Live session",
    ]);
    seen.shows(&["<span class=\"state connected\"", "203.0.113.9:30"]);
    seen.shows(&["1 January 1970, 00:00:00 UTC", "300 bytes in 3 packets"]);
    seen.shows(&["400 bytes in 4 packets"]);
    browser
        .submit(&format!("{}/disable", page(&path)), "")
        .await;
    browser.get(page(&path)).await.hides(&["Live session"]);
}

#[tokio::test]
async fn the_audit_is_the_admins() {
    let server = Server::start().await;
    let admin = Browser::new(&server, &server.admin);
    let member = Browser::new(&server, &server.acme);
    let path = enabled(&server, &member).await;
    member.get(&format!("{}/configuration", page(&path))).await;
    member.submit(&format!("{}/enable", page(&path)), "").await;
    let other = server.tenant("rival", "team", true).await;

    let refused = member.get("/audit").await;
    assert_eq!(refused.status, 403);
    refused.shows(&["Only admins may see this."]);
    refused.hides(&["token:"]);
    member.get(page(&path)).await.hides(&["/audit"]);
    admin
        .get(page(&path))
        .await
        .shows(&[&format!("href=\"/audit?tenant={}\"", id(&path))]);

    let seen = admin.get("/audit").await;
    seen.shows(&[
        "enable",
        "download",
        "create",
        "409: VPN is already enabled",
    ]);
    seen.shows(&[
        "acme",
        "rival",
        "token:",
        "(admin)",
        "<td data-label=\"Outcome\"><span>done",
    ]);
    seen.hides(&["Older"]);
    let seen = admin.get(&format!("/audit?tenant={}", id(&other))).await;
    seen.shows(&["rival", "create"]);
    seen.hides(&["acme", "download"]);
    admin
        .get("/audit?tenant=00000000-0000-4000-8000-000000000000")
        .await
        .shows(&["There are no records."]);

    for _ in 0..100 {
        admin.get(&format!("{other}/vpn/config")).await;
        server.tenant("rival", "team", true).await;
    }
    let first = admin.get("/audit").await;
    let link = first.text.split("rel=\"next\" href=\"").nth(1);
    let link = link.and_then(|rest| rest.split('"').next()).unwrap();
    assert!(link.starts_with("/audit?before="), "{link}");
    let next = admin.get(link).await;
    assert_eq!(next.status, 200);
    next.shows(&["<tr><td"]);
    assert_ne!(first.text, next.text);
}

fn id(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}
