//! `vpn-edge drops`: dropped packets by tenant and reason, in total or as they
//! happen.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use uuid::Uuid;
use vpn_edge_common::{Counters, DropReason, Event, NODE_SLOT};

use super::{RepeatArgs, Selection, message_name, tenant};
use crate::args::{BpffsArgs, Output, OutputArgs};
use crate::datapath::{self, Events, MapError, Reader, ip, monotonic};

const MORE_HELP: &str = "\
--follow shows about one drop a second for each tenant, reason and CPU, with the
number of all of them so far. In JSON each is a line. --count is the number of
drops to show then.";

#[derive(Debug, clap::Args)]
#[command(after_help = MORE_HELP)]
pub struct DropsArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    repeat: RepeatArgs,
    /// Show samples of drops as they happen instead of counters.
    #[arg(long, group = "updates")]
    follow: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    maps: BpffsArgs,
}

/// One tenant's drops for one reason. The JSON form is this, field by field.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    /// None, like the tenant, for packets that may have been for any tenant.
    port: Option<u16>,
    tenant: Option<Uuid>,
    reason: &'static str,
    dropped: u64,
    meaning: &'static str,
}

/// One sampled drop. The JSON form is this, field by field.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Sampled {
    time: Timestamp,
    /// None if the port was not allocated when the packet was dropped.
    tenant: Option<Uuid>,
    /// The tenant's port.
    port: u16,
    reason: &'static str,
    source: SocketAddr,
    /// The message type by its first byte; none if it could not be read.
    message: Option<String>,
    /// Length of the frame in bytes.
    length: u16,
    /// Drops for the same tenant and reason on the same CPU, including this one.
    count: u64,
}

/// Prints the selected drops.
///
/// # Errors
///
/// If nothing is pinned, the selected tenant or port does not exist, or another
/// process follows the drops.
pub async fn run(args: &DropsArgs) -> Result<()> {
    let reader = Reader::open(&args.maps.bpffs)?;
    let selected = || args.selection.of(reader.allocations());
    if args.follow {
        selected()?;
        return follow(args, &reader).await;
    }
    args.repeat.print(|| {
        let mut rows = Vec::new();
        for (port, allocation) in selected()? {
            let counters = reader.counters(allocation.slot)?;
            rows.extend(describe(Some((port, tenant(&allocation))), &counters));
        }
        if args.selection.is_all() {
            rows.extend(describe(None, &reader.counters(NODE_SLOT)?));
        }
        Ok(match args.output.output {
            Output::Json => serde_json::to_string(&rows)?,
            Output::Table => table(&rows),
        })
    })
}

/// The drops of a tenant, or those without a known tenant.
fn describe(of: Option<(u16, Uuid)>, counters: &Counters) -> impl Iterator<Item = Row> {
    let counted = |&reason: &DropReason| Row {
        port: of.map(|(port, _)| port),
        tenant: of.map(|(_, tenant)| tenant),
        reason: reason.name(),
        dropped: counters.drops[reason as usize],
        meaning: reason.meaning(),
    };
    let rows = DropReason::ALL.iter().map(counted);
    let mut rows: Vec<Row> = rows.filter(|row| row.dropped > 0).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.dropped));
    rows.into_iter()
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "nothing was dropped".into();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["PORT", "TENANT", "REASON", "DROPPED", "MEANING"]);
    for row in rows {
        table.add_row([
            row.port.map_or("-".into(), |port| port.to_string()),
            row.tenant.map_or("-".into(), |tenant| tenant.to_string()),
            row.reason.into(),
            row.dropped.to_string(),
            row.meaning.into(),
        ]);
    }
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

