//! Which session indexes a gateway has announced, and until when they hold.
//!
//! A WireGuard packet names its session by an index that the *receiver* chose.
//! A gateway chooses it in the initiations and responses that it sends, so
//! whoever sends to an index that a gateway never announced has no session. The
//! sender's address does not matter, and clients may roam.

use vpn_edge_common::wire::{length, message, time};
use vpn_edge_common::{Bucket, Sessions, Word};

/// How long an announced index is taken, in nanoseconds: from the announcement
/// to the last packet that the gateway takes under it. A response to an
/// initiation may be as late as its time-out, and only then does the session
/// begin.
pub const LIFE: u64 = time::REJECT_AFTER + time::REKEY_TIMEOUT;

/// The bucket that `index` belongs in.
#[inline(always)]
#[must_use]
pub fn bucket(sessions: &Sessions, index: u32) -> &Bucket {
    // The upper bits of a product depend on all of the index. Userspace
    // implementations count in its lower bits.
    let at = index.wrapping_mul(0x9e37_79b1) >> 28;
    // In this form the verifier sees that the offset is below the length.
    let at = at as usize & (vpn_edge_common::BUCKETS - 1);
    // SAFETY: masked by the length less one, which is a power of two.
    unsafe { sessions.0.get_unchecked(at) }
}

/// Whether the gateway takes packets under `index` at the tick `now`.
#[inline(always)]
#[must_use]
pub fn is_live(bucket: &Bucket, index: u32, now: impl FnOnce() -> u32) -> bool {
    let [a, b, c, d] = &bucket.0;
    let entry = of(a, index)
        .or_else(|| of(b, index))
        .or_else(|| of(c, index))
        .or_else(|| of(d, index));
    entry.is_some_and(|entry| entry as u32 > now())
}

#[inline(always)]
fn of(way: &Word, index: u32) -> Option<u64> {
    let entry = way.load();
    ((entry >> 32) as u32 == index).then_some(entry)
}

/// Takes in that the gateway announced `index`, to hold until the tick
/// `expiry`.
///
/// In place of the same index, or of the entry that expires first. Two CPUs may
/// do this at once, so the entry is exchanged only if it is still the one that
/// was looked at; whoever was overtaken tries once more.
#[inline(always)]
pub fn announce(bucket: &Bucket, index: u32, expiry: u32) {
    let entry = u64::from(index) << 32 | u64::from(expiry);
    let done = try_announce(bucket, index, entry);
    if !done && !try_announce(bucket, index, entry) {
        try_announce(bucket, index, entry);
    }
}

/// Takes `index` out again.
#[inline(always)]
pub fn forget(bucket: &Bucket, index: u32) {
    for way in &bucket.0 {
        if let Some(entry) = of(way, index) {
            let _ = way.exchange(entry, 0);
        }
    }
}

#[inline(always)]
fn try_announce(bucket: &Bucket, index: u32, entry: u64) -> bool {
    let [a, b, c, d] = &bucket.0;
    let mut way = a;
    let mut old = a.load();
    for other in [b, c, d] {
        let this = other.load();
        let same = (old >> 32) as u32 == index;
        let better = (this >> 32) as u32 == index || (this as u32) < old as u32;
        if !same && better {
            way = other;
            old = this;
        }
    }
    way.exchange(old, entry)
}

/// The index by which the sender of a handshake message wants to be answered,
/// if the message is one: an initiation or a response. A cookie reply carries
/// none of its sender's.
#[inline(always)]
#[must_use]
pub fn announced(first: u32, index: u32, message_length: u16) -> Option<u32> {
    let announces = match u32::from_le(first) {
        INITIATION => message_length == length::INITIATION,
        RESPONSE => message_length == length::RESPONSE,
        _ => false,
    };
    announces.then_some(index)
}

const INITIATION: u32 = message::INITIATION as u32;
const RESPONSE: u32 = message::RESPONSE as u32;

#[cfg(test)]
mod tests {
    use super::*;

    fn live(bucket: &Bucket, index: u32, now: u32) -> bool {
        is_live(bucket, index, || now)
    }

    #[test]
    fn an_announced_index_lives_until_it_expires_and_no_longer() {
        let bucket = Bucket::default();
        announce(&bucket, 7, 100);
        assert!(live(&bucket, 7, 1));
        assert!(live(&bucket, 7, 99));
        assert!(!live(&bucket, 7, 100));
        assert!(!live(&bucket, 8, 1));
    }

    #[test]
    fn an_empty_bucket_knows_no_index_not_even_zero() {
        let bucket = Bucket::default();
        for index in [0, 1, u32::MAX] {
            assert!(!live(&bucket, index, 0));
            assert!(!live(&bucket, index, 100));
        }
    }

    #[test]
    fn index_zero_is_an_index_like_any_other() {
        let bucket = Bucket::default();
        announce(&bucket, 0, 100);
        assert!(live(&bucket, 0, 50));
    }

    #[test]
    fn an_index_announced_again_takes_no_second_place() {
        let bucket = Bucket::default();
        for index in 1..=4 {
            announce(&bucket, index, 100 + index);
        }
        announce(&bucket, 1, 200);
        for index in 1..=4 {
            assert!(live(&bucket, index, 50), "{index}");
        }
        assert!(live(&bucket, 1, 199));
    }

    #[test]
    fn a_full_bucket_forgets_the_index_that_expires_first() {
        let bucket = Bucket::default();
        for index in 1..=5 {
            announce(&bucket, index, 100 + index);
        }
        assert!(!live(&bucket, 1, 50));
        for index in 2..=5 {
            assert!(live(&bucket, index, 50), "{index}");
        }
    }

    #[test]
    fn whichever_way_an_index_stands_in_it_is_found_and_renewed() {
        for position in 0..4 {
            let bucket = Bucket::default();
            for index in 0..4 {
                announce(&bucket, 100 + index, 100 + index);
            }
            announce(&bucket, 100 + position, 200);
            let entries: Vec<u64> = bucket.0.iter().map(|way| way.load()).collect();
            let same = entries
                .iter()
                .filter(|&&entry| entry >> 32 == u64::from(100 + position));
            assert_eq!(same.count(), 1, "{entries:x?}");
        }
    }

    #[test]
    fn counting_and_random_indexes_spread_over_all_buckets() {
        let sessions = Sessions::default();
        let at = |index| {
            let found: *const Bucket = bucket(&sessions, index);
            // SAFETY: both point into the same array.
            unsafe { found.offset_from(sessions.0.as_ptr()) as usize }
        };
        for step in [1, 1 << 8, 1 << 16, 0x1234_5677] {
            let mut hits = [0; vpn_edge_common::BUCKETS];
            for count in 0..1600_u32 {
                hits[at(count.wrapping_mul(step))] += 1;
            }
            assert!(
                hits.iter().all(|&hits| (40..=200).contains(&hits)),
                "{step}: {hits:?}"
            );
        }
    }

    #[test]
    fn only_initiations_and_responses_announce_an_index() {
        for kind in 0..=u8::MAX {
            for length in [32, 64, 91, 92, 93, 147, 148, 149] {
                let first = u32::from_ne_bytes([kind, 0, 0, 0]);
                let expected = matches!((kind, length), (1, 148) | (2, 92));
                assert_eq!(
                    announced(first, 5, length).is_some(),
                    expected,
                    "{kind} {length}"
                );
            }
        }
    }
}
