//! Certificates that are replaced while they are in use.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use reqwest::Certificate;
use tempfile::TempDir;

use super::*;
use crate::http::tls::Files;

const OFTEN: Duration = Duration::from_millis(10);

/// A certificate that signs itself, with its key; in PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn new() -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        Pair {
            certificate: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// Puts it where it is read, as Kubernetes does: at once, by a link.
    fn put(&self, dir: &Path, name: &str) {
        let folder = dir.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("tls.crt"), &self.certificate).unwrap();
        fs::write(folder.join("tls.key"), &self.key).unwrap();
        symlink(name, dir.join("next")).unwrap();
        fs::rename(dir.join("next"), dir.join("current")).unwrap();
    }

    /// Asks a server that is to have this certificate.
    async fn ask(&self, address: SocketAddr) -> Result<String, reqwest::Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let trusted = Certificate::from_pem(self.certificate.as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([trusted]);
        let url = format!("https://{address}/");
        let response = client.build().unwrap().get(url).send().await?;
        response.text().await
    }
}

fn files(dir: &TempDir) -> Files {
    let current = dir.path().join("current");
    Files {
        certificate: current.join("tls.crt"),
        key: current.join("tls.key"),
    }
}

#[tokio::test]
async fn a_new_certificate_is_served_from_then_on() {
    let dir = TempDir::new().unwrap();
    let (old, new) = (Pair::new(), Pair::new());
    old.put(dir.path(), "old");
    let tls = Tls::load(files(&dir), OFTEN).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _server = HttpServer::with(listener, Some(tls), hello(), PATIENT);
    assert_eq!(old.ask(address).await.unwrap(), "hello");
    new.ask(address).await.unwrap_err();
    let plain = rest(connect(address, ASK_ONCE).await).await;
    assert!(!plain.contains("hello"), "{plain}");

    new.put(dir.path(), "new");
    let replaced = async {
        while new.ask(address).await.is_err() {
            sleep(OFTEN).await;
        }
    };
    timeout(HANGS, replaced).await.unwrap();
    old.ask(address).await.unwrap_err();
}

#[tokio::test]
async fn a_client_that_begins_no_tls_is_cut_off() {
    let dir = TempDir::new().unwrap();
    Pair::new().put(dir.path(), "old");
    let tls = Tls::load(files(&dir), OFTEN).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits {
        head: Duration::from_millis(100),
        ..PATIENT
    };
    let _server = HttpServer::with(listener, Some(tls), hello(), limits);
    assert_eq!(rest(connect(address, b"").await).await, "");
}

#[test]
fn what_cannot_be_used_changes_nothing_and_is_explained() {
    let dir = TempDir::new().unwrap();
    let (old, new) = (Pair::new(), Pair::new());
    old.put(dir.path(), "old");
    let files = files(&dir);
    let mut tls = Tls::load(files.clone(), OFTEN).unwrap();
    let config = tls.config();
    let before = config.borrow().clone();
    let bad = [
        (
            &new.certificate[..],
            &old.key[..],
            "is not that of the first certificate",
        ),
        ("", &old.key, "has no certificate in PEM"),
        (&old.certificate, "", "has no private key in PEM"),
        (
            &old.certificate,
            &old.certificate,
            "has no private key in PEM",
        ),
        (&old.certificate[..200], &old.key, "is no PEM"),
    ];
    for (count, (certificate, key, reason)) in bad.into_iter().enumerate() {
        let pair = Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        pair.put(dir.path(), &format!("bad-{count}"));
        let error = format!("{:#}", tls.look().unwrap_err());
        assert!(error.contains(reason), "{error}");
        let refused = Tls::load(files.clone(), OFTEN).err().unwrap();
        assert_eq!(format!("{refused:#}"), error);
        assert!(Arc::ptr_eq(&config.borrow(), &before));
    }
    fs::remove_file(dir.path().join("current")).unwrap();
    let error = format!("{:#}", tls.look().unwrap_err());
    assert!(error.starts_with("cannot read "), "{error}");
    assert!(Arc::ptr_eq(&config.borrow(), &before));

    new.put(dir.path(), "new");
    tls.look().unwrap();
    assert!(!Arc::ptr_eq(&config.borrow(), &before));
}
