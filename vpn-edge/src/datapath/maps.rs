//! Typed access to the pinned maps.

mod nodes;
mod session;

pub use session::SessionTimes;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues, RingBuf};
use vpn_edge_common::{
    Address, Allocation, Clock, Counters, Edge, FLOWS, Flow, Flows, Limits, SLOTS, SOURCES,
    Sessions, Word, address, map, mapped, mode, tick,
};
use vpn_edge_ebpf::flow;
use vpn_edge_ebpf::session::LIFE;
use vpn_edge_ebpf::tables::Tables;

use super::mapped::Mapped;

/// Why a map cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(
        "nothing is pinned at {0}: start `vpn-edge standalone`, or name its folder with --bpffs"
    )]
    NotPinned(PathBuf),
    #[error("cannot open the map pinned at {path}: {source}")]
    Open {
        path: PathBuf,
        source: aya::maps::MapError,
    },
    #[error("cannot map {name} into memory: {source}")]
    SlotState {
        name: &'static str,
        source: io::Error,
    },
    #[error("cannot read map {name}: {source}")]
    Read {
        name: &'static str,
        source: aya::maps::MapError,
    },
    #[error("cannot write map {name}: {source}")]
    Write {
        name: &'static str,
        source: aya::maps::MapError,
    },
}

const PORTS: u32 = 1 << 16;
const WORDS: usize = size_of::<Allocation>() / 8;
/// The word of [`Allocation`] that publishes it.
const HEAD: usize = 0;
/// The word of [`Allocation`] that may change while the port is open.
const RATES: usize = std::mem::offset_of!(Allocation, rates) / 8;

type Cell = [Word; WORDS];

/// What happens to a slot's memory when its allocation changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It is kept.
    Keep,
    /// Sessions are removed: the gateway has other keys.
    Forget,
    /// Everything is zeroed, counters too: the slot gets another tenant.
    Reset,
}

/// A change of the port map. See [`Maps::publish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub port: u16,
    /// The new value; with mode [`mode::NONE`] the allocation is removed.
    pub allocation: Allocation,
    pub memory: SlotState,
    /// Whether packets of unknown sessions are let in for the life of a session: the
    /// gateway may have announced sessions that these maps did not see.
    pub grace: bool,
}

/// A client's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlow {
    pub client: SocketAddr,
    /// Whether the client is another edge node, which forwards for a client of its
    /// own.
    pub edge_node: bool,
    /// The node's address that it sends to.
    pub own: Option<IpAddr>,
    /// The hop port assigned to it, if the gateway is on another node.
    pub hop_port: u16,
    /// Time since its last packet; if no flow is kept for replies, since its last
    /// handshake.
    pub seen: Duration,
    /// Time since the last recorded reply, if there was one.
    pub proven: Option<Duration>,
}

/// The address as a standard library type.
#[must_use]
pub fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// The address in the form of the maps.
pub(super) fn to_address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The maps as the running programs see them, read-only.
pub struct Reader {
    allocations: Mapped<Cell>,
    sessions: Mapped<Sessions>,
    replays: Mapped<Sessions>,
    limits: Mapped<Limits>,
    flows: Mapped<Flows>,
    sources: Mapped<Word>,
    clock: Mapped<Clock>,
    edge: Array<MapData, Edge>,
    counters: PerCpuArray<MapData, Counters>,
    /// None if the maps are from a version without this map.
    nodes: Option<HashMap<MapData, Address, u8>>,
}

impl Reader {
    /// Opens the maps that an agent pinned under `root`.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPinned`] if there are none.
    pub fn open(root: &Path) -> Result<Self, MapError> {
        Self::in_folder(&super::folder(root).join("maps"), false)
    }

