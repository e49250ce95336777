//! Runs the tenants' lifecycle: creates and removes gateways until they match the
//! registry, and writes the observed state back.

pub(crate) mod active_ports;
pub mod plan;
mod problems;

pub use plan::{Action, Wanted, plan};

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::domain::tenant::check_versions;
use crate::domain::{ActivePorts, GatewayState, Observed, State, Tenant, TunnelSettings};
use crate::gateways::{Gateway, GatewaySpec, Gateways};
use crate::registry::{Change, Registry, UpdateError};

/// How often deadlines are checked.
const TICK: Duration = Duration::from_secs(1);

/// Backoff between attempts at a gateway.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Maximum number of concurrent creations, removals, and writes of tenants.
const MAX_CONCURRENT: usize = 32;

/// After a pass the controller sleeps for this many times the pass's duration: with
/// thousands of tenants, changes are then handled in batches.
const DEBOUNCE: u32 = 4;
const MAX_DEBOUNCE: Duration = Duration::from_millis(250);

/// See the module documentation.
pub struct Controller {
    settings: TunnelSettings,
    registry: Arc<dyn Registry>,
    gateways: Arc<dyn Gateways>,
    active_ports: watch::Receiver<ActivePorts>,
    /// The desired gateways of the last pass. Cached, because keys and digests take
    /// time to compute.
    wanted: HashMap<Uuid, Wanted>,
    /// Running operations, and the ports they are for.
    under_way: JoinSet<anyhow::Result<()>>,
    busy: BTreeMap<task::Id, (u16, Option<Uuid>)>,
    attempts: BTreeMap<Uuid, Attempts>,
    /// Attempts to remove gateways that still exist, by port.
    removals: BTreeMap<u16, Removal>,
}

/// Attempts at a removal.
struct Removal {
    backoff: Backoff,
    next: Instant,
    failure: Option<String>,
}

/// Attempts at one generation of a tenant's gateway.
struct Attempts {
    generation: u64,
    backoff: Backoff,
    next: Instant,
    failure: Option<String>,
}

impl Controller {
    /// `steered` has the ports that the edge steers.
    pub fn new(
        settings: TunnelSettings,
        registry: Arc<dyn Registry>,
        gateways: Arc<dyn Gateways>,
        active_ports: watch::Receiver<ActivePorts>,
    ) -> Self {
        Self {
            settings,
            registry,
            gateways,
            active_ports,
            wanted: HashMap::new(),
            busy: BTreeMap::new(),
            under_way: JoinSet::new(),
            attempts: BTreeMap::new(),
            removals: BTreeMap::new(),
        }
    }

