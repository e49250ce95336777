//! WireGuard's mac1: whether the sender of a handshake message knows the
//! gateway's public key.
//!
//! mac1 is keyed BLAKE2s (RFC 7693) with 16 bytes of output, over all that
//! stands before it; its key is the BLAKE2s-256 of "mac1----" and the
//! receiver's public key (the WireGuard paper, section 5.4.4). Keyed BLAKE2s
//! begins with a block of nothing but the key. That block is compressed once a
//! gateway and not once a packet: what is called key here is the state after it.

use crate::frame::View;

/// What [`compress`] works on. In the kernel one a CPU, in a map, since the
/// stack has no room for it. Nothing is kept in it between messages.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Scratch {
    /// What goes from block to block, and is the hash in the end.
    state: [u32; 8],
    block: [u32; 16],
    /// Bytes up to the end of this block, the key's block among them.
    counter: u32,
    /// All ones in the last block, else zero.
    last: u32,
}

const _: () = assert!(size_of::<Scratch>() == 104 && align_of::<Scratch>() == 4);

/// Length of a block in bytes.
const BLOCK: u32 = 64;

/// Puts words of a message, from byte `$from` on, into the block.
macro_rules! fill {
    ($scratch:ident, $message:ident, $from:literal, $($at:literal)+) => {
        $($scratch.block[$at] = u32::from_le($message.word::<{ $from + 4 * $at }>());)+
    };
}

