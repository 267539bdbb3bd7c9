//! The turn contract (DESIGN 5): what a session rule is given and what it answers.
//!
//! Built-in rules and plugins stand behind the same trait. A call takes a batch of turns, each of one key: its state,
//! its inputs in (time, id) order, and how far timers may fire. Bounds, counts and ids are the host's,
//! taken from the indices in the answer. Everything is flat and reused, so that a call allocates nothing.

use crate::metrics::Metric;
use crate::time::EventTime;
use std::ops::Range;

/// A range of one of the flat vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First element.
    pub at: u32,
    /// Number of elements.
    pub len: u32,
}

impl Span {
    /// The range of the elements from `at` up to `end`.
    #[must_use]
    pub const fn between(at: usize, end: usize) -> Span {
        Span { at: at as u32, len: (end - at) as u32 }
    }
    /// As a range of indices.
    #[must_use]
    pub const fn range(self) -> Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }
}

/// A pending timer: fires at `at`, before any event with a time at or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    /// When it is due, event time.
    pub at: EventTime,
    /// Its number in the rule's description.
    pub number: u8,
}

/// The open session as the rule finds it.
#[derive(Clone, Copy, Debug)]
pub struct OpenHead {
    /// Time of the first event.
    pub start: EventTime,
    /// Time of the last event.
    pub last: EventTime,
    /// Number of events.
    pub count: u64,
}

/// One event of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Event time.
    pub time: EventTime,
    /// Its extension (see [`crate::event::ext`]) in [`Turns::bytes`].
    pub ext: Span,
    /// A tombstone: the rule failed at it before (SEMANTICS 13). No rule is shown it; see [`crate::contain`].
    pub skip: bool,
}

/// One call's work for one key.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// The key as rows show it, in [`Turns::bytes`]; empty unless [`Description::wants_key`].
    pub key: Span,
    /// The open session; `None`: nothing is open.
    pub open: Option<OpenHead>,
    /// The rule's state of the open session, in [`Turns::bytes`].
    pub state: Span,
    /// Pending timers of the open session, in [`Turns::timers`].
    pub timers: Span,
    /// The events, in [`Turns::inputs`].
    pub inputs: Span,
    /// After the last input, timers with T at or before this fire.
    pub until: EventTime,
    /// The input has ended: what is still open after its timers is closed.
    pub at_end: bool,
    /// The open session's fields are wanted.
    pub report_open: bool,
    /// Inputs (indices within the turn) after which the state is wanted too, in [`Turns::wanted`].
    pub wanted: Span,
}

/// A batch of turns.
#[derive(Default, Debug)]
pub struct Turns {
    /// The turns, each of another key.
    pub turns: Vec<Turn>,
    /// Inputs of all turns.
    pub inputs: Vec<Input>,
    /// Pending timers of all turns.
    pub timers: Vec<Timer>,
    /// Indices of inputs after which a snapshot is wanted.
    pub wanted: Vec<u32>,
    /// States and extensions.
    pub bytes: Vec<u8>,
}

impl Turns {
    /// Forgets the turns, keeps the memory.
    pub fn clear(&mut self) {
        self.turns.clear();
        self.inputs.clear();
        self.timers.clear();
        self.wanted.clear();
        self.bytes.clear();
    }
}

/// Where a session's first or last event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the state that the turn began with.
    Carried,
    /// The input with this index within the turn.
    Input(u32),
}

/// What closed a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The input with this index.
    Input(u32),
    /// A timer.
    Timer(Timer),
    /// The end of the input, nothing pending.
    End,
}

/// A session that ended in a turn.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    /// What closed it.
    pub cause: Cause,
    /// Whether it is discarded: a dead letter, no row.
    pub discarded: bool,
    /// Its first event.
    pub first: Place,
    /// Its last event.
    pub last: Place,
    /// Index into [`Description::reasons`], or one of the host's own: [`PLUGIN_FAULT`], [`END_OF_INPUT`], [`LIMIT`].
    pub reason: u16,
    /// Its fields (JSON object) in [`Results::bytes`]; empty for `{}`.
    pub fields: Span,
}

/// The rule failed in a timer or in output ([`Closing::reason`]), or at this event ([`Rejection::reason`]).
pub const PLUGIN_FAULT: u16 = u16::MAX - 1;
/// The input ended, and the rule had no reason of its own.
pub const END_OF_INPUT: u16 = u16::MAX - 2;
/// Too many timers fired without an event between them (SEMANTICS 12).
pub const LIMIT: u16 = u16::MAX - 3;

/// An input that belongs to no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Index within the turn.
    pub input: u32,
    /// Index into [`Description::reasons`], or [`PLUGIN_FAULT`].
    pub reason: u16,
    /// For a reader, in [`Results::bytes`]; may be empty.
    pub message: Span,
}

/// A step of one of the rule's own metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count {
    /// The input's index within the turn; `None` for a timer or the end.
    pub input: Option<u32>,
    /// When, in event time; `INFINITY` for the end.
    pub at: EventTime,
    /// Index into [`Description::metrics`].
    pub metric: u16,
    /// What to add or to observe.
    pub value: f64,
}

/// The rule's state at some point of a turn.
#[derive(Clone, Copy, Debug)]
pub struct StateAt {
    /// First event of the open session; `None`: nothing is open.
    pub first: Option<Place>,
    /// The state, in [`Results::bytes`].
    pub state: Span,
    /// Pending timers, in [`Results::timers`].
    pub timers: Span,
}

