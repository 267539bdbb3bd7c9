//! A lane: the one owner of some key groups of one pipeline. No locks, no sharing, no clock.
//!
//! Rows come in and only mark their key; `sweep` and `barrier` fold the marked keys that are due, many
//! to a call of the rule. Everything that leaves (changed state, revisions, dead letters, counts) leaves at a barrier.

use crate::bounds::{
    CALL_INPUTS, CALL_TURNS, DUE_BUCKET_BITS, KEY_EXT_BYTES, LOOKUP_ROWS, SNAPSHOT_ROWS, SNAPSHOTS_PER_TURN,
};
use crate::event::{Position, RowHead, Rows, ext};
use crate::key::{KeyForm, key_group, session_id};
use crate::key_state::codec::{self, Extent};
use crate::key_state::{Closed, Ident, KeyState, Open, Poison, Rejected, Row, Sent, Snapshot, Tail};
use crate::letter::{RecordLetter, SessionLetter};
use crate::outbox::{SessionRow, Stage};
use crate::rule::{
    Cause, Description, Fault, Input, OpenHead, PLUGIN_FAULT, Place, Rejection, Results, SessionRule, Span,
    StateAt, Turn, TurnResult, Turns,
};
use crate::time::EventTime;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

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
    /// The key groups of this lane.
    pub groups: Range<u32>,
    /// Names of the sources, by number.
    pub sources: Vec<String>,
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

/// What happened in an epoch, in events and revisions.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneCounts {
    /// Copies of an event, dropped.
    pub duplicates: u64,
    /// Copies whose content differed.
    pub conflicts: u64,
    /// Events over their key's bound: dead letters.
    pub key_over_cap: u64,
    /// Events over the bound of all suffixes: dead letters.
    pub suffix_over_cap: u64,
    /// Revisions by stage: early, final, corrected, retracted.
    pub revisions: [u64; 4],
    /// Events stepped by the rule.
    pub steps: u64,
    /// Turns.
    pub turns: u64,
}

impl LaneCounts {
    /// Dead letters out of the fold, by reason.
    pub fn letters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("key_over_cap", self.key_over_cap), ("suffix_over_cap", self.suffix_over_cap)]
            .into_iter()
            .filter(|(_, n)| *n > 0)
    }
    /// Adds another lane's or epoch's counts.
    pub fn add(&mut self, o: &LaneCounts) {
        self.duplicates += o.duplicates;
        self.conflicts += o.conflicts;
        self.key_over_cap += o.key_over_cap;
        self.suffix_over_cap += o.suffix_over_cap;
        self.steps += o.steps;
        self.turns += o.turns;
        for (a, b) in self.revisions.iter_mut().zip(o.revisions) {
            *a += b;
        }
    }
}

/// What a barrier asks.
#[derive(Clone, Copy, Debug)]
pub struct Barrier {
    /// The watermark. `INFINITY` only together with `at_end`.
    pub watermark: EventTime,
    /// Whether open sessions are to be reported.
    pub early_tick: bool,
    /// The input has ended and everything closes (SEMANTICS 9).
    pub at_end: bool,
}

/// What leaves a lane at a barrier.
#[derive(Default, Debug)]
pub struct LaneEpoch {
    /// Changed state, for the epoch record.
    pub state: Vec<u8>,
    /// Revisions (see [`crate::outbox`]).
    pub rows: Vec<u8>,
    /// Dead letters, JSON lines.
    pub letters: Vec<u8>,
    /// What happened.
    pub counts: LaneCounts,
    /// Keys with an open session or pending events, after the epoch.
    pub live_keys: u64,
    /// Bytes in suffixes, after the epoch.
    pub suffix_bytes: u64,
    /// The key that went over its cap first in this epoch, as rows show it.
    pub hot_key: Option<String>,
    /// Dead letters that the rule has caused, by reason: rejected events, discarded sessions, faults.
    pub dead: BTreeMap<String, u64>,
}

/// The rule failed at a key. The pipeline cannot go on with it.
#[derive(Debug, thiserror::Error)]
#[error("rule failed at key {key}: {message}")]
pub struct LaneFault {
    /// The key, as rows show it.
    pub key: String,
    /// What the rule said.
    pub message: String,
}

/// State bytes that do not decode: a host bug or another program's file, since the record's checksum held.
#[derive(Debug, thiserror::Error)]
#[error("the state section does not decode at byte {at}")]
pub struct StateDamage {
    /// Byte within the section.
    pub at: usize,
}

const NEVER: i64 = i64::MAX;
const KEY_RECORD: u8 = 0;
const IMAGE: u8 = 1;

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
    state: KeyState,
}

const _: () = assert!(std::mem::offset_of!(Entry, state) + std::mem::offset_of!(KeyState, settled_b) <= 64);

/// What a turn was made from, to read its answer by.
#[derive(Clone, Copy, Debug)]
struct Pending {
    slot: u32,
    restart: usize,
    folded: usize,
    reporting: bool,
    /// W and B agree on all that was folded: the state after the turn is the new base.
    direct: bool,
}

