//! Authentication: static tokens, an OpenID issuer's JWTs, and browsers' sessions.
//!
//! A credential is a token of the token file or a JWT of the issuer. Programs send it
//! as a bearer token. Browsers send it in a cookie, which is set by signing in: there
//! is no session besides the credential itself, so that any replica can verify it,
//! and each request is verified anew.

mod args;
mod caller;
mod claims;
mod issuer;
mod jwt;
mod keys;
mod refused;
mod request;
mod routes;
mod sign_in;
mod sign_in_limiter;
mod tokens;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use reqwest::Url;

pub use args::IdentityArgs;
pub use caller::{Caller, Role};
pub use refused::{Invalid, Refused};
pub use request::SESSION;
pub use routes::router;
pub use sign_in::local_path;
pub use tokens::{TokenFileError, Tokens};

use claims::Mapping;
use issuer::Issuer;
use sign_in::Client;
use sign_in_limiter::SignInLimiter;

/// Identifies the sender of a request.
#[derive(Debug)]
pub struct Identity {
    tokens: Tokens,
    oidc: Option<Oidc>,
    /// Failures by bad credentials.
    failures: SignInLimiter,
    /// Failures by codes that the issuer rejected. Counted separately, so that bad
    /// credentials do not prevent others at the same address from signing in.
    codes: SignInLimiter,
    /// Proxies whose X-Forwarded-For is trusted.
    trusted_proxies: Vec<IpNet>,
    /// The public URL of this server, if configured.
    public: Option<Url>,
    /// Whether this server has a certificate.
    tls: bool,
}

/// How an issuer's tokens are read.
#[derive(Debug)]
struct Oidc {
    issuer: Arc<Issuer>,
    audiences: Vec<String>,
    mapping: Mapping,
    /// Set if browsers can sign in by the issuer.
    client: Option<Client>,
}

impl Identity {
    /// For a token file without an issuer.
    pub fn new(tokens: Tokens) -> Identity {
        Identity {
            tokens,
            oidc: None,
            failures: SignInLimiter::default(),
            codes: SignInLimiter::default(),
            trusted_proxies: Vec::new(),
            public: None,
            tls: false,
        }
    }

    /// Whether browsers can sign in with an OpenID issuer.
    pub fn has_sign_in(&self) -> bool {
        self.client().is_ok()
    }

    /// Whether browsers are known to use HTTPS.
    pub fn is_https(&self) -> bool {
        self.tls || self.public.as_ref().map(Url::scheme) == Some("https")
    }

    /// What is wrong with the token file, if anything. Checks the file.
    pub fn token_file_problem(&self) -> Option<String> {
        self.tokens.problem()
    }

    fn client(&self) -> Result<(&Oidc, &Client), Refused> {
        let oidc = self.oidc.as_ref().ok_or(Refused::NoSignIn)?;
        let client = oidc.client.as_ref().ok_or(Refused::NoSignIn)?;
        Ok((oidc, client))
    }

    /// The caller with this credential.
    ///
    /// An address with too many failures still gets in with a good credential: others
    /// behind it must not be locked out, and neither random tokens nor signatures can
    /// be guessed. But the reason for rejecting a bad one is not revealed.
    async fn verify(&self, credential: &str, from: IpAddr) -> Result<Caller, Refused> {
        let outcome = match (self.tokens.caller(credential), &self.oidc) {
            (Some(caller), _) => Ok(caller),
            (None, Some(oidc)) if jwt::looks_like_one(credential) => oidc.caller(credential).await,
            (None, _) => Err(Invalid::UnknownToken.into()),
        };
        match outcome {
            Err(Refused::Invalid(invalid)) if !invalid.is_of_another_time() => {
                let counted = self.failures.add(from, Instant::now());
                Err(counted.map_or_else(Refused::TooMany, |()| invalid.into()))
            }
            outcome => outcome,
        }
    }
}

impl Oidc {
    async fn caller(&self, token: &str) -> Result<Caller, Refused> {
        let claims = jwt::verify(&self.issuer, &self.audiences, token).await?;
        self.mapping.caller(&claims)
    }
}

#[cfg(test)]
mod tests;