/// Why a turn failed. The other turns of the call stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happened, for a reader.
    pub message: String,
    /// What the rule was at.
    pub at: FaultAt,
    /// Nothing more should be asked of the rule: it has failed too often, or cannot be made ready again.
    pub fatal: bool,
    /// It took too long, and that is all: with fewer inputs at once it may work.
    pub overdue: bool,
}

/// What a rule was at when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAt {
    /// Not known.
    Unknown,
    /// The input with this index within the turn.
    Input(u32),
    /// The fields of a session.
    Output,
}

impl Fault {
    /// A fault whose place is not known.
    #[must_use]
    pub fn unknown(message: impl Into<String>) -> Fault {
        Fault { message: message.into(), at: FaultAt::Unknown, fatal: false, overdue: false }
    }
}

/// The answer for one turn.
#[derive(Clone, Debug)]
pub struct TurnResult {
    /// The turn failed and the rest of the answer means nothing.
    pub fault: Option<Fault>,
    /// Sessions that ended, in order, in [`Results::closings`].
    pub closings: Span,
    /// The snapshots asked for, in [`Results::snapshots`].
    pub snapshots: Span,
    /// Inputs that belong to no session, rising, in [`Results::rejections`].
    pub rejections: Span,
    /// Steps of the rule's own metrics, in [`Results::counts`].
    pub counts: Span,
    /// The state after everything.
    pub end: StateAt,
    /// Fields of the open session if asked for; empty for `{}`.
    pub open_fields: Span,
}

impl TurnResult {
    /// An answer that says only that the turn failed.
    #[must_use]
    pub fn failed(fault: Fault) -> TurnResult {
        let nothing = Span::default();
        TurnResult {
            fault: Some(fault),
            closings: nothing,
            snapshots: nothing,
            rejections: nothing,
            counts: nothing,
            end: StateAt { first: None, state: nothing, timers: nothing },
            open_fields: nothing,
        }
    }
}

/// The answers for a batch of turns.
#[derive(Default, Debug)]
pub struct Results {
    /// One per turn, in order.
    pub turns: Vec<TurnResult>,
    /// Sessions that ended.
    pub closings: Vec<Closing>,
    /// Snapshots.
    pub snapshots: Vec<StateAt>,
    /// Inputs that belong to no session.
    pub rejections: Vec<Rejection>,
    /// Steps of the rule's own metrics.
    pub counts: Vec<Count>,
    /// Pending timers.
    pub timers: Vec<Timer>,
    /// States and fields.
    pub bytes: Vec<u8>,
}

impl Results {
    /// Forgets the answers, keeps the memory.
    pub fn clear(&mut self) {
        self.turns.clear();
        self.closings.clear();
        self.snapshots.clear();
        self.rejections.clear();
        self.counts.clear();
        self.timers.clear();
        self.bytes.clear();
    }
}

/// The form of a rule's state: what another version of it can take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateForm {
    /// The rule's name, without its version.
    pub rule: String,
    /// The form's version.
    pub version: u32,
    /// What a state of this version is made of, in the rule's own words: compared, never read.
    pub shape: String,
    /// Versions of the form that [`SessionRule::migrate`] takes, each with its shape.
    pub from: Vec<(u32, String)>,
}

/// What a rule says of itself.
#[derive(Clone, Debug)]
pub struct Description {
    /// `name@version`.
    pub plugin: String,
    /// SHA-256 of the component, in hex; none for what is built in.
    pub digest: Option<String>,
    /// Declared fields, in the order of the extension.
    pub fields: Vec<String>,
    /// Close reasons, and codes of discards and rejections.
    pub reasons: Vec<String>,
    /// Names of its timers, by number.
    pub timers: Vec<String>,
    /// The form of its state.
    pub state: StateForm,
    /// Metrics of its own.
    pub metrics: Vec<Metric>,
    /// Whether turns are to carry the key.
    pub wants_key: bool,
}

impl Description {
    /// A reason's name; `None` for one that nobody has.
    #[must_use]
    pub fn reason(&self, code: u16) -> Option<&str> {
        match code {
            PLUGIN_FAULT => Some("plugin_fault"),
            END_OF_INPUT => Some("end_of_input"),
            LIMIT => Some("limit"),
            n => self.reasons.get(n as usize).map(String::as_str),
        }
    }
}

/// A session rule: a pure function from turns to results.
pub trait SessionRule: Send {
    /// What it is and what it wants.
    fn describe(&self) -> &Description;
    /// Answers every turn, in order. Never panics; a turn that cannot be answered has a fault.
    fn call(&mut self, turns: &Turns, out: &mut Results);
    /// How many inputs it takes in one turn at the moment; a longer turn fails as `overdue`, and is asked in parts.
    fn inputs_max(&self) -> usize {
        usize::MAX
    }
    /// Puts states of an older form into this rule's, one answer each: the state, or why it cannot be taken over.
    fn migrate(&mut self, from: u32, states: &[&[u8]]) -> Vec<Result<Vec<u8>, String>>;
    /// A session has ended at a swap because its state could not be taken over: told once for each.
    fn was_unfit(&mut self, _why: &str) {}
}