async fn follow(args: &DropsArgs, reader: &Reader) -> Result<()> {
    let _sole = sole(&args.maps.bpffs)?;
    let start = monotonic();
    let events = Events::open(&args.maps.bpffs)?;
    // SAFETY: the ring buffer keeps the same descriptor open as long as it lives.
    let mut events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
        .map_err(std::io::Error::from)?;
    let mut left = args.repeat.count.unwrap_or(u64::MAX);
    eprintln!("following drops; Ctrl-C ends it");
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        let mut ready = tokio::select! {
            ready = events.readable_mut() => ready?,
            _ = &mut interrupt => return Ok(()),
        };
        while let Some(event) = ready.get_inner_mut().take() {
            // Older events stayed in the buffer while nobody read it.
            if is_before(&event, start) {
                continue;
            }
            let ago = Duration::from_nanos(monotonic().saturating_sub(event.time));
            let time = Timestamp::now() - SignedDuration::try_from(ago)?;
            let port = port(&event, |port| {
                let allocation = reader.allocation(port)?;
                Some(allocation.tenant)
            });
            let sampled = sampled(&event, port, time);
            let of = sampled.tenant.unwrap_or_default();
            if !args.selection.takes(sampled.port, of) {
                continue;
            }
            let line = match args.output.output {
                Output::Json => serde_json::to_string(&sampled)?,
                Output::Table => line(&sampled),
            };
            match writeln!(io::stdout(), "{line}") {
                // The reader of the pipe has closed it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
        ready.clear_ready();
    }
}

/// The exclusive lock for reading the ring buffer.
fn sole(root: &Path) -> Result<File> {
    let folder = datapath::folder(root).join("maps");
    let file = File::open(&folder).map_err(|_| MapError::NotPinned(folder.clone()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another process follows the drops, and each would get only a part: end it, \
             or see the counters with `vpn-edge drops`"
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", folder.display()))
        }
    }
}

/// Whether the event is older than `start`, by a clock that may lag by a jiffy.
fn is_before(event: &Event, start: u64) -> bool {
    const JIFFY: u64 = 10_000_000;
    event.time + JIFFY < start
}

/// The tenant's port: the source's or the destination's, depending on the direction.
fn port(event: &Event, tenant: impl Fn(u16) -> Option<[u8; 16]>) -> u16 {
    let (to, from) = (event.destination_port, event.source_port);
    if tenant(to) != Some(event.tenant) && tenant(from) == Some(event.tenant) {
        from
    } else {
        to
    }
}

fn sampled(event: &Event, port: u16, time: Timestamp) -> Sampled {
    let tenant = Uuid::from_bytes(event.tenant);
    let reason = DropReason::ALL.get(usize::from(event.reason));
    Sampled {
        time,
        tenant: (!tenant.is_nil()).then_some(tenant),
        port,
        // Programs of a newer version may have more reasons.
        reason: reason.map_or("unknown", |reason| reason.name()),
        source: SocketAddr::new(ip(event.source), event.source_port),
        message: message_name(event.message),
        length: event.length,
        count: event.count,
    }
}

fn line(sampled: &Sampled) -> String {
    let tenant = sampled.tenant.map_or("-".into(), |id| id.to_string());
    let message = sampled.message.as_deref().unwrap_or("-");
    format!(
        "{:.3}  {tenant:36}  {:5}  {:15}  {:21}  {message:10}  {:5} bytes  {} so far",
        sampled.time,
        sampled.port,
        sampled.reason,
        sampled.source.to_string(),
        sampled.length,
        sampled.count,
    )
}

#[cfg(test)]
mod tests {
    use vpn_edge_common::mapped;

    use super::*;

    const TENANT: Uuid = Uuid::from_u128(0x1234);
    const PORT: u16 = 31_001;

    fn event() -> Event {
        Event {
            time: 5_000_000_000,
            count: 17,
            tenant: *TENANT.as_bytes(),
            source: mapped([203, 0, 113, 9]),
            source_port: 51_820,
            destination_port: PORT,
            length: 190,
            reason: DropReason::Mac1 as u8,
            message: 1,
        }
    }

    fn shown(event: &Event) -> Sampled {
        let time = "2026-11-21T08:00:27.1234567Z".parse().unwrap();
        sampled(event, event.destination_port, time)
    }

    #[test]
    fn drops_are_listed_with_what_they_mean_most_of_them_first() {
        let mut counters = Counters::default();
        counters.drops[DropReason::Mac1 as usize] = 12;
        counters.drops[DropReason::UnknownSession as usize] = 3000;
        let mut node = Counters::default();
        node.drops[DropReason::IpOptions as usize] = 2;
        let rows: Vec<Row> = describe(Some((PORT, TENANT)), &counters)
            .chain(describe(None, &node))
            .collect();
        insta::assert_snapshot!(table(&rows));
        insta::assert_snapshot!(serde_json::to_string_pretty(&rows).unwrap());
    }

    #[test]
    fn no_drops_are_said_to_be_none() {
        assert_eq!(table(&[]), "nothing was dropped");
        assert_eq!(describe(None, &Counters::default()).count(), 0);
    }

    #[test]
    fn a_sampled_drop_is_one_line() {
        let unread = Event {
            tenant: [0; 16],
            message: 0,
            reason: 200,
            ..event()
        };
        let source: std::net::Ipv6Addr = "2001:db8:9::9".parse().unwrap();
        let v6 = Event {
            source: source.octets(),
            ..event()
        };
        let lines = [event(), unread, v6].map(|event| line(&shown(&event)));
        insta::assert_snapshot!(lines.join("\n"));
        let json =
            [event(), unread, v6].map(|event| serde_json::to_string(&shown(&event)).unwrap());
        insta::assert_snapshot!(json.join("\n"));
    }

    #[test]
    fn the_port_is_the_tenants_whichever_way_the_packet_went() {
        let of = |wanted: u16| move |port: u16| (port == wanted).then_some(*TENANT.as_bytes());
        let reply = Event {
            source_port: PORT,
            destination_port: 51_820,
            ..event()
        };
        assert_eq!(port(&event(), of(PORT)), PORT);
        assert_eq!(port(&reply, of(PORT)), PORT);
        // Gone since: the port that the packet was for.
        assert_eq!(port(&event(), of(7)), PORT);
    }

    #[test]
    fn what_was_dropped_before_the_start_is_left_out() {
        assert!(is_before(&event(), 6_000_000_000));
        assert!(!is_before(&event(), 5_000_000_000));
        assert!(
            !is_before(&event(), 5_004_000_000),
            "the programs' clock is a jiffy late"
        );
    }

    #[test]
    fn only_one_process_follows() {
        let root = tempfile::tempdir().unwrap();
        let said = sole(root.path()).unwrap_err().to_string();
        assert!(said.starts_with("nothing is pinned at"), "{said}");

        std::fs::create_dir_all(datapath::folder(root.path()).join("maps")).unwrap();
        let first = sole(root.path()).unwrap();
        let said = sole(root.path()).unwrap_err().to_string();
        assert!(said.starts_with("another process follows"), "{said}");
        drop(first);
        sole(root.path()).unwrap();
    }
}
