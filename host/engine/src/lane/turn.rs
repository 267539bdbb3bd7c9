//! Turns of the keys that are due: planned, asked of the rule many at a time, and their answers taken in.

use super::answer::{Start, text};
use super::base::{advance, advance_direct, next_visit};
use super::compare::compare;
use super::emit::Emit;
use super::epoch::{Barrier, LaneFault};
use super::{Lane, NEVER};
use crate::bounds::{CALL_INPUTS, CALL_TURNS, LOOKUP_ROWS, SNAPSHOT_ROWS, SNAPSHOTS_PER_TURN};
use crate::key_state::{Closed, Counted, Open, Poison, Rejected, Snapshot, Tail};
use crate::metrics::Total;
use crate::rule::{
    Count, Fault, Input, OpenHead, PLUGIN_FAULT, Rejection, Results, Span, Turn, TurnResult, Turns,
};
use crate::time::EventTime;
use crate::versions::{Answered, Version};
use std::ops::Range;

/// What a turn was made from, to read its answer by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) slot: u32,
    pub(super) restart: usize,
    pub(super) folded: usize,
    pub(super) reporting: bool,
    /// W and B agree on all that was folded: the state after the turn is the new base.
    pub(super) direct: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) w: EventTime,
    pub(super) b: EventTime,
    pub(super) barrier: Barrier,
    pub(super) at_barrier: bool,
}

impl Lane {
    pub(super) fn now(&self, barrier: Barrier, at_barrier: bool) -> Now {
        let w = if barrier.at_end { EventTime::INFINITY } else { barrier.watermark };
        Now { w, b: w.minus(self.config.lateness_ms), barrier, at_barrier }
    }

    pub(super) fn fold(&mut self, slots: &[u32], now: Now) -> Result<(), LaneFault> {
        for some in slots.chunks(LOOKUP_ROWS) {
            let settled = some.iter().map(|s| self.entries[*s as usize].state.settled_b.ms());
            std::hint::black_box(settled.fold(0, |n, b| n ^ b));
            self.fetch(some, |t| t.rows.first(), |t| t.ext.first());
            for slot in some {
                self.plan(*slot, now);
                if self.turns.inputs.len() >= CALL_INPUTS || self.turns.turns.len() >= CALL_TURNS {
                    self.call(now)?;
                }
            }
        }
        self.call(now)
    }

    /// Puts the events of one key in order, copies left out and counted.
    pub(super) fn put_in_order(&mut self, slot: u32) {
        let Some(tail) = self.entries[slot as usize].state.tail.as_deref_mut() else { return };
        let held_bytes = tail.suffix_bytes();
        let copies = tail.put_in_order();
        self.suffix_bytes = self.suffix_bytes.saturating_sub(held_bytes - tail.suffix_bytes());
        self.out.counts.duplicates += copies.duplicates;
        self.out.counts.conflicts += copies.conflicts;
    }

    /// Makes the turn of one key.
    fn plan(&mut self, slot: u32, now: Now) {
        self.put_in_order(slot);
        let e = &mut self.entries[slot as usize];
        let mut empty = Tail::default();
        let tail = e.state.tail.as_deref_mut().unwrap_or(&mut empty);
        // What was counted beyond W has been folded: a new event before it is folded now, while it is known to be new.
        let reporting =
            now.at_barrier && (now.barrier.early_tick || tail.is_told(now.w) || now.barrier.at_end);
        let before_w = tail.rows.partition_point(|r| r.time < now.w);
        tail.fold_again();
        let (restart, open) = tail.restart(e.state.base.as_ref());
        let folded = if reporting { tail.rows.len() } else { before_w.max(restart) };
        let direct = now.b == now.w && folded == before_w;
        let t = &mut self.turns;
        let key = if self.wants_key { self.config.key_form.display(&e.state.key) } else { "".into() };
        let head = push_head(t, &key, open);
        let inputs = push_inputs(t, tail, restart..folded);
        let wanted_at = t.wanted.len();
        if !direct {
            let before_b = tail.rows.partition_point(|r| r.time < now.b);
            wanted(restart, folded, before_b, &mut t.wanted);
        }
        t.turns.push(Turn {
            inputs,
            until: now.w,
            at_end: now.barrier.at_end,
            report_open: reporting,
            wanted: Span::between(wanted_at, t.wanted.len()),
            ..head
        });
        self.carried.push(open.map_or_else(Version::default, |o| o.version));
        self.out.counts.steps += (folded - restart) as u64;
        self.pending.push(Pending { slot, restart, folded, reporting, direct });
    }

