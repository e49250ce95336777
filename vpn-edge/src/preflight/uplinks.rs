//! Checks of the interfaces that receive clients' packets.

use std::fs;

use super::network::{Attached, Link, Network};
use super::{Finding, Settings, Severity};
use crate::datapath::{AttachPoint, DatapathError, survey};

/// The minimum MTU of IPv6 links, plus WireGuard's overhead over IPv6.
const LEAST_MTU: u32 = 1280 + 80;

/// The largest MTU that many drivers fit into one page, and thus support with XDP.
const PAGE_MTU: u32 = 3498;

pub fn check(settings: &Settings, network: &Network, privileged: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let uplinks = network.uplinks(settings);
    for name in &settings.uplinks {
        if network.link(name).is_none() {
            findings.push(Finding::error(
                "uplink",
                format!("there is no interface {name}"),
                "name one of `ip -brief link` with --uplink",
            ));
        }
    }
    if settings.uplinks.is_empty() {
        findings.push(Finding::error(
            "uplink",
            "no uplink is named",
            "name one of `ip -brief link` with --uplink",
        ));
    }
    let working = uplinks.iter().any(|link| link.up && link.carrier);
    for link in &uplinks {
        findings.extend(state(link, working));
        findings.extend(mtu(link, &uplinks));
        findings.extend(xdp(settings, network, link, privileged));
    }
    findings.extend(addresses(settings, network, &uplinks));
    findings
}

/// With several uplinks, one may be broken while the others work.
fn state(link: &Link, others_work: bool) -> Option<Finding> {
    let name = &link.name;
    let severity = if others_work {
        Severity::Warning
    } else {
        Severity::Error
    };
    if !link.up {
        return Some(Finding::new(
            severity,
            "uplink_down",
            format!("the uplink {name} is down"),
            format!("`ip link set dev {name} up`"),
        ));
    }
    (!link.carrier).then(|| {
        Finding::new(
            severity,
            "uplink_carrier",
            format!("the uplink {name} has no carrier"),
            "check its cable and the other end of it",
        )
    })
}

fn mtu(link: &Link, uplinks: &[&Link]) -> Option<Finding> {
    let Link { name, mtu, .. } = link;
    if *mtu < LEAST_MTU {
        return Some(Finding::warning(
            "mtu",
            format!(
                "the uplink {name} has an MTU of {mtu}: \
                 a tunnel needs {LEAST_MTU} to carry IPv6's least"
            ),
            format!("`ip link set dev {name} mtu 1500`"),
        ));
    }
    let widest = uplinks.iter().max_by_key(|other| other.mtu)?;
    (widest.mtu > *mtu).then(|| {
        Finding::warning(
            "mtu",
            format!(
                "packets of up to {} bytes come in by {}, but only of up to {mtu} leave by {name}",
                widest.mtu, widest.name
            ),
            format!("`ip link set dev {name} mtu {}`", widest.mtu),
        )
    })
}

fn addresses(settings: &Settings, network: &Network, uplinks: &[&Link]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for address in &settings.addresses {
        if !network.addresses.iter().any(|own| own.address == *address) {
            let length = if address.is_ipv4() { 32 } else { 128 };
            findings.push(Finding::warning(
                "address",
                format!("no interface has {address}, which clients are to send to"),
                format!("`ip address add {address}/{length} dev lo`"),
            ));
        }
    }
    if settings.addresses.is_empty() {
        let none = network.served(settings).is_empty();
        for link in uplinks {
            if network.of(link).next().is_none() {
                let severity = if none {
                    Severity::Error
                } else {
                    Severity::Warning
                };
                findings.push(Finding::new(
                    severity,
                    "address",
                    format!(
                        "the uplink {} has no address that clients could send to",
                        link.name
                    ),
                    "give it one, or name the address that clients send to with --address",
                ));
            }
        }
    }
    findings
}

