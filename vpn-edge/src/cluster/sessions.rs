//! Sessions of a cluster, as reported by its agents.
//!
//! Each query asks all agents, and nothing is cached: a client may have connected
//! through any edge, and through another one since.

mod server;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use reqwest::StatusCode;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

use self::server::AUDIENCE;
pub use self::server::router;
use crate::cluster::{AGENT, CONTROLLER, WATCH, label};
use crate::domain::Tenant;
use crate::sessions::{EdgeSession, Session, SessionError, SessionQuery, Sessions, query};

/// How long an edge may take to answer, and the API server before that.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// Lifetime of a token: the shortest that the API server issues.
const TOKEN_LIFE: Duration = Duration::from_secs(600);

/// Name of the port at which the agents' pods serve sessions.
const PORT: &str = "sessions";

/// The sessions of a cluster, queried from its agents.
pub struct ClusterSessions {
    agents: Store<Pod>,
    accounts: Api<ServiceAccount>,
    token: Mutex<Option<Token>>,
    http: reqwest::Client,
    _watch: JoinSet<()>,
}

/// A token of the controllers' service account, for the agents.
struct Token {
    text: Arc<Zeroizing<String>>,
    since: Instant,
}

impl ClusterSessions {
    /// Begins to watch the agents' pods, in the namespace that they share with the
    /// controllers. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// If no HTTP client can be made.
    pub fn start(client: Client, namespace: &str) -> Result<Self, reqwest::Error> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let config = watcher::Config::default()
            .timeout(WATCH)
            .labels(&format!("{}={AGENT}", label::NAME));
        let (agents, writer) = reflector::store();
        let events = watcher(pods, config).default_backoff().reflect(writer);
        let mut watch = JoinSet::new();
        watch.spawn(events.for_each(async |event| {
            if let Err(error) = event {
                tracing::warn!("cannot watch the agents' pods; retrying: {error}");
            }
        }));
        Ok(Self {
            agents,
            accounts: Api::namespaced(client, namespace),
            token: Mutex::default(),
            // Nodes are not behind a proxy.
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(TIMEOUT)
                .build()?,
            _watch: watch,
        })
    }

    /// A token that is valid for some time yet.
    async fn token(&self) -> Result<Arc<Zeroizing<String>>, SessionError> {
        let mut held = self.token.lock().await;
        if let Some(token) = &*held
            && token.since.elapsed() < TOKEN_LIFE / 2
        {
            return Ok(token.text.clone());
        }
        let since = Instant::now();
        let why = match timeout(TIMEOUT, self.request_token()).await {
            Ok(Ok(text)) => {
                let text = Arc::new(text);
                *held = Some(Token {
                    text: text.clone(),
                    since,
                });
                return Ok(text);
            }
            Ok(Err(why)) => why,
            Err(_) => "the API server issued no token in time".to_owned(),
        };
        match &*held {
            Some(token) if token.since.elapsed() < TOKEN_LIFE => Ok(token.text.clone()),
            _ => Err(SessionError::Edges(why)),
        }
    }

    async fn request_token(&self) -> Result<Zeroizing<String>, String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                expiration_seconds: i64::try_from(TOKEN_LIFE.as_secs()).ok(),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let answer = self
            .accounts
            .create_token_request(CONTROLLER, &params, &request)
            .await
            .map_err(|error| error.to_string())?;
        let token = answer.status.and_then(|status| status.token);
        token
            .map(Zeroizing::new)
            .ok_or_else(|| "the API server issued an empty token".to_owned())
    }
}

#[async_trait]
impl Sessions for ClusterSessions {
    async fn session(&self, tenant: &Tenant) -> Result<Session, SessionError> {
        let Some((port, query)) = query(tenant) else {
            return Ok(Session::none());
        };
        let listed = timeout(TIMEOUT, self.agents.wait_until_ready()).await;
        if !matches!(listed, Ok(Ok(()))) {
            let why = "the agents' pods are not listed yet".to_owned();
            return Err(SessionError::Edges(why));
        }
        let token = self.token().await?;
        let agents = self.agents.state();
        let agents = agents.iter().filter(|pod| counts(pod));
        let mut answers = JoinSet::new();
        for address in agents.map(|pod| address(pod)) {
            let (http, token) = (self.http.clone(), token.clone());
            answers.spawn(async move { ask(&http, address?, port, query, &token).await });
        }
        let answers = answers.join_all().await;
        let complete = !answers.is_empty() && answers.iter().all(Option::is_some);
        let seen: Vec<EdgeSession> = answers.into_iter().flatten().flatten().collect();
        Ok(Session::of(&seen, Timestamp::now(), complete))
    }
}

/// The agent's answer; none inside if it does not steer the tenant.
async fn ask(
    http: &reqwest::Client,
    agent: SocketAddr,
    port: u16,
    query: SessionQuery,
    token: &str,
) -> Option<Option<EdgeSession>> {
    let SessionQuery { tenant, generation } = query;
    let url = format!("http://{agent}/sessions/{port}/{tenant}/{generation}");
    let answer = async {
        let response = http.get(url).bearer_auth(token).send().await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        response.error_for_status()?.json().await.map(Some)
    };
    let answer: reqwest::Result<Option<EdgeSession>> = answer.await;
    answer
        .inspect_err(
            |error| tracing::warn!(%agent, "cannot get the session from an agent: {error}"),
        )
        .ok()
}

/// Whether a pod is an edge's agent, or is about to be one.
fn counts(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Where an agent serves sessions, if it does.
fn address(pod: &Pod) -> Option<SocketAddr> {
    let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let containers = &pod.spec.as_ref()?.containers;
    let mut ports = containers.iter().flat_map(|one| one.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(PORT))?;
    Some(SocketAddr::new(ip, port.container_port.try_into().ok()?))
}
