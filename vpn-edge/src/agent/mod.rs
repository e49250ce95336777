//! The daemon of an edge node: syncs the eBPF maps with the allocations.
//!
//! Watch, index, diff, apply. Changes take effect within milliseconds; a timer reads
//! the kernel's maps back and corrects changes by others.

mod diff;
mod index;
mod source;
mod status;

pub use diff::{OutOfSlots, diff};
pub use index::{Entry, Index};
pub use source::{Allocated, DesiredState, File, Local, Source, edge_address};
pub use status::{SyncCounts, SyncStatus};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use uuid::Uuid;
use vpn_edge_common::{Allocation, NODES, mode};

use crate::conntrack;
use crate::datapath::{AttachPoint, Change, Datapath, DatapathError, EdgeNode, Hook};
use crate::domain::{ActivePorts, PlanLimits, PortRange};
use crate::gateways::Location;
use crate::network::{self, Network};

/// How often the kernel's maps and hooks are compared with the desired state.
const RESYNC: Duration = Duration::from_secs(5);

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Manages one node's edge. Created by [`Agent::attach`], run by [`Agent::run`].
pub struct Agent {
    datapath: Datapath,
    network: Network,
    uplinks: Vec<String>,
    /// The first of the hop ports.
    hop_ports: u16,
    index: Index,
    /// Addresses of other edge nodes.
    edges: BTreeSet<IpAddr>,
    /// The addresses in the map; none if unknown.
    written_edges: Option<BTreeSet<IpAddr>>,
    /// Whether there were more addresses than fit into the map.
    too_many_edges: bool,
    /// The allocations as last read or written; none if unknown.
    observed: Option<BTreeMap<u16, Allocation>>,
    /// Uplinks with the ingress programs: index and hook, by name.
    attached: BTreeMap<String, (u32, Hook)>,
    /// Host-side veths with the egress program, by index.
    hooked: BTreeMap<String, u32>,
    /// Ports whose packets took another path until now.
    moved: BTreeSet<u16>,
    active_ports: watch::Sender<ActivePorts>,
    status: Arc<SyncStatus>,
}

impl Agent {
    /// Attaches the ingress programs to the uplinks, replacing those of an earlier
    /// agent. Their maps stay as they are for now. Ports outside `ports` are never
    /// steered.
    ///
    /// Programs with another schema keep running until the first complete list,
    /// because the maps of the new ones are still empty.
    ///
    /// # Errors
    ///
    /// If an uplink is not usable.
    pub async fn attach(
        datapath: Datapath,
        network: Network,
        uplinks: Vec<String>,
        hop_ports: u16,
        limits: PlanLimits,
        ports: Vec<PortRange>,
    ) -> Result<Self> {
        let snapshot = network.snapshot().await?;
        let mut agent = Self {
            datapath,
            network,
            uplinks,
            hop_ports,
            index: Index::new(limits, ports),
            edges: BTreeSet::new(),
            written_edges: None,
            too_many_edges: false,
            observed: None,
            attached: BTreeMap::new(),
            hooked: BTreeMap::new(),
            moved: BTreeSet::new(),
            active_ports: watch::Sender::default(),
            status: Arc::default(),
        };
        agent.set_edge(&snapshot)?;
        if agent.datapath.upgrading() {
            tracing::info!("replacing the eBPF programs of another version");
        } else {
            agent.attach_uplinks(&snapshot, true)?;
        }
        Ok(agent)
    }

    /// The ports that the edge steers, with changes.
    #[must_use]
    pub fn active_ports(&self) -> watch::Receiver<ActivePorts> {
        self.active_ports.subscribe()
    }

    /// The status of the sync, with changes.
    #[must_use]
    pub fn status(&self) -> Arc<SyncStatus> {
        Arc::clone(&self.status)
    }

    /// Runs forever. Without it, programs and maps in the kernel keep working.
    pub async fn run(mut self, source: Arc<dyn Source>) {
        let mut source_changed = source.changes();
        let mut network_changed = self.network.changes();
        let _listener = self.status.listen(source.changes(), self.network.changes());
        let mut resync = interval_at(Instant::now() + RESYNC, RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let attempt = self.status.attempt();
            let outcome = self.follow(source.as_ref()).await;
            self.status.ended(attempt, &outcome);
            let retry = !matches!(outcome, Ok(None));
            match outcome {
                Ok(None) => {}
                Ok(Some(error)) => tracing::error!(
                    "cannot attach to a gateway's link; its port stays closed: {error:#}"
                ),
                Err(error) => {
                    tracing::error!("cannot sync the eBPF maps; retrying: {error:#}");
                    self.observed = None;
                }
            }
            tokio::select! {
                Ok(()) = source_changed.changed() => {}
                Ok(()) = network_changed.changed() => {}
                _ = resync.tick() => self.forget(),
                () = tokio::time::sleep(RETRY), if retry => {}
            }
        }
    }