/// See the module's documentation.
pub struct Lane {
    config: LaneConfig,
    rule: Box<dyn SessionRule>,
    description: Description,
    table: HashTable<u32>,
    entries: Vec<Entry>,
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
    live_keys: u64,
    watermark: EventTime,
    turns: Turns,
    results: Results,
    pending: Vec<Pending>,
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

fn bucket(t: EventTime) -> i64 {
    t.ms() >> DUE_BUCKET_BITS
}

impl Lane {
    /// A lane without keys.
    #[must_use]
    pub fn new(config: LaneConfig, rule: Box<dyn SessionRule>) -> Self {
        let description = rule.describe().clone();
        Lane {
            config,
            rule,
            description,
            table: HashTable::new(),
            entries: Vec::new(),
            free: Vec::new(),
            due: BTreeMap::new(),
            touched: Vec::new(),
            dirty: Vec::new(),
            tails: Vec::new(),
            suffix_bytes: 0,
            live_keys: 0,
            watermark: EventTime::BEGINNING,
            turns: Turns::default(),
            results: Results::default(),
            pending: Vec::new(),
            out: LaneEpoch::default(),
        }
    }

    /// Whether rows may be folded between barriers: what closes then can never change.
    #[must_use]
    pub fn sweeps(&self) -> bool {
        self.config.lateness_ms == 0 && !self.config.early
    }

    /// Takes in a batch. `watermark` is the one before the batch; the rows are not before its frontier.
    pub fn insert(&mut self, rows: &Rows, watermark: EventTime, origin: Origin<'_>) {
        self.watermark = self.watermark.max(watermark);
        let mut slots = [0; LOOKUP_ROWS];
        for heads in rows.heads.chunks(LOOKUP_ROWS) {
            let slots = &mut slots[..heads.len()];
            for (slot, head) in slots.iter_mut().zip(heads) {
                *slot = self.slot(head.key_hash, rows.key(head));
            }
            self.fetch(slots, |t| t.rows.last());
            for (slot, head) in slots.iter().zip(heads) {
                self.push_row(*slot, head, rows.ext(head), origin);
            }
        }
    }

    /// Reads a little of what is about to be worked on. Keys lie far apart in memory; in loops as short as
    /// these the processor waits for many of them at once, instead of for one after the other.
    fn fetch(&self, slots: &[u32], row: impl Fn(&Tail) -> Option<&Row>) {
        let tails = || slots.iter().filter_map(|s| self.entries[*s as usize].state.tail.as_deref());
        std::hint::black_box(tails().fold(0, |n, t| n ^ t.rows.len()));
        std::hint::black_box(tails().filter_map(row).fold(0, |n, r| n ^ r.ext_at));
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
        let copies = tail.put_in_order();
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
            self.out.hot_key.get_or_insert_with(|| key.to_string());
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
            event: &[],
            raw: origin.raw.get(raw_at..raw_at + head.raw_len as usize),
        }
        .write(&mut self.out.letters);
        true
    }

    #[inline]
    fn slot(&mut self, hash: u64, key: &[u8]) -> u32 {
        let entries = &self.entries;
        let found = self.table.find(hash, |s| *entries[*s as usize].state.key == *key);
        match found {
            Some(s) => *s,
            None => self.add_key(hash, key),
        }
    }

    #[cold]
    fn add_key(&mut self, hash: u64, key: &[u8]) -> u32 {
        let state =
            KeyState { hash, key: key.into(), base: None, settled_b: EventTime::BEGINNING, tail: None };
        let due = EventTime::INFINITY;
        let e =
            Entry { state, due, bucket: NEVER, touched: false, dirty: false, persisted: false, live: true };
        let slot = if let Some(s) = self.free.pop() {
            // The list of dirty keys may still name the slot.
            let dirty = self.entries[s as usize].dirty;
            self.entries[s as usize] = Entry { dirty, ..e };
            s
        } else {
            self.entries.push(e);
            (self.entries.len() - 1) as u32
        };
        let entries = &self.entries;
        self.table.insert_unique(hash, slot, |s| entries[*s as usize].state.hash);
        self.live_keys += 1;
        slot
    }

    /// Makes sure that the key is visited when W reaches `at`.
    fn schedule(&mut self, slot: u32, at: EventTime) {
        let e = &mut self.entries[slot as usize];
        e.due = e.due.min(at);
        let b = bucket(e.due);
        if e.due != EventTime::INFINITY && b < e.bucket {
            e.bucket = b;
            self.due.entry(b).or_default().push(slot);
        }
    }

