//! Memory-mapped maps: reading and writing values without system calls.

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vpn_edge_common::{Clock, Flows, Limits, Sessions, Word};

/// Types for memory that the kernel and other processes change.
///
/// # Safety
///
/// Must consist of [`Word`]s only, with a size that is a multiple of eight bytes.
pub(super) unsafe trait Shared {}

// SAFETY: a single word.
unsafe impl Shared for Word {}
// SAFETY: consists of its elements.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}
// SAFETY: words in nested arrays, by their definitions.
unsafe impl Shared for Sessions {}
// SAFETY: as above.
unsafe impl Shared for Flows {}
// SAFETY: as above.
unsafe impl Shared for Limits {}
// SAFETY: as above.
unsafe impl Shared for Clock {}

/// The values of an array map. Must be written only if mapped as writable.
pub(super) struct Mapped<T> {
    start: NonNull<T>,
    length: usize,
    values: PhantomData<T>,
}

// SAFETY: a shared slice of words, which any thread may access.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps `length` values of `map`, which must be created with `BPF_F_MMAPABLE`.
    pub fn new(map: impl AsFd, length: u32, writable: bool) -> io::Result<Self> {
        let length = length as usize;
        let bytes = (length * size_of::<T>())
            .try_into()
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut protection = ProtFlags::PROT_READ;
        protection.set(ProtFlags::PROT_WRITE, writable);
        // SAFETY: a new mapping at an address chosen by the kernel, which refuses
        // maps that are shorter or not mappable.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, map, 0)? };
        Ok(Self {
            start: start.cast(),
            length,
            values: PhantomData,
        })
    }
}

impl<T: Shared> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: mapped with this length until dropped, page-aligned, and made of
        // words, which others may change at the same time.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference outlives this.
        let _ = unsafe { munmap(self.start.cast(), self.length * size_of::<T>()) };
    }
}