    fn call(&mut self, now: Now) -> Result<(), LaneFault> {
        if self.turns.turns.is_empty() {
            return Ok(());
        }
        let mut results = std::mem::take(&mut self.results);
        self.versions.call(&self.turns, &self.carried, &mut results);
        let pending = std::mem::take(&mut self.pending);
        self.out.counts.turns += pending.len() as u64;
        for (i, p) in pending.iter().enumerate() {
            let r = results.turns.get(i).cloned().unwrap_or_else(missing_answer);
            if let Some(f) = r.fault {
                let key = self.config.key_form.display(&self.entries[p.slot as usize].state.key).into_owned();
                return Err(LaneFault { key, message: f.message });
            }
            let wanted = self.turns.turns[i].wanted;
            let by = self.versions.answered(i);
            // Folded again, it is still the same session.
            if by.unfit && self.unfit.insert(self.entries[p.slot as usize].state.hash) {
                self.versions.was_unfit();
            }
            self.absorb(*p, &r, by, &results, wanted, now);
        }
        self.results = results;
        self.pending = pending;
        self.pending.clear();
        self.turns.clear();
        self.carried.clear();
        Ok(())
    }

    /// Takes in the answer for one key: emits, moves base, finds the next visit.
    fn absorb(
        &mut self,
        p: Pending,
        r: &TurnResult,
        by: Answered,
        results: &Results,
        wanted: Span,
        now: Now,
    ) {
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
            versions: &self.versions,
            layout: &self.config.layout,
            rows: &mut self.out.rows,
            letters: &mut self.out.letters,
            dead: &mut self.out.dead,
            counts: &mut self.out.counts,
        };
        let closings = &results.closings[r.closings.range()];
        let rejections = &results.rejections[r.rejections.range()];
        reject(&mut tail, rejections, p.restart, results);
        if !self.totals.is_empty() {
            count(&mut tail, &mut self.totals, &results.counts[r.counts.range()], p, now);
        }
        let start = Start { open: tail.restart(e.state.base.as_ref()).1, rejections, by, p };
        let told = !tail.told().sent.is_empty() || !tail.told().closed.is_empty();
        if p.direct && !told && (!p.reporting || now.barrier.at_end) {
            // Everything that closed here is final and settled; what base lags behind was told before.
            let settled_b = e.state.settled_b;
            for (n, c) in
                closings.iter().enumerate().filter(|(_, c)| !start.closed_before(&tail, c, settled_b))
            {
                start.with_closed(&tail, n, c, results, |c| emit.settled(&c));
            }
            emit.rejected(&mut tail, p.folded);
            advance_direct(&mut e.state.base, &mut tail, p, r, by, results);
        } else {
            let new: Vec<Closed> =
                closings.iter().enumerate().map(|(n, c)| start.closed(&tail, n, c, results)).collect();
            let snapshots: Vec<Snapshot> = self.turns.wanted[wanted.range()]
                .iter()
                .zip(&results.snapshots[r.snapshots.range()])
                .enumerate()
                .map(|(n, (i, s))| {
                    let rows = p.restart + *i as usize + 1;
                    Snapshot { rows, open: start.open_at(&tail, s, rows, by.snapshot(n), results) }
                })
                .collect();
            let open = start.open_at(&tail, &r.end, p.folded, by.after, results);
            tail.tell().closed.extend(new);
            let open_fields = text(results, r.open_fields);
            compare(&mut tail, open.as_ref(), open_fields, e.state.settled_b, p, now, &mut emit);
            if p.direct {
                e.state.base = open;
                emit.rejected(&mut tail, p.folded);
                tail.drain(p.folded);
                tail.tell().closed.clear();
            } else {
                tail.tell().snapshots.extend(snapshots);
                advance(&mut e.state.base, &mut tail, now, &mut emit);
            }
        }
        e.state.settled_b = e.state.settled_b.max(now.b);
        let nothing_waits = tail.rows.is_empty();
        // What stands behind base is not folded again, unless one of its timers is.
        let again = e
            .state
            .base
            .as_ref()
            .is_some_and(|o| tail.told().counted.is_some_and(|c| o.next_timer() <= c.timers));
        if let Some(told) = tail.told_mut().filter(|_| nothing_waits && !again) {
            told.counted = None;
        }
        let drained_by = |v| self.versions.drained_by(v);
        e.due = next_visit(&e.state.base, &tail, p, now, self.config.lateness_ms, drained_by);
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
}