    /// Gets the desired state and applies it.
    async fn follow(&mut self, source: &dyn Source) -> Result<Option<anyhow::Error>> {
        let network = self.network.snapshot().await?;
        let desired = source.desired().await?;
        let mut neighbours = desired.nodes();
        neighbours.extend(&desired.near);
        self.index.reset_allocations(desired.allocated);
        self.index.reset_gateways(desired.gateways);
        self.report_outside();
        self.edges = desired.edges;
        let outcome = tokio::task::block_in_place(|| self.sync(&network));
        // The rest improves speed or unblocks flows; failures must not prevent
        // steering.
        if let Err(error) = self.network.keep_neighbours(&neighbours).await {
            tracing::warn!("cannot keep next hops to gateways resolved: {error:#}");
        }
        let moved = std::mem::take(&mut self.moved);
        if !moved.is_empty() {
            match conntrack::flush(&moved).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "flushed conntrack entries of moved ports"),
                Err(error) => {
                    tracing::warn!("cannot flush conntrack entries: {error:#}");
                }
            }
        }
        outcome
    }

    /// Logs tenants whose port is now outside the ranges.
    fn report_outside(&self) {
        let outside = self.index.outside();
        let before = self.status.set_outside(outside.clone());
        for (port, tenant) in outside {
            if before.get(port) != Some(tenant) {
                tracing::error!(
                    port,
                    %tenant,
                    "the tenant's port is outside --ports and not steered; if a pool was \
                     added, add its range to the agents' --ports"
                );
            }
        }
    }

    /// Makes the next [`Agent::sync`] read the kernel's state again.
    fn forget(&mut self) {
        self.observed = None;
        self.written_edges = None;
        self.hooked.clear();
    }

    /// Syncs hooks and maps with the desired state. Returns why a gateway could not
    /// be hooked, which affects only that gateway.
    fn sync(&mut self, network: &network::Snapshot) -> Result<Option<anyhow::Error>> {
        let look = self.observed.is_none();
        let maps = &self.datapath.maps;
        let observed = self.observed.get_or_insert_with(|| maps.allocations());
        let Some(mut desired) = self.index.desired(observed) else {
            return Ok(None);
        };
        self.revoke(&desired);
        self.set_edge(network)?;
        // Like the uplinks below, a failure must not prevent map updates.
        let edges = self.write_edges();
        if self.datapath.upgrading() {
            self.apply(&desired)?;
        }
        // Somebody may have detached the programs or recreated a link. An unusable
        // uplink must not prevent map updates.
        let attached = self.attach_uplinks(network, look);
        // A reply must find its hook before the first packet is let in. A gateway
        // that cannot be hooked stays closed, without affecting others.
        let hooked = self.hook(&mut desired);
        self.apply(&desired)?;
        attached?;
        edges?;
        self.unhook(&desired, network)?;
        Ok(hooked.err())
    }

    /// Writes this node's addresses for the programs.
    fn set_edge(&mut self, network: &network::Snapshot) -> Result<()> {
        let by_xdp = |uplink: &&network::Uplink| {
            self.attached.get(&uplink.name) == Some(&(uplink.index, Hook::Xdp))
        };
        let xdp_uplinks = network.uplinks.iter().filter(by_xdp);
        let node = EdgeNode {
            own: network
                .own
                .iter()
                .map(|own| (own.address, own.uplink))
                .collect(),
            // Until it is known again, nothing changes.
            xdp_uplinks: (!self.attached.is_empty())
                .then(|| xdp_uplinks.map(|uplink| uplink.index).collect()),
            hop_ports: self.hop_ports,
        };
        Ok(self.datapath.set_edge(&node)?)
    }

    /// Writes the addresses of other edge nodes for the programs.
    fn write_edges(&mut self) -> Result<()> {
        if self.written_edges.as_ref() == Some(&self.edges) {
            return Ok(());
        }
        self.written_edges = None;
        let too_many = self.edges.len() > NODES as usize;
        if too_many && !self.too_many_edges {
            tracing::warn!(
                addresses = self.edges.len(),
                limit = NODES,
                "other edge nodes have too many addresses; those beyond the limit share one \
                 handshake rate for all of their clients"
            );
        }
        self.too_many_edges = too_many;
        self.datapath.maps.set_nodes(&self.edges)?;
        self.written_edges = Some(self.edges.clone());
        Ok(())
    }

    /// Attaches the ingress programs where they are not known to be attached, or
    /// everywhere.
    fn attach_uplinks(&mut self, network: &network::Snapshot, everywhere: bool) -> Result<()> {
        let mut outcome = Ok(());
        for network::Uplink { name, index, .. } in &network.uplinks {
            let known = self.attached.get(name).copied();
            if !everywhere && known.is_some_and(|(known, _)| known == *index) {
                continue;
            }
            match self.datapath.attach_uplink(name) {
                Ok(hook) => {
                    self.attached.insert(name.clone(), (*index, hook));
                    if known == Some((*index, hook)) {
                        continue;
                    }
                    match hook {
                        Hook::Xdp => tracing::info!(uplink = name, "attached XDP and tc"),
                        Hook::Tc => tracing::warn!(
                            uplink = name,
                            "the driver has no native XDP; attached tc only, at a higher cost per packet"
                        ),
                    }
                }
                Err(error) => outcome = Err(error.into()),
            }
        }
        self.attached
            .retain(|name, _| network.uplinks.iter().any(|uplink| uplink.name == *name));
        self.set_edge(network)?;
        let missing = self
            .uplinks
            .iter()
            .find(|&name| !self.attached.contains_key(name));
        match missing {
            Some(missing) if outcome.is_ok() => {
                Err(DatapathError::NoInterface(missing.clone()).into())
            }
            _ => outcome,
        }
    }

    /// Publishes which ports are open.
    fn tell(&self, observed: &BTreeMap<u16, Allocation>) {
        let open = observed
            .iter()
            .filter(|(_, allocation)| allocation.mode > mode::CLOSED);
        let active_ports: BTreeMap<u16, (Uuid, u64)> = open
            .map(|(&port, allocation)| {
                let tenant = Uuid::from_bytes(allocation.tenant);
                (port, (tenant, allocation.generation))
            })
            .collect();
        self.active_ports.send_if_modified(|now| {
            let changed = now.as_ref() != Some(&active_ports);
            *now = Some(active_ports);
            changed
        });
    }

    /// Closes ports first: access is revoked even if the rest fails.
    fn revoke(&mut self, desired: &BTreeMap<u16, Entry>) {
        let Some(mut observed) = self.observed.take() else {
            return;
        };
        let mut revoked = false;
        for (&port, allocation) in &mut observed {
            let still = desired.get(&port).is_some_and(|entry| {
                entry.location.is_some()
                    && allocation.tenant == *entry.tenant.as_bytes()
                    && allocation.generation == entry.generation
            });
            if allocation.mode > mode::CLOSED && !still {
                self.datapath.maps.close(port);
                allocation.mode = mode::CLOSED;
                revoked = true;
            }
        }
        if revoked {
            self.tell(&observed);
        }
        self.observed = Some(observed);
    }

    /// Syncs the port map with the desired state.
    fn apply(&mut self, desired: &BTreeMap<u16, Entry>) -> Result<()> {
        let mut observed = self.observed.take().unwrap_or_default();
        let changes = diff(&observed, desired)?;
        for change in &changes {
            tracing::debug!(?change, "applying");
        }
        self.moved.extend(changes.iter().filter_map(|change| {
            let steering = |allocation: &Allocation| {
                let Allocation {
                    mode,
                    ifindex,
                    gateway,
                    gateway6,
                    ..
                } = *allocation;
                (mode, ifindex, gateway, gateway6)
            };
            let before = observed.get(&change.port).map(steering);
            (before != Some(steering(&change.allocation))).then_some(change.port)
        }));
        self.datapath.maps.publish(&changes)?;
        for Change {
            port, allocation, ..
        } in changes
        {
            if allocation.mode == mode::NONE {
                observed.remove(&port);
            } else {
                observed.insert(port, allocation);
            }
        }
        self.tell(&observed);
        self.observed = Some(observed);
        Ok(())
    }

    fn hook(&mut self, desired: &mut BTreeMap<u16, Entry>) -> Result<()> {
        let mut outcome = Ok(());
        for entry in desired.values_mut() {
            let Some(Location::Here(link)) = &entry.location else {
                continue;
            };
            if self.hooked.get(&link.interface) == Some(&link.ifindex) {
                continue;
            }
            match self.datapath.attach_gateway(&link.interface) {
                Ok(()) => {
                    self.hooked.insert(link.interface.clone(), link.ifindex);
                }
                Err(error) => {
                    entry.location = None;
                    outcome = Err(error.into());
                }
            }
        }
        outcome
    }

    fn unhook(
        &mut self,
        desired: &BTreeMap<u16, Entry>,
        network: &network::Snapshot,
    ) -> Result<()> {
        let gateways: BTreeSet<String> = desired
            .values()
            .filter_map(|entry| match &entry.location {
                Some(Location::Here(link)) => Some(link.interface.clone()),
                _ => None,
            })
            .collect();
        self.hooked
            .retain(|interface, _| gateways.contains(interface));
        let mut wanted: BTreeSet<AttachPoint> =
            gateways.into_iter().map(AttachPoint::Gateway).collect();
        for uplink in &network.uplinks {
            wanted.insert(AttachPoint::UplinkXdp(uplink.name.clone()));
            wanted.insert(AttachPoint::UplinkTc(uplink.name.clone()));
        }
        Ok(self.datapath.prune(&wanted)?)
    }
}
