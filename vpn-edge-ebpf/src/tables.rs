//! The maps' values in ordinary memory: a [`MapAccess`] for tests and tools.

use core::cell::UnsafeCell;
use std::collections::{BTreeMap, BTreeSet};

use vpn_edge_common::{Allocation, Edge, Flows, Limits, SOURCES, Sessions, Word, Words};

use crate::forwarding::Forwarding;
use crate::mac1::Scratch;
use crate::map_access::MapAccess;

/// A world that stands still until it is changed.
pub struct Tables {
    pub allocations: BTreeMap<u16, Allocation>,
    pub edge: Edge,
    /// By slot, as are the next; all of them zero where there is none.
    pub sessions: BTreeMap<u16, Sessions>,
    pub replays: BTreeMap<u16, Sessions>,
    pub limits: BTreeMap<u16, Limits>,
    pub flows: BTreeMap<u16, Flows>,
    pub sources: Vec<Word>,
    /// Addresses of other edge nodes.
    pub nodes: BTreeSet<Words>,
    /// Nanoseconds.
    pub now: u64,
    pub tick: u32,
    /// What every other port has.
    none: Allocation,
    scratch: UnsafeCell<Scratch>,
    forwarding: UnsafeCell<Forwarding>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            allocations: BTreeMap::new(),
            edge: Edge::default(),
            sessions: BTreeMap::new(),
            replays: BTreeMap::new(),
            limits: BTreeMap::new(),
            flows: BTreeMap::new(),
            sources: (0..SOURCES).map(|_| Word::default()).collect(),
            nodes: BTreeSet::new(),
            now: 0,
            tick: 0,
            none: Allocation::default(),
            scratch: UnsafeCell::default(),
            forwarding: UnsafeCell::default(),
        }
    }
}

impl Tables {
    /// Adds a port with nothing known of its sessions.
    pub fn insert(&mut self, port: u16, allocation: Allocation) {
        self.allocations.insert(port, allocation);
        self.sessions.entry(allocation.slot).or_default();
        self.replays.entry(allocation.slot).or_default();
        self.limits.entry(allocation.slot).or_default();
        self.flows.entry(allocation.slot).or_default();
    }
}

impl<'m> MapAccess<'m> for &'m Tables {
    fn allocation(&self, port: u16) -> Option<&'m Allocation> {
        Some(self.allocations.get(&port).unwrap_or(&self.none))
    }

    fn edge(&self) -> Option<&'m Edge> {
        Some(&self.edge)
    }

    fn sessions(&self, slot: u16) -> Option<&'m Sessions> {
        self.sessions.get(&slot)
    }

    fn replays(&self, slot: u16) -> Option<&'m Sessions> {
        self.replays.get(&slot)
    }

    fn limits(&self, slot: u16) -> Option<&'m Limits> {
        self.limits.get(&slot)
    }

    fn flows(&self, slot: u16) -> Option<&'m Flows> {
        self.flows.get(&slot)
    }

    fn source(&self, bucket: u32) -> Option<&'m Word> {
        self.sources.get(bucket as usize)
    }

    fn is_node(&self, address: Words) -> bool {
        self.nodes.contains(&address)
    }

    fn scratch(&self) -> Option<&'m mut Scratch> {
        // SAFETY: a decision asks once and is done with it before it ends, and
        // the cell keeps tables to one thread.
        Some(unsafe { &mut *self.scratch.get() })
    }

    fn forwarding(&self) -> Option<&'m mut Forwarding> {
        // SAFETY: as above; what it gives back is read before the next decision.
        Some(unsafe { &mut *self.forwarding.get() })
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn tick(&self) -> u32 {
        self.tick
    }
}
