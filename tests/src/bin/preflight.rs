//! The preflight as a process of a node, with any settings: what it finds, as
//! JSON; or the hop ports reserved, or the datapath opened.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use vpn_edge::datapath;
use vpn_edge::preflight::{self, Settings};

fn main() -> Result<()> {
    let mut settings = Settings {
        uplinks: Vec::new(),
        addresses: Vec::new(),
        hop_ports: 61_000..=61_127,
        pool: None,
        bpffs: datapath::DEFAULT_ROOT.into(),
        nodes: [].into(),
    };
    let (mut reserve, mut open) = (false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{name} what?"));
        match name.as_str() {
            "--reserve" => reserve = true,
            "--open" => open = true,
            "--uplink" => settings.uplinks.push(value()?),
            "--address" => settings.addresses.push(value()?.parse()?),
            "--hop-ports" => {
                let range = value()?;
                let (first, last) = range.split_once('-').context("FIRST-LAST")?;
                settings.hop_ports = first.parse()?..=last.parse()?;
            }
            "--ports" => settings.pool = Some(value()?.parse()?),
            "--bpffs" => settings.bpffs = PathBuf::from(value()?),
            "--node" => drop(settings.nodes.insert(value()?.parse()?)),
            _ => bail!("no option {name}"),
        }
    }
    if reserve {
        return Ok(preflight::reserve(settings.hop_ports)?);
    }
    if open {
        datapath::Datapath::open(&settings.bpffs)?;
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let findings = runtime.block_on(preflight::check(&settings));
    println!("{}", serde_json::to_string(&findings)?);
    std::process::exit(preflight::exit_status(&findings).into())
}
