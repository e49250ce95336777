//! A tenant's laptop: stock tools on a node.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::node::{Node, Process};

/// The tunnel's interface on every client.
pub const INTERFACE: &str = "wg0";

/// A client with a configuration, brought up step by step as `wg-quick` would,
/// but without its needs: the guests of the kernel suite have no resolvconf.
pub struct Client {
    node: Node,
    file: PathBuf,
}

impl Client {
    /// Brings the tunnel of `configuration` up on `node`, in place of any
    /// other.
    ///
    /// # Errors
    ///
    /// When a tool refuses it.
    pub fn up(node: &Node, configuration: &str) -> Result<Self> {
        let client = Self {
            node: node.clone(),
            file: node.folder.join("wg0.conf"),
        };
        fs::write(&client.file, configuration)?;
        client.down()?;
        // The kernel's, or a stock userspace implementation.
        node.sh(&format!(
            "ip link add {INTERFACE} type wireguard 2>/dev/null || wireguard-go {INTERFACE} 2>/dev/null"
        ))?;
        let (interface, peer) = configuration
            .split_once("[Peer]")
            .context("the configuration has no peer")?;
        let value = |section: &str, key: &str| {
            section
                .lines()
                .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='))
                .map(|value| value.trim().to_owned())
                .with_context(|| format!("the configuration has no {key}"))
        };
        // What `wg-quick strip` leaves.
        let kept: String = configuration
            .lines()
            .filter(|line| !line.starts_with("Address") && !line.starts_with("DNS"))
            .map(|line| format!("{line}\n"))
            .collect();
        let stripped = node.folder.join("wg0.stripped");
        fs::write(&stripped, kept)?;
        let addresses = value(interface, "Address")?;
        let routes = value(peer, "AllowedIPs")?;
        node.sh(&format!(
            "wg setconf {INTERFACE} {}
             for address in {}; do ip address add $address dev {INTERFACE}; done
             ip link set {INTERFACE} mtu 1420 up
             for route in {}; do ip route add $route dev {INTERFACE}; done",
            stripped.display(),
            addresses.replace(',', " "),
            routes.replace(',', " ")
        ))?;
        Ok(client)
    }

    /// Takes the tunnel down, if it is up.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn down(&self) -> Result<()> {
        self.node
            .sh(&format!(
                "ip link show {INTERFACE} >/dev/null 2>&1 || exit 0
                 ip link del {INTERFACE}
                 rm -f /run/wireguard/{INTERFACE}.sock"
            ))
            .map(drop)
    }

    /// Whether `address` answers a ping within a second.
    #[must_use]
    pub fn reaches(&self, address: &str) -> bool {
        self.node
            .sh(&format!("ping -n -c 1 -W 1 {address}"))
            .is_ok()
    }

    /// Waits until `address` answers.
    ///
    /// # Errors
    ///
    /// When it has not after a while.
    pub fn await_reach(&self, address: &str) -> Result<()> {
        let start = Instant::now();
        while !self.reaches(address) {
            // A client takes 15 s to see that its gateway lost the session.
            if start.elapsed() > Duration::from_secs(45) {
                bail!(
                    "{} does not reach {address}\n{}",
                    self.node.name,
                    self.node
                        .sh(&format!("wg show {INTERFACE}; ip route; ip neigh"))?
                );
            }
        }
        Ok(())
    }

    /// Pings `address` 1,000 times a second while `work` is done, and `count`
    /// times at least.
    ///
    /// # Errors
    ///
    /// When an answer is missing, or `work` fails.
    pub fn lose_nothing(
        &self,
        address: &str,
        count: u32,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let done = AtomicBool::new(false);
        let first = self.ping(address, count)?;
        thread::scope(|scope| {
            let pings = scope.spawn(|| {
                let mut batch = first;
                loop {
                    answered(batch, count)?;
                    if done.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    batch = self.ping(address, count)?;
                }
            });
            let outcome = work();
            done.store(true, Ordering::Relaxed);
            let pinged: Result<()> = pings.join().expect("pings do not panic");
            outcome.and(pinged)
        })
    }

    /// Starts `count` pings, 1,000 a second.
    fn ping(&self, address: &str, count: u32) -> Result<Process> {
        let count = count.to_string();
        let mut command = self.node.command("ping");
        command.args(["-n", "-q", "-i", "0.001", "-W", "2", "-c", &count, address]);
        self.node.start("ping", command)
    }

    /// Pings `address` for long enough to see that it is cut off: three
    /// attempts without an answer, after at most a few that were under way.
    ///
    /// # Errors
    ///
    /// When it still answers.
    pub fn await_cut(&self, address: &str) -> Result<()> {
        let start = Instant::now();
        let mut silent = 0;
        while silent < 3 {
            silent = if self.reaches(address) { 0 } else { silent + 1 };
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "{} still reaches {address}",
                self.node.name
            );
        }
        Ok(())
    }
}

/// Waits for the end of `count` pings.
fn answered(mut pings: Process, count: u32) -> Result<()> {
    let status = pings.wait()?;
    // The log has those before, too.
    let log = pings.log();
    let last = log.lines().rfind(|line| line.contains("transmitted"));
    let all = format!("{count} packets transmitted, {count} received");
    ensure!(
        status.success() && last.is_some_and(|last| last.contains(&all)),
        "packets were lost: {log}"
    );
    Ok(())
}
