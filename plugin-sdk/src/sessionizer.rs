//! Session rules: the trait that an author writes, and the walk through a turn by the rules of `wit/README.md`.
//!
//! The walk allocates nothing per event: rows are read where they lie, and answers go into lists that are kept.

use crate::context::{NEVER, TIMERS_MAX, Timers};
use crate::event::{Block, Row};
use crate::progress;
use crate::{Config, ConfigError, Context, Decision, EventView, Fields, Metric, Names, Reason, State, Timer};
use std::rc::Rc;
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{
    self, CARRIED, Closing, FIRINGS_MAX, INPUT_HEAD_WORDS, NO_INPUT, NOTHING_OPEN, REASON_END_OF_INPUT,
    REASON_LIMIT, Range, Rejection, StateAt, Turn, TurnResult, cause, state_kind, turn_flags,
};

/// A session rule: says where sessions begin and end.
///
/// It sees the events of one key in order of time, and is a pure function of them: the host may run it again over the
/// same events, and takes the answers to be the same. What it must remember is in its state and its timers.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Scenario;
/// struct Logins;
/// #[derive(State, Default)] struct Visit { clicks: u32 }
/// #[event] struct Event { login: Option<bool> }
/// #[derive(Reason, Clone, Copy)] enum Why { Login, Unfinished }
/// impl Sessionizer for Logins {
///     type Config = (); type Event = Event; type State = Visit; type Reason = Why; type Timer = ();
///     const REJECTS: bool = false;
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Logins) }
///     fn open(&self, _: &mut Context<Self>, _: &Event) -> Visit { Visit::default() }
///     fn on_event(&self, _: &mut Context<Self>, visit: &mut Visit, event: &Event) -> Decision<Why> {
///         if visit.clicks > 0 && event.login() == Some(true) { return split(Why::Login) }
///         visit.clicks += 1;
///         keep()
///     }
///     fn on_end(&self, _: &mut Context<Self>, visit: &mut Visit) -> Decision<Why> {
///         if visit.clicks < 2 { discard(Why::Unfinished) } else { keep() }
///     }
///     fn output(&self, visit: &Visit) -> Fields { fields! { clicks: visit.clicks } }
/// }
/// let mut s = Scenario::<Logins>::new("{}");
/// s.at("10:00", fields! { login: true }).at("10:01", fields! {}).at("12:00", fields! { login: true }).end_of_input();
/// s.expect(r#"
///     10:00:00 .. 10:01:00  2 events  login                  {"clicks":2}
///     12:00:00 .. 12:00:00  1 event   discarded: unfinished  {"clicks":1}
/// "#);
/// ```
pub trait Sessionizer: Sized + 'static {
    /// Its config; `()` for none.
    type Config: Config;
    /// What it sees of an event.
    type Event: EventView;
    /// What it remembers of an open session; `()` for nothing.
    type State: State;
    /// Why it closes, discards, rejects.
    type Reason: Reason;
    /// Its timers; `()` for none.
    type Timer: Timer;

    /// Metrics of its own.
    const METRICS: &'static [Metric] = &[];
    /// Whether it may [`reject`](crate::reject). Then the state is copied before each event, so that it can be put
    /// back; a rule that never does may say `false` and save that.
    const REJECTS: bool = true;

    /// The rule under a config.
    ///
    /// # Errors
    /// What is wrong with the config beyond its form.
    fn configure(config: Self::Config) -> Result<Self, Vec<ConfigError>>;

    /// Names of declared fields that are of no use under this config. The host does not look for them in records, which makes
    /// every event cheaper, and the rule sees them as missing. Only fields that may be missing can be named.
    fn unread(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// A session begins: its state. [`on_event`](Self::on_event) sees the event too, right after.
    fn open(&self, cx: &mut Context<Self>, first: &Self::Event) -> Self::State;

    /// An event of the session.
    fn on_event(
        &self,
        cx: &mut Context<Self>,
        state: &mut Self::State,
        event: &Self::Event,
    ) -> Decision<Self::Reason>;

    /// A timer is due. [`split`](crate::split) means [`close`](crate::close) here, and there is nothing to reject.
    fn on_timer(
        &self,
        cx: &mut Context<Self>,
        state: &mut Self::State,
        timer: Self::Timer,
    ) -> Decision<Self::Reason> {
        let _ = (cx, state);
        crate::broken(format_args!("timer `{}` fired, and the rule has no `on_timer`", timer.name()))
    }

    /// The input has ended and the session is open. [`keep`](crate::keep) closes it as `end_of_input`.
    fn on_end(&self, cx: &mut Context<Self>, state: &mut Self::State) -> Decision<Self::Reason> {
        let _ = (cx, state);
        Decision::Keep
    }

    /// The fields of a session, while it is open and when it ends.
    fn output(&self, state: &Self::State) -> Fields {
        let _ = state;
        Fields::default()
    }
}