    /// Takes the keys that are due at `w` out of the index.
    fn take_due(&mut self, w: EventTime) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some(first) = self.due.first_entry() {
            let b = *first.key();
            if b > bucket(w) {
                break;
            }
            let slots = first.remove();
            let mut stays = Vec::new();
            for s in slots {
                let e = &mut self.entries[s as usize];
                if !e.live || e.bucket != b {
                    continue;
                }
                if e.due <= w {
                    e.bucket = NEVER;
                    due.push(s);
                } else if bucket(e.due) == b {
                    stays.push(s);
                } else {
                    e.bucket = NEVER;
                    self.schedule(s, EventTime::INFINITY);
                }
            }
            if !stays.is_empty() {
                self.due.insert(b, stays);
                break;
            }
        }
        due
    }

    /// Bytes of dead letters since the last barrier: what the caller bounds an epoch by.
    #[must_use]
    pub fn letter_bytes(&self) -> usize {
        self.out.letters.len()
    }

    /// Folds what W has passed. Only where [`Lane::sweeps`].
    pub fn sweep(&mut self) -> Result<(), LaneFault> {
        let due = self.take_due(self.watermark);
        self.fold(&due, Barrier { watermark: self.watermark, early_tick: false, at_end: false }, false)
    }

    /// Folds, compares, encodes: everything up to this barrier leaves in the answer.
    pub fn barrier(&mut self, barrier: Barrier) -> Result<LaneEpoch, LaneFault> {
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
                let known = e.state.tail.as_ref().is_some_and(|t| !t.sent.is_empty());
                // A key that is due at W stands in the list already.
                if e.live && e.bucket != NEVER && e.due > w && (barrier.early_tick || known) {
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
        self.fold(&slots, Barrier { watermark: self.watermark, ..barrier }, true)?;
        self.encode_touched();
        self.out.live_keys = self.live_keys;
        self.out.suffix_bytes = self.suffix_bytes as u64;
        Ok(std::mem::take(&mut self.out))
    }

    fn fold(&mut self, slots: &[u32], barrier: Barrier, at_barrier: bool) -> Result<(), LaneFault> {
        let w = if barrier.at_end { EventTime::INFINITY } else { barrier.watermark };
        let now = Now { w, b: w.minus(self.config.lateness_ms), barrier, at_barrier };
        for some in slots.chunks(LOOKUP_ROWS) {
            let settled = some.iter().map(|s| self.entries[*s as usize].state.settled_b.ms());
            std::hint::black_box(settled.fold(0, |n, b| n ^ b));
            self.fetch(some, |t| t.rows.first());
            for slot in some {
                self.plan(*slot, now);
                if self.turns.inputs.len() >= CALL_INPUTS || self.turns.turns.len() >= CALL_TURNS {
                    self.call(now)?;
                }
            }
        }
        self.call(now)
    }

    /// Makes the turn of one key.
    fn plan(&mut self, slot: u32, now: Now) {
        let e = &mut self.entries[slot as usize];
        let mut empty = Tail::default();
        let tail = e.state.tail.as_deref_mut().unwrap_or(&mut empty);
        let copies = tail.put_in_order();
        self.out.counts.duplicates += copies.duplicates;
        self.out.counts.conflicts += copies.conflicts;
        let reporting =
            now.at_barrier && (now.barrier.early_tick || !tail.sent.is_empty() || now.barrier.at_end);
        let before_w = tail.rows.partition_point(|r| r.time < now.w);
        let restart = tail.snapshots.last().map_or(0, |s| s.rows);
        let folded = if reporting { tail.rows.len() } else { before_w.max(restart) };
        let direct = now.b == now.w && folded == before_w;
        tail.closed.retain(|c| c.tag < restart);
        tail.rejected.retain(|r| r.row < restart);
        let open = tail.snapshots.last().map_or(e.state.base.as_ref(), |s| s.open.as_ref());
        let t = &mut self.turns;
        let key_at = t.bytes.len();
        if self.description.wants_key {
            t.bytes.extend_from_slice(self.config.key_form.display(&e.state.key).as_bytes());
        }
        let key = Span::between(key_at, t.bytes.len());
        let (state_at, timers_at) = (t.bytes.len(), t.timers.len());
        if let Some(o) = open {
            t.bytes.extend_from_slice(&o.state);
            t.timers.extend_from_slice(&o.timers);
        }
        let state = Span::between(state_at, t.bytes.len());
        let inputs_at = t.inputs.len();
        for r in &tail.rows[restart..folded] {
            let ext = r.ext(&tail.ext);
            let at = t.bytes.len();
            t.bytes.extend_from_slice(ext);
            let skip = !tail.poison.is_empty() && tail.is_poison(r);
            t.inputs.push(Input { time: r.time, ext: Span::between(at, t.bytes.len()), skip });
        }
        let wanted_at = t.wanted.len();
        if !direct {
            let before_b = tail.rows.partition_point(|r| r.time < now.b);
            wanted(restart, folded, before_b, &mut t.wanted);
        }
        t.turns.push(Turn {
            key,
            open: open.map(|o| OpenHead { start: o.first.time, last: o.last, count: o.count }),
            state,
            timers: Span::between(timers_at, t.timers.len()),
            inputs: Span::between(inputs_at, t.inputs.len()),
            until: now.w,
            at_end: now.barrier.at_end,
            report_open: reporting,
            wanted: Span::between(wanted_at, t.wanted.len()),
        });
        self.out.counts.steps += (folded - restart) as u64;
        self.pending.push(Pending { slot, restart, folded, reporting, direct });
    }

    fn call(&mut self, now: Now) -> Result<(), LaneFault> {
        if self.turns.turns.is_empty() {
            return Ok(());
        }
        let mut results = std::mem::take(&mut self.results);
        self.rule.call(&self.turns, &mut results);
        let pending = std::mem::take(&mut self.pending);
        self.out.counts.turns += pending.len() as u64;
        for (i, p) in pending.iter().enumerate() {
            let r = results.turns.get(i).cloned().unwrap_or_else(missing_answer);
            if let Some(f) = r.fault {
                let key = self.config.key_form.display(&self.entries[p.slot as usize].state.key).into_owned();
                return Err(LaneFault { key, message: f.message });
            }
            let wanted = self.turns.turns[i].wanted;
            self.absorb(*p, &r, &results, wanted, now);
        }
        self.results = results;
        self.pending = pending;
        self.pending.clear();
        self.turns.clear();
        Ok(())
    }

    /// Takes in the answer for one key: emits, moves base, finds the next visit.
    fn absorb(&mut self, p: Pending, r: &TurnResult, results: &Results, wanted: Span, now: Now) {
        let e = &mut self.entries[p.slot as usize];
        if !e.touched {
            e.touched = true;
            self.touched.push(p.slot);
        }
        let mut tail = match e.state.tail.take() {
            Some(t) => t,
            None => self.tails.pop().unwrap_or_default(),
        };
        let bytes_before = tail.suffix_bytes();
        let mut emit = Emit {
            pipeline: &self.config.pipeline,
            key: &e.state.key,
            key_form: self.config.key_form,
            sources: &self.config.sources,
            description: &self.description,
            rows: &mut self.out.rows,
            letters: &mut self.out.letters,
            dead: &mut self.out.dead,
            counts: &mut self.out.counts,
        };
        let closings = &results.closings[r.closings.range()];
        let rejections = &results.rejections[r.rejections.range()];
        reject(&mut tail, rejections, p.restart, results);
        let start = Start {
            open: tail.snapshots.last().map_or(e.state.base.as_ref(), |s| s.open.as_ref()),
            rejections,
            p,
        };
        let told = !tail.sent.is_empty() || !tail.closed.is_empty();
        if p.direct && !told && (!p.reporting || now.barrier.at_end) {
            // Everything that closed here is final and settled; what base lags behind was told before.
            let settled_b = e.state.settled_b;
            for c in closings.iter().filter(|c| !start.closed_before(&tail, c, settled_b)) {
                start.with_closed(&tail, c, results, |c| emit.settled(&c));
            }
            emit.rejected(&mut tail, p.folded);
            advance_direct(&mut e.state.base, &mut tail, p, r, results);
        } else {
            let new: Vec<Closed> = closings.iter().map(|c| start.closed(&tail, c, results)).collect();
            let snapshots: Vec<Snapshot> = self.turns.wanted[wanted.range()]
                .iter()
                .zip(&results.snapshots[r.snapshots.range()])
                .map(|(i, s)| {
                    let rows = p.restart + *i as usize + 1;
                    Snapshot { rows, open: start.open_at(&tail, s, rows, results) }
                })
                .collect();
            let open = start.open_at(&tail, &r.end, p.folded, results);
            tail.closed.extend(new);
            let open_fields = text(results, r.open_fields);
            compare(&mut tail, open.as_ref(), open_fields, e.state.settled_b, p, now, &mut emit);
            if p.direct {
                e.state.base = open;
                emit.rejected(&mut tail, p.folded);
                tail.drain(p.folded);
                tail.closed.clear();
            } else {
                tail.snapshots.extend(snapshots);
                advance(&mut e.state.base, &mut tail, open.as_ref(), p, now, &mut emit);
            }
        }
        e.state.settled_b = e.state.settled_b.max(now.b);
        e.due = next_visit(&e.state.base, &tail, p, now, self.config.lateness_ms);
        self.suffix_bytes = (self.suffix_bytes + tail.suffix_bytes()).saturating_sub(bytes_before);
        if tail.is_empty() {
            tail.clear();
            self.tails.push(tail);
        } else {
            e.state.tail = Some(tail);
        }
        e.bucket = NEVER;
        let due = e.due;
        self.schedule(p.slot, due);
    }

    fn encode_touched(&mut self) {
        for slot in std::mem::take(&mut self.touched) {
            let e = &mut self.entries[slot as usize];
            e.touched = false;
            let gone = e.state.base.is_none()
                && e.state.tail.as_deref().is_none_or(|t| t.rows.is_empty() && t.sent.is_empty());
            if gone {
                if e.persisted {
                    self.out.state.push(KEY_RECORD);
                    codec::removed(&e.state.key, &mut self.out.state);
                }
                self.forget(slot);
                continue;
            }
            self.out.state.push(KEY_RECORD);
            codec::encode(&e.state, Extent::Change, &mut self.out.state);
            e.persisted = true;
            if let Some(t) = &mut e.state.tail {
                t.mark_persisted();
            }
        }
    }

    fn forget(&mut self, slot: u32) {
        let e = &mut self.entries[slot as usize];
        e.live = false;
        e.bucket = NEVER;
        if let Some(mut t) = e.state.tail.take() {
            t.clear();
            self.tails.push(t);
        }
        let hash = e.state.hash;
        if let Ok(found) = self.table.find_entry(hash, |s| *s == slot) {
            found.remove();
        }
        self.free.push(slot);
        self.live_keys -= 1;
    }

    /// Appends a full image of these key groups, after a barrier: recovery needs nothing older of them.
    pub fn image(&self, groups: Range<u32>, out: &mut Vec<u8>) {
        let groups = groups.start.max(self.config.groups.start)..groups.end.min(self.config.groups.end);
        if groups.is_empty() {
            return;
        }
        out.push(IMAGE);
        codec::put_u32(out, groups.start as usize);
        codec::put_u32(out, groups.end as usize);
        for e in self.entries.iter().filter(|e| e.live && groups.contains(&key_group(e.state.hash))) {
            out.push(KEY_RECORD);
            codec::encode(&e.state, Extent::Whole, out);
        }
    }

    /// Applies a state section of an epoch record, oldest epoch first; keys of other lanes are passed over.
    pub fn load(&mut self, section: &[u8]) -> Result<(), StateDamage> {
        let mut r = codec::Reader(section);
        while !r.0.is_empty() {
            let at = section.len() - r.0.len();
            self.load_one(&mut r).ok_or(StateDamage { at })?;
        }
        Ok(())
    }

    fn load_one(&mut self, r: &mut codec::Reader<'_>) -> Option<()> {
        if r.u8()? == IMAGE {
            let groups = r.u32()?..r.u32()?;
            for s in 0..self.entries.len() as u32 {
                let e = &self.entries[s as usize];
                if e.live && groups.contains(&key_group(e.state.hash)) {
                    self.forget(s);
                }
            }
            return Some(());
        }
        let rec = codec::decode(r)?;
        let hash = crate::key::key_hash(rec.key);
        if !self.config.groups.contains(&key_group(hash)) {
            return Some(());
        }
        let slot = self.slot(hash, rec.key);
        if rec.removed {
            self.forget(slot);
        } else {
            let e = &mut self.entries[slot as usize];
            e.persisted = true;
            e.state.apply(rec);
        }
        Some(())
    }

    /// Ends recovery: every key is scheduled. Keys with a suffix are visited at once, since what their
    /// tip closed is derived and was not kept.
    pub fn loaded(&mut self, watermark: EventTime) {
        self.watermark = watermark;
        self.suffix_bytes = 0;
        for s in 0..self.entries.len() as u32 {
            let e = &mut self.entries[s as usize];
            if !e.live {
                continue;
            }
            let timer = e.state.base.as_ref().map_or(EventTime::INFINITY, Open::next_timer);
            let visit = match &e.state.tail {
                Some(t) => {
                    self.suffix_bytes += t.suffix_bytes();
                    let first = t.rows.iter().map(|r| r.time.plus(1)).min().unwrap_or(EventTime::INFINITY);
                    if t.sent.is_empty() { first.min(timer) } else { watermark }
                }
                None => timer,
            };
            // What was not told before the restart is told at the next early tick.
            if self.config.early && !e.dirty {
                e.dirty = true;
                self.dirty.push(s);
            }
            self.schedule(s, visit);
        }
    }
}

