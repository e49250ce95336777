//! Checks of the machine: privileges, kernel, bpffs.

use std::fs;
use std::path::Path;

use super::{Finding, Sysctl};
use crate::datapath::survey;

/// The check that others depend on.
pub const RIGHTS: &str = "rights";

/// The oldest supported kernel.
const OLDEST: (u32, u32) = (5, 15);

const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
/// CAP_PERFMON: without it the verifier does not allow arithmetic on packet pointers
/// that the programs need.
const PERFMON: u32 = 38;
const BPF: u32 = 39;

pub fn check(bpffs: &Path) -> Vec<Finding> {
    [rights(), kernel(), jit(), mounted(bpffs)]
        .into_iter()
        .flatten()
        .collect()
}

fn rights() -> Option<Finding> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())?;
    let lacking = lacking(effective);
    (!lacking.is_empty()).then(|| {
        Finding::error(
            RIGHTS,
            format!("this process lacks {}", lacking.join(", ")),
            "run it as root, or give it CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON \
             (systemd: AmbientCapabilities=, Kubernetes: securityContext.capabilities.add)",
        )
    })
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    [
        (has(NET_ADMIN), "CAP_NET_ADMIN"),
        (has(BPF) || has(SYS_ADMIN), "CAP_BPF"),
        (has(PERFMON) || has(SYS_ADMIN), "CAP_PERFMON"),
    ]
    .into_iter()
    .filter_map(|(has, name)| (!has).then_some(name))
    .collect()
}

fn kernel() -> Option<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let release = release.trim();
    let (major, minor) = OLDEST;
    (version(release)? < OLDEST).then(|| {
        Finding::error(
            "kernel",
            format!("this is Linux {release}, older than {major}.{minor}"),
            format!("boot Linux {major}.{minor} or newer"),
        )
    })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Only the initial network namespace has the setting; in others it is unknown.
fn jit() -> Option<Finding> {
    let setting = Sysctl(&["core", "bpf_jit_enable"]);
    (setting.number()? == 0).then(|| {
        Finding::warning(
            "jit",
            format!(
                "{} is 0: eBPF programs are interpreted, at several times the cost",
                setting.name()
            ),
            format!("`sysctl -w {}=1`", setting.name()),
        )
    })
}

fn mounted(root: &Path) -> Option<Finding> {
    if survey::has_bpffs(root) {
        return None;
    }
    let usual = Path::new("/sys/fs/bpf");
    let remedy = if root.starts_with(usual) {
        format!("`mount -t bpf bpf {}`", usual.display())
    } else {
        format!("`mkdir -p {0} && mount -t bpf bpf {0}`", root.display())
    };
    Some(Finding::error(
        "bpffs",
        format!("{} is not on a bpffs", root.display()),
        remedy,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_read() {
        assert_eq!(version("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert!(version("5.4.0") < Some(OLDEST));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn the_right_to_all_of_old_has_the_newer_ones() {
        let all = ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"];
        assert_eq!(lacking(0), all);
        assert_eq!(lacking(1 << NET_ADMIN), all[1..]);
        assert!(lacking(1 << NET_ADMIN | 1 << SYS_ADMIN).is_empty());
        assert!(lacking(1 << NET_ADMIN | 1 << BPF | 1 << PERFMON).is_empty());
    }
}