    fn in_folder(folder: &Path, writable: bool) -> Result<Self, MapError> {
        fn memory<T: super::mapped::Shared>(
            folder: &Path,
            name: &'static str,
            length: u32,
            writable: bool,
        ) -> Result<Mapped<T>, MapError> {
            let map = pinned(folder, name)?;
            Mapped::new(map.fd(), length, writable)
                .map_err(|source| MapError::SlotState { name, source })
        }
        let nodes = match pinned(folder, map::NODES) {
            Ok(map) => Some(
                HashMap::try_from(Map::HashMap(map))
                    .map_err(|source| unreadable(map::NODES, source))?,
            ),
            Err(MapError::NotPinned(_)) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            allocations: memory(folder, map::ALLOCATIONS, PORTS, writable)?,
            sessions: memory(folder, map::SESSIONS, SLOTS, writable)?,
            replays: memory(folder, map::REPLAYS, SLOTS, writable)?,
            limits: memory(folder, map::LIMITS, SLOTS, writable)?,
            flows: memory(folder, map::FLOWS, SLOTS, writable)?,
            sources: memory(folder, map::SOURCES, SOURCES, writable)?,
            clock: memory(folder, map::CLOCK, 1, writable)?,
            edge: Array::try_from(Map::Array(pinned(folder, map::EDGE)?))
                .map_err(|source| unreadable(map::EDGE, source))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(pinned(folder, map::COUNTERS)?))
                .map_err(|source| unreadable(map::COUNTERS, source))?,
            nodes,
        })
    }

    /// All allocated ports.
    #[must_use]
    pub fn allocations(&self) -> BTreeMap<u16, Allocation> {
        (0..=u16::MAX)
            .filter_map(|port| Some((port, self.allocation(port)?)))
            .collect()
    }

    /// The allocation of a port, if it has one.
    ///
    /// It may be changed during the read: only [`Maps`], the one writer, reads its
    /// parts consistently.
    #[must_use]
    pub fn allocation(&self, port: u16) -> Option<Allocation> {
        let cell = &self.allocations[usize::from(port)];
        let allocation = from_words(std::array::from_fn(|at| cell[at].load()));
        (allocation.mode != mode::NONE).then_some(allocation)
    }

    /// The node's data for the programs; all zeros before an agent has set it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the lookup.
    pub fn edge(&self) -> Result<Edge, MapError> {
        self.edge
            .get(&0, 0)
            .map_err(|source| unreadable(map::EDGE, source))
    }

    /// A slot's counters, summed over all CPUs.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the lookup.
    pub fn counters(&self, slot: u16) -> Result<Counters, MapError> {
        let values = self
            .counters
            .get(&u32::from(slot), 0)
            .map_err(|source| unreadable(map::COUNTERS, source))?;
        Ok(values.iter().fold(Counters::default(), |mut sum, one| {
            sum.add(one);
            sum
        }))
    }

    /// Number of session indexes of a slot under which its gateway accepts packets.
    #[must_use]
    pub fn sessions(&self, slot: u16) -> usize {
        let now = self.tick();
        let sessions = &self.sessions[usize::from(slot)];
        ways(sessions).filter(|way| way.load() as u32 > now).count()
    }

    /// The current tick of the programs. If all gateways are on other nodes, the
    /// programs do not record it; it is then accurate to some seconds.
    #[must_use]
    pub fn tick(&self) -> u32 {
        let clock = &self.clock[0];
        let told = match clock.jiffies.load() {
            0 => first_jiffies(),
            told => told,
        };
        let since = monotonic().saturating_sub(clock.nanoseconds.load());
        tick(told + since / jiffy())
    }

    /// The clients whose packets recently arrived for a slot, unordered.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the lookup.
    pub fn flows(&self, slot: u16) -> Result<Vec<ClientFlow>, MapError> {
        let edge = self.edge()?;
        let now = self.tick();
        let flows = &self.flows[usize::from(slot)];
        let ago = |tick: u32| tick_length() * now.saturating_sub(tick);
        let known = (0..FLOWS).filter_map(|at| Some((at, flow::at(flows, at, edge.seed)?)));
        let recent = known.filter(|(_, known)| known.seen().0 + edge.session_life > now);
        recent
            .map(|(at, known)| {
                let (seen, proven) = known.seen();
                let client =
                    SocketAddr::new(ip(address(known.client.address)), known.client.port());
                Ok(ClientFlow {
                    client,
                    edge_node: self.is_edge_node(&edge, client)?,
                    own: edge
                        .own
                        .get(usize::from(known.own))
                        .map(|own| ip(own.address)),
                    hop_port: edge.hop_ports.wrapping_add(at as u16),
                    seen: ago(seen),
                    proven: (proven != 0).then(|| ago(proven)),
                })
            })
            .collect()
    }

    /// The remaining grace period of a slot; none if there is none.
    #[must_use]
    pub fn grace(&self, slot: u16) -> Option<Duration> {
        let until = self.limits[usize::from(slot)].grace.load();
        let left = until.checked_sub(monotonic())?;
        Some(Duration::from_nanos(left))
    }

    /// A copy of the maps for the host's build of the programs. Decisions on it
    /// change nothing in the kernel.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a lookup.
    pub fn snapshot(&self) -> Result<Tables, MapError> {
        let mut tables = Tables::default();
        tables.edge = self.edge()?;
        tables.now = monotonic();
        tables.tick = self.tick();
        copy(self.sources.iter(), tables.sources.iter());
        let nodes = self.nodes()?.into_iter().map(to_address);
        tables.nodes = nodes.map(|node| vpn_edge_common::words(&node)).collect();
        for (port, allocation) in self.allocations() {
            tables.insert(port, allocation);
            let slot = usize::from(allocation.slot);
            let key = &allocation.slot;
            copy(ways(&self.sessions[slot]), ways(&tables.sessions[key]));
            copy(ways(&self.replays[slot]), ways(&tables.replays[key]));
            copy(words(&self.limits[slot]), words(&tables.limits[key]));
            copy(parts(&self.flows[slot]), parts(&tables.flows[key]));
        }
        Ok(tables)
    }
}

