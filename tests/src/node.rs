//! Machines made of namespaces.
//!
//! All of a lab's processes share a PID namespace whose first process reads
//! from a pipe that this process holds. When the pipe closes, however this
//! process ends, the kernel ends all of them, and with the last goes every
//! network namespace, mount, pin and rule of the lab.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The lab's first process: mounts a view of the lab's processes, and takes
/// the lab down when the pipe closes. A terminal's Ctrl-C reaches it too, and
/// must not end it before that. `kill` spares only the first process: nothing
/// else may run this.
const LAB: &str = r#"
test $$ = 1
trap '' INT HUP TERM
mount --make-rprivate /
mount -t proc proc /proc
echo ready
cat
kill -s KILL -- -1 || true
rm -rf "$1"
"#;

/// Mounts of one node: runtime files, pins and names of its own.
const NODE: &str = r#"
mount -t tmpfs run /run
mkdir -p /run/netns /run/lock /run/wireguard /run/resolvconf /run/postgresql
# Where /etc/resolv.conf may point to.
mkdir -p /run/systemd/resolve /run/NetworkManager
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
touch /etc/hosts /etc/resolv.conf
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/resolv.conf" /etc/resolv.conf
ip link set lo up
echo ready
exec sleep infinity
"#;

/// A set of nodes. All of it is gone when the last handle is.
pub struct Lab {
    inner: Arc<Inner>,
}

struct Inner {
    holder: Child,
    /// A process in each node, which keeps its namespaces.
    nodes: Mutex<Vec<Child>>,
    pipe: Option<ChildStdin>,
    pid_namespace: Arc<File>,
    mounts: Arc<File>,
    folder: TempDir,
}

impl Lab {
    /// An empty lab.
    ///
    /// # Errors
    ///
    /// When this process may not make namespaces: it takes root.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vpn-edge-lab-").tempdir()?;
        let mut command = Command::new("sh");
        command
            .args(["-ec", LAB, "lab"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let fork = move || {
            unshare(CloneFlags::CLONE_NEWPID)?;
            // SAFETY: only system calls between fork and exec.
            unsafe {
                command.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWNS)?));
            }
            command.spawn()
        };
        let mut holder = on_a_thread(fork).context("cannot make namespaces: run as root")?;
        await_ready(&mut holder).context("the lab's first process")?;
        let namespace = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", holder.id()));
        let inner = Inner {
            pid_namespace: Arc::new(namespace("pid")?),
            mounts: Arc::new(namespace("mnt")?),
            pipe: holder.stdin.take(),
            holder,
            nodes: Mutex::default(),
            folder,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// A new node without interfaces but `lo`.
    ///
    /// # Errors
    ///
    /// When its namespaces or mounts cannot be made.
    pub fn node(&self, name: &str) -> Result<Node> {
        let folder = self.inner.folder.path().join(name);
        fs::create_dir(&folder)?;
        fs::write(folder.join("hosts"), "127.0.0.1 localhost\n")?;
        fs::write(folder.join("resolv.conf"), "")?;
        let mut command = Command::new("sh");
        command
            .args(["-ec", NODE, "node"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mounts = Arc::clone(&self.inner.mounts);
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                setns(&*mounts, CloneFlags::CLONE_NEWNS)?;
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        let mut holder = self.inner.spawn(command)?;
        await_ready(&mut holder).with_context(|| format!("node {name}"))?;
        let pid = holder.id();
        self.inner.nodes().push(holder);
        let namespace = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
        Ok(Node {
            name: name.into(),
            network: Arc::new(namespace("net")?),
            mounts: Arc::new(namespace("mnt")?),
            pid: inner_pid(pid)?,
            lab: Arc::clone(&self.inner),
            folder,
        })
    }
}

impl Inner {
    fn nodes(&self) -> MutexGuard<'_, Vec<Child>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the command as a process of the lab.
    fn spawn(&self, mut command: Command) -> Result<Child> {
        let namespace = Arc::clone(&self.pid_namespace);
        let program = command.get_program().to_owned();
        let fork = move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWPID)?;
            command.spawn()
        };
        on_a_thread(fork).with_context(|| format!("cannot run {}", program.display()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // The end of the first process ends the others, but is itself not over
        // before each has been reaped by its parent, which is this process.
        let _ = self.holder.kill();
        for node in self.nodes().iter_mut() {
            let _ = node.wait();
        }
        let _ = self.holder.wait();
    }
}

/// One machine: a network namespace, mounts of its own, and a folder.
#[derive(Clone)]
pub struct Node {
    pub name: String,
    /// Where the node's files go; the same path inside.
    pub folder: PathBuf,
    network: Arc<File>,
    mounts: Arc<File>,
    /// A process in the node, as the lab numbers it.
    pid: u32,
    lab: Arc<Inner>,
}

impl Node {
    /// A command that will run in the node. Start it with [`Node::start`] or
    /// [`Node::output`], which make it a process of the lab.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .current_dir("/")
            .env("LC_ALL", "C");
        let (network, mounts) = (Arc::clone(&self.network), Arc::clone(&self.mounts));
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                setns(&*network, CloneFlags::CLONE_NEWNET)?;
                setns(&*mounts, CloneFlags::CLONE_NEWNS)?;
                Ok(())
            });
        }
        command
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn output(&self, mut command: Command) -> Result<Output> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.lab.spawn(command)?.wait_with_output()?)
    }

    /// Runs a shell script, which ends at its first failing command, and gives
    /// back what it printed.
    ///
    /// # Errors
    ///
    /// When it fails; the error has all that it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        let mut command = self.command("sh");
        command.args(["-ec", script]);
        let output = self.output(command)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(
                "on {}: {}\n{}: {stdout}{}",
                self.name,
                script.trim(),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout.trim().to_owned())
    }

    /// Runs the script again and again until it succeeds.
    ///
    /// # Errors
    ///
    /// When it has not after a while, with what it said last.
    pub fn await_sh(&self, script: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.sh(script) {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > Duration::from_secs(20) => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Starts a command that goes on. Its output goes to a file that the
    /// node's folder keeps.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(&self, name: &str, mut command: Command) -> Result<Process> {
        let path = self.folder.join(format!("{name}.log"));
        let log = File::options().append(true).create(true).open(&path)?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Process {
            name: format!("{} on {}", name, self.name),
            child: self.lab.spawn(command)?,
            log: path,
            shown: usize::MAX,
            _lab: Arc::clone(&self.lab),
        })
    }

    /// Runs `work` on a thread that is in the node: its network, its mounts.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, or what `work` returns.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let (network, mounts) = (Arc::clone(&self.network), Arc::clone(&self.mounts));
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&*network, CloneFlags::CLONE_NEWNET)?;
            setns(&*mounts, CloneFlags::CLONE_NEWNS)?;
            work()
        })
    }

    /// Adds names to the node's hosts file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn host(&self, address: &str, name: &str) -> Result<()> {
        let path = self.folder.join("hosts");
        let hosts = fs::read_to_string(&path)?;
        // In place: the file is bind-mounted.
        Ok(fs::write(&path, format!("{hosts}{address} {name}\n"))?)
    }

    /// Joins two nodes by a veth pair. Frames leave with whole checksums, as
    /// from a wire.
    ///
    /// # Errors
    ///
    /// When the pair cannot be made.
    pub fn link(&self, interface: &str, other: &Node, far: &str) -> Result<()> {
        self.sh(&format!(
            "ip link add {interface} type veth peer name {far} netns {}",
            other.pid
        ))?;
        for (node, interface) in [(self, interface), (other, far)] {
            node.sh(&format!(
                "ethtool -K {interface} tx off >/dev/null; ip link set dev {interface} up"
            ))?;
        }
        Ok(())
    }
}