/// A rule with all that it needs to answer calls.
#[derive(Debug)]
pub struct Folder<R: Sessionizer> {
    rule: R,
    cx: Context<R>,
    state: Option<R::State>,
    /// Of the open session: its first and last event.
    first: i32,
    last: i32,
    /// Timers fired since the last event.
    firings: u32,
    /// Whether anything changed since the turn began.
    changed: bool,
    saved: Saved<R::State>,
    out: Out,
}

/// What to go back to when an event is rejected.
#[derive(Debug)]
struct Saved<S> {
    state: Option<S>,
    open: bool,
    first: i32,
    last: i32,
    start: i64,
    last_time: i64,
    count: u64,
    firings: u32,
    changed: bool,
    timers: Timers,
    closings: usize,
}

#[derive(Debug, Default)]
struct Out {
    turns: Vec<TurnResult>,
    closings: Vec<Closing>,
    snapshots: Vec<StateAt>,
    rejections: Vec<Rejection>,
    timers: Vec<rows::Timer>,
}

impl<R: Sessionizer> Folder<R> {
    /// For this rule.
    pub fn new(rule: R) -> Self {
        let saved = Saved {
            state: None,
            open: false,
            first: 0,
            last: 0,
            start: 0,
            last_time: 0,
            count: 0,
            firings: 0,
            changed: false,
            timers: Timers::NONE,
            closings: 0,
        };
        Folder {
            rule,
            cx: Context::new(),
            state: None,
            first: NOTHING_OPEN,
            last: NOTHING_OPEN,
            firings: 0,
            changed: false,
            saved,
            out: Out::default(),
        }
    }

    /// Answers a frame `turns` with a frame `results`.
    ///
    /// # Errors
    /// If the frame cannot be read.
    pub fn fold(&mut self, frame: Vec<u64>) -> Result<Vec<u64>, String> {
        progress::at(0, progress::FRAME);
        let words = Rc::new(frame);
        let answer = self.walk(&words).map_err(|e| e.to_string());
        self.cx.block = None;
        answer
    }

    fn walk(&mut self, words: &Rc<Vec<u64>>) -> Result<Vec<u64>, Problem> {
        let width = INPUT_HEAD_WORDS + R::Event::FIELDS.len();
        let frame = Frame::read(words, Kind::Turns)?;
        let parts = Parts {
            turns: frame.rows(0)?,
            inputs: frame.wide_rows(1, width)?,
            timers: frame.rows(2)?,
            wanted: frame.rows(3)?,
            bytes: frame.rows(4)?,
            width,
        };
        let inputs_at = frame.section_at(1) / 8;
        let block = Block::new(Rc::clone(words), frame.section_at(4), parts.bytes.len());
        let mut event = R::Event::of(Row::new(block.clone(), 0));
        self.cx.block = Some(block);
        self.clear();
        for (t, turn) in parts.turns.iter().enumerate() {
            self.turn(t as u32, turn, &parts, &mut event, inputs_at)?;
        }
        progress::at(parts.turns.len() as u32, progress::FRAME);
        Ok(self.answer())
    }

    fn clear(&mut self) {
        self.out.turns.clear();
        self.out.closings.clear();
        self.out.snapshots.clear();
        self.out.rejections.clear();
        self.out.timers.clear();
        self.cx.counts.clear();
        self.cx.notes.clear();
        self.cx.bytes.clear();
    }

    fn answer(&self) -> Vec<u64> {
        let (out, cx) = (&self.out, &self.cx);
        let rows_bytes = size_of_val(out.turns.as_slice())
            + size_of_val(out.closings.as_slice())
            + size_of_val(out.snapshots.as_slice())
            + size_of_val(out.rejections.as_slice())
            + size_of_val(out.timers.as_slice())
            + size_of_val(cx.counts.as_slice())
            + size_of_val(cx.notes.as_slice())
            + cx.bytes.len();
        let mut w = FrameWriter::with_capacity(Kind::Results, rows_bytes);
        w.begin(Kind::Results);
        w.section(&out.turns);
        w.section(&out.closings);
        w.section(&out.snapshots);
        w.section(&out.rejections);
        w.section(&out.timers);
        w.section(&cx.counts);
        w.section(&cx.notes);
        w.section(&cx.bytes);
        w.into_words()
    }

