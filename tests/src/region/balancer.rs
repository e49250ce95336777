//! The region's load balancer, which works as the clouds' network load
//! balancers do.
//!
//! nftables gives every new flow to a target, by a hash of its addresses and
//! ports; the kernel remembers the flow. The client's address is kept. Targets
//! are asked for their health over HTTP. Flows of a target that is found
//! unhealthy go to another one with their next packet. When no target is
//! healthy, all of them are used.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::health::{self, HEALTH_PORT};
use super::rules::{self, Flow};
use super::{EDGES, Host, VIP, VIP6, WORKERS};
use crate::node::Node;

const INTERVAL: Duration = Duration::from_millis(200);
/// Failed checks in a row that make a target unhealthy. One good one makes it
/// healthy again.
const FAILURES: u32 = 2;

/// The balancer's rules and health checks; they end when it is dropped.
pub struct Balancer {
    pub node: Node,
    shared: Arc<Shared>,
    checks: Vec<JoinHandle<Result<()>>>,
}

struct Shared {
    state: Mutex<State>,
    stop: AtomicBool,
}

/// What decides which targets there are.
#[derive(Clone)]
struct State {
    /// Those registered, and whether they are healthy.
    targets: Vec<(Host, bool)>,
    /// Instead of the healthy ones.
    pinned: Option<Vec<Host>>,
    /// How many times flows were shifted to the next target.
    shift: usize,
}