#[derive(Clone, Copy)]
struct Now {
    w: EventTime,
    b: EventTime,
    barrier: Barrier,
    at_barrier: bool,
}

fn missing_answer() -> TurnResult {
    TurnResult::failed(Fault::unknown("the rule gave fewer answers than turns"))
}

/// Notes what a turn has rejected, and remembers where the rule failed.
fn reject(tail: &mut Tail, rejections: &[Rejection], restart: usize, results: &Results) {
    for x in rejections {
        let row = restart + x.input as usize;
        tail.rejected.push(Rejected { row, reason: x.reason });
        if x.reason == PLUGIN_FAULT && !tail.is_poison(&tail.rows[row]) {
            let event = tail.rows[row].ident(&tail.ext);
            let message = String::from_utf8_lossy(&results.bytes[x.message.range()]).into();
            tail.poison.push(Poison { event, message });
        }
    }
}

fn text(results: &Results, s: Span) -> &str {
    match std::str::from_utf8(&results.bytes[s.range()]) {
        Ok(t) if !t.is_empty() => t,
        _ => "{}",
    }
}

/// Which inputs to take a snapshot after: the last one, the last before B, and some between.
fn wanted(restart: usize, folded: usize, before_b: usize, out: &mut Vec<u32>) {
    if folded == restart {
        return;
    }
    let n = folded - restart;
    let step = SNAPSHOT_ROWS.max(n / SNAPSHOTS_PER_TURN);
    let boundary = before_b.checked_sub(restart).filter(|b| *b > 0 && *b < n);
    let from = out.len();
    out.extend((step..n).step_by(step).map(|i| i as u32 - 1));
    out.extend(boundary.map(|b| b as u32 - 1));
    out.push(n as u32 - 1);
    out[from..].sort_unstable();
    let mut last = None;
    let mut keep = from;
    for i in from..out.len() {
        if last != Some(out[i]) {
            last = Some(out[i]);
            out[keep] = out[i];
            keep += 1;
        }
    }
    out.truncate(keep);
}

