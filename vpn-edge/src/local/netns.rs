//! Gateways as processes in network namespaces of this machine.
//!
//! A gateway outlives the daemon that started it: its process has its own session,
//! its namespace is mounted where `ip netns` looks, and its folder under the runtime
//! directory has its configuration. A new daemon finds all of them. Names and
//! addresses are derived from the port, which only one gateway has at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use ipnet::{Ipv4Net, Ipv6Net};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::sqlite::KEY_VARIABLE;
use super::veth;
use crate::domain::{GatewayState, TunnelDigest};
use crate::gateway::{GATEWAY_END, GatewayConfig, Phase, nat, subscribe};
use crate::gateways::{Gateway, GatewaySpec, Gateways, Location};
use crate::netlink;

/// How long a gateway may take to listen after its start, and to exit after SIGTERM.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a listening gateway may take to become ready.
const STARTING: Duration = Duration::from_secs(15);

/// How often a gateway's link is checked: somebody may have detached the program at
/// its end, or set the link down.
const RELOCATE: Duration = Duration::from_secs(5);

/// Settings of gateways.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Has one folder per gateway, with its key: usually on a tmpfs.
    pub runtime: PathBuf,
    /// Addresses for the gateways' links; the port is the offset.
    pub range: Ipv4Net,
    /// IPv6 addresses for the same, if the node has IPv6.
    pub range6: Ipv6Net,
    /// MTU of the links: the uplink's.
    pub mtu: u32,
}

impl Settings {
    /// Sufficient to find and remove gateways, but not to create them.
    #[must_use]
    pub fn for_removal(runtime: PathBuf) -> Self {
        Self {
            runtime,
            range: Ipv4Net::default(),
            range6: Ipv6Net::default(),
            mtu: 0,
        }
    }
}

/// See [`Gateways`].
pub struct NetnsGateways {
    settings: Settings,
    known: Arc<Mutex<BTreeMap<u16, Known>>>,
    changes: watch::Sender<u64>,
    /// Held for life: two daemons would treat each other's gateways as orphans.
    _lock: File,
}

struct Known {
    gateway: Gateway,
    watcher: JoinHandle<()>,
}

/// Names and paths of the gateway of one port.
struct GatewayPaths {
    port: u16,
    folder: PathBuf,
    namespace: PathBuf,
    /// Host-side end of the veth.
    link: String,
    address: Ipv4Addr,
    address6: Ipv6Addr,
}

impl GatewayPaths {
    fn config(&self) -> PathBuf {
        self.folder.join("config.json")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("status.sock")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Unique on the machine, because userspace WireGuard's sockets share a folder.
    fn wireguard(&self) -> String {
        format!("wg{}", self.port)
    }
}

impl NetnsGateways {
    /// Finds the gateways of an earlier daemon, and waits until each has reported its
    /// status.
    ///
    /// # Errors
    ///
    /// If the runtime folder cannot be used or another daemon uses it, or the range
    /// is too small.
    pub async fn adopt(settings: Settings) -> Result<Self> {
        ensure!(
            settings.range.prefix_len() <= 16,
            "the gateway range {} is too small: it must be a /16 or larger",
            settings.range
        );
        ensure!(
            settings.range6.prefix_len() <= 112,
            "the gateway range {} is too small: it must be a /112 or larger",
            settings.range6
        );
        let folder = settings.runtime.join("gateways");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(settings.runtime.join("lock"))?;
        lock.try_lock().with_context(|| {
            let folder = settings.runtime.display();
            format!("another vpn-edge runs gateways in {folder}: stop it first")
        })?;
        let gateways = Self {
            settings,
            _lock: lock,
            known: Arc::default(),
            changes: watch::Sender::new(0),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if let Some(port) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                found.push(gateways.paths(port));
            }
        }
        let mut states = tokio::task::JoinSet::new();
        for paths in found {
            let port = paths.port;
            match GatewayConfig::read(&paths.config()) {
                Ok(config) => {
                    let gateway = Gateway {
                        tenant: config.tenant,
                        generation: config.tunnel.fixed.generation,
                        port,
                        digest: config.tunnel.digest(),
                        state: GatewayState::Starting,
                        location: None,
                    };
                    let first = gateways.watch(paths, gateway, None);
                    states.spawn(async move { timeout(TIMEOUT, first).await });
                }
                Err(error) => {
                    tracing::warn!(port, "removing the remains of a gateway: {error:#}");
                    // It belongs to no tenant, so the controller removes it if this
                    // fails.
                    gateways.know(
                        Gateway {
                            tenant: Uuid::nil(),
                            generation: 0,
                            port,
                            digest: TunnelDigest::default(),
                            state: GatewayState::Starting,
                            location: None,
                        },
                        || tokio::spawn(async {}),
                    );
                    if let Err(error) = gateways.remove(port).await {
                        tracing::error!(port, "cannot remove the remains of a gateway: {error:#}");
                    }
                }
            }
        }
        while states.join_next().await.is_some() {}
        Ok(gateways)
    }

