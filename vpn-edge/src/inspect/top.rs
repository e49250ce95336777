//! `vpn-edge top`: the current state of tenants on one screen.

use std::io::{self, IsTerminal};
use std::ops::{Add as _, Range};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table, TableState};
use uuid::Uuid;
use vpn_edge_common::{Counters, DropReason, NODE_SLOT};

use super::{Selection, WatchArgs, bits, mode_name, scaled, tenant};
use crate::args::BpffsArgs;
use crate::datapath::Reader;

#[derive(Debug, clap::Args)]
pub struct TopArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    maps: BpffsArgs,
}

/// How often it looks where nothing is said.
const INTERVAL: Duration = Duration::from_secs(1);

/// A sample of a tenant; or of the node, on port 0, with its drops of packets that
/// may have been for any tenant.
#[derive(Clone, Debug)]
struct Look {
    port: u16,
    tenant: Uuid,
    mode: &'static str,
    sessions: usize,
    flows: usize,
    /// The remaining grace period.
    grace: Option<Duration>,
    counters: Counters,
}

/// The difference of two samples of a tenant; rates are per second.
#[derive(Clone, Debug, PartialEq)]
struct Tenant {
    port: u16,
    tenant: Uuid,
    mode: &'static str,
    ingress: Traffic,
    egress: Traffic,
    sessions: usize,
    /// Number of clients from which it was recently reached.
    flows: usize,
    handshakes: f64,
    grace: Option<Duration>,
    drops: f64,
    /// The reason of most drops.
    reason: Option<DropReason>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Traffic {
    bits: f64,
    packets: f64,
}

/// The difference of two samples. Tenants that are new in the second have zero rates.
fn between(before: &[Look], after: &[Look], elapsed: Duration) -> Vec<Tenant> {
    let seconds = elapsed.as_secs_f64().max(1e-3);
    let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
    let tenant = |now: &Look| {
        let old = before
            .binary_search_by_key(&now.port, |old| old.port)
            .ok()
            .map(|at| &before[at])
            .filter(|old| old.tenant == now.tenant)
            .unwrap_or(now);
        let (old, new) = (&old.counters, &now.counters);
        let dropped = |reason: DropReason| {
            let at = reason as usize;
            new.drops[at].saturating_sub(old.drops[at])
        };
        let reasons = DropReason::ALL.iter().copied();
        let most = reasons.clone().max_by_key(|&reason| dropped(reason));
        Tenant {
            port: now.port,
            tenant: now.tenant,
            mode: now.mode,
            ingress: Traffic {
                bits: rate(old.ingress_bytes, new.ingress_bytes) * 8.0,
                packets: rate(old.ingress_packets, new.ingress_packets),
            },
            egress: Traffic {
                bits: rate(old.egress_bytes, new.egress_bytes) * 8.0,
                packets: rate(old.egress_packets, new.egress_packets),
            },
            sessions: now.sessions,
            flows: now.flows,
            handshakes: rate(old.handshakes, new.handshakes),
            grace: now.grace,
            drops: rate(0, reasons.map(dropped).sum()),
            reason: most.filter(|&reason| dropped(reason) > 0),
        }
    };
    after.iter().map(tenant).collect()
}

/// The column by which tenants are sorted, descending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sort {
    #[default]
    Rate,
    In,
    Out,
    Drops,
    Handshakes,
}

impl Sort {
    const ALL: [(char, Self, &'static str); 5] = [
        ('r', Self::Rate, "rate"),
        ('i', Self::In, "in"),
        ('o', Self::Out, "out"),
        ('d', Self::Drops, "drops"),
        ('h', Self::Handshakes, "handshakes"),
    ];

    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, sort, _)| *sort == self);
        found.map_or("", |(_, _, name)| name)
    }

    fn of(self, tenant: &Tenant) -> f64 {
        match self {
            Self::Rate => tenant.ingress.bits + tenant.egress.bits,
            Self::In => tenant.ingress.bits,
            Self::Out => tenant.egress.bits,
            Self::Drops => tenant.drops,
            Self::Handshakes => tenant.handshakes,
        }
    }
}

/// The state of the screen.
#[derive(Default)]
struct Screen {
    tenants: Vec<Tenant>,
    sort: Sort,
    table: TableState,
}

impl Screen {
    fn show(&mut self, tenants: Vec<Tenant>) {
        self.tenants = tenants;
        self.arrange();
    }