/// A closed session on its way out, nothing copied.
struct ClosedView<'a> {
    anchor_time: EventTime,
    anchor_id: &'a [u8],
    anchor_position: Position,
    end: EventTime,
    last_position: Position,
    count: u64,
    reason: u16,
    discarded: bool,
    fields: &'a str,
}

/// Where a turn began: reads places in its answer.
struct Start<'a> {
    open: Option<&'a Open>,
    rejections: &'a [Rejection],
    p: Pending,
}

impl Start<'_> {
    fn count(&self, first: Place, last: Place) -> u64 {
        let carried = self.open.map_or(0, |o| o.count);
        match (first, last) {
            (Place::Carried, Place::Carried) => carried,
            (Place::Carried, Place::Input(j)) => carried + self.live(0, j),
            (Place::Input(i), Place::Input(j)) => self.live(i, j),
            (Place::Input(_), Place::Carried) => 0,
        }
    }
    /// How many of the inputs from `i` up to and with `j` belong to a session.
    fn live(&self, i: u32, j: u32) -> u64 {
        let dead = self.rejections.iter().filter(|r| r.input >= i && r.input <= j).count() as u64;
        (u64::from(j.saturating_sub(i)) + 1).saturating_sub(dead)
    }
    /// The last of the first `n` inputs that belongs to a session.
    fn last_live(&self, n: usize) -> Place {
        let dead = |i: u32| self.rejections.binary_search_by_key(&i, |r| r.input).is_ok();
        (0..n as u32).rev().find(|i| !dead(*i)).map_or(Place::Carried, Place::Input)
    }
    fn row<'a>(&self, tail: &'a Tail, i: u32) -> &'a Row {
        &tail.rows[self.p.restart + i as usize]
    }
    fn end(&self, tail: &Tail, last: Place) -> (EventTime, Position) {
        match last {
            Place::Input(j) => {
                let row = self.row(tail, j);
                (row.time, row.position)
            }
            Place::Carried => {
                self.open.map_or((EventTime::BEGINNING, NOWHERE), |o| (o.last, o.last_position))
            }
        }
    }

    /// Whether the close was settled at the frontier `b` already.
    fn closed_before(&self, tail: &Tail, c: &crate::rule::Closing, b: EventTime) -> bool {
        match c.cause {
            Cause::Input(i) => self.row(tail, i).time < b,
            Cause::Timer(t) => t.at <= b,
            Cause::End => false,
        }
    }

    fn with_closed(
        &self,
        tail: &Tail,
        c: &crate::rule::Closing,
        results: &Results,
        f: impl FnOnce(ClosedView<'_>),
    ) {
        let (end, last_position) = self.end(tail, c.last);
        let view = |anchor_time, anchor_id, anchor_position| ClosedView {
            anchor_time,
            anchor_id,
            anchor_position,
            end,
            last_position,
            count: self.count(c.first, c.last),
            reason: c.reason,
            discarded: c.discarded,
            fields: text(results, c.fields),
        };
        match (c.first, self.open) {
            (Place::Carried, Some(o)) => {
                let position_id = o.first.position.id_bytes();
                let id = o.first.id.as_deref().unwrap_or(&position_id);
                f(view(o.first.time, id, o.first.position));
            }
            (Place::Input(i), _) => {
                let r = self.row(tail, i);
                let position_id = r.position.id_bytes();
                let id = ext::id(r.ext(&tail.ext)).unwrap_or(&position_id);
                f(view(r.time, id, r.position));
            }
            (Place::Carried, None) => {}
        }
    }

    fn ident(&self, tail: &Tail, place: Place) -> Option<Ident> {
        match place {
            Place::Carried => self.open.map(|o| o.first.clone()),
            Place::Input(i) => Some(self.row(tail, i).ident(&tail.ext)),
        }
    }

    fn closed(&self, tail: &Tail, c: &crate::rule::Closing, results: &Results) -> Closed {
        let inputs = &tail.rows[self.p.restart..self.p.folded];
        let (at, by_event, tag) = match c.cause {
            Cause::Input(i) => (self.row(tail, i).time, true, self.p.restart + i as usize),
            Cause::Timer(t) => (t.at, false, self.p.restart + inputs.partition_point(|r| r.time < t.at)),
            Cause::End => (EventTime::INFINITY, false, self.p.folded),
        };
        let unknown = || Ident { time: EventTime::BEGINNING, position: NOWHERE, id: None };
        let (last, last_position) = self.end(tail, c.last);
        Closed {
            tag,
            at,
            by_event,
            discarded: c.discarded,
            first: self.ident(tail, c.first).unwrap_or_else(unknown),
            last,
            last_position,
            count: self.count(c.first, c.last),
            reason: c.reason,
            fields: text(results, c.fields).into(),
        }
    }

    /// The open session after the first `rows` rows of the suffix.
    fn open_at(&self, tail: &Tail, at: &StateAt, rows: usize, results: &Results) -> Option<Open> {
        let place = at.first?;
        let first = self.ident(tail, place)?;
        let last = self.last_live(rows.saturating_sub(self.p.restart));
        let (last_time, last_position) = self.end(tail, last);
        Some(Open {
            first,
            last: last_time,
            last_position,
            count: self.count(place, last),
            state: results.bytes[at.state.range()].into(),
            timers: results.timers[at.timers.range()].into(),
        })
    }
}

