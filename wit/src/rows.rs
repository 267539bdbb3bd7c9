//! The rows of every section. All are little-endian, without holes, and a multiple of 8 bytes long.
//!
//! Times are milliseconds since the Unix epoch (UTC) as `i64`; `i64::MAX` is the end of time. Ranges ([`Range`]) name rows of
//! the section in the comment, or bytes of the frame's last section.

use crate::frame::FrameError;
use bytemuck::{Pod, Zeroable};

/// Some rows of another section, or some of the frame's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Range {
    /// First row or byte.
    pub at: u32,
    /// Number of rows or bytes.
    pub len: u32,
}

impl Range {
    /// What it names in `of`.
    ///
    /// # Errors
    /// If it reaches outside.
    pub fn of<T>(self, of: &[T]) -> Result<&[T], FrameError> {
        (self.at as usize)
            .checked_add(self.len as usize)
            .and_then(|end| of.get(self.at as usize..end))
            .ok_or(FrameError::Range)
    }
    /// The rows or bytes from `at` up to `end`.
    #[must_use]
    pub const fn between(at: usize, end: usize) -> Range {
        Range { at: at as u32, len: (end - at) as u32 }
    }
}

/// `turns`, section 0: one call's work for one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Turn {
    /// The key, in bytes.
    pub key: Range,
    /// The state of the open session, in bytes; empty if nothing is open.
    pub state: Range,
    /// Time of the open session's first event.
    pub open_start: i64,
    /// Time of its last event.
    pub open_last: i64,
    /// Number of its events.
    pub open_count: u64,
    /// After the last input, timers with T at or before this fire.
    pub until: i64,
    /// In `inputs`, by (time, id).
    pub inputs: Range,
    /// Pending timers of the open session, in `timers`.
    pub timers: Range,
    /// Inputs after which the state is wanted too, in `wanted`: indices within the turn, rising.
    pub wanted: Range,
    /// See [`turn_flags`].
    pub flags: u64,
}

/// Bits of [`Turn::flags`].
pub mod turn_flags {
    /// A session is open at the turn's start.
    pub const OPEN: u64 = 1;
    /// The input has ended: after its timers, what is still open is asked `on_end` and then closed.
    pub const AT_END: u64 = 2;
    /// The fields of the session that is open after everything are wanted.
    pub const REPORT_OPEN: u64 = 4;
    /// Notes are wanted.
    pub const NOTES: u64 = 8;
}

/// `turns` section 2 and `results` section 4: a pending timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Timer {
    /// When it is due.
    pub at: i64,
    /// Its place in the description's `timers`.
    pub number: u64,
}

/// `turns` section 1 has rows of 1 + fields words: the time, then a [cell](crate::cell) for each declared field.
pub const INPUT_HEAD_WORDS: usize = 1;
/// `events` section 0 has rows of 2 + fields words: the time, the key as a [`Range`], then a cell for each declared field.
pub const EVENT_HEAD_WORDS: usize = 2;

/// Bytes of the state of one session that is kept.
pub const STATE_BYTES_MAX: usize = 64 << 10;
/// Bytes of the fields of one session.
pub const FIELDS_BYTES_MAX: usize = 64 << 10;

/// Nothing is open ([`StateAt::first`]).
pub const NOTHING_OPEN: i32 = -2;
/// In the state that the turn began with ([`StateAt::first`], [`Closing::first`], [`Closing::last`]).
pub const CARRIED: i32 = -1;

/// The state at some point of a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct StateAt {
    /// First event of the open session: an input's index, [`CARRIED`] or [`NOTHING_OPEN`].
    pub first: i32,
    /// See [`state_kind`].
    pub kind: u32,
    /// The state, in bytes, if it is put.
    pub state: Range,
    /// Pending timers, in `timers`.
    pub timers: Range,
}

/// Values of [`StateAt::kind`].
pub mod state_kind {
    /// Nothing is open: no state.
    pub const NONE: u32 = 0;
    /// As it was when the turn began.
    pub const UNCHANGED: u32 = 1;
    /// A new one.
    pub const PUT: u32 = 2;
}

/// `results`, section 0: the answer for one turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TurnResult {
    /// Sessions that ended, in order, in `closings`.
    pub closings: Range,
    /// One for each input in `wanted`, in `snapshots`.
    pub snapshots: Range,
    /// Inputs that were rejected, rising, in `rejections`.
    pub rejections: Range,
    /// The state after everything.
    pub end: StateAt,
    /// Fields of the open session if asked for: a JSON object in bytes, or empty.
    pub open_fields: Range,
}

