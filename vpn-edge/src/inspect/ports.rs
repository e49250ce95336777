//! `vpn-edge ports`: the port map in the kernel.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use uuid::Uuid;
use vpn_edge_common::{Allocation, Counters, DropReason, mode};

use super::{Gateways, RepeatArgs, Selection, bits, interface_name, mode_name, tenant};
use crate::args::{BpffsArgs, Output, OutputArgs};
use crate::datapath::Reader;

const MORE_HELP: &str = "\
--port and --tenant show details of the one port: its drops by reason, for one.
--watch shows rates, too.";

#[derive(Debug, clap::Args)]
#[command(after_help = MORE_HELP)]
pub struct PortsArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    repeat: RepeatArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    maps: BpffsArgs,
}

/// One port, as shown. The JSON form is this, field by field.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    port: u16,
    tenant: Uuid,
    generation: u64,
    /// `closed`, `xdp`, `tc` or `hop`.
    mode: &'static str,
    #[serde(flatten)]
    gateways: Gateways,
    /// The host-side veth; none while closed, if the gateway is on another node, or
    /// if it was just removed.
    interface: Option<String>,
    /// Number of session indexes under which the gateway accepts packets.
    sessions: usize,
    /// Number of clients from which it was recently reached.
    flows: usize,
    /// Handshake messages that were let in.
    handshakes: u64,
    /// Packets that were let in although their session was unknown.
    graced: u64,
    /// Packets that were forwarded to the gateway's node though their session was
    /// unknown here.
    relayed: u64,
    /// ICMP errors about its packets that were translated and forwarded.
    errors: u64,
    ingress: Traffic,
    egress: Traffic,
    dropped: u64,
    /// Dropped packets by reason; only reasons that occurred.
    drops: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Traffic {
    packets: u64,
    bytes: u64,
    /// Since the previous sample; none in the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_second: Option<u64>,
}

impl Traffic {
    fn rate(&mut self, before: &Self, elapsed: Duration) {
        let bits = self.bytes.saturating_sub(before.bytes) * 8;
        self.bits_per_second = Some((bits as f64 / elapsed.as_secs_f64()) as u64);
    }
}

/// Prints the selected ports.
///
/// # Errors
///
/// If nothing is pinned, or the selected port is not allocated.
pub fn run(args: &PortsArgs) -> Result<()> {
    let reader = Reader::open(&args.maps.bpffs)?;
    let mut before: Option<(Instant, Vec<Row>)> = None;
    args.repeat.print(|| {
        let now = Instant::now();
        let mut rows = rows(&reader, args.selection)?;
        if let Some((then, old)) = &before {
            for row in &mut rows {
                let same = |old: &&Row| old.port == row.port && old.tenant == row.tenant;
                if let Some(old) = old.iter().find(same) {
                    row.ingress.rate(&old.ingress, now - *then);
                    row.egress.rate(&old.egress, now - *then);
                }
            }
        }
        let text = match args.output.output {
            Output::Json => serde_json::to_string(&rows)?,
            Output::Table if args.selection.is_all() => table(&rows),
            Output::Table => rows.iter().map(show).collect(),
        };
        before = Some((now, rows));
        Ok(text)
    })
}

fn rows(reader: &Reader, selection: Selection) -> Result<Vec<Row>> {
    let allocations = selection.of(reader.allocations())?;
    allocations
        .iter()
        .map(|(&port, allocation)| row(reader, port, allocation))
        .collect()
}

fn row(reader: &Reader, port: u16, allocation: &Allocation) -> Result<Row> {
    let counters = reader.counters(allocation.slot)?;
    let known = Remembered {
        sessions: reader.sessions(allocation.slot),
        flows: reader.flows(allocation.slot)?.len(),
    };
    let interface = interface_name(allocation.ifindex);
    Ok(describe(port, allocation, &counters, known, interface))
}

/// How many sessions and flows of a tenant are known.
#[derive(Clone, Copy, Default)]
struct Remembered {
    sessions: usize,
    flows: usize,
}

fn describe(
    port: u16,
    allocation: &Allocation,
    counters: &Counters,
    known: Remembered,
    interface: Option<String>,
) -> Row {
    let open = allocation.mode > mode::CLOSED;
    let drops: BTreeMap<_, _> = DropReason::ALL
        .iter()
        .map(|&reason| (reason.name(), counters.drops[reason as usize]))
        .filter(|(_, count)| *count > 0)
        .collect();
    Row {
        port,
        tenant: tenant(allocation),
        generation: allocation.generation,
        mode: mode_name(allocation.mode),
        gateways: Gateways::of(allocation),
        interface: interface.filter(|_| open && allocation.mode != mode::HOP),
        sessions: known.sessions,
        flows: known.flows,
        handshakes: counters.handshakes,
        graced: counters.graced,
        relayed: counters.relayed,
        errors: counters.errors,
        ingress: Traffic {
            packets: counters.ingress_packets,
            bytes: counters.ingress_bytes,
            bits_per_second: None,
        },
        egress: Traffic {
            packets: counters.egress_packets,
            bytes: counters.egress_bytes,
            bits_per_second: None,
        },
        dropped: drops.values().sum(),
        drops,
    }
}

fn show(row: &Row) -> String {
    format!("{}\n{}", table(std::slice::from_ref(row)), details(row))
}

