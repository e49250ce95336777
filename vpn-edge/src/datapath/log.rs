//! What the programs log, on its way into this process's log.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The ring buffer that aya-log's records go through.
const RING: &str = "AYA_LOGS";

/// How many records are logged in a second. Some are written for packets that
/// strangers can send.
const MOST: u32 = 1000;

const SECOND: Duration = Duration::from_secs(1);

/// The target of records.
macro_rules! target {
    () => {
        "datapath"
    };
}

/// The [`target!`] of records.
pub const TARGET: &str = target!();

/// The least severe records that the programs write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    #[default]
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// As aya-log counts: the number of [`aya_log::Level`], and zero for none.
    pub(super) const fn number(self) -> u8 {
        self as u8
    }

    /// The number in an object's read-only data, for its loader. The verifier
    /// then removes what is not to be logged.
    pub(super) fn set<'a>(number: &'a u8, loader: &mut EbpfLoader<'a>) {
        loader.override_global(aya_log::LEVEL, number, true);
        if *number == Self::Off.number() {
            // The programs name the ring, so that it cannot be left out; the
            // least that there is, is a page.
            loader.map_max_entries(RING, 1);
        }
    }
}

const _: () = assert!(LogLevel::Error.number() == aya_log::Level::Error as u8);
const _: () = assert!(LogLevel::Trace.number() == aya_log::Level::Trace as u8);

/// The records that the programs of one object write.
///
/// The ring is theirs alone and not pinned. Programs that outlive this process
/// find it full after a while, and then their records are lost.
pub struct Records(EbpfLogger<Forward>);

impl Records {
    pub(super) fn take(ebpf: &mut Ebpf) -> io::Result<Self> {
        let forward = Forward(Mutex::new((Instant::now(), 0)));
        EbpfLogger::init_with_logger(ebpf, forward)
            .map(Self)
            .map_err(io::Error::other)
    }

    /// Logs what was written since the last time.
    pub fn flush(&mut self) {
        self.0.flush();
    }

    /// Logs what is written, for as long as this process lives.
    ///
    /// On a thread of its own: while packets come in faster than records are
    /// read, reading does not end.
    ///
    /// # Errors
    ///
    /// When there can be no such thread.
    pub fn follow(mut self) -> io::Result<()> {
        let follow = move || {
            loop {
                let ring = PollFd::new(self.0.as_fd(), PollFlags::POLLIN);
                match poll(&mut [ring], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => self.flush(),
                    Err(error) => {
                        tracing::error!("cannot wait for the programs' log records: {error}");
                        return;
                    }
                }
            }
        };
        let name = target!().into();
        thread::Builder::new().name(name).spawn(follow).map(drop)
    }
}

/// Hands records to `tracing`, up to [`MOST`] a second.
struct Forward(Mutex<(Instant, u32)>);

impl Forward {
    /// Which record this is of its second.
    fn number(&self, now: Instant) -> u32 {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(second.0) >= SECOND {
            *second = (now, 0);
        }
        second.1 = second.1.saturating_add(1);
        second.1
    }
}

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let number = self.number(Instant::now());
        if number > MOST {
            if number == MOST + 1 {
                tracing::warn!(
                    target: target!(),
                    "more than {MOST} records in a second: the rest of the second is left out"
                );
            }
            return;
        }
        // In the programs every address has 16 bytes.
        let text = record.args().to_string().replace("::ffff:", "");
        match record.level() {
            log::Level::Error => tracing::error!(target: target!(), "{text}"),
            log::Level::Warn => tracing::warn!(target: target!(), "{text}"),
            log::Level::Info => tracing::info!(target: target!(), "{text}"),
            log::Level::Debug => tracing::debug!(target: target!(), "{text}"),
            log::Level::Trace => tracing::trace!(target: target!(), "{text}"),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_by_the_second() {
        let start = Instant::now();
        let forward = Forward(Mutex::new((start, 0)));
        let numbers = |at: u64| forward.number(start + Duration::from_millis(at));
        assert_eq!([0, 1, 999].map(numbers), [1, 2, 3]);
        assert_eq!([1000, 1999, 2000].map(numbers), [1, 2, 1]);
    }
}
