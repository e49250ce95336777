//! What a decision asks of its surroundings: the maps and the clock.

use vpn_edge_common::{Allocation, Edge, Flows, Limits, Sessions, Word, Words};

use crate::forwarding::Forwarding;
use crate::mac1::Scratch;

/// The kernel's maps in the programs, and tables of the same values in tests
/// and tools. Each answer is nothing only where the key is out of range.
pub trait MapAccess<'m> {
    fn allocation(&self, port: u16) -> Option<&'m Allocation>;
    fn edge(&self) -> Option<&'m Edge>;
    fn sessions(&self, slot: u16) -> Option<&'m Sessions>;
    fn replays(&self, slot: u16) -> Option<&'m Sessions>;
    fn limits(&self, slot: u16) -> Option<&'m Limits>;
    fn flows(&self, slot: u16) -> Option<&'m Flows>;
    /// The bucket of [`crate::limit::source`].
    fn source(&self, bucket: u32) -> Option<&'m Word>;
    /// Whether the address is another edge node's.
    fn is_node(&self, address: Words) -> bool;
    /// Room for mac1's arithmetic: this CPU's own.
    fn scratch(&self) -> Option<&'m mut Scratch>;
    /// Room for a packet's way out: this CPU's own.
    fn forwarding(&self) -> Option<&'m mut Forwarding>;
    /// Nanoseconds of the monotonic clock, some milliseconds coarse.
    fn now(&self) -> u64;
    /// The [`vpn_edge_common::tick`] of now.
    fn tick(&self) -> u32;
}