/// Whether bytes 116 to 131 of an initiation are its mac1 under `key`.
#[inline(always)]
#[must_use]
pub fn initiation(message: &View<'_, 148>, key: &[u32; 8], scratch: &mut Scratch) -> bool {
    scratch.state = *key;
    fill!(scratch, message, 0, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    scratch.next(BLOCK + 64, 0);
    fill!(scratch, message, 64, 0 1 2 3 4 5 6 7 8 9 10 11 12);
    scratch.block[13] = 0;
    scratch.block[14] = 0;
    scratch.block[15] = 0;
    scratch.next(BLOCK + 116, !0);
    scratch.is([
        message.word::<116>(),
        message.word::<120>(),
        message.word::<124>(),
        message.word::<128>(),
    ])
}

/// Whether bytes 60 to 75 of a response are its mac1 under `key`.
#[inline(always)]
#[must_use]
pub fn response(message: &View<'_, 92>, key: &[u32; 8], scratch: &mut Scratch) -> bool {
    scratch.state = *key;
    fill!(scratch, message, 0, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    scratch.block[15] = 0;
    scratch.next(BLOCK + 60, !0);
    scratch.is([
        message.word::<60>(),
        message.word::<64>(),
        message.word::<68>(),
        message.word::<72>(),
    ])
}

/// The key for messages to the holder of `public_key`.
#[cfg(not(target_arch = "bpf"))]
#[must_use]
pub fn key(public_key: &[u8; 32]) -> [u32; 8] {
    let mut labelled = [0; BLOCK as usize];
    labelled[..8].copy_from_slice(b"mac1----");
    labelled[8..40].copy_from_slice(public_key);
    let (words, _) = labelled.as_chunks();
    let mut scratch = Scratch {
        state: start(0, 32),
        block: core::array::from_fn(|at| u32::from_le_bytes(words[at])),
        ..Scratch::default()
    };
    scratch.next(40, !0);
    scratch.block = [0; 16];
    scratch.block[..8].copy_from_slice(&scratch.state);
    scratch.state = start(32, 16);
    scratch.next(BLOCK, 0);
    scratch.state
}

/// The state before the first block, by the lengths of key and hash in bytes.
#[cfg(not(target_arch = "bpf"))]
fn start(key: u32, hash: u32) -> [u32; 8] {
    let mut state = IV;
    // Fanout and depth are one: this is no tree.
    state[0] ^= 0x0101_0000 | key << 8 | hash;
    state
}

impl Scratch {
    #[inline(always)]
    fn next(&mut self, counter: u32, last: u32) {
        self.counter = counter;
        self.last = last;
        // SAFETY: it is a reference.
        unsafe { compress(self) };
    }

    /// Whether the hash begins with `mac`, given as words of the wire.
    #[inline(always)]
    fn is(&self, mac: [u32; 4]) -> bool {
        let differ = (self.state[0] ^ u32::from_le(mac[0]))
            | (self.state[1] ^ u32::from_le(mac[1]))
            | (self.state[2] ^ u32::from_le(mac[2]))
            | (self.state[3] ^ u32::from_le(mac[3]));
        differ == 0
    }
}

/// Takes `block` into `state`.
///
/// With a symbol of its own it is a global function to the verifier, which
/// then reads it once by itself, for any scratch or none, and not along every
/// path of every call. That wants a number as its result, which means nothing.
///
/// # Safety
///
/// `scratch` must be null or valid for reads and writes.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
unsafe extern "C" fn compress(scratch: *mut Scratch) -> i32 {
    // SAFETY: as the caller vouches.
    let Some(Scratch {
        state,
        block,
        counter,
        last,
    }) = (unsafe { scratch.as_mut() })
    else {
        return 0;
    };
    let mut rows = Rows {
        first: [state[0], state[1], state[2], state[3]],
        others: [
            state[4],
            state[5],
            state[6],
            state[7],
            IV[0],
            IV[1],
            IV[2],
            IV[3],
            IV[4] ^ *counter,
            IV[5],
            IV[6] ^ *last,
            IV[7],
        ],
    };
    rows.round::<0>(block);
    rows.round::<1>(block);
    rows.round::<2>(block);
    rows.round::<3>(block);
    rows.round::<4>(block);
    rows.round::<5>(block);
    rows.round::<6>(block);
    rows.round::<7>(block);
    rows.round::<8>(block);
    rows.round::<9>(block);
    state[0] ^= rows.get::<0>() ^ rows.get::<8>();
    state[1] ^= rows.get::<1>() ^ rows.get::<9>();
    state[2] ^= rows.get::<2>() ^ rows.get::<10>();
    state[3] ^= rows.get::<3>() ^ rows.get::<11>();
    state[4] ^= rows.get::<4>() ^ rows.get::<12>();
    state[5] ^= rows.get::<5>() ^ rows.get::<13>();
    state[6] ^= rows.get::<6>() ^ rows.get::<14>();
    state[7] ^= rows.get::<7>() ^ rows.get::<15>();
    0
}

/// The 16 working words, four a row.
///
/// BPF has ten registers. The first row stays in four of them; the others are
/// where they are put, by volatile accesses. So are the block's words. Left to
/// itself LLVM spills by its own lights, which takes five times the stack.
struct Rows {
    first: [u32; 4],
    others: [u32; 12],
}

impl Rows {
    #[inline(always)]
    fn get<const AT: usize>(&self) -> u32 {
        if AT < 4 {
            self.first[AT]
        } else {
            // SAFETY: a field of our own.
            unsafe { (&raw const self.others[AT - 4]).read_volatile() }
        }
    }

    #[inline(always)]
    fn set<const AT: usize>(&mut self, word: u32) {
        if AT < 4 {
            self.first[AT] = word;
        } else {
            // SAFETY: as in `get`.
            unsafe { (&raw mut self.others[AT - 4]).write_volatile(word) };
        }
    }

    /// Columns, then diagonals.
    #[inline(always)]
    fn round<const ROUND: usize>(&mut self, block: &[u32; 16]) {
        self.mix::<ROUND, 0, 0, 4, 8, 12>(block);
        self.mix::<ROUND, 1, 1, 5, 9, 13>(block);
        self.mix::<ROUND, 2, 2, 6, 10, 14>(block);
        self.mix::<ROUND, 3, 3, 7, 11, 15>(block);
        self.mix::<ROUND, 4, 0, 5, 10, 15>(block);
        self.mix::<ROUND, 5, 1, 6, 11, 12>(block);
        self.mix::<ROUND, 6, 2, 7, 8, 13>(block);
        self.mix::<ROUND, 7, 3, 4, 9, 14>(block);
    }

    /// The function G of the RFC, the `STEP`th of its round.
    #[inline(always)]
    fn mix<
        const ROUND: usize,
        const STEP: usize,
        const A: usize,
        const B: usize,
        const C: usize,
        const D: usize,
    >(
        &mut self,
        block: &[u32; 16],
    ) {
        // LLVM adds in the order of the reads. B comes last since it is ready
        // last, and since A and the block's word need no copy then.
        let mut a = self.get::<A>();
        let x = word(&block[const { SIGMA[ROUND][2 * STEP] }]);
        let mut b = self.get::<B>();
        let mut d = self.get::<D>();
        let mut c = self.get::<C>();
        a = a.wrapping_add(x).wrapping_add(b);
        d = (d ^ a).rotate_right(16);
        c = c.wrapping_add(d);
        b = (b ^ c).rotate_right(12);
        let y = word(&block[const { SIGMA[ROUND][2 * STEP + 1] }]);
        a = a.wrapping_add(y).wrapping_add(b);
        d = (d ^ a).rotate_right(8);
        c = c.wrapping_add(d);
        b = (b ^ c).rotate_right(7);
        self.set::<A>(a);
        self.set::<B>(b);
        self.set::<C>(c);
        self.set::<D>(d);
    }
}

#[inline(always)]
fn word(word: &u32) -> u32 {
    // SAFETY: it is a reference.
    unsafe { (&raw const *word).read_volatile() }
}

/// RFC 7693, section 2.6.
const IV: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The block's words by round and step: RFC 7693, section 2.7.
const SIGMA: [[usize; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;
    use blake2::digest::consts::U16;
    use blake2::digest::{Digest, Mac};
    use blake2::{Blake2s256, Blake2sMac};

    /// Headers before a message in a frame without a tag, so that no word is
    /// aligned.
    const HEADERS: usize = 42;

    const INITIATION: usize = 148;
    const RESPONSE: usize = 92;

    /// Bytes without a pattern, others for every `seed`.
    fn bytes<const N: usize>(seed: u32) -> [u8; N] {
        let mut bytes = [0; N];
        for (at, chunk) in bytes.chunks_mut(32).enumerate() {
            let hash = Blake2s256::new()
                .chain_update(seed.to_le_bytes())
                .chain_update(at.to_le_bytes())
                .finalize();
            chunk.copy_from_slice(&hash[..chunk.len()]);
        }
        bytes
    }

    /// A message whose mac1, which is followed by mac2 alone, is the judge's.
    fn message<const N: usize>(seed: u32, public_key: &[u8; 32]) -> [u8; N] {
        let mut message = bytes(seed);
        let (covered, macs) = message.split_at_mut(N - 32);
        let key = Blake2s256::new()
            .chain_update(b"mac1----")
            .chain_update(public_key)
            .finalize();
        let mac1 = Blake2sMac::<U16>::new_from_slice(&key)
            .unwrap()
            .chain_update(covered)
            .finalize()
            .into_bytes();
        macs[..16].copy_from_slice(&mac1);
        message
    }

    fn accepted<const N: usize>(message: &[u8; N], key: &[u32; 8]) -> bool {
        let mut frame = vec![0; HEADERS];
        frame.extend(message);
        let frame = Frame::of(&mut frame);
        // Left over from another packet.
        let mut scratch = Scratch {
            state: [!0; 8],
            block: [!0; 16],
            counter: !0,
            last: !0,
        };
        match N {
            INITIATION => initiation(&frame.view(HEADERS).unwrap(), key, &mut scratch),
            RESPONSE => response(&frame.view(HEADERS).unwrap(), key, &mut scratch),
            _ => panic!("no message has {N} bytes"),
        }
    }

    #[test]
    fn a_sender_who_knows_the_public_key_is_let_in() {
        for seed in 0..2_000 {
            let public_key = bytes(seed);
            let key = key(&public_key);
            let initiation = message::<INITIATION>(seed, &public_key);
            assert!(accepted(&initiation, &key), "initiation {seed}");
            let response = message::<RESPONSE>(seed, &public_key);
            assert!(accepted(&response, &key), "response {seed}");
        }
    }

    #[test]
    fn a_sender_who_knows_another_public_key_is_refused() {
        for seed in 0..2_000 {
            let key = key(&bytes(seed));
            let other = bytes(seed + 1);
            assert!(!accepted(&message::<INITIATION>(seed, &other), &key));
            assert!(!accepted(&message::<RESPONSE>(seed, &other), &key));
        }
    }

    fn only_mac2_may_change<const N: usize>() {
        let public_key = bytes(1);
        let key = key(&public_key);
        let message = message::<N>(2, &public_key);
        for bit in 0..N * 8 {
            let mut bent = message;
            bent[bit / 8] ^= 1 << (bit % 8);
            let of_mac2 = bit / 8 >= N - 16;
            assert_eq!(accepted(&bent, &key), of_mac2, "bit {bit}");
        }
    }

    #[test]
    fn every_bit_of_an_initiation_counts_but_those_of_mac2() {
        only_mac2_may_change::<INITIATION>();
    }

    #[test]
    fn every_bit_of_a_response_counts_but_those_of_mac2() {
        only_mac2_may_change::<RESPONSE>();
    }

    /// Keys are kept in maps that outlive a build, so they may not change. The
    /// expected one is from an implementation in Python, not from here.
    #[test]
    fn a_key_is_the_state_after_its_block() {
        let public_key = core::array::from_fn(|at| at as u8);
        let expected = [
            0xc7d8_fb9c,
            0xe1fe_99a1,
            0x963f_2b8e,
            0x955a_cda1,
            0xf717_35b0,
            0x7f17_dfe4,
            0x4bc8_6964,
            0x6b47_55e0,
        ];
        assert_eq!(key(&public_key), expected);
    }

    #[test]
    fn a_missing_scratch_is_left_alone() {
        // SAFETY: null is allowed.
        unsafe { compress(core::ptr::null_mut()) };
    }
}
