//! The API's client on the command line: `vpn-edge tenant`, `vpn-edge audit` and
//! `vpn-edge token`.

mod audit;
mod render;
mod request;

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use reqwest::Method;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::api::{CreateTenant, NewKeys, PatchTenant, TenantBody, TenantList, VpnStatus};
use crate::args::{Output, OutputArgs};
use crate::auth::{self, Tokens};
use crate::domain::{Plan, State};
use crate::sessions::Session;
use crate::wireguard::PublicKey;
pub use audit::{AuditArgs, run as run_audit};
use request::Client;

/// How long `enable` and `regenerate` wait for the result.
const WAIT_DEADLINE: Duration = Duration::from_secs(60);
const WAIT_STEP: Duration = Duration::from_millis(250);

/// The API, and how its answers are shown.
#[derive(Debug, Args)]
struct ServerArgs {
    /// URL of the API.
    #[arg(
        long,
        global = true,
        env = "VPN_EDGE_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    server: String,
    /// PEM file of certificates to trust at the API instead of the system's.
    #[arg(long, global = true, env = "VPN_EDGE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// API token; as an argument it is visible in the process list.
    #[arg(
        long,
        global = true,
        env = "VPN_EDGE_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<Token>,
    /// File with the API token.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

impl ServerArgs {
    fn client(&self) -> Result<Client> {
        let token = token(self.token.clone(), self.token_file.as_deref())?;
        let ca = self.ca.as_deref().map(|path| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        });
        Client::new(&self.server, token, ca.transpose()?.as_deref())
    }
}

/// `vpn-edge tenant`.
#[derive(Debug, Args)]
pub struct TenantArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Clone)]
struct Token(Zeroizing<String>);

