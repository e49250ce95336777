//! A mounted configuration that changes.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{MissedTickBehavior, interval};

use super::{GatewayConfig, nat};

/// How often the file is read though nothing was told. A node has only so many
/// watches for all of its pods, and rules that were refused are tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Holds the rules to the networks in the file at `path`, beginning with those
/// that `config`, made from an earlier state of it, has put in place. Never
/// ends. All else keeps its value for the gateway's life.
pub async fn networks(path: &Path, config: &GatewayConfig) -> std::convert::Infallible {
    let events = watch(path)
        .inspect_err(|error| tracing::info!("not told of changes, looking for them: {error}"))
        .ok();
    let mut look = interval(LOOK_AGAIN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reach = (config.dns, config.networks.clone());
    let mut complained = false;
    loop {
        // At once at first: the file may have changed before it was watched.
        tokio::select! {
            _ = look.tick() => {}
            () = told(events.as_ref()) => {}
        }
        let found = match GatewayConfig::read(path) {
            Ok(found) if found.is_same_gateway(config) => found,
            outcome => {
                if !std::mem::replace(&mut complained, true) {
                    match outcome {
                        Ok(_) => tracing::info!("the configuration is another gateway's by now"),
                        Err(error) => tracing::warn!("the networks stay as they are: {error:#}"),
                    }
                }
                continue;
            }
        };
        complained = false;
        if (found.dns, &found.networks) == (reach.0, &reach.1) {
            continue;
        }
        match nat::apply(&found).await {
            Ok(()) => {
                tracing::info!(networks = ?found.networks, "networks changed");
                reach = (found.dns, found.networks);
            }
            Err(error) => tracing::error!("the networks stay as they are: {error:#}"),
        }
    }
}

struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches the folder: a mounted Secret changes by a link beside the file.
fn watch(path: &Path) -> io::Result<AsyncFd<Events>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(folder, changes)?;
    // SAFETY: the descriptor is open for as long as what holds it.
    let events = unsafe { AsyncFd::register_with_interest(Events(inotify), Interest::READABLE) };
    events.map_err(|error| error.into_parts().1)
}

async fn told(events: Option<&AsyncFd<Events>>) {
    let Some(events) = events else {
        return std::future::pending().await;
    };
    while let Ok(mut ready) = events.readable().await {
        if let Ok(Ok(_)) = ready.try_io(|events| Ok(events.get_ref().0.read_events()?)) {
            return;
        }
    }
    std::future::pending().await
}
