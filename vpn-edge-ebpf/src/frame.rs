//! Bounded access to the bytes of a frame.
//!
//! A [`View`] is the only way to a byte. Its bounds are checked once, when it
//! is made; after that its length is a constant that the compiler holds every
//! access to, and that the verifier can follow.

use core::marker::PhantomData;

/// A frame in memory, from its Ethernet header on.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: usize,
    /// End of the bytes that can be read in place.
    end: usize,
    /// Length of the whole frame, which may be more than can be read in place.
    length: usize,
    merged: bool,
    bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Frame<'a> {
    /// The frame whose first bytes lie between `start` and `end`.
    ///
    /// # Safety
    ///
    /// `start..end` must be valid for reads and writes for `'a`.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(start: usize, end: usize, length: usize) -> Self {
        Self {
            start,
            end,
            length,
            merged: false,
            bytes: PhantomData,
        }
    }

    /// The same frame, said to hold several datagrams, one header for all.
    #[inline(always)]
    #[must_use]
    pub const fn merged_if(self, merged: bool) -> Self {
        Self { merged, ..self }
    }

    /// Whether it holds several datagrams, of which only the first can be seen.
    #[inline(always)]
    #[must_use]
    pub const fn is_merged(&self) -> bool {
        self.merged
    }

    /// The frame that is all of `bytes`.
    #[must_use]
    pub fn of(bytes: &'a mut [u8]) -> Self {
        let range = bytes.as_mut_ptr_range();
        // SAFETY: the range is that of a live exclusive slice.
        unsafe { Self::new(range.start as usize, range.end as usize, bytes.len()) }
    }

    /// Where the bytes begin and end that can be read in place.
    #[inline(always)]
    #[must_use]
    pub const fn bounds(&self) -> (usize, usize) {
        (self.start, self.end)
    }

    /// Length of the whole frame in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// `N` bytes from `offset` on, or nothing where the frame ends before.
    #[inline(always)]
    #[must_use]
    pub fn view<const N: usize>(&self, offset: usize) -> Option<View<'a, N>> {
        let start = self.start + offset;
        if start + N > self.end {
            return None;
        }
        Some(View {
            start,
            bytes: PhantomData,
        })
    }
}

/// Exactly `N` bytes of a frame.
///
/// Numbers are in host order; arrays are as on the wire.
#[derive(Clone, Copy)]
pub struct View<'a, const N: usize> {
    start: usize,
    bytes: PhantomData<&'a mut [u8; N]>,
}

impl<const N: usize> View<'_, N> {
    #[inline(always)]
    #[must_use]
    pub fn u8<const AT: usize>(&self) -> u8 {
        const { assert!(AT < N) };
        // SAFETY: `Frame::view` found N bytes from `start`, and AT < N.
        unsafe { *((self.start + AT) as *const u8) }
    }

    #[inline(always)]
    #[must_use]
    pub fn u16<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= N) };
        // SAFETY: as in `u8`, for two bytes.
        u16::from_be(unsafe { load_u16::<AT>(self.start) })
    }

    /// Four bytes in wire order, as the integer of the same memory.
    #[inline(always)]
    #[must_use]
    pub fn word<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= N) };
        // SAFETY: as in `u8`, for four bytes.
        unsafe { load_u32::<AT>(self.start) }
    }

    /// Eight bytes in wire order, as the integer of the same memory.
    #[inline(always)]
    #[must_use]
    pub fn double<const AT: usize>(&self) -> u64 {
        const { assert!(AT + 8 <= N) };
        // SAFETY: as in `u8`, for eight bytes.
        unsafe { load_u64::<AT>(self.start) }
    }

    /// Writes `bytes`, unaligned.
    #[inline(always)]
    pub fn write<const AT: usize, const LENGTH: usize>(&self, bytes: [u8; LENGTH]) {
        const { assert!(AT + LENGTH <= N) };
        // SAFETY: as in `u8`; the frame is exclusively borrowed for its life,
        // and byte arrays have no alignment.
        unsafe { *((self.start + AT) as *mut [u8; LENGTH]) = bytes };
    }

    /// Writes an Ethernet header's addresses, given as words of the wire.
    #[inline(always)]
    pub fn write_addresses(&self, [first, second, third]: [u32; 3]) {
        self.write_word::<0>(first);
        self.write_word::<4>(second);
        self.write_word::<8>(third);
    }

    /// Writes `value` in network order.
    #[inline(always)]
    pub fn write_u16<const AT: usize>(&self, value: u16) {
        const { assert!(AT + 2 <= N) };
        // SAFETY: as in `write`.
        unsafe { store_u16::<AT>(self.start, value.to_be()) };
    }

    /// Writes four bytes given in wire order.
    #[inline(always)]
    pub fn write_word<const AT: usize>(&self, value: u32) {
        const { assert!(AT + 4 <= N) };
        // SAFETY: as in `write`.
        unsafe { store_u32::<AT>(self.start, value) };
    }

    /// Writes eight bytes given in wire order.
    #[inline(always)]
    pub fn write_double<const AT: usize>(&self, value: u64) {
        const { assert!(AT + 8 <= N) };
        // SAFETY: as in `write`.
        unsafe { store_u64::<AT>(self.start, value) };
    }

    /// Writes one byte.
    #[inline(always)]
    pub fn write_u8<const AT: usize>(&self, value: u8) {
        const { assert!(AT < N) };
        // SAFETY: as in `write`.
        unsafe { *((self.start + AT) as *mut u8) = value };
    }
}

