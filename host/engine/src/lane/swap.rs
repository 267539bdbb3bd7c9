//! Swaps in a lane: a newer version beside the older one, until nothing stands before its place (SEMANTICS 20 to 22).
//!
//! Everything here happens at barriers, between the folds, and in bounded steps but for a rollback, which looks at every key.

use super::Lane;
use super::turn::Now;
use crate::bounds::SETTLE_KEYS;
use crate::key_state::Open;
use crate::metrics::Total;
use crate::rule::{SessionRule, Timer};
use crate::time::EventTime;
use crate::versions::{Policy, Scheduled, Version};
use std::ops::Range;

/// The search for keys that stand before the swap at hand: one round after the other, some keys at each barrier.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Settling {
    /// The next slot to look at.
    next: usize,
    /// Whether this round has found a key.
    found: bool,
}

/// Which keys are looked at in a barrier, and for which swap.
pub(super) struct Look {
    keys: Range<usize>,
    /// Its place.
    at: EventTime,
    newer: Version,
    /// B has reached it.
    reached: bool,
}

impl Lane {
    /// Puts a newer version beside the one in force, right after a barrier. Its place must lie after everything that the lane
    /// has seen, and only one version may be live, or a few, if it takes a swap back that is not settled. `layout` names the fields of extensions from now on: those so
    /// far, and behind them what the newer version wants besides.
    pub fn deploy(&mut self, scheduled: Scheduled, rule: Box<dyn SessionRule>, layout: Vec<String>) {
        // Before the first event there is no time that has passed.
        let is_later = scheduled.from > self.watermark || self.watermark == EventTime::BEGINNING;
        debug_assert!(is_later && self.versions.has_room());
        self.versions.add(scheduled, rule);
        let known = self.totals.len();
        self.totals.extend(self.versions.metrics().iter().skip(known).map(Total::of));
        self.wants_key = self.versions.wants_key();
        self.config.layout = layout;
        self.settling = Settling::default();
        self.unfit.clear();
    }

    /// Takes the newer version back, as if it had never been: only while B has not reached its place. What it has closed
    /// is folded again by the older one at the next barrier.
    pub fn strike(&mut self) {
        let Some((older, newer)) = self.versions.swap() else { return };
        let at = newer.from;
        debug_assert!(self.watermark.minus(self.config.lateness_ms) < at);
        for slot in 0..self.entries.len() as u32 {
            let e = &mut self.entries[slot as usize];
            if !e.live {
                continue;
            }
            debug_assert!(e.state.base.as_ref().is_none_or(|o| o.version <= older));
            let visit = match e.state.tail.as_deref_mut() {
                Some(tail) => {
                    if let Some(told) = tail.told_mut() {
                        told.poison.retain(|p| p.event.time < at);
                    }
                    let before = tail.rows[..tail.sorted].partition_point(|r| r.time < at);
                    tail.void_from(before);
                    EventTime::BEGINNING
                }
                // Its timers may have been the newer version's.
                None => e.state.base.as_ref().map_or(EventTime::INFINITY, Open::next_timer),
            };
            // What the older version makes of it and nobody has been told is told at the next early tick.
            if self.config.early && e.state.tail.is_some() && !e.dirty {
                e.dirty = true;
                self.dirty.push(slot);
            }
            self.schedule(slot, visit);
        }
        self.versions.strike();
        self.settling = Settling::default();
        self.unfit.clear();
        self.wants_key = self.versions.wants_key();
    }

    /// Lets all versions but the newest go, once every lane of the pipeline has said that it is
    /// [settled](super::LaneEpoch::settled).
    pub fn retire(&mut self) {
        self.versions.retire();
        self.unfit.clear();
        self.wants_key = self.versions.wants_key();
    }

    /// The keys to look at in this barrier, if B has reached the swap at hand, or W a place where draining ends.
    pub(super) fn settling(&self, now: Now) -> Option<Look> {
        let (_, newer) = self.versions.swap()?;
        let reached = now.b >= newer.from;
        let keys = self.settling.next..(self.settling.next + SETTLE_KEYS).min(self.entries.len());
        (reached || self.versions.has_drained(now.w)).then_some(Look {
            keys,
            at: newer.from,
            newer: newer.version,
            reached,
        })
    }

    /// Before the fold of a barrier: keys whose base lags behind B with events before S are folded again from base, so
    /// that it moves on; so are those whose session has been drained for too long, since no timer may wake them: when they
    /// were looked at last there may have been no swap, or another. Adds them to the keys to visit.
    pub(super) fn catch_up(&mut self, now: Now, slots: &mut Vec<u32>) {
        let Some(Look { keys, at, reached, .. }) = self.settling(now) else { return };
        for slot in keys {
            let e = &mut self.entries[slot];
            if !e.live {
                continue;
            }
            let base = e.state.base.as_ref();
            let tip = e.state.tail.as_deref().map_or(base, |t| t.restart(base).1);
            let ended = |open: Option<&Open>, time: EventTime| {
                open.and_then(|o| self.versions.drained_by(o.version)).is_some_and(|end| time >= end)
            };
            // What the tip has closed beyond B only waits for B.
            if ended(base, now.b) || ended(tip, now.w) {
                slots.push(slot as u32);
            }
            let Some(tail) = e.state.tail.as_deref_mut().filter(|_| reached) else { continue };
            if tail.rows.iter().any(|r| r.time < at) {
                tail.void_from(0);
                slots.push(slot as u32);
            }
        }
        slots.sort_unstable();
        slots.dedup();
    }

    /// After the fold of a barrier: migrates the bases that still stand before S, and says whether any key does.
    pub(super) fn settle(&mut self, now: Now) {
        let Some(Look { keys, at, newer, reached }) = self.settling(now) else { return };
        let migrates = self.versions.swap().is_some_and(|(_, newer)| newer.policy == Policy::Migrate);
        let mut lagging = Vec::new();
        // A round that began before B was there says nothing.
        self.settling.found |= !reached;
        for slot in keys.clone().filter(|_| reached) {
            let e = &self.entries[slot];
            let waits = e.state.tail.as_deref().is_some_and(|t| t.rows.iter().any(|r| r.time < at));
            let is_old = e.state.base.as_ref().is_some_and(|o| o.version < newer);
            if e.live && is_old && !waits && migrates {
                lagging.push(slot as u32);
            } else if e.live && (waits || is_old) {
                self.settling.found = true;
            }
        }
        self.migrate_bases(&lagging, newer);
        self.settling.next = keys.end;
        if keys.end >= self.entries.len() {
            self.out.settled = (!self.settling.found).then_some(newer);
            self.settling = Settling::default();
        }
    }

    /// A base that cannot be migrated is visited: the turn across S says what becomes of the session.
    fn migrate_bases(&mut self, slots: &[u32], newer: Version) {
        let open = |s: &u32| self.entries[*s as usize].state.base.as_ref();
        let states: Vec<(Version, &[u8], &[Timer])> =
            slots.iter().filter_map(open).map(|o| (o.version, &*o.state, &*o.timers)).collect();
        for (slot, migrated) in slots.iter().zip(self.versions.migrate(&states)) {
            let e = &mut self.entries[*slot as usize];
            if !e.touched {
                e.touched = true;
                self.touched.push(*slot);
            }
            match (migrated, &mut e.state.base) {
                (Ok((state, timers)), Some(open)) => {
                    open.version = newer;
                    open.state = state.into();
                    open.timers = timers.as_slice().into();
                }
                _ => {
                    self.settling.found = true;
                    self.schedule(*slot, EventTime::BEGINNING);
                }
            }
        }
    }
}
