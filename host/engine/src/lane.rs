//! A lane: the one owner of some key groups of one pipeline. No locks, no sharing, no clock.
//!
//! Rows come in and only mark their key; `sweep` and `barrier` fold the marked keys that are due, many
//! to a call of the rule. Everything that leaves (changed state, revisions, dead letters, counts) leaves at a barrier.

mod answer;
mod base;
mod compare;
mod emit;
mod entries;
mod epoch;
mod keys;
mod look;
mod room;
mod state;
mod swap;
mod turn;

pub use epoch::{Barrier, LaneCounts, LaneEpoch, LaneFault, StateDamage};
pub use look::{KeyLook, LiveState};

use crate::bounds::{KEY_EXT_BYTES, LOOKUP_ROWS};
use crate::event::{RowHead, Rows, ext};
use crate::hot::{HotKey, HotKeys};
use crate::key::KeyForm;
use crate::key_state::{Ident, KeyState, Row, Tail};
use crate::letter::RecordLetter;
use crate::metrics::Total;
use crate::rule::{Results, Turns};
use crate::time::EventTime;
use crate::versions::{Version, Versions};
use entries::Entries;
use hashbrown::HashTable;
use keys::{NO_SLOT, Place};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use swap::Settling;
use turn::Pending;

/// What a lane must know of its pipeline.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// The pipeline's name: part of every session id.
    pub pipeline: String,
    /// How keys are shown.
    pub key_form: KeyForm,
    /// How long after W a session may still be corrected, ms.
    pub lateness_ms: i64,
    /// Whether open sessions are reported at early ticks.
    pub early: bool,
    /// Events that one key's suffix may hold.
    pub events_per_key: usize,
    /// Bytes that all suffixes of this lane may hold.
    pub suffix_bytes: usize,
    /// Keys of this lane that may have a session that is open or may still change.
    pub open_sessions: u64,
    /// The key groups of this lane.
    pub groups: Range<u32>,
    /// Names of the sources, by number.
    pub sources: Vec<String>,
    /// Names of the declared fields, in the order of the extension.
    pub layout: Vec<String>,
}

/// Where a batch came from, for its dead letters.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The source's name.
    pub source: &'a str,
    /// The partition's name.
    pub partition: &'a str,
    /// The block that the batch's records stand in.
    pub raw: &'a [u8],
}

const NEVER: i64 = i64::MAX;

/// A key and its place in the lane's lists. What every event needs stands in the first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
struct Entry {
    due: EventTime,
    /// The bucket of the due index that holds this key, or `NEVER`.
    bucket: i64,
    /// In the list of keys whose state changed in this epoch.
    touched: bool,
    /// Has rows since the last early tick.
    dirty: bool,
    /// An epoch record may hold it.
    persisted: bool,
    live: bool,
    /// Bytes of its base, as counted in the lane's.
    base_bytes: u32,
    state: KeyState,
}

const _: () = assert!(std::mem::offset_of!(Entry, state) + std::mem::offset_of!(KeyState, settled_b) <= 64);

/// See the module's documentation.
pub struct Lane {
    config: LaneConfig,
    versions: Versions,
    wants_key: bool,
    settling: Settling,
    /// Keys (hashes) whose session has ended at the swap at hand because its state could not be migrated.
    unfit: HashSet<u64>,
    table: HashTable<Place>,
    entries: Entries,
    free: Vec<u32>,
    due: BTreeMap<i64, Vec<u32>>,
    touched: Vec<u32>,
    dirty: Vec<u32>,
    /// Emptied tails, their memory to be used again.
    #[allow(
        clippy::vec_box,
        reason = "they go back into entries as boxes; unboxing them would move the vectors"
    )]
    tails: Vec<Box<Tail>>,
    suffix_bytes: usize,
    base_bytes: u64,
    live_keys: u64,
    watermark: EventTime,
    /// The watermark at which room was last made for new keys.
    room_made_at: EventTime,
    turns: Turns,
    /// Whose state each turn begins with.
    carried: Vec<Version>,
    results: Results,
    pending: Vec<Pending>,
    /// Of the rules' own metrics, since the last barrier.
    totals: Vec<Total>,
    hot: HotKeys,
    out: LaneEpoch,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("config", &self.config)
            .field("live_keys", &self.live_keys)
            .finish_non_exhaustive()
    }
}

impl Lane {
    /// A lane without keys.
    #[must_use]
    pub fn new(config: LaneConfig, versions: Versions) -> Self {
        Lane {
            totals: versions.metrics().iter().map(Total::of).collect(),
            config,
            wants_key: versions.wants_key(),
            versions,
            settling: Settling::default(),
            unfit: HashSet::new(),
            table: HashTable::new(),
            entries: Entries::default(),
            free: Vec::new(),
            due: BTreeMap::new(),
            touched: Vec::new(),
            dirty: Vec::new(),
            tails: Vec::new(),
            suffix_bytes: 0,
            base_bytes: 0,
            live_keys: 0,
            watermark: EventTime::BEGINNING,
            room_made_at: EventTime::BEGINNING,
            turns: Turns::default(),
            carried: Vec::new(),
            results: Results::default(),
            pending: Vec::new(),
            hot: HotKeys::default(),
            out: LaneEpoch::default(),
        }
    }