    fn turn(
        &mut self,
        t: u32,
        turn: &Turn,
        parts: &Parts<'_>,
        event: &mut R::Event,
        inputs_at: usize,
    ) -> Result<(), Problem> {
        self.begin(t, turn, parts)?;
        let closings_at = self.out.closings.len();
        let snapshots_at = self.out.snapshots.len();
        let rejections_at = self.out.rejections.len();
        let mut wanted = turn.wanted.of(parts.wanted)?.iter();
        let mut next_wanted = wanted.next();
        let first = turn.inputs.at as usize;
        let count = turn.inputs.len as usize;
        if (first + count) * parts.width > parts.inputs.len() {
            return Err(FrameError::Range.into());
        }
        for i in 0..count {
            let word = (first + i) * parts.width;
            let time = parts.inputs[word] as i64;
            let i = i as u32;
            if self.cx.timers.next <= time {
                self.fire(time);
            }
            event.row_mut().move_to(inputs_at + word);
            progress::at(t, i);
            self.event(event, i, time);
            if next_wanted == Some(&i) {
                next_wanted = wanted.next();
                progress::at(t, progress::FRAME);
                let at = self.state_at();
                self.out.snapshots.push(at);
            }
        }
        self.fire(turn.until);
        if turn.flags & turn_flags::AT_END != 0 && self.state.is_some() {
            self.end(turn.until);
        }
        progress::at(t, progress::FRAME);
        let end = self.state_at();
        let open_fields = match &self.state {
            Some(state) if turn.flags & turn_flags::REPORT_OPEN != 0 => {
                progress::at(t, progress::OUTPUT);
                let at = self.cx.bytes.len();
                self.rule.output(state).append_to(&mut self.cx.bytes);
                Range::between(at, self.cx.bytes.len())
            }
            _ => Range::default(),
        };
        self.out.turns.push(TurnResult {
            closings: Range::between(closings_at, self.out.closings.len()),
            snapshots: Range::between(snapshots_at, self.out.snapshots.len()),
            rejections: Range::between(rejections_at, self.out.rejections.len()),
            end,
            open_fields,
        });
        Ok(())
    }

    /// Takes up the state that the turn begins with.
    fn begin(&mut self, t: u32, turn: &Turn, parts: &Parts<'_>) -> Result<(), Problem> {
        progress::at(t, progress::FRAME);
        self.state = None;
        self.firings = 0;
        self.changed = false;
        self.cx.timers = Timers::NONE;
        self.cx.turn = t;
        self.cx.input = NO_INPUT;
        self.cx.key = turn.key;
        self.cx.notes_wanted = turn.flags & turn_flags::NOTES != 0;
        if turn.flags & turn_flags::OPEN == 0 {
            return Ok(());
        }
        let mut bytes = turn.state.of(parts.bytes)?;
        self.firings = u32::take(&mut bytes).ok_or(Problem::State(t))?;
        let state = R::State::take(&mut bytes).filter(|_| bytes.is_empty()).ok_or(Problem::State(t))?;
        self.state = Some(state);
        (self.first, self.last) = (CARRIED, CARRIED);
        (self.cx.start, self.cx.last, self.cx.count) = (turn.open_start, turn.open_last, turn.open_count);
        let of = <R::Timer as Names>::NAMES.len();
        for timer in turn.timers.of(parts.timers)? {
            if timer.number >= of as u64 {
                return Err(Problem::Timer(timer.number));
            }
            self.cx.timers.set(timer.number as usize, timer.at, of);
        }
        Ok(())
    }

    /// Fires what is due, in order of (T, number).
    fn fire(&mut self, until: i64) {
        let of = <R::Timer as Names>::NAMES.len().min(TIMERS_MAX);
        while self.cx.timers.next <= until && self.cx.timers.next != NEVER {
            let Some(mut state) = self.state.take() else { return };
            let at = self.cx.timers.next;
            let number = self.cx.timers.due[..of].iter().position(|&d| d == at).unwrap_or(0);
            self.cx.timers.set(number, NEVER, of);
            (self.cx.now, self.cx.at) = (at, at);
            self.cx.input = NO_INPUT;
            self.changed = true;
            progress::at(self.cx.turn, progress::TIMER);
            let cause = Cause { cause: cause::TIMER, index: number as u32, at };
            if self.firings == FIRINGS_MAX {
                self.close(&state, cause, self.last, REASON_LIMIT, false);
                return;
            }
            self.firings += 1;
            let Some(timer) = R::Timer::of(number as u32) else { return };
            match self.rule.on_timer(&mut self.cx, &mut state, timer) {
                Decision::Keep => self.state = Some(state),
                Decision::Close(r) | Decision::Split(r) => {
                    self.close(&state, cause, self.last, r.number(), false);
                }
                Decision::Discard(r) => self.close(&state, cause, self.last, r.number(), true),
                Decision::Reject(_) => no_event_to_reject("on_timer"),
            }
        }
    }

