//! What work costs, in CPU time of one CPU.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// CPU time of this thread and of the kernel's thread for the soft interrupts
/// of its CPU.
///
/// What the network stack does for a frame runs in the thread that sent it,
/// until there is much of it at once (2 ms): then the kernel's thread gets the
/// rest. Not time on the wall: a test run ends with the kernel waiting some
/// 20 ms for readers of its dispatcher, and others use the machine too.
pub struct Clock {
    /// `schedstat` of the kernel's thread.
    softirqs: File,
}

impl Clock {
    /// Holds this thread to one CPU, so that sending and taking in are one
    /// sequence: to the last, as the first has most of a machine's interrupts.
    pub fn on_last_cpu() -> Result<Self> {
        let last = std::thread::available_parallelism()?.get() - 1;
        let mut cpus = CpuSet::new();
        cpus.set(last)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        Ok(Self {
            softirqs: softirqs_of(last)?,
        })
    }

    /// Nanoseconds that `work` takes, by `count`.
    pub fn cost(&self, count: u32, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let before = self.now()?;
        work()?;
        Ok((self.now()? - before).as_nanos() as f64 / f64::from(count))
    }

    fn now(&self) -> Result<Duration> {
        let own: Duration = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into();
        let mut text = [0; 64];
        let length = self.softirqs.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let running = text.split_whitespace().next().context("empty schedstat")?;
        Ok(own + Duration::from_nanos(running.parse()?))
    }
}

fn softirqs_of(cpu: usize) -> Result<File> {
    let name = format!("ksoftirqd/{cpu}\n");
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name) {
            return Ok(File::open(path.join("schedstat"))?);
        }
    }
    anyhow::bail!("no thread {}", name.trim_end())
}
