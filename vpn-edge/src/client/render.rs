//! Output as tables.

use std::fmt::Display;

use comfy_table::Table;

use crate::api::{AuditRecord, TenantBody, VpnStatus};
use crate::sessions::{Session, Traffic};

/// One line per tenant.
pub fn tenants(tenants: &[TenantBody]) -> String {
    let mut table = plain();
    table.set_header(["ID", "ORGANISATION", "PLAN", "READY", "NAMESPACE", "VPN"]);
    for tenant in tenants {
        table.add_row([
            tenant.id.to_string(),
            tenant.organisation.clone(),
            tenant.plan.to_string(),
            yes_or_no(tenant.ready),
            tenant.namespace.clone(),
            tenant.vpn.state.as_str().to_owned(),
        ]);
    }
    text(&table)
}

/// One line per property.
pub fn tenant(tenant: &TenantBody) -> String {
    let networks: Vec<String> = tenant.networks.iter().map(ToString::to_string).collect();
    let mut table = plain();
    table.add_rows([
        ["id", &tenant.id.to_string()],
        ["organisation", &tenant.organisation],
        ["plan", tenant.plan.as_str()],
        ["ready", &yes_or_no(tenant.ready)],
        ["namespace", &tenant.namespace],
        [
            "networks",
            &shown((!networks.is_empty()).then(|| networks.join(", "))),
        ],
        ["vpn", tenant.vpn.state.as_str()],
    ]);
    text(&table)
}

/// One line per property.
pub fn status(status: &VpnStatus) -> String {
    let both = |v4: Option<String>, v6: Option<String>| match (v4, v6) {
        (Some(v4), Some(v6)) => Some(format!("{v4}, {v6}")),
        (v4, v6) => v4.or(v6),
    };
    let subnet = both(
        status.subnet.map(|subnet| subnet.to_string()),
        status.subnet6.map(|subnet| subnet.to_string()),
    );
    let client_address = both(
        status.client_address.map(|address| address.to_string()),
        status.client_address6.map(|address| address.to_string()),
    );
    let client_key = status
        .client_public_key
        .map(|key| match status.client_key_given {
            Some(true) => format!("{key} (given)"),
            _ => key.to_string(),
        });
    let mut table = plain();
    table.add_rows([
        ["state", status.state.as_str()],
        ["since", &status.since.to_string()],
        ["failure", &shown(status.failure.as_ref())],
        ["endpoint", &shown(status.endpoint.as_ref())],
        ["subnet", &shown(subnet)],
        ["client address", &shown(client_address)],
        ["server public key", &shown(status.server_public_key)],
        ["client public key", &shown(client_key)],
        ["keys made", &shown(status.created_at)],
        ["generation", &status.generation.to_string()],
    ]);
    text(&table)
}

/// One line per record.
pub fn audit(records: &[AuditRecord]) -> String {
    let mut table = plain();
    table.set_header([
        "TIME",
        "TENANT",
        "ORGANISATION",
        "CALLER",
        "AS",
        "ACTION",
        "OUTCOME",
    ]);
    for record in records {
        let outcome = match &record.outcome {
            None => "unknown".to_owned(),
            Some(outcome) => match &outcome.error {
                None => outcome.status.to_string(),
                Some(error) => format!("{} {error}", outcome.status),
            },
        };
        table.add_row([
            record.time.to_string(),
            record.tenant.to_string(),
            record.organisation.clone(),
            record.caller.clone(),
            if record.admin { "admin" } else { "member" }.to_owned(),
            record.action.to_string(),
            outcome,
        ]);
    }
    text(&table)
}

/// One line per property.
pub fn session(session: &Session) -> String {
    let traffic = |Traffic { packets, bytes }| format!("{packets} packets, {bytes} bytes");
    let mut table = plain();
    table.add_rows([
        ["connected", &yes_or_no(session.connected)],
        ["last handshake", &shown(session.last_handshake)],
        ["client", &shown(session.client)],
        ["received", &traffic(session.received)],
        ["sent", &traffic(session.sent)],
    ]);
    if !session.complete {
        table.add_row(["incomplete", "not every edge answered"]);
    }
    text(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table
}

/// Without the padding of the first and the last column.
fn text(table: &Table) -> String {
    table
        .lines()
        .map(|line| {
            line.strip_prefix(' ')
                .unwrap_or(&line)
                .trim_end()
                .to_owned()
                + "\n"
        })
        .collect()
}

fn shown(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}