    #[inline]
    fn event(&mut self, event: &R::Event, i: u32, time: i64) {
        if R::REJECTS {
            self.save();
        }
        (self.cx.now, self.cx.at) = (time, time);
        self.cx.input = i;
        self.firings = 0;
        self.changed = true;
        let mut fresh = false;
        let mut state = match self.state.take() {
            Some(state) => state,
            None => {
                fresh = true;
                self.open(event, i)
            }
        };
        loop {
            let last_before = self.last;
            self.last = i as i32;
            self.cx.count += 1;
            let decision = self.rule.on_event(&mut self.cx, &mut state, event);
            let cause = Cause { cause: cause::INPUT, index: i, at: 0 };
            match decision {
                Decision::Split(r) if !fresh => {
                    self.close(&state, cause, last_before, r.number(), false);
                    progress::at(self.cx.turn, i);
                    fresh = true;
                    state = self.open(event, i);
                    continue;
                }
                Decision::Keep | Decision::Split(_) => {
                    self.cx.last = time;
                    self.state = Some(state);
                }
                Decision::Close(r) => self.close(&state, cause, self.last, r.number(), false),
                Decision::Discard(r) => self.close(&state, cause, self.last, r.number(), true),
                Decision::Reject(r) => self.reject(i, r.number()),
            }
            return;
        }
    }

    fn open(&mut self, event: &R::Event, i: u32) -> R::State {
        (self.first, self.last) = (i as i32, i as i32);
        (self.cx.start, self.cx.last, self.cx.count) = (self.cx.now, self.cx.now, 0);
        self.rule.open(&mut self.cx, event)
    }

    fn end(&mut self, until: i64) {
        let Some(mut state) = self.state.take() else { return };
        self.cx.input = NO_INPUT;
        self.cx.now = if until == i64::MAX { self.cx.last } else { until };
        self.cx.at = i64::MAX;
        self.changed = true;
        progress::at(self.cx.turn, progress::TIMER);
        let cause = Cause { cause: cause::END, index: 0, at: 0 };
        let (reason, discarded) = match self.rule.on_end(&mut self.cx, &mut state) {
            Decision::Keep => (REASON_END_OF_INPUT, false),
            Decision::Close(r) | Decision::Split(r) => (r.number(), false),
            Decision::Discard(r) => (r.number(), true),
            Decision::Reject(_) => no_event_to_reject("on_end"),
        };
        self.close(&state, cause, self.last, reason, discarded);
    }

    /// Ends the session whose state was taken.
    fn close(&mut self, state: &R::State, cause: Cause, last: i32, reason: u32, discarded: bool) {
        progress::at(self.cx.turn, progress::OUTPUT);
        let at = self.cx.bytes.len();
        self.rule.output(state).append_to(&mut self.cx.bytes);
        self.out.closings.push(Closing {
            cause: cause.cause,
            index: cause.index,
            at: cause.at,
            first: self.first,
            last,
            reason,
            discarded: u32::from(discarded),
            fields: Range::between(at, self.cx.bytes.len()),
        });
        self.cx.timers = Timers::NONE;
    }

    fn save(&mut self) {
        let s = &mut self.saved;
        s.open = self.state.is_some();
        s.closings = self.out.closings.len();
        s.changed = self.changed;
        s.timers = self.cx.timers;
        s.firings = self.firings;
        if let Some(state) = &self.state {
            match &mut s.state {
                Some(copy) => copy.copy_from(state),
                None => s.state = Some(state.copied()),
            }
            (s.first, s.last) = (self.first, self.last);
            (s.start, s.last_time, s.count) = (self.cx.start, self.cx.last, self.cx.count);
        }
    }

