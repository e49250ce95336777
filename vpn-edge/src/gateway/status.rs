//! How a gateway reports its status.
//!
//! A client of the Unix socket gets the status as one JSON line, and another line
//! with every change; the end of the stream is the end of the gateway, so that nobody
//! has to poll.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use uuid::Uuid;

use super::GatewayConfig;

/// One line of the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub tenant: Uuid,
    pub generation: u64,
    pub port: u16,
    #[serde(flatten)]
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    Starting,
    /// WireGuard answers.
    Ready {
        /// `kernel` or `userspace`.
        wireguard: String,
    },
    Failed {
        reason: String,
    },
}

/// The gateway's side.
pub(super) struct Reporter {
    sender: watch::Sender<Status>,
}

impl Reporter {
    /// Listens on the configured socket with status `starting`.
    pub fn bind(config: &GatewayConfig) -> io::Result<Self> {
        let _ = fs::remove_file(&config.status);
        let listener = UnixListener::bind(&config.status)?;
        let (sender, receiver) = watch::channel(Status {
            tenant: config.tenant,
            generation: config.tunnel.fixed.generation,
            port: config.tunnel.fixed.port,
            phase: Phase::Starting,
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tell(stream, receiver.clone()));
            }
        });
        Ok(Self { sender })
    }

    pub fn ready(&self, wireguard: &str) {
        let wireguard = wireguard.into();
        self.sender
            .send_modify(|status| status.phase = Phase::Ready { wireguard });
    }

    pub fn fail(&self, reason: String) {
        self.sender
            .send_modify(|status| status.phase = Phase::Failed { reason });
    }
}

async fn tell(mut stream: UnixStream, mut status: watch::Receiver<Status>) -> io::Result<()> {
    loop {
        let mut line = serde_json::to_vec(&*status.borrow_and_update())?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        if status.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Connects to the gateway's status socket.
///
/// # Errors
///
/// If no gateway listens there.
pub async fn subscribe(socket: &Path) -> io::Result<Subscription> {
    let stream = UnixStream::connect(socket).await?;
    Ok(Subscription {
        lines: BufReader::new(stream).lines(),
    })
}

/// The client's side.
pub struct Subscription {
    lines: Lines<BufReader<UnixStream>>,
}

impl Subscription {
    /// The next status; none when the gateway has ended.
    pub async fn next(&mut self) -> Option<Status> {
        let line = self.lines.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }
}
