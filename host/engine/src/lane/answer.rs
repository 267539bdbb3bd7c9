//! The answer to a turn, read: its places are indices, and become events, counts and sessions here.

use super::turn::Pending;
use crate::event::{Position, ext};
use crate::key_state::{Closed, Ident, Open, Row, Tail};
use crate::rule::{Cause, Closing, Place, Rejection, Results, Span, StateAt};
use crate::time::EventTime;
use crate::versions::{Answered, Version};

pub(super) fn text(results: &Results, s: Span) -> &str {
    match std::str::from_utf8(&results.bytes[s.range()]) {
        Ok(t) if !t.is_empty() => t,
        _ => "{}",
    }
}

/// A closed session on its way out, nothing copied.
pub(super) struct ClosedView<'a> {
    pub(super) version: Version,
    pub(super) anchor_time: EventTime,
    pub(super) anchor_id: &'a [u8],
    pub(super) anchor_position: Position,
    pub(super) end: EventTime,
    pub(super) last_position: Position,
    pub(super) count: u64,
    pub(super) reason: u16,
    pub(super) discarded: bool,
    pub(super) fields: &'a str,
}

/// Where a turn began: reads places in its answer.
pub(super) struct Start<'a> {
    pub(super) open: Option<&'a Open>,
    pub(super) rejections: &'a [Rejection],
    pub(super) by: Answered,
    pub(super) p: Pending,
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
    pub(super) fn last_live(&self, n: usize) -> Place {
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
    pub(super) fn closed_before(&self, tail: &Tail, c: &Closing, b: EventTime) -> bool {
        match c.cause {
            Cause::Input(i) => self.row(tail, i).time < b,
            Cause::Timer(t) => t.at <= b,
            Cause::End => false,
        }
    }

    pub(super) fn with_closed(
        &self,
        tail: &Tail,
        n: usize,
        c: &Closing,
        results: &Results,
        f: impl FnOnce(ClosedView<'_>),
    ) {
        let (end, last_position) = self.end(tail, c.last);
        let view = |anchor_time, anchor_id, anchor_position| ClosedView {
            version: self.by.closing(n),
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

    pub(super) fn closed(&self, tail: &Tail, n: usize, c: &Closing, results: &Results) -> Closed {
        let inputs = &tail.rows[self.p.restart..self.p.folded];
        let (at, by_event, tag) = match c.cause {
            Cause::Input(i) => (self.row(tail, i).time, true, self.p.restart + i as usize),
            Cause::Timer(t) => (t.at, false, self.p.restart + inputs.partition_point(|r| r.time < t.at)),
            Cause::End => (EventTime::INFINITY, false, self.p.folded),
        };
        let unknown = || Ident { time: EventTime::BEGINNING, position: NOWHERE, id: None };
        let (last, last_position) = self.end(tail, c.last);
        Closed {
            version: self.by.closing(n),
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
    pub(super) fn open_at(
        &self,
        tail: &Tail,
        at: &StateAt,
        rows: usize,
        version: Version,
        results: &Results,
    ) -> Option<Open> {
        let place = at.first?;
        let first = self.ident(tail, place)?;
        let last = self.last_live(rows.saturating_sub(self.p.restart));
        let (last_time, last_position) = self.end(tail, last);
        Some(Open {
            version,
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
