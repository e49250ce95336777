//! rtnetlink in a chosen network namespace.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

use futures_util::TryStreamExt;
use netlink_packet_route::link::LinkMessage;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Error, Handle};

/// A handle on the network namespace of the calling thread, wherever it is used
/// later. Must be called within a runtime.
///
/// # Errors
///
/// If the kernel provides no socket.
pub fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The interface called `name`, if there is one.
///
/// # Errors
///
/// When the kernel refuses the query.
pub async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, Error> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Err(Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => Ok(None),
        found => found,
    }
}

/// The index of the interface called `name`.
///
/// # Errors
///
/// When there is none, or the kernel refuses the query.
pub async fn index(handle: &Handle, name: &str) -> io::Result<u32> {
    match find(handle, name).await.map_err(io::Error::other)? {
        Some(link) => Ok(link.header.index),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no interface `{name}`"),
        )),
    }
}

/// Runs `work` in the network namespace at `path`, on its own thread.
///
/// # Errors
///
/// If the namespace cannot be entered, or what `work` returns.
pub async fn inside<T, F>(path: &Path, work: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
    T: Send + 'static,
{
    let namespace = File::open(path)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    thread::Builder::new().name("netns".into()).spawn(move || {
        let outcome = setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
            })
            .and_then(|runtime| runtime.block_on(work()));
        let _ = sender.send(outcome);
    })?;
    receiver
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the namespace's thread ended early")))
}
