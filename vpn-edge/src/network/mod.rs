//! The node's network, followed as it changes.
//!
//! One task reads the kernel's notifications and queries the kernel when one may be
//! relevant. Followers are notified that something changed, and take a snapshot to
//! find out what.

mod defaults;
mod neighbours;
mod table;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{FutureExt, Stream, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::netlink;
use neighbours::{Neighbours, Verdict};
use table::{Interests, Table};

pub use defaults::default_uplinks;
pub use table::MAX_OWN;

/// An address of this node that clients, or other edge nodes, send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    pub address: IpAddr,
    /// Index of the interface by which replies from this address leave.
    pub uplink: u32,
}

/// An interface that receives clients' packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub index: u32,
    /// In bytes.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
}

/// The node's network at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The existing uplinks, in the order of the settings.
    pub uplinks: Vec<Uplink>,
    /// IPv4 first, and the primary one of each family first; or as the settings
    /// order them. At most [`MAX_OWN`].
    pub own: Vec<Own>,
}

/// Which parts of the node's network the edge uses.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names of interfaces. A removed one may come back.
    pub uplinks: Vec<String>,
    /// If empty, all global and permanent addresses of the uplinks.
    pub addresses: Vec<IpAddr>,
}

/// The node's network, followed until this is dropped.
#[derive(Debug)]
pub struct Network {
    commands: mpsc::Sender<Command>,
    changes: watch::Receiver<u64>,
}

#[derive(Debug)]
enum Command {
    Snapshot(oneshot::Sender<Result<Snapshot>>),
    Keep(BTreeSet<IpAddr>, oneshot::Sender<Result<()>>),
}

/// Delay before failed or removed neighbours are requested again: long enough for `ip
/// neigh flush` to find nothing left.
const RENEWAL: Duration = Duration::from_millis(200);

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Neigh,
];

impl Network {
    /// Begins to follow the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// If something in the settings does not exist, with what to do about it, or if
    /// the kernel refuses.
    pub async fn follow(settings: Settings) -> Result<Self> {
        // A separate socket for requests: when notifications overrun their socket,
        // answers on it are lost as well.
        let handle = netlink::connect()?;
        // Listening before the first query misses nothing.
        let (connection, _, notifications) =
            new_multicast_connection(&GROUPS).context("cannot follow the node's network")?;
        let table = Table::read(&handle).await?;
        table.complete(&settings)?;

        let (commands, inbox) = mpsc::channel(16);
        let (counter, changes) = watch::channel(0);
        let mut follower = Follower {
            settings,
            neighbours: Neighbours::new(handle.clone()),
            handle,
            counter,
            last: Err(String::new()),
            interests: Interests::default(),
            renewal: None,
        };
        follower.last = follower.judge(&table).map_err(|error| error.to_string());
        let listening = tokio::spawn(connection).abort_handle();
        tokio::spawn(async move {
            follower.run(notifications, inbox).await;
            listening.abort();
        });
        Ok(Self { commands, changes })
    }

    /// The current network. Missing uplinks and addresses are left out.
    ///
    /// # Errors
    ///
    /// If the uplinks have more addresses than an edge supports, or the kernel
    /// refuses.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        self.ask(Command::Snapshot).await
    }

    /// A counter that grows with each relevant change: of uplinks, of own addresses,
    /// and of routes and neighbours to the nodes that are kept resolved.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Has the kernel keep the next hops to these nodes resolved, and no others,
    /// because XDP programs cannot resolve them. To be called again after a change; a
    /// node without a route is left out.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be queried.
    pub async fn keep_neighbours(&self, nodes: &BTreeSet<IpAddr>) -> Result<()> {
        self.ask(|reply| Command::Keep(nodes.clone(), reply)).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let ended = "the node's network is no longer followed";
        self.commands.send(command(reply)).await.context(ended)?;
        answer.await.context(ended)?
    }
}

