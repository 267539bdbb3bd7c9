//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// The wait after the `n`th failure, counted from 0, ms: doubled each time, bounded, and between half and all of that by chance, so
/// that many who failed together do not come back together.
pub(crate) fn wait_ms(n: u32, first_ms: u64, most_ms: u64, jitter: &mut fastrand::Rng) -> u64 {
    let full = first_ms.saturating_mul(1 << n.min(32)).min(most_ms);
    full / 2 + jitter.u64(0..=full - full / 2)
}

/// Failures of one thing, one after the other.
pub struct Backoff {
    first_ms: u64,
    most_ms: u64,
    failures: u32,
    jitter: fastrand::Rng,
}

impl Backoff {
    pub(crate) fn new(first_ms: u64, most_ms: u64) -> Backoff {
        Backoff { first_ms, most_ms, failures: 0, jitter: fastrand::Rng::new() }
    }

    /// It has failed again: how long to wait now.
    pub fn next_wait(&mut self) -> Duration {
        let wait = wait_ms(self.failures, self.first_ms, self.most_ms, &mut self.jitter);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_differ() {
        let mut jitter = fastrand::Rng::with_seed(1);
        for (n, full) in [(0, 100), (1, 200), (5, 3_200), (6, 5_000), (40, 5_000), (u32::MAX, 5_000)] {
            let waits: Vec<u64> = (0..200).map(|_| wait_ms(n, 100, 5_000, &mut jitter)).collect();
            assert!(waits.iter().all(|w| (full / 2..=full).contains(w)), "{n}: {waits:?}");
            assert!(waits.iter().any(|w| *w != waits[0]), "{n}: all the same");
        }
        let mut backoff = Backoff::new(10, 40);
        let waits: Vec<u64> = (0..50).map(|_| backoff.next_wait().as_millis() as u64).collect();
        assert!(waits[0] <= 10 && waits[1..].iter().all(|w| (10..=40).contains(w)), "{waits:?}");
    }
}
