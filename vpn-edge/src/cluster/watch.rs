//! Watches of the cluster's objects: one per kind and selection for all followers. A
//! failed watch is restarted as long as it is needed; its last known objects stay
//! until then.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Error, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::client::WATCH;
use crate::backoff::Backoff;

/// First pause after a failed watch; doubled up to the longest, and randomised.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Which objects of a kind are watched, in all namespaces. By name or label, which
/// limits the required roles and the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    All,
    Named(&'static str),
    Labelled(&'static str, &'static str),
}

/// The watches to start, and their followers.
pub struct Watches {
    client: Client,
    longest_pause: Duration,
    contact: Arc<Contact>,
    watches: Vec<Box<dyn Begin>>,
    tasks: Tasks,
}

/// Tasks that run as long as somebody holds this.
pub type Tasks = Arc<Mutex<JoinSet<()>>>;

/// Resolves once all objects are listed, or with the API server's refusal.
type Known = oneshot::Receiver<Result<(), String>>;

type Follower<K> = Box<dyn FnMut(&Event<K>) + Send>;

struct Watch<K> {
    selection: Selection,
    followers: Vec<Follower<K>>,
}

impl Watches {
    /// No watches yet. Where many processes watch, each pauses longer after failures.
    #[must_use]
    pub fn new(client: Client, longest_pause: Duration) -> Self {
        Self {
            client,
            longest_pause,
            contact: Arc::default(),
            watches: Vec::new(),
            tasks: Tasks::default(),
        }
    }

    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The watches run as long as this is held.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        Arc::clone(&self.tasks)
    }

    /// The state of the connection to the API server.
    #[must_use]
    pub fn contact(&self) -> Arc<Contact> {
        Arc::clone(&self.contact)
    }

    /// Passes events of the selected objects to `follower`.
    pub fn follow<K>(
        &mut self,
        selection: Selection,
        follower: impl FnMut(&Event<K>) + Send + 'static,
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let follower: Follower<K> = Box::new(follower);
        let same = self.watches.iter_mut().find_map(|watch| {
            let watch: &mut dyn Any = watch.as_mut();
            let watch = watch.downcast_mut::<Watch<K>>();
            watch.filter(|watch| watch.selection == selection)
        });
        match same {
            Some(watch) => watch.followers.push(follower),
            None => self.watches.push(Box::new(Watch {
                selection,
                followers: vec![follower],
            })),
        }
    }

    /// Starts the watches, and returns once all objects are listed. Retries while the
    /// API server does not answer.
    ///
    /// # Errors
    ///
    /// If the API server refuses, with its message: a definition or a permission is
    /// missing.
    pub async fn start(self) -> Result<(), String> {
        for known in self.begin() {
            known.await.map_err(|_| "a watch ended")??;
        }
        Ok(())
    }

    /// Starts the watches. Must be called within a runtime.
    pub fn begin(self) -> Vec<Known> {
        let client = self.contact.observe(self.client);
        let pauses = Pauses(Backoff::new(FIRST_PAUSE, self.longest_pause));
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let watches = self.watches.into_iter();
        let known = watches.map(|watch| {
            let contact = Arc::clone(&self.contact);
            watch.begin(client.clone(), pauses, contact, &mut tasks)
        });
        known.collect()
    }
}

trait Begin: Any + Send {
    fn begin(
        self: Box<Self>,
        client: Client,
        pauses: Pauses,
        contact: Arc<Contact>,
        tasks: &mut JoinSet<()>,
    ) -> Known;
}

impl<K> Begin for Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    fn begin(
        self: Box<Self>,
        client: Client,
        pauses: Pauses,
        contact: Arc<Contact>,
        tasks: &mut JoinSet<()>,
    ) -> Known {
        let (tell, known) = oneshot::channel();
        let objects: Api<K> = Api::all(client);
        tasks.spawn(self.run(objects, pauses, contact, tell));
        known
    }
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(
        mut self: Box<Self>,
        objects: Api<K>,
        pauses: Pauses,
        contact: Arc<Contact>,
        tell: oneshot::Sender<Result<(), String>>,
    ) {
        let kind = K::plural(&());
        let config = Config::default().timeout(WATCH);
        let config = match &self.selection {
            Selection::All => config,
            Selection::Named(name) => config.fields(&format!("metadata.name={name}")),
            Selection::Labelled(label, value) => config.labels(&format!("{label}={value}")),
        };
        let mut tell = Some(tell);
        let events = watcher(objects, config).backoff(pauses);
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let answer = match event {
                Ok(event) => {
                    let is_complete = matches!(event, Event::InitDone);
                    for follow in &mut self.followers {
                        follow(&event);
                    }
                    if is_complete {
                        tracing::info!(%kind, "listed");
                    }
                    is_complete.then_some(Ok(()))
                }
                // An expired watch starts again with a new list, immediately.
                Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                    tracing::info!(%kind, "watch expired; listing again");
                    None
                }
                Err(error) => {
                    let refusal = refusal(&error);
                    contact.failed(&kind, error);
                    refusal.map(|why| Err(format!("cannot list {kind}: {why}")))
                }
            };
            if let Some(answer) = answer
                && let Some(tell) = tell.take()
            {
                let _ = tell.send(answer);
            }
        }
    }
}

