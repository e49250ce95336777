//! `vpn-edge key`: the key that encrypts private keys in the database.

use std::path::PathBuf;

use anyhow::{Error, Result};
use clap::{Args, Subcommand};

use crate::local::SqliteRegistry;
use crate::local::sqlite::KeySource;

/// Where `standalone` keeps things.
#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// SQLite file that holds tenants and keys; made if missing.
    #[arg(long, default_value = "/var/lib/vpn-edge/vpn-edge.db")]
    pub database: PathBuf,
    /// File with the key that private keys in the database are encrypted under;
    /// made if missing. The environment variable VPN_EDGE_KEY may hold the key
    /// instead [default: the database's name and .key].
    #[arg(long)]
    pub key_file: Option<PathBuf>,
}

impl DatabaseArgs {
    /// # Errors
    ///
    /// When two keys are named, or what is named is none.
    pub fn key_source(&self) -> Result<KeySource> {
        KeySource::of(self.key_file.clone(), &self.database).map_err(Error::msg)
    }
}

/// `vpn-edge key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Encrypt the private keys in the database under a new key. Stop
    /// `standalone` for that; tunnels stay up meanwhile.
    Rotate(DatabaseArgs),
}

/// Runs `vpn-edge key`.
///
/// # Errors
///
/// When the database is in use, or a file cannot be read or written.
pub fn run(args: KeyArgs) -> Result<()> {
    let KeyCommand::Rotate(database) = args.command;
    let source = database.key_source()?;
    SqliteRegistry::rotate_key(&database.database, &source)?;
    println!(
        "private keys are encrypted under a new key, in {}",
        source.name()
    );
    Ok(())
}
