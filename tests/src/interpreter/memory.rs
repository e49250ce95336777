//! Memory that a program sees: separate regions, each access within one.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Map values start here; everything that belongs to one run lies below, as
/// a packet's bounds are 32-bit fields of the context.
const VALUES: u64 = 1 << 32;

#[derive(Clone)]
pub struct Memory {
    /// By the address of their first byte.
    regions: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            regions: BTreeMap::new(),
            next: VALUES,
        }
    }
}

impl Memory {
    /// Adds a region and says where it is.
    pub fn add(&mut self, bytes: Vec<u8>) -> u64 {
        let at = self.next;
        // Aligned to a cache line, and never next to another one.
        self.next = (at + bytes.len() as u64 + 64).next_multiple_of(64);
        self.place(at, bytes);
        at
    }

    /// Puts a region at `at`, in place of the one that was there.
    pub fn place(&mut self, at: u64, bytes: Vec<u8>) {
        self.regions.insert(at, bytes);
    }

    pub fn bytes(&self, at: u64, length: usize) -> Result<&[u8]> {
        let region = self.regions.range(..=at).next_back();
        region
            .and_then(|(start, bytes)| bytes.get((at - start) as usize..)?.get(..length))
            .with_context(|| format!("{length} bytes at {at:#x} are outside of all memory"))
    }

    pub fn bytes_mut(&mut self, at: u64, length: usize) -> Result<&mut [u8]> {
        let region = self.regions.range_mut(..=at).next_back();
        region
            .and_then(|(start, bytes)| bytes.get_mut((at - start) as usize..)?.get_mut(..length))
            .with_context(|| format!("{length} bytes at {at:#x} are outside of all memory"))
    }

    /// `size` bytes as a number, at most eight.
    pub fn load(&self, at: u64, size: usize) -> Result<u64> {
        let mut number = [0; 8];
        number[..size].copy_from_slice(self.bytes(at, size)?);
        Ok(u64::from_le_bytes(number))
    }

    pub fn store(&mut self, at: u64, size: usize, value: u64) -> Result<()> {
        let bytes = self.bytes_mut(at, size)?;
        bytes.copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }
}
