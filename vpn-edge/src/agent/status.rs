//! The status of the agent's sync, for its observers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::RESYNC;

/// How long the maps count as synced after the last sync.
const STALE: Duration = RESYNC.saturating_mul(3);

/// In seconds; from the duration of a map update to what an operator should be
/// alerted of.
const BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0,
];

/// Shared by the agent, which writes it, and its observers.
#[derive(Debug)]
pub struct SyncStatus {
    state: Mutex<State>,
    /// Duration of each attempt, in seconds.
    pub durations: Histogram,
    /// Time from a change until the maps reflect it, in seconds.
    pub lags: Histogram,
}

#[derive(Debug, Default)]
struct State {
    counts: SyncCounts,
    /// The last success, by the monotonic clock.
    last: Option<Instant>,
    /// Why the last attempt failed, if it did.
    failure: Option<String>,
    /// The first change that the maps do not reflect yet.
    changed: Option<Instant>,
    /// Tenants whose port is outside the ranges that may be steered.
    outside: BTreeMap<u16, Uuid>,
}

/// Outcomes of the agent's attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncCounts {
    pub ok: u64,
    pub failed: u64,
    /// The last success.
    pub last: Option<SystemTime>,
}

/// An attempt in progress.
pub(super) struct Attempt {
    started: Instant,
    changed: Option<Instant>,
}

impl Default for SyncStatus {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            durations: Histogram::new(BUCKETS),
            lags: Histogram::new(BUCKETS),
        }
    }
}

impl SyncStatus {
    #[must_use]
    pub fn counts(&self) -> SyncCounts {
        self.state().counts
    }

    /// How many tenants have a port outside the ranges that may be steered.
    #[must_use]
    pub fn outside(&self) -> usize {
        self.state().outside.len()
    }

    /// Replaces them, and returns the previous ones.
    pub(super) fn set_outside(&self, outside: BTreeMap<u16, Uuid>) -> BTreeMap<u16, Uuid> {
        std::mem::replace(&mut self.state().outside, outside)
    }

    /// Whether the maps are synced.
    ///
    /// # Errors
    ///
    /// The reason, if they are not or may not be.
    pub fn health(&self) -> Result<(), String> {
        let state = self.state();
        if let Some(failure) = &state.failure {
            return Err(format!("cannot sync the eBPF maps: {failure}"));
        }
        match state.last.map(|last| last.elapsed()) {
            None => Err("the eBPF maps have not been synced yet".into()),
            Some(age) if age > STALE => Err(format!(
                "the eBPF maps were last synced {} s ago",
                age.as_secs()
            )),
            Some(_) => Ok(()),
        }
    }

    /// Records the time of changes, including those during an attempt, as long as the
    /// returned value lives.
    pub(super) fn listen(
        self: &Arc<Self>,
        mut tenants: watch::Receiver<u64>,
        mut gateways: watch::Receiver<u64>,
    ) -> JoinSet<()> {
        let status = Arc::clone(self);
        let mut listener = JoinSet::new();
        listener.spawn(async move {
            loop {
                tokio::select! {
                    Ok(()) = tenants.changed() => {}
                    Ok(()) = gateways.changed() => {}
                    else => return,
                }
                status.state().changed.get_or_insert_with(Instant::now);
            }
        });
        listener
    }

    /// Begins an attempt, which covers all changes until now.
    pub(super) fn attempt(&self) -> Attempt {
        Attempt {
            started: Instant::now(),
            changed: self.state().changed.take(),
        }
    }

    /// Ends an attempt. Returns how long the first change waited for it.
    pub(super) fn ended<T>(&self, attempt: Attempt, outcome: &Result<T>) -> Option<Duration> {
        self.durations
            .observe(attempt.started.elapsed().as_secs_f64());
        let mut state = self.state();
        match outcome {
            Ok(_) => {
                state.counts.ok += 1;
                state.counts.last = Some(SystemTime::now());
                state.last = Some(Instant::now());
                state.failure = None;
                let lag = attempt.changed?.elapsed();
                self.lags.observe(lag.as_secs_f64());
                Some(lag)
            }
            Err(error) => {
                state.counts.failed += 1;
                state.failure = Some(format!("{error:#}"));
                // The next attempt covers what this one did not do.
                state.changed = attempt.changed.or(state.changed);
                None
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_edge_is_healthy_only_while_the_last_attempt_succeeded() {
        let status = SyncStatus::default();
        assert!(status.health().unwrap_err().contains("not been"));
        status.ended(status.attempt(), &Ok(()));
        status.health().unwrap();
        status.ended(status.attempt(), &Err::<(), _>(anyhow!("no uplink")));
        assert!(status.health().unwrap_err().ends_with(": no uplink"));
        status.ended(status.attempt(), &Ok(()));
        status.health().unwrap();
        let counts = status.counts();
        assert_eq!((counts.ok, counts.failed), (2, 1));
    }

    #[test]
    fn a_success_long_ago_is_none() {
        let status = SyncStatus::default();
        status.ended(status.attempt(), &Ok(()));
        let long_ago = Instant::now().checked_sub(STALE + Duration::from_secs(1));
        status.state().last = Some(long_ago.expect("the machine runs for longer"));
        assert!(status.health().unwrap_err().contains("last synced"));
    }

    #[tokio::test]
    async fn lag_is_counted_from_the_first_change_that_was_not_followed() {
        let status = Arc::new(SyncStatus::default());
        let (tenants, gateways) = (watch::Sender::new(0), watch::Sender::new(0));
        let _listener = status.listen(tenants.subscribe(), gateways.subscribe());
        assert_eq!(status.ended(status.attempt(), &Ok(())), None);

        tenants.send_modify(|count| *count += 1);
        while status.state().changed.is_none() {
            tokio::task::yield_now().await;
        }
        std::thread::sleep(Duration::from_millis(20));
        let failed = Err::<(), _>(anyhow!("no uplink"));
        assert_eq!(status.ended(status.attempt(), &failed), None);
        let lag = status.ended(status.attempt(), &Ok(())).unwrap();
        assert!(lag >= Duration::from_millis(20), "{lag:?}");
        // Answered for once.
        assert_eq!(status.ended(status.attempt(), &Ok(())), None);
    }
}
