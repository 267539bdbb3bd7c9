//! What a rule can ask and do besides deciding.

use crate::event::Block;
use crate::{Duration, Metric, Names, Sessionizer, Time};
use std::marker::PhantomData;
use tidemill_contract::rows::{self, NO_INPUT, Range};

/// Timers that a rule may have.
pub(crate) const TIMERS_MAX: usize = 16;
/// A timer that is not set.
pub(crate) const NEVER: i64 = i64::MAX;

/// Pending timers, with the earliest kept at hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timers {
    pub(crate) due: [i64; TIMERS_MAX],
    pub(crate) next: i64,
}

impl Timers {
    pub(crate) const NONE: Timers = Timers { due: [NEVER; TIMERS_MAX], next: NEVER };

    #[inline]
    pub(crate) fn set(&mut self, number: usize, at: i64, of: usize) {
        self.due[number] = at;
        let mut next = NEVER;
        for &t in &self.due[..of.min(TIMERS_MAX)] {
            next = next.min(t);
        }
        self.next = next;
    }
}

/// What a rule may know of the session and the event at hand, and what it may do: set timers, count, leave notes.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Scenario;
/// struct Visits;
/// #[derive(State)] struct Visit { user: String }
/// const LONG: Metric = Metric::counter("long", "Visits of more than two pages");
/// const PAGES: Metric = Metric::histogram("pages", "Pages a visit", &[1.0, 5.0, 20.0]);
/// #[event] struct Event { url: Text }
/// #[derive(Reason, Clone, Copy)] enum Why { Silence, Day }
/// #[derive(Timer, Clone, Copy)] enum Due { Silence, Midnight }
/// impl Sessionizer for Visits {
///     type Config = (); type Event = Event; type State = Visit; type Reason = Why; type Timer = Due;
///     const METRICS: &'static [Metric] = &[LONG, PAGES];
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Visits) }
///     fn open(&self, cx: &mut Context<Self>, _: &Event) -> Visit {
///         let day = 86_400_000;
///         cx.set_timer_at(Due::Midnight, Time::from_millis((cx.now().millis() / day + 1) * day));
///         Visit { user: cx.key().to_owned() }
///     }
///     fn on_event(&self, cx: &mut Context<Self>, _: &mut Visit, event: &Event) -> Decision<Why> {
///         match event.url() {
///             "/player" => cx.cancel_timer(Due::Silence),          // listens, and is silent
///             _ => cx.set_timer(Due::Silence, Duration::minutes(30)),
///         }
///         if cx.events() == 3 { cx.count(LONG, 1) }
///         let (first, since, due) = (cx.is_first(), cx.now() - cx.start(), cx.timer(Due::Silence));
///         cx.note(|| format!("first: {first}, {since} after the first, silence is due at {due:?}"));
///         keep()
///     }
///     fn on_timer(&self, cx: &mut Context<Self>, _: &mut Visit, due: Due) -> Decision<Why> {
///         cx.observe(PAGES, cx.events() as f64);
///         close(match due { Due::Silence => Why::Silence, Due::Midnight => Why::Day })
///     }
///     fn output(&self, visit: &Visit) -> Fields { fields! { user: visit.user } }
/// }
/// let mut s = Scenario::<Visits>::new("{}");
/// s.key("alice").at("20:00", fields! { url: "/" }).at("20:10", fields! { url: "/player" }).advance_to("1d 00:00");
/// s.expect(r#"20:00:00 .. 20:10:00  2 events  day  {"user":"alice"}"#);
/// ```
#[derive(Debug)]
pub struct Context<R: Sessionizer> {
    pub(crate) now: i64,
    /// Of the step at hand, for its counts: as `now`, but for the end of the input.
    pub(crate) at: i64,
    pub(crate) start: i64,
    pub(crate) last: i64,
    pub(crate) count: u64,
    pub(crate) timers: Timers,
    pub(crate) turn: u32,
    pub(crate) input: u32,
    pub(crate) key: Range,
    pub(crate) block: Option<Block>,
    pub(crate) notes_wanted: bool,
    pub(crate) counts: Vec<rows::Count>,
    pub(crate) notes: Vec<rows::Note>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) rule: PhantomData<fn() -> R>,
}

