//! The guest's file system: this machine's own programs, a few modules and an init.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::kernel::{Kernel, output};

/// Programs of this machine that the guest has too. The rest of a shell's
/// vocabulary is busybox's; but its `cat` dies of a closed output even when it
/// has nothing to write, and a lab's first process is one.
const TOOLS: &[&str] = &[
    "bash", "cat", "ethtool", "ip", "iperf3", "modprobe", "mount", "nft", "nsenter", "ping", "sh",
    "sleep", "tc", "timeout", "umount", "unshare", "wg",
];

/// Modules, and with them all that they depend on. Not tun: without it no
/// userspace WireGuard can stand in for the kernel's.
const MODULES: &[&str] = &[
    "8021q",
    "act_bpf",
    "act_mirred",
    "bridge",
    "cls_bpf",
    "cls_matchall",
    "dummy",
    "inet_diag",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "sch_ingress",
    "sch_netem",
    "veth",
    "wireguard",
];

/// Prints what each of `/commands/*` said and how it ended, and powers off.
const INIT: &str = r#"#!/busybox/busybox sh
export PATH=/usr/sbin:/usr/bin:/busybox HOME=/root TERM=dumb LC_ALL=C
mkdir -p /proc /sys /dev /tmp /run /root /etc
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# The kernel's messages go to the first port and may fall into a line.
exec >/dev/ttyS1 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/netns
ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname guest
echo "@kernel $(uname -r)"
for command in /commands/*; do
    echo "@begin ${command##*/}"
    bash "$command" </dev/null
    echo "@end ${command##*/} $?"
done
# Waits until the port has sent all.
stty sane </dev/ttyS1
poweroff -f
"#;

/// A file of this machine and where the guest has it.
pub struct Copy {
    pub from: PathBuf,
    pub to: &'static str,
}

/// Packs the kernel's modules, the tools, `files` and `commands` (name and
/// script) into an initramfs in `folder`.
pub fn pack(
    folder: &Path,
    kernel: &Kernel,
    files: &[Copy],
    commands: &[(&str, String)],
) -> Result<PathBuf> {
    let root = TempDir::new_in(folder)?;
    let root = Root { path: root.path() };
    root.merged_usr()?;
    root.busybox()?;
    for tool in TOOLS {
        let from = on_path(tool)?;
        // One folder for all: what is in sbin here may be looked for in bin.
        root.program(&from, &format!("usr/bin/{tool}"))?;
    }
    symlink("../bin/modprobe", root.path.join("usr/sbin/modprobe"))?;
    root.modules(kernel)?;
    for file in files {
        root.program(&file.from, file.to)?;
    }
    for (number, (name, script)) in commands.iter().enumerate() {
        // Numbered, as the init runs them in the order of their names.
        root.write(&format!("commands/{number}-{name}"), script)?;
    }
    root.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
    root.write("etc/group", "root:x:0:\n")?;
    root.write("etc/hosts", "127.0.0.1 localhost\n")?;
    root.write("etc/resolv.conf", "")?;
    root.write("init", INIT)?;
    fs::set_permissions(root.path.join("init"), fs::Permissions::from_mode(0o755))?;

    // Not compressed: the emulated machine would take longer to unpack it than
    // to load it.
    let image = folder.join("initramfs");
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio --create --format=newc --quiet"])
        .current_dir(root.path)
        .stdout(File::create(&image)?)
        .stderr(Stdio::inherit());
    let status = cpio.status().context("cannot run sh")?;
    ensure!(status.success(), "cpio could not pack the guest's files");
    Ok(image)
}

struct Root<'a> {
    path: &'a Path,
}

impl Root<'_> {
    fn merged_usr(&self) -> Result<()> {
        for name in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(self.path.join("usr").join(name))?;
            symlink(format!("usr/{name}"), self.path.join(name))?;
        }
        Ok(())
    }

    fn write(&self, to: &str, text: &str) -> Result<()> {
        let to = self.path.join(to);
        fs::create_dir_all(to.parent().expect("below the root"))?;
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))
    }

    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.path.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("below the root"))?;
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    /// A program with its libraries, at their own paths.
    fn program(&self, from: &Path, to: &str) -> Result<()> {
        self.copy(from, to)?;
        // ldd fails on what needs no libraries.
        let listed = output(Command::new("ldd").arg(from)).unwrap_or_default();
        for library in listed.lines().filter_map(library) {
            if !self.path.join(library.trim_start_matches('/')).exists() {
                self.copy(Path::new(library), library)?;
            }
        }
        Ok(())
    }

    /// busybox in a folder of its own, last on the PATH.
    fn busybox(&self) -> Result<()> {
        let busybox = on_path("busybox")?;
        self.program(&busybox, "busybox/busybox")?;
        for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
            if applet != "busybox" {
                symlink("busybox", self.path.join("busybox").join(applet))?;
            }
        }
        Ok(())
    }

    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let modules = kernel.modules();
        let target = PathBuf::from("usr/lib/modules").join(&kernel.release);
        for path in with_dependencies(&modules)? {
            let plain = path.trim_end_matches(".xz").trim_end_matches(".zst");
            let to = target.join(plain);
            let to = to.to_str().expect("module paths are text");
            self.copy(
                &modules.join(&path),
                &format!("{to}{}", &path[plain.len()..]),
            )?;
            let compressed = self.path.join(target.join(&path));
            if path.ends_with(".xz") {
                output(Command::new("xz").arg("--decompress").arg(compressed))?;
            } else if path.ends_with(".zst") {
                output(
                    Command::new("zstd")
                        .args(["--decompress", "--rm", "-q"])
                        .arg(compressed),
                )?;
            }
        }
        for list in [
            "modules.builtin",
            "modules.order",
            "modules.builtin.modinfo",
        ] {
            let to = target.join(list);
            self.copy(
                &modules.join(list),
                to.to_str().expect("module paths are text"),
            )?;
        }
        let usr = self.path.join("usr");
        output(
            Command::new("depmod")
                .arg("--basedir")
                .arg(usr)
                .arg(&kernel.release),
        )?;
        Ok(())
    }
}

/// The paths of [`MODULES`] and of what they need, below the modules' folder.
fn with_dependencies(modules: &Path) -> Result<BTreeSet<String>> {
    let dependencies = fs::read_to_string(modules.join("modules.dep"))?;
    let built_in = fs::read_to_string(modules.join("modules.builtin"))?;
    let mut paths = BTreeSet::new();
    for name in MODULES {
        let named = |path: &str| module_name(path) == *name;
        let line = dependencies.lines().find_map(|line| {
            line.split_once(": ")
                .or_else(|| Some((line.strip_suffix(':')?, "")))
                .filter(|(path, _)| named(path))
        });
        match line {
            Some((path, needs)) => {
                paths.insert(path.to_owned());
                paths.extend(needs.split_whitespace().map(str::to_owned));
            }
            None => ensure!(
                built_in.lines().any(named),
                "the kernel has no module {name}"
            ),
        }
    }
    Ok(paths)
}

fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko").map_or(file, |(name, _)| name)
}

/// The path in a line that ldd prints.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

fn on_path(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is missing: run `cargo xtask setup`"))
}
