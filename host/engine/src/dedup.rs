//! Events that were folded a while ago, by hash: so that a copy of one is told from a late event (SEMANTICS 3).
//!
//! Only the label of what is dropped depends on it, never what is accepted; so it is kept in memory alone and may forget.

use crate::time::EventTime;
use std::collections::{HashSet, VecDeque};
use xxhash_rust::xxh3::Xxh3;

/// Hashes of one pipeline: some 160 MiB at most. Beyond it the oldest are forgotten, and their copies are late.
const HASHES_MAX: usize = 4_000_000;
/// Hashes are forgotten in steps of this much event time.
const STEP_MS: i64 = 10_000;

/// The identities of events, for a while.
#[derive(Default, Debug)]
pub struct Dedup {
    /// By step of event time, oldest first.
    steps: VecDeque<(i64, HashSet<u64>)>,
    len: usize,
}

impl Dedup {
    fn hash(key: &[u8], time: EventTime, id: &[u8]) -> u64 {
        let mut h = Xxh3::new();
        h.update(&(key.len() as u64).to_le_bytes());
        h.update(key);
        h.update(&time.ms().to_le_bytes());
        h.update(id);
        h.digest()
    }

    /// Remembers an event that was accepted.
    pub fn accepted(&mut self, key: &[u8], time: EventTime, id: &[u8]) {
        let step = time.ms().div_euclid(STEP_MS);
        let at = match self.steps.binary_search_by_key(&step, |(s, _)| *s) {
            Ok(at) => at,
            Err(at) => {
                self.steps.insert(at, (step, HashSet::new()));
                at
            }
        };
        self.len += usize::from(self.steps[at].1.insert(Self::hash(key, time, id)));
        while self.len > HASHES_MAX {
            self.forget_oldest();
        }
    }

    /// Whether an event was accepted that is the same one.
    pub fn knows(&self, key: &[u8], time: EventTime, id: &[u8]) -> bool {
        let step = time.ms().div_euclid(STEP_MS);
        let found = self.steps.binary_search_by_key(&step, |(s, _)| *s);
        found.is_ok_and(|at| self.steps[at].1.contains(&Self::hash(key, time, id)))
    }

    /// Forgets what lies before `horizon`.
    pub fn forget(&mut self, horizon: EventTime) {
        let step = horizon.ms().div_euclid(STEP_MS);
        while self.steps.front().is_some_and(|(s, _)| *s < step) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, hashes)) = self.steps.pop_front() {
            self.len -= hashes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> EventTime {
        EventTime::from_ms(ms)
    }

    #[test]
    fn only_what_is_beyond_the_bound_is_forgotten_and_the_oldest_first() {
        let mut d = Dedup::default();
        let id = |n: usize| (n as u64).to_le_bytes();
        (0..HASHES_MAX).for_each(|n| d.accepted(b"k", at(if n < 2 { 0 } else { STEP_MS }), &id(n)));
        assert!(d.knows(b"k", at(0), &id(0)) && d.knows(b"k", at(STEP_MS), &id(HASHES_MAX - 1)));
        d.accepted(b"k", at(STEP_MS), &id(HASHES_MAX));
        assert!(!d.knows(b"k", at(0), &id(0)) && !d.knows(b"k", at(0), &id(1)));
        assert!(d.knows(b"k", at(STEP_MS), &id(2)) && d.knows(b"k", at(STEP_MS), &id(HASHES_MAX)));
    }

    #[test]
    fn an_event_is_known_by_key_time_and_id_until_the_horizon_passes() {
        let mut d = Dedup::default();
        d.accepted(b"k", at(25_000), b"1");
        d.accepted(b"k", at(-5), b"1");
        assert!(d.knows(b"k", at(25_000), b"1") && d.knows(b"k", at(-5), b"1"));
        for (key, ms, id) in [("k", 25_001, "1"), ("l", 25_000, "1"), ("k", 25_000, "2"), ("k1", 25_000, "")]
        {
            assert!(!d.knows(key.as_bytes(), at(ms), id.as_bytes()), "{key} {ms} {id}");
        }
        d.forget(at(20_000));
        assert!(d.knows(b"k", at(25_000), b"1") && !d.knows(b"k", at(-5), b"1"));
        d.forget(at(30_000));
        assert!(!d.knows(b"k", at(25_000), b"1"));
        assert_eq!((d.len, d.steps.len()), (0, 0));
    }
}
