//! Words that are shared while they change.

use core::cell::UnsafeCell;

/// Eight bytes that programs on several CPUs and user space read and write
/// whole, and in no particular order.
///
/// An atomic by another name: LLVM has none for BPF, where an aligned volatile
/// access is one instruction and as good.
#[repr(transparent)]
#[derive(Default)]
pub struct Word(UnsafeCell<u64>);

// SAFETY: every access is one whole load, store or exchange.
unsafe impl Sync for Word {}

#[cfg(target_arch = "bpf")]
impl Word {
    #[inline(always)]
    #[must_use]
    pub fn load(&self) -> u64 {
        // SAFETY: the reference vouches for eight aligned bytes.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn store(&self, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// Stores `new` if the word is still `old`, and says whether it was.
    #[inline(always)]
    #[must_use]
    pub fn exchange(&self, old: u64, new: u64) -> bool {
        let found: u64;
        // SAFETY: as in `load`. In every kernel since 5.12.
        unsafe {
            core::arch::asm!("r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) self.0.get(), new = in(reg) new,
                inout("r0") old => found, options(nostack));
        }
        found == old
    }
}

#[cfg(not(target_arch = "bpf"))]
mod host {
    use super::Word;
    use core::fmt;
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    impl Word {
        fn atomic(&self) -> &AtomicU64 {
            // SAFETY: the same eight bytes, aligned alike, and all access to
            // them is atomic.
            unsafe { AtomicU64::from_ptr(self.0.get()) }
        }

        #[must_use]
        pub fn load(&self) -> u64 {
            self.atomic().load(Relaxed)
        }

        pub fn store(&self, value: u64) {
            self.atomic().store(value, Relaxed);
        }

        /// Stores `new` if the word is still `old`, and says whether it was.
        #[must_use]
        pub fn exchange(&self, old: u64, new: u64) -> bool {
            self.atomic()
                .compare_exchange(old, new, Relaxed, Relaxed)
                .is_ok()
        }
    }

    impl fmt::Debug for Word {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.load().fmt(f)
        }
    }

    impl From<u64> for Word {
        fn from(value: u64) -> Self {
            let word = Self::default();
            word.store(value);
            word
        }
    }
}
