//! Failed sign-ins by client address, for the last minute.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures per minute that an address is allowed.
pub const ALLOWED: u32 = 10;

const WINDOW: Duration = Duration::from_secs(60);

/// Maximum number of addresses; the one that failed first is dropped.
const REMEMBERED: usize = 4096;

/// Counts failures, in bounded memory.
#[derive(Debug, Default)]
pub struct SignInLimiter {
    counts: Mutex<HashMap<IpAddr, Count>>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    since: Instant,
    failures: u32,
}

impl SignInLimiter {
    /// Counts a failure, unless this address has reached its limit.
    ///
    /// # Errors
    ///
    /// How long the address has to wait.
    pub fn add(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = source(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |count: &Count| now.saturating_duration_since(count.since) >= WINDOW;
        if !counts.contains_key(&address) && counts.len() >= REMEMBERED {
            counts.retain(|_, count| !over(count));
            if counts.len() >= REMEMBERED {
                let oldest = counts.iter().min_by_key(|(_, count)| count.since);
                if let Some(oldest) = oldest.map(|(address, _)| *address) {
                    counts.remove(&oldest);
                }
            }
        }
        let fresh = Count {
            since: now,
            failures: 0,
        };
        let count = counts.entry(address).or_insert(fresh);
        if over(count) {
            *count = fresh;
        }
        if count.failures >= ALLOWED {
            return Err(WINDOW.saturating_sub(now.saturating_duration_since(count.since)));
        }
        count.failures += 1;
        if count.failures == ALLOWED {
            tracing::warn!(%address, "too many failed sign-ins; refusing more for a minute");
        }
        Ok(())
    }

    /// Removes a failure that was counted before the outcome was known.
    pub fn take_back(&self, address: IpAddr) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&source(address)) {
            count.failures = count.failures.saturating_sub(1);
        }
    }
}

/// The unit of counting: an IPv4 address, or an IPv6 /64, since one client has a
/// whole /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_waits_out_its_minute_and_no_other_does() {
        let failures = SignInLimiter::default();
        let start = Instant::now();
        let client = address("192.0.2.1");
        for _ in 0..ALLOWED {
            assert_eq!(failures.add(client, start), Ok(()));
        }
        let later = start + WINDOW / 4;
        assert_eq!(failures.add(client, later), Err(WINDOW * 3 / 4));
        let mapped = address("::ffff:192.0.2.1");
        assert_eq!(failures.add(mapped, start), Err(WINDOW));
        assert_eq!(failures.add(address("192.0.2.2"), start), Ok(()));
        assert_eq!(failures.add(client, start + WINDOW), Ok(()));
    }

    #[test]
    fn what_is_taken_back_can_be_used_again() {
        let failures = SignInLimiter::default();
        let now = Instant::now();
        let client = address("192.0.2.1");
        failures.take_back(client);
        for _ in 0..3 * ALLOWED {
            assert_eq!(failures.add(client, now), Ok(()));
            failures.take_back(client);
        }
        for _ in 0..ALLOWED {
            assert_eq!(failures.add(client, now), Ok(()));
        }
        assert_eq!(failures.add(client, now), Err(WINDOW));
    }

    #[test]
    fn a_slash_64_is_one_client() {
        let failures = SignInLimiter::default();
        let now = Instant::now();
        for last in 0..ALLOWED {
            let client = address(&format!("2001:db8::{last:x}"));
            assert_eq!(failures.add(client, now), Ok(()));
        }
        assert!(failures.add(address("2001:db8::ffff:1"), now).is_err());
        assert!(failures.add(address("2001:db8:0:1::1"), now).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let failures = SignInLimiter::default();
        let start = Instant::now();
        for number in 0..3 * REMEMBERED as u32 {
            let now = start + Duration::from_micros(number.into());
            let client = std::net::Ipv4Addr::from_bits(number).into();
            assert_eq!(failures.add(client, now), Ok(()));
        }
        let counts = failures.counts.lock().unwrap();
        assert_eq!(counts.len(), REMEMBERED);
        assert!(!counts.contains_key(&address("0.0.0.0")));
    }
}
