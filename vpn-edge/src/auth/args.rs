//! The options that say who may call, of `standalone` and `controller` alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use reqwest::Url;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::claims::{AdminClaim, Mapping};
use super::issuer::{Ages, Issuer, secure};
use super::sign_in::{Client, EXCHANGES, Secret};
use super::{Identity, Oidc, Tokens, keys};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Authentication")]
pub struct IdentityArgs {
    /// File with the API's tokens, written by `vpn-edge token add`. It may be
    /// missing if there is an issuer.
    #[arg(long, value_name = "FILE", default_value = "/etc/vpn-edge/tokens")]
    tokens: PathBuf,
    /// OpenID issuer of JWTs for the API, exactly as in their `iss`.
    #[arg(long, value_name = "URL")]
    oidc_issuer: Option<String>,
    /// Audience that JWTs must have in `aud`, besides --oidc-client-id.
    #[arg(long, value_name = "NAME", requires = "oidc_issuer")]
    oidc_audience: Option<String>,
    /// Claim with the organisation's name: CLAIM, or PATH.TO.CLAIM.
    #[arg(long, value_name = "CLAIM", default_value = "organisation")]
    oidc_organisation_claim: String,
    /// Claim that makes a caller an admin if it has, or lists, this value; for
    /// example groups=vpn-admins.
    #[arg(long, value_name = "CLAIM=VALUE", requires = "oidc_issuer")]
    oidc_admin: Option<AdminClaim>,
    /// PEM file of certificates to trust at the issuer [default: the system's].
    #[arg(long, value_name = "FILE", requires = "oidc_issuer")]
    oidc_ca: Option<PathBuf>,
    /// Client ID of this server at the issuer; lets browsers sign in.
    #[arg(long, value_name = "ID", requires_all = ["oidc_issuer", "public_url"])]
    oidc_client_id: Option<String>,
    /// File with the client secret, if the issuer requires one.
    #[arg(long, value_name = "FILE", requires = "oidc_client_id")]
    oidc_client_secret_file: Option<PathBuf>,
    /// Scopes to request, `openid` among them.
    #[arg(long, value_name = "SCOPES", default_value = "openid profile email")]
    oidc_scopes: String,
    /// URL of this server for browsers, such as https://vpn.example.com. The
    /// issuer must allow /auth/callback there.
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Network of proxies whose X-Forwarded-For is trusted; repeat for several.
    /// Anyone else there can choose the address that failed sign-ins count for.
    #[arg(long = "trusted-proxy", value_name = "NETWORK", value_delimiter = ',')]
    trusted_proxies: Vec<IpNet>,
}

impl IdentityArgs {
    /// Whether clients connect through proxies.
    pub fn has_proxies(&self) -> bool {
        !self.trusted_proxies.is_empty()
    }

    /// The identities that these options configure; `tls` is whether browsers always
    /// use HTTPS. The issuer need not be reachable yet: it is queried in the
    /// background, so that mistakes appear in the log immediately. Must be called
    /// within a runtime.
    ///
    /// # Errors
    ///
    /// If a file or a value cannot be used, or nobody could call.
    pub fn load(&self, tls: bool) -> Result<Arc<Identity>> {
        let tokens = match self.oidc_issuer {
            Some(_) => Tokens::load_if_any(&self.tokens)?,
            None => Tokens::load(&self.tokens)?,
        };
        let public = self.public_url.as_deref().map(origin).transpose()?;
        let oidc = match &self.oidc_issuer {
            Some(issuer) => Some(self.oidc(issuer, public.as_ref())?),
            None => None,
        };
        Ok(Arc::new(Identity {
            oidc,
            trusted_proxies: self.trusted_proxies.clone(),
            public,
            tls,
            ..Identity::new(tokens)
        }))
    }

