//! Watermarks of a pipeline: how far event time is known to be complete (SEMANTICS 5 to 7).
//!
//! Every instant of the host's clock is an argument. W never goes back; it moves only when asked.

use crate::time::EventTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
}

/// Which partition: source number, partition number.
pub type PartitionKey = (u32, u32);

/// The watermarks of one pipeline.
#[derive(Clone, Debug)]
pub struct Watermarks {
    partitions: BTreeMap<PartitionKey, PartitionTime>,
    sources: BTreeMap<u32, SourceTime>,
    watermark: EventTime,
}

impl Watermarks {
    /// With the sources' settings and the watermark of the last epoch.
    #[must_use]
    pub fn new(sources: BTreeMap<u32, SourceTime>, saved: EventTime) -> Self {
        Watermarks { partitions: BTreeMap::new(), sources, watermark: saved }
    }
    /// Adds a partition, or puts back what the last epoch knew of it. Idle timers begin anew (SEMANTICS 7).
    pub fn add(&mut self, key: PartitionKey, mut time: PartitionTime, now_ms: i64) {
        time.last_record_ms = now_ms;
        self.partitions.insert(key, time);
    }
    /// What is known of a partition.
    #[must_use]
    pub fn get(&self, key: PartitionKey) -> Option<&PartitionTime> {
        self.partitions.get(&key)
    }
    /// A batch of the partition was read: its greatest event time.
    pub fn observe(&mut self, key: PartitionKey, max: EventTime, now_ms: i64) {
        if let Some(p) = self.partitions.get_mut(&key) {
            let max = if p.live { max.min(EventTime::from_ms(now_ms)) } else { max };
            p.max = p.max.max(max);
            p.idle = false;
            p.last_record_ms = now_ms;
        }
    }
    /// The partition has ended.
    pub fn finish(&mut self, key: PartitionKey) {
        if let Some(p) = self.partitions.get_mut(&key) {
            p.finished = true;
        }
    }
    /// Moves W to what the partitions allow, and returns it.
    pub fn advance(&mut self, now_ms: i64) -> EventTime {
        for (k, p) in &mut self.partitions {
            let idle_ms = self.sources.get(&k.0).map_or(i64::MAX, |s| s.idle_ms);
            if p.live && !p.finished && now_ms.saturating_sub(p.last_record_ms) >= idle_ms {
                p.idle = true;
            }
        }
        let disorder = |source: u32| self.sources.get(&source).map_or(0, |s| s.disorder_ms);
        let holding = self
            .partitions
            .iter()
            .filter(|(_, p)| !p.finished && !p.idle)
            .map(|(k, p)| p.max.minus(disorder(k.0)))
            .min();
        let computed = holding.or_else(|| self.at_the_clocks_pace(now_ms, &disorder));
        if let Some(w) = computed {
            self.watermark = self.watermark.max(w);
        }
        self.watermark
    }
    /// When all live partitions are idle, W goes on with the clock: greatest event time − disorder + time
    /// since it arrived. When nothing is live, W is what the finished ones allow.
    fn at_the_clocks_pace(&self, now_ms: i64, disorder: &impl Fn(u32) -> i64) -> Option<EventTime> {
        let live = self.partitions.iter().filter(|(_, p)| p.live && !p.finished);
        let paced = live
            .filter(|(_, p)| p.max != EventTime::BEGINNING)
            .map(|(k, p)| p.max.minus(disorder(k.0)).plus(now_ms.saturating_sub(p.last_record_ms)))
            .max();
        let ended =
            self.partitions.iter().filter(|(_, p)| p.finished).map(|(k, p)| p.max.minus(disorder(k.0)));
        paced.into_iter().chain(ended).max()
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
        let least = self.partitions.values().filter(|p| !p.finished && !p.idle).map(|p| p.max).min();
        let drift = self.sources.get(&key.0).map_or(0, |s| s.drift_ms);
        least.is_none_or(|least| p.max <= least || p.max.minus(drift) <= least)
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
        let mut w = Watermarks::new([(0, s)].into(), EventTime::BEGINNING);
        for p in 0..n {
            let max = EventTime::BEGINNING;
            w.add((0, p), PartitionTime { max, live, finished: false, idle: false, last_record_ms: 0 }, 0);
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
    fn a_fast_clock_does_not_carry_w_past_now() {
        let mut w = marks(true, 1);
        w.observe((0, 0), at(9_000), 2000);
        assert_eq!(w.advance(2000), at(1990));
        assert!(w.too_far_ahead(0, at(2051), 2000));
        assert!(!w.too_far_ahead(0, at(2050), 2000));
    }
}
