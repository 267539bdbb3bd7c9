//! Watermarks of a pipeline: how far event time is known to be complete (SEMANTICS 5 to 7).
//!
//! Every instant of the host's clock is an argument. W never goes back; it moves only when asked.

use crate::time::EventTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// What a pipeline must know of a source to keep its watermark.
#[derive(Clone, Copy, Debug)]
pub struct SourceTime {
    /// How far past an event's time earlier ones are waited for, ms.
    pub disorder_ms: i64,
    /// Silence after which a live partition stops holding W back, ms.
    pub idle_ms: i64,
    /// How far ahead of the slowest partition one may be read, ms.
    pub drift_ms: i64,
    /// How far ahead of the clock an event may be, ms; `None`: any.
    pub far_future_ms: Option<i64>,
}

/// One partition's progress; part of the epoch record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionTime {
    /// Greatest event time seen (held against the clock for live sources).
    pub max: EventTime,
    /// Whether the partition may still bring records without bound.
    pub live: bool,
    /// Whether it has ended.
    pub finished: bool,
    /// Whether it has been declared idle.
    pub idle: bool,
    /// Host clock when it last brought a record, ms; not meaningful across restarts.
    #[serde(skip)]
    pub last_record_ms: i64,
    /// Host clock when `max` came, or at the start if that was in an earlier life, ms.
    #[serde(skip)]
    pub max_at_ms: i64,
}

impl PartitionTime {
    /// Of a partition that has brought nothing yet.
    #[must_use]
    pub fn fresh(live: bool, now_ms: i64) -> PartitionTime {
        PartitionTime {
            max: EventTime::BEGINNING,
            live,
            finished: false,
            idle: false,
            last_record_ms: now_ms,
            max_at_ms: now_ms,
        }
    }

    fn holds(&self) -> bool {
        !self.finished && !self.idle
    }
}

/// Which partition: source number, partition number.
pub type PartitionKey = (u32, u32);

/// The watermarks of one pipeline.
///
/// Besides the partitions there are indices of those that still count, so that a batch costs the same however many files
/// there are; `change` keeps both in step.
#[derive(Clone, Debug)]
pub struct Watermarks {
    partitions: BTreeMap<PartitionKey, PartitionTime>,
    sources: BTreeMap<u32, SourceTime>,
    watermark: EventTime,
    /// Unfinished, by their greatest time.
    unfinished: BTreeSet<(EventTime, PartitionKey)>,
    /// Of these the ones that are not idle, by source.
    holding: BTreeMap<u32, BTreeSet<(EventTime, PartitionKey)>>,
    /// Live and unfinished.
    live: BTreeSet<PartitionKey>,
    /// The watermark of an earlier life and the host clock when this one began, until event time goes on: while all is idle
    /// W moves on from there (SEMANTICS 7).
    resumed: Option<(EventTime, i64)>,
}