impl FromStr for Token {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Token, Self::Err> {
        Ok(Token(Zeroizing::new(text.trim().to_owned())))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Add a tenant.
    Create {
        /// Organisation that the tenant belongs to.
        #[arg(long, value_name = "NAME")]
        organisation: String,
        /// Plan: developer, team, business or enterprise_cloud. The last two have
        /// a VPN.
        #[arg(long)]
        plan: Plan,
        /// UUID of the tenant [default: a random one].
        #[arg(long)]
        id: Option<Uuid>,
        /// Mark the tenant as provisioned, so that its VPN may be enabled.
        #[arg(long)]
        ready: bool,
        /// Namespace of the tenant, a DNS label [default: tenant- and the first
        /// eight digits of the ID].
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
        /// Network that the tenant may reach; repeat for several.
        #[arg(long = "network", value_name = "NETWORK")]
        networks: Vec<IpNet>,
    },
    /// List the tenants that the token may see.
    List,
    /// Show a tenant.
    Show {
        /// UUID of the tenant.
        id: Uuid,
    },
    /// Change a tenant. What no option names stays as it is.
    Patch {
        /// UUID of the tenant.
        id: Uuid,
        /// Plan: developer, team, business or enterprise_cloud.
        #[arg(long)]
        plan: Option<Plan>,
        /// Whether the tenant is provisioned.
        #[arg(long, value_name = "true|false")]
        ready: Option<bool>,
        /// Network that the tenant may reach; repeat for several. Replaces all
        /// networks of the tenant.
        #[arg(long = "network", value_name = "NETWORK")]
        networks: Vec<IpNet>,
        /// Remove all networks of the tenant.
        #[arg(long, conflicts_with = "networks")]
        no_networks: bool,
    },
    /// Delete a tenant and its VPN.
    Delete {
        /// UUID of the tenant.
        id: Uuid,
    },
    /// Enable the VPN of a tenant.
    Enable {
        #[command(flatten)]
        keys: KeysArgs,
    },
    /// Disable the VPN of a tenant: disconnect its clients at once and remove its
    /// keys.
    Disable {
        /// UUID of the tenant.
        id: Uuid,
    },
    /// Replace the keys of a VPN. The configuration in use stops working at once.
    Regenerate {
        #[command(flatten)]
        keys: KeysArgs,
    },
    /// Show the state of a VPN.
    Status {
        /// UUID of the tenant.
        id: Uuid,
    },
    /// Show whether a client is connected, from where, and its traffic.
    Session {
        /// UUID of the tenant.
        id: Uuid,
    },
    /// Print the client's WireGuard configuration.
    Config {
        /// UUID of the tenant.
        id: Uuid,
        /// Write it to this file, readable by its owner only.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// For which tenant to make keys, and how.
#[derive(Debug, Args)]
struct KeysArgs {
    /// UUID of the tenant.
    id: Uuid,
    /// Public key of the client, as `wg pubkey` prints it. The private key stays
    /// with the client [default: both keys are generated].
    #[arg(long, value_name = "KEY")]
    public_key: Option<PublicKey>,
    /// Do not wait until the VPN is enabled or has failed.
    #[arg(long)]
    no_wait: bool,
}

/// `vpn-edge token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Generate a token, add its hash to the token file, and print it once.
    Add {
        /// Token file; created if missing.
        #[arg(long)]
        file: PathBuf,
        #[command(flatten)]
        role: Role,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Role {
    /// Token of an admin.
    #[arg(long)]
    admin: bool,
    /// Token of a member of this organisation.
    #[arg(long, value_name = "NAME")]
    organisation: Option<String>,
}

/// Runs `vpn-edge tenant`, printing to standard output.
pub async fn run(args: TenantArgs) -> Result<()> {
    execute(args, &mut std::io::stdout().lock()).await
}

/// Runs `vpn-edge token`, printing to standard output.
pub fn run_token(args: TokenArgs) -> Result<()> {
    execute_token(args, &mut std::io::stdout().lock())
}

fn execute_token(args: TokenArgs, out: &mut dyn Write) -> Result<()> {
    let TokenCommand::Add { file, role } = args.command;
    let role = match role.organisation {
        Some(organisation) => auth::Role::Member { organisation },
        None => auth::Role::Admin,
    };
    let token = Tokens::add(&file, &role)?;
    writeln!(out, "{}", token.as_str())?;
    Ok(())
}

async fn execute(args: TenantArgs, out: &mut dyn Write) -> Result<()> {
    let client = args.server.client()?;
    let output = args.server.output.output;
    let tenant = |body: TenantBody, out: &mut dyn Write| match output {
        Output::Table => Ok(write!(out, "{}", render::tenant(&body))?),
        Output::Json => print_json(out, &body),
    };
    let status = |body: VpnStatus, out: &mut dyn Write| match output {
        Output::Table => Ok(write!(out, "{}", render::status(&body))?),
        Output::Json => print_json(out, &body),
    };
    match args.command {
        TenantCommand::Create {
            organisation,
            plan,
            id,
            ready,
            namespace,
            networks,
        } => {
            let body = CreateTenant {
                id,
                organisation,
                plan,
                ready,
                namespace,
                networks,
            };
            let created = client
                .json(Method::POST, "/v1/tenants", Some(&body))
                .await?;
            tenant(created, out)
        }
        TenantCommand::List => {
            let list: TenantList = client.get("/v1/tenants").await?;
            match output {
                Output::Table => Ok(write!(out, "{}", render::tenants(&list.tenants))?),
                Output::Json => print_json(out, &list),
            }
        }
        TenantCommand::Show { id } => tenant(client.get(&path(id)).await?, out),
        TenantCommand::Patch {
            id,
            plan,
            ready,
            networks,
            no_networks,
        } => {
            let body = PatchTenant {
                plan,
                ready,
                networks: (no_networks || !networks.is_empty()).then_some(networks),
            };
            let patched = client.json(Method::PATCH, &path(id), Some(&body)).await?;
            tenant(patched, out)
        }
        TenantCommand::Delete { id } => {
            client.send(Method::DELETE, &path(id), None::<&()>).await?;
            Ok(())
        }
        TenantCommand::Enable { keys } => {
            let body = make_keys(&client, "enable", keys).await?;
            finish(body, |body| status(body, out))
        }
        TenantCommand::Regenerate { keys } => {
            let body = make_keys(&client, "regenerate", keys).await?;
            finish(body, |body| status(body, out))
        }
        TenantCommand::Disable { id } => {
            let path = format!("{}/disable", vpn(id));
            status(client.json(Method::POST, &path, None::<&()>).await?, out)
        }
        TenantCommand::Status { id } => status(client.get(&vpn(id)).await?, out),
        TenantCommand::Session { id } => {
            let session: Session = client.get(&format!("{}/session", vpn(id))).await?;
            match output {
                Output::Table => Ok(write!(out, "{}", render::session(&session))?),
                Output::Json => print_json(out, &session),
            }
        }
        TenantCommand::Config { id, out: file } => {
            let text = client.text(&format!("{}/config", vpn(id))).await?;
            match file {
                Some(file) => write_private(&file, &text)
                    .with_context(|| format!("cannot write {}", file.display())),
                None => Ok(out.write_all(text.as_bytes())?),
            }
        }
    }
}

fn token(token: Option<Token>, file: Option<&Path>) -> Result<Zeroizing<String>> {
    match (token, file) {
        (Some(Token(token)), _) => Ok(token),
        (None, Some(file)) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the token file {}", file.display()))?;
            let text = Zeroizing::new(text);
            Ok(Zeroizing::new(text.trim().to_owned()))
        }
        (None, None) => bail!(
            "no token: set VPN_EDGE_TOKEN or name a file with --token-file \
             (`vpn-edge token add` creates one)"
        ),
    }
}

fn path(id: Uuid) -> String {
    format!("/v1/tenants/{id}")
}

fn vpn(id: Uuid) -> String {
    format!("/v1/tenants/{id}/vpn")
}

/// Asks for `action` and waits until it is done, unless told otherwise.
async fn make_keys(client: &Client, action: &str, args: KeysArgs) -> Result<VpnStatus> {
    let KeysArgs {
        id,
        public_key,
        no_wait,
    } = args;
    let path = format!("{}/{action}", vpn(id));
    let keys = NewKeys {
        public_key: public_key.map(|key| key.to_string()),
    };
    let mut body: VpnStatus = client.json(Method::POST, &path, Some(&keys)).await?;
    if let Some(key) = public_key
        && body.client_public_key != Some(key)
    {
        let reason = match body.failure {
            Some(reason) => format!("the VPN failed: {reason}"),
            None => "the server may be older than this program and have generated keys".to_owned(),
        };
        bail!("the VPN does not have the key {key}: {reason}; see `vpn-edge tenant status {id}`");
    }
    let deadline = Instant::now() + WAIT_DEADLINE;
    while !no_wait && body.state == State::Enabling {
        if Instant::now() > deadline {
            bail!(
                "the VPN is still being enabled after {} s; look again with `vpn-edge tenant status {id}`",
                WAIT_DEADLINE.as_secs()
            );
        }
        sleep(WAIT_STEP).await;
        body = client.get(&vpn(id)).await?;
    }
    Ok(body)
}

/// Prints the result; a failed VPN makes the command fail.
fn finish(body: VpnStatus, print: impl FnOnce(VpnStatus) -> Result<()>) -> Result<()> {
    let failure = body.failure.clone();
    print(body)?;
    match failure {
        Some(reason) => bail!("the VPN failed: {reason}; enable it to try again, or disable it"),
        None => Ok(()),
    }
}

fn print_json(out: &mut dyn Write, body: &impl Serialize) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(body)?)?;
    Ok(())
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    // An existing file would keep its mode otherwise.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