/// Whether XDP on the uplink is free and native.
fn xdp(settings: &Settings, network: &Network, link: &Link, privileged: bool) -> Option<Finding> {
    let name = &link.name;
    let pins = |hook| survey::pinned(&settings.bpffs, &hook).unwrap_or_default();
    let ours = pins(AttachPoint::UplinkXdp(name.clone()));
    let foreign = |attached: &&Attached| !ours.contains(&attached.program);
    if let Some(attached) = link.xdp.iter().find(foreign) {
        return Some(occupied(name, *attached));
    }
    if !link.xdp.is_empty() || !privileged || !link.up {
        return None;
    }
    let serving = !pins(AttachPoint::UplinkTc(name.clone())).is_empty();
    let reason = if serving {
        // A test could reset a card's queues under traffic.
        "it has been refused".to_owned()
    } else {
        match survey::native_xdp(name) {
            Err(DatapathError::Attach { source, .. }) => cause(&*source),
            // Other errors are not the driver's, and stop the daemon itself.
            _ => return None,
        }
    };
    Some(Finding::warning(
        "native_xdp",
        format!(
            "{name} does not support native XDP ({reason}): tc takes over, at a higher cost per packet"
        ),
        remedy(link, driver(name).as_deref(), &network.below(link)),
    ))
}

fn occupied(name: &str, attached: Attached) -> Finding {
    let Attached { mode, program } = attached;
    let known = survey::program(program);
    let called = known
        .name
        .map_or_else(String::new, |name| format!(" `{name}`"));
    let remedy = match known.link {
        Some(link) => format!(
            "end the process that attached it, or run `bpftool link detach id {link}`; \
             or name another uplink"
        ),
        None => format!(
            "`ip link set dev {name} {mode} off`, or end the process that owns it; \
             or name another uplink"
        ),
    };
    Finding::error(
        "xdp_occupied",
        format!("{name} has another XDP program{called}, number {program}, mode {mode}"),
        remedy,
    )
}

fn driver(interface: &str) -> Option<String> {
    let driver = fs::read_link(format!("/sys/class/net/{interface}/device/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

/// Remedies for the drivers that most often refuse XDP.
fn remedy(link: &Link, driver: Option<&str>, below: &[&str]) -> String {
    let Link { name, mtu, .. } = link;
    if !below.is_empty() && link.kind.as_deref() != Some("veth") {
        return format!(
            "name what it is made of as uplinks instead (--uplink {}), \
             with its addresses by --address",
            below.join(" --uplink ")
        );
    }
    let smaller = (*mtu > PAGE_MTU).then(|| format!("`ip link set dev {name} mtu {PAGE_MTU}`"));
    match (driver, smaller) {
        (Some("virtio_net"), smaller) => format!(
            "switch off what the host merges (`ethtool -K {name} gro-hw off lro off`), \
             and give the machine twice as many queue pairs as CPUs{}",
            smaller.map_or_else(String::new, |command| format!("; or {command}"))
        ),
        (Some("ena"), smaller) => format!(
            "leave half of the queues to XDP: `ethtool -L {name} combined N` with half of what \
             `ethtool -l {name}` tells{}",
            smaller.map_or_else(String::new, |command| format!("; or {command}"))
        ),
        (_, Some(command)) => format!("{command}, if the driver has XDP up to there"),
        (Some(driver), None) => {
            format!("nothing has to be done; a newer kernel may add support to the driver {driver}")
        }
        (None, None) => "nothing has to be done; another interface may support it".into(),
    }
}

/// The innermost error, which is the kernel's.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<&str>, mtu: u32) -> Link {
        let mut link = Link::default();
        link.name = "eth0".into();
        link.mtu = mtu;
        link.kind = kind.map(Into::into);
        link
    }

    #[test]
    fn each_driver_has_its_own_remedy() {
        let of = |driver, mtu| remedy(&link(None, mtu), driver, &[]);
        assert!(of(Some("virtio_net"), 1500).contains("ethtool -K eth0 gro-hw off"));
        assert!(!of(Some("ena"), 1500).contains("mtu"));
        assert!(of(Some("ena"), 9001).contains("`ip link set dev eth0 mtu 3498`"));
        assert!(of(Some("e1000"), 1500).contains("driver e1000"));
        let bond = remedy(&link(Some("bond"), 1500), None, &["eth1", "eth2"]);
        assert!(bond.contains("--uplink eth1 --uplink eth2"), "{bond}");
    }
}
