//! Internet checksums, kept up incrementally (RFC 1624, equation 3).

use vpn_edge_common::Words;

/// By how much a packet's sum changes.
///
/// All numbers are taken from, and go back to, memory in wire order: one's
/// complement sums do not care about byte order as long as it is one.
#[derive(Clone, Copy, Default)]
pub struct Change(u64);

impl Change {
    /// Four bytes `old` became `new`.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// An IPv6 address `old` became `new`.
    #[inline(always)]
    #[must_use]
    pub fn address(self, old: Words, new: Words) -> Self {
        let [a, b] = old;
        let [c, d] = new;
        self.word(a as u32, c as u32)
            .word((a >> 32) as u32, (c >> 32) as u32)
            .word(b as u32, d as u32)
            .word((b >> 32) as u32, (d >> 32) as u32)
    }

    /// The checksum after the change.
    #[inline(always)]
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + u64::from(!checksum))
    }

    /// [`Change::apply`] for UDP, where zero means that there is no checksum.
    #[inline(always)]
    #[must_use]
    pub fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply(checksum) {
            0 => 0xffff,
            sum => sum,
        }
    }

    /// The change as the kernel's helpers take it.
    #[inline(always)]
    #[must_use]
    pub fn partial(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }
}

#[inline(always)]
fn fold(sum: u64) -> u16 {
    // The sum of a few 32-bit numbers has at most 38 bits.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(checksum: u16, old: u32, new: u32) -> u16 {
        Change::default().word(old, new).apply(checksum)
    }

    fn replace_udp(checksum: u16, old: u32, new: u32) -> u16 {
        Change::default().word(old, new).apply_udp(checksum)
    }

    fn whole(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&word| u32::from(word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn an_updated_checksum_equals_one_computed_afresh() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..200_000 {
            let rest = next() as u16;
            let (old, new) = match round % 4 {
                0 => (next() as u32, 0),
                1 => (0xffff_ffff, next() as u32),
                _ => (next() as u32, next() as u32),
            };
            let of = |word: u32| whole(&[rest, word as u16, (word >> 16) as u16]);
            let (updated, afresh) = (replace(of(old), old, new), of(new));
            // One's complement has two zeros, and they mean the same.
            let same = updated == afresh || (updated | afresh == 0xffff && updated & afresh == 0);
            assert!(
                same,
                "{rest:#x} {old:#x} {new:#x}: {updated:#x} {afresh:#x}"
            );
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_stays_zero_and_none_becomes_zero() {
        assert_eq!(replace_udp(0, 1, 2), 0);
        // 0xfffe is the sum of one word 0x0001; taking the word away leaves
        // the sum 0xffff, never the "no checksum" of zero.
        assert_eq!(replace_udp(!0x0001, 0, 0xfffe), 0xffff);
    }
}
