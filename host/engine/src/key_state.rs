//! The fold of one key as a value: base, suffix, what was sent; with a byte form (DESIGN 10).
//!
//! Invariants: `rows[..sorted]` are in (time, id) order without copies; every snapshot stands after a
//! prefix of those rows; `closed` holds what the folded prefix closed and has not been settled; `sent` is in
//! anchor order and holds only anchors that may still change.

use crate::event::{Position, ext};
use crate::rule::Timer;
use crate::time::EventTime;
use std::cmp::Ordering;

/// What makes an event that event, within its key: (time, id).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ident {
    pub(crate) time: EventTime,
    pub(crate) position: Position,
    /// `None`: the position is the id.
    pub(crate) id: Option<Box<[u8]>>,
}

impl Ident {
    pub(crate) fn with_id<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match &self.id {
            Some(id) => f(id),
            None => f(&self.position.id_bytes()),
        }
    }
    pub(crate) fn order(&self, other: &Ident) -> Ordering {
        self.time.cmp(&other.time).then_with(|| match (&self.id, &other.id) {
            (None, None) => self.position.cmp(&other.position),
            _ => self.with_id(|a| other.with_id(|b| a.cmp(b))),
        })
    }
}

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

/// An open session.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) first: Ident,
    pub(crate) last: EventTime,
    pub(crate) last_position: Position,
    pub(crate) count: u64,
    pub(crate) state: Box<[u8]>,
    pub(crate) timers: Timers,
}

/// The pending timers of a session. Most rules set one at a time: it stands in place, so that a session costs
/// no allocation for it and a visit no cache miss.
#[derive(Clone, Debug)]
pub(crate) enum Timers {
    None,
    One(Timer),
    Many(Box<[Timer]>),
}

impl From<&[Timer]> for Timers {
    fn from(timers: &[Timer]) -> Self {
        match timers {
            [] => Timers::None,
            [one] => Timers::One(*one),
            many => Timers::Many(many.into()),
        }
    }
}

impl std::ops::Deref for Timers {
    type Target = [Timer];
    fn deref(&self) -> &[Timer] {
        match self {
            Timers::None => &[],
            Timers::One(one) => std::slice::from_ref(one),
            Timers::Many(many) => many,
        }
    }
}

impl Open {
    pub(crate) fn next_timer(&self) -> EventTime {
        self.timers.iter().map(|t| t.at).min().unwrap_or(EventTime::INFINITY)
    }
}

/// State after the first `rows` rows of the suffix.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) rows: usize,
    pub(crate) open: Option<Open>,
}

/// A session that the folded part of the suffix closed.
#[derive(Clone, Debug)]
pub(crate) struct Closed {
    /// How many rows stood before the one at whose turn it closed.
    pub(crate) tag: usize,
    pub(crate) at: EventTime,
    pub(crate) by_event: bool,
    pub(crate) discarded: bool,
    pub(crate) first: Ident,
    pub(crate) last: EventTime,
    pub(crate) last_position: Position,
    pub(crate) count: u64,
    pub(crate) reason: u16,
    pub(crate) fields: Box<str>,
}

impl Closed {
    /// Whether new input at or after `w` cannot change the close (SEMANTICS 14).
    pub(crate) fn fixed_at(&self, w: EventTime) -> bool {
        if self.by_event { self.at < w } else { self.at <= w }
    }
}

/// An event that the folded part of the suffix put into no session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rejected {
    pub(crate) row: usize,
    pub(crate) reason: u16,
}

/// An event that the rule failed at: it is not shown to it again.
#[derive(Clone, Debug)]
pub(crate) struct Poison {
    pub(crate) event: Ident,
    pub(crate) message: Box<str>,
}

/// A session that sinks know and that may still change.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) anchor: Ident,
    pub(crate) stage: crate::outbox::Stage,
    pub(crate) was_final: bool,
    pub(crate) start: EventTime,
    pub(crate) end: EventTime,
    pub(crate) count: u64,
    /// Index of the reason; `u16::MAX`: open.
    pub(crate) reason: u16,
    pub(crate) content: u64,
}

