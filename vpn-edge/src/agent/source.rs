//! The agent's source of allocations and locations of gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use async_trait::async_trait;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::domain::{GatewayState, Plan, Tenant, TunnelDigest};
use crate::gateways::{Addresses, Gateway, Gateways, Location};
use crate::registry::Registry;
use crate::wireguard::PublicKey;

/// A port that a tenant holds, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Allocated {
    pub port: u16,
    pub tenant: Uuid,
    /// Generation of the tenant's keys.
    pub generation: u64,
    /// The gateway's public key.
    pub public_key: PublicKey,
    pub plan: Plan,
}

/// Both lists, complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    pub allocated: Vec<Allocated>,
    pub gateways: Vec<Gateway>,
    /// Addresses on this node that gateways have, or will have, whose neighbour
    /// entries must be kept resolved.
    pub near: BTreeSet<IpAddr>,
    /// Addresses of other edge nodes, which forward clients' packets to this one.
    pub edges: BTreeSet<IpAddr>,
}

impl DesiredState {
    /// The nodes where gateways are, other than this one.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<IpAddr> {
        let away = self
            .gateways
            .iter()
            .filter_map(|gateway| match gateway.location {
                Some(Location::There(node)) => Some(node),
                _ => None,
            });
        away.flat_map(|node| [node.v4.map(IpAddr::V4), node.v6.map(IpAddr::V6)])
            .flatten()
            .collect()
    }
}

/// Provides the desired state, and notifies of changes.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The current state.
    ///
    /// # Errors
    ///
    /// If it is not completely known.
    async fn desired(&self) -> Result<DesiredState>;

    /// A counter that grows with every change.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Why changes may be missed, if they may. The last known state stays valid until
    /// then.
    fn outage(&self) -> Option<String> {
        None
    }
}

/// The registry and the gateways of this machine.
pub struct Local {
    registry: Arc<dyn Registry>,
    gateways: Arc<dyn Gateways>,
    edges: BTreeSet<IpAddr>,
    changes: watch::Sender<u64>,
    _followers: JoinSet<()>,
    /// By tenant, with the generation. Cached, because deriving a public key takes
    /// some 50 µs.
    keys: Mutex<BTreeMap<Uuid, (u64, PublicKey)>>,
}

impl Local {
    /// `edges` are the addresses of other edge nodes. Must be called within a
    /// runtime.
    pub fn new(
        registry: Arc<dyn Registry>,
        gateways: Arc<dyn Gateways>,
        edges: BTreeSet<IpAddr>,
    ) -> Self {
        let changes = watch::Sender::new(0);
        let mut followers = JoinSet::new();
        for mut part in [registry.changes(), gateways.changes()] {
            let changes = changes.clone();
            followers.spawn(async move {
                while part.changed().await.is_ok() {
                    changes.send_modify(|count| *count += 1);
                }
            });
        }
        Self {
            registry,
            gateways,
            edges,
            changes,
            _followers: followers,
            keys: Mutex::default(),
        }
    }

    fn allocated(&self, tenants: &[Arc<Tenant>]) -> Vec<Allocated> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *keys);
        let allocated = tenants.iter().filter_map(|tenant| {
            let allocation = tenant.vpn.allocation.as_ref()?;
            let generation = tenant.vpn.generation;
            let public_key = match before.get(&tenant.id) {
                Some((known, key)) if *known == generation => *key,
                _ => allocation.keys.server.public(),
            };
            keys.insert(tenant.id, (generation, public_key));
            Some(Allocated {
                port: allocation.port,
                tenant: tenant.id,
                generation,
                public_key,
                plan: tenant.plan,
            })
        });
        allocated.collect()
    }
}

