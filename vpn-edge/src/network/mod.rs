//! What an edge node knows of its own network, followed as it changes.
//!
//! One task reads the kernel's notifications and asks it again whenever one
//! may matter. It tells nobody what changed, only that something did: whoever
//! wants to know takes a snapshot.

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
    /// Index of the interface that replies from it leave by.
    pub uplink: u32,
}

/// An interface that clients' packets come in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub index: u32,
    /// In bytes.
    pub mtu: u32,
    /// Whether it is on and has a carrier.
    pub up: bool,
}

/// The node's network at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Those that are there, in the order of the settings.
    pub uplinks: Vec<Uplink>,
    /// IPv4 first, and the primary one of each family first; or as the settings
    /// order them. At most [`MAX_OWN`].
    pub own: Vec<Own>,
}

/// What of the node is the edge's.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names of interfaces. One that goes away may come back.
    pub uplinks: Vec<String>,
    /// Empty: all of the uplinks that are global and meant to last.
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

/// When neighbours that failed, or that somebody removed, are asked for again:
/// late enough for `ip neigh flush` to find that it is done.
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
    /// When something that the settings name is missing, with what to do about
    /// it, or when the kernel refuses.
    pub async fn follow(settings: Settings) -> Result<Self> {
        // Requests go another way: when notifications overrun their socket,
        // answers on it are lost too.
        let handle = netlink::connect()?;
        // First to listen and then to look misses nothing.
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

    /// The network as it is now. Uplinks and addresses that are missing are
    /// left out.
    ///
    /// # Errors
    ///
    /// When the uplinks have more addresses than an edge can have, or the
    /// kernel refuses.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        self.ask(Command::Snapshot).await
    }

    /// A counter that grows with each change that matters: of uplinks, of own
    /// addresses, and of routes and neighbours towards the nodes that are kept.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Has the kernel keep the next hops towards these nodes resolved, and no
    /// longer those towards others: XDP programs cannot resolve them. To be
    /// called again after a change; a node without a route is left out.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
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
    /// What there was to know last, or why it could not be known.
    last: Result<Snapshot, String>,
    interests: Interests,
    renewal: Option<Instant>,
}

/// What notifications call for.
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
                    // All that wait are worth one look.
                    while let Some(notification) = next {
                        let Some((message, _)) = notification else {
                            // Whoever asks next is told.
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
            // Not later with each that follows.
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

    /// Asks the kernel, and tells if it is otherwise than before.
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