    /// Whether rows may be folded between barriers: what closes then can never change.
    #[must_use]
    pub fn sweeps(&self) -> bool {
        self.config.lateness_ms == 0 && !self.config.early
    }

    /// Takes in a batch. `watermark` is the one before the batch; the rows are not before its frontier.
    pub fn insert(&mut self, rows: &Rows, watermark: EventTime, origin: Origin<'_>) -> Result<(), LaneFault> {
        self.watermark = self.watermark.max(watermark);
        let mut slots = [0; LOOKUP_ROWS];
        self.hot.see(&rows.heads);
        for heads in rows.heads.chunks(LOOKUP_ROWS) {
            self.prepare(heads.len())?;
            let slots = &mut slots[..heads.len()];
            for (slot, head) in slots.iter_mut().zip(heads) {
                *slot = self.guess(head.key_hash);
            }
            self.fetch_keys(slots);
            for (slot, head) in slots.iter_mut().zip(heads) {
                let key = rows.key(head);
                if !self.is_at(*slot, key) {
                    *slot = self.slot_in_room(head.key_hash, key);
                }
            }
            self.fetch(slots, |t| t.rows.last(), |t| t.ext.last());
            for (slot, head) in slots.iter().zip(heads) {
                match *slot {
                    NO_SLOT => self.refuse(head, rows.key(head), origin),
                    slot => self.push_row(slot, head, rows.ext(head), origin),
                }
            }
        }
        Ok(())
    }

    /// Reads a little of the keys that are about to be worked on; see [`Lane::fetch`].
    fn fetch_keys(&self, slots: &[u32]) {
        let entries = slots.iter().filter_map(|s| self.entries.get(*s as usize));
        std::hint::black_box(entries.fold(0, |n, e| n ^ e.state.hash));
    }

    /// Reads a little of what is about to be worked on. Keys lie far apart in memory; in loops as short as
    /// these the processor waits for many of them at once, instead of for one after the other.
    fn fetch(&self, slots: &[u32], row: impl Fn(&Tail) -> Option<&Row>, ext: impl Fn(&Tail) -> Option<&u8>) {
        let tails = || slots.iter().filter_map(|s| self.entries.get(*s as usize)?.state.tail.as_deref());
        std::hint::black_box(tails().fold(0, |n, t| n ^ t.rows.len()));
        std::hint::black_box(tails().filter_map(row).fold(0, |n, r| n ^ r.ext_at));
        std::hint::black_box(tails().filter_map(ext).fold(0, |n, b| n ^ b));
    }

    fn push_row(&mut self, slot: u32, head: &RowHead, ext: &[u8], origin: Origin<'_>) {
        if self.over_bounds(slot, head, ext, origin) {
            return;
        }
        let e = &mut self.entries[slot as usize];
        let tail = e.state.tail.get_or_insert_with(|| self.tails.pop().unwrap_or_default());
        let at = tail.ext.len() as u32;
        if !ext.is_empty() {
            tail.ext.extend_from_slice(ext);
        }
        tail.rows.push(Row::new(head.time, head.position, at, ext.len() as u32));
        self.suffix_bytes += size_of::<Row>() + ext.len();
        if !e.touched {
            e.touched = true;
            self.touched.push(slot);
        }
        if !e.dirty {
            e.dirty = true;
            self.dirty.push(slot);
        }
        self.schedule(slot, head.time.plus(1));
    }

