//! A tenant's database: Debian's PostgreSQL on a node, by TLS only.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::node::{Node, Process};

/// Where Debian puts the versions of PostgreSQL.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Arguments: the programs' folder, the owner, the address, the name, the
/// password.
///
/// Shared memory of both kinds would outlive a killed server: with an IPC
/// namespace and a `/dev/shm` of its own it goes with the last process. The
/// files lie on the node's own `/run`, since the server refuses to be root and
/// the node's folder is root's alone.
const SERVER: &str = r#"
mount -t tmpfs -o mode=1777 shm /dev/shm
mkdir -p "/run/postgresql/$2"
chown postgres:postgres "/run/postgresql/$2"
cd "/run/postgresql/$2"
exec setpriv --reuid=postgres --regid=postgres --init-groups sh -ec '
    umask 077
    "$1/initdb" --pgdata=data --username=postgres --auth=reject --no-locale --encoding=UTF8 --no-sync
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
        -subj "/CN=$2" -addext "subjectAltName=DNS:$4" -keyout data/server.key -out data/server.crt
    echo "hostssl app app all scram-sha-256" >data/pg_hba.conf
    single="$1/postgres --single -D data -c exit_on_error=on"
    printf "%s\n" "CREATE ROLE app LOGIN PASSWORD '\''$5'\''" "CREATE DATABASE app" | $single postgres
    printf "%s\n" "CREATE TABLE ledger (entry text)" \
        "INSERT INTO ledger VALUES ('\''the ledger of $2'\'')" "GRANT SELECT ON ledger TO app" | $single app
    exec "$1/postgres" -D data -c listen_addresses="$3" -c unix_socket_directories= \
        -c ssl=on -c shared_buffers=16MB
' server "$@"
"#;

/// Who owns a database, where it is, and how to log in.
pub struct Account {
    pub owner: &'static str,
    pub address: &'static str,
    pub name: &'static str,
    pub password: &'static str,
}

impl Account {
    /// What `psql` takes.
    #[must_use]
    pub fn url(&self) -> String {
        format!(
            "postgresql://app:{}@{}:5432/app?sslmode=require",
            self.password, self.name
        )
    }
}

/// A running server with a table `ledger`, which says whose it is.
pub struct Database {
    node: Node,
    address: &'static str,
    server: Process,
}

impl Database {
    /// Starts to make the database and its server on the node; see
    /// [`Database::await_ready`].
    ///
    /// # Errors
    ///
    /// When no PostgreSQL is installed, or it cannot be started.
    pub fn start(node: &Node, account: &Account) -> Result<Self> {
        let mut command = node.command("unshare");
        command.args(["--ipc", "--mount", "sh", "-ec", SERVER, "server"]);
        command.arg(programs()?).args([
            account.owner,
            account.address,
            account.name,
            account.password,
        ]);
        Ok(Self {
            node: node.clone(),
            address: account.address,
            server: node.start(&format!("postgresql-{}", account.owner), command)?,
        })
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    ///
    /// When it does not come up, with what it said.
    pub fn await_ready(&self) -> Result<()> {
        self.node
            .await_sh(&format!("pg_isready -q -t 1 -h {}", self.address))
            .with_context(|| format!("PostgreSQL:\n{}", self.server.log()))
    }
}

/// The folder of the newest installed version's programs.
///
/// # Errors
///
/// When none is installed.
pub fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir(VERSIONS).with_context(|| format!("cannot read {VERSIONS}"))?;
    versions
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| {
            Some((
                path.file_name()?.to_str()?.parse::<u32>().ok()?,
                path.join("bin"),
            ))
        })
        .filter(|(_, folder)| folder.join("initdb").is_file())
        .max()
        .map(|(_, folder)| folder)
        .with_context(|| format!("no server in {VERSIONS}"))
}