const NOWHERE: Position = Position { source: 0, partition: 0, offset: 0 };

/// The state after the turn becomes the base; its memory is used again.
fn advance_direct(base: &mut Option<Open>, tail: &mut Tail, p: Pending, r: &TurnResult, results: &Results) {
    let rejections = &results.rejections[r.rejections.range()];
    let carried_on =
        r.end.first == Some(Place::Carried) && tail.snapshots.is_empty() && rejections.is_empty();
    match base {
        Some(o) if carried_on => {
            if let Some(last) = tail.rows[..p.folded].last() {
                o.last = last.time;
                o.last_position = last.position;
                o.count += p.folded as u64;
            }
            o.timers = results.timers[r.end.timers.range()].into();
            let state = &results.bytes[r.end.state.range()];
            if *o.state != *state {
                o.state = state.into();
            }
        }
        _ => {
            let open = tail.snapshots.last().map_or(base.as_ref(), |s| s.open.as_ref());
            *base = Start { open, rejections, p }.open_at(tail, &r.end, p.folded, results);
        }
    }
    tail.drain(p.folded);
}

/// Moves base to the last known state at or before B.
fn advance(
    base: &mut Option<Open>,
    tail: &mut Tail,
    open: Option<&Open>,
    p: Pending,
    now: Now,
    emit: &mut Emit<'_>,
) {
    let before_b = tail.rows.partition_point(|r| r.time < now.b);
    let trailing = tail.closed.last().filter(|c| c.tag == p.folded);
    // The last close fired after every row, and nothing can come before it any more.
    if before_b >= p.folded && trailing.is_some_and(|c| c.fixed_at(now.b)) {
        *base = open.cloned();
        emit.rejected(tail, p.folded);
        tail.drain(p.folded);
        tail.closed.clear();
        return;
    }
    if let Some(i) = tail.snapshots.iter().rposition(|s| s.rows <= before_b) {
        let s = tail.snapshots.remove(i);
        *base = s.open;
        emit.rejected(tail, s.rows);
        tail.drain(s.rows);
    }
    thin(&mut tail.snapshots);
}

