//! What an edge knows of its node's network, and does to it, in network
//! namespaces.

mod addresses;
mod connections;
mod defaults;
mod neighbours;
mod pods;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::node::{Lab, Node};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use vpn_edge::network::{Network, Settings, Snapshot};

/// No change takes as long; a test that waits this long hangs.
const HANG: Duration = Duration::from_secs(20);

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    let parse = |address: &&str| address.parse().expect("the test writes addresses");
    addresses.iter().map(parse).collect()
}

fn settings(uplinks: &[&str], addresses: &[&str]) -> Settings {
    let parse = |address: &&str| address.parse().expect("the test writes addresses");
    Settings {
        uplinks: uplinks.iter().map(ToString::to_string).collect(),
        addresses: addresses.iter().map(parse).collect(),
    }
}

/// A node whose network is followed.
struct Followed {
    runtime: Runtime,
    network: Network,
    changes: watch::Receiver<u64>,
}

impl Followed {
    fn begin(node: &Node, settings: Settings) -> Result<Self> {
        let begun = node.inside(move || {
            // One thread, so that a test can hold it up.
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            let network = runtime.block_on(Network::follow(settings))?;
            Ok((runtime, network))
        });
        let (runtime, network) = begun.join().expect("the thread does not panic")?;
        let changes = network.changes();
        Ok(Self {
            runtime,
            network,
            changes,
        })
    }

    fn snapshot(&self) -> Result<Snapshot> {
        self.runtime.block_on(self.network.snapshot())
    }

    fn keep(&self, nodes: &[&str]) -> Result<()> {
        let nodes = set(nodes);
        self.runtime.block_on(self.network.keep_neighbours(&nodes))
    }

    fn count(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Waits until there has been a change since `count`, without asking for it.
    fn await_change(&self, count: u64) -> Result<()> {
        let mut changes = self.changes.clone();
        let grown = changes.wait_for(|now| *now > count);
        let grown = self
            .runtime
            .block_on(async { tokio::time::timeout(HANG, grown).await });
        grown.context("no change was told")??;
        Ok(())
    }

    /// Runs a script on the node, and waits until what is told leads to a
    /// network of which this holds.
    fn after(
        &self,
        node: &Node,
        script: &str,
        holds: impl Fn(&Snapshot) -> bool,
    ) -> Result<Snapshot> {
        ensure!(!holds(&self.snapshot()?), "already before `{script}`");
        let mut count = self.count();
        node.sh(script)?;
        loop {
            self.await_change(count)
                .with_context(|| format!("after `{script}`: {:#?}", self.snapshot()))?;
            count = self.count();
            let snapshot = self.snapshot()?;
            if holds(&snapshot) {
                return Ok(snapshot);
            }
        }
    }
}

/// Why a network cannot be followed.
fn refused(node: &Node, settings: Settings) -> Result<String> {
    match Followed::begin(node, settings) {
        Ok(_) => anyhow::bail!("it is followed"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// The index of an interface.
fn index(node: &Node, interface: &str) -> Result<u32> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    Ok(node.sh(&format!("cat {path}"))?.parse()?)
}

/// An edge with one uplink, `up0`, and what is at its other end, `far0`.
struct Pair {
    edge: Node,
    far: Node,
    _lab: Lab,
}

impl Pair {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let (edge, far) = (lab.node("edge")?, lab.node("far")?);
        edge.link("up0", &far, "far0")?;
        edge.sh("ip address add 192.0.2.1/24 dev up0
             ip address add 2001:db8::1/64 dev up0 nodad")?;
        far.sh("ip address add 192.0.2.2/24 dev far0
             ip address add 2001:db8::2/64 dev far0 nodad")?;
        // The kernel tells of a carrier a while after it is there.
        edge.await_sh("ip link show up0 | grep -q 'state UP'")?;
        far.await_sh("ip link show far0 | grep -q 'state UP'")?;
        Ok(Self {
            edge,
            far,
            _lab: lab,
        })
    }
}
