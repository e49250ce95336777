//! TLS with files that may be replaced while they are in use.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{Error, ServerConfig};
use tokio::sync::watch;
use tokio::time::sleep;
use zeroize::Zeroizing;

/// How often the files are checked.
const EVERY: Duration = Duration::from_secs(5);

/// The API's certificate.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// PEM file with the API's certificate and its intermediates; read again when
    /// it changes [default: plain HTTP].
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// `None` if TLS is not configured.
    ///
    /// # Errors
    ///
    /// If the files cannot be read or do not belong together.
    pub fn load(&self) -> Result<Option<Tls>> {
        let Some((certificate, key)) = self.tls_certificate.clone().zip(self.tls_key.clone())
        else {
            return Ok(None);
        };
        Tls::load(Files { certificate, key }, EVERY).map(Some)
    }
}

/// A certificate with its key, and where they are from.
pub struct Tls {
    files: Files,
    every: Duration,
    read: Pair,
    config: watch::Sender<Arc<ServerConfig>>,
}

#[derive(Clone, Debug)]
pub(super) struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The files' contents.
#[derive(PartialEq)]
struct Pair {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Tls {
    /// # Errors
    ///
    /// When the files cannot be read or do not belong together.
    pub(super) fn load(files: Files, every: Duration) -> Result<Tls> {
        let read = files.read()?;
        let config = watch::Sender::new(files.config(&read)?);
        Ok(Tls {
            files,
            every,
            read,
            config,
        })
    }

    /// The current configuration, with changes.
    pub(super) fn config(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// Checks the files forever. If they cannot be used, that is logged once, and the
    /// last usable ones stay.
    pub(super) async fn follow(mut self) {
        let mut trouble = None;
        loop {
            sleep(self.every).await;
            let now = self.look().err().map(|error| format!("{error:#}"));
            if now != trouble
                && let Some(error) = &now
            {
                tracing::error!(
                    error,
                    "the new certificate cannot be used; the old one stays"
                );
            }
            trouble = now;
        }
    }

    /// Reads the files again.
    ///
    /// # Errors
    ///
    /// If they cannot be used: nothing has changed then.
    pub(super) fn look(&mut self) -> Result<()> {
        // They are small and rarely read, so no blocking thread is used.
        let pair = self.files.read()?;
        if pair != self.read {
            self.config.send_replace(self.files.config(&pair)?);
            self.read = pair;
            tracing::info!(certificate = %self.files.certificate.display(), "certificate replaced");
        }
        Ok(())
    }
}

impl Files {
    fn read(&self) -> Result<Pair> {
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Pair {
            certificate: read(&self.certificate)?,
            key: Zeroizing::new(read(&self.key)?),
        })
    }

    fn config(&self, pair: &Pair) -> Result<Arc<ServerConfig>> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pair.certificate).collect();
        let chain = chain.with_context(|| format!("{certificate} is no PEM"))?;
        ensure!(
            !chain.is_empty(),
            "{certificate} has no certificate in PEM in it"
        );
        let secret = PrivateKeyDer::from_pem_slice(&pair.key)
            .map_err(|_| anyhow!("{key} has no private key in PEM in it, without a password"))?;
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| match error {
                Error::InconsistentKeys(_) => {
                    anyhow!(
                        "the key in {key} is not that of the first certificate in {certificate}"
                    )
                }
                error => anyhow!("{certificate} with {key}: {error}"),
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