    fn arrange(&mut self) {
        let sort = self.sort;
        // Equal ones by port, so that idle tenants keep their order.
        self.tenants
            .sort_by(|a, b| sort.of(b).total_cmp(&sort.of(a)).then(a.port.cmp(&b.port)));
        let last = self.tenants.len().checked_sub(1);
        let selected = self.table.selected().unwrap_or(0);
        self.table.select(last.map(|last| selected.min(last)));
    }

    /// Handles a key. Returns whether to continue.
    fn press(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let page = 10;
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if control => return false,
            KeyCode::Down | KeyCode::Char('j') => self.table.scroll_down_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.table.scroll_up_by(1),
            KeyCode::PageDown => self.table.scroll_down_by(page),
            KeyCode::PageUp => self.table.scroll_up_by(page),
            KeyCode::Home | KeyCode::Char('g') => self.table.select_first(),
            KeyCode::End | KeyCode::Char('G') => self.table.select_last(),
            KeyCode::Char(pressed) => {
                let sort = Sort::ALL.iter().find(|(key, ..)| *key == pressed);
                if let Some((_, sort, _)) = sort {
                    self.sort = *sort;
                    self.table.select_first();
                }
            }
            _ => {}
        }
        self.arrange();
        true
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let rows = [
            Constraint::Length(2),
            Constraint::Min(2),
            Constraint::Length(1),
        ];
        let [head, body, foot] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(self.totals(), head);
        frame.render_stateful_widget(table(&self.tenants, body.width), body, &mut self.table);
        let keys = Sort::ALL.map(|(key, _, name)| format!("{key} {name}"));
        let (sort, keys) = (self.sort.name(), keys.join("  "));
        let keys = format!("by {sort}   {keys}   ↑↓ scroll  q quit");
        frame.render_widget(Line::from(keys).style(Modifier::DIM), foot);
    }

    fn totals(&self) -> Text<'static> {
        let sum = |of: fn(&Tenant) -> f64| self.tenants.iter().map(of).fold(0.0, f64::add);
        let traffic = |bits_per_second: f64, packets: f64| {
            let bits = bits(bits_per_second as u64);
            format!("{bits}, {} packets/s", count(packets))
        };
        let sessions: usize = self.tenants.iter().map(|tenant| tenant.sessions).sum();
        let tenants = self.tenants.iter().filter(|tenant| tenant.port != NODE);
        let lines = [
            format!(
                "{}   in {}   out {}",
                counted(tenants.count(), "tenant"),
                traffic(sum(|t| t.ingress.bits), sum(|t| t.ingress.packets)),
                traffic(sum(|t| t.egress.bits), sum(|t| t.egress.packets)),
            ),
            format!(
                "{}   {} handshakes/s   {} drops/s",
                counted(sessions, "session"),
                few(sum(|t| t.handshakes)),
                count(sum(|t| t.drops)),
            ),
        ];
        Text::from_iter(lines).style(Modifier::BOLD)
    }
}

const COLUMNS: [(&str, u16); 13] = [
    ("PORT", 5),
    ("TENANT", 8),
    ("MODE", 6),
    ("IN BIT/S", 8),
    ("PKT/S", 7),
    ("OUT BIT/S", 9),
    ("PKT/S", 7),
    ("SESSIONS", 8),
    ("FLOWS", 5),
    ("HANDSHAKES/S", 12),
    ("GRACE", 5),
    ("DROPS/S", 7),
    ("MOST FOR", 15),
];
/// The numeric columns.
const NUMBERS: Range<usize> = 3..12;
/// Columns to omit on a narrow screen, in this order. Numbers are never cut, since a
/// cut number would be wrong.
const SPARE: [usize; 12] = [8, 10, 1, 6, 4, 2, 9, 12, 7, 11, 5, 3];

/// The columns for a screen of this width.
fn columns(width: u16) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..COLUMNS.len()).collect();
    let taken = |columns: &[usize]| -> u16 { columns.iter().map(|&at| COLUMNS[at].1 + 1).sum() };
    for spare in SPARE {
        if taken(&columns) <= width + 1 {
            break;
        }
        columns.retain(|&at| at != spare);
    }
    columns
}

