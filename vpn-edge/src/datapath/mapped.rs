//! Maps as memory: the values that the programs see, without a system call.

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vpn_edge_common::{Clock, Flows, Limits, Sessions, Word};

/// What may lie in memory that the kernel and other processes change.
///
/// # Safety
///
/// Made of [`Word`]s alone, and a multiple of eight bytes long.
pub(super) unsafe trait Shared {}

// SAFETY: one word.
unsafe impl Shared for Word {}
// SAFETY: as its parts.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}
// SAFETY: words in nested arrays, by their definitions.
unsafe impl Shared for Sessions {}
// SAFETY: as above.
unsafe impl Shared for Flows {}
// SAFETY: as above.
unsafe impl Shared for Limits {}
// SAFETY: as above.
unsafe impl Shared for Clock {}

/// The values of an array map. To be written only if it was mapped so.
pub(super) struct Mapped<T> {
    start: NonNull<T>,
    length: usize,
    values: PhantomData<T>,
}

// SAFETY: a shared slice of words, which any thread may use.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps `length` values of `map`, which must be made with
    /// `BPF_F_MMAPABLE`.
    pub fn new(map: impl AsFd, length: u32, writable: bool) -> io::Result<Self> {
        let length = length as usize;
        let bytes = (length * size_of::<T>())
            .try_into()
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut protection = ProtFlags::PROT_READ;
        protection.set(ProtFlags::PROT_WRITE, writable);
        // SAFETY: a new mapping wherever the kernel puts it. It refuses maps
        // that are shorter, or not made for it.
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
        // SAFETY: mapped for this length until dropped, aligned to a page, and
        // made of words, which others may change meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference outlives this.
        let _ = unsafe { munmap(self.start.cast(), self.length * size_of::<T>()) };
    }
}
