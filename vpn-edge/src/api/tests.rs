//! The API over real HTTP on the loopback interface.

mod audit;
mod own_keys;
mod requests;
mod roles;
mod vpn;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use self::audit::Switched;
use super::*;
use crate::app::{REQUEST_DEADLINE, all_routes, router};
use crate::auth::{Role, Tokens};
use crate::domain::{GatewayState, Observed, Pools, Tenant};
use crate::http::HttpServer;
use crate::local::sqlite::SqliteRegistry;
use crate::sessions::{Session, SessionError, Traffic};

/// A running API with tokens of the admin and of two organisations.
pub(crate) struct Server {
    pub url: String,
    pub registry: Arc<SqliteRegistry>,
    pub admin: Zeroizing<String>,
    pub acme: Zeroizing<String>,
    pub rival: Zeroizing<String>,
    audit: Arc<Switched>,
    /// What the edge would say.
    active_ports: watch::Sender<ActivePorts>,
    client: reqwest::Client,
    pub dir: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Server {
        Server::with("30000-30099", REQUEST_DEADLINE).await
    }

    /// With IPv6 in the tunnels.
    pub async fn dual_stack() -> Server {
        let mut settings = settings();
        settings.tunnels.ipv6 = true;
        Server::over(settings, "30000-30099", REQUEST_DEADLINE).await
    }

    async fn with(ports: &str, deadline: Duration) -> Server {
        Server::over(settings(), ports, deadline).await
    }

    async fn over(settings: Settings, ports: &str, deadline: Duration) -> Server {
        // An error says that another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("registry.db");
        let registry = SqliteRegistry::open(&database, ports.parse().unwrap(), &[]).unwrap();
        let registry = Arc::new(registry);
        let file = dir.path().join("tokens");
        let member = |organisation: &str| {
            let organisation = organisation.to_owned();
            Tokens::add(&file, &Role::Member { organisation }).unwrap()
        };
        let (acme, rival) = (member("acme"), member("rival"));
        let admin = Tokens::add(&file, &Role::Admin).unwrap();
        let identity = Arc::new(Identity::new(Tokens::load(&file).unwrap()));
        let audit = Arc::new(Switched::new(&database, registry.clone()));
        let active_ports = watch::Sender::default();
        let backends = Backends {
            registry: registry.clone(),
            identity,
            audit: audit.clone(),
            active_ports: active_ports.subscribe(),
            sessions: Arc::new(Everybody),
            databases: Arc::new(crate::catalog::Unknown),
        };
        let app = all_routes(Api::new(backends, settings), deadline);
        let url = listen(app).await;
        Server {
            url,
            registry,
            admin,
            acme,
            rival,
            audit,
            active_ports,
            client: reqwest::Client::new(),
            dir,
        }
    }

    fn request(&self, token: &str, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.url);
        self.client.request(method, url).bearer_auth(token)
    }

    async fn get(&self, token: &str, path: &str) -> (u16, String) {
        answer(self.request(token, Method::GET, path)).await
    }

    async fn post(&self, token: &str, path: &str) -> (u16, String) {
        answer(self.request(token, Method::POST, path)).await
    }

    async fn send(&self, token: &str, method: Method, path: &str, body: Value) -> (u16, String) {
        answer(self.request(token, method, path).json(&body)).await
    }

    /// Creates a tenant as the admin and returns its path.
    pub async fn tenant(&self, organisation: &str, plan: &str, ready: bool) -> String {
        let body = json!({ "organisation": organisation, "plan": plan, "ready": ready });
        let (status, text) = self
            .send(&self.admin, Method::POST, "/v1/tenants", body)
            .await;
        assert_eq!(status, 201, "{text}");
        format!("/v1/tenants/{}", value(&text)["id"].as_str().unwrap())
    }

    /// What the reconcile loop does when the gateway answers.
    pub async fn observe(&self, path: &str, gateway: GatewayState) {
        let id: Uuid = path.rsplit('/').next().unwrap().parse().unwrap();
        let steerable = true;
        let observed = Observed { gateway, steerable };
        let change: crate::registry::Change = Box::new(move |tenant, _| {
            // Long after the deadline, so that a failure counts at once.
            let late = tenant.vpn.since + jiff::SignedDuration::from_secs(60);
            tenant.observe(&observed, late);
            Ok(())
        });
        self.registry.update(id, change).await.unwrap();
    }

    async fn enabled(&self) -> String {
        let path = self.tenant("acme", "business", true).await;
        let (status, _) = self.post(&self.acme, &format!("{path}/vpn/enable")).await;
        assert_eq!(status, 202);
        self.observe(&path, GatewayState::Ready).await;
        path
    }
}

/// An edge where every tenant with a port has a client.
struct Everybody;

#[async_trait::async_trait]
impl Sessions for Everybody {
    async fn session(&self, tenant: &Tenant) -> Result<Session, SessionError> {
        let port = tenant.vpn.allocation.as_ref().map(|held| held.port);
        let traffic = |packets| Traffic {
            packets,
            bytes: packets * 100,
        };
        Ok(Session {
            connected: port.is_some(),
            last_handshake: port.map(|_| jiff::Timestamp::UNIX_EPOCH),
            client: port.map(|port| SocketAddr::from(([203, 0, 113, 9], port))),
            received: traffic(port.map_or(0, |_| 3)),
            sent: traffic(port.map_or(0, |_| 4)),
            complete: true,
        })
    }
}

fn settings() -> Settings {
    Settings {
        pools: Pools::new(vec!["vpn.example.org=30000-30999".parse().unwrap()]).unwrap(),
        allowed_ips: vec![
            "10.96.0.0/12".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
        ],
        tunnels: TunnelSettings {
            cluster_ranges: vec!["10.96.0.0/12".parse().unwrap()],
            dns: IpAddr::from([10, 96, 0, 10]),
            ipv6: false,
            mtu: None,
        },
    }
}

/// Serves `app` on a free port and returns its URL.
async fn listen(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the test's runtime.
    std::mem::forget(HttpServer::start(listener, None, app));
    url
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn error(message: &str) -> String {
    json!({ "error": message }).to_string()
}