struct Follower {
    settings: Settings,
    handle: Handle,
    neighbours: Neighbours,
    counter: watch::Sender<u64>,
    /// The last snapshot, or why there is none.
    last: Result<Snapshot, String>,
    interests: Interests,
    renewal: Option<Instant>,
}

/// What to do after notifications.
#[derive(Debug, Default)]
struct Due {
    look: bool,
    keep: bool,
    tell: bool,
}

impl Due {
    fn heed(&mut self, verdict: Verdict) {
        self.tell |= verdict.changed;
        self.keep |= verdict.renew;
    }
}

impl Follower {
    async fn run(
        &mut self,
        mut notifications: impl Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Unpin,
        mut inbox: mpsc::Receiver<Command>,
    ) {
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Snapshot(reply)) => drop(reply.send(self.look().await)),
                    Some(Command::Keep(nodes, reply)) => {
                        drop(reply.send(self.neighbours.keep(nodes).await));
                    }
                    None => return,
                },
                () = at(self.renewal) => {
                    self.renewal = None;
                    if let Err(error) = self.neighbours.renew().await {
                        tracing::warn!(%error, "cannot keep neighbours resolved; retrying");
                    }
                }
                next = notifications.next() => {
                    let mut due = Due::default();
                    let mut next = Some(next);
                    // All pending notifications are handled together.
                    while let Some(notification) = next {
                        let Some((message, _)) = notification else {
                            // The next query reports the error.
                            tracing::error!("netlink notifications ended; network changes are no longer followed");
                            return;
                        };
                        self.judge_one(message.payload, &mut due);
                        next = notifications.next().now_or_never();
                    }
                    self.do_what_is(due).await;
                }
            }
        }
    }

    fn judge_one(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>, due: &mut Due) {
        use RouteNetlinkMessage as Message;
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => {
                tracing::info!("netlink notifications were lost; reading the network again");
                *due = Due {
                    look: true,
                    keep: true,
                    tell: true,
                };
                return;
            }
            _ => return,
        };
        match &message {
            Message::NewLink(link) | Message::DelLink(link) => {
                due.look |= self.interests.link(&self.settings, link);
                let gone = matches!(message, Message::DelLink(_));
                due.tell |= self.neighbours.saw_link(link, gone);
            }
            Message::NewAddress(address) | Message::DelAddress(address) => {
                due.look |= self.interests.address(&self.settings, address);
            }
            Message::NewRoute(route) | Message::DelRoute(route) => {
                due.tell |= self.neighbours.routed_by(route);
            }
            Message::NewRule(_) | Message::DelRule(_) => due.tell |= self.neighbours.any(),
            Message::NewNeighbour(entry) => due.heed(self.neighbours.saw(entry)),
            Message::DelNeighbour(entry) => due.heed(self.neighbours.lost(entry)),
            _ => {}
        }
    }

    async fn do_what_is(&mut self, due: Due) {
        if due.keep {
            // Not postponed by further notifications.
            self.renewal.get_or_insert_with(|| Instant::now() + RENEWAL);
        }
        if due.look
            && let Err(error) = self.look().await
        {
            tracing::warn!(%error, "cannot read the node's network");
        }
        if due.tell {
            self.counter.send_modify(|count| *count += 1);
        }
    }

    /// Queries the kernel, and notifies followers of a difference.
    async fn look(&mut self) -> Result<Snapshot> {
        let now = match Table::read(&self.handle).await {
            Ok(table) => self.judge(&table),
            Err(error) => Err(error),
        };
        let seen = match &now {
            Ok(snapshot) => Ok(snapshot.clone()),
            Err(error) => Err(error.to_string()),
        };
        if seen != self.last {
            self.last = seen;
            self.counter.send_modify(|count| *count += 1);
        }
        now
    }

    fn judge(&mut self, table: &Table) -> Result<Snapshot> {
        let snapshot = table.snapshot(&self.settings);
        self.interests = table.interests(&self.settings);
        snapshot
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