    fn paths(&self, port: u16) -> GatewayPaths {
        let base = u32::from(self.settings.range.network());
        let base6 = u128::from(self.settings.range6.network());
        let name = format!("vpn-edge-{port}");
        GatewayPaths {
            port,
            folder: self
                .settings
                .runtime
                .join("gateways")
                .join(port.to_string()),
            namespace: Path::new("/run/netns").join(&name),
            link: name,
            address: Ipv4Addr::from(base.wrapping_add(u32::from(port))),
            address6: Ipv6Addr::from(base6.wrapping_add(u128::from(port))),
        }
    }

    /// Follows a gateway's status. The returned future resolves with the first final
    /// status, or when the gateway is gone.
    fn watch(
        &self,
        paths: GatewayPaths,
        gateway: Gateway,
        child: Option<Child>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (settled, first) = tokio::sync::oneshot::channel();
        let port = paths.port;
        let known = Arc::clone(&self.known);
        let changes = self.changes.clone();
        let record = move |state: GatewayState, location: Option<Location>| {
            let mut known = known.lock().expect("no panic under this lock");
            let Some(entry) = known.get_mut(&port) else {
                return;
            };
            if entry.gateway.state != state || entry.gateway.location != location {
                entry.gateway.state = state;
                entry.gateway.location = location;
                changes.send_modify(|count| *count += 1);
            }
        };
        let identity = (gateway.tenant, gateway.generation, port);
        self.know(gateway, || {
            tokio::spawn(follow(paths, identity, child, record, settled))
        });
        async move {
            let _ = first.await;
        }
    }

    /// Adds `gateway` to the list. Its watcher is started under the lock, so that it
    /// finds the gateway listed.
    fn know(&self, gateway: Gateway, watcher: impl FnOnce() -> JoinHandle<()>) {
        let mut entries = self.known.lock().expect("no panic under this lock");
        let watcher = watcher();
        if let Some(old) = entries.insert(gateway.port, Known { gateway, watcher }) {
            old.watcher.abort();
        }
        drop(entries);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether this gateway exists and is ready, ignoring settings that can be
    /// changed in place.
    fn serves(&self, spec: &GatewaySpec, digest: &TunnelDigest) -> bool {
        let known = self.known.lock().expect("no panic under this lock");
        known.get(&spec.tunnel.fixed.port).is_some_and(|known| {
            known.gateway.is_fixed_as(spec, digest) && known.gateway.state == GatewayState::Ready
        })
    }

    async fn update(
        &self,
        spec: &GatewaySpec,
        digest: TunnelDigest,
        paths: &GatewayPaths,
    ) -> Result<()> {
        let mut config = GatewayConfig::read(&paths.config())?;
        config.tunnel.live.clone_from(&spec.tunnel.live);
        // The file is written after the rules are applied: a daemon that starts in
        // between must not assume that they are.
        let file = paths.config();
        netlink::inside(&paths.namespace, move || async move {
            nat::apply(&config).await.map_err(io::Error::other)?;
            config.write(&file)
        })
        .await?;
        let mut known = self.known.lock().expect("no panic under this lock");
        if let Some(known) = known.get_mut(&paths.port) {
            known.gateway.digest = digest;
        }
        drop(known);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn create(&self, spec: &GatewaySpec, paths: &GatewayPaths) -> Result<Child> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&paths.folder)?;
        let config = GatewayConfig {
            tenant: spec.tenant,
            tunnel: spec.tunnel.clone(),
            interface: paths.wireguard(),
            link: GATEWAY_END.into(),
            status: paths.socket(),
            only_edge: true,
        };
        config.write(&paths.config())?;
        make_namespace(&paths.namespace)
            .with_context(|| format!("cannot make namespace {}", paths.namespace.display()))?;
        veth::create(
            &paths.link,
            &paths.namespace,
            paths.address,
            paths.address6,
            self.settings.mtu,
        )
        .await
        .with_context(|| format!("cannot make link {}", paths.link))?;
        spawn(paths)
    }
}