/// `number & MASK`, in the machine's own words: LLVM leaves a mask out where it
/// knows that the number is small, and the verifier may not know.
#[cfg(target_arch = "bpf")]
#[inline(always)]
#[must_use]
pub fn masked<const MASK: usize>(mut number: usize) -> usize {
    // SAFETY: arithmetic on a register.
    unsafe {
        core::arch::asm!("{number} &= {mask}", number = inout(reg) number, mask = const MASK,
            options(pure, nomem, nostack));
    }
    number
}

/// As in the kernel.
#[cfg(not(target_arch = "bpf"))]
#[must_use]
pub fn masked<const MASK: usize>(number: usize) -> usize {
    number & MASK
}

// LLVM splits an access without known alignment into single bytes, though the
// kernel allows it whole on every machine that it JITs for. One instruction of
// assembly says what is meant.
#[cfg(target_arch = "bpf")]
mod access {
    use core::arch::asm;

    #[inline(always)]
    pub unsafe fn load_u16<const AT: usize>(start: usize) -> u16 {
        let value: u64;
        // SAFETY: the caller vouches for two readable bytes.
        unsafe {
            asm!("{value} = *(u16 *)({start} + {at})", value = out(reg) value,
                start = in(reg) start, at = const AT, options(readonly, nostack));
        }
        value as u16
    }

    #[inline(always)]
    pub unsafe fn load_u32<const AT: usize>(start: usize) -> u32 {
        let value: u64;
        // SAFETY: the caller vouches for four readable bytes.
        unsafe {
            asm!("{value} = *(u32 *)({start} + {at})", value = out(reg) value,
                start = in(reg) start, at = const AT, options(readonly, nostack));
        }
        value as u32
    }

    #[inline(always)]
    pub unsafe fn load_u64<const AT: usize>(start: usize) -> u64 {
        let value: u64;
        // SAFETY: the caller vouches for eight readable bytes.
        unsafe {
            asm!("{value} = *(u64 *)({start} + {at})", value = out(reg) value,
                start = in(reg) start, at = const AT, options(readonly, nostack));
        }
        value
    }

    #[inline(always)]
    pub unsafe fn store_u64<const AT: usize>(start: usize, value: u64) {
        // SAFETY: the caller vouches for eight writable bytes.
        unsafe {
            asm!("*(u64 *)({start} + {at}) = {value}", value = in(reg) value,
                start = in(reg) start, at = const AT, options(nostack));
        }
    }

    #[inline(always)]
    pub unsafe fn store_u16<const AT: usize>(start: usize, value: u16) {
        let value = u64::from(value);
        // SAFETY: the caller vouches for two writable bytes.
        unsafe {
            asm!("*(u16 *)({start} + {at}) = {value}", value = in(reg) value,
                start = in(reg) start, at = const AT, options(nostack));
        }
    }

    #[inline(always)]
    pub unsafe fn store_u32<const AT: usize>(start: usize, value: u32) {
        let value = u64::from(value);
        // SAFETY: the caller vouches for four writable bytes.
        unsafe {
            asm!("*(u32 *)({start} + {at}) = {value}", value = in(reg) value,
                start = in(reg) start, at = const AT, options(nostack));
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
mod access {
    pub unsafe fn load_u16<const AT: usize>(start: usize) -> u16 {
        // SAFETY: the caller vouches for two readable bytes.
        unsafe { ((start + AT) as *const u16).read_unaligned() }
    }

    pub unsafe fn load_u32<const AT: usize>(start: usize) -> u32 {
        // SAFETY: the caller vouches for four readable bytes.
        unsafe { ((start + AT) as *const u32).read_unaligned() }
    }

    pub unsafe fn load_u64<const AT: usize>(start: usize) -> u64 {
        // SAFETY: the caller vouches for eight readable bytes.
        unsafe { ((start + AT) as *const u64).read_unaligned() }
    }

    pub unsafe fn store_u64<const AT: usize>(start: usize, value: u64) {
        // SAFETY: the caller vouches for eight writable bytes.
        unsafe { ((start + AT) as *mut u64).write_unaligned(value) };
    }

    pub unsafe fn store_u16<const AT: usize>(start: usize, value: u16) {
        // SAFETY: the caller vouches for two writable bytes.
        unsafe { ((start + AT) as *mut u16).write_unaligned(value) };
    }

    pub unsafe fn store_u32<const AT: usize>(start: usize, value: u32) {
        // SAFETY: the caller vouches for four writable bytes.
        unsafe { ((start + AT) as *mut u32).write_unaligned(value) };
    }
}

use access::{load_u16, load_u32, load_u64, store_u16, store_u32, store_u64};
