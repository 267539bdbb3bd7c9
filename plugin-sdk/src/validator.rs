//! Validators: judge events, one at a time.

use crate::event::{Block, Row};
use crate::{Config, ConfigError, EventView, Metric, Names, Reason, Rejected, progress};
use std::rc::Rc;
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{Count, EVENT_HEAD_WORDS, NO_INPUT, Range, Verdict};

/// Judges events. The verdict is stored with the event and never asked again.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario;
///
/// struct Positive;
/// #[derive(Reason, Clone, Copy)]
/// enum Why { Negative }
/// #[event]
/// struct Sale { amount: f64 }
///
/// impl Validator for Positive {
///     type Config = ();
///     type Event = Sale;
///     type Reason = Why;
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Positive) }
///     fn check(&self, _: &mut Judging<Self>, sale: &Sale) -> Result<(), Rejected<Why>> {
///         ensure(sale.amount() >= 0.0, Why::Negative, || format!("{} is less than nothing", sale.amount()))
///     }
/// }
///
/// let v = scenario::Verdicts::<Positive>::new("{}");
/// v.accepts(fields! { amount: 3.5 });
/// v.rejects(fields! { amount: -1.0 }, "negative");
/// ```
pub trait Validator: Sized + 'static {
    /// Its config; `()` for none.
    type Config: Config;
    /// What it sees of an event.
    type Event: EventView;
    /// Why it rejects.
    type Reason: Reason;
    /// Metrics of its own.
    const METRICS: &'static [Metric] = &[];

    /// The validator under a config.
    ///
    /// # Errors
    /// What is wrong with the config beyond its form.
    fn configure(config: Self::Config) -> Result<Self, Vec<ConfigError>>;

    /// Names of declared fields that are of no use under this config. The host does not look for them in records, which makes
    /// every event cheaper, and the validator sees them as missing. Only fields that may be missing can be named.
    fn unread(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Judges an event.
    ///
    /// # Errors
    /// Why it is not accepted.
    fn check(&self, cx: &mut Judging<Self>, event: &Self::Event) -> Result<(), Rejected<Self::Reason>>;
}

/// What a validator may know and do besides.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Verdicts;
/// struct Staff;
/// const STAFF: Metric = Metric::counter("staff", "Events of our own people");
/// const BYTES: Metric = Metric::histogram("key_bytes", "Length of keys", &[8.0, 64.0]);
/// #[event] struct Event {}
/// #[derive(Reason, Clone, Copy)] enum Why { Staff }
/// impl Validator for Staff {
///     type Config = (); type Event = Event; type Reason = Why;
///     const METRICS: &'static [Metric] = &[STAFF, BYTES];
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Staff) }
///     fn check(&self, cx: &mut Judging<Self>, _: &Event) -> Result<(), Rejected<Why>> {
///         cx.observe(BYTES, cx.key().len() as f64);
///         if cx.key().starts_with("staff-") { cx.count(STAFF, 1); return Err(Why::Staff.into()) }
///         Ok(())
///     }
/// }
/// Verdicts::<Staff>::new("{}").accepts(fields! {});
/// ```
#[derive(Debug)]
pub struct Judging<V: Validator> {
    row: Option<Row>,
    index: u32,
    counts: Vec<Count>,
    validator: std::marker::PhantomData<fn() -> V>,
}

impl<V: Validator> Judging<V> {
    /// The event's key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.row.as_ref().map_or("", Row::key)
    }
    /// Adds to a counter of the validator's own.
    #[track_caller]
    pub fn count(&mut self, metric: Metric, n: u64) {
        self.observe(metric, n as f64);
    }
    /// Puts a value into a histogram of the validator's own.
    #[track_caller]
    pub fn observe(&mut self, metric: Metric, value: f64) {
        let metric = metric.place(V::METRICS);
        // An event is judged once, so its time decides nothing.
        self.counts.push(Count { row: self.index, input: NO_INPUT, metric, at: 0, value });
    }
}

/// A validator with all that it needs to answer calls.
#[derive(Debug)]
pub struct Judge<V: Validator> {
    validator: V,
    cx: Judging<V>,
    verdicts: Vec<Verdict>,
    bytes: Vec<u8>,
}

impl<V: Validator> Judge<V> {
    /// For this validator.
    pub fn new(validator: V) -> Self {
        let cx = Judging { row: None, index: 0, counts: Vec::new(), validator: std::marker::PhantomData };
        Judge { validator, cx, verdicts: Vec::new(), bytes: Vec::new() }
    }

    /// Answers a frame `events` with a frame `verdicts`.
    ///
    /// # Errors
    /// If the frame cannot be read.
    pub fn validate(&mut self, frame: Vec<u64>) -> Result<Vec<u64>, String> {
        progress::at(0, progress::FRAME);
        let words = Rc::new(frame);
        let answer = self.walk(&words).map_err(|e| e.to_string());
        self.cx.row = None;
        answer
    }

    fn walk(&mut self, words: &Rc<Vec<u64>>) -> Result<Vec<u64>, FrameError> {
        let width = EVENT_HEAD_WORDS + V::Event::FIELDS.len();
        let frame = Frame::read(words, Kind::Events)?;
        let count = frame.wide_rows(0, width)?.len() / width;
        let bytes: &[u8] = frame.rows(1)?;
        let block = Block::new(Rc::clone(words), frame.section_at(1), bytes.len());
        let row = Row::new(block, EVENT_HEAD_WORDS - 1);
        let mut event = V::Event::of(row.clone());
        self.cx.row = Some(row);
        self.verdicts.clear();
        self.bytes.clear();
        self.cx.counts.clear();
        for i in 0..count {
            let word = frame.section_at(0) / 8 + i * width;
            event.row_mut().move_to(word);
            if let Some(row) = &mut self.cx.row {
                row.move_to(word);
            }
            self.cx.index = i as u32;
            progress::at(i as u32, 0);
            let verdict = match self.validator.check(&mut self.cx, &event) {
                Ok(()) => Verdict::default(),
                Err(rejected) => {
                    let at = self.bytes.len();
                    self.bytes.extend_from_slice(rejected.message.as_bytes());
                    let message = Range::between(at, self.bytes.len());
                    Verdict { code: 1 + u64::from(rejected.reason.number()), message }
                }
            };
            self.verdicts.push(verdict);
        }
        progress::at(count as u32, progress::FRAME);
        let mut w = FrameWriter::default();
        w.begin(Kind::Verdicts);
        w.section(&self.verdicts);
        w.section(&self.cx.counts);
        w.section(&self.bytes);
        Ok(w.into_words())
    }
}