fn ways(sessions: &Sessions) -> impl Iterator<Item = &Word> {
    sessions.0.iter().flat_map(|bucket| &bucket.0)
}

fn words(limits: &Limits) -> impl Iterator<Item = &Word> {
    let Limits {
        handshakes,
        unknown,
        grace,
        packets,
        bytes,
        errors,
    } = limits;
    [handshakes, unknown, grace, errors]
        .into_iter()
        .chain(packets)
        .chain(bytes)
}

fn parts(flows: &Flows) -> impl Iterator<Item = &Word> {
    flows.0.iter().flat_map(|flow| {
        let Flow {
            address,
            key,
            seen,
            indexes,
        } = flow;
        address.iter().chain([key, seen, indexes])
    })
}

fn copy<'a>(from: impl Iterator<Item = &'a Word>, to: impl Iterator<Item = &'a Word>) {
    for (from, to) in from.zip(to) {
        to.store(from.load());
    }
}

/// Sampled drops. One reader at a time: two would each get only a part.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Opens the ring buffer pinned under `root`.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPinned`] if there is none.
    pub fn open(root: &Path) -> Result<Self, MapError> {
        let map = pinned(&super::folder(root).join("maps"), map::EVENTS)?;
        let events = RingBuf::try_from(Map::RingBuf(map))
            .map_err(|source| unreadable(map::EVENTS, source))?;
        Ok(Self(events))
    }

    /// Takes the next event, if there is one.
    pub fn take(&mut self) -> Option<vpn_edge_common::Event> {
        let item = self.0.next()?;
        let bytes: &[u8; size_of::<vpn_edge_common::Event>()] = item.as_ref().try_into().ok()?;
        // SAFETY: plain integers of this length, copied out unaligned.
        Some(unsafe {
            bytes
                .as_ptr()
                .cast::<vpn_edge_common::Event>()
                .read_unaligned()
        })
    }
}

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// The maps with write access. There is one writer: the agent.
pub struct Maps(Reader);

impl std::ops::Deref for Maps {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.0
    }
}

impl Maps {
    pub(super) fn open(folder: &Path) -> Result<Self, MapError> {
        Reader::in_folder(folder, true).map(Self)
    }

    pub(super) fn set_edge(&mut self, edge: Edge) -> Result<(), MapError> {
        self.0
            .edge
            .set(0, edge, 0)
            .map_err(|source| unwritable(map::EDGE, source))
    }

    /// Applies the changes so that programs on all CPUs see each allocation either
    /// completely as before or completely as after.
    ///
    /// A port that gets another gateway is closed by one store; after all programs
    /// that may have seen it open have ended, the rest is written; after all programs
    /// that may have read the rest before have ended, one store opens it. All ports
    /// to close are closed first, within microseconds.
    ///
    /// # Errors
    ///
    /// If counters cannot be reset; their ports stay closed.
    pub fn publish(&mut self, changes: &[Change]) -> Result<(), MapError> {
        let mut rewritten = Vec::new();
        for change in changes {
            let cell = &self.0.allocations[usize::from(change.port)];
            let old: [u64; WORDS] = std::array::from_fn(|at| cell[at].load());
            let new = to_words(change.allocation);
            let same_rest = (0..WORDS).all(|at| at == HEAD || at == RATES || old[at] == new[at]);
            let same_slot = from_words(old).slot == change.allocation.slot;
            if same_rest && same_slot && change.memory == SlotState::Keep && !change.grace {
                cell[RATES].store(new[RATES]);
                cell[HEAD].store(new[HEAD]);
            } else {
                let old = from_words(old);
                let closed = Allocation {
                    mode: old.mode.min(change.allocation.mode).min(mode::CLOSED),
                    ..old
                };
                cell[HEAD].store(to_words(closed)[HEAD]);
                rewritten.push((change, new));
            }
        }
        if rewritten.is_empty() {
            return Ok(());
        }
        await_programs();
        for (change, new) in &rewritten {
            let cell = &self.0.allocations[usize::from(change.port)];
            for at in (0..WORDS).filter(|&at| at != HEAD) {
                cell[at].store(new[at]);
            }
            self.remember(change)?;
        }
        await_programs();
        for (change, new) in rewritten {
            self.0.allocations[usize::from(change.port)][HEAD].store(new[HEAD]);
        }
        Ok(())
    }