    /// Goes back to before the event; a split that it caused never was.
    fn reject(&mut self, i: u32, reason: u32) {
        if !R::REJECTS {
            crate::broken(format_args!("this rule said `REJECTS = false`, and rejects"));
        }
        let s = &mut self.saved;
        self.out.closings.truncate(s.closings);
        self.changed = s.changed;
        self.cx.timers = s.timers;
        self.firings = s.firings;
        if s.open {
            self.state = s.state.take();
            (self.first, self.last) = (s.first, s.last);
            (self.cx.start, self.cx.last, self.cx.count) = (s.start, s.last_time, s.count);
        }
        self.out.rejections.push(Rejection { input: i, reason });
    }

    fn state_at(&mut self) -> StateAt {
        let Some(state) = &self.state else {
            return StateAt { first: NOTHING_OPEN, kind: state_kind::NONE, ..StateAt::default() };
        };
        if !self.changed {
            return StateAt { first: CARRIED, kind: state_kind::UNCHANGED, ..StateAt::default() };
        }
        let bytes_at = self.cx.bytes.len();
        // The next turn must go on counting, or where the host cuts its turns would decide about the limit. The count stands
        // first, so that whatever is left over behind the rule's own bytes is a mistake.
        self.firings.put(&mut self.cx.bytes);
        state.put(&mut self.cx.bytes);
        let timers_at = self.out.timers.len();
        let of = <R::Timer as Names>::NAMES.len();
        for (number, &at) in self.cx.timers.due[..of].iter().enumerate() {
            if at != NEVER {
                self.out.timers.push(rows::Timer { at, number: number as u64 });
            }
        }
        StateAt {
            first: self.first,
            kind: state_kind::PUT,
            state: Range::between(bytes_at, self.cx.bytes.len()),
            timers: Range::between(timers_at, self.out.timers.len()),
        }
    }
}

/// Answers a frame `states` of an older version with one of the present version.
///
/// # Errors
/// If the frame cannot be read.
pub fn migrate<S: State>(version: u32, frame: &[u64]) -> Result<Vec<u64>, String> {
    let all = Frame::read(frame, Kind::States).map_err(|e| e.to_string())?;
    let states: &[rows::State] = all.rows(0).map_err(|e| e.to_string())?;
    let bytes: &[u8] = all.rows(1).map_err(|e| e.to_string())?;
    let mut out = Vec::with_capacity(states.len());
    let mut new = Vec::with_capacity(bytes.len());
    for (n, state) in states.iter().enumerate() {
        progress::at(n as u32, 0);
        let mut old = state.state.of(bytes).map_err(|e| e.to_string())?;
        let at = new.len();
        match migrated::<S>(version, &mut old) {
            Ok((firings, s)) => {
                firings.put(&mut new);
                s.put(&mut new);
                out.push(rows::State { state: Range::between(at, new.len()), error: Range::default() });
            }
            Err(message) => {
                new.extend_from_slice(message.as_bytes());
                out.push(rows::State { state: Range::default(), error: Range::between(at, new.len()) });
            }
        }
    }
    let mut w = FrameWriter::default();
    w.begin(Kind::States);
    w.section(&out);
    w.section(&new);
    Ok(w.into_words())
}

/// A state of an older version with the firings before it: see `state_at`.
fn migrated<S: State>(version: u32, old: &mut &[u8]) -> Result<(u32, S), String> {
    let firings = u32::take(old).ok_or_else(|| no_state(version))?;
    let state = S::migrate(version, old)?;
    if old.is_empty() { Ok((firings, state)) } else { Err(no_state(version)) }
}

use crate::Form;
use crate::state::no_state;

#[derive(Clone, Copy)]
struct Cause {
    cause: u32,
    index: u32,
    at: i64,
}

struct Parts<'a> {
    turns: &'a [Turn],
    inputs: &'a [u64],
    timers: &'a [rows::Timer],
    wanted: &'a [u32],
    bytes: &'a [u8],
    width: usize,
}

/// Why a call cannot be answered. Never the author's fault, nor an event's.
enum Problem {
    Frame(FrameError),
    State(u32),
    Timer(u64),
}

impl From<FrameError> for Problem {
    fn from(e: FrameError) -> Self {
        Problem::Frame(e)
    }
}
impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Frame(e) => write!(f, "{e}"),
            Problem::State(t) => write!(
                f,
                "the state of turn {t} is not of this version's form: whatever changes in a state needs a raised \
                 #[state(version = …)]"
            ),
            Problem::Timer(n) => write!(f, "there is no timer {n}"),
        }
    }
}

#[cold]
#[track_caller]
fn no_event_to_reject(place: &str) -> ! {
    crate::broken(format_args!(
        "`reject` in `{place}`, where there is no event to reject; `discard` the session"
    ))
}
