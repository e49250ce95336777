//! The client's side of OpenID Connect's authorization-code flow with PKCE.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{RequestBuilder, Url};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::issuer::{self, Issuer, Metadata};
use super::jwt::{self, Claims};
use super::refused::{Invalid, Refused};

/// Maximum length of a path to return to, in bytes.
const MAX_PATH: usize = 512;

/// Maximum number of concurrent code exchanges; more wait.
pub const EXCHANGES: usize = 8;

/// This server as a client of the issuer.
#[derive(Debug)]
pub struct Client {
    pub id: String,
    pub secret: Option<Secret>,
    /// Separated by spaces; `openid` among them.
    pub scopes: String,
    /// Where the issuer sends browsers back to.
    pub redirect: Url,
    /// Limits code exchanges to [`EXCHANGES`].
    pub exchanges: Semaphore,
}

/// A client's secret, hidden in debug output.
pub struct Secret(pub Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A sign-in in progress, stored in a cookie of its browser.
#[derive(Debug, PartialEq, Eq)]
pub struct Attempt {
    state: String,
    nonce: String,
    /// RFC 7636: binds the end of the sign-in to its beginning.
    verifier: String,
    /// The local path to return to.
    pub back: String,
}

impl Attempt {
    /// # Errors
    ///
    /// That the operating system gives no random bytes.
    pub fn new(back: &str) -> Result<Attempt, getrandom::Error> {
        Ok(Attempt {
            state: random()?,
            nonce: random()?,
            verifier: random()?,
            back: local_path(back).unwrap_or("/").to_owned(),
        })
    }

    /// The value of the cookie.
    pub fn to_cookie(&self) -> String {
        let back = URL_SAFE_NO_PAD.encode(&self.back);
        format!("{}.{}.{}.{back}", self.state, self.nonce, self.verifier)
    }

    /// From the value of a cookie; `None` if it is not from [`Attempt::to_cookie`].
    pub fn from_cookie(text: &str) -> Option<Attempt> {
        let parts: Vec<&str> = text.split('.').collect();
        let [state, nonce, verifier, back] = parts[..] else {
            return None;
        };
        let back = String::from_utf8(URL_SAFE_NO_PAD.decode(back).ok()?).ok()?;
        // The cookie may have been set by somebody else.
        local_path(&back)?;
        let whole = [state, nonce, verifier].iter().all(|part| part.len() == 43);
        whole.then(|| Attempt {
            state: state.to_owned(),
            nonce: nonce.to_owned(),
            verifier: verifier.to_owned(),
            back,
        })
    }

    pub fn is_state(&self, state: &str) -> bool {
        self.state == state
    }
}

impl Client {
    /// The URL to which a browser is sent to sign in.
    ///
    /// # Errors
    ///
    /// If the issuer has no such endpoint.
    pub fn authorization_url(
        &self,
        issuer: &Issuer,
        metadata: &Metadata,
        attempt: &Attempt,
    ) -> Result<Url, Refused> {
        let endpoint = metadata.authorization_endpoint.as_deref();
        let mut url = endpoint
            .and_then(|url| issuer.endpoint(url).ok())
            .ok_or_else(|| wrong("the issuer has no authorization endpoint"))?;
        let challenge = digest(&SHA256, attempt.verifier.as_bytes());
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.id)
            .append_pair("redirect_uri", self.redirect.as_str())
            .append_pair("scope", &self.scopes)
            .append_pair("state", &attempt.state)
            .append_pair("nonce", &attempt.nonce)
            .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(challenge))
            .append_pair("code_challenge_method", "S256");
        Ok(url)
    }

    /// The ID token that the issuer returns for `code`, and its claims.
    ///
    /// # Errors
    ///
    /// If it returns none, or one for another attempt.
    pub async fn id_token(
        &self,
        issuer: &Arc<Issuer>,
        code: &str,
        attempt: &Attempt,
    ) -> Result<(Zeroizing<String>, Claims), Refused> {
        let token = self.exchange(issuer, code, attempt).await?;
        let audience = std::slice::from_ref(&self.id);
        let claims = jwt::verify(issuer, audience, &token).await?;
        if claims.get("nonce").and_then(|nonce| nonce.as_str()) != Some(&attempt.nonce) {
            return Err(Invalid::Nonce.into());
        }
        // OpenID Connect Core 1.0, section 3.1.3.7: issued to another client.
        if claims.get("azp").is_some_and(|azp| *azp != *self.id) {
            return Err(Invalid::Audience.into());
        }
        Ok((token, claims))
    }

    async fn exchange(
        &self,
        issuer: &Arc<Issuer>,
        code: &str,
        attempt: &Attempt,
    ) -> Result<Zeroizing<String>, Refused> {
        #[derive(Deserialize)]
        struct Answer {
            id_token: String,
        }

        let known = issuer.known().await?;
        let metadata = &known.metadata;
        let endpoint = metadata.token_endpoint.as_deref();
        let endpoint = endpoint
            .and_then(|url| issuer.endpoint(url).ok())
            .ok_or_else(|| wrong("the issuer has no token endpoint"))?;
        let permit = self.exchanges.acquire().await;
        let _permit = permit.expect("the semaphore is never closed");
        let request = self.code_request(issuer.http().post(endpoint), metadata, code, attempt);
        let (status, body) = issuer::exchange(request).await.map_err(|error| {
            tracing::warn!(%error, "cannot reach the OpenID issuer's token endpoint");
            Refused::IssuerUnreachable
        })?;
        let body = Zeroizing::new(body);
        if status != 200 {
            // For the operator: a wrong secret is visible here.
            tracing::warn!(
                status,
                error = code_of(&body),
                "the OpenID issuer rejected the code"
            );
            return Err(wrong("the issuer rejected the code; sign in again"));
        }
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| wrong("the issuer returned no ID token"))?;
        Ok(Zeroizing::new(answer.id_token))
    }

    /// The token request of RFC 6749, section 4.1.3, with the client's
    /// authentication.
    fn code_request(
        &self,
        mut request: RequestBuilder,
        metadata: &Metadata,
        code: &str,
        attempt: &Attempt,
    ) -> RequestBuilder {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", self.redirect.as_str())
            .append_pair("code_verifier", &attempt.verifier);
        match &self.secret {
            Some(secret) if metadata.takes_basic() => {
                // Section 2.3.1 requires both to be encoded.
                let encode = |text: &str| -> Zeroizing<String> {
                    let bytes = form_urlencoded::byte_serialize(text.as_bytes());
                    Zeroizing::new(bytes.collect())
                };
                let secret = encode(&secret.0);
                request = request.basic_auth(encode(&self.id).as_str(), Some(secret.as_str()));
            }
            Some(secret) => {
                form.append_pair("client_id", &self.id)
                    .append_pair("client_secret", &secret.0);
            }
            None => {
                form.append_pair("client_id", &self.id);
            }
        }
        request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form.finish())
    }
}

