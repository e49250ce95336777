//! Who calls: static tokens, an OpenID issuer's JWTs, and browsers' sessions.
//!
//! A credential is a token of the token file or a JWT of the issuer. Programs
//! send it as a bearer token. A browser has the same in a cookie, which signing
//! in sets: there is no session but the credential itself, so that any replica
//! knows it, and each request is checked anew.

mod args;
mod caller;
mod claims;
mod failures;
mod issuer;
mod jwt;
mod keys;
mod refused;
mod request;
mod routes;
mod sign_in;
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
use failures::Failures;
use issuer::Issuer;
use sign_in::Client;

/// Tells who sends a request.
#[derive(Debug)]
pub struct Identity {
    tokens: Tokens,
    oidc: Option<Oidc>,
    /// Bad credentials.
    failures: Failures,
    /// Codes that the issuer did not take. Apart, so that bad credentials keep
    /// nobody behind the same address from signing in.
    codes: Failures,
    /// Proxies whose word on a client's address is taken.
    trusted_proxies: Vec<IpNet>,
    /// Where browsers find this server, if that was said.
    public: Option<Url>,
    /// This server has a certificate.
    tls: bool,
}

/// How an issuer's tokens are read.
#[derive(Debug)]
struct Oidc {
    issuer: Arc<Issuer>,
    audiences: Vec<String>,
    mapping: Mapping,
    /// What this server is to the issuer, where browsers sign in by it.
    client: Option<Client>,
}

impl Identity {
    /// Of a token file alone.
    pub fn new(tokens: Tokens) -> Identity {
        Identity {
            tokens,
            oidc: None,
            failures: Failures::default(),
            codes: Failures::default(),
            trusted_proxies: Vec::new(),
            public: None,
            tls: false,
        }
    }

    /// Whether browsers can sign in with an OpenID issuer.
    pub fn has_sign_in(&self) -> bool {
        self.client().is_ok()
    }

    /// Whether browsers are known to come by HTTPS.
    pub fn is_https(&self) -> bool {
        self.tls || self.public.as_ref().map(Url::scheme) == Some("https")
    }

    /// What is wrong with the token file, if anything is. Looks at the file.
    pub fn token_file_problem(&self) -> Option<String> {
        self.tokens.problem()
    }

    fn client(&self) -> Result<(&Oidc, &Client), Refused> {
        let oidc = self.oidc.as_ref().ok_or(Refused::NoSignIn)?;
        let client = oidc.client.as_ref().ok_or(Refused::NoSignIn)?;
        Ok((oidc, client))
    }

    /// Whom a credential from this address is of.
    ///
    /// An address that failed too often still gets in with a good one: whoever
    /// else is behind it shall not be locked out, and neither a random token nor
    /// a signature can be guessed. But bad ones from there are told nothing.
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
