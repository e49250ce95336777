//! An OpenID issuer: what it says of itself, and its keys, kept up to date.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jsonwebtoken::Algorithm;
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::keys::{Key, KeySet};
use super::refused::{Invalid, Refused};

/// Bytes that an answer of the issuer's may have.
const MAX_ANSWER: usize = 1024 * 1024;

/// How long the issuer may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(4);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How old keys may get.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// Older ones are fetched again, whether anybody calls or not.
    pub fresh: Duration,
    /// The issuer is asked at most this often, whatever tokens come.
    pub retry: Duration,
    /// Older ones are used no longer: the issuer was away for too long.
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

/// OpenID Connect Discovery 1.0, section 3: what of it is used.
#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    issuer: String,
    jwks_uri: String,
    pub authorization_endpoint: Option<String>,
    pub token_endpoint: Option<String>,
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Vec<String>,
}

/// What an issuer last said.
#[derive(Debug)]
pub struct Known {
    pub metadata: Metadata,
    keys: Vec<Key>,
    at: Instant,
}

impl Known {
    /// The key by its id; a token without one is the only key's.
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

/// An issuer and what is known of it. One a process.
#[derive(Debug)]
pub struct Issuer {
    name: String,
    http: Client,
    ages: Ages,
    known: Mutex<Option<Arc<Known>>>,
    /// When it was last asked. Held while it is, so that one request is under
    /// way at most.
    asked: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl Issuer {
    /// An issuer that nothing is known of yet. `ca` are PEM certificates to trust
    /// instead of the system's.
    ///
    /// # Errors
    ///
    /// That the name or the certificates cannot be used.
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
            // Else the system's certificates are loaded and must be there.
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

    /// Asks now, and again whenever what is known has got old, until this is
    /// dropped. Nobody need call: a key that was withdrawn would else be good for
    /// whoever is first after a quiet day.
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

    /// What is known, asking where nothing is.
    ///
    /// # Errors
    ///
    /// That nothing is known, or only what is too old.
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

    /// Asks the issuer, unless that was done a moment ago.
    pub async fn refresh(self: &Arc<Self>) {
        let mut asked = self.asked.clone().lock_owned().await;
        if asked.is_some_and(|at| at.elapsed() < self.ages.retry) {
            return;
        }
        let issuer = self.clone();
        // A client that hangs up ends its request, and must not end this: nobody
        // would ask again for a while.
        let asking = tokio::spawn(async move {
            issuer.learn().await;
            *asked = Some(Instant::now());
        });
        // That it panicked is said already.
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

    /// A URL of the issuer's own telling.
    ///
    /// # Errors
    ///
    /// That it is not to be asked anything, see [`endpoint`].
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
/// That there was no whole answer.
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

/// The URL, if nobody can listen in: HTTPS, or this very machine.
///
/// # Errors
///
/// That it is neither.
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

/// As [`secure`], for what an issuer names: one that is elsewhere has no business
/// with the services of this machine.
///
/// # Errors
///
/// That the URL is not HTTPS, unless the issuer is not either.
pub fn endpoint(issuer: &str, url: &str) -> Result<Url> {
    let parsed = secure(url)?;
    ensure!(
        parsed.scheme() == "https" || secure(issuer)?.scheme() == "http",
        "{url:?} is not https, unlike the issuer"
    );
    Ok(parsed)
}