#[async_trait]
impl Gateways for NetnsGateways {
    async fn ensure(&self, spec: &GatewaySpec) -> Result<()> {
        let (port, digest) = (spec.tunnel.fixed.port, spec.tunnel.digest());
        let paths = self.paths(port);
        if self.serves(spec, &digest) {
            return self.update(spec, digest, &paths).await;
        }
        self.remove(port).await?;
        let gateway = Gateway {
            tenant: spec.tenant,
            generation: spec.tunnel.fixed.generation,
            port,
            digest,
            state: GatewayState::Starting,
            location: None,
        };
        // Listed before anything is created, so that no remains are forgotten.
        self.know(gateway.clone(), || tokio::spawn(async {}));
        match self.create(spec, &paths).await {
            Ok(child) => {
                drop(self.watch(paths, gateway, Some(child)));
                Ok(())
            }
            Err(error) => {
                if let Err(left) = self.remove(port).await {
                    tracing::error!(port, "cannot remove the remains of a gateway: {left:#}");
                }
                Err(error)
            }
        }
    }

    async fn remove(&self, port: u16) -> Result<()> {
        let paths = self.paths(port);
        {
            let mut entries = self.known.lock().expect("no panic under this lock");
            if let Some(known) = entries.get_mut(&port) {
                known.watcher.abort();
                // Listed until all of it is removed, so that failures are visible.
                known.gateway.state = GatewayState::Failed("it is being removed".into());
                known.gateway.location = None;
                self.changes.send_modify(|count| *count += 1);
            }
        }
        for pid in processes(&paths.config())? {
            end(pid).await?;
        }
        veth::remove(&paths.link)
            .await
            .with_context(|| format!("cannot remove link {}", paths.link))?;
        remove_namespace(&paths.namespace)
            .with_context(|| format!("cannot remove namespace {}", paths.namespace.display()))?;
        let _ = fs::remove_file(crate::gateway::device::socket(&paths.wireguard()));
        match fs::remove_dir_all(&paths.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("cannot remove {}", paths.folder.display()));
            }
            _ => {}
        }
        let mut entries = self.known.lock().expect("no panic under this lock");
        if entries.remove(&port).is_some() {
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Gateway>> {
        let known = self.known.lock().expect("no panic under this lock");
        Ok(known.values().map(|known| known.gateway.clone()).collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Follows a gateway's status until it is gone.
async fn follow(
    paths: GatewayPaths,
    identity: (Uuid, u64, u16),
    mut child: Option<Child>,
    record: impl Fn(GatewayState, Option<Location>) + Send,
    settled: tokio::sync::oneshot::Sender<()>,
) {
    let mut settled = Some(settled);
    let started = std::time::Instant::now();
    let mut failure = None;
    let mut subscription = loop {
        if let Ok(subscription) = subscribe(&paths.socket()).await {
            break Some(subscription);
        }
        let ended = match &mut child {
            Some(child) => matches!(child.try_wait(), Ok(Some(_))),
            None => true,
        };
        if ended || started.elapsed() > TIMEOUT {
            break None;
        }
        sleep(Duration::from_millis(5)).await;
    };
    if let Some(subscription) = &mut subscription {
        let mut ready = false;
        loop {
            match timeout(RELOCATE, subscription.next()).await {
                Ok(None) => break,
                Ok(Some(status)) if (status.tenant, status.generation, status.port) != identity => {
                    failure = Some("another gateway answers in its place".into());
                    break;
                }
                Ok(Some(status)) => match status.phase {
                    Phase::Starting => continue,
                    Phase::Ready { .. } => ready = true,
                    Phase::Failed { reason } => {
                        ready = false;
                        failure = Some(reason.clone());
                        record(GatewayState::Failed(reason), None);
                    }
                },
                Err(_) if !ready && failure.is_none() && started.elapsed() > STARTING => {
                    failure = Some("it did not become ready".into());
                    break;
                }
                Err(_) => {}
            }
            if ready {
                match veth::locate(&paths.link, &paths.namespace).await {
                    Ok(link) => record(GatewayState::Ready, Some(Location::Here(link))),
                    Err(error) => {
                        record(
                            GatewayState::Failed(format!("its link is gone: {error}")),
                            None,
                        );
                    }
                }
            }
            if let Some(settled) = settled.take() {
                let _ = settled.send(());
            }
        }
    }
    let reason = failure.unwrap_or_else(|| {
        let log = fs::read_to_string(paths.log()).unwrap_or_default();
        match log.lines().last() {
            Some(line) => format!("the gateway ended: {line}"),
            None => "the gateway ended".into(),
        }
    });
    record(GatewayState::Failed(reason), None);
    drop(settled);
    if let Some(mut child) = child {
        // The child is reaped here; an adopted gateway is not a child.
        let _ = child.wait().await;
    }
}

/// Starts the gateway's process in its namespace; it outlives this process.
fn spawn(paths: &GatewayPaths) -> Result<Child> {
    let namespace = File::open(&paths.namespace)?;
    let log = File::create(paths.log())?;
    // Not current_exe(): the file may have been replaced or removed.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("vpn-edge")
        .arg("gateway")
        .arg("--config")
        .arg(paths.config())
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(false)
        // The gateway must not get the key that encrypts all tenants' private keys.
        .env_remove(KEY_VARIABLE);
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        });
    }
    command
        .spawn()
        .context("cannot start the gateway's process")
}

