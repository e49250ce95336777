//! The cluster as the agent's source: tenants, their gateways' pods, and nodes.
//!
//! A watcher a kind feeds the index. While the API server cannot be reached,
//! the last known world stays.

mod index;
mod link;
mod parts;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use futures_util::StreamExt;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::agent::{Source, World};
use crate::cluster::{GATEWAY, WATCH, label};
use index::{Index, Row, Table};
pub use link::PodLinks;

/// The cluster, watched until this is dropped.
pub struct Kube {
    node: String,
    shared: Arc<Shared>,
    links: PodLinks,
    /// Whether this node has been one of the cluster's.
    member: AtomicBool,
    _watchers: JoinSet<()>,
}

/// What the watchers write.
struct Shared {
    index: Mutex<Index>,
    changes: watch::Sender<u64>,
    troubles: Mutex<[Option<Trouble>; KINDS.len()]>,
}

/// What is watched, as the API calls it.
const KINDS: [&str; 3] = ["vpntenants", "endpointslices", "nodes"];
const TENANTS: usize = 0;
const SLICES: usize = 1;
const NODES: usize = 2;

/// Why a kind is not watched.
struct Trouble {
    since: Instant,
    reason: String,
}

impl Kube {
    /// Begins to watch, as the node of this name. An API server that does not
    /// answer is asked again and again. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell of this node's links.
    pub fn start(client: Client, node: &str) -> Result<Arc<dyn Source>> {
        let changes = watch::Sender::new(0);
        let links = PodLinks::follow(changes.clone())
            .context("cannot follow the links of this node's pods")?;
        let shared = Arc::new(Shared {
            index: Mutex::new(Index::new(node)),
            changes,
            troubles: Mutex::default(),
        });
        let mut watchers = JoinSet::new();
        let client = shared.observe(client);
        let all = watcher::Config::default().timeout(WATCH);
        let gateways = all.clone().labels(&format!("{}={GATEWAY}", label::NAME));
        let api = Api::all(client.clone());
        watchers.spawn(
            shared
                .clone()
                .keep(TENANTS, api, all.clone(), |index| &mut index.tenants),
        );
        let api = Api::all(client.clone());
        watchers.spawn(
            shared
                .clone()
                .keep(SLICES, api, gateways, |index| &mut index.slices),
        );
        let api = Api::all(client);
        watchers.spawn(
            shared
                .clone()
                .keep(NODES, api, all, |index| &mut index.nodes),
        );
        Ok(Arc::new(Self {
            node: node.to_owned(),
            shared,
            links,
            member: AtomicBool::default(),
            _watchers: watchers,
        }))
    }
}

impl Shared {
    /// The same client, but every good answer is noted: a watch that goes on
    /// where it was says nothing else.
    fn observe(self: &Arc<Self>, client: Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let shared = Arc::clone(self);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (client, shared) = (client.clone(), Arc::clone(&shared));
            async move {
                let path = request.uri().path();
                let kind = KINDS.iter().position(|kind| path.ends_with(kind));
                let answer = client.send(request).await?;
                if let Some(kind) = kind.filter(|_| answer.status().is_success()) {
                    shared.heard(kind);
                }
                Ok::<_, kube::Error>(answer)
            }
        });
        Client::new(service, namespace)
    }

    /// Feeds a table with what a watch tells, for good.
    async fn keep<R>(
        self: Arc<Self>,
        kind: usize,
        api: Api<R::Object>,
        config: watcher::Config,
        table: impl Fn(&mut Index) -> &mut Table<R>,
    ) where
        R: Row,
        R::Object: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let mut events = watcher(api, config).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let complete = matches!(event, Event::InitDone);
                    let changed = table(&mut self.index()).feed(event);
                    if complete {
                        tracing::info!(kind = KINDS[kind], "listed");
                    }
                    if changed {
                        self.changes.send_modify(|count| *count += 1);
                    }
                }
                // A watch that is too old begins with a new list, at once.
                Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                    tracing::info!(kind = KINDS[kind], "the watch expired: listing anew");
                }
                Err(error) => self.failed(kind, error),
            }
        }
    }

    fn heard(&self, kind: usize) {
        if let Some(trouble) = self.troubles()[kind].take() {
            let seconds = trouble.since.elapsed().as_secs();
            tracing::info!(kind = KINDS[kind], seconds, "the API server answers again");
        }
    }

    fn failed(&self, kind: usize, error: watcher::Error) {
        let reason = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(kind = KINDS[kind], "cannot watch: {reason}");
        let mut troubles = self.troubles();
        let before = troubles[kind].take();
        troubles[kind] = Some(Trouble {
            since: before.map_or_else(Instant::now, |before| before.since),
            reason,
        });
    }

    /// The longest trouble of all.
    fn trouble(&self) -> Option<String> {
        let troubles = self.troubles();
        let all = KINDS.iter().zip(troubles.iter());
        let all = all.filter_map(|(kind, trouble)| Some((kind, trouble.as_ref()?)));
        let (kind, Trouble { since, reason }) = all.min_by_key(|(_, trouble)| trouble.since)?;
        let seconds = since.elapsed().as_secs();
        Some(format!("cannot watch {kind} since {seconds} s: {reason}"))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn troubles(&self) -> MutexGuard<'_, [Option<Trouble>; KINDS.len()]> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Source for Kube {
    async fn world(&self) -> Result<World> {
        let (seen, member) = {
            let index = self.shared.index();
            let Some(seen) = index.seen() else {
                let missing = index.missing().join(", ");
                match self.shared.trouble() {
                    Some(trouble) => bail!("{missing} not listed yet: {trouble}"),
                    None => bail!("{missing} not listed yet"),
                }
            };
            (seen, index.has_node())
        };
        // Taken for another's, this node's gateways would be sent to itself. One
        // whose Node is removed while it runs still has to shut tenants out.
        let member = self.member.fetch_or(member, Relaxed) || member;
        ensure!(
            member,
            "the cluster has no node `{}`: name one of `kubectl get nodes` with --node",
            self.node
        );
        let (mut world, here) = (seen.world, seen.here);
        let pods: Vec<_> = here.values().copied().collect();
        let located = self.links.locate(&pods).await?;
        let mut located: BTreeMap<_, _> = here.into_keys().zip(located).collect();
        for gateway in &mut world.gateways {
            if let Some(location) = located.remove(&gateway.port) {
                gateway.location = location;
            }
        }
        world.near = pods.into_iter().flat_map(link::each).collect();
        Ok(world)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }
}