/// Writes a key and what is open of it; the turn that begins with it has nothing else yet.
#[inline]
pub(super) fn push_head(t: &mut Turns, key: &str, open: Option<&Open>) -> Turn {
    let key_at = t.bytes.len();
    t.bytes.extend_from_slice(key.as_bytes());
    let (state_at, timers_at) = (t.bytes.len(), t.timers.len());
    if let Some(o) = open {
        t.bytes.extend_from_slice(&o.state);
        t.timers.extend_from_slice(&o.timers);
    }
    Turn {
        key: Span::between(key_at, state_at),
        open: open.map(|o| OpenHead { start: o.first.time, last: o.last, count: o.count }),
        state: Span::between(state_at, t.bytes.len()),
        timers: Span::between(timers_at, t.timers.len()),
        inputs: Span::default(),
        until: EventTime::BEGINNING,
        at_end: false,
        report_open: false,
        wanted: Span::default(),
    }
}

/// Writes some events of a key as inputs.
#[inline]
pub(super) fn push_inputs(t: &mut Turns, tail: &Tail, rows: Range<usize>) -> Span {
    let inputs_at = t.inputs.len();
    for r in &tail.rows[rows] {
        let at = t.bytes.len();
        t.bytes.extend_from_slice(r.ext(&tail.ext));
        let skip = !tail.told().poison.is_empty() && tail.is_poison(r);
        t.inputs.push(Input { time: r.time, ext: Span::between(at, t.bytes.len()), skip });
    }
    Span::between(inputs_at, t.inputs.len())
}

fn missing_answer() -> TurnResult {
    TurnResult::failed(Fault::unknown("the rule gave fewer answers than turns"))
}

/// Notes what a turn has rejected, and remembers where the rule failed.
fn reject(tail: &mut Tail, rejections: &[Rejection], restart: usize, results: &Results) {
    for x in rejections {
        let row = restart + x.input as usize;
        tail.tell().rejected.push(Rejected { row, reason: x.reason });
        if x.reason == PLUGIN_FAULT && !tail.is_poison(&tail.rows[row]) {
            let event = tail.rows[row].ident(&tail.ext);
            let message = String::from_utf8_lossy(&results.bytes[x.message.range()]).into();
            tail.tell().poison.push(Poison { event, message });
        }
    }
}

/// Adds the steps that are folded for the first time to the rule's own metrics.
fn count(tail: &mut Tail, totals: &mut [Total], counts: &[Count], p: Pending, now: Now) {
    let counted = tail.told().counted;
    for c in counts {
        let first = match c.input.and_then(|i| tail.rows.get(p.restart + i as usize)) {
            Some(row) => row.fresh() || counted.is_none_or(|done| row.time > done.events),
            None => counted.is_none_or(|done| c.at > done.timers),
        };
        if let Some(t) = totals.get_mut(c.metric as usize).filter(|_| first) {
            t.add(c.value);
        }
    }
    let before = counted.unwrap_or(Counted { events: EventTime::BEGINNING, timers: EventTime::BEGINNING });
    let events = tail.rows[..p.folded].last().map_or(before.events, |r| r.time.max(before.events));
    let until = if now.barrier.at_end { EventTime::BEGINNING } else { now.w };
    tail.tell().counted = Some(Counted { events, timers: before.timers.max(events).max(until) });
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
