//! `vpn-edge flows`: the clients from which tenants were recently reached.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use uuid::Uuid;
use vpn_edge_common::{Allocation, Edge, mode};

use super::{Gateways, RepeatArgs, Selection, interface_name, tenant};
use crate::args::{BpffsArgs, Output, OutputArgs};
use crate::datapath::{ClientFlow, Reader};

const MORE_HELP: &str = "\
A flow is a client's address and port, remembered for as long as a session may
last. A gateway on another node is sent the client's packets from one of this
node's ports, HOP PORT, and answers to it. The other node sees this node's
address and that port. If it knows that this is an edge node, it says
`(edge node)`: ask here who the client is.

Where a gateway is on this node and the node has one address of each IP version,
replies need no flow. Then LAST and ANSWERED are those of handshakes.";

#[derive(Debug, clap::Args)]
#[command(after_help = MORE_HELP)]
pub struct FlowsArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    repeat: RepeatArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    maps: BpffsArgs,
}

/// One flow, as shown. The JSON form is this, field by field.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    /// The tenant's port.
    port: u16,
    tenant: Uuid,
    client: SocketAddr,
    /// Whether the client is another edge node, which forwards for a client of its
    /// own.
    edge_node: bool,
    /// The node's address that it sends to.
    own: Option<IpAddr>,
    #[serde(flatten)]
    gateways: Gateways,
    /// The host-side veth of a gateway on this node.
    interface: Option<String>,
    /// The hop port for a gateway on another node.
    hop_port: Option<u16>,
    /// Seconds since its last packet.
    seconds_ago: u64,
    /// Seconds since the last reply; none if there was none.
    answered_seconds_ago: Option<u64>,
}

/// Prints the selected flows.
///
/// # Errors
///
/// If nothing is pinned, or the selected port is not allocated.
pub fn run(args: &FlowsArgs) -> Result<()> {
    let reader = Reader::open(&args.maps.bpffs)?;
    args.repeat.print(|| {
        let rows = rows(&reader, args.selection)?;
        Ok(match args.output.output {
            Output::Json => serde_json::to_string(&rows)?,
            Output::Table => table(&rows),
        })
    })
}

fn rows(reader: &Reader, selection: Selection) -> Result<Vec<Row>> {
    let edge = reader.edge()?;
    let mut rows = Vec::new();
    for (port, allocation) in selection.of(reader.allocations())? {
        let flows = reader.flows(allocation.slot)?;
        rows.extend(describe(&edge, port, &allocation, flows));
    }
    Ok(rows)
}

/// A tenant's flows, by client.
fn describe(edge: &Edge, port: u16, allocation: &Allocation, flows: Vec<ClientFlow>) -> Vec<Row> {
    let open = allocation.mode > mode::CLOSED;
    let hops = allocation.mode == mode::HOP && edge.hop_ports != 0;
    let gateways = Gateways::of(allocation);
    let interface = interface_name(allocation.ifindex).filter(|_| open && !hops);
    let row = |flow: ClientFlow| Row {
        port,
        tenant: tenant(allocation),
        client: flow.client,
        edge_node: flow.edge_node,
        own: flow.own,
        gateways: gateways.of_version(flow.client.is_ipv6()),
        interface: interface.clone(),
        hop_port: hops.then_some(flow.hop_port),
        seconds_ago: flow.seen.as_secs(),
        answered_seconds_ago: flow.proven.as_ref().map(Duration::as_secs),
    };
    let mut rows: Vec<Row> = flows.into_iter().map(row).collect();
    rows.sort_by_key(|row| row.client);
    rows
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no client sent packets recently".into();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "PORT", "CLIENT", "OWN", "GATEWAY", "HOP PORT", "LAST", "ANSWERED",
    ]);
    let seconds = |seconds: u64| format!("{seconds}s");
    for row in rows {
        let mut client = row.client.to_string();
        if row.edge_node {
            client.push_str(" (edge node)");
        }
        let gateway = match &row.interface {
            _ if row.gateways.is_empty() => "-".into(),
            Some(interface) => interface.clone(),
            None => row.gateways.to_string(),
        };
        table.add_row([
            row.port.to_string(),
            client,
            row.own.map_or("-".into(), |own| own.to_string()),
            gateway,
            row.hop_port.map_or("-".into(), |port| port.to_string()),
            seconds(row.seconds_ago),
            row.answered_seconds_ago.map_or("-".into(), seconds),
        ]);
    }
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use vpn_edge_common::mapped;

    use super::*;

    fn edge() -> Edge {
        Edge {
            hop_ports: 61_000,
            ..Edge::default()
        }
    }

    fn allocation(mode: u8) -> Allocation {
        Allocation {
            mode,
            gateway: mapped([192, 0, 2, 9]),
            gateway6: "2001:db8::9"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
            tenant: *Uuid::from_u128(0x1234).as_bytes(),
            ..Allocation::default()
        }
    }

    fn flow(client: &str, own: &str, hop_port: u16, proven: Option<u64>) -> ClientFlow {
        ClientFlow {
            client: client.parse().unwrap(),
            edge_node: false,
            own: Some(own.parse().unwrap()),
            hop_port,
            seen: Duration::from_millis(2_900),
            proven: proven.map(Duration::from_secs),
        }
    }

    fn flows() -> Vec<ClientFlow> {
        vec![
            flow("[2001:db8:9::7]:51820", "2001:db8::2", 61_009, Some(1)),
            flow("203.0.113.9:51820", "198.51.100.2", 61_127, None),
            ClientFlow {
                edge_node: true,
                ..flow("198.51.100.11:61003", "198.51.100.3", 61_003, Some(4))
            },
        ]
    }

    fn of(mode: u8) -> Vec<Row> {
        describe(&edge(), 31_001, &allocation(mode), flows())
    }

    #[test]
    fn clients_are_listed_with_their_way_to_a_gateway_on_another_node() {
        let rows = of(mode::HOP);
        insta::assert_snapshot!(table(&rows));
        insta::assert_snapshot!(serde_json::to_string_pretty(&rows).unwrap());
    }

    #[test]
    fn a_gateway_of_this_node_takes_no_hop() {
        insta::assert_snapshot!(table(&of(mode::XDP)));
    }

    #[test]
    fn nobody_is_said_to_have_been_nobody() {
        assert_eq!(table(&[]), "no client sent packets recently");
    }
}
