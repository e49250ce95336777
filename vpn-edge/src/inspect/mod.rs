//! Commands that read the kernel's maps for an operator, with or without a running
//! daemon.

pub mod drops;
pub mod flows;
pub mod ports;
pub mod top;
pub mod trace;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use uuid::Uuid;
use vpn_edge_common::wire::message;
use vpn_edge_common::{Address, Allocation, Edge, mode};

use crate::datapath::ip;

/// Which tenants a command is about: all, unless one is named.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[group(id = "tenants", multiple = false)]
struct Selection {
    /// Select the tenant on this UDP port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Select the tenant with this ID.
    #[arg(long, value_name = "ID")]
    tenant: Option<Uuid>,
}

/// How often a command looks.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
struct WatchArgs {
    /// Update every SECONDS, 0.05 to 3600, until interrupted [default: 1].
    #[arg(
        long,
        group = "updates",
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = seconds
    )]
    watch: Option<Duration>,
}

/// The same, for a command that may end by itself.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
struct RepeatArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// Exit after N updates.
    #[arg(
        long,
        value_name = "N",
        requires = "updates",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    count: Option<u64>,
}

impl RepeatArgs {
    /// Prints what `look` comes to: once, or as often as the options say.
    fn print(self, mut look: impl FnMut() -> Result<String>) -> Result<()> {
        let pause = self.watch.watch;
        let mut left = match pause {
            None => 1,
            Some(_) => self.count.unwrap_or(u64::MAX),
        };
        loop {
            let text = look()?;
            let mut stdout = io::stdout().lock();
            // Home and clear to the end: no flicker, unlike a cleared screen.
            let start = match pause.is_some() && stdout.is_terminal() {
                true => "\x1b[H\x1b[J",
                false => "",
            };
            match writeln!(stdout, "{start}{}", text.trim_end()) {
                // Whoever read has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            left -= 1;
            match pause {
                Some(pause) if left > 0 => std::thread::sleep(pause),
                _ => return Ok(()),
            }
        }
    }
}

/// Seconds between two looks.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("name seconds from 0.05 to 3600".into()),
    }
}

impl Selection {
    fn is_all(self) -> bool {
        self.port.is_none() && self.tenant.is_none()
    }

    fn takes(self, port: u16, tenant: Uuid) -> bool {
        self.port.is_none_or(|wanted| wanted == port)
            && self.tenant.is_none_or(|wanted| wanted == tenant)
    }

    /// The selected allocations.
    ///
    /// # Errors
    ///
    /// If the selected tenant has no port.
    fn of(self, allocations: BTreeMap<u16, Allocation>) -> Result<BTreeMap<u16, Allocation>> {
        let selected: BTreeMap<_, _> = allocations
            .into_iter()
            .filter(|(port, allocation)| self.takes(*port, tenant(allocation)))
            .collect();
        match self {
            Self {
                port: Some(port), ..
            } if selected.is_empty() => Err(not_allocated(port)),
            Self {
                tenant: Some(tenant),
                ..
            } if selected.is_empty() => {
                bail!("tenant {tenant} has no port; `vpn-edge ports` lists those that have")
            }
            _ => Ok(selected),
        }
    }
}

fn not_allocated(port: u16) -> anyhow::Error {
    anyhow::anyhow!("port {port} is not allocated; `vpn-edge ports` lists those that are")
}

fn tenant(allocation: &Allocation) -> Uuid {
    Uuid::from_bytes(allocation.tenant)
}

/// The name of a [`mode`].
fn mode_name(mode: u8) -> &'static str {
    match mode {
        mode::CLOSED => "closed",
        mode::XDP => "xdp",
        mode::TC => "tc",
        mode::HOP => "hop",
        _ => "unknown",
    }
}

/// A gateway's addresses, or its node's; none while closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Gateways {
    gateway: Option<IpAddr>,
    gateway6: Option<IpAddr>,
    /// The gateway's node, if it is another one.
    node: Option<IpAddr>,
    node6: Option<IpAddr>,
}

impl Gateways {
    fn of(allocation: &Allocation) -> Self {
        let address = |address| given(address).filter(|_| allocation.mode > mode::CLOSED);
        let (v4, v6) = (address(allocation.gateway), address(allocation.gateway6));
        if allocation.mode == mode::HOP {
            return Self {
                node: v4,
                node6: v6,
                ..Self::default()
            };
        }
        Self {
            gateway: v4,
            gateway6: v6,
            ..Self::default()
        }
    }

    /// The addresses for packets of one IP version.
    fn of_version(mut self, is_v6: bool) -> Self {
        let [unused, unused_node] = match is_v6 {
            true => [&mut self.gateway, &mut self.node],
            false => [&mut self.gateway6, &mut self.node6],
        };
        (*unused, *unused_node) = (None, None);
        self
    }

    fn all(&self) -> impl Iterator<Item = IpAddr> {
        let all = [self.gateway, self.gateway6, self.node, self.node6];
        all.into_iter().flatten()
    }

    fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }
}

impl fmt::Display for Gateways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.node.or(self.node6).is_some() {
            f.write_str("on node ")?;
        }
        let all: Vec<String> = self.all().map(|ip| ip.to_string()).collect();
        f.write_str(&all.join(" and "))
    }
}

/// An address in a map; all zeros mean none.
fn given(address: Address) -> Option<IpAddr> {
    (address != [0; 16]).then(|| ip(address))
}

/// The node's own addresses; those that replies leave from come first.
fn own_addresses(edge: &Edge) -> Vec<IpAddr> {
    let own = edge.own.iter();
    own.filter_map(|own| given(own.address)).collect()
}

fn interface_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    // If the interface does not exist, nix returns an empty name and no error.
    name.into_string().ok().filter(|name| !name.is_empty())
}

/// The name of a message's first byte; none if it could not be read.
fn message_name(first: u8) -> Option<String> {
    let name = match first {
        0 => return None,
        message::INITIATION => "initiation",
        message::RESPONSE => "response",
        message::COOKIE_REPLY => "cookie",
        message::TRANSPORT_DATA => "data",
        other => return Some(format!("type {other}")),
    };
    Some(name.into())
}

/// A bit rate for people: 12.3 Mbit/s.
fn bits(per_second: u64) -> String {
    scaled(
        per_second,
        ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"],
    )
}

fn scaled(value: u64, units: [&str; 5]) -> String {
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1000.0 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value} {}", units[0])
    } else {
        format!("{scaled:.1} {}", units[unit])
    }
    .trim_end()
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_or_tenant_that_is_not_there_is_an_error() {
        let allocation = Allocation {
            mode: mode::XDP,
            tenant: *Uuid::from_u128(7).as_bytes(),
            ..Allocation::default()
        };
        let there = || BTreeMap::from([(31_001, allocation)]);
        let of_port = |port| Selection {
            port: Some(port),
            ..Selection::default()
        };
        let of_tenant = |tenant| Selection {
            tenant: Some(Uuid::from_u128(tenant)),
            ..Selection::default()
        };
        for selection in [Selection::default(), of_port(31_001), of_tenant(7)] {
            assert_eq!(selection.of(there()).unwrap().len(), 1, "{selection:?}");
        }
        let said = |selection: Selection| selection.of(there()).unwrap_err().to_string();
        assert_eq!(
            said(of_port(31_002)),
            "port 31002 is not allocated; `vpn-edge ports` lists those that are"
        );
        assert_eq!(
            said(of_tenant(8)),
            "tenant 00000000-0000-0000-0000-000000000008 has no port; \
             `vpn-edge ports` lists those that have"
        );
        assert!(Selection::default().of(BTreeMap::new()).unwrap().is_empty());
    }

    #[test]
    fn rates_are_told_in_the_largest_unit_that_fits() {
        assert_eq!(bits(999), "999 bit/s");
        assert_eq!(bits(1_000), "1.0 kbit/s");
        assert_eq!(bits(12_345_678), "12.3 Mbit/s");
        assert_eq!(bits(u64::MAX), "18446744.1 Tbit/s");
    }

    #[test]
    fn an_interface_that_is_not_there_has_no_name() {
        assert_eq!(interface_name(0), None);
        assert_eq!(interface_name(u32::MAX), None);
    }

    #[test]
    fn an_interval_is_neither_nothing_nor_a_day() {
        for text in ["0", "0.01", "-1", "86400", "NaN", "", "1s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
    }

    #[derive(Debug, clap::Parser)]
    struct Repeated {
        #[command(flatten)]
        repeat: RepeatArgs,
        #[command(flatten)]
        selection: Selection,
    }

    fn repeated(line: &str) -> Result<Repeated, String> {
        use clap::Parser as _;
        let words = std::iter::once("show").chain(line.split_ascii_whitespace());
        Repeated::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_looks_once_or_until_it_has_looked_often_enough() {
        let looks = |line: &str| {
            let mut looks = 0;
            let look = || {
                looks += 1;
                Ok(String::new())
            };
            repeated(line).unwrap().repeat.print(look).unwrap();
            looks
        };
        assert_eq!(looks(""), 1);
        assert_eq!(looks("--watch=0.05 --count 3"), 3);
        let every = |line| repeated(line).unwrap().repeat.watch.watch;
        assert_eq!(every("--watch"), Some(Duration::from_secs(1)));
        assert_eq!(every("--watch=2.5"), Some(Duration::from_millis(2500)));
    }

    #[test]
    fn options_that_say_nothing_are_refused() {
        let id = Uuid::nil();
        for (line, expected) in [
            ("--count 3".to_owned(), "--watch"),
            ("--watch --count 0".into(), "0 is not in 1.."),
            ("--watch=0".into(), "name seconds from 0.05 to 3600"),
            ("--watch 2".into(), "unexpected argument '2'"),
            (format!("--port 1 --tenant {id}"), "cannot be used with"),
        ] {
            let said = repeated(&line).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
    }
}
