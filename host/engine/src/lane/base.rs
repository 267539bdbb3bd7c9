//! How base follows the frontier, and when a key must be visited next.

use super::answer::Start;
use super::emit::Emit;
use super::turn::{Now, Pending};
use crate::bounds::SNAPSHOT_ROWS;
use crate::key_state::{Open, Snapshot, Tail};
use crate::rule::{Place, Results, TurnResult};
use crate::time::EventTime;
use crate::versions::{Answered, Version};

/// The state after the turn becomes the base; its memory is used again.
pub(super) fn advance_direct(
    base: &mut Option<Open>,
    tail: &mut Tail,
    p: Pending,
    r: &TurnResult,
    by: Answered,
    results: &Results,
) {
    let rejections = &results.rejections[r.rejections.range()];
    let carried_on =
        r.end.first == Some(Place::Carried) && tail.told().snapshots.is_empty() && rejections.is_empty();
    match base {
        Some(o) if carried_on => {
            if let Some(last) = tail.rows[..p.folded].last() {
                o.last = last.time;
                o.last_position = last.position;
                o.count += p.folded as u64;
            }
            o.version = by.after;
            o.timers = results.timers[r.end.timers.range()].into();
            let state = &results.bytes[r.end.state.range()];
            if *o.state != *state {
                o.state = state.into();
            }
        }
        _ => {
            let (_, open) = tail.restart(base.as_ref());
            *base = Start { open, rejections, by, p }.open_at(tail, &r.end, p.folded, by.after, results);
        }
    }
    tail.drain(p.folded);
}

/// Moves base to the last known state at or before B.
pub(super) fn advance(base: &mut Option<Open>, tail: &mut Tail, now: Now, emit: &mut Emit<'_>) {
    let before_b = tail.rows.partition_point(|r| r.time < now.b);
    let told = tail.told();
    let snapshot = told.snapshots.iter().rposition(|s| s.rows <= before_b);
    // Nothing can come before this close any more, and nothing is open behind it: the next session begins with a row. Were base
    // to wait for that, it would be taken for a session that is still open where versions change.
    let over = told.closed.iter().rposition(|c| !c.by_event && c.fixed_at(now.b));
    let over = over.filter(|n| snapshot.is_none_or(|i| told.snapshots[i].rows <= told.closed[*n].tag));
    if let Some(n) = over {
        let tag = told.closed[n].tag;
        *base = None;
        tail.tell().closed.drain(..=n);
        emit.rejected(tail, tag);
        tail.drain(tag);
    } else if let Some(i) = snapshot {
        let s = tail.tell().snapshots.remove(i);
        *base = s.open;
        emit.rejected(tail, s.rows);
        tail.drain(s.rows);
    }
    if let Some(told) = tail.told_mut() {
        thin(&mut told.snapshots);
    }
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
pub(super) fn next_visit(
    base: &Option<Open>,
    tail: &Tail,
    p: Pending,
    now: Now,
    lateness_ms: i64,
    drained_by: impl Fn(Version) -> Option<EventTime>,
) -> EventTime {
    let mut due = EventTime::INFINITY;
    let told = tail.told();
    let (restart, tip) = tail.restart(base.as_ref());
    let folded = if p.direct { 0 } else { restart };
    if let Some(r) = tail.rows.get(folded) {
        due = due.min(r.time.plus(1));
    }
    if let Some(o) = tip {
        let t = o.next_timer().min(drained_by(o.version).unwrap_or(EventTime::INFINITY));
        due = due.min(if t <= now.w { t.plus(lateness_ms) } else { t });
    }
    for c in told.closed.iter().filter(|c| c.at != EventTime::INFINITY && !c.fixed_at(now.b)) {
        let at = c.at.plus(i64::from(c.by_event));
        due = due.min(if c.fixed_at(now.w) { at.plus(lateness_ms) } else { at });
    }
    if let Some(s) = told.snapshots.first() {
        due = due.min(tail.rows[s.rows - 1].time.plus(1 + lateness_ms));
    }
    if due == EventTime::INFINITY { due } else { due.max(now.w.plus(1)) }
}
