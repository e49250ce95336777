//! Readies the machine: installs what is missing, and only that.

use crate::build_ebpf;
use crate::kubernetes;
use crate::monitoring;
use crate::npm;
use crate::schemathesis;
use crate::step::step;
use crate::workspace::cargo;
use anyhow::{Context, Result, anyhow, bail};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a command or a suite needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To compile the workspace, the kernel's programs included.
    Build,
    /// To load programs into this machine's kernel.
    Bpf,
    /// To build hosts of network namespaces and send traffic between them.
    Lab,
    /// To run WireGuard in user space.
    Tun,
    /// To show a database behind a gateway.
    Demo,
    /// To load kube-proxy's rules.
    KubeProxy,
    /// To boot other kernels.
    Kernels,
    /// To run a Kubernetes control plane.
    Kubernetes,
    /// To give it the Prometheus operator's resources.
    Monitoring,
    /// To throw requests at the API.
    Schemathesis,
    /// To run Node.js with npm's packages.
    Npm,
    /// To see pages as browsers do.
    Browser,
    /// To build libFuzzer, which is C++.
    Fuzz,
    /// To check the tree.
    Lint,
    /// To run vpn-edge itself, which whoever needs it builds.
    Daemon,
}

/// Variables that tell tests and benchmarks where things are.
pub type Environment = Vec<(&'static str, PathBuf)>;

pub const EVERYTHING: [Need; 6] = [
    Need::Build,
    Need::Bpf,
    Need::Lab,
    Need::Tun,
    Need::Demo,
    Need::Kernels,
];

impl Need {
    /// Debian's packages.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Build
            | Self::Bpf
            | Self::Tun
            | Self::Kubernetes
            | Self::Monitoring
            | Self::Lint
            | Self::Daemon => &[],
            // Whoever has Node.js from elsewhere keeps it.
            Self::Schemathesis if schemathesis::has_venv() => &[],
            Self::Schemathesis => &["python3-venv"],
            Self::Npm if npm::has_node() => &[],
            Self::Npm => &["nodejs", "npm"],
            Self::Browser => &["chromium", "fonts-dejavu-core", "zbar-tools"],
            Self::Lab => &[
                "conntrack",
                "dnsmasq-base",
                "ethtool",
                "iperf3",
                "iproute2",
                "iputils-ping",
                "nftables",
                "openresolv",
                "procps",
                "sqlite3",
                "wireguard-go",
                "wireguard-tools",
            ],
            Self::KubeProxy => &["iptables"],
            Self::Fuzz => &["g++"],
            Self::Demo => &["openssl", "postgresql", "postgresql-client"],
            Self::Kernels => &[
                "busybox-static",
                "cpio",
                "kmod",
                "qemu-system-x86",
                "xz-utils",
                "zstd",
            ],
        }
    }
}

const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_PACKAGES: [&str; 2] = ["llvm-22-dev", "libzstd-dev"];
const DEBIAN_RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const CARGO_DENY: &str = "0.20.2";

/// Returns once the machine has all that is needed; the error says what it lacks.
pub fn ready(needs: &[Need]) -> Result<Environment> {
    // What cannot be installed comes first: nothing is, for a suite that could
    // not run anyway.
    for need in needs {
        match need {
            Need::Bpf => loads_programs()?,
            Need::Tun => has_tun()?,
            Need::Kubernetes => kubernetes::buildable()?,
            Need::Build
            | Need::Lab
            | Need::KubeProxy
            | Need::Demo
            | Need::Kernels
            | Need::Monitoring
            | Need::Schemathesis
            | Need::Npm
            | Need::Browser
            | Need::Fuzz
            | Need::Lint
            | Need::Daemon => {}
        }
    }
    let packages: Vec<&str> = needs
        .iter()
        .flat_map(|need| need.packages())
        .copied()
        .collect();
    install(&packages)?;
    if needs.contains(&Need::Build) {
        library_source()?;
        bpf_linker()?;
    }
    if needs.contains(&Need::Lint) {
        lint_tools()?;
    }
    let mut environment = Environment::new();
    for need in needs {
        environment.extend(match need {
            Need::Kubernetes => Some((kubernetes::VARIABLE, kubernetes::folder()?)),
            Need::Monitoring => Some((monitoring::VARIABLE, monitoring::folder()?)),
            Need::Npm => Some((npm::VARIABLE, npm::folder()?)),
            Need::Schemathesis => Some((schemathesis::VARIABLE, schemathesis::python()?)),
            _ => None,
        });
    }
    Ok(environment)
}

