//! The programs in the kernel, to be run over packets, and their maps' memory.

use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::Path;
use std::ptr::NonNull;

use anyhow::{Context, Result, anyhow, ensure};
use aya::TestRun;
use aya::maps::MapData;
use aya::programs::{SchedClassifier, TestRunOptions, TestRunResult, Xdp};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vpn_edge::datapath::{self, Datapath};
use vpn_edge_common::{FLOWS, Flow, Flows, Limits, Sessions, Word, map, program};
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
    /// Interface that it comes in by; none is lo. XDP takes those alone that
    /// have an XDP program.
    pub interface: Option<u32>,
    /// These two in tc alone.
    pub gso_segs: u32,
    pub gso_size: u32,
}

/// What the programs answered, and the frame as they left it.
pub type Answer = (u32, Vec<u8>);

/// Runs the program called `name` over `packet`.
///
/// # Errors
///
/// When the kernel refuses the run.
pub fn run(datapath: &mut Datapath, name: &str, packet: &[u8], skb: Skb) -> Result<Answer> {
    let is_xdp = name == datapath.xdp();
    let program = datapath.ebpf().program(name).context("no such program")?;
    let mut out = vec![0; packet.len() + 64];
    let (verdict, length) = if is_xdp {
        let program: &Xdp = program.try_into()?;
        let context = skb.interface.map(|interface| xdp_md(interface, packet));
        test_run(
            program,
            packet,
            context.as_ref().map(<[u8; 24]>::as_slice),
            &mut out,
        )?
    } else {
        let program: &SchedClassifier = program.try_into()?;
        test_run(program, packet, Some(&skb.bytes()), &mut out)?
    };
    out.truncate(length);
    Ok((verdict, out))
}

impl Hook {
    /// Name of the hook's ingress program.
    #[must_use]
    pub fn ingress(self, datapath: &Datapath) -> &'static str {
        match self {
            Self::Xdp => datapath.xdp(),
            Self::Tc => program::INGRESS_TC,
        }
    }
}

impl Skb {
    /// As a `struct __sk_buff`, in which a test run takes but a few fields.
    fn bytes(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        let interface = self.interface.unwrap_or_default();
        bytes[40..44].copy_from_slice(&interface.to_ne_bytes());
        bytes[164..168].copy_from_slice(&self.gso_segs.to_ne_bytes());
        bytes[176..180].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes
    }
}

/// A `struct xdp_md` for a packet that comes in by `interface`.
fn xdp_md(interface: u32, packet: &[u8]) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
    bytes[12..16].copy_from_slice(&interface.to_ne_bytes());
    bytes
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
    pub flows: Values<Flows>,
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
                flows: Values::open(&folder.join(map::FLOWS))?,
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

    /// Forgets every client of a tenant.
    pub fn forget_flows(&self, slot: u16) {
        for word in self.flows[usize::from(slot)].0.iter().flat_map(parts) {
            word.store(0);
        }
    }

    /// Where handshakes of the packet's source are charged: an IPv4 address or
    /// half an IPv6 one, and the port too if another node sent it on.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the lookup.
    pub fn source_of(datapath: &Datapath, packet: &Packet) -> Result<usize> {
        let edge = datapath.maps.edge()?;
        let of = match packet.source {
            IpAddr::V4(v4) => u64::from(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let [high, _] = vpn_edge_common::words(&v6.octets());
                high
            }
        };
        let (first, port) = (u32::from(edge.hop_ports), packet.ports.0);
        let sent_on = first != 0
            && (first..first + FLOWS as u32).contains(&port.into())
            && datapath.maps.nodes()?.contains(&packet.source);
        let of = if sent_on {
            of ^ u64::from(port) << 32
        } else {
            of
        };
        Ok(limit::source(edge.seed, of) as usize)
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

/// Every word of a flow.
pub fn parts(flow: &Flow) -> impl Iterator<Item = &Word> {
    let Flow {
        address,
        key,
        seen,
        indexes,
    } = flow;
    address.iter().chain([key, seen, indexes])
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