impl<R: Sessionizer> Context<R> {
    pub(crate) fn new() -> Self {
        const { assert!(<R::Timer as Names>::NAMES.len() <= TIMERS_MAX, "a rule has at most 16 timers") };
        Context {
            now: 0,
            at: 0,
            start: 0,
            last: 0,
            count: 0,
            timers: Timers::NONE,
            turn: 0,
            input: NO_INPUT,
            key: Range::default(),
            block: None,
            notes_wanted: false,
            counts: Vec::new(),
            notes: Vec::new(),
            bytes: Vec::new(),
            rule: PhantomData,
        }
    }

    /// The time of the event or the timer at hand. There is no other clock.
    #[must_use]
    pub fn now(&self) -> Time {
        Time(self.now)
    }
    /// The key of the session.
    #[must_use]
    pub fn key(&self) -> &str {
        self.block.as_ref().map_or("", |b| b.text(self.key))
    }
    /// The time of the session's first event.
    #[must_use]
    pub fn start(&self) -> Time {
        Time(self.start)
    }
    /// The time of the session's last event: in `on_event`, of the one before this; on the first, its own.
    #[must_use]
    pub fn last(&self) -> Time {
        Time(self.last)
    }
    /// Events in the session; in `on_event` this one included.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.count
    }
    /// Whether this is the session's first event.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.count == 1
    }

    /// Sets a timer to `after` from now. It replaces the earlier one of that name, fires at least 1 ms from now, and
    /// before any event at its time or later. When the session ends it is gone.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "a timer is an enum without fields")]
    pub fn set_timer(&mut self, timer: R::Timer, after: Duration) {
        self.set(timer.number(), self.now.saturating_add(after.0));
    }
    /// Sets a timer to an instant; one that is past is moved to 1 ms from now.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "a timer is an enum without fields")]
    pub fn set_timer_at(&mut self, timer: R::Timer, at: Time) {
        self.set(timer.number(), at.0);
    }
    #[inline]
    fn set(&mut self, number: u32, at: i64) {
        let of = <R::Timer as Names>::NAMES.len();
        self.timers.set(number as usize & (TIMERS_MAX - 1), at.max(self.now.saturating_add(1)), of);
    }
    /// Takes a timer back.
    #[expect(clippy::needless_pass_by_value, reason = "a timer is an enum without fields")]
    pub fn cancel_timer(&mut self, timer: R::Timer) {
        let of = <R::Timer as Names>::NAMES.len();
        self.timers.set(timer.number() as usize & (TIMERS_MAX - 1), NEVER, of);
    }
    /// When a timer is due, if it is set.
    #[expect(clippy::needless_pass_by_value, reason = "a timer is an enum without fields")]
    #[must_use]
    pub fn timer(&self, timer: R::Timer) -> Option<Time> {
        let at = self.timers.due[timer.number() as usize & (TIMERS_MAX - 1)];
        (at != NEVER).then_some(Time(at))
    }

    /// Adds to a counter of the plugin's own. The host counts a step once, however often it is folded.
    #[track_caller]
    pub fn count(&mut self, metric: Metric, n: u64) {
        self.observe(metric, n as f64);
    }
    /// Puts a value into a histogram of the plugin's own.
    #[track_caller]
    pub fn observe(&mut self, metric: Metric, value: f64) {
        let metric = metric.place(R::METRICS);
        let (row, input, at) = (self.turn, self.input, self.at);
        self.counts.push(rows::Count { row, input, metric, at, value });
    }
    /// Leaves a remark for whoever asks the host why; the text is made only if somebody does.
    pub fn note<T: AsRef<str>>(&mut self, text: impl FnOnce() -> T) {
        if self.notes_wanted {
            let at = self.bytes.len();
            self.bytes.extend_from_slice(text().as_ref().as_bytes());
            let text = Range::between(at, self.bytes.len());
            self.notes.push(rows::Note { turn: self.turn, input: self.input, text });
        }
    }
}
