//! The programs in the kernel, to be run over packets, and their maps' memory.

use std::marker::PhantomData;
use std::ops::Deref;
use std::path::Path;
use std::ptr::NonNull;

use anyhow::{Context, Result, anyhow, ensure};
use aya::TestRun;
use aya::maps::MapData;
use aya::programs::{SchedClassifier, TestRunOptions, TestRunResult, Xdp};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vpn_edge::datapath::{self, Datapath};
use vpn_edge_common::{Limits, Sessions, Word, map, program};
use vpn_edge_ebpf::limit;

use crate::packet::Packet;

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

/// The kernel makes no skb for a test run without a whole IP header.
pub const LEAST_SKB: usize = 14 + 20;
/// The same of a frame that calls itself IPv6.
pub const LEAST_IPV6_SKB: usize = 14 + 40;

/// What the kernel is to believe of a packet, beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skb {
    pub gso_segs: u32,
    pub gso_size: u32,
}

/// What the programs answered, and the frame as they left it.
pub type Answer = (u32, Vec<u8>);

/// Runs ingress or egress over `packet`.
///
/// # Errors
///
/// When the kernel refuses the run.
pub fn run(datapath: &mut Datapath, name: &str, packet: &[u8], skb: Skb) -> Result<Answer> {
    let program = datapath.ebpf().program(name).context("no such program")?;
    let mut out = vec![0; packet.len() + 64];
    if name == program::INGRESS {
        let program: &Xdp = program.try_into()?;
        test_run(program, packet, None, &mut out)
    } else {
        let program: &SchedClassifier = program.try_into()?;
        test_run(program, packet, Some(&skb.bytes()), &mut out)
    }
    .map(|answer| (answer, out))
    .map(|((verdict, length), mut out)| {
        out.truncate(length);
        (verdict, out)
    })
}

impl Skb {
    /// As a `struct __sk_buff`, in which a test run takes but a few fields.
    fn bytes(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        bytes[164..168].copy_from_slice(&self.gso_segs.to_ne_bytes());
        bytes[176..180].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes
    }
}

fn test_run<P>(
    program: &P,
    packet: &[u8],
    context: Option<&[u8]>,
    out: &mut [u8],
) -> Result<(u32, usize)>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(out),
            ctx_in: context,
            ..TestRunOptions::default()
        })
        .map_err(|error| anyhow!(error).context(format!("{} bytes", packet.len())))?;
    Ok((result.return_value, result.data_size_out as usize))
}

/// What the guard remembers, as the programs see it.
pub struct Memory {
    /// By slot, as are the next.
    pub sessions: Values<Sessions>,
    pub replays: Values<Sessions>,
    pub limits: Values<Limits>,
    pub sources: Values<Word>,
}

impl Memory {
    /// Maps the memory of what is pinned under `root`.
    ///
    /// # Errors
    ///
    /// When nothing is, or the kernel refuses.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = datapath::folder(root).join("maps");
        // SAFETY: these are the types of the maps' values, made of words.
        unsafe {
            Ok(Self {
                sessions: Values::open(&folder.join(map::SESSIONS))?,
                replays: Values::open(&folder.join(map::REPLAYS))?,
                limits: Values::open(&folder.join(map::LIMITS))?,
                sources: Values::open(&folder.join(map::SOURCES))?,
            })
        }
    }

    /// Lets every rate start afresh, but no grace.
    pub fn forget_rates(&self) {
        for limits in &*self.limits {
            for word in rates(limits) {
                word.store(0);
            }
        }
        for word in &*self.sources {
            word.store(0);
        }
    }

    /// Lets in again what was let in before.
    pub fn forget_replays(&self, slot: u16) {
        for word in ways(&self.replays[usize::from(slot)]) {
            word.store(0);
        }
    }

    /// Where handshakes of the packet's source are charged.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the lookup.
    pub fn source_of(datapath: &Datapath, packet: &Packet) -> Result<usize> {
        let seed = datapath.maps.edge()?.seed;
        let word = u32::from_ne_bytes(packet.source.octets());
        Ok(limit::source(seed, u64::from(word)) as usize)
    }

    /// The words of `slot` that hold `index`.
    pub fn entries(&self, slot: u16, index: u32) -> impl Iterator<Item = &Word> {
        let sessions = &self.sessions[usize::from(slot)];
        ways(sessions).filter(move |way| (way.load() >> 32) as u32 == index && way.load() != 0)
    }
}

/// Every word of a slot's sessions, or of its replays.
pub fn ways(sessions: &Sessions) -> impl Iterator<Item = &Word> {
    sessions.0.iter().flat_map(|bucket| &bucket.0)
}

/// The buckets of a tenant.
#[must_use]
pub fn rates(limits: &Limits) -> [&Word; 6] {
    let Limits {
        handshakes,
        unknown,
        grace: _,
        packets: [packets_in, packets_out],
        bytes: [bytes_in, bytes_out],
        errors: _,
    } = limits;
    [
        handshakes,
        unknown,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
    ]
}

/// The values of an array map, in this process's memory.
pub struct Values<T> {
    start: NonNull<T>,
    length: usize,
    values: PhantomData<T>,
}

// SAFETY: a shared slice of words, as those who open one vouch.
unsafe impl<T: Sync> Send for Values<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Values<T> {}

impl<T> Values<T> {
    /// # Safety
    ///
    /// The map's values must be `T`s, and made of [`Word`]s alone.
    unsafe fn open(path: &Path) -> Result<Self> {
        let map = MapData::from_pin(path)?;
        let info = map.info()?;
        ensure!(
            info.value_size() as usize == size_of::<T>(),
            "{} holds other values",
            path.display()
        );
        let length = info.max_entries() as usize;
        let bytes = (length * size_of::<T>()).try_into()?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping wherever the kernel puts it.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, map.fd(), 0)? };
        Ok(Self {
            start: start.cast(),
            length,
            values: PhantomData,
        })
    }
}

impl<T> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: mapped for this length until dropped, aligned to a page, and
        // made of words, which others may change meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for Values<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `open`, and no reference outlives this.
        let _ = unsafe { munmap(self.start.cast(), self.length * size_of::<T>()) };
    }
}