#[async_trait]
impl Source for Local {
    async fn desired(&self) -> Result<DesiredState> {
        let tenants = self.registry.list().await?;
        Ok(DesiredState {
            allocated: self.allocated(&tenants),
            gateways: self.gateways.list().await?,
            near: BTreeSet::new(),
            edges: self.edges.clone(),
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A JSON file with the allocations, for nodes that only forward packets. It is read
/// again whenever it is replaced or written.
pub struct File {
    path: PathBuf,
    changes: watch::Sender<u64>,
    _follower: JoinSet<()>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    allocations: Vec<Row>,
    /// Addresses of other edge nodes.
    #[serde(default)]
    edges: Vec<String>,
}

/// `deny_unknown_fields` and `flatten` do not go together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    port: u16,
    tenant: Uuid,
    generation: u64,
    public_key: PublicKey,
    plan: Plan,
    /// Addresses of the gateway's node, at most one of each IP version; empty without
    /// a gateway.
    #[serde(default)]
    node: Vec<IpAddr>,
}

impl File {
    /// Begins to follow the file at `path`. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// If it is missing or not valid.
    pub fn follow(path: &Path) -> Result<Self> {
        read(path)?;
        let changes = watch::Sender::new(0);
        let mut follower = JoinSet::new();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // Watches the folder, because replacing a file creates a new inode. A mounted
        // ConfigMap changes by a symbolic link beside the file.
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        inotify
            .add_watch(
                folder,
                AddWatchFlags::IN_CLOSE_WRITE
                    | AddWatchFlags::IN_MOVED_TO
                    | AddWatchFlags::IN_CREATE,
            )
            .with_context(|| format!("cannot follow {}", folder.display()))?;
        let notified = changes.clone();
        // SAFETY: the descriptor is open as long as its owner.
        let events =
            unsafe { AsyncFd::register_with_interest(Events(inotify), Interest::READABLE) }
                .map_err(|error| error.into_parts().1)?;
        follower.spawn(async move {
            while let Ok(mut ready) = events.readable().await {
                let read = ready.try_io(|events| Ok(events.get_ref().0.read_events()?));
                if matches!(read, Ok(Ok(_))) {
                    notified.send_modify(|count| *count += 1);
                }
            }
        });
        Ok(Self {
            path: path.into(),
            changes,
            _follower: follower,
        })
    }
}

struct Events(Inotify);

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[async_trait]
impl Source for File {
    async fn desired(&self) -> Result<DesiredState> {
        read(&self.path)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn read(path: &Path) -> Result<DesiredState> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the allocations in {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is not a list of allocations", path.display()))
}

fn parse(text: &str) -> Result<DesiredState> {
    let contents: Contents = serde_json::from_str(text)?;
    let mut desired = DesiredState::default();
    for (at, edge) in contents.edges.iter().enumerate() {
        let edge = edge_address(edge).map_err(|error| anyhow!("edges[{at}]: {error}"))?;
        desired.edges.insert(edge);
    }
    let mut ports = BTreeSet::new();
    for row in contents.allocations {
        let port = row.port;
        ensure!(ports.insert(port), "port {port} is allocated twice");
        let node = addresses(&row.node).with_context(|| format!("port {port}"))?;
        if let Some(node) = node {
            desired.gateways.push(Gateway {
                tenant: row.tenant,
                generation: row.generation,
                port,
                digest: TunnelDigest::default(),
                state: GatewayState::Ready,
                location: Some(Location::There(node)),
            });
        }
        desired.allocated.push(Allocated {
            port,
            tenant: row.tenant,
            generation: row.generation,
            public_key: row.public_key,
            plan: row.plan,
        });
    }
    Ok(desired)
}

/// Why a text is not the address of another edge node.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an IP address of one node, such as 198.51.100.11 or 2001:db8::11")]
pub struct NoEdgeAddress(String);

/// The address of another edge node.
///
/// # Errors
///
/// If packets cannot come from it.
pub fn edge_address(text: &str) -> Result<IpAddr, NoEdgeAddress> {
    let address = text.parse().map(|address: IpAddr| address.to_canonical());
    let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
    match address {
        Ok(address)
            if !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && address != broadcast =>
        {
            Ok(address)
        }
        _ => Err(NoEdgeAddress(text.to_owned())),
    }
}

fn addresses(node: &[IpAddr]) -> Result<Option<Addresses>> {
    let mut addresses = Addresses::default();
    for address in node {
        let twice = match address {
            IpAddr::V4(v4) => addresses.v4.replace(*v4).is_some(),
            IpAddr::V6(v6) => addresses.v6.replace(*v6).is_some(),
        };
        ensure!(
            !twice,
            "the node has two addresses of one IP version: keep the one that it is reached by"
        );
    }
    Ok((!node.is_empty()).then_some(addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44";
    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn row(port: u16, node: &str) -> String {
        format!(
            r#"{{"port":{port},"tenant":"{TENANT}","generation":3,"public_key":"{KEY}","plan":"business"{node}}}"#
        )
    }

    fn file(rows: &[String]) -> String {
        format!(r#"{{"allocations":[{}]}}"#, rows.join(","))
    }

    #[test]
    fn a_file_tells_allocations_and_where_their_gateways_are() {
        let node = r#","node":["198.51.100.21","2001:db8::21"]"#;
        let desired = parse(&file(&[row(31_000, node), row(31_001, "")])).unwrap();
        let ports: Vec<u16> = desired.allocated.iter().map(|one| one.port).collect();
        assert_eq!(ports, [31_000, 31_001]);
        assert_eq!(desired.allocated[0].public_key.to_string(), KEY);
        let [gateway] = desired.gateways.as_slice() else {
            panic!("{desired:?}");
        };
        let node = Addresses {
            v4: Some([198, 51, 100, 21].into()),
            v6: Some("2001:db8::21".parse().unwrap()),
        };
        assert_eq!(gateway.location, Some(Location::There(node)));
        assert_eq!((gateway.port, gateway.generation), (31_000, 3));
    }

    #[test]
    fn what_a_file_cannot_mean_is_refused_by_name() {
        let said = |text: &str| format!("{:#}", parse(text).unwrap_err());
        let twice = file(&[row(31_000, ""), row(31_000, "")]);
        assert!(said(&twice).contains("31000 is allocated twice"));
        let two = file(&[row(31_000, r#","node":["192.0.2.1","192.0.2.2"]"#)]);
        assert!(said(&two).contains("port 31000: the node has two addresses"));
        let unknown = file(&[row(31_000, r#","nodes":[]"#)]);
        assert!(said(&unknown).contains("nodes"));
        assert!(said("").contains("EOF"));
    }

    #[test]
    fn a_file_may_name_the_addresses_of_other_edges() {
        let edges = |edges: &str| {
            let file = format!(r#"{{"allocations":[],"edges":[{edges}]}}"#);
            parse(&file).map(|desired| desired.edges.into_iter().collect::<Vec<_>>())
        };
        let named = r#""2001:db8::11","198.51.100.11","::ffff:198.51.100.12""#;
        let expected = ["198.51.100.11", "198.51.100.12", "2001:db8::11"];
        assert_eq!(
            edges(named).unwrap(),
            expected.map(|one| one.parse::<IpAddr>().unwrap())
        );
        assert_eq!(parse(&file(&[])).unwrap().edges, BTreeSet::new());
        for bad in [
            "edge-1",
            "198.51.100.0/24",
            "198.51.100.11:61000",
            "",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            let error = edges(&format!(r#""198.51.100.11","{bad}""#)).unwrap_err();
            let said = format!("{error:#}");
            let expected = format!("edges[1]: `{bad}` is not an IP address of one node");
            assert!(said.starts_with(&expected), "{said}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_or_written_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("allocations.json");
        fs::write(&path, file(&[])).unwrap();
        let source = File::follow(&path).unwrap();
        let mut changes = source.changes();
        assert_eq!(source.desired().await.unwrap(), DesiredState::default());

        let new = folder.path().join("new");
        fs::write(&new, file(&[row(31_000, "")])).unwrap();
        fs::rename(&new, &path).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(source.desired().await.unwrap().allocated.len(), 1);

        changes.mark_unchanged();
        fs::write(&path, file(&[row(31_000, ""), row(31_001, "")])).unwrap();
        while source.desired().await.unwrap().allocated.len() != 2 {
            changes.changed().await.unwrap();
        }
        fs::write(&path, "{").unwrap();
        assert!(source.desired().await.is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = File::follow(Path::new("/nowhere/allocations.json"))
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains("/nowhere/allocations.json"));
    }
}
