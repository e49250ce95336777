//! Callers over real HTTP, with an issuer of our own on the loopback interface.

mod browsers;
mod issuers;
mod limits;
mod sign_in;
mod tokens;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, RequestBuilder};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::issuer::Ages;
use super::*;

/// An issuer that says what it is told to.
struct TestIssuer {
    url: String,
    said: Arc<Said>,
}

#[derive(Default)]
struct Said {
    metadata: Mutex<Value>,
    keys: Mutex<String>,
    down: AtomicBool,
    /// Whoever asks for keys or with a code waits while this is locked.
    gate: tokio::sync::RwLock<()>,
    /// How often anything was asked for.
    tried: AtomicUsize,
    /// Where to send whoever asks for the keys.
    moved: Mutex<Option<String>>,
    /// How often the keys were asked for.
    asked: AtomicUsize,
    /// What the token endpoint gives, and the last form it got.
    id_token: Mutex<String>,
    form: Mutex<String>,
    /// How many codes it got, and how many at the same time, now and at most.
    codes: AtomicUsize,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

impl TestIssuer {
    async fn start(keys: &[&Signer]) -> TestIssuer {
        let said = Arc::<Said>::default();
        let app = Router::new().fallback(issuer_says).with_state(said.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        *said.metadata.lock().unwrap() = json!({
            "issuer": url,
            "jwks_uri": format!("{url}/keys"),
            "authorization_endpoint": format!("{url}/authorize?tenant=1"),
            "token_endpoint": format!("{url}/token"),
        });
        let issuer = TestIssuer { url, said };
        issuer.has(keys);
        issuer
    }

    /// From now on it has these keys.
    fn has(&self, keys: &[&Signer]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        *self.said.keys.lock().unwrap() = json!({ "keys": keys }).to_string();
    }

    fn asked(&self) -> usize {
        self.said.asked.load(Ordering::SeqCst)
    }

    fn tried(&self) -> usize {
        self.said.tried.load(Ordering::SeqCst)
    }

    fn codes(&self) -> usize {
        self.said.codes.load(Ordering::SeqCst)
    }

    fn down(&self, down: bool) {
        self.said.down.store(down, Ordering::SeqCst);
    }

    /// Claims of a good token, with what is given added or changed; null takes
    /// away.
    fn claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "iss": self.url,
            "aud": "vpn",
            "exp": now() + 300,
            "sub": "1",
            "email": "ada@acme.example",
            "email_verified": true,
            "organisation": "acme",
        });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let claims = claims.as_object_mut().unwrap();
        claims.retain(|_, value| !value.is_null());
        json!(claims)
    }
}

/// A code that the issuer thinks about, until it answers or is hung up on.
struct Thinking<'a>(&'a Said);

impl Drop for Thinking<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn issuer_says(State(said): State<Arc<Said>>, request: Request) -> Response {
    said.tried.fetch_add(1, Ordering::SeqCst);
    if said.down.load(Ordering::SeqCst) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/.well-known/openid-configuration" => {
            said.metadata.lock().unwrap().to_string().into_response()
        }
        "/keys" => {
            said.asked.fetch_add(1, Ordering::SeqCst);
            drop(said.gate.read().await);
            match said.moved.lock().unwrap().clone() {
                Some(url) => (StatusCode::FOUND, [("location", url)]).into_response(),
                None => said.keys.lock().unwrap().clone().into_response(),
            }
        }
        "/moved" => said.keys.lock().unwrap().clone().into_response(),
        "/token" => {
            let body = axum::body::to_bytes(request.into_body(), 65536).await;
            *said.form.lock().unwrap() = String::from_utf8(body.unwrap().to_vec()).unwrap();
            let busy = said.busy.fetch_add(1, Ordering::SeqCst) + 1;
            said.busiest.fetch_max(busy, Ordering::SeqCst);
            said.codes.fetch_add(1, Ordering::SeqCst);
            let _thinking = Thinking(&said);
            drop(said.gate.read().await);
            let token = said.id_token.lock().unwrap().clone();
            json!({ "id_token": token, "access_token": "x" })
                .to_string()
                .into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A P-256 key with its id.
struct Signer {
    id: String,
    pair: EcdsaKeyPair,
}

impl Signer {
    fn new(id: &str) -> Signer {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Signer {
            id: id.to_owned(),
            pair: EcdsaKeyPair::from_pkcs8(algorithm, pair.as_ref(), &random).unwrap(),
        }
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": self.id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({ "alg": "ES256", "kid": self.id }), claims)
    }

    fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let message = unsigned(header, claims);
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes());
        format!(
            "{message}.{}",
            URL_SAFE_NO_PAD.encode(signature.unwrap().as_ref())
        )
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// Waits for what is to come about; how long it takes does not matter.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
    waited.expect("it never came about");
}