impl Balancer {
    /// Makes `node`, which routes between clients and targets by `eth0`, a
    /// balancer.
    pub(super) fn start(node: &Node, targets: &[Host]) -> Result<Self> {
        ensure!(!targets.is_empty(), "a balancer needs targets");
        node.sh(&format!(
            "ip addr add {VIP}/32 dev lo; ip addr add {VIP6}/128 dev lo nodad
             sysctl -qw net.netfilter.nf_conntrack_udp_timeout=120 \
                        net.netfilter.nf_conntrack_udp_timeout_stream=120"
        ))?;
        let state = State {
            targets: targets.iter().map(|host| (*host, false)).collect(),
            pinned: None,
            shift: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            stop: AtomicBool::default(),
        });
        let mut balancer = Self {
            node: node.clone(),
            shared,
            checks: Vec::new(),
        };
        balancer.change(|_| false)?;
        balancer.checks = (0..targets.len())
            .map(|target| {
                let shared = Arc::clone(&balancer.shared);
                node.inside(move || shared.check(target))
            })
            .collect();
        Ok(balancer)
    }

    /// Names of the nodes that new flows are given to now.
    #[must_use]
    pub fn targets(&self) -> Vec<String> {
        names(self.shared.lock().current())
    }

    /// Names of the registered targets that are found healthy. All of
    /// [`Balancer::targets`] when there is none.
    #[must_use]
    pub fn healthy(&self) -> Vec<String> {
        names(self.shared.lock().healthy())
    }

    /// Waits until the registered targets that are found healthy are these.
    ///
    /// # Errors
    ///
    /// When they are not after a while.
    pub fn await_healthy(&self, wanted: &[&str]) -> Result<()> {
        let start = Instant::now();
        while self.healthy() != wanted {
            // A check that has ended tells why when the balancer is dropped.
            ensure!(
                self.checks.iter().all(|check| !check.is_finished()),
                "the balancer's health checks ended"
            );
            if start.elapsed() > Duration::from_secs(20) {
                bail!("healthy are {:?} instead of {wanted:?}", self.healthy());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Gives all flows to these nodes, the existing ones too, whatever their
    /// health. They need not be registered.
    ///
    /// # Errors
    ///
    /// When there is no such node, or the rules are refused.
    pub fn pin(&self, names: &[&str]) -> Result<()> {
        let find = |name: &&str| {
            let mut all = EDGES.into_iter().chain(WORKERS);
            all.find(|host| host.name == *name)
                .with_context(|| format!("no node {name} on the front network"))
        };
        let pinned: Vec<Host> = names.iter().map(find).collect::<Result<_>>()?;
        ensure!(!pinned.is_empty(), "pinned to nothing");
        self.change(|state| {
            state.pinned = Some(pinned);
            true
        })
    }

    /// Gives new flows to healthy targets again. Existing ones stay.
    ///
    /// # Errors
    ///
    /// When the rules are refused.
    pub fn unpin(&self) -> Result<()> {
        self.change(|state| {
            state.pinned = None;
            false
        })
    }

    /// Moves every flow to another target in mid-session, if there is more than
    /// one: to the next in [`Balancer::targets`].
    ///
    /// # Errors
    ///
    /// When the rules are refused.
    pub fn rehash(&self) -> Result<()> {
        self.change(|state| {
            state.shift += 1;
            true
        })
    }

    /// Flows to a port, in no order.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn flows(&self, port: u16) -> Result<Vec<Flow>> {
        let list = |family, vip: &str| {
            self.node.sh(&format!(
                "conntrack -L -f {family} -p udp -d {vip} --orig-port-dst {port} 2>/dev/null"
            ))
        };
        let listed = list("ipv4", VIP)? + "\n" + &list("ipv6", VIP6)?;
        let lines = listed.lines().filter(|line| !line.is_empty());
        lines.map(Flow::read).collect()
    }

    /// Names of the nodes that the port's flows go to.
    ///
    /// # Errors
    ///
    /// When the flows cannot be read.
    pub fn targets_of(&self, port: u16) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .flows(port)?
            .into_iter()
            .map(|flow| flow.target)
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Changes the state, and the rules with it. Flows are all forgotten if
    /// `change` says so.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) -> Result<()> {
        let mut state = self.shared.lock();
        let forget = change(&mut state);
        let state = state.clone();
        // Under the lock, so that a check does not put older rules in place.
        let done = self.node.inside(move || {
            rules::apply(&state.current(), state.shift)?;
            match forget {
                true => rules::forget(None),
                false => Ok(()),
            }
        });
        done.join().expect("the thread does not panic")
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for check in self.checks.drain(..) {
            if let Ok(Err(error)) = check.join() {
                eprintln!("a health check of the balancer ended: {error:#}");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under it")
    }

    /// Asks a target for its health again and again. On a thread in the
    /// balancer.
    fn check(&self, target: usize) -> Result<()> {
        let host = self.lock().targets[target].0;
        let address = SocketAddr::new(host.v4.parse()?, HEALTH_PORT);
        let mut failures = 0;
        while !self.stop.load(Relaxed) {
            let answer = health::ask(address);
            failures = if answer.is_ok_and(|status| (200..400).contains(&status)) {
                0
            } else {
                failures + 1
            };
            let mut state = self.lock();
            let before = state.targets[target].1;
            let healthy = failures == 0 || (before && failures < FAILURES);
            if healthy != before {
                state.targets[target].1 = healthy;
                rules::apply(&state.current(), state.shift)?;
                let current = state.current();
                let hosts = state.targets.iter().map(|(host, _)| host);
                for left in hosts.filter(|host| !current.contains(host)) {
                    rules::forget(Some(left))?;
                }
            }
            drop(state);
            thread::sleep(INTERVAL);
        }
        Ok(())
    }
}

impl State {
    fn healthy(&self) -> Vec<Host> {
        let healthy = self.targets.iter().filter(|(_, healthy)| *healthy);
        healthy.map(|(host, _)| *host).collect()
    }

    fn current(&self) -> Vec<Host> {
        if let Some(pinned) = &self.pinned {
            return pinned.clone();
        }
        match self.healthy() {
            none if none.is_empty() => self.targets.iter().map(|(host, _)| *host).collect(),
            healthy => healthy,
        }
    }
}

fn names(hosts: Vec<Host>) -> Vec<String> {
    hosts.into_iter().map(|host| host.name.to_owned()).collect()
}