/// The gateway processes with the configuration at `config`. Read from /proc, because
/// a process may exist before it listens, or afterwards.
fn processes(config: &Path) -> io::Result<Vec<i32>> {
    let arguments = format!("\0gateway\0--config\0{}\0", config.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process that has exited meanwhile has no command line.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.ends_with(arguments.as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Terminates the process: SIGTERM, then SIGKILL.
async fn end(pid: i32) -> Result<()> {
    let pid = Pid::from_raw(pid);
    for (signal, limit) in [(Signal::SIGTERM, TIMEOUT / 2), (Signal::SIGKILL, TIMEOUT)] {
        if kill(pid, signal).is_err() {
            return Ok(());
        }
        let started = std::time::Instant::now();
        while started.elapsed() < limit {
            if gone(pid) {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
    bail!("the gateway's process {pid} does not exit")
}

/// Whether the process has exited, reaped or not.
fn gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the command, which is in parentheses.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// Creates a namespace mounted at `path`, like `ip netns`.
fn make_namespace(path: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    let folder = path.parent().expect("the path has a folder");
    if !folder.exists() {
        fs::create_dir_all(folder)?;
        // A shared mount of its own, so that mounts and unmounts in it propagate to
        // other mount namespaces.
        mount(Some(folder), folder, none, MsFlags::MS_BIND, none)?;
        mount(
            none,
            folder,
            none,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            none,
        )?;
    }
    File::create(path)?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    path,
                    none,
                    MsFlags::MS_BIND,
                    none,
                )?;
                Ok(())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the namespace's thread panicked")))
    })
}

fn remove_namespace(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