/// A running process of a node; ended when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// How many lines of its log a panic shows.
    shown: usize,
    /// The lab ends after its processes.
    _lab: Arc<Inner>,
}

impl Process {
    /// Its name, with that of its node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's number, as this process sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("PIDs are positive")
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Has a panic show no more than the last lines of its log.
    #[must_use]
    pub fn show_last(mut self, lines: usize) -> Self {
        self.shown = lines;
        self
    }

    /// The last lines that it printed.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// All that it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.tail(self.shown));
        }
    }
}

/// Runs `work` on a thread whose namespaces nobody else shares.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| scope.spawn(work).join().expect("the thread does not panic"))
}

fn await_ready(child: &mut Child) -> Result<()> {
    let mut line = String::new();
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut stdout = BufReader::new(stdout);
    stdout.read_line(&mut line)?;
    if line.trim() != "ready" {
        stdout.read_to_string(&mut line)?;
        bail!("did not come up: {line}");
    }
    Ok(())
}

/// The process's number in its own PID namespace.
fn inner_pid(pid: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|pids| pids.split_whitespace().last()?.parse().ok())
        .context("the kernel tells no PID of the process in its namespace")
}

/// The path of a program of this workspace, built beside the running one.
///
/// # Errors
///
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let variable = format!("{}_BIN", name.to_uppercase().replace('-', "_"));
    if let Some(path) = std::env::var_os(&variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().context("the executable has a folder")?;
    let candidates = [folder.join(name), folder.join("..").join(name)];
    let found = candidates.iter().find(|path| Path::new(path).is_file());
    found
        .map(|path| path.canonicalize().map_err(Into::into))
        .unwrap_or_else(|| {
            bail!(
                "no `{name}` beside {}: build it, or set {variable}",
                own.display()
            )
        })
}
