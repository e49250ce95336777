//! Keeps limits from ending a measurement of one packet, over and over.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use aya::maps::{Array, Map, MapData};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use vpn_edge::datapath::folder;
use vpn_edge_common::{Edge, map};
use vpn_edge_ebpf::limit;

use crate::messages::CLIENT;

/// Less than the program takes to use up what one source may send at once.
const PAUSE: Duration = Duration::from_micros(1);

/// A thread on another CPU that fills the buckets of the first tenant and of
/// the first client again and again, and has replays forgotten.
pub struct Refill {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Refill {
    pub fn start(bpffs: &Path) -> Result<Self> {
        let maps = folder(bpffs).join("maps");
        let open = |name| -> Result<Map> { Ok(Map::Array(MapData::from_pin(maps.join(name))?)) };
        let mut edges: Array<_, Edge> = open(map::EDGE)?.try_into()?;
        let mut limits: Array<_, [u64; 8]> = open(map::LIMITS)?.try_into()?;
        let mut sources: Array<_, u64> = open(map::SOURCES)?.try_into()?;
        let edge = edges.get(&0, 0)?;
        // What is let in is forgotten at once, so that it is no replay.
        edges.set(
            0,
            Edge {
                session_life: 0,
                ..edge
            },
            0,
        )?;
        let source = limit::source(edge.seed, u32::from_ne_bytes(CLIENT).into());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut first = CpuSet::new();
            first.set(0)?;
            sched_setaffinity(Pid::from_raw(0), &first)?;
            first_come()?;
            let _ = ready.send(());
            while !stopped.load(Relaxed) {
                limits.set(0, [0; 8], 0)?;
                sources.set(source, 0, 0)?;
                let next = Instant::now() + PAUSE;
                while Instant::now() < next {
                    std::hint::spin_loop();
                }
            }
            Ok(edges.set(0, edge, 0)?)
        });
        // Whether it came this far or failed.
        let _ = started.recv();
        Ok(Self { stop, thread })
    }

    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the thread panicked"))?
            .context("cannot refill")
    }
}

/// Lets nothing of ordinary priority come before the calling thread.
fn first_come() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure lives as long as the call.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    Ok(nix::errno::Errno::result(done).map(drop)?)
}
