//! A TCP stream there and back, compared byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::node::Node;

/// Long enough for WireGuard to find a lost gateway again, and for TCP to send
/// anew after that.
const TIMEOUT: Duration = Duration::from_secs(60);

const CHUNK: usize = 16 << 10;

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// So many bytes, as fast as they go.
    Bytes(u64),
    /// Some megabytes a second, until [`Transfer::finish`].
    UntilFinished,
}

/// A running transfer: a server that sends back what it gets, and a client that
/// compares.
pub struct Transfer {
    back: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    server: JoinHandle<Result<()>>,
    writer: JoinHandle<Result<u64>>,
    reader: JoinHandle<Result<u64>>,
}

impl Transfer {
    /// From `client` to `address` on `server`.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached.
    pub fn start(client: &Node, server: &Node, address: &str, length: Length) -> Result<Self> {
        const PORT: u16 = 7000;
        let own = address.to_owned();
        let (listening, ready) = std::sync::mpsc::channel();
        let server = server.inside(move || {
            let listener = TcpListener::bind((own.as_str(), PORT))?;
            listening.send(())?;
            let (stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            std::io::copy(&mut &stream, &mut &stream)?;
            stream.shutdown(Shutdown::Write)?;
            Ok(())
        });
        ready.recv().context("the server does not listen")?;
        let there = (address.to_owned(), PORT);
        let connect = client.inside(move || Ok(TcpStream::connect(there)?));
        let stream = connect.join().expect("the thread does not panic")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let (back, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let writer = thread::spawn({
            let (stream, stop) = (stream.try_clone()?, Arc::clone(&stop));
            move || write(stream, length, &stop)
        });
        let reader = thread::spawn({
            let back = Arc::clone(&back);
            move || compare(stream, &back)
        });
        Ok(Self {
            back,
            stop,
            server,
            writer,
            reader,
        })
    }

    /// Bytes that came back so far.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        self.back.load(Relaxed)
    }

    /// Waits until `more` bytes have come back than when this was called.
    ///
    /// # Errors
    ///
    /// When it stands still.
    pub fn await_progress(&self, more: u64) -> Result<()> {
        let (start, before) = (Instant::now(), self.so_far());
        while self.so_far() < before + more {
            let ended = self.writer.is_finished() || self.reader.is_finished();
            ensure!(!ended, "the transfer ended after {} bytes", self.so_far());
            ensure!(
                start.elapsed() < TIMEOUT,
                "the transfer stands still at {} bytes",
                self.so_far()
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits for its end, which for one of no certain length is now, and gives
    /// back the number of bytes that went both ways.
    ///
    /// # Errors
    ///
    /// When a byte is missing or another.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        let joined = "the thread does not panic";
        let sent = self.writer.join().expect(joined).context("sending")?;
        let received = self.reader.join().expect(joined).context("receiving")?;
        self.server.join().expect(joined).context("sending back")?;
        ensure!(sent == received, "{sent} bytes sent, {received} came back");
        Ok(sent)
    }
}

/// The bytes of the stream from `at` on.
fn pattern(at: u64, buffer: &mut [u8]) {
    for (offset, byte) in (at..).zip(buffer) {
        *byte = (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
}

fn write(mut stream: TcpStream, length: Length, stop: &AtomicBool) -> Result<u64> {
    let (mut sent, mut buffer) = (0, [0; CHUNK]);
    loop {
        let chunk = match length {
            Length::Bytes(all) => buffer.len().min((all - sent) as usize),
            Length::UntilFinished if stop.load(Relaxed) => 0,
            Length::UntilFinished => buffer.len(),
        };
        if chunk == 0 {
            break;
        }
        pattern(sent, &mut buffer[..chunk]);
        stream.write_all(&buffer[..chunk])?;
        sent += chunk as u64;
        if let Length::UntilFinished = length {
            thread::sleep(Duration::from_millis(4));
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn compare(mut stream: TcpStream, back: &AtomicU64) -> Result<u64> {
    let (mut got, mut buffer, mut expected) = (0, [0; CHUNK], [0; CHUNK]);
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(got),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        pattern(got, &mut expected[..length]);
        let same = buffer[..length] == expected[..length];
        ensure!(same, "another stream came back after {got} bytes");
        got += length as u64;
        back.store(got, Relaxed);
    }
}