    /// Closes a port immediately, leaving the rest of its allocation unchanged.
    pub fn close(&mut self, port: u16) {
        if let Some(allocation) = self.0.allocation(port) {
            let closed = Allocation {
                mode: mode::CLOSED,
                ..allocation
            };
            self.0.allocations[usize::from(port)][HEAD].store(to_words(closed)[HEAD]);
        }
    }

    fn remember(&mut self, change: &Change) -> Result<(), MapError> {
        if change.allocation.mode == mode::NONE {
            // It has no slot.
            return Ok(());
        }
        let slot = change.allocation.slot;
        let limits = &self.0.limits[usize::from(slot)];
        if change.memory != SlotState::Keep {
            let (sessions, replays) = (&self.0.sessions, &self.0.replays);
            let ways = [sessions, replays].map(|map| ways(&map[usize::from(slot)]));
            for word in ways.into_iter().flatten().chain(words(limits)) {
                word.store(0);
            }
            for word in parts(&self.0.flows[usize::from(slot)]) {
                word.store(0);
            }
        }
        if change.grace {
            limits.grace.store(monotonic() + LIFE);
        }
        if change.memory == SlotState::Reset {
            self.reset_counters(slot)?;
        }
        Ok(())
    }

    fn reset_counters(&mut self, slot: u16) -> Result<(), MapError> {
        let failed = |source| unwritable(map::COUNTERS, source);
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(error.into()))?;
        let zero = PerCpuValues::try_from(vec![Counters::default(); cpus])
            .map_err(|error| failed(error.into()))?;
        self.0
            .counters
            .set(u32::from(slot), zero, 0)
            .map_err(failed)
    }
}

/// Returns when every program that is running now has ended.
fn await_programs() {
    // Programs run in RCU read-side critical sections, which this command waits for.
    const GLOBAL: libc::c_long = 1;
    // SAFETY: a system call without pointers.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if waited != 0 {
        // Kernels with nohz_full refuse it. No program runs that long.
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn to_words(allocation: Allocation) -> [u64; WORDS] {
    // SAFETY: the same size, integers on both sides, and no padding.
    unsafe { std::mem::transmute(allocation) }
}

fn from_words(words: [u64; WORDS]) -> Allocation {
    // SAFETY: as above.
    unsafe { std::mem::transmute(words) }
}

/// Nanoseconds of the clock that programs read, which may lag by up to a jiffy for
/// them.
#[must_use]
pub fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("every Linux has this clock");
    Duration::from(now).as_nanos() as u64
}

/// The length of a jiffy in nanoseconds.
fn jiffy() -> u64 {
    // The coarse clocks advance once per jiffy.
    let length = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .expect("every Linux has this clock");
    (Duration::from(length).as_nanos() as u64).max(1)
}

/// The initial value of jiffies at boot: five minutes before the lower half wraps
/// (`INITIAL_JIFFIES`).
fn first_jiffies() -> u64 {
    const BEFORE: u64 = 300 * 1_000_000_000;
    (1 << 32) - BEFORE / jiffy()
}

/// The length of a [`tick`].
#[must_use]
pub fn tick_length() -> Duration {
    let jiffies = (1..).find(|&jiffies| tick(jiffies) == 1).unwrap_or(1);
    Duration::from_nanos(jiffies * jiffy())
}

/// [`LIFE`] in ticks, plus one, because both ends fall within a tick.
pub(super) fn session_life() -> u32 {
    tick(LIFE / jiffy()) + 1
}

/// The kernel's ID of a map pinned under `root`.
pub(super) fn id(root: &Path, name: &'static str) -> Result<u32, MapError> {
    let map = pinned(&super::folder(root).join("maps"), name)?;
    let info = map.info().map_err(|source| unreadable(name, source))?;
    Ok(info.id())
}

fn pinned(folder: &Path, name: &'static str) -> Result<MapData, MapError> {
    let path = folder.join(name);
    if !path.exists() {
        return Err(MapError::NotPinned(folder.into()));
    }
    MapData::from_pin(&path).map_err(|source| MapError::Open { path, source })
}

fn unreadable(name: &'static str, source: aya::maps::MapError) -> MapError {
    MapError::Read { name, source }
}

fn unwritable(name: &'static str, source: aya::maps::MapError) -> MapError {
    MapError::Write { name, source }
}