/// `results`, section 1: a session that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Closing {
    /// See [`cause`].
    pub cause: u32,
    /// The input's index within the turn, or the timer's number.
    pub index: u32,
    /// When the timer was due; 0 for other causes.
    pub at: i64,
    /// First event: an input's index or [`CARRIED`].
    pub first: i32,
    /// Last event: an input's index or [`CARRIED`].
    pub last: i32,
    /// Place in the description's `reasons`, or [`REASON_END_OF_INPUT`], [`REASON_LIMIT`].
    pub reason: u32,
    /// 1: discarded, `reason` says why; 0: a session.
    pub discarded: u32,
    /// A JSON object in bytes, or empty.
    pub fields: Range,
}

/// [`Closing::reason`]: the input ended and the rule kept the session open.
pub const REASON_END_OF_INPUT: u32 = u32::MAX;
/// [`Closing::reason`]: more than 1,000 timers fired without an event between them.
pub const REASON_LIMIT: u32 = u32::MAX - 1;
/// Timers that may fire without an event between them before the session is closed with [`REASON_LIMIT`].
pub const FIRINGS_MAX: u32 = 1_000;

/// Values of [`Closing::cause`].
pub mod cause {
    /// An input.
    pub const INPUT: u32 = 0;
    /// A timer.
    pub const TIMER: u32 = 1;
    /// The end of the input.
    pub const END: u32 = 2;
}

/// `results`, section 3: an input that was rejected. The state stands as before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Rejection {
    /// Index within the turn.
    pub input: u32,
    /// Place in the description's `reasons`.
    pub reason: u32,
}

/// `results` section 5, `verdicts` section 1, `enriched` section 1: a step of one of the plugin's own metrics. By `row`,
/// rising; of one row in the order of the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Count {
    /// The turn, event or session.
    pub row: u32,
    /// The input's index within the turn; [`NO_INPUT`] for a timer or the end.
    pub input: u32,
    /// Place in the description's `metrics`.
    pub metric: u64,
    /// Event time of the step: the input's, the timer's, or the end of time for the end.
    pub at: i64,
    /// What to add, or what to observe.
    pub value: f64,
}

/// No input.
pub const NO_INPUT: u32 = u32::MAX;

/// `results`, section 6: a remark of the rule, for whoever asks why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Note {
    /// The turn.
    pub turn: u32,
    /// The input's index within the turn; [`NO_INPUT`] for a timer or the end.
    pub input: u32,
    /// In bytes.
    pub text: Range,
}

/// `verdicts`, section 0: one for each event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Verdict {
    /// 0: accepted; else 1 + the place in the description's `reasons`.
    pub code: u64,
    /// For a reader, in bytes; may be empty.
    pub message: Range,
}

/// `sessions`, section 0: a session to enrich.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Session {
    /// The key, in bytes.
    pub key: Range,
    /// Time of the first event.
    pub start: i64,
    /// Time of the last event.
    pub end: i64,
    /// Number of events.
    pub count: u64,
    /// Close reason, in bytes; empty while open.
    pub reason: Range,
    /// Fields, a JSON object in bytes.
    pub fields: Range,
    /// What was looked up for it, in `answers`, in the order of its requests; empty in `requests`.
    pub answers: Range,
}

/// `sessions`, section 1: what a lookup found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Answer {
    /// Place in the description's `lookups`.
    pub lookup: u32,
    /// See [`answer`].
    pub status: u32,
    /// What was asked for, in bytes.
    pub key: Range,
    /// What was found: a JSON object in bytes.
    pub row: Range,
}

/// Values of [`Answer::status`].
pub mod answer {
    /// There is a row.
    pub const FOUND: u32 = 0;
    /// There is no such row.
    pub const NOT_FOUND: u32 = 1;
    /// The lookup could not answer, and the policy leaves the session without.
    pub const FAILED: u32 = 2;
}

/// `requests`, section 0: a lookup that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Request {
    /// The session's place in the frame; rising.
    pub session: u32,
    /// Place in the description's `lookups`.
    pub lookup: u32,
    /// What to look up, in bytes.
    pub key: Range,
}

/// `enriched`, section 0: one for each session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Enriched {
    /// 0: enriched; else 1 + the place in the description's `reasons`: a dead letter.
    pub code: u64,
    /// Fields to add, a JSON object in bytes, or empty.
    pub fields: Range,
}

/// `states`, section 0: a state of a session, before or after a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct State {
    /// In bytes.
    pub state: Range,
    /// Why it could not be migrated, in bytes; empty if it could.
    pub error: Range,
}

/// The progress word, 64 bits at the address that `progress` names: low half the turn, event or session at hand, high half
/// the input's index within the turn or one of these.
pub mod progress {
    /// Reading the frame, or writing the answer.
    pub const FRAME: u32 = u32::MAX;
    /// A timer, or the end of the input.
    pub const TIMER: u32 = u32::MAX - 1;
    /// The fields of a session.
    pub const OUTPUT: u32 = u32::MAX - 2;
}
