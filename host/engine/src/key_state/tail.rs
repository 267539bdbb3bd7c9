//! The suffix of a key: its rows in order, and what the fold has said of them so far.

use super::{Closed, Ident, Open, Poison, Rejected, Sent, Snapshot};
use crate::event::{Position, ext};
use crate::time::EventTime;
use std::cmp::Ordering;

/// An event of the suffix; its extension stands in the tail's buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) time: EventTime,
    pub(crate) position: Position,
    pub(crate) ext_at: u32,
    /// The top bit marks a row that no epoch record holds yet.
    pub(crate) ext_len: u32,
}

const FRESH: u32 = 1 << 31;

impl Row {
    pub(crate) fn new(time: EventTime, position: Position, ext_at: u32, ext_len: u32) -> Row {
        Row { time, position, ext_at, ext_len: ext_len | FRESH }
    }
    pub(crate) fn fresh(&self) -> bool {
        self.ext_len & FRESH != 0
    }
    pub(crate) fn ext<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let at = self.ext_at as usize;
        &bytes[at..at + (self.ext_len & !FRESH) as usize]
    }
    #[inline]
    fn order(&self, other: &Row, bytes: &[u8]) -> Ordering {
        self.time.cmp(&other.time).then_with(|| self.order_by_id(other, bytes))
    }
    fn order_by_id(&self, other: &Row, bytes: &[u8]) -> Ordering {
        if bytes.is_empty() {
            return self.position.cmp(&other.position);
        }
        match (ext::id(self.ext(bytes)), ext::id(other.ext(bytes))) {
            (None, None) => self.position.cmp(&other.position),
            (Some(a), Some(b)) => a.cmp(b),
            (Some(a), None) => a.cmp(&other.position.id_bytes()),
            (None, Some(b)) => self.position.id_bytes().as_slice().cmp(b),
        }
    }
    pub(crate) fn ident(&self, bytes: &[u8]) -> Ident {
        Ident { time: self.time, position: self.position, id: ext::id(self.ext(bytes)).map(Into::into) }
    }
}

/// What a key has besides its base: only active keys do. What every event needs stands in one cache line; what the fold has
/// said, and most keys have nothing of, stands apart.
#[derive(Default, Debug)]
#[repr(C, align(64))]
pub(crate) struct Tail {
    pub(crate) rows: Vec<Row>,
    pub(crate) sorted: usize,
    pub(crate) ext: Vec<u8>,
    told: Option<Box<Told>>,
}

const _: () = assert!(size_of::<Tail>() == 64);

/// What the fold has said of a key's suffix.
#[derive(Default, Debug)]
pub(crate) struct Told {
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) closed: Vec<Closed>,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) poison: Vec<Poison>,
    pub(crate) sent: Vec<Sent>,
    /// Rows that an epoch record holds and that base has taken in since: up to this one.
    pub(crate) dropped_through: Option<Ident>,
    /// Which steps are counted in the rule's own metrics; `None`: none of those to come.
    pub(crate) counted: Option<Counted>,
}

static NOTHING: Told = Told {
    snapshots: Vec::new(),
    closed: Vec::new(),
    rejected: Vec::new(),
    poison: Vec::new(),
    sent: Vec::new(),
    dropped_through: None,
    counted: None,
};

/// How far the steps of a key are counted that may be folded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Events up to this time, but for those that are new in this epoch.
    pub(crate) events: EventTime,
    /// Timers up to this time: those at W have fired, events at W are not folded yet.
    pub(crate) timers: EventTime,
}

/// What putting the rows in order found.
#[derive(Default, Debug, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) duplicates: u64,
    pub(crate) conflicts: u64,
}

impl Told {
    fn is_nothing(&self) -> bool {
        self.snapshots.is_empty()
            && self.closed.is_empty()
            && self.rejected.is_empty()
            && self.poison.is_empty()
            && self.sent.is_empty()
            && self.dropped_through.is_none()
            && self.counted.is_none()
    }

    /// Forgets snapshots and closings that rest on the row at `at` or later ones.
    fn void_from(&mut self, at: usize) {
        self.snapshots.retain(|s| s.rows <= at);
        self.keep_folded();
    }

    /// Forgets what was said of rows behind the last snapshot.
    fn keep_folded(&mut self) {
        let folded = self.snapshots.last().map_or(0, |s| s.rows);
        self.closed.retain(|c| c.tag < folded);
        self.rejected.retain(|r| r.row < folded);
    }

    /// The first `n` rows have gone.
    fn drain(&mut self, n: usize) {
        self.snapshots.retain_mut(|s| {
            let stays = s.rows > n;
            s.rows = s.rows.saturating_sub(n);
            stays
        });
        self.closed.retain_mut(|c| {
            let stays = c.tag >= n;
            c.tag = c.tag.saturating_sub(n);
            stays
        });
        self.rejected.retain_mut(|r| {
            let stays = r.row >= n;
            r.row = r.row.saturating_sub(n);
            stays
        });
    }
}