impl Watermarks {
    /// With the sources' settings and the watermark of the last epoch.
    #[must_use]
    pub fn new(sources: BTreeMap<u32, SourceTime>, saved: EventTime, now_ms: i64) -> Self {
        Watermarks {
            partitions: BTreeMap::new(),
            sources,
            watermark: saved,
            unfinished: BTreeSet::new(),
            holding: BTreeMap::new(),
            live: BTreeSet::new(),
            resumed: (saved != EventTime::BEGINNING).then_some((saved, now_ms)),
        }
    }
    /// Adds a partition, or puts back what the last epoch knew of it. Idle timers begin anew (SEMANTICS 7).
    pub fn add(&mut self, key: PartitionKey, mut time: PartitionTime, now_ms: i64) {
        time.last_record_ms = now_ms;
        time.max_at_ms = now_ms;
        time.idle = false;
        self.partitions.insert(key, time);
        self.index(key, time);
    }
    /// What is known of a partition.
    #[must_use]
    pub fn get(&self, key: PartitionKey) -> Option<&PartitionTime> {
        self.partitions.get(&key)
    }
    /// A batch of the partition was read: its greatest event time.
    pub fn observe(&mut self, key: PartitionKey, max: EventTime, now_ms: i64) {
        let mut news = false;
        self.change(key, |p| {
            let max = if p.live { max.min(EventTime::from_ms(now_ms)) } else { max };
            if max > p.max {
                (p.max, p.max_at_ms, news) = (max, now_ms, true);
            }
            p.idle = false;
            p.last_record_ms = now_ms;
        });
        if news {
            self.resumed = None;
        }
    }
    /// The partition has ended.
    pub fn finish(&mut self, key: PartitionKey) {
        self.change(key, |p| p.finished = true);
    }
    fn change(&mut self, key: PartitionKey, with: impl FnOnce(&mut PartitionTime)) {
        let Some(p) = self.partitions.get_mut(&key) else { return };
        let before = (p.max, key);
        with(p);
        let after = *p;
        self.unfinished.remove(&before);
        if let Some(of_source) = self.holding.get_mut(&key.0) {
            of_source.remove(&before);
        }
        self.live.remove(&key);
        self.index(key, after);
    }
    fn index(&mut self, key: PartitionKey, p: PartitionTime) {
        if !p.finished {
            self.unfinished.insert((p.max, key));
        }
        if p.holds() {
            self.holding.entry(key.0).or_default().insert((p.max, key));
        }
        if p.live && !p.finished {
            self.live.insert(key);
        }
    }
    /// Moves W to what the partitions allow, and returns it.
    pub fn advance(&mut self, now_ms: i64) -> EventTime {
        let silent = |k: &&PartitionKey| {
            let idle_ms = self.sources.get(&k.0).map_or(i64::MAX, |s| s.idle_ms);
            let quiet = |p: &PartitionTime| !p.idle && now_ms.saturating_sub(p.last_record_ms) >= idle_ms;
            self.partitions.get(*k).is_some_and(quiet)
        };
        let silent: Vec<PartitionKey> = self.live.iter().filter(silent).copied().collect();
        silent.into_iter().for_each(|k| self.change(k, |p| p.idle = true));
        let least = |(source, of_source): (&u32, &BTreeSet<(EventTime, PartitionKey)>)| {
            of_source.first().map(|(max, _)| max.minus(self.disorder(*source)))
        };
        let holding = self.holding.iter().filter_map(least).min();
        if let Some(w) = holding.or_else(|| self.at_the_clocks_pace(now_ms)) {
            self.watermark = self.watermark.max(w);
        }
        self.watermark
    }
    fn disorder(&self, source: u32) -> i64 {
        self.sources.get(&source).map_or(0, |s| s.disorder_ms)
    }
    /// When all live partitions are idle, W goes on with the clock: greatest event time − disorder + time since it arrived,
    /// whichever partition brought it, also one that has ended. When nothing is live, W is what the finished ones allow.
    fn at_the_clocks_pace(&self, now_ms: i64) -> Option<EventTime> {
        let goes_on = !self.live.is_empty();
        let since = |at: i64| if goes_on { now_ms.saturating_sub(at) } else { 0 };
        let known = self.partitions.iter().filter(|(_, p)| p.max != EventTime::BEGINNING);
        let paced = known.map(|(k, p)| p.max.minus(self.disorder(k.0)).plus(since(p.max_at_ms)));
        let resumed = self.resumed.map(|(w, at)| w.plus(since(at)));
        paced.chain(resumed).max()
    }
    /// The watermark.
    #[must_use]
    pub fn watermark(&self) -> EventTime {
        self.watermark
    }
    /// Whether the partition may be read now: not more than the drift ahead of the slowest (which never waits).
    #[must_use]
    pub fn may_read(&self, key: PartitionKey) -> bool {
        let Some(p) = self.partitions.get(&key) else { return false };
        let least = self.holding.values().filter_map(|s| s.first()).map(|(max, _)| *max).min();
        let drift = self.sources.get(&key.0).map_or(0, |s| s.drift_ms);
        least.is_none_or(|least| p.max <= least || p.max.minus(drift) <= least)
    }
    /// The unfinished partition that follows `after` in the order of their greatest times; the furthest behind for none.
    #[must_use]
    pub fn next_unfinished(
        &self,
        after: Option<(EventTime, PartitionKey)>,
    ) -> Option<(EventTime, PartitionKey)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.unfinished.range((from, Bound::Unbounded)).next().copied()
    }
    /// Whether an event this far ahead of the clock is refused (SEMANTICS 5).
    #[must_use]
    pub fn too_far_ahead(&self, source: u32, time: EventTime, now_ms: i64) -> bool {
        let far = self.sources.get(&source).and_then(|s| s.far_future_ms);
        far.is_some_and(|far| time > EventTime::from_ms(now_ms).plus(far))
    }
    /// Every partition, for the epoch record.
    pub fn partitions(&self) -> impl Iterator<Item = (&PartitionKey, &PartitionTime)> {
        self.partitions.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> EventTime {
        EventTime::from_ms(ms)
    }
    fn marks(live: bool, n: u32) -> Watermarks {
        let s = SourceTime { disorder_ms: 10, idle_ms: 100, drift_ms: 20, far_future_ms: Some(50) };
        let mut w = Watermarks::new([(0, s)].into(), EventTime::BEGINNING, 0);
        for p in 0..n {
            w.add((0, p), PartitionTime::fresh(live, 0), 0);
        }
        w
    }

    #[test]
    fn the_slowest_partition_holds_w_back_and_a_finished_one_does_not() {
        let mut w = marks(false, 2);
        w.observe((0, 0), at(1000), 0);
        assert_eq!(w.advance(0), EventTime::BEGINNING);
        w.observe((0, 1), at(500), 0);
        assert_eq!(w.advance(0), at(490));
        assert!(!w.may_read((0, 0)));
        assert!(w.may_read((0, 1)));
        w.finish((0, 1));
        assert_eq!(w.advance(0), at(990));
        w.finish((0, 0));
        assert_eq!(w.advance(0), at(990), "finite when the last one finishes");
    }

    #[test]
    fn an_idle_partition_lets_go_and_does_not_move_w_back() {
        let mut w = marks(true, 2);
        w.observe((0, 0), at(1000), 5000);
        assert_eq!(w.advance(5000), at(990), "partition 1 has been idle since the start");
        w.observe((0, 1), at(3), 5001);
        assert_eq!(w.advance(5001), at(990));
    }

    #[test]
    fn when_all_are_idle_w_goes_on_with_the_clock() {
        let mut w = marks(true, 1);
        w.observe((0, 0), at(1000), 2000);
        assert_eq!(w.advance(2050), at(990));
        assert_eq!(w.advance(2100), at(1090));
        assert_eq!(w.advance(2500), at(1490));
    }

    #[test]
    fn what_has_ended_paces_w_as_long_as_something_is_live() {
        // A log that was cut: its old part has ended, the new one is empty.
        let mut w = marks(true, 2);
        w.observe((0, 0), at(1000), 2000);
        w.finish((0, 0));
        assert_eq!(w.advance(2050), at(1040), "the empty one is idle");
        assert_eq!(w.advance(2500), at(1490));
        // History that was read, and a live source without an event.
        let mut w = marks(true, 1);
        w.add((0, 1), PartitionTime::fresh(false, 0), 0);
        w.observe((0, 1), at(1000), 2000);
        assert_eq!(w.advance(2500), at(990), "what has an end is waited for");
        w.finish((0, 1));
        assert_eq!(w.advance(2500), at(1490));
        w.finish((0, 0));
        assert_eq!(w.advance(9000), at(1490), "nothing is live any more");
    }

    #[test]
    fn an_older_event_does_not_begin_the_pace_anew() {
        let mut w = marks(true, 1);
        w.observe((0, 0), at(1000), 2000);
        w.observe((0, 0), at(995), 2080);
        assert_eq!(w.advance(2150), at(990), "not idle");
        assert_eq!(w.advance(2180), at(1170), "since the greatest came");
    }

    #[test]
    fn a_restart_goes_on_from_the_saved_w() {
        let mut w = marks(true, 1);
        w.observe((0, 0), at(1000), 2000);
        let mut saved = w.advance(2150);
        assert_eq!(saved, at(1140));
        for start in [10_000, 20_000, 30_000] {
            let before = saved;
            let known = *w.get((0, 0)).unwrap();
            let mut next = Watermarks::new(w.sources.clone(), saved, start);
            next.add((0, 0), known, start);
            assert_eq!(next.advance(start + 99), before, "idle timers begin anew");
            saved = next.advance(start + 150);
            assert_eq!(saved, before.plus(150), "only time while running counts");
            w = next;
        }
        // Event time that goes on by itself is what counts from then on.
        w.observe((0, 0), at(1600), 30_200);
        assert_eq!(w.advance(30_400), at(1790));
    }

    #[test]
    fn the_indices_say_what_the_partitions_say() {
        let mut w = marks(true, 3);
        let order = |w: &Watermarks| {
            let mut found = Vec::new();
            while let Some(next) = w.next_unfinished(found.last().copied()) {
                found.push(next);
            }
            found.into_iter().map(|(_, (_, p))| p).collect::<Vec<_>>()
        };
        w.observe((0, 0), at(30), 50);
        w.observe((0, 1), at(10), 50);
        assert_eq!(order(&w), [2, 1, 0]);
        assert!(!w.may_read((0, 1)) || at(10).minus(20) <= EventTime::BEGINNING);
        w.advance(120);
        assert!(w.may_read((0, 0)), "partition 2 is idle");
        w.observe((0, 2), at(40), 130);
        assert_eq!(order(&w), [1, 0, 2]);
        assert!(!w.may_read((0, 2)), "30 ahead of partition 1");
        w.finish((0, 1));
        assert_eq!(order(&w), [0, 2]);
        assert!(w.may_read((0, 2)));
    }

    #[test]
    fn a_fast_clock_does_not_carry_w_past_now() {
        let mut w = marks(true, 1);
        w.observe((0, 0), at(9_000), 2000);
        assert_eq!(w.advance(2000), at(1990));
        assert!(w.too_far_ahead(0, at(2051), 2000));
        assert!(!w.too_far_ahead(0, at(2050), 2000));
    }
}
