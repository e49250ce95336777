//! Who a kubeconfig speaks for.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::PORT;
use super::certificates::Pair;

/// Somebody whom the API server knows.
#[derive(Clone, Copy, Debug)]
pub enum Identity<'a> {
    /// A user with a client certificate.
    User {
        /// Its name, as role bindings name it.
        name: &'a str,
        /// Its group: `system:masters` may do everything.
        group: Option<&'a str>,
    },
    /// A service account with a token. It must exist.
    ServiceAccount {
        /// The account's namespace, which is also the kubeconfig's.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
}

impl Identity<'static> {
    /// Who may do everything.
    pub const ADMIN: Self = Self::User {
        name: "admin",
        group: Some("system:masters"),
    };
}

/// What proves it.
pub(super) enum Proof {
    Certificate(Pair),
    Token(String),
}

/// A kubeconfig for the API server at this address. It is JSON, which is YAML.
pub(super) fn kubeconfig(
    authority: &str,
    server: IpAddr,
    namespace: &str,
    proof: &Proof,
) -> String {
    let server = SocketAddr::new(server, PORT);
    let user = match proof {
        Proof::Certificate(pair) => json!({
            "client-certificate-data": encoded(&pair.certificate),
            "client-key-data": encoded(&pair.key),
        }),
        Proof::Token(token) => json!({ "token": token }),
    };
    let cluster = json!({
        "server": format!("https://{server}"),
        "certificate-authority-data": encoded(authority),
    });
    let context = json!({ "cluster": "lab", "user": "lab", "namespace": namespace });
    let config: Value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": cluster }],
        "users": [{ "name": "lab", "user": user }],
        "contexts": [{ "name": "lab", "context": context }],
        "current-context": "lab",
    });
    format!("{config:#}\n")
}

fn encoded(pem: &str) -> String {
    BASE64_STANDARD.encode(pem)
}
