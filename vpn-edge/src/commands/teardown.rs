//! `vpn-edge teardown`: removes from the machine what `standalone` and `agent` leave
//! there.
//!
//! Tenants and keys stay in the database: the next start restores everything.

use anyhow::{Context, Result};
use vpn_edge_common::FLOWS;

use crate::args::{BpffsArgs, RuntimeArgs, variable};
use crate::datapath::{self, Reader};
use crate::gateways::Gateways;
use crate::local::netns::{NetnsGateways, Settings};
use crate::preflight;

#[derive(Debug, clap::Args)]
#[command(mut_args(variable))]
pub struct TeardownArgs {
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    maps: BpffsArgs,
}

/// Detaches programs, ends gateways, and removes pins and runtime files.
///
/// # Errors
///
/// If the daemon still runs, or something cannot be removed.
pub async fn run(args: TeardownArgs) -> Result<()> {
    let (runtime, bpffs) = (args.runtime.runtime, args.maps.bpffs);
    // An agent has no gateways of its own.
    let gateways = match runtime.exists() {
        true => Some(NetnsGateways::adopt(Settings::for_removal(runtime)).await?),
        false => None,
    };
    // The hop ports are stored in the maps.
    if let Ok(reader) = Reader::open(&bpffs)
        && let first @ 1.. = reader.edge()?.hop_ports
    {
        let last = first.saturating_add(FLOWS as u16 - 1);
        preflight::release(first..=last).context("cannot release the hop ports")?;
    }
    datapath::remove(&bpffs)?;
    if let Some(gateways) = gateways {
        for gateway in gateways.list().await? {
            gateways.remove(gateway.port).await?;
        }
    }
    Ok(())
}
