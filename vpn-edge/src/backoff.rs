//! Exponential backoff between attempts.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The pause after another failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// The same, randomised by up to a half in both directions, so that callers that
    /// failed together do not retry together.
    pub fn varied(&mut self) -> Duration {
        let mut byte = [128];
        // Without random bytes the pause is not randomised.
        let _ = getrandom::fill(&mut byte);
        self.pause().mul_f64(0.5 + f64::from(byte[0]) / 255.0)
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_up_to_the_longest_until_a_success() {
        let mut backoff = Backoff::new(MS, 5 * MS);
        let pauses: Vec<Duration> = (0..5).map(|_| backoff.pause()).collect();
        assert_eq!(pauses, [MS, 2 * MS, 4 * MS, 5 * MS, 5 * MS]);
        backoff.reset();
        assert_eq!(backoff.pause(), MS);
    }

    #[test]
    fn a_varied_pause_is_within_a_half_of_itself() {
        for _ in 0..100 {
            let pause = Backoff::new(100 * MS, 100 * MS).varied();
            assert!((50 * MS..=150 * MS).contains(&pause), "{pause:?}");
        }
    }
}