/// The API server's message, if retrying will not help.
fn refusal(error: &watcher::Error) -> Option<String> {
    let watcher::Error::InitialListFailed(Error::Api(status)) = error else {
        return None;
    };
    let refused = status.is_forbidden() || status.is_not_found() || status.code == 401;
    refused.then(|| status.message.clone())
}

#[derive(Clone, Copy)]
struct Pauses(Backoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.varied())
    }
}

impl utils::Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// The kinds that cannot be watched, and why.
#[derive(Default)]
pub struct Contact {
    outages: Mutex<BTreeMap<String, Outage>>,
}

/// Why a kind is not watched.
struct Outage {
    since: Instant,
    reason: String,
}

impl Contact {
    /// The same client, recording every successful answer: a resumed watch has no
    /// other sign of success.
    fn observe(self: &Arc<Self>, client: Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let contact = Arc::clone(self);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (client, contact) = (client.clone(), Arc::clone(&contact));
            async move {
                let kind = request.uri().path().rsplit('/').next();
                let kind = kind.unwrap_or_default().to_owned();
                let answer = client.send(request).await?;
                if answer.status().is_success() {
                    contact.heard(&kind);
                }
                Ok::<_, Error>(answer)
            }
        });
        Client::new(service, namespace)
    }

    fn heard(&self, kind: &str) {
        if let Some(outage) = self.outages().remove(kind) {
            let seconds = outage.since.elapsed().as_secs();
            tracing::info!(kind, seconds, "the API server answers again");
        }
    }

    fn failed(&self, kind: &str, error: watcher::Error) {
        let reason = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(kind, "watch failed; retrying: {reason}");
        let mut outages = self.outages();
        let since = outages.get(kind).map(|before| before.since);
        let since = since.unwrap_or_else(Instant::now);
        outages.insert(kind.to_owned(), Outage { since, reason });
    }

    /// The problem that has lasted longest.
    pub fn outage(&self) -> Option<String> {
        let outages = self.outages();
        let longest = outages.iter().min_by_key(|(_, outage)| outage.since);
        let (kind, Outage { since, reason }) = longest?;
        let seconds = since.elapsed().as_secs();
        Some(format!(
            "watch of {kind} has been failing for {seconds} s: {reason}"
        ))
    }

    fn outages(&self) -> MutexGuard<'_, BTreeMap<String, Outage>> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;

    use http::{Request, Response, StatusCode};
    use k8s_openapi::api::core::v1::Service;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// A client of an API server that answers every list like this, and no watch.
    fn client(status: StatusCode, list: &Value, asked: &Arc<Mutex<Vec<String>>>) -> Client {
        let (list, asked) = (list.to_string(), Arc::clone(asked));
        let service = tower::service_fn(move |request: Request<Body>| {
            let uri = request.uri().to_string();
            let is_watch = uri.contains("watch=");
            if !is_watch {
                asked.lock().unwrap().push(uri);
            }
            let answer = Response::builder().status(status);
            let answer = answer.body(Body::from(list.clone().into_bytes())).unwrap();
            async move {
                if is_watch {
                    pending::<()>().await;
                }
                Ok::<_, Infallible>(answer)
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn a_kind_is_watched_once_however_many_follow_it() {
        let asked = Arc::default();
        let list = json!({
            "kind": "ServiceList", "apiVersion": "v1", "metadata": { "resourceVersion": "7" },
            "items": [{ "metadata": { "name": "dns", "resourceVersion": "5" } }],
        });
        let mut watches = Watches::new(client(StatusCode::OK, &list, &asked), FIRST_PAUSE);
        let _tasks = watches.tasks();
        let told: [Arc<Mutex<Vec<Event<Service>>>>; 3] = Default::default();
        let selections = [Selection::All, Selection::All, Selection::Named("dns")];
        for (selection, told) in selections.into_iter().zip(told.clone()) {
            watches.follow(selection, move |event| {
                told.lock().unwrap().push(event.clone());
            });
        }
        watches.start().await.unwrap();
        for told in told {
            let told = told.lock().unwrap();
            let [Event::Init, Event::InitApply(one), Event::InitDone] = told.as_slice() else {
                panic!("{told:?}");
            };
            assert_eq!(one.metadata.name.as_deref(), Some("dns"));
        }
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 2, "{asked:?}");
    }

    #[tokio::test]
    async fn a_refused_list_ends_the_start_in_the_servers_words() {
        let status = json!({
            "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden",
            "message": "services is forbidden",
        });
        let asked = Arc::default();
        let client = client(StatusCode::FORBIDDEN, &status, &asked);
        let mut watches = Watches::new(client, FIRST_PAUSE);
        let contact = watches.contact();
        let _tasks = watches.tasks();
        watches.follow::<Service>(Selection::All, |_| {});
        let refused = watches.start().await.unwrap_err();
        assert_eq!(refused, "cannot list services: services is forbidden");
        let outage = contact.outage().unwrap();
        assert!(
            outage.starts_with("watch of services has been failing for 0 s: "),
            "{outage}"
        );
    }
}
