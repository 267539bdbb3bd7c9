//! Which keys bring most of a lane's events: the summary of Misra and Gries (1982), over one row in 32.
//!
//! Of `n` rows seen it keeps every key that has more than `n / (HOT_COUNTERS + 1)` of them, and counts each too low by at most
//! that. It costs a lane some operations for those rows, and the same rows give the same keys.

use crate::bounds::{HOT_COUNTERS, HOT_SAMPLED_MIN, HOT_SHARE};
use crate::event::RowHead;
use serde::{Deserialize, Serialize};

/// One row of so many is looked at.
const SAMPLED: usize = 32;

/// A key with a great part of its lane's events of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotKey {
    /// The key, as rows show it.
    pub key: String,
    /// Which part of the lane's events it brought, 0 to 1; too low by at most 1/65.
    pub share: f64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct HotKeys {
    /// Hashes of keys, with their counts.
    counters: Vec<(u64, u64)>,
    seen: u64,
    /// The first row of the next batch that is looked at: so that no rhythm of the input hides a key.
    phase: usize,
}

impl HotKeys {
    /// Rows that have come in.
    pub(crate) fn see(&mut self, heads: &[RowHead]) {
        for head in heads.iter().skip(self.phase).step_by(SAMPLED) {
            self.count(head.key_hash);
        }
        self.phase = (self.phase + 11) % SAMPLED;
    }

    fn count(&mut self, hash: u64) {
        self.seen += 1;
        if let Some((_, n)) = self.counters.iter_mut().find(|(h, _)| *h == hash) {
            *n += 1;
        } else if self.counters.len() < HOT_COUNTERS {
            self.counters.push((hash, 1));
        } else {
            self.counters.iter_mut().for_each(|(_, n)| *n -= 1);
            self.counters.retain(|(_, n)| *n > 0);
        }
    }

    /// Ends the epoch: hashes of the keys that were hot in it, hottest first, each with its share. `None`: too few rows to tell.
    pub(crate) fn end(&mut self) -> Option<Vec<(u64, f64)>> {
        let seen = std::mem::take(&mut self.seen);
        let mut counted = std::mem::take(&mut self.counters);
        if seen < HOT_SAMPLED_MIN {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let share = |n: u64| n as f64 / seen as f64;
        // A count may be too low by this much: no key with the whole share is missed.
        let off = seen / (HOT_COUNTERS as u64 + 1);
        counted.retain(|(_, n)| share(n + off) >= HOT_SHARE);
        counted.sort_unstable_by_key(|(hash, n)| (std::cmp::Reverse(*n), *hash));
        Some(counted.into_iter().map(|(hash, n)| (hash, share(n))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Position;
    use crate::time::EventTime;
    use proptest::prelude::*;

    fn head(key_hash: u64) -> RowHead {
        RowHead {
            key_hash,
            time: EventTime::from_ms(0),
            position: Position { source: 0, partition: 0, offset: 0 },
            key_at: 0,
            key_len: 0,
            ext_len: 0,
            raw_at: 0,
            raw_len: 0,
        }
    }

    #[test]
    fn a_third_of_all_rows_is_found_in_every_rhythm_and_a_crowd_is_not() {
        for every in [2, 3, 4, 8] {
            let heads: Vec<RowHead> =
                (0..96_000_u64).map(|n| head(if n.is_multiple_of(every) { 7 } else { 1_000 + n })).collect();
            let mut hot = HotKeys::default();
            heads.chunks(1_000).for_each(|some| hot.see(some));
            let found = hot.end().unwrap();
            let want = 1.0 / every as f64;
            assert_eq!(found.len(), 1, "{every}: {found:?}");
            assert!(found[0].0 == 7 && (found[0].1 - want).abs() < 0.04, "{every}: {found:?}");
            assert_eq!(hot.end(), None, "each epoch by itself");
        }
    }

    #[test]
    fn a_few_events_make_no_hot_key() {
        let mut hot = HotKeys::default();
        let heads = vec![head(7); (HOT_SAMPLED_MIN as usize - 1) * SAMPLED];
        hot.see(&heads);
        assert_eq!(hot.end(), None);
        hot.see(&vec![head(7); HOT_SAMPLED_MIN as usize * SAMPLED]);
        assert_eq!(hot.end(), Some(vec![(7, 1.0)]));
        let crowd: Vec<RowHead> = (0..96_000).map(head).collect();
        hot.see(&crowd);
        assert_eq!(hot.end(), Some(Vec::new()), "a crowd has none");
    }

    proptest! {
        /// What the summary promises, against a table of all.
        #[test]
        fn no_hot_key_is_missed_and_no_count_is_off_by_more_than_the_bound(
            keys in prop::collection::vec(prop_oneof![0..4_u64, 0..400_u64], 0..3_000),
        ) {
            let mut hot = HotKeys::default();
            let mut all = std::collections::BTreeMap::<u64, u64>::new();
            for key in &keys {
                hot.count(*key);
                *all.entry(*key).or_default() += 1;
            }
            let bound = keys.len() as u64 / (HOT_COUNTERS as u64 + 1);
            for (key, n) in &all {
                let counted = hot.counters.iter().find(|(h, _)| h == key).map_or(0, |(_, n)| *n);
                prop_assert!(counted <= *n && counted + bound >= *n, "{key}: {counted} of {n}");
            }
            prop_assert!(hot.counters.len() <= HOT_COUNTERS);
        }
    }
}
