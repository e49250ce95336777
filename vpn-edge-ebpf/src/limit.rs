//! Rates, held to without queues: the generic cell rate algorithm.
//!
//! A bucket is one word, the nanosecond until which what was let through pays
//! for time. Whatever would reach further ahead of now than the burst is
//! refused. Two CPUs that take from one bucket at once may both be served from
//! the same place, so a limit is exceeded by at most a packet a CPU.

use vpn_edge_common::Word;

const SECOND: u64 = 1_000_000_000;

/// A rate and how far it may be run ahead of, in nanoseconds.
#[derive(Clone, Copy)]
pub struct Rate {
    pub cost: u64,
    pub ahead: u64,
}

impl Rate {
    /// So many a second, and as many at once as `burst`.
    #[must_use]
    pub const fn per_second(rate: u64, burst: u64) -> Self {
        let cost = SECOND / rate;
        Self {
            cost,
            ahead: cost * (burst - 1),
        }
    }
}

/// Handshake messages of one source, before anything else is done for them.
/// What WireGuard under load allows one address, too.
pub const SOURCE: Rate = Rate::per_second(20, 20);

/// Handshake messages that a gateway gets from all of its clients. A client
/// sends one in two minutes, and one in five seconds when none is answered.
pub const HANDSHAKES: Rate = Rate::per_second(100, 100);

/// Packets of unknown sessions while they pass at all.
pub const UNKNOWN: Rate = Rate::per_second(10_000, 2_000);

/// ICMP errors about a tenant's packets.
pub const ERRORS: Rate = Rate::per_second(100, 100);

/// How far a tenant may run ahead of its plan: what the rate makes in a
/// quarter of a second, so that a burst of TCP does not see the limit.
pub const PLAN_AHEAD: u64 = SECOND / 4;

/// Takes `cost` from the bucket; not if it would run more than `ahead` ahead.
#[inline(always)]
#[must_use]
pub fn take(bucket: &Word, now: u64, rate: Rate) -> bool {
    let paid = bucket.load();
    let start = if paid > now { paid } else { now };
    if start - now > rate.ahead {
        return false;
    }
    bucket.store(start + rate.cost);
    true
}

/// The bucket's index for a source: an IPv4 address, or the upper half of an
/// IPv6 one.
#[inline(always)]
#[must_use]
pub fn source(seed: u64, source: u64) -> u32 {
    (source.wrapping_mul(seed) >> (64 - vpn_edge_common::SOURCES.ilog2())) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &Word, rate: Rate, now: u64, attempts: usize) -> usize {
        (0..attempts).filter(|_| take(bucket, now, rate)).count()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let (bucket, rate) = (Word::default(), Rate::per_second(20, 20));
        let start = 5 * SECOND;
        assert_eq!(taken(&bucket, rate, start, 100), 20);
        assert_eq!(taken(&bucket, rate, start + SECOND / 20, 100), 1);
        assert_eq!(taken(&bucket, rate, start + SECOND / 2, 100), 9);
        assert_eq!(taken(&bucket, rate, start + 60 * SECOND, 100), 20);
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let (bucket, rate) = (Word::default(), Rate::per_second(10, 2));
        taken(&bucket, rate, SECOND, 1000);
        assert_eq!(taken(&bucket, rate, SECOND + SECOND / 10, 1000), 1);
    }

    #[test]
    fn costs_may_differ_from_packet_to_packet() {
        let bucket = Word::default();
        let large = Rate {
            cost: SECOND,
            ahead: SECOND / 4,
        };
        assert!(
            take(&bucket, SECOND, large),
            "one that is larger than the burst passes"
        );
        assert!(!take(&bucket, SECOND + SECOND / 2, large));
        assert!(take(&bucket, 2 * SECOND, large));
    }

    #[test]
    fn sources_spread_over_all_buckets() {
        let seed = 0x9e37_79b9_7f4a_7c15;
        let mut hit = vec![false; vpn_edge_common::SOURCES as usize];
        for address in 0..1_000_000_u64 {
            hit[source(seed, address) as usize] = true;
        }
        let share = hit.iter().filter(|&&hit| hit).count() * 100 / hit.len();
        assert!(share > 90, "{share} %");
    }
}
