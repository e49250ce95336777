//! `vpn-edge teardown`: removes from the machine what `standalone` and `agent` leave
//! there.
//!
//! Tenants and keys stay in the database: the next start restores everything.

use std::path::PathBuf;

use anyhow::{Context, Result};
use vpn_edge_common::FLOWS;

use crate::datapath::{self, Reader};
use crate::gateways::Gateways;
use crate::local::netns::{NetnsGateways, Settings};
use crate::preflight;

#[derive(Debug, clap::Args)]
pub struct TeardownArgs {
    /// The daemon's --runtime.
    #[arg(long, default_value = "/run/vpn-edge")]
    runtime: PathBuf,
    /// The daemon's --bpffs.
    #[arg(long, default_value = datapath::DEFAULT_ROOT)]
    bpffs: PathBuf,
}

/// Detaches programs, ends gateways, and removes pins and runtime files.
///
/// # Errors
///
/// If the daemon still runs, or something cannot be removed.
pub async fn run(args: TeardownArgs) -> Result<()> {
    // An agent has no gateways of its own.
    let gateways = match args.runtime.exists() {
        true => Some(NetnsGateways::adopt(Settings::for_removal(args.runtime)).await?),
        false => None,
    };
    // The hop ports are stored in the maps.
    if let Ok(reader) = Reader::open(&args.bpffs)
        && let first @ 1.. = reader.edge()?.hop_ports
    {
        let last = first.saturating_add(FLOWS as u16 - 1);
        preflight::release(first..=last).context("cannot release the hop ports")?;
    }
    datapath::remove(&args.bpffs)?;
    if let Some(gateways) = gateways {
        for gateway in gateways.list().await? {
            gateways.remove(gateway.port).await?;
        }
    }
    Ok(())
}
