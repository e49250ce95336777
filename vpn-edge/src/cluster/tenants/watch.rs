//! Watches that feed the index. One that fails starts anew for as long as it is
//! wanted; what was known stays until then.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Error};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Inner;
use super::index::Kind;
use crate::cluster::WATCH;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Watches the objects of a kind, or those of one name, in all namespaces. The
/// answer comes once all are known, or when the API server refuses.
pub fn start<K>(
    inner: &Arc<Inner>,
    name: Option<&str>,
    watches: &mut JoinSet<()>,
) -> oneshot::Receiver<Result<(), String>>
where
    K: Kind + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (tell, known) = oneshot::channel();
    let mut tell = Some(tell);
    let objects: Api<K> = Api::all(inner.client.clone());
    let mut config = watcher::Config::default().timeout(WATCH);
    if let Some(name) = name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let inner = Arc::clone(inner);
    watches.spawn(async move {
        let events = watcher(objects, config).backoff(Pauses(FIRST_PAUSE));
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let answer = match event {
                Ok(event) => {
                    let whole = matches!(event, Event::InitDone);
                    inner.take(event);
                    whole.then_some(Ok(()))
                }
                Err(error) => {
                    let kind = K::kind(&());
                    tracing::warn!("cannot watch {kind}s, trying again: {error}");
                    refusal(&error).map(|why| Err(format!("cannot list {kind}s: {why}")))
                }
            };
            if let Some(answer) = answer
                && let Some(tell) = tell.take()
            {
                let _ = tell.send(answer);
            }
        }
    });
    known
}

/// The API server's words, when it will not say otherwise by itself.
fn refusal(error: &watcher::Error) -> Option<String> {
    let watcher::Error::InitialListFailed(Error::Api(status)) = error else {
        return None;
    };
    let refused = status.is_forbidden() || status.is_not_found() || status.code == 401;
    refused.then(|| status.message.clone())
}

struct Pauses(Duration);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }
}