/// Keeps snapshots [`SNAPSHOT_ROWS`] apart, and the last.
fn thin(snapshots: &mut Vec<Snapshot>) {
    let last = snapshots.last().map_or(0, |s| s.rows);
    let mut kept_at = 0;
    snapshots.retain(|s| {
        let keep = s.rows == last || s.rows >= kept_at + SNAPSHOT_ROWS;
        if keep {
            kept_at = s.rows;
        }
        keep
    });
}

/// When the key must be visited next, in terms of W.
fn next_visit(base: &Option<Open>, tail: &Tail, p: Pending, now: Now, lateness_ms: i64) -> EventTime {
    let mut due = EventTime::INFINITY;
    let folded = if p.direct { 0 } else { tail.snapshots.last().map_or(0, |s| s.rows) };
    if let Some(r) = tail.rows.get(folded) {
        due = due.min(r.time.plus(1));
    }
    let tip = tail.snapshots.last().map_or(base.as_ref(), |s| s.open.as_ref());
    if let Some(o) = tip {
        let t = o.next_timer();
        due = due.min(if t <= now.w { t.plus(lateness_ms) } else { t });
    }
    for c in tail.closed.iter().filter(|c| c.at != EventTime::INFINITY && !c.fixed_at(now.b)) {
        let at = c.at.plus(i64::from(c.by_event));
        due = due.min(if c.fixed_at(now.w) { at.plus(lateness_ms) } else { at });
    }
    if let Some(s) = tail.snapshots.first() {
        due = due.min(tail.rows[s.rows - 1].time.plus(1 + lateness_ms));
    }
    if due == EventTime::INFINITY { due } else { due.max(now.w.plus(1)) }
}

/// Writes revisions of one key.
struct Emit<'a> {
    pipeline: &'a str,
    key: &'a [u8],
    key_form: KeyForm,
    sources: &'a [String],
    description: &'a Description,
    rows: &'a mut Vec<u8>,
    letters: &'a mut Vec<u8>,
    dead: &'a mut BTreeMap<String, u64>,
    counts: &'a mut LaneCounts,
}

impl Emit<'_> {
    fn settled(&mut self, c: &ClosedView<'_>) {
        if c.discarded {
            self.discarded(c);
            return;
        }
        let id = session_id(self.pipeline, self.key, c.anchor_time, c.anchor_id);
        self.counts.revisions[Stage::Final as usize] += 1;
        SessionRow {
            id,
            key: &self.key_form.display(self.key),
            start: c.anchor_time,
            end: c.end,
            events: c.count,
            stage: Stage::Final,
            reason: self.description.reason(c.reason),
            plugin: &self.description.plugin,
            fields: c.fields,
        }
        .encode(self.rows);
    }

    fn died(&mut self, reason: &str) {
        match self.dead.get_mut(reason) {
            Some(n) => *n += 1,
            None => drop(self.dead.insert(reason.to_owned(), 1)),
        }
    }

    /// The letter of a session that the rule discarded, once it is settled.
    fn discarded(&mut self, c: &ClosedView<'_>) {
        let reason = self.description.reason(c.reason).unwrap_or("discarded");
        SessionLetter {
            reason,
            session_id: &crate::outbox::hex(&session_id(self.pipeline, self.key, c.anchor_time, c.anchor_id)),
            key: &self.key_form.display(self.key),
            start_ms: c.anchor_time.ms(),
            end_ms: c.end.ms(),
            events: c.count,
            first: c.anchor_position,
            last: c.last_position,
            plugin: &self.description.plugin,
            fields: c.fields,
        }
        .write(self.letters);
        self.died(reason);
    }

    /// Letters of the events among the first `n` rows that belong to no session: they are settled now (SEMANTICS 18).
    fn rejected(&mut self, tail: &mut Tail, n: usize) {
        if tail.rejected.is_empty() {
            return;
        }
        for i in 0..tail.rejected.len() {
            let Rejected { row, reason } = tail.rejected[i];
            if row >= n {
                continue;
            }
            let row = tail.rows[row];
            let event = row.ident(&tail.ext);
            let poison = tail.poison.iter().position(|p| p.event == event).map(|i| tail.poison.remove(i));
            let reason = self.description.reason(reason).unwrap_or("rejected");
            let ext = row.ext(&tail.ext);
            let fields: Vec<_> = self
                .description
                .fields
                .iter()
                .enumerate()
                .filter_map(|(n, name)| Some((name.as_str(), ext::field(ext, n).display()?)))
                .collect();
            let id = event.id.as_deref().map(|id| String::from_utf8_lossy(id));
            RecordLetter {
                reason,
                stage: "fold",
                source: self.sources.get(row.position.source as usize).map_or("", String::as_str),
                partition: "",
                position: Some(row.position),
                message: poison.as_ref().map_or("the rule rejected the event", |p| &p.message),
                fields: &[],
                key: Some(&self.key_form.display(self.key)),
                time_ms: Some(row.time.ms()),
                id: id.as_deref(),
                event: &fields,
                raw: None,
            }
            .write(self.letters);
            self.died(reason);
        }
    }
    fn sent(&mut self, s: &Sent, fields: &str) {
        let id = s.anchor.with_id(|id| session_id(self.pipeline, self.key, s.anchor.time, id));
        self.counts.revisions[s.stage as usize] += 1;
        SessionRow {
            id,
            key: &self.key_form.display(self.key),
            start: s.start,
            end: s.end,
            events: s.count,
            stage: s.stage,
            reason: self.description.reason(s.reason),
            plugin: &self.description.plugin,
            fields,
        }
        .encode(self.rows);
    }
    fn retract(&mut self, mut s: Sent) {
        s.stage = Stage::Retracted;
        self.sent(&s, "{}");
    }
}

