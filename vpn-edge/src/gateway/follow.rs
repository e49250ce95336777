//! Follows changes of the mounted configuration.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{MissedTickBehavior, interval};

use super::{GatewayConfig, nat};

/// How often the file is read without a notification. A node has a limited number of
/// inotify watches for all of its pods, and refused rules are retried.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Applies the live part of the tunnel whenever the file at `path` changes. `config`,
/// read from an earlier version of it, is already applied. Never returns. The fixed
/// part stays the same for the gateway's life.
pub async fn live(path: &Path, config: &GatewayConfig) -> std::convert::Infallible {
    let events = watch(path)
        .inspect_err(|error| {
            tracing::info!("cannot watch the configuration file; polling it instead: {error}")
        })
        .ok();
    let mut look = interval(LOOK_AGAIN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut current = config.clone();
    let mut complained = false;
    loop {
        // The first tick is immediate: the file may have changed before it was
        // watched.
        tokio::select! {
            _ = look.tick() => {}
            () = told(events.as_ref()) => {}
        }
        let found = match GatewayConfig::read(path) {
            Ok(found) if has_same_keys(&found, config) => found,
            outcome => {
                if !std::mem::replace(&mut complained, true) {
                    match outcome {
                        Ok(_) => {
                            tracing::info!("the configuration is for another gateway; ignored")
                        }
                        Err(error) => {
                            tracing::warn!(
                                "cannot read new tunnel settings; the previous ones stay: {error:#}"
                            )
                        }
                    }
                }
                continue;
            }
        };
        complained = false;
        let live = found.tunnel.live;
        if live == current.tunnel.live {
            continue;
        }
        let before = std::mem::replace(&mut current.tunnel.live, live);
        match nat::apply(&current).await {
            Ok(()) => {
                let live = &current.tunnel.live;
                tracing::info!(?live, "tunnel settings changed");
            }
            Err(error) => {
                current.tunnel.live = before;
                tracing::error!(
                    "cannot apply new tunnel settings; the previous ones stay: {error:#}"
                );
            }
        }
    }
}

/// Whether both have the same keys. If anything else in the fixed part differs,
/// another gateway is about to take over; until then this one must not allow more
/// than the new configuration does.
fn has_same_keys(found: &GatewayConfig, config: &GatewayConfig) -> bool {
    let (found_fixed, fixed) = (&found.tunnel.fixed, &config.tunnel.fixed);
    found.tenant == config.tenant
        && found_fixed.generation == fixed.generation
        && found_fixed.server_key == fixed.server_key
}

struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches the folder: a mounted Secret changes by a symbolic link beside the file.
fn watch(path: &Path) -> io::Result<AsyncFd<Events>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(folder, changes)?;
    // SAFETY: the descriptor is open as long as its owner.
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
