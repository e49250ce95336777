//! An OpenID issuer: its metadata and keys, kept up to date.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jsonwebtoken::Algorithm;
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::keys::{Key, KeySet};
use super::refused::{Invalid, Refused};

/// Maximum size of an answer of the issuer, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// Timeout of a request to the issuer.
const TIMEOUT: Duration = Duration::from_secs(4);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Ages of keys.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// Older keys are fetched again, even without requests.
    pub fresh: Duration,
    /// Minimum time between requests to the issuer, whatever tokens arrive.
    pub retry: Duration,
    /// Older keys are not used any more: the issuer was unreachable for too long.
    pub usable: Duration,
}

impl Default for Ages {
    fn default() -> Ages {
        Ages {
            fresh: Duration::from_secs(10 * 60),
            retry: Duration::from_secs(10),
            usable: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// The used part of OpenID Connect Discovery 1.0, section 3.
#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    issuer: String,
    jwks_uri: String,
    pub authorization_endpoint: Option<String>,
    pub token_endpoint: Option<String>,
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Vec<String>,
}

/// An issuer's last answer.
#[derive(Debug)]
pub struct Known {
    pub metadata: Metadata,
    keys: Vec<Key>,
    at: Instant,
}

impl Known {
    /// The key with this ID; a token without a key ID matches a single key only.
    pub fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Key, Invalid> {
        let mut found = Err(Invalid::UnknownKey);
        for key in &self.keys {
            let named = match id {
                Some(id) => key.id.as_deref() == Some(id),
                None => self.keys.len() == 1,
            };
            if named && key.algorithm == algorithm {
                return Ok(key);
            }
            if named {
                found = Err(Invalid::Algorithm);
            }
        }
        found
    }
}

/// An issuer and its last answer. One per process.
#[derive(Debug)]
pub struct Issuer {
    name: String,
    http: Client,
    ages: Ages,
    known: Mutex<Option<Arc<Known>>>,
    /// When it was last queried. Locked during the query, so that only one is in
    /// progress.
    asked: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl Issuer {
    /// An issuer that was not queried yet. `ca` are PEM certificates to trust instead
    /// of the system's.
    ///
    /// # Errors
    ///
    /// If the name or the certificates cannot be used.
    pub fn new(name: &str, ca: Option<&[u8]>, ages: Ages) -> Result<Issuer> {
        secure(name).context("--oidc-issuer")?;
        let mut http = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(ca) = ca {
            let certificates = reqwest::Certificate::from_pem_bundle(ca)?;
            ensure!(!certificates.is_empty(), "there is no certificate in it");
            http = http.tls_certs_only(certificates);
        } else if name.starts_with("http:") {
            // Otherwise the system's certificates would be loaded and have to exist.
            http = http.tls_certs_only([]);
        }
        Ok(Issuer {
            name: name.to_owned(),
            http: http.build().context("cannot set up HTTP")?,
            ages,
            known: Mutex::default(),
            asked: Arc::default(),
        })
    }

    /// Its name, as tokens have it in `iss`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn http(&self) -> &Client {
        &self.http
    }

    /// Queries the issuer now and whenever its answer is too old, until this is
    /// dropped. In the background, because otherwise a withdrawn key would still be
    /// accepted from the first caller after a quiet day.
    pub fn keep_fresh(self: &Arc<Self>) {
        let issuer = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(issuer) = issuer.upgrade() {
                issuer.refresh().await;
                let left = issuer.usable().map_or(Duration::ZERO, |known| {
                    issuer.ages.fresh.saturating_sub(known.at.elapsed())
                });
                let wait = left.max(issuer.ages.retry);
                drop(issuer);
                tokio::time::sleep(wait).await;
            }
        });
    }

    /// The last answer; queries the issuer if there is none.
    ///
    /// # Errors
    ///
    /// If there is no answer, or only one that is too old.
    pub async fn known(self: &Arc<Self>) -> Result<Arc<Known>, Refused> {
        if let Some(known) = self.usable() {
            return Ok(known);
        }
        self.refresh().await;
        self.usable().ok_or(Refused::IssuerUnreachable)
    }

    fn usable(&self) -> Option<Arc<Known>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.clone()?;
        (known.at.elapsed() <= self.ages.usable).then_some(known)
    }

    /// Queries the issuer, unless that was done recently.
    pub async fn refresh(self: &Arc<Self>) {
        let mut asked = self.asked.clone().lock_owned().await;
        if asked.is_some_and(|at| at.elapsed() < self.ages.retry) {
            return;
        }
        let issuer = self.clone();
        // A client that disconnects ends its own request, but must not end this one:
        // nobody would query again for a while.
        let asking = tokio::spawn(async move {
            issuer.learn().await;
            *asked = Some(Instant::now());
        });
        // A panic was already logged.
        let _ = asking.await;
    }

    async fn learn(&self) {
        match self.ask().await {
            Ok(known) => {
                let known = Some(Arc::new(known));
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
            }
            Err(error) => tracing::warn!(
                issuer = self.name,
                error = format!("{error:#}"),
                "cannot fetch the OpenID issuer's keys; the known ones stay in use for a day"
            ),
        }
    }

    async fn ask(&self) -> Result<Known> {
        let base = self.name.trim_end_matches('/');
        let url = format!("{base}/.well-known/openid-configuration");
        let metadata: Metadata = self.get(&url).await?;
        ensure!(
            metadata.issuer == self.name,
            "{url} belongs to another issuer, {:?}: set --oidc-issuer to exactly this name",
            metadata.issuer
        );
        let keys = self.get::<KeySet>(&metadata.jwks_uri).await?.usable();
        ensure!(!keys.is_empty(), "{} has no usable key", metadata.jwks_uri);
        Ok(Known {
            metadata,
            keys,
            at: Instant::now(),
        })
    }

    /// A URL from the issuer's metadata.
    ///
    /// # Errors
    ///
    /// If it must not be used, see [`endpoint`].
    pub fn endpoint(&self, url: &str) -> Result<Url> {
        endpoint(&self.name, url)
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let url = self.endpoint(url)?;
        let (status, body) = exchange(self.http.get(url.clone())).await?;
        ensure!(status == 200, "{url} answered {status}");
        serde_json::from_slice(&body)
            .with_context(|| format!("{url} returned an unexpected document"))
    }
}

/// Sends a request and reads the answer, which is bounded: status and body.
///
/// # Errors
///
/// If there was no complete answer.
pub async fn exchange(request: RequestBuilder) -> Result<(u16, Vec<u8>)> {
    let mut response = request.send().await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            bail!("the answer has more than {MAX_ANSWER} bytes");
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status().as_u16(), body))
}

/// The URL, if nobody can eavesdrop: HTTPS, or this machine.
///
/// # Errors
///
/// If it is neither.
pub fn secure(url: &str) -> Result<Url> {
    let parsed = Url::parse(url).with_context(|| format!("{url:?} is not a URL"))?;
    let host = parsed.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match parsed.scheme() {
        "https" => Ok(parsed),
        "http" if loopback => Ok(parsed),
        _ => bail!("{url:?} is not https"),
    }
}

/// Like [`secure`], for URLs that an issuer names: a remote issuer must not make us
/// call services of this machine.
///
/// # Errors
///
/// If the URL is not HTTPS although the issuer is.
pub fn endpoint(issuer: &str, url: &str) -> Result<Url> {
    let parsed = secure(url)?;
    ensure!(
        parsed.scheme() == "https" || secure(issuer)?.scheme() == "http",
        "{url:?} is not https, unlike the issuer"
    );
    Ok(parsed)
}