/// Details that do not fit into the table.
fn details(row: &Row) -> String {
    let mut lines = Vec::new();
    if let (Some(address), _) | (_, Some(address)) = (row.gateways.gateway6, row.gateways.node6) {
        lines.push(format!("gateway over IPv6: {address}"));
    }
    lines.push(format!("flows: {}", row.flows));
    for (what, count) in [
        ("let in by grace", row.graced),
        ("relayed with an unknown session", row.relayed),
        ("ICMP errors forwarded", row.errors),
    ] {
        if count > 0 {
            lines.push(format!("{what}: {count}"));
        }
    }
    let drops = row.drops.iter();
    lines.extend(drops.map(|(reason, count)| format!("dropped {reason}: {count}")));
    lines.join("\n") + "\n"
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no port is allocated".into();
    }
    let rates = rows.iter().any(|row| row.ingress.bits_per_second.is_some());
    let mut header = vec![
        "PORT",
        "TENANT",
        "MODE",
        "GATEWAY",
        "INTERFACE",
        "SESSIONS",
        "IN PKTS",
        "IN BYTES",
    ];
    if rates {
        header.push("IN RATE");
    }
    header.extend(["OUT PKTS", "OUT BYTES"]);
    if rates {
        header.push("OUT RATE");
    }
    header.push("DROPPED");
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        let rate = |traffic: &Traffic| traffic.bits_per_second.map_or("-".into(), bits);
        let mut cells = vec![
            row.port.to_string(),
            row.tenant.to_string(),
            row.mode.to_string(),
            gateway(&row.gateways),
            row.interface.clone().unwrap_or("-".into()),
            row.sessions.to_string(),
            row.ingress.packets.to_string(),
            row.ingress.bytes.to_string(),
        ];
        if rates {
            cells.push(rate(&row.ingress));
        }
        cells.extend([row.egress.packets.to_string(), row.egress.bytes.to_string()]);
        if rates {
            cells.push(rate(&row.egress));
        }
        cells.push(row.dropped.to_string());
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// One address, of IPv4 if there is one; `ports --port` has both.
fn gateway(gateways: &Gateways) -> String {
    let first = gateways.of_version(false);
    let shown = if first.is_empty() { *gateways } else { first };
    if shown.is_empty() {
        "-".into()
    } else {
        shown.to_string()
    }
}

#[cfg(test)]
mod tests {
    use vpn_edge_common::mapped;

    use super::*;

    fn open() -> Row {
        let allocation = Allocation {
            mode: mode::XDP,
            slot: 3,
            ifindex: 12,
            gateway: mapped([100, 64, 121, 25]),
            gateway6: v6("fd64:7670:6e00::7919"),
            tenant: *Uuid::from_u128(0x1234).as_bytes(),
            generation: 2,
            ..Allocation::default()
        };
        let mut counters = Counters {
            ingress_packets: 1200,
            ingress_bytes: 150_000,
            egress_packets: 900,
            egress_bytes: 1_000_000,
            handshakes: 6,
            graced: 2,
            relayed: 5,
            errors: 1,
            ..Counters::default()
        };
        counters.drops[DropReason::MessageType as usize] = 7;
        describe(
            31_001,
            &allocation,
            &counters,
            Remembered {
                sessions: 4,
                flows: 2,
            },
            Some("vpn-edge-31001".into()),
        )
    }

    fn v6(text: &str) -> [u8; 16] {
        text.parse::<std::net::Ipv6Addr>().unwrap().octets()
    }

    /// One whose gateway is on another node, with some addresses.
    fn hop(change: impl FnOnce(&mut Allocation)) -> Row {
        let mut allocation = Allocation {
            mode: mode::HOP,
            gateway: mapped([192, 0, 2, 9]),
            gateway6: v6("2001:db8::9"),
            tenant: *Uuid::from_u128(0x5678).as_bytes(),
            generation: 1,
            ..Allocation::default()
        };
        change(&mut allocation);
        let (counters, known) = (Counters::default(), Remembered::default());
        describe(31_003, &allocation, &counters, known, Some("lo".into()))
    }

    fn closed() -> Row {
        let allocation = Allocation {
            mode: mode::CLOSED,
            ..Allocation::default()
        };
        describe(
            31_002,
            &allocation,
            &Counters::default(),
            Remembered::default(),
            Some("stale".into()),
        )
    }

    #[test]
    fn the_table_is_for_people() {
        let v6_only = hop(|allocation| allocation.gateway = [0; 16]);
        insta::assert_snapshot!(table(&[open(), closed(), hop(|_| {}), v6_only]));
    }

    #[test]
    fn a_single_port_is_shown_with_all_that_is_known() {
        insta::assert_snapshot!(details(&open()));
        assert_eq!(
            details(&hop(|_| {})),
            "gateway over IPv6: 2001:db8::9\nflows: 0\n"
        );
    }

    #[test]
    fn rates_have_columns_of_their_own() {
        let mut row = open();
        let before = open().ingress;
        row.ingress.bytes += 1_250_000;
        row.ingress.rate(&before, Duration::from_secs(1));
        insta::assert_snapshot!(table(&[row]));
    }

    #[test]
    fn json_has_every_field_and_reason() {
        insta::assert_snapshot!(
            serde_json::to_string_pretty(&[open(), closed(), hop(|_| {})]).unwrap()
        );
    }

    #[test]
    fn an_empty_map_is_said_to_be_empty() {
        assert_eq!(table(&[]), "no port is allocated");
    }
}
