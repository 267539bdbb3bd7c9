//! The fold of one key as a value: base, suffix, what was sent; with a byte form (DESIGN 10).
//!
//! Invariants: `rows[..sorted]` are in (time, id) order without copies; every snapshot stands after a
//! prefix of those rows; `closed` holds what the folded prefix closed and has not been settled; `sent` is in
//! anchor order and holds only anchors that may still change.

pub(crate) mod codec;
mod tail;

pub(crate) use tail::{Counted, Row, Tail};

use crate::event::Position;
use crate::rule::Timer;
use crate::time::EventTime;
use crate::versions::Version;
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

/// An open session.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    /// Whose state it is.
    pub(crate) version: Version,
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
    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let timers = if let Timers::Many(all) = &self.timers { size_of_val::<[Timer]>(all) } else { 0 };
        size_of::<Open>() + self.state.len() + self.first.id.as_ref().map_or(0, |id| id.len()) + timers
    }
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
    pub(crate) version: Version,
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
    pub(crate) version: Version,
    pub(crate) content: u64,
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