    /// Runs forever.
    pub async fn run(mut self) {
        let mut tenants_changed = self.registry.changes();
        let mut gateways_changed = self.gateways.changes();
        let mut steered_changed = self.active_ports.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let start = Instant::now();
            let reconciled = self.reconcile_once().await;
            let took = start.elapsed();
            match reconciled {
                Ok(updates) => self.write_all(updates).await,
                Err(error) => tracing::error!("cannot reconcile; retrying: {error:#}"),
            }
            rest(took).await;
            tokio::select! {
                Ok(()) = tenants_changed.changed() => {}
                Ok(()) = gateways_changed.changed() => {}
                Ok(()) = steered_changed.changed() => {}
                Some(ended) = self.under_way.join_next_with_id() => self.ended(ended),
                _ = tick.tick() => {}
            }
        }
    }

    /// Starts the operations that are due, and returns the states to write back.
    async fn reconcile_once(&mut self) -> anyhow::Result<Vec<StatusUpdate>> {
        let tenants = self.registry.list().await?;
        let gateways = self.gateways.list().await?;
        let tenants = tenants.iter().map(Arc::as_ref);
        let wanted = self.wanted(tenants.clone());
        let by_keys: Served = gateways
            .iter()
            .map(|gateway| ((gateway.tenant, gateway.generation), gateway))
            .collect();
        // Attempts count until the gateway matches its spec.
        let mut before = std::mem::take(&mut self.attempts);
        for tenant in tenants.clone() {
            let (id, generation) = (tenant.id, tenant.vpn.generation);
            let gateway = by_keys.get(&(id, generation));
            let wanted = wanted.get(&id);
            let is_there = gateway.zip(wanted).is_some_and(|(gateway, wanted)| {
                wanted.is(gateway) && gateway.state == GatewayState::Ready
            });
            if let Some(attempts) = before.remove(&id)
                && attempts.generation == generation
                && !is_there
            {
                self.attempts.insert(id, attempts);
            }
        }
        let mut removed = Vec::new();
        for action in plan(wanted.values(), &gateways) {
            match action {
                Action::Remove(port) => removed.push(port),
                Action::Ensure(spec) => self.ensure(spec),
            }
        }
        self.wanted = wanted;
        self.removals.retain(|port, _| removed.contains(port));
        // Ports that were not tried yet come first, so that hanging removals do not
        // use up all slots.
        removed.sort_by_key(|port| self.removals.get(port).map(|removal| removal.next));
        for port in removed {
            self.remove(port);
        }
        self.report(tenants.clone(), &gateways);
        let updates = tenants.filter_map(|tenant| self.observe(tenant, &by_keys));
        Ok(updates.collect())
    }

    /// Reports to the registry why gateways do not match what tenants ask for.
    fn report<'a>(&self, tenants: impl IntoIterator<Item = &'a Tenant>, gateways: &[Gateway]) {
        let attempted = |id| {
            let attempts = self.attempts.get(&id)?;
            Some((attempts.generation, attempts.failure.clone()?))
        };
        let late = self.gateways.apply_errors();
        let mut problems = problems::problems(tenants, gateways, attempted, late);
        for gateway in gateways {
            let removal = self.removals.get(&gateway.port);
            if let Some(failure) = removal.and_then(|removal| removal.failure.as_ref()) {
                let words = || format!("cannot remove the gateway: {failure}");
                problems.entry(gateway.tenant).or_insert_with(words);
            }
        }
        self.registry.report(problems);
    }

    fn remove(&mut self, port: u16) {
        let removal = self.removals.get(&port);
        let waits = removal.is_some_and(|removal| removal.next > Instant::now());
        let removals = self.busy.values().filter(|(_, tenant)| tenant.is_none());
        if waits || self.is_busy(port) || removals.count() == MAX_CONCURRENT {
            return;
        }
        tracing::info!(port, "removing gateway");
        let gateways = Arc::clone(&self.gateways);
        let task = self
            .under_way
            .spawn(async move { gateways.remove(port).await });
        self.busy.insert(task.id(), (port, None));
    }

    /// The desired gateways of these tenants. Computed only for tenants that changed.
    fn wanted<'a>(
        &mut self,
        tenants: impl IntoIterator<Item = &'a Tenant>,
    ) -> HashMap<Uuid, Wanted> {
        let mut before = std::mem::take(&mut self.wanted);
        let mut wanted = HashMap::with_capacity(before.len());
        for tenant in tenants {
            let known = before.remove(&tenant.id);
            let known = known.filter(|known| known.is_of(tenant));
            if let Some(found) = known.or_else(|| Wanted::of(tenant, &self.settings)) {
                wanted.insert(tenant.id, found);
            }
        }
        wanted
    }

    fn ensure(&mut self, spec: &GatewaySpec) {
        let (id, fixed) = (spec.tenant, &spec.tunnel.fixed);
        let (port, generation) = (fixed.port, fixed.generation);
        let others = self.busy.values().filter(|(_, tenant)| tenant.is_some());
        let busy = self.is_busy(port) || others.count() == MAX_CONCURRENT;
        let now = Instant::now();
        let attempts = self.attempts.entry(id).or_insert(Attempts {
            generation,
            backoff: BACKOFF,
            next: now,
            failure: None,
        });
        if busy || now < attempts.next {
            return;
        }
        attempts.next = now + attempts.backoff.pause();
        if let Err(error) = check_versions(&spec.tunnel.live.networks, self.settings.ipv6) {
            // An existing gateway keeps running.
            tracing::error!(tenant = %id, "cannot apply the tenant's networks; the gateway keeps the previous ones: {error}");
            attempts.failure = Some(error.to_string());
            return;
        }
        tracing::info!(tenant = %id, port, generation, "creating gateway");
        let gateways = Arc::clone(&self.gateways);
        let spec = spec.clone();
        let task = self
            .under_way
            .spawn(async move { gateways.ensure(&spec).await });
        self.busy.insert(task.id(), (port, Some(id)));
    }

    fn is_busy(&self, port: u16) -> bool {
        self.busy.values().any(|&(busy, _)| busy == port)
    }

    fn ended(&mut self, ended: Result<(task::Id, anyhow::Result<()>), task::JoinError>) {
        let (id, outcome) = match ended {
            Ok(ended) => ended,
            Err(panic) => (panic.id(), Err(anyhow::anyhow!("{panic}"))),
        };
        let Some((port, tenant)) = self.busy.remove(&id) else {
            return;
        };
        let failure = outcome.err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            tracing::error!(port, "gateway operation failed; retrying: {failure}");
        }
        match tenant {
            Some(id) => {
                if let Some(attempts) = self.attempts.get_mut(&id) {
                    attempts.failure = failure;
                }
            }
            None if failure.is_none() => drop(self.removals.remove(&port)),
            None => {
                let before = self.removals.get(&port).map(|before| before.backoff);
                let mut backoff = before.unwrap_or(BACKOFF);
                let removal = Removal {
                    next: Instant::now() + backoff.pause(),
                    backoff,
                    failure,
                };
                self.removals.insert(port, removal);
            }
        }
    }

    /// The update of the tenant's state, if there is one.
    fn observe(&self, tenant: &Tenant, gateways: &Served) -> Option<StatusUpdate> {
        let allocation = tenant.vpn.allocation.as_ref()?;
        let generation = tenant.vpn.generation;
        let attempts = self.attempts.get(&tenant.id);
        let failure = attempts.and_then(|attempts| attempts.failure.clone());
        let gateway = match (gateways.get(&(tenant.id, generation)), failure) {
            // Parts of the gateway may exist.
            (None, Some(failure)) => GatewayState::Failed(failure),
            (None, None) => GatewayState::Absent,
            (Some(gateway), Some(failure)) if gateway.state == GatewayState::Absent => {
                GatewayState::Failed(failure)
            }
            (Some(gateway), _) => gateway.state.clone(),
        };
        // Until the agent has reported, the state that an earlier agent led to stays.
        let steerable = self.active_ports.borrow().as_ref().map(|active_ports| {
            active_ports.get(&allocation.port) == Some(&(tenant.id, generation))
        })?;
        let observed = Observed { gateway, steerable };
        let mut seen = tenant.clone();
        let now = Timestamp::now();
        seen.observe(&observed, now);
        (seen.vpn != tenant.vpn).then_some(StatusUpdate {
            id: tenant.id,
            from: tenant.vpn.state,
            generation,
            observed,
            now,
        })
    }

    async fn write_all(&self, updates: Vec<StatusUpdate>) {
        let written = stream::iter(updates).for_each_concurrent(MAX_CONCURRENT, async |updates| {
            let id = updates.id;
            if let Err(error) = self.write(updates).await {
                tracing::error!(tenant = %id, "cannot write tenant state; retrying: {error:#}");
            }
        });
        written.await;
    }

    async fn write(&self, updates: StatusUpdate) -> anyhow::Result<()> {
        let StatusUpdate {
            id,
            from,
            generation,
            observed,
            now,
        } = updates;
        let change: Change = Box::new(move |stored, _| {
            if stored.vpn.generation == generation {
                stored.observe(&observed, now);
            }
            Ok(())
        });
        match self.registry.update(id, change).await {
            Ok(after) => {
                tracing::info!(tenant = %id, ?from, to = ?after.vpn.state, "tenant state changed");
                Ok(())
            }
            // Deleted since it was listed.
            Err(UpdateError::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn rest(took: Duration) {
    sleep((took * DEBOUNCE).min(MAX_DEBOUNCE)).await;
}

/// Gateways by tenant and generation.
type Served<'a> = HashMap<(Uuid, u64), &'a Gateway>;

/// An observation to write back to a tenant.
struct StatusUpdate {
    id: Uuid,
    from: State,
    generation: u64,
    observed: Observed,
    now: Timestamp,
}
