//! The cluster as the agent's source: tenants, their gateways' pods, and nodes.
//!
//! One watch per kind feeds the index. While the API server cannot be reached, the
//! last known state stays.

mod index;
mod link;
mod parts;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::agent::{DesiredState, Source};
use crate::cluster::watch::{Contact, Selection, Tasks, Watches};
use crate::cluster::{GATEWAY, label};
use index::{Index, Row, Table};
pub use link::PodLinks;

/// The cluster, watched until this is dropped.
pub struct Kube {
    node: String,
    index: Arc<Mutex<Index>>,
    changes: watch::Sender<u64>,
    contact: Arc<Contact>,
    links: PodLinks,
    /// Whether this node has been in the cluster at some time.
    member: AtomicBool,
    _watches: Tasks,
}

/// The longest pause after a failed watch: there may be thousands of nodes.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Kube {
    /// Begins to watch, as the node of this name. Retries while the API server does
    /// not answer. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// If the kernel's notifications of this node's links cannot be received.
    pub fn start(client: Client, node: &str) -> Result<Arc<dyn Source>> {
        let changes = watch::Sender::new(0);
        let links = PodLinks::follow(changes.clone())
            .context("cannot watch the links of this node's pods")?;
        let mut watches = Watches::new(client, LONGEST_PAUSE);
        let kube = Self {
            node: node.to_owned(),
            index: Arc::new(Mutex::new(Index::new(node))),
            changes,
            contact: watches.contact(),
            links,
            member: AtomicBool::default(),
            _watches: watches.tasks(),
        };
        let gateways = Selection::Labelled(label::NAME, GATEWAY);
        kube.feed(&mut watches, Selection::All, |index| &mut index.tenants);
        kube.feed(&mut watches, gateways, |index| &mut index.slices);
        kube.feed(&mut watches, Selection::All, |index| &mut index.nodes);
        watches.begin();
        Ok(Arc::new(kube))
    }

    /// Feeds a table from a watch.
    fn feed<R>(
        &self,
        watches: &mut Watches,
        selection: Selection,
        table: fn(&mut Index) -> &mut Table<R>,
    ) where
        R: Row + 'static,
        R::Object: Resource<DynamicType = ()>,
        R::Object: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (index, changes) = (Arc::clone(&self.index), self.changes.clone());
        watches.follow(selection, move |event| {
            if table(&mut lock(&index)).feed(event) {
                changes.send_modify(|count| *count += 1);
            }
        });
    }
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Source for Kube {
    async fn desired(&self) -> Result<DesiredState> {
        let (seen, member) = {
            let index = lock(&self.index);
            let Some(seen) = index.seen() else {
                let missing = index.missing().join(", ");
                match self.contact.outage() {
                    Some(trouble) => bail!("{missing} not listed yet: {trouble}"),
                    None => bail!("{missing} not listed yet"),
                }
            };
            (seen, index.has_node())
        };
        // Under a wrong node name, packets to this node's gateways would be forwarded
        // to itself. A node whose Node object is removed while it runs must still
        // close ports.
        let member = self.member.fetch_or(member, Relaxed) || member;
        ensure!(
            member,
            "the cluster has no node `{}`: name one of `kubectl get nodes` with --node",
            self.node
        );
        let (mut desired, here) = (seen.desired, seen.here);
        let pods: Vec<_> = here.values().copied().collect();
        let located = self.links.locate(&pods).await?;
        let mut located: BTreeMap<_, _> = here.into_keys().zip(located).collect();
        for gateway in &mut desired.gateways {
            if let Some(location) = located.remove(&gateway.port) {
                gateway.location = location;
            }
        }
        desired.near = pods.into_iter().flat_map(link::each).collect();
        Ok(desired)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn outage(&self) -> Option<String> {
        self.contact.outage()
    }
}
