//! Requests to the API; errors say what to do about them.

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use reqwest::{Certificate, Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::api::ErrorBody;
use crate::domain::VpnError;

/// Longer than the API's own deadline, so that the API's answer arrives.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

pub struct Client {
    http: reqwest::Client,
    server: Url,
    token: Zeroizing<String>,
}

impl Client {
    /// `ca` are PEM certificates to trust instead of the system's.
    pub fn new(server: &str, token: Zeroizing<String>, ca: Option<&[u8]>) -> Result<Client> {
        let server = Url::parse(server)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .with_context(|| {
                format!("{server:?} is not a server's URL: write it like http://127.0.0.1:8080")
            })?;
        let mut http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            // A redirect could send the token to another server.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(ca) = ca {
            let trusted = Certificate::from_pem_bundle(ca).context("--ca is not PEM")?;
            ensure!(!trusted.is_empty(), "--ca has no certificate in PEM in it");
            http = http.tls_certs_only(trusted);
        } else if server.scheme() == "http" {
            // Otherwise the system's certificates would be loaded and have to exist.
            http = http.tls_certs_only([]);
        }
        let http = http.build().context("cannot set up HTTP")?;
        Ok(Client {
            http,
            server,
            token,
        })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, None::<&()>).await
    }

    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let response = self.send(method, path, body).await?;
        response
            .json()
            .await
            .with_context(|| format!("{} does not speak this API", self.server))
    }

    pub async fn text(&self, path: &str) -> Result<Zeroizing<String>> {
        let response = self.send(Method::GET, path, None::<&()>).await?;
        let text = response.text().await;
        Ok(Zeroizing::new(text.context("the answer broke off")?))
    }

    /// The response, if it is a success.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response> {
        let url = self.server.join(path)?;
        let mut request = self
            .http
            .request(method, url)
            .bearer_auth(self.token.as_str());
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| {
            let server = self.server.as_str();
            let advice = match self.server.scheme() {
                "https" => ", or the authority of its certificate with --ca",
                _ => "",
            };
            Error::new(error.without_url()).context(format!(
                "cannot reach the API at {server}; is it running there? \
                 name another with --server{advice}"
            ))
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let cause = match response.json::<ErrorBody>().await {
            Ok(body) => anyhow!(explain(&body.error)),
            Err(_) => anyhow!("{} does not speak this API", self.server),
        };
        Err(cause.context(format!("the API refused ({})", status.as_u16())))
    }
}

/// The API's message, with what to do about it.
fn explain(error: &str) -> String {
    let advice = [
        (
            VpnError::NotAvailable,
            "the plan does not include VPN; upgrade to Business or Enterprise Cloud",
        ),
        (
            VpnError::TenantNotFound,
            "`vpn-edge tenant list` shows the tenants that your token may see",
        ),
        (
            VpnError::TenantNotReady,
            "it is still being provisioned; wait until it is ready",
        ),
        (
            VpnError::AlreadyEnabled,
            "`vpn-edge tenant status` shows it",
        ),
        (
            VpnError::NotEnabled,
            "enable it first with `vpn-edge tenant enable`",
        ),
        (VpnError::BeingEnabled, "wait a few seconds and try again"),
        (
            VpnError::NoPortsAvailable,
            "all ports are in use; try again later",
        ),
    ];
    match advice.iter().find(|(known, _)| known.to_string() == error) {
        Some((_, advice)) => format!("{error}: {advice}"),
        None => error.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_vpn_comes_with_what_to_do() {
        assert_eq!(
            explain("vpn_not_available"),
            "vpn_not_available: the plan does not include VPN; \
             upgrade to Business or Enterprise Cloud"
        );
        assert_eq!(
            explain("no VPN ports available"),
            "no VPN ports available: all ports are in use; try again later"
        );
        assert_eq!(explain("something else"), "something else");
    }

    #[test]
    fn a_server_that_is_no_url_is_refused() {
        for bad in ["", "localhost:8080", "ftp://host", "http://"] {
            let refused = Client::new(bad, Zeroizing::new(String::new()), None);
            let error = refused.err().expect(bad).to_string();
            assert!(
                error.ends_with("write it like http://127.0.0.1:8080"),
                "{error}"
            );
        }
    }
}