impl Tail {
    /// What the fold has said.
    #[inline]
    pub(crate) fn told(&self) -> &Told {
        self.told.as_deref().unwrap_or(&NOTHING)
    }
    /// The same, to say more.
    #[inline]
    pub(crate) fn tell(&mut self) -> &mut Told {
        self.told.get_or_insert_default()
    }
    /// The same, to take something back: nothing to do if nothing was said.
    #[inline]
    pub(crate) fn told_mut(&mut self) -> Option<&mut Told> {
        self.told.as_deref_mut()
    }
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.ext.clear();
        self.sorted = 0;
        self.told = None;
    }
    pub(crate) fn is_empty(&self) -> bool {
        let told = self.told();
        self.rows.is_empty()
            && told.sent.is_empty()
            && told.closed.is_empty()
            && told.dropped_through.is_none()
            && told.counted.is_none()
    }
    /// Whether an event before `w` may change something that was said: sinks know a session of the key, or steps beyond
    /// `w` are counted.
    #[inline]
    pub(crate) fn is_told(&self, w: EventTime) -> bool {
        let told = self.told();
        !told.sent.is_empty() || told.counted.is_some_and(|c| c.events >= w)
    }
    /// How many rows stand before the newest snapshot: the fold goes on there, from the state that this gives, or from `base`.
    #[inline]
    pub(crate) fn restart<'a>(&'a self, base: Option<&'a Open>) -> (usize, Option<&'a Open>) {
        self.told().snapshots.last().map_or((0, base), |s| (s.rows, s.open.as_ref()))
    }

    /// Sorts the new rows in, drops copies (the first wins, SEMANTICS 3), and voids what the folded
    /// prefix said from the first changed row on.
    pub(crate) fn put_in_order(&mut self) -> Copies {
        let mut copies = Copies::default();
        if self.sorted == self.rows.len() {
            return copies;
        }
        let bytes = &self.ext;
        let sorted = self.sorted;
        let new = &mut self.rows[sorted..];
        // A stable sort: of equal identities the first to arrive stays in front.
        let rise = new.is_sorted_by(|a, b| a.order(b, bytes) == Ordering::Less);
        if !rise {
            new.sort_by(|a, b| a.order(b, bytes));
        }
        let first_new = self.rows[sorted];
        let changed = if sorted > 0 && self.rows[sorted - 1].order(&first_new, bytes) != Ordering::Less {
            let at = self.rows[..sorted].partition_point(|r| r.order(&first_new, bytes) == Ordering::Less);
            // Two sorted runs: the standard stable sort merges them in linear time.
            self.rows[at..].sort_by(|a, b| a.order(b, bytes));
            at
        } else if rise {
            // Nothing is a copy of what stands before it.
            self.sorted = self.rows.len();
            self.void_from(sorted);
            return copies;
        } else {
            sorted
        };
        let mut kept = changed.max(1);
        let from = kept;
        for i in from..self.rows.len() {
            let (row, before) = (self.rows[i], self.rows[kept - 1]);
            if before.order(&row, bytes) == Ordering::Equal {
                copies.duplicates += 1;
                copies.conflicts += u64::from(before.ext(bytes) != row.ext(bytes));
            } else {
                self.rows[kept] = row;
                kept += 1;
            }
        }
        self.rows.truncate(kept.min(self.rows.len()));
        self.sorted = self.rows.len();
        self.void_from(changed);
        copies
    }

    /// Forgets snapshots and closings that rest on the row at `at` or later ones.
    pub(crate) fn void_from(&mut self, at: usize) {
        if let Some(told) = self.told_mut() {
            told.void_from(at);
        }
    }

    /// Forgets what was said of rows that are folded once more.
    pub(crate) fn fold_again(&mut self) {
        if let Some(told) = self.told_mut() {
            told.keep_folded();
        }
    }

    /// Whether the rule has failed at this event.
    pub(crate) fn is_poison(&self, row: &Row) -> bool {
        let event = row.ident(&self.ext);
        self.told().poison.iter().any(|p| p.event == event)
    }

    /// Takes the first `n` rows out: base has them. What was rejected among them has been told.
    pub(crate) fn drain(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        if self.rows[..n].iter().any(|r| !r.fresh()) {
            let through = self.rows[n - 1].ident(&self.ext);
            self.tell().dropped_through = Some(through);
        }
        self.rows.drain(..n);
        self.sorted -= n;
        if let Some(told) = self.told_mut() {
            told.drain(n);
        }
        if self.rows.is_empty() {
            self.ext.clear();
        } else if !self.ext.is_empty() {
            self.compact();
        }
    }

    fn compact(&mut self) {
        let used: usize = self.rows.iter().map(|r| r.ext(&self.ext).len()).sum();
        if used * 2 >= self.ext.len() {
            return;
        }
        let mut ext = Vec::with_capacity(used * 2);
        for r in &mut self.rows {
            let at = ext.len() as u32;
            ext.extend_from_slice(r.ext(&self.ext));
            r.ext_at = at;
        }
        self.ext = ext;
    }

    pub(crate) fn mark_persisted(&mut self) {
        for r in &mut self.rows {
            r.ext_len &= !FRESH;
        }
        if let Some(told) = self.told_mut() {
            told.dropped_through = None;
            if told.is_nothing() {
                self.told = None;
            }
        }
    }
    /// Bytes that the suffix holds.
    pub(crate) fn suffix_bytes(&self) -> usize {
        self.rows.len() * size_of::<Row>() + self.ext.len()
    }
}
