//! Browsers: scripts for Node.js that act as one or drive one, and an OpenID
//! provider to sign in with. `cargo xtask test` installs npm's packages for them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::node::{Node, Process};

/// Where a node's browsers find the pages. Browsers take it for as good as HTTPS.
pub const SERVER: &str = "http://127.0.0.1:8080";

/// As in `provider.mjs`.
pub const SECRET: &str = "a secret: with/signs+";
const ISSUER: &str = "http://127.0.0.1:9090";

/// The scripts on a node, beside the packages that they use.
pub struct Scripts {
    node: Node,
    folder: PathBuf,
    secret: String,
}

impl Scripts {
    /// Puts them there.
    ///
    /// # Errors
    ///
    /// When nobody says where npm's packages are.
    pub fn on(node: &Node) -> Result<Self> {
        let packages = std::env::var_os("VPN_EDGE_NPM")
            .context("VPN_EDGE_NPM is not set: run by `cargo xtask test`")?;
        let folder = node.folder.join("browser");
        fs::create_dir(&folder)?;
        for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("browser"))? {
            let file = file?;
            fs::copy(file.path(), folder.join(file.file_name()))?;
        }
        symlink(
            Path::new(&packages).join("node_modules"),
            folder.join("node_modules"),
        )?;
        let secret = folder.join("secret");
        fs::write(&secret, format!("{SECRET}\n"))?;
        Ok(Self {
            node: node.clone(),
            secret: secret.display().to_string(),
            folder,
        })
    }

    /// The daemon's options to have browsers sign in with the provider.
    #[must_use]
    pub fn sign_in_options(&self) -> [(&str, &str); 6] {
        [
            ("--oidc-issuer", ISSUER),
            ("--oidc-client-id", "dashboard"),
            ("--oidc-client-secret-file", &self.secret),
            ("--oidc-organisation-claim", "app.organisation"),
            ("--oidc-admin", "groups=vpn-admins"),
            ("--public-url", SERVER),
        ]
    }

    /// Starts the provider.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn provider(&self) -> Result<Process> {
        let back = format!("{SERVER}/auth/callback");
        let command = self.command("provider", &["9090", &back]);
        let mut provider = self.node.start("provider", command)?;
        let started = self.node.await_sh("ss -Htln sport = 9090 | grep -q .");
        ensure!(started.is_ok() && provider.running(), "{}", provider.log());
        Ok(provider)
    }

    /// A script, to be run on the node. What it or its browser leaves is the
    /// node's.
    #[must_use]
    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.node.command("node");
        command
            .arg(self.folder.join(format!("{name}.mjs")))
            .args(arguments)
            .envs([("HOME", &self.folder), ("TMPDIR", &self.folder)]);
        command
    }
}
