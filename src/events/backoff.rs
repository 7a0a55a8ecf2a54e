//! Waits between attempts at something that may be away for long.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// How long to wait before the next attempt.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// From the first wait to the longest.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        let next = min;
        Self { min, max, next }
    }

    /// The wait after an attempt that lasted `lasted`. One that outlived the longest wait was
    /// a success; a peer that hangs up on us sooner is no better than one that is down.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        if lasted > self.max {
            self.next = self.min;
        }
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        // Seeded at random by the standard library; no dependency for a jitter.
        let random = RandomState::new().hash_one(()) % 1024;
        wait / 2 + wait / 2 * u32::try_from(random).expect("below 1024") / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let at_once = Duration::ZERO;
        let first = backoff.after(at_once);
        assert!((50..=100).contains(&first.as_millis()), "{first:?}");
        let late = (0..10).map(|_| backoff.after(at_once)).last();
        let late = late.expect("ten waits").as_millis();
        assert!((2_500..=5_000).contains(&late), "{late}");
        let again = backoff.after(Duration::from_secs(60)).as_millis();
        assert!((50..=100).contains(&again), "{again}");
    }
}
