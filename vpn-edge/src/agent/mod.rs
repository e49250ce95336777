//! The daemon of an edge node: keeps the maps in step with the allocations.
//!
//! Watch, index, diff, apply. A change acts within milliseconds; a timer reads
//! the kernel's maps back and mends whatever someone else did to them.

mod diff;
mod index;
mod status;

pub use diff::{OutOfSlots, diff};
pub use index::{Entry, Index};
pub use status::{SyncCounts, SyncStatus};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use uuid::Uuid;
use vpn_edge_common::{Allocation, mode};

use crate::datapath::{Change, Datapath, Hook, Rung};
use crate::domain::PlanLimits;
use crate::gateways::{Gateways, Location};
use crate::registry::Registry;

/// How often the kernel's maps and hooks are compared with what they are to be.
const RESYNC: Duration = Duration::from_secs(5);

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What the edge steers by now: tenant and generation by port. Nothing before
/// the agent has looked.
pub type Steered = Option<BTreeMap<u16, (Uuid, u64)>>;

/// Keeps one node's edge. Made by [`Agent::attach`], run by [`Agent::run`].
pub struct Agent {
    datapath: Datapath,
    uplink: String,
    index: Index,
    /// The allocations as last read or written; none when that is unknown.
    observed: Option<BTreeMap<u16, Allocation>>,
    /// Host-side veths with the egress program, by index.
    hooked: BTreeMap<String, u32>,
    steered: watch::Sender<Steered>,
    status: Arc<SyncStatus>,
}

impl Agent {
    /// Attaches the ingress programs to the uplink, in place of those of an
    /// earlier agent. What they know stays as it is for now.
    ///
    /// Programs of another schema go on until the first complete list: these
    /// know nothing yet.
    ///
    /// # Errors
    ///
    /// When the uplink cannot be had.
    pub fn attach(mut datapath: Datapath, uplink: &str, limits: PlanLimits) -> Result<Self> {
        if datapath.upgrading() {
            tracing::info!(uplink, "replacing the programs of another version");
        } else {
            match datapath.attach_uplink(uplink)? {
                Rung::Xdp => tracing::info!(uplink, "attached XDP and tc"),
                Rung::Tc => tracing::warn!(
                    uplink,
                    "the driver has no native XDP: attached tc alone, which costs more a packet"
                ),
            }
        }
        Ok(Self {
            datapath,
            uplink: uplink.into(),
            index: Index::new(limits),
            observed: None,
            hooked: BTreeMap::new(),
            steered: watch::Sender::default(),
            status: Arc::default(),
        })
    }

    /// What the edge steers by, as it changes.
    #[must_use]
    pub fn steered(&self) -> watch::Receiver<Steered> {
        self.steered.subscribe()
    }

    /// How it goes, as it goes.
    #[must_use]
    pub fn status(&self) -> Arc<SyncStatus> {
        Arc::clone(&self.status)
    }

    /// Runs for good. The kernel side goes on without it.
    pub async fn run(mut self, registry: Arc<dyn Registry>, gateways: Arc<dyn Gateways>) {
        let mut tenants_changed = registry.changes();
        let mut gateways_changed = gateways.changes();
        let _listener = self.status.listen(registry.changes(), gateways.changes());
        let mut resync = interval_at(Instant::now() + RESYNC, RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let attempt = self.status.attempt();
            let outcome = match self.list(registry.as_ref(), gateways.as_ref()).await {
                Ok(()) => tokio::task::block_in_place(|| self.sync()),
                Err(error) => Err(error),
            };
            self.status.ended(attempt, &outcome);
            let retry = !matches!(outcome, Ok(None));
            match outcome {
                Ok(None) => {}
                Ok(Some(error)) => tracing::error!("a gateway is left out: {error:#}"),
                Err(error) => {
                    tracing::error!("cannot bring the edge in step: {error:#}");
                    self.observed = None;
                }
            }
            tokio::select! {
                Ok(()) = tenants_changed.changed() => {}
                Ok(()) = gateways_changed.changed() => {}
                _ = resync.tick() => self.forget(),
                () = tokio::time::sleep(RETRY), if retry => {}
            }
        }
    }

    async fn list(&mut self, registry: &dyn Registry, gateways: &dyn Gateways) -> Result<()> {
        self.index.reset_tenants(&registry.list().await?);
        self.index.reset_gateways(gateways.list().await?);
        Ok(())
    }

    /// Makes the next [`Agent::sync`] look at the kernel anew.
    fn forget(&mut self) {
        self.observed = None;
        self.hooked.clear();
    }

    /// Brings hooks and maps to what is desired. Gives back why a gateway could
    /// not be hooked, which is that gateway's matter and not the edge's.
    fn sync(&mut self) -> Result<Option<anyhow::Error>> {
        let Some(mut desired) = self.index.desired() else {
            return Ok(None);
        };
        let look = self.observed.is_none();
        if look {
            self.observed = Some(self.datapath.maps.allocations());
        }
        self.revoke(&desired);
        if self.datapath.upgrading() {
            self.apply(&desired)?;
        }
        // Someone may have taken the programs off, or made the link anew. An
        // uplink that is not to be had keeps no map from following.
        let attached = match look {
            true => self.datapath.attach_uplink(&self.uplink).map(drop),
            false => Ok(()),
        };
        // A reply must find its hook before the first packet is let in. What
        // cannot be hooked stays closed, and keeps nothing else from closing.
        let hooked = self.hook(&mut desired);
        self.apply(&desired)?;
        attached?;
        self.unhook(&desired)?;
        Ok(hooked.err())
    }

    /// Says what is open.
    fn tell(&self, observed: &BTreeMap<u16, Allocation>) {
        let open = observed
            .iter()
            .filter(|(_, allocation)| allocation.mode > mode::CLOSED);
        let steered: BTreeMap<u16, (Uuid, u64)> = open
            .map(|(&port, allocation)| {
                let tenant = Uuid::from_bytes(allocation.tenant);
                (port, (tenant, allocation.generation))
            })
            .collect();
        self.steered.send_if_modified(|now| {
            let changed = now.as_ref() != Some(&steered);
            *now = Some(steered);
            changed
        });
    }

    /// Closes what is no longer to be open before anything else is done: whom
    /// it was open to is cut off whatever happens to the rest.
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

    /// Brings the port map to what is desired.
    fn apply(&mut self, desired: &BTreeMap<u16, Entry>) -> Result<()> {
        let mut observed = self.observed.take().unwrap_or_default();
        let changes = diff(&observed, desired)?;
        for change in &changes {
            tracing::debug!(?change);
        }
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

    fn unhook(&mut self, desired: &BTreeMap<u16, Entry>) -> Result<()> {
        let gateways: BTreeSet<String> = desired
            .values()
            .filter_map(|entry| match &entry.location {
                Some(Location::Here(link)) => Some(link.interface.clone()),
                _ => None,
            })
            .collect();
        self.hooked
            .retain(|interface, _| gateways.contains(interface));
        let mut wanted: BTreeSet<Hook> = gateways.into_iter().map(Hook::Gateway).collect();
        wanted.insert(Hook::UplinkXdp(self.uplink.clone()));
        wanted.insert(Hook::UplinkTc(self.uplink.clone()));
        Ok(self.datapath.prune(&wanted)?)
    }
}