fn install(packages: &[&str]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(", ");
    if !is_root()? {
        bail!("{list}: not installed, and installing needs root");
    }
    static UPDATED: AtomicBool = AtomicBool::new(false);
    if !UPDATED.swap(true, Ordering::Relaxed) {
        step("reading the package lists", apt(&["update"]))?;
    }
    // Debian's postgresql makes and starts a cluster unless told not to; the
    // demo starts its own.
    let no_cluster = Path::new("/etc/postgresql-common/createcluster.d/vpn-edge.conf");
    if missing.contains(&"postgresql") {
        fs::create_dir_all(no_cluster.parent().expect("has a parent"))?;
        fs::write(no_cluster, "create_main_cluster = false\n")?;
    }
    let mut install = apt(&["install", "--no-install-recommends", "--no-remove"]);
    install.args(&missing);
    let installed = step(&format!("installing {list}"), install);
    let _ = fs::remove_file(no_cluster);
    installed
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .with_context(|| {
            format!("cannot run dpkg-query: on a system that is not Debian's, install these by hand: {}", packages.join(", "))
        })?;
    let known = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = known
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect())
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["--yes", "--option", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// core's source, with which the kernel's programs are built.
fn library_source() -> Result<()> {
    if build_ebpf::toolchain().is_ok() {
        return Ok(());
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src"]);
    if let Err(error) = step("adding rust-src", rustup) {
        eprintln!("{error:#}");
    }
    if build_ebpf::toolchain().is_err() {
        eprintln!("rustup brought no rust-src: falling back on Debian's compiler");
        install(&DEBIAN_RUST)?;
    }
    build_ebpf::toolchain()
        .map(drop)
        .map_err(|error| anyhow!(error))
}

fn bpf_linker() -> Result<()> {
    if let Ok(linker) = build_ebpf::linker()
        && let Ok(output) = Command::new(linker).arg("--version").output()
        && String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER)
    {
        return Ok(());
    }
    install(&BPF_LINKER_PACKAGES)?;
    let mut install = cargo([
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--locked",
        "--force",
        "--no-default-features",
        "--features",
        "llvm-22",
    ]);
    install
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .env_remove("CARGO_TARGET_DIR");
    step(&format!("building bpf-linker {BPF_LINKER}"), install)
}

fn lint_tools() -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let found = cargo([tool, "--version"])
            .output()
            .is_ok_and(|output| output.status.success());
        if !found {
            let mut rustup = Command::new("rustup");
            rustup.args(["component", "add", component]);
            step(&format!("adding {component}"), rustup)?;
        }
    }
    let deny = cargo(["deny", "--version"]).output()?;
    if !deny.status.success() {
        let mut install = cargo(["install", "cargo-deny", "--version", CARGO_DENY, "--locked"]);
        install.env_remove("CARGO_TARGET_DIR");
        step(&format!("building cargo-deny {CARGO_DENY}"), install)?;
    }
    Ok(())
}

fn loads_programs() -> Result<()> {
    if !is_root()? {
        bail!("root is needed to load programs and make namespaces: run it as root");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "the kernel has no BTF (/sys/kernel/btf/vmlinux): boot one built with CONFIG_DEBUG_INFO_BTF"
        );
    }
    let filesystems = fs::read_to_string("/proc/filesystems")?;
    if !filesystems.lines().any(|line| line.ends_with("\tbpf")) {
        bail!("the kernel has no bpf filesystem: boot one built with CONFIG_BPF_SYSCALL");
    }
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) if value.trim() == "0" => {
            bail!("the BPF compiler is off: sysctl net.core.bpf_jit_enable=1")
        }
        Ok(_) => Ok(()),
        Err(_) => bail!("the kernel has no BPF compiler: boot one built with CONFIG_BPF_JIT"),
    }
}

fn has_tun() -> Result<()> {
    if !Path::new("/dev/net/tun").exists() {
        bail!("/dev/net/tun is missing, and userspace WireGuard needs it: modprobe tun");
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")
        .context("/proc is not mounted")?
        .uid()
        == 0)
}
