//! The pinned maps, typed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use vpn_edge_common::{Allocation, Counters, Edge, map, mode};

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

/// The maps, to be read: what the running programs see.
pub struct Reader {
    allocations: Array<MapData, Allocation>,
    edge: Array<MapData, Edge>,
    counters: PerCpuArray<MapData, Counters>,
}

impl Reader {
    /// Opens the maps pinned under `root` by whichever agent runs there.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPinned`] when there are none.
    pub fn open(root: &Path) -> Result<Self, MapError> {
        Self::in_folder(&super::folder(root).join("maps"))
    }

    fn in_folder(folder: &Path) -> Result<Self, MapError> {
        Ok(Self {
            allocations: Array::try_from(Map::Array(pinned(folder, map::ALLOCATIONS)?))
                .map_err(|source| unreadable(map::ALLOCATIONS, source))?,
            edge: Array::try_from(Map::Array(pinned(folder, map::EDGE)?))
                .map_err(|source| unreadable(map::EDGE, source))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(pinned(folder, map::COUNTERS)?))
                .map_err(|source| unreadable(map::COUNTERS, source))?,
        })
    }

    /// Every allocated port. Some 65,536 system calls.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a lookup.
    pub fn allocations(&self) -> Result<BTreeMap<u16, Allocation>, MapError> {
        let mut found = BTreeMap::new();
        for port in 0..=u16::MAX {
            if let Some(allocation) = self.allocation(port)? {
                found.insert(port, allocation);
            }
        }
        Ok(found)
    }

    /// The allocation of one port, if it has one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the lookup.
    pub fn allocation(&self, port: u16) -> Result<Option<Allocation>, MapError> {
        let value = self
            .allocations
            .get(&u32::from(port), 0)
            .map_err(|source| unreadable(map::ALLOCATIONS, source))?;
        Ok((value.mode != mode::NONE).then_some(value))
    }

    /// The node as the programs see it; all zero before an agent set it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the lookup.
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
            sum.ingress_packets += one.ingress_packets;
            sum.ingress_bytes += one.ingress_bytes;
            sum.egress_packets += one.egress_packets;
            sum.egress_bytes += one.egress_bytes;
            for (total, drops) in sum.drops.iter_mut().zip(one.drops) {
                *total += drops;
            }
            sum
        }))
    }
}

/// The maps, to be read and written. There is one writer: the agent.
pub struct Maps(Reader);

impl std::ops::Deref for Maps {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.0
    }
}

impl Maps {
    pub(super) fn open(folder: &Path) -> Result<Self, MapError> {
        Reader::in_folder(folder).map(Self)
    }

    pub(super) fn set_edge(&mut self, edge: Edge) -> Result<(), MapError> {
        self.0
            .edge
            .set(0, edge, 0)
            .map_err(|source| unwritable(map::EDGE, source))
    }

    /// Sets what happens to a port's packets from the next one on.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the update.
    pub fn set(&mut self, port: u16, allocation: Allocation) -> Result<(), MapError> {
        self.0
            .allocations
            .set(u32::from(port), allocation, 0)
            .map_err(|source| unwritable(map::ALLOCATIONS, source))
    }

    /// Takes a port's allocation away: its packets are the kernel's again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the update.
    pub fn clear(&mut self, port: u16) -> Result<(), MapError> {
        self.set(port, Allocation::default())
    }

    /// Sets a slot's counters to zero, for its next tenant.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the update.
    pub fn reset_counters(&mut self, slot: u16) -> Result<(), MapError> {
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
