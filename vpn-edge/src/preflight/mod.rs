//! Checks for problems that keep the edge from working on this node, with remedies.
//!
//! Checks only read, except for [`reserve`]; if an uplink has none of our programs
//! yet, one that passes all packets is attached for a moment. They act in the network
//! namespace of the calling thread.

mod host;
mod network;
mod ports;
mod routing;
mod uplinks;

pub use ports::{release, reserve};

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::domain::PortRange;
use network::Network;

/// The edge's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    pub uplinks: Vec<String>,
    /// Addresses that clients send to; if empty, those of the uplinks.
    pub addresses: Vec<IpAddr>,
    /// The hop ports.
    pub hop_ports: RangeInclusive<u16>,
    /// UDP ports of tenants, if known.
    pub pool: Option<PortRange>,
    /// Folder on bpffs for programs and maps.
    pub bpffs: PathBuf,
    /// Other nodes that packets are steered to.
    pub nodes: BTreeSet<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does not work.
    Error,
    /// It works, but worse than it could, or not for all.
    Warning,
}

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// A short name that stays the same from release to release.
    pub check: &'static str,
    pub found: String,
    /// What to do. Commands are between backticks.
    pub remedy: String,
}

impl Finding {
    fn error(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Error, check, found, remedy)
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Warning, check, found, remedy)
    }

    fn new(
        severity: Severity,
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            check,
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}

/// All problems, errors first; empty if there are none.
///
/// Must be called within a runtime.
pub async fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = host::check(&settings.bpffs);
    let privileged = !findings.iter().any(|finding| finding.check == host::RIGHTS);
    findings.extend(ports::check(settings));
    match Network::read().await {
        Ok(network) => {
            findings.extend(uplinks::check(settings, &network, privileged));
            findings.extend(routing::check(settings, &network).await);
        }
        Err(error) => findings.push(Finding::error(
            "netlink",
            format!("cannot read the node's network from the kernel: {error}"),
            "allow this process rtnetlink sockets, and look into the kernel's log",
        )),
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// The exit status of the process: 1 if there are errors.
#[must_use]
pub fn exit_status(findings: &[Finding]) -> u8 {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
        .into()
}

/// The findings for a terminal, one paragraph each.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Finding {
            check,
            found,
            remedy,
            ..
        } = finding;
        let _ = write!(text, "{severity}: {found} [{check}]\n  {remedy}\n\n");
    }
    let of = |wanted| {
        findings
            .iter()
            .filter(|finding| finding.severity == wanted)
            .count()
    };
    let _ = match (of(Severity::Error), of(Severity::Warning)) {
        (0, 0) => writeln!(text, "nothing found: the edge can work on this node"),
        (errors, warnings) => writeln!(text, "errors: {errors}, warnings: {warnings}"),
    };
    text
}

/// A setting of the namespace below `/proc/sys/net`. The path is a list, because an
/// interface's name may contain dots and even slashes.
struct Sysctl<'a>(&'a [&'a str]);

impl Sysctl<'_> {
    /// None if the kernel or the namespace does not have it.
    fn read(&self) -> Option<String> {
        let path = self
            .0
            .iter()
            .fold(Path::new("/proc/sys/net").into(), |path: PathBuf, part| {
                path.join(part)
            });
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    }

    fn number(&self) -> Option<i64> {
        self.read()?.parse().ok()
    }

    /// The name for `sysctl`.
    fn name(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|part| part.replace('.', "/")).collect();
        format!("net.{}", parts.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_make_it_fail() {
        let warning = Finding::warning("a", "found", "remedy");
        let error = Finding::error("b", "found", "remedy");
        assert_eq!(exit_status(&[]), 0);
        assert_eq!(exit_status(std::slice::from_ref(&warning)), 0);
        assert_eq!(exit_status(&[warning, error]), 1);
    }

    #[test]
    fn a_terminal_gets_a_paragraph_each_and_a_sum() {
        assert_eq!(
            render(&[Finding::error("forwarding", "it does not", "`make it`")]),
            "error: it does not [forwarding]\n  `make it`\n\nerrors: 1, warnings: 0\n"
        );
        assert!(render(&[]).starts_with("nothing found"));
    }

    #[test]
    fn programs_get_stable_names() {
        let json = serde_json::to_value(Finding::warning("mtu", "found", "remedy")).unwrap();
        let wanted = serde_json::json!({
            "severity": "warning", "check": "mtu", "found": "found", "remedy": "remedy",
        });
        assert_eq!(json, wanted);
    }

    #[test]
    fn dots_in_an_interface_are_no_separators() {
        let sysctl = Sysctl(&["ipv4", "conf", "eth0.100", "forwarding"]);
        assert_eq!(sysctl.name(), "net.ipv4.conf.eth0/100.forwarding");
    }
}