/// What a key has besides its base: only active keys do. What every event needs comes first, in one cache line.
#[derive(Default, Debug)]
#[repr(C, align(64))]
pub(crate) struct Tail {
    pub(crate) rows: Vec<Row>,
    pub(crate) sorted: usize,
    pub(crate) ext: Vec<u8>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) closed: Vec<Closed>,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) poison: Vec<Poison>,
    pub(crate) sent: Vec<Sent>,
    /// Rows that an epoch record holds and that base has taken in since: up to this one.
    pub(crate) dropped_through: Option<Ident>,
}

/// What putting the rows in order found.
#[derive(Default, Debug, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) duplicates: u64,
    pub(crate) conflicts: u64,
}

impl Tail {
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.ext.clear();
        self.sorted = 0;
        self.snapshots.clear();
        self.closed.clear();
        self.rejected.clear();
        self.poison.clear();
        self.sent.clear();
        self.dropped_through = None;
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
            && self.sent.is_empty()
            && self.closed.is_empty()
            && self.dropped_through.is_none()
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
        if !new.is_sorted_by(|a, b| a.order(b, bytes) == Ordering::Less) {
            new.sort_by(|a, b| a.order(b, bytes));
        }
        let first_new = self.rows[sorted];
        let changed = if sorted > 0 && self.rows[sorted - 1].order(&first_new, bytes) != Ordering::Less {
            let at = self.rows[..sorted].partition_point(|r| r.order(&first_new, bytes) == Ordering::Less);
            // Two sorted runs: the standard stable sort merges them in linear time.
            self.rows[at..].sort_by(|a, b| a.order(b, bytes));
            at
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
        self.snapshots.retain(|s| s.rows <= at);
        let folded = self.snapshots.last().map_or(0, |s| s.rows);
        self.closed.retain(|c| c.tag < folded);
        self.rejected.retain(|r| r.row < folded);
    }

    /// Whether the rule has failed at this event.
    pub(crate) fn is_poison(&self, row: &Row) -> bool {
        let event = row.ident(&self.ext);
        self.poison.iter().any(|p| p.event == event)
    }

    /// Takes the first `n` rows out: base has them. What was rejected among them has been told.
    pub(crate) fn drain(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let last = self.rows[..n].iter().rev().find(|r| !r.fresh());
        if last.is_some() {
            self.dropped_through = Some(self.rows[n - 1].ident(&self.ext));
        }
        self.rows.drain(..n);
        self.sorted -= n;
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
        self.dropped_through = None;
    }
    /// Bytes that the suffix holds.
    pub(crate) fn suffix_bytes(&self) -> usize {
        self.rows.len() * size_of::<Row>() + self.ext.len()
    }
}

const INLINE_KEY_BYTES: usize = 22;

/// A key's bytes. Short ones stand in place: finding a key then costs one cache miss, not two.
#[derive(Debug)]
pub(crate) enum KeyBytes {
    Inline(u8, [u8; INLINE_KEY_BYTES]),
    Boxed(Box<[u8]>),
}

impl From<&[u8]> for KeyBytes {
    fn from(key: &[u8]) -> Self {
        let mut inline = [0; INLINE_KEY_BYTES];
        match inline.get_mut(..key.len()) {
            Some(place) => {
                place.copy_from_slice(key);
                KeyBytes::Inline(key.len() as u8, inline)
            }
            None => KeyBytes::Boxed(key.into()),
        }
    }
}

impl std::ops::Deref for KeyBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            KeyBytes::Inline(len, bytes) => &bytes[..*len as usize],
            KeyBytes::Boxed(key) => key,
        }
    }
}

/// A key and its fold. In order of use: an event needs the key and the tail, only a fold the rest.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct KeyState {
    pub(crate) tail: Option<Box<Tail>>,
    pub(crate) hash: u64,
    pub(crate) key: KeyBytes,
    /// Sessions that closed at or before this frontier were settled: reported for the last time.
    pub(crate) settled_b: EventTime,
    pub(crate) base: Option<Open>,
}

/// The byte form: little-endian, one record a key, whole or as the difference since the last epoch.
pub(crate) mod codec {
    use super::*;
    use crate::outbox::Stage;

    const REMOVED: u8 = 1;
    const BASE: u8 = 2;
    const SENT: u8 = 4;
    const DROPPED: u8 = 8;
    const ROWS: u8 = 16;
    /// The record replaces what was known of the key.
    const WHOLE: u8 = 32;
    const POISON: u8 = 64;

    pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);
    impl<'a> Reader<'a> {
        pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
            let (a, b) = self.0.split_at_checked(n)?;
            self.0 = b;
            Some(a)
        }
        pub(crate) fn u8(&mut self) -> Option<u8> {
            self.take(1).map(|b| b[0])
        }
        pub(crate) fn u32(&mut self) -> Option<u32> {
            self.take(4)?.try_into().ok().map(u32::from_le_bytes)
        }
        pub(crate) fn u64(&mut self) -> Option<u64> {
            self.take(8)?.try_into().ok().map(u64::from_le_bytes)
        }
        fn time(&mut self) -> Option<EventTime> {
            self.u64().map(|n| EventTime::from_ms(n as i64))
        }
        fn bytes(&mut self) -> Option<&'a [u8]> {
            let n = self.u32()?;
            self.take(n as usize)
        }
        fn position(&mut self) -> Option<Position> {
            Some(Position { source: self.u32()?, partition: self.u32()?, offset: self.u64()? })
        }
        fn ident(&mut self) -> Option<Ident> {
            let (time, position) = (self.time()?, self.position()?);
            let id = self.bytes()?;
            Some(Ident { time, position, id: (!id.is_empty()).then(|| id.into()) })
        }
        fn open(&mut self) -> Option<Option<Open>> {
            if self.u8()? == 0 {
                return Some(None);
            }
            let first = self.ident()?;
            let (last, last_position, count) = (self.time()?, self.position()?, self.u64()?);
            let state = self.bytes()?.into();
            let n = self.u8()?;
            let timers = (0..n)
                .map(|_| Some(Timer { number: self.u8()?, at: self.time()? }))
                .collect::<Option<Vec<_>>>()?;
            let timers = timers.as_slice().into();
            Some(Some(Open { first, last, last_position, count, state, timers }))
        }
        fn sent(&mut self) -> Option<Sent> {
            Some(Sent {
                anchor: self.ident()?,
                stage: Stage::from_u8(self.u8()?)?,
                was_final: self.u8()? != 0,
                start: self.time()?,
                end: self.time()?,
                count: self.u64()?,
                reason: self.u32()? as u16,
                content: self.u64()?,
            })
        }
    }

    pub(crate) fn put_u32(out: &mut Vec<u8>, n: usize) {
        out.extend_from_slice(&(n as u32).to_le_bytes());
    }
    fn put_u64(out: &mut Vec<u8>, n: u64) {
        out.extend_from_slice(&n.to_le_bytes());
    }
    fn put_time(out: &mut Vec<u8>, t: EventTime) {
        put_u64(out, t.ms() as u64);
    }
    fn put_bytes(out: &mut Vec<u8>, b: &[u8]) {
        put_u32(out, b.len());
        out.extend_from_slice(b);
    }
    fn put_position(out: &mut Vec<u8>, p: Position) {
        out.extend_from_slice(&p.source.to_le_bytes());
        out.extend_from_slice(&p.partition.to_le_bytes());
        put_u64(out, p.offset);
    }
    fn put_ident(out: &mut Vec<u8>, i: &Ident) {
        put_time(out, i.time);
        put_position(out, i.position);
        put_bytes(out, i.id.as_deref().unwrap_or_default());
    }
    fn put_open(out: &mut Vec<u8>, open: Option<&Open>) {
        out.push(u8::from(open.is_some()));
        let Some(o) = open else { return };
        put_ident(out, &o.first);
        put_time(out, o.last);
        put_position(out, o.last_position);
        put_u64(out, o.count);
        put_bytes(out, &o.state);
        out.push(o.timers.len() as u8);
        for t in o.timers.iter() {
            out.push(t.number);
            put_time(out, t.at);
        }
    }
    fn put_sent(out: &mut Vec<u8>, s: &Sent) {
        put_ident(out, &s.anchor);
        out.push(s.stage as u8);
        out.push(u8::from(s.was_final));
        put_time(out, s.start);
        put_time(out, s.end);
        put_u64(out, s.count);
        put_u32(out, s.reason as usize);
        put_u64(out, s.content);
    }

    /// What of the key an epoch record is to hold.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Extent {
        /// What changed: base, sent, fresh rows, and which old ones went.
        Change,
        /// Everything.
        Whole,
    }

    pub(crate) fn removed(key: &[u8], out: &mut Vec<u8>) {
        out.push(REMOVED);
        put_bytes(out, key);
    }

    pub(crate) fn encode(k: &KeyState, extent: Extent, out: &mut Vec<u8>) {
        let whole = extent == Extent::Whole;
        let tail = k.tail.as_deref();
        let dropped = tail.and_then(|t| t.dropped_through.as_ref()).filter(|_| !whole);
        let rows = tail.map_or(0, |t| t.rows.iter().filter(|r| whole || r.fresh()).count());
        let mut flags = BASE | SENT;
        flags |= if whole { WHOLE } else { 0 };
        flags |= if dropped.is_some() { DROPPED } else { 0 };
        flags |= if rows > 0 { ROWS } else { 0 };
        let poison = tail.map_or(&[][..], |t| &t.poison);
        flags |= if poison.is_empty() { 0 } else { POISON };
        out.push(flags);
        put_bytes(out, &k.key);
        put_time(out, k.settled_b);
        put_open(out, k.base.as_ref());
        let sent = tail.map_or(&[][..], |t| &t.sent);
        put_u32(out, sent.len());
        for s in sent {
            put_sent(out, s);
        }
        if let Some(d) = dropped {
            put_ident(out, d);
        }
        if let Some(t) = tail.filter(|_| rows > 0) {
            put_u32(out, rows);
            for r in t.rows.iter().filter(|r| whole || r.fresh()) {
                put_time(out, r.time);
                put_position(out, r.position);
                put_bytes(out, r.ext(&t.ext));
            }
        }
        if !poison.is_empty() {
            put_u32(out, poison.len());
            for p in poison {
                put_ident(out, &p.event);
                put_bytes(out, p.message.as_bytes());
            }
        }
    }

    /// One record of the state section.
    pub(crate) struct Record<'a> {
        pub(crate) removed: bool,
        pub(crate) whole: bool,
        pub(crate) key: &'a [u8],
        pub(crate) settled_b: EventTime,
        pub(crate) base: Option<Open>,
        pub(crate) sent: Vec<Sent>,
        pub(crate) dropped: Option<Ident>,
        pub(crate) rows: Vec<(EventTime, Position, &'a [u8])>,
        pub(crate) poison: Vec<Poison>,
    }

    pub(crate) fn decode<'a>(r: &mut Reader<'a>) -> Option<Record<'a>> {
        let flags = r.u8()?;
        let key = r.bytes()?;
        let mut rec = Record {
            removed: flags & REMOVED != 0,
            whole: flags & WHOLE != 0,
            key,
            settled_b: EventTime::BEGINNING,
            base: None,
            sent: Vec::new(),
            dropped: None,
            rows: Vec::new(),
            poison: Vec::new(),
        };
        if rec.removed {
            return Some(rec);
        }
        rec.settled_b = r.time()?;
        rec.base = r.open()?;
        for _ in 0..r.u32()? {
            rec.sent.push(r.sent()?);
        }
        if flags & DROPPED != 0 {
            rec.dropped = Some(r.ident()?);
        }
        if flags & ROWS != 0 {
            for _ in 0..r.u32()? {
                rec.rows.push((r.time()?, r.position()?, r.bytes()?));
            }
        }
        if flags & POISON != 0 {
            for _ in 0..r.u32()? {
                let event = r.ident()?;
                let message = String::from_utf8_lossy(r.bytes()?).into();
                rec.poison.push(Poison { event, message });
            }
        }
        Some(rec)
    }

    impl KeyState {
        /// Applies a record on top of what is known.
        pub(crate) fn apply(&mut self, rec: Record<'_>) {
            self.settled_b = rec.settled_b;
            self.base = rec.base;
            let needs_tail = !rec.rows.is_empty() || !rec.sent.is_empty() || self.tail.is_some();
            if !needs_tail {
                return;
            }
            let tail = self.tail.get_or_insert_default();
            if rec.whole {
                tail.clear();
            }
            tail.sent = rec.sent;
            tail.poison = rec.poison;
            if let Some(through) = &rec.dropped {
                let ext = &tail.ext;
                tail.rows.retain(|r| r.ident(ext).order(through) == Ordering::Greater);
            }
            for (time, position, e) in rec.rows {
                let at = tail.ext.len() as u32;
                tail.ext.extend_from_slice(e);
                tail.rows.push(Row { time, position, ext_at: at, ext_len: e.len() as u32 });
            }
            tail.sorted = 0;
            if tail.is_empty() {
                self.tail = None;
            }
        }
    }
}