    /// Whether the event goes over a bound (SEMANTICS 31): then it is counted as a copy or dead-lettered.
    fn over_bounds(&mut self, slot: u32, head: &RowHead, ext: &[u8], origin: Origin<'_>) -> bool {
        let e = &mut self.entries[slot as usize];
        let Some(tail) = e.state.tail.as_deref_mut() else { return false };
        let key_full = tail.rows.len() >= self.config.events_per_key || tail.ext.len() >= KEY_EXT_BYTES;
        let lane_full = self.suffix_bytes >= self.config.suffix_bytes;
        if !key_full && !lane_full {
            return false;
        }
        let held_bytes = tail.suffix_bytes();
        let copies = tail.put_in_order();
        self.suffix_bytes = self.suffix_bytes.saturating_sub(held_bytes - tail.suffix_bytes());
        self.out.counts.duplicates += copies.duplicates;
        self.out.counts.conflicts += copies.conflicts;
        // Rows before B wait only for the next fold; they are no longer the suffix's.
        let b = self.watermark.minus(self.config.lateness_ms);
        let waiting = tail.rows.len() - tail.rows.partition_point(|r| r.time < b);
        if !lane_full && waiting < self.config.events_per_key && tail.ext.len() < KEY_EXT_BYTES {
            return false;
        }
        let ident = Ident { time: head.time, position: head.position, id: ext::id(ext).map(Into::into) };
        if tail.rows.binary_search_by(|r| r.ident(&tail.ext).order(&ident)).is_ok() {
            self.out.counts.duplicates += 1;
            return true;
        }
        let key = self.config.key_form.display(&e.state.key);
        let (reason, message) = if lane_full {
            ("suffix_over_cap", "all pending events together are over `limits.suffix_bytes`")
        } else {
            ("key_over_cap", "this key has more pending events than `limits.events_per_key`")
        };
        if lane_full {
            self.out.counts.suffix_over_cap += 1;
        } else {
            self.out.counts.key_over_cap += 1;
            self.out.key_over_cap.get_or_insert_with(|| key.to_string());
        }
        let raw_at = head.raw_at as usize;
        RecordLetter {
            reason,
            stage: "fold",
            source: origin.source,
            partition: origin.partition,
            position: Some(head.position),
            message,
            fields: &[],
            key: Some(&key),
            time_ms: Some(head.time.ms()),
            id: None,
            plugin: None,
            digest: None,
            event: &[],
            raw: origin.raw.get(raw_at..raw_at + head.raw_len as usize),
            raw_bytes: 0,
        }
        .write(&mut self.out.letters);
        true
    }

    /// Bytes of dead letters since the last barrier: what the caller bounds an epoch by.
    #[must_use]
    pub fn letter_bytes(&self) -> usize {
        self.out.letters.len()
    }

    /// Folds what W has passed. Only where [`Lane::sweeps`].
    pub fn sweep(&mut self) -> Result<(), LaneFault> {
        let due = self.take_due(self.watermark);
        let barrier = Barrier { watermark: self.watermark, early_tick: false, at_end: false };
        self.fold(&due, self.now(barrier, false))
    }

    /// Names the keys that were hot since the last barrier.
    fn put_hot_keys(&mut self) {
        let Some(hot) = self.hot.end() else { return };
        let named = |(hash, share)| {
            // A key that found no room is not there.
            let e = self.entries.get(self.guess(hash) as usize).filter(|e| e.state.hash == hash)?;
            Some(HotKey { key: self.config.key_form.display(&e.state.key).into_owned(), share })
        };
        self.out.hot_keys = Some(hot.into_iter().filter_map(named).collect());
    }

    /// What the rules' own metrics have grown by leaves with the epoch.
    fn put_totals(&mut self) {
        for (total, metric) in self.totals.iter_mut().zip(self.versions.metrics()) {
            if total.count > 0 {
                self.out.metrics.insert(metric.name.clone(), std::mem::replace(total, Total::of(metric)));
            }
        }
    }

    /// Folds, compares, encodes: everything up to this barrier leaves in the answer.
    pub fn barrier(&mut self, barrier: Barrier) -> Result<LaneEpoch, LaneFault> {
        self.put_hot_keys();
        let mut slots = if barrier.at_end {
            self.due.clear();
            (0..self.entries.len() as u32).filter(|s| self.entries[*s as usize].live).collect()
        } else {
            self.watermark = self.watermark.max(barrier.watermark);
            self.take_due(self.watermark)
        };
        if !barrier.at_end {
            let w = self.watermark;
            let dirty = std::mem::take(&mut self.dirty);
            for s in &dirty {
                let e = &self.entries[*s as usize];
                let known = e.state.tail.as_ref().is_some_and(|t| t.is_told(w));
                // A key that is due at W stands in the list already; one that is never due does not.
                if e.live && e.due > w && (barrier.early_tick || known) {
                    slots.push(*s);
                }
                // Between early ticks a key stays marked: what is open has not been told yet.
                if e.live && !barrier.early_tick && self.config.early {
                    self.dirty.push(*s);
                }
            }
            for s in dirty {
                self.entries[s as usize].dirty = false;
            }
            for s in &self.dirty {
                self.entries[*s as usize].dirty = true;
            }
        }
        let barrier = Barrier { watermark: self.watermark, ..barrier };
        let now = self.now(barrier, true);
        self.catch_up(now, &mut slots);
        self.fold(&slots, now)?;
        self.settle(now);
        self.encode_touched();
        self.put_totals();
        self.out.live_keys = self.live_keys;
        self.out.suffix_bytes = self.suffix_bytes as u64;
        self.out.base_bytes = self.base_bytes;
        Ok(std::mem::take(&mut self.out))
    }
}

#[cfg(test)]
mod tests;