    fn oidc(&self, issuer: &str, public: Option<&Url>) -> Result<Oidc> {
        keys::use_ring();
        let ca = self.oidc_ca.as_deref().map(read).transpose()?;
        let issuer = Arc::new(Issuer::new(issuer, ca.as_deref(), Ages::default())?);
        let audiences = [&self.oidc_audience, &self.oidc_client_id];
        let audiences: Vec<String> = audiences.into_iter().flatten().cloned().collect();
        ensure!(
            !audiences.is_empty(),
            "--oidc-issuer alone would accept tokens for other audiences: \
             add --oidc-audience or --oidc-client-id"
        );
        ensure!(
            audiences.iter().all(|name| !name.trim().is_empty()),
            "--oidc-audience and --oidc-client-id must not be empty"
        );
        issuer.keep_fresh();
        let client = match (&self.oidc_client_id, public) {
            (Some(id), Some(public)) => Some(self.client(id, public)?),
            _ => None,
        };
        Ok(Oidc {
            issuer,
            audiences,
            mapping: Mapping {
                organisation: self.oidc_organisation_claim.clone(),
                admin: self.oidc_admin.clone(),
            },
            client,
        })
    }

    fn client(&self, id: &str, public: &Url) -> Result<Client> {
        let secret = match &self.oidc_client_secret_file {
            Some(path) => {
                let text = Zeroizing::new(read(path)?);
                let text = std::str::from_utf8(&text).context("--oidc-client-secret-file")?;
                Some(Secret(Zeroizing::new(text.trim().to_owned())))
            }
            None => None,
        };
        Ok(Client {
            id: id.to_owned(),
            secret,
            scopes: self.oidc_scopes.clone(),
            redirect: public.join("/auth/callback")?,
            exchanges: Semaphore::new(EXCHANGES),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A URL without a path: cookies and `/auth` are of the whole host.
fn origin(text: &str) -> Result<Url> {
    let url = secure(text).context("--public-url")?;
    ensure!(
        url.path() == "/" && url.query().is_none() && url.username().is_empty(),
        "--public-url {text} must be a scheme and a host, like https://vpn.example.com"
    );
    Ok(url)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        identity: IdentityArgs,
    }

    /// What a command line comes to where there is no token file.
    fn load(line: &str) -> Result<Arc<Identity>, String> {
        // An error says that another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let words = "vpn-edge --tokens /nonexistent".split(' ');
        let words = words.chain(line.split_ascii_whitespace());
        let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        let loaded = command.identity.load(false);
        loaded.map_err(|error| format!("{error:#}"))
    }

    const ISSUER: &str = "--oidc-issuer http://127.0.0.1:1";

    #[tokio::test]
    async fn what_cannot_work_is_refused_with_what_to_do() {
        let table = [
            ("", "creates it with a first token"),
            (ISSUER, "add --oidc-audience or --oidc-client-id"),
            (&format!("{ISSUER} --oidc-audience="), "must not be empty"),
            (
                &format!("{ISSUER} --oidc-client-id= --public-url https://vpn.example.com"),
                "must not be empty",
            ),
            ("--oidc-audience vpn", "--oidc-issuer"),
            (
                "--oidc-issuer http://id.example.com --oidc-audience vpn",
                "is not https",
            ),
            (&format!("{ISSUER} --oidc-client-id x"), "--public-url"),
            (
                &format!("{ISSUER} --oidc-client-id x --public-url https://vpn.example.com/app"),
                "a scheme and a host",
            ),
            (
                &format!("{ISSUER} --oidc-audience vpn --oidc-admin groups"),
                "write it as CLAIM=VALUE",
            ),
            (
                &format!("{ISSUER} --oidc-audience vpn --oidc-ca /nonexistent"),
                "cannot read /nonexistent",
            ),
            (
                &format!("{ISSUER} --oidc-audience vpn --oidc-ca /dev/null"),
                "no certificate",
            ),
        ];
        for (line, said) in table {
            let error = load(line).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[tokio::test]
    async fn an_issuer_makes_the_token_file_optional_and_a_client_lets_browsers_in() {
        let identity = load(&format!("{ISSUER} --oidc-audience vpn")).unwrap();
        assert!(!identity.has_sign_in());
        let client = "--oidc-client-id x --public-url https://vpn.example.com";
        assert!(load(&format!("{ISSUER} {client}")).unwrap().has_sign_in());
    }
}
