//! Checks of hop ports and tenants' ports: nothing else on the node may use them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::{Finding, Settings, Sysctl};
use crate::domain::PortRange;

const RESERVED: Sysctl<'_> = Sysctl(&["ipv4", "ip_local_reserved_ports"]);
const LOCAL: Sysctl<'_> = Sysctl(&["ipv4", "ip_local_port_range"]);
const RESERVED_FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

type Ports = BTreeSet<u16>;

/// Keeps the kernel from assigning the ports to sockets, in the namespace of the
/// calling thread. Reservations of others stay.
///
/// # Errors
///
/// If the setting cannot be read or written, as in a container with a read-only
/// `/proc/sys`.
pub fn reserve(range: RangeInclusive<u16>) -> io::Result<()> {
    let mut reserved = parse(&fs::read_to_string(RESERVED_FILE)?);
    let before = reserved.len();
    reserved.extend(range);
    if reserved.len() == before {
        return Ok(());
    }
    fs::write(RESERVED_FILE, list(&reserved))
}

/// Releases the ports that [`reserve`] reserved.
///
/// # Errors
///
/// Like [`reserve`].
pub fn release(range: RangeInclusive<u16>) -> io::Result<()> {
    let mut reserved = parse(&fs::read_to_string(RESERVED_FILE)?);
    reserved.retain(|port| !range.contains(port));
    // An empty write would change nothing.
    fs::write(RESERVED_FILE, format!("{}\n", list(&reserved)))
}

pub fn check(settings: &Settings) -> Vec<Finding> {
    let hop: Ports = settings.hop_ports.clone().collect();
    let pool: Ports = settings.pool.into_iter().flat_map(ports_of).collect();
    let mut findings = Vec::new();

    let both: Ports = hop.intersection(&pool).copied().collect();
    if !both.is_empty() {
        findings.push(Finding::error(
            "hop_ports_pool",
            format!(
                "the ports {} are both tenants' ports and hop ports",
                list(&both)
            ),
            "use other ports with --hop-ports, or for tenants",
        ));
    }
    // Ports that the kernel does not assign by itself need no reservation: an
    // explicit bind succeeds either way.
    if let Some((given, command)) = given_out(&hop) {
        findings.push(Finding::error(
            "hop_ports_local",
            format!(
                "the kernel may give the hop ports {given} to any socket \
                 ({} is {})",
                LOCAL.name(),
                LOCAL.read().unwrap_or_default().replace('\t', "-")
            ),
            command,
        ));
    }
    if let Some((given, command)) = given_out(&pool) {
        findings.push(Finding::warning(
            "pool_local",
            format!(
                "the kernel may give the tenants' ports {given} to any socket, \
                 which then gets no answers"
            ),
            command,
        ));
    }
    let bound: Ports = bound().intersection(&hop).copied().collect();
    for port in bound {
        findings.push(Finding::warning(
            "hop_ports_bound",
            format!("a UDP socket is bound to the hop port {port}"),
            format!(
                "see whose it is with `ss -ulnp sport = :{port}` and bind it elsewhere, \
                 or use other ports with --hop-ports"
            ),
        ));
    }
    findings
}

fn ports_of(range: PortRange) -> RangeInclusive<u16> {
    range.first()..=range.last()
}

/// Those of `ports` that the kernel assigns to sockets, and how to prevent that.
fn given_out(ports: &Ports) -> Option<(String, String)> {
    let local = LOCAL.read()?;
    let mut ends = local.split_whitespace().map(str::parse::<u16>);
    let local = ends.next()?.ok()?..=ends.next()?.ok()?;
    let mut reserved = parse(&RESERVED.read()?);
    let given: Ports = ports
        .iter()
        .copied()
        .filter(|port| local.contains(port) && !reserved.contains(port))
        .collect();
    if given.is_empty() {
        return None;
    }
    reserved.extend(ports);
    let command = format!("`sysctl -w {}={}`", RESERVED.name(), list(&reserved));
    Some((list(&given), command))
}

/// Ports of UDP sockets that receive packets from outside.
fn bound() -> Ports {
    ["udp", "udp6"]
        .into_iter()
        .filter_map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok())
        .flat_map(|table| table.lines().filter_map(socket).collect::<Vec<_>>())
        .filter(|(address, _)| !address.is_loopback())
        .map(|(_, port)| port)
        .collect()
}

/// The local end in a line of `/proc/net/udp` or `udp6`: words of the address
/// in the machine's byte order, a colon, the port.
fn socket(line: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = line.split_whitespace().nth(1)?.split_once(':')?;
    let words: Vec<[u8; 4]> = address
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect::<Option<_>>()?;
    let address = match *words.concat() {
        [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        ref other => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(other).ok()?)),
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

/// Reads what the kernel writes: `a,b-c,…`.
fn parse(text: &str) -> Ports {
    let ends = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(ends).flatten().collect()
}

fn list(ports: &Ports) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == port => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let ranges: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    ranges.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_lists_are_read_merged_and_written() {
        let mut ports = parse("8080,9148,30000-30002\n");
        assert_eq!(list(&ports), "8080,9148,30000-30002");
        ports.extend(30_003..=30_004);
        ports.insert(8081);
        assert_eq!(list(&ports), "8080-8081,9148,30000-30004");
        assert_eq!(list(&parse("")), "");
        assert_eq!(list(&parse("65534-65535")), "65534-65535");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn sockets_are_read_off_the_kernels_tables() {
        let of = |line| socket(line).map(|(address, port)| (address.to_string(), port));
        assert_eq!(
            of("  55: 0100007F:EE49 00000000:0000 07 00000000:00000000"),
            Some(("127.0.0.1".into(), 61_001))
        );
        assert_eq!(
            of("  55: B80D0120000000000000000001000000:EE48 0:0 07"),
            Some(("2001:db8::1".into(), 61_000))
        );
        assert_eq!(of("  sl  local_address rem_address   st"), None);
    }
}
