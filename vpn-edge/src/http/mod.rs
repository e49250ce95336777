//! An HTTP/1.1 server, plain or over TLS, with limits on clients.

mod listen;
mod tls;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

pub use listen::listen;
pub use tls::{Tls, TlsArgs};

/// Maximum size of a request's head, in bytes; larger ones get a 431.
const MAX_HEAD: usize = 64 * 1024;

/// Milliseconds after which a connection is closed if the client does not read the
/// answer.
const TCP_USER_TIMEOUT: u32 = 30_000;

/// Pause after a failed accept, for example because there are no file descriptors
/// left.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// Limits on clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of connections; more wait in the kernel.
    pub connections: usize,
    /// Maximum per address, or IPv6 /64; more are closed immediately.
    pub of_one: usize,
    /// Timeout of a TLS handshake, of a request's head, and of an idle connection.
    pub head: Duration,
    /// How long running requests may take after the server is asked to finish.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // For all listeners together well below 1024, the usual limit of file
            // descriptors.
            connections: 256,
            of_one: 128,
            head: Duration::from_secs(10),
            grace: Duration::from_secs(5),
        }
    }
}

/// A running server. It is aborted when dropped.
pub struct HttpServer {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Serves `app`, with the peers' addresses as `ConnectInfo<SocketAddr>`.
    pub fn start(listener: TcpListener, tls: Option<Tls>, app: Router) -> HttpServer {
        HttpServer::with(listener, tls, app, Limits::default())
    }

    /// The same, for clients behind proxies, which have few addresses.
    pub fn behind_proxies(listener: TcpListener, tls: Option<Tls>, app: Router) -> HttpServer {
        let limits = Limits::default();
        let limits = Limits {
            of_one: limits.connections,
            ..limits
        };
        HttpServer::with(listener, tls, app, limits)
    }

    /// The same, for health and metrics, with short timeouts.
    pub fn observed(listener: TcpListener, app: Router) -> HttpServer {
        let limits = Limits {
            head: Duration::from_secs(2),
            ..Limits::default()
        };
        HttpServer::with(listener, None, app, limits)
    }

    /// The same, with other limits.
    pub fn with(
        listener: TcpListener,
        tls: Option<Tls>,
        app: Router,
        limits: Limits,
    ) -> HttpServer {
        let (stop, stopped) = oneshot::channel();
        let connections = Connections {
            app,
            limits,
            held: Arc::default(),
            tls: tls.as_ref().map(Tls::config),
        };
        let task = tokio::spawn(async move {
            let serving = connections.serve(listener, stopped);
            match tls {
                None => serving.await,
                Some(tls) => tokio::select! {
                    () = serving => {}
                    () = tls.follow() => {}
                },
            }
        });
        HttpServer {
            stop: Some(stop),
            task,
        }
    }

    /// Stops accepting connections, and returns once the running requests are
    /// answered.
    pub async fn finish(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Connections {
    app: Router,
    limits: Limits,
    /// Number of connections by address.
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

impl Connections {
    async fn serve(self, listener: TcpListener, mut stopped: oneshot::Receiver<()>) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        let graceful = GracefulShutdown::new();
        // Aborts all connections when it is dropped.
        let mut tasks = JoinSet::new();
        loop {
            let (stream, peer, slot) = tokio::select! {
                _ = &mut stopped => break,
                accepted = accept(&listener, &slots) => accepted,
            };
            while tasks.try_join_next().is_some() {}
            let Some(place) = self.place(peer) else {
                tracing::debug!(%peer, "too many connections from this address");
                continue;
            };
            let (connections, watcher) = (self.clone(), graceful.watcher());
            tasks.spawn(async move {
                connections.hold(stream, peer, watcher).await;
                drop((place, slot));
            });
        }
        drop(listener);
        if timeout(self.limits.grace, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("aborted requests that exceeded the grace period");
        }
    }

    /// Reserves a connection for this address, if it may have one more.
    fn place(&self, peer: SocketAddr) -> Option<ConnectionSlot> {
        let address = network(peer.ip());
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count == self.limits.of_one {
            return None;
        }
        *count += 1;
        Some(ConnectionSlot {
            held: Arc::clone(&self.held),
            address,
        })
    }

    async fn hold(self, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        // An error means that the socket is closed, which reading reports as well.
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT);
        let Some(tls) = &self.tls else {
            return self.answer(stream, peer, watcher).await;
        };
        let acceptor = TlsAcceptor::from(tls.borrow().clone());
        match timeout(self.limits.head, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.answer(stream, peer, watcher).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
        }
    }

    async fn answer(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        peer: SocketAddr,
        watcher: Watcher,
    ) {
        let app = self.app;
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            app.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%peer, %error, "connection failed");
        }
    }
}

/// A reserved connection of an address.
struct ConnectionSlot {
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = held.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// One client may have a whole IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// The next connection, once one is allowed.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let slot = slots.clone().acquire_owned().await;
    let slot = slot.expect("nobody closes the semaphore");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, slot),
            // The client closed the connection while it waited.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                sleep(EXHAUSTED).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