/// A session as it is now.
struct View<'a> {
    first: &'a Ident,
    end: EventTime,
    last_position: Position,
    count: u64,
    reason: u16,
    fields: &'a str,
    discarded: bool,
    fixed_w: bool,
    settled: bool,
}

const OPEN: u16 = u16::MAX;

impl View<'_> {
    fn content(&self) -> u64 {
        let mut h = xxhash_rust::xxh3::Xxh3::new();
        h.update(&self.first.time.ms().to_le_bytes());
        h.update(&self.end.ms().to_le_bytes());
        h.update(&self.count.to_le_bytes());
        h.update(&self.reason.to_le_bytes());
        h.update(self.fields.as_bytes());
        h.digest()
    }
}

/// Compares the key's sessions as they are now with what was sent, and emits the difference (SEMANTICS 14 to 17).
fn compare(
    tail: &mut Tail,
    open: Option<&Open>,
    open_fields: &str,
    settled_b: EventTime,
    p: Pending,
    now: Now,
    emit: &mut Emit<'_>,
) {
    let mut sent = std::mem::take(&mut tail.sent).into_iter().peekable();
    let mut next = Vec::new();
    let closed = tail.closed.iter().filter(|c| !c.fixed_at(settled_b)).map(|c| View {
        first: &c.first,
        end: c.last,
        last_position: c.last_position,
        count: c.count,
        reason: c.reason,
        fields: &c.fields,
        discarded: c.discarded,
        fixed_w: c.fixed_at(now.w),
        settled: c.fixed_at(now.b),
    });
    let open = open.map(|o| View {
        first: &o.first,
        end: o.last,
        last_position: o.last_position,
        count: o.count,
        reason: OPEN,
        fields: open_fields,
        discarded: false,
        fixed_w: false,
        settled: false,
    });
    let views: Vec<View<'_>> = closed.chain(open).collect();
    for (i, v) in views.iter().enumerate() {
        while let Some(s) = sent.next_if(|s| s.anchor.order(v.first).is_lt()) {
            emit.retract(s);
        }
        if v.reason == OPEN && !p.reporting {
            break;
        }
        let end = views.get(i + 1).map(|v| v.first);
        let mut mine = Vec::new();
        while let Some(s) = sent.next_if(|s| end.is_none_or(|e| s.anchor.order(e).is_lt())) {
            mine.push(s);
        }
        if let Some(s) = revise(v, mine, now, emit) {
            next.push(s);
        }
    }
    let open_left_alone = views.last().is_some_and(|v| v.reason == OPEN) && !p.reporting;
    for s in sent {
        if open_left_alone || !p.reporting {
            next.push(s);
        } else {
            emit.retract(s);
        }
    }
    tail.sent = next;
}

/// One session against the anchors it contains; returns what is known of it from now on.
fn revise(v: &View<'_>, mut mine: Vec<Sent>, now: Now, emit: &mut Emit<'_>) -> Option<Sent> {
    if v.discarded {
        mine.into_iter().for_each(|s| emit.retract(s));
        if v.settled {
            let position_id = v.first.position.id_bytes();
            emit.discarded(&ClosedView {
                anchor_time: v.first.time,
                anchor_id: v.first.id.as_deref().unwrap_or(&position_id),
                anchor_position: v.first.position,
                end: v.end,
                last_position: v.last_position,
                count: v.count,
                reason: v.reason,
                discarded: true,
                fields: v.fields,
            });
        }
        return None;
    }
    let known = if mine.is_empty() { None } else { Some(mine.remove(0)) };
    mine.into_iter().for_each(|s| emit.retract(s));
    if known.is_none() && !v.fixed_w && !now.barrier.early_tick {
        return None;
    }
    let content = v.content();
    let was_final = known.as_ref().is_some_and(|k| k.was_final);
    let same = known.as_ref().is_some_and(|k| k.content == content);
    let before = known.as_ref().map(|k| k.stage);
    let stage = match (v.fixed_w, was_final) {
        (false, _) => Stage::Early,
        (true, false) => Stage::Final,
        (true, true) if same && before != Some(Stage::Early) => before.unwrap_or(Stage::Final),
        (true, true) => Stage::Corrected,
    };
    let now_sent = Sent {
        anchor: known.map_or_else(|| v.first.clone(), |k| k.anchor),
        stage,
        was_final: was_final || v.fixed_w,
        start: v.first.time,
        end: v.end,
        count: v.count,
        reason: v.reason,
        content,
    };
    if !same || before != Some(stage) {
        emit.sent(&now_sent, v.fields);
    }
    (!v.settled).then_some(now_sent)
}