/// Asks at each occasion, and keeps keys for long.
const EAGER: Ages = Ages {
    fresh: Duration::from_secs(3600),
    retry: Duration::ZERO,
    usable: Duration::from_secs(3600),
};

/// Never asks twice.
const PATIENT: Ages = Ages {
    retry: Duration::from_secs(3600),
    ..EAGER
};

/// `/auth`, and `/whoami`, which names its caller.
struct Server {
    url: String,
    admin: Zeroizing<String>,
    http: reqwest::Client,
    identity: Arc<Identity>,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start(issuer: &TestIssuer, ages: Ages) -> Server {
        Server::start_at(issuer, ages, None).await
    }

    /// Where browsers are told to find it.
    async fn start_at(issuer: &TestIssuer, ages: Ages, public: Option<&str>) -> Server {
        // An error says that another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        keys::use_ring();
        let (dir, identity, admin) = identity();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client {
            id: "dashboard".to_owned(),
            secret: None,
            scopes: "openid email".to_owned(),
            redirect: Url::parse(&format!("{url}/auth/callback")).unwrap(),
            exchanges: tokio::sync::Semaphore::new(super::sign_in::EXCHANGES),
        };
        let identity = Arc::new(Identity {
            oidc: Some(Oidc {
                issuer: Arc::new(Issuer::new(&issuer.url, None, ages).unwrap()),
                audiences: vec!["vpn".to_owned(), "dashboard".to_owned()],
                mapping: Mapping {
                    organisation: "organisation".to_owned(),
                    admin: Some("groups=vpn-admins".parse().unwrap()),
                },
                client: Some(client),
            }),
            trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
            public: public.map(|url| url.parse().unwrap()),
            ..identity
        });
        let app: Router = Router::new()
            .route("/whoami", any(whoami))
            .with_state(identity.clone())
            .merge(router(identity.clone()));
        let service = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([]);
        Server {
            url,
            admin,
            http: http.build().unwrap(),
            identity,
            _dir: dir,
        }
    }

    fn issuer(&self) -> &Arc<Issuer> {
        &self.identity.oidc.as_ref().unwrap().issuer
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    fn whoami(&self, token: &str) -> RequestBuilder {
        self.request(Method::GET, "/whoami").bearer_auth(token)
    }

    /// What `/whoami` says to a bearer of this token.
    async fn ask(&self, token: &str) -> (u16, String) {
        answer(self.whoami(token)).await
    }
}

/// Of a token file alone, with its folder and its one token.
fn identity() -> (tempfile::TempDir, Identity, Zeroizing<String>) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    let admin = Tokens::add(&file, &Role::Admin).unwrap();
    let identity = Identity::new(Tokens::load(&file).unwrap());
    (dir, identity, admin)
}

async fn whoami(
    State(identity): State<Arc<Identity>>,
    request: Request,
) -> Result<String, Refused> {
    let caller = identity.caller(&request.into_parts().0).await?;
    Ok(match caller.role {
        Role::Admin => format!("admin {}", caller.subject),
        Role::Member { organisation } => format!("{organisation} {}", caller.subject),
    })
}

/// Status, and the body or what its `error` says.
async fn answer(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let error = serde_json::from_str::<Value>(&text).ok();
    let error = error.and_then(|body| Some(body["error"].as_str()?.to_owned()));
    (status, error.unwrap_or(text))
}

fn acme() -> (u16, String) {
    (200, "acme oidc:1 ada@acme.example".to_owned())
}

fn refused(refused: impl Into<Refused>) -> (u16, String) {
    let refused = refused.into();
    (refused.status().as_u16(), refused.to_string())
}
