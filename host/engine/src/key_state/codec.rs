//! The byte form of a key's fold: little-endian, one record a key, whole or as the difference since the last epoch.

use super::{Counted, Ident, KeyState, Open, Poison, Row, Sent, Tail};
use crate::event::Position;
use crate::outbox::Stage;
use crate::rule::Timer;
use crate::time::EventTime;
use crate::versions::Version;
use std::cmp::Ordering;

const REMOVED: u8 = 1;
const BASE: u8 = 2;
const SENT: u8 = 4;
const DROPPED: u8 = 8;
const ROWS: u8 = 16;
/// The record replaces what was known of the key.
const WHOLE: u8 = 32;
const POISON: u8 = 64;
const COUNTED: u8 = 128;

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
        let version = Version(self.u32()?);
        let first = self.ident()?;
        let (last, last_position, count) = (self.time()?, self.position()?, self.u64()?);
        let state = self.bytes()?.into();
        let n = self.u8()?;
        let timers = (0..n)
            .map(|_| Some(Timer { number: self.u8()?, at: self.time()? }))
            .collect::<Option<Vec<_>>>()?;
        let timers = timers.as_slice().into();
        Some(Some(Open { version, first, last, last_position, count, state, timers }))
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
            version: Version(self.u32()?),
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
    put_u32(out, o.version.0 as usize);
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
    put_u32(out, s.version.0 as usize);
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
    let told = tail.map(Tail::told);
    let dropped = told.and_then(|t| t.dropped_through.as_ref()).filter(|_| !whole);
    let rows = tail.map_or(0, |t| t.rows.iter().filter(|r| whole || r.fresh()).count());
    let mut flags = BASE | SENT;
    flags |= if whole { WHOLE } else { 0 };
    flags |= if dropped.is_some() { DROPPED } else { 0 };
    flags |= if rows > 0 { ROWS } else { 0 };
    let poison = told.map_or(&[][..], |t| &t.poison);
    flags |= if poison.is_empty() { 0 } else { POISON };
    let counted = told.and_then(|t| t.counted);
    flags |= if counted.is_some() { COUNTED } else { 0 };
    out.push(flags);
    put_bytes(out, &k.key);
    put_time(out, k.settled_b);
    put_open(out, k.base.as_ref());
    let sent = told.map_or(&[][..], |t| &t.sent);
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
    if let Some(c) = counted {
        put_time(out, c.events);
        put_time(out, c.timers);
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
    pub(crate) counted: Option<Counted>,
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
        counted: None,
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
    if flags & COUNTED != 0 {
        rec.counted = Some(Counted { events: r.time()?, timers: r.time()? });
    }
    Some(rec)
}

impl KeyState {
    /// Applies a record on top of what is known.
    pub(crate) fn apply(&mut self, rec: Record<'_>) {
        self.settled_b = rec.settled_b;
        self.base = rec.base;
        let counted = rec.counted.is_some();
        let needs_tail = !rec.rows.is_empty() || !rec.sent.is_empty() || counted || self.tail.is_some();
        if !needs_tail {
            return;
        }
        let tail = self.tail.get_or_insert_default();
        if rec.whole {
            tail.clear();
        }
        if !rec.sent.is_empty() || !rec.poison.is_empty() || counted || tail.told_mut().is_some() {
            let told = tail.tell();
            (told.sent, told.poison, told.counted) = (rec.sent, rec.poison, rec.counted);
        }
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