fn table(tenants: &[Tenant], width: u16) -> Table<'static> {
    let columns = columns(width);
    let row = |cells: [String; 13]| {
        Row::new(columns.iter().map(|&at| {
            let alignment = if NUMBERS.contains(&at) {
                Alignment::Right
            } else {
                Alignment::Left
            };
            Cell::from(Text::from(cells[at].clone()).alignment(alignment))
        }))
    };
    let rows: Vec<Row<'_>> = tenants.iter().map(|tenant| row(cells(tenant))).collect();
    let header = row(COLUMNS.map(|(name, _)| name.into()));
    let widths = columns.iter().map(|&at| Constraint::Length(COLUMNS[at].1));
    Table::new(rows, widths)
        .header(header.style(Modifier::REVERSED))
        .row_highlight_style(Style::from(Modifier::BOLD))
        .column_spacing(1)
}

fn cells(tenant: &Tenant) -> [String; 13] {
    let id = tenant.tenant.to_string();
    let (port, id) = match tenant.port {
        NODE => ("-".into(), "-"),
        port => (port.to_string(), id.split('-').next().unwrap_or_default()),
    };
    [
        port,
        id.to_owned(),
        tenant.mode.to_owned(),
        count(tenant.ingress.bits),
        count(tenant.ingress.packets),
        count(tenant.egress.bits),
        count(tenant.egress.packets),
        tenant.sessions.to_string(),
        tenant.flows.to_string(),
        few(tenant.handshakes),
        tenant
            .grace
            .map_or("-".into(), |grace| format!("{}s", grace.as_secs())),
        count(tenant.drops),
        tenant.reason.map_or("-", DropReason::name).to_owned(),
    ]
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// A rate that is usually below one.
fn few(per_second: f64) -> String {
    if per_second < 100.0 {
        format!("{per_second:.1}")
    } else {
        count(per_second)
    }
}

fn count(per_second: f64) -> String {
    scaled(per_second.round() as u64, ["", "k", "M", "G", "T"])
}

/// Shows the screen until the user quits.
///
/// # Errors
///
/// If nothing is pinned, or there is no terminal.
pub fn run(args: &TopArgs) -> Result<()> {
    let interval = args.watch.watch.unwrap_or(INTERVAL);
    let reader = Reader::open(&args.maps.bpffs)?;
    args.selection.of(reader.allocations())?;
    ensure!(
        io::stdout().is_terminal() && io::stdin().is_terminal(),
        "`top` draws on a terminal, and this is none: use `vpn-edge ports --watch`"
    );
    // From here on a panic restores the terminal.
    let mut terminal = ratatui::try_init()?;
    let shown = watch(&reader, args.selection, interval, &mut terminal);
    ratatui::restore();
    shown
}

fn watch(
    reader: &Reader,
    selection: Selection,
    interval: Duration,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<()> {
    let mut screen = Screen::default();
    let mut before = (Instant::now(), look(reader, selection)?);
    screen.show(between(&before.1, &before.1, interval));
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        let due = before.0 + interval;
        if event::poll(due.saturating_duration_since(Instant::now()))?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && !screen.press(key)
        {
            return Ok(());
        }
        // However many keys are pressed, samples are one interval apart.
        if Instant::now() >= due {
            let after = (Instant::now(), look(reader, selection)?);
            screen.show(between(&before.1, &after.1, after.0 - before.0));
            before = after;
        }
    }
}

/// The port number used for the node.
const NODE: u16 = 0;

/// The selected tenants, by port; with all of them the node comes first, if it ever
/// dropped anything.
fn look(reader: &Reader, selection: Selection) -> Result<Vec<Look>> {
    let mut looks = Vec::new();
    let counters = reader.counters(NODE_SLOT)?;
    if selection.is_all() && counters.drops.iter().any(|&drops| drops > 0) {
        looks.push(Look {
            port: NODE,
            tenant: Uuid::nil(),
            mode: "-",
            sessions: 0,
            flows: 0,
            grace: None,
            counters,
        });
    }
    let allocations = reader.allocations().into_iter();
    // One that has gone meanwhile leaves an empty screen.
    for (port, allocation) in
        allocations.filter(|(port, allocation)| selection.takes(*port, tenant(allocation)))
    {
        looks.push(Look {
            port,
            tenant: tenant(&allocation),
            mode: mode_name(allocation.mode),
            sessions: reader.sessions(allocation.slot),
            flows: reader.flows(allocation.slot)?.len(),
            grace: reader.grace(allocation.slot),
            counters: reader.counters(allocation.slot)?,
        });
    }
    Ok(looks)
}

#[cfg(test)]
mod tests;
