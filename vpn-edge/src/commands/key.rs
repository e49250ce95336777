//! `vpn-edge key`: the key that encrypts private keys in the database.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::args::DatabaseArgs;
use crate::local::SqliteRegistry;

/// `vpn-edge key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Encrypt the private keys in the database with a new key. Stop `standalone`
    /// first; tunnels stay up.
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
