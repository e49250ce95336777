//! Health checks over HTTP, and who answers them where nothing of ours runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::node::Node;

/// Where nodes serve `/healthz`.
pub const HEALTH_PORT: u16 = 9095;

/// A machine that runs many tests may let one check take long.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// The status that `/healthz` at `address` answers with. On a thread in the
/// node that asks.
pub(super) fn ask(address: SocketAddr) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /healthz HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let status = line.split(' ').nth(1).context("no status")?;
    Ok(status.parse()?)
}

/// The status that `/healthz` at `address` answers `node` with.
///
/// # Errors
///
/// When nothing answers.
pub fn health(node: &Node, address: IpAddr) -> Result<u16> {
    let asked = node.inside(move || ask(SocketAddr::new(address, HEALTH_PORT)));
    asked.join().expect("the thread does not panic")
}

/// Answers health checks on a node until it is dropped.
pub struct StandIn {
    status: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<Result<()>>>,
}

impl StandIn {
    /// Answers with 200.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn start(node: &Node) -> Result<Self> {
        let status = Arc::new(AtomicU16::new(200));
        let stop = Arc::<AtomicBool>::default();
        let (listening, ready) = std::sync::mpsc::channel();
        let server = node.inside({
            let (status, stop) = (Arc::clone(&status), Arc::clone(&stop));
            move || {
                let listener = TcpListener::bind(("::", HEALTH_PORT))?;
                listener.set_nonblocking(true)?;
                listening.send(())?;
                while !stop.load(Relaxed) {
                    match listener.accept() {
                        // Whoever asks may go away meanwhile.
                        Ok((stream, _)) => drop(answer(&stream, &status)),
                        Err(_) => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
                Ok(())
            }
        });
        let stand_in = Self {
            status,
            stop,
            server: Some(server),
        };
        ready.recv().context("the port is taken")?;
        Ok(stand_in)
    }

    /// Answers with another status from now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Relaxed);
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.server.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: &TcpStream, status: &AtomicU16) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut request = [0; 1024];
    let mut read = 0;
    while read < request.len() && !request[..read].ends_with(b"\r\n\r\n") {
        match stream.read(&mut request[read..])? {
            0 => break,
            more => read += more,
        }
    }
    let status = status.load(Relaxed);
    write!(stream, "HTTP/1.0 {status} \r\nContent-Length: 0\r\n\r\n")?;
    Ok(())
}