impl Metadata {
    /// Basic authentication is the default.
    fn takes_basic(&self) -> bool {
        let methods = &self.token_endpoint_auth_methods_supported;
        methods.is_empty() || methods.iter().any(|method| method == "client_secret_basic")
    }
}

/// The error code of an OAuth error response, and nothing else of it.
fn code_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        error: String,
    }
    let answer: Option<Answer> = serde_json::from_slice(body).ok();
    error_code(&answer.map_or(String::new(), |answer| answer.error))
}

/// The part of a text that can be an OAuth error code, such as `access_denied`.
pub fn error_code(text: &str) -> String {
    let allowed = text.chars().filter(|c| c.is_ascii_lowercase() || *c == '_');
    allowed.take(64).collect()
}

/// The text, if every browser takes it for a path on this server.
pub fn local_path(text: &str) -> Option<&str> {
    let local = text.starts_with('/')
        && !text.starts_with("//")
        && text.len() <= MAX_PATH
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    local.then_some(text)
}

fn wrong(what: &str) -> Refused {
    Refused::SignIn(what.to_owned())
}

/// 43 characters with 256 random bits.
fn random() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_this_server_are_returned_to() {
        for good in ["/", "/tenants/1?x=//y", "/a:b@c", "/%5cevil.example"] {
            assert_eq!(local_path(good), Some(good));
        }
        let long = format!("/{}", "a".repeat(MAX_PATH));
        for bad in [
            "",
            "tenants",
            "//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "/\t/evil.example",
            "/\n/evil.example",
            " //evil.example",
            "/a\r\nSet-Cookie: x=y",
            "/ä",
            long.as_str(),
        ] {
            assert_eq!(local_path(bad), None, "{bad:?}");
            assert_eq!(Attempt::new(bad).unwrap().back, "/");
        }
    }

    #[test]
    fn an_attempt_survives_its_cookie_and_a_forged_one_does_not() {
        let attempt = Attempt::new("/tenants/1?a=b;c").unwrap();
        let cookie = attempt.to_cookie();
        assert!(!cookie.contains([';', ' ', ',', '"']));
        assert_eq!(Attempt::from_cookie(&cookie), Some(attempt));
        let back = URL_SAFE_NO_PAD.encode("//evil.example");
        let part = "a".repeat(43);
        for forged in [
            String::new(),
            format!("{part}.{part}.{part}.{back}"),
            format!("..{part}.Lw"),
            format!("{part}.{part}.{part}.Lw.Lw"),
        ] {
            assert_eq!(Attempt::from_cookie(&forged), None, "{forged}");
        }
    }

    #[test]
    fn an_error_code_carries_nothing_else() {
        assert_eq!(error_code("access_denied"), "access_denied");
        assert_eq!(error_code("<b>A\" 1"), "b");
    }
}
