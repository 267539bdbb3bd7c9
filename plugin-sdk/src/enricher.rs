//! Enrichers: add fields to sessions from what the host looks up for them.

use crate::event::Block;
use crate::{Config, ConfigError, Fields, Json, Lookup, Metric, Names, Reason, Rejected, Time, progress};
use std::cell::OnceCell;
use std::marker::PhantomData;
use std::rc::Rc;
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{self, Count, Enriched, NO_INPUT, Range, answer};

/// Adds fields to sessions. First it says what it wants to know, then the host looks all of it up, batched and cached,
/// then it is given the answers; so the plugin itself stays a pure function.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario;
///
/// struct Country;
/// #[derive(Lookup, Clone, Copy)]
/// enum Table { Visitor }
///
/// impl Enricher for Country {
///     type Config = ();
///     type Lookup = Table;
///     type Reason = ();
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Country) }
///     fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
///         ask.lookup(Table::Visitor, session.key());
///     }
///     fn apply(&self, _: &mut Enriching<Self>, _: &Session, answers: &Answers<Table>) -> Result<Fields, Rejected<()>> {
///         Ok(fields! { country: answers.text(Table::Visitor, "country") })
///     }
/// }
///
/// let e = scenario::Lookups::<Country>::new("{}").row("visitor", "alice", fields! { country: "NL" });
/// assert_eq!(e.enrich("alice", fields! {}).to_json(), r#"{"country":"NL"}"#);
/// assert_eq!(e.enrich("bob", fields! {}).to_json(), r#"{"country":null}"#);
/// ```
pub trait Enricher: Sized + 'static {
    /// Its config; `()` for none.
    type Config: Config;
    /// Its lookups.
    type Lookup: Lookup;
    /// Why a session is refused; `()` if none is.
    type Reason: Reason;
    /// Metrics of its own.
    const METRICS: &'static [Metric] = &[];

    /// The enricher under a config.
    ///
    /// # Errors
    /// What is wrong with the config beyond its form.
    fn configure(config: Self::Config) -> Result<Self, Vec<ConfigError>>;

    /// What it wants to know for a session.
    fn requests(&self, session: &Session, ask: &mut Requests<Self::Lookup>);

    /// The fields to add, from what was found.
    ///
    /// # Errors
    /// Why the session becomes a dead letter instead.
    fn apply(
        &self,
        cx: &mut Enriching<Self>,
        session: &Session,
        answers: &Answers<Self::Lookup>,
    ) -> Result<Fields, Rejected<Self::Reason>>;
}

/// A session to enrich.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Lookups;
/// struct Campaigns;
/// #[derive(Lookup, Clone, Copy)] enum Table { Campaign }
/// impl Enricher for Campaigns {
///     type Config = (); type Lookup = Table; type Reason = ();
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Campaigns) }
///     fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
///         // Of a session that is still open, nothing is known yet.
///         if !session.reason().is_empty() { ask.lookup(Table::Campaign, session.text("campaign")) }
///     }
///     fn apply(&self, _: &mut Enriching<Self>, s: &Session, _: &Answers<Table>) -> Result<Fields, Rejected<()>> {
///         let pages = s.field("pages").and_then(|p| p.as_f64()).unwrap_or(0.0);
///         Ok(fields! { who: s.key(), took: s.last() - s.start(), pages_an_event: pages / s.events() as f64 })
///     }
/// }
/// let e = Lookups::<Campaigns>::new("{}");
/// let found = e.enrich("alice", fields! { pages: 1, campaign: "spring" });
/// assert_eq!(found.to_json(), r#"{"who":"alice","took":0,"pages_an_event":1}"#);
/// ```
#[derive(Debug)]
pub struct Session {
    block: Block,
    row: rows::Session,
    fields: OnceCell<Json>,
}

impl Session {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.block.text(self.row.key)
    }
    /// The time of its first event.
    #[must_use]
    pub fn start(&self) -> Time {
        Time(self.row.start)
    }
    /// The time of its last event.
    #[must_use]
    pub fn last(&self) -> Time {
        Time(self.row.end)
    }
    /// The number of its events.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.row.count
    }
    /// Why it was closed; empty while it is open.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.block.text(self.row.reason)
    }
    /// A field that the session rule gave it, if it has it.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Json> {
        let parsed = self
            .fields
            .get_or_init(|| serde_json::from_slice(self.block.bytes(self.row.fields)).unwrap_or(Json::Null));
        parsed.get(name)
    }
    /// A field that is a text; `""` if it is missing or something else.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.field(name).and_then(Json::as_str).unwrap_or("")
    }
}

/// Where an enricher says what it wants to know.
///
/// ```
/// use tidemill_plugin_sdk::{Lookup, Requests, Session};
/// #[derive(Lookup, Clone, Copy)]
/// enum Table { Visitor, Campaign }
/// fn requests(session: &Session, ask: &mut Requests<Table>) {
///     ask.lookup(Table::Visitor, session.key());
///     ask.lookup(Table::Campaign, session.text("campaign"));   // nothing, if it has none
/// }
/// ```
#[derive(Debug)]
pub struct Requests<L: Lookup> {
    session: u32,
    rows: Vec<rows::Request>,
    bytes: Vec<u8>,
    lookup: PhantomData<fn() -> L>,
}

impl<L: Lookup> Requests<L> {
    /// Asks for the row of `key`; an empty key asks for nothing.
    #[expect(clippy::needless_pass_by_value, reason = "a lookup is an enum without fields")]
    pub fn lookup(&mut self, lookup: L, key: &str) {
        if key.is_empty() {
            return;
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(key.as_bytes());
        let key = Range::between(at, self.bytes.len());
        self.rows.push(rows::Request { session: self.session, lookup: lookup.number(), key });
    }
}

/// What was found for a session.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Lookups;
/// struct Campaigns;
/// #[derive(Lookup, Clone, Copy)] enum Table { Campaign }
/// impl Enricher for Campaigns {
///     type Config = (); type Lookup = Table; type Reason = ();
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Campaigns) }
///     fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
///         ask.lookup(Table::Campaign, session.text("campaign"));
///     }
///     fn apply(&self, _: &mut Enriching<Self>, _: &Session, found: &Answers<Table>) -> Result<Fields, Rejected<()>> {
///         let budget = found.field(Table::Campaign, "budget").and_then(|b| b.as_i64());
///         let known = found.row(Table::Campaign).is_some();
///         Ok(fields! { channel: found.text(Table::Campaign, "channel"), budget: budget, known: known,
///                      sure: !found.failed(Table::Campaign) })
///     }
/// }
/// let e = Lookups::<Campaigns>::new("{}").row("campaign", "spring", fields! { channel: "mail", budget: 100 });
/// let found = e.enrich("alice", fields! { campaign: "spring" });
/// assert_eq!(found.to_json(), r#"{"channel":"mail","budget":100,"known":true,"sure":true}"#);
/// ```
#[derive(Debug)]
pub struct Answers<L: Lookup> {
    /// Lookup, status, row.
    rows: Vec<(u32, u32, Json)>,
    lookup: PhantomData<fn() -> L>,
}

impl<L: Lookup> Answers<L> {
    /// The row that was found, if one was.
    #[expect(clippy::needless_pass_by_value, reason = "a lookup is an enum without fields")]
    #[must_use]
    pub fn row(&self, lookup: L) -> Option<&Json> {
        let number = lookup.number();
        self.rows.iter().find(|(l, s, _)| *l == number && *s == answer::FOUND).map(|(_, _, row)| row)
    }
    /// A field of the row that was found.
    #[must_use]
    pub fn field(&self, lookup: L, name: &str) -> Option<&Json> {
        self.row(lookup).and_then(|row| row.get(name))
    }
    /// A field of the row that is a text.
    #[must_use]
    pub fn text(&self, lookup: L, name: &str) -> Option<&str> {
        self.field(lookup, name).and_then(Json::as_str)
    }
    /// Whether the lookup could not answer, and the session goes on without.
    #[expect(clippy::needless_pass_by_value, reason = "a lookup is an enum without fields")]
    #[must_use]
    pub fn failed(&self, lookup: L) -> bool {
        let number = lookup.number();
        self.rows.iter().any(|(l, s, _)| *l == number && *s == answer::FAILED)
    }
}

/// What an enricher may do besides.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Lookups;
/// struct Campaigns;
/// const UNKNOWN: Metric = Metric::counter("unknown", "Sessions of unknown campaigns");
/// const BUDGETS: Metric = Metric::histogram("budgets", "Budgets of campaigns", &[100.0, 1000.0]);
/// #[derive(Lookup, Clone, Copy)] enum Table { Campaign }
/// impl Enricher for Campaigns {
///     type Config = (); type Lookup = Table; type Reason = ();
///     const METRICS: &'static [Metric] = &[UNKNOWN, BUDGETS];
///     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Campaigns) }
///     fn requests(&self, session: &Session, ask: &mut Requests<Table>) {
///         ask.lookup(Table::Campaign, session.text("campaign"));
///     }
///     fn apply(&self, cx: &mut Enriching<Self>, _: &Session, found: &Answers<Table>) -> Result<Fields, Rejected<()>> {
///         match found.field(Table::Campaign, "budget").and_then(|b| b.as_f64()) {
///             Some(budget) => cx.observe(BUDGETS, budget),
///             None => cx.count(UNKNOWN, 1),
///         }
///         Ok(Fields::default())
///     }
/// }
/// assert!(Lookups::<Campaigns>::new("{}").enrich("alice", fields! { campaign: "none" }).to_json() == "{}");
/// ```
#[derive(Debug)]
pub struct Enriching<E: Enricher> {
    index: u32,
    counts: Vec<Count>,
    enricher: PhantomData<fn() -> E>,
}

impl<E: Enricher> Enriching<E> {
    /// Adds to a counter of the enricher's own.
    #[track_caller]
    pub fn count(&mut self, metric: Metric, n: u64) {
        self.observe(metric, n as f64);
    }
    /// Puts a value into a histogram of the enricher's own.
    #[track_caller]
    pub fn observe(&mut self, metric: Metric, value: f64) {
        let metric = metric.place(E::METRICS);
        // A session is no step in event time.
        self.counts.push(Count { row: self.index, input: NO_INPUT, metric, at: 0, value });
    }
}

/// An enricher with all that it needs to answer calls.
#[derive(Debug)]
pub struct Desk<E: Enricher> {
    enricher: E,
}

struct Parts {
    block: Block,
    sessions: Vec<rows::Session>,
    answers: Vec<rows::Answer>,
}

impl Parts {
    fn read(frame: Vec<u64>) -> Result<Parts, FrameError> {
        let words = Rc::new(frame);
        let frame = Frame::read(&words, Kind::Sessions)?;
        let sessions = frame.rows(0)?.to_vec();
        let answers = frame.rows(1)?.to_vec();
        let bytes: &[u8] = frame.rows(2)?;
        let block = Block::new(Rc::clone(&words), frame.section_at(2), bytes.len());
        Ok(Parts { block, sessions, answers })
    }
    fn session(&self, row: rows::Session) -> Session {
        Session { block: self.block.clone(), row, fields: OnceCell::new() }
    }
    fn answers<L: Lookup>(&self, session: &rows::Session) -> Result<Answers<L>, FrameError> {
        let rows = session.answers.of(&self.answers)?.iter();
        let row = |a: &rows::Answer| match a.status {
            answer::FOUND => serde_json::from_slice(self.block.bytes(a.row)).unwrap_or(Json::Null),
            _ => Json::Null,
        };
        Ok(Answers { rows: rows.map(|a| (a.lookup, a.status, row(a))).collect(), lookup: PhantomData })
    }
}

impl<E: Enricher> Desk<E> {
    /// For this enricher.
    pub fn new(enricher: E) -> Self {
        Desk { enricher }
    }

    /// Answers a frame `sessions` with a frame `requests`.
    ///
    /// # Errors
    /// If the frame cannot be read.
    pub fn requests(&mut self, frame: Vec<u64>) -> Result<Vec<u64>, String> {
        progress::at(0, progress::FRAME);
        let parts = Parts::read(frame).map_err(|e| e.to_string())?;
        let mut ask = Requests { session: 0, rows: Vec::new(), bytes: Vec::new(), lookup: PhantomData };
        for (i, row) in parts.sessions.iter().enumerate() {
            progress::at(i as u32, 0);
            ask.session = i as u32;
            self.enricher.requests(&parts.session(*row), &mut ask);
        }
        progress::at(parts.sessions.len() as u32, progress::FRAME);
        let mut w = FrameWriter::default();
        w.begin(Kind::Requests);
        w.section(&ask.rows);
        w.section(&ask.bytes);
        Ok(w.into_words())
    }

    /// Answers a frame `sessions` that carries answers with a frame `enriched`.
    ///
    /// # Errors
    /// If the frame cannot be read.
    pub fn apply(&mut self, frame: Vec<u64>) -> Result<Vec<u64>, String> {
        progress::at(0, progress::FRAME);
        let parts = Parts::read(frame).map_err(|e| e.to_string())?;
        let mut cx = Enriching { index: 0, counts: Vec::new(), enricher: PhantomData };
        let mut rows = Vec::with_capacity(parts.sessions.len());
        let mut bytes = Vec::new();
        for (i, row) in parts.sessions.iter().enumerate() {
            let answers = parts.answers(row).map_err(|e| e.to_string())?;
            progress::at(i as u32, 0);
            cx.index = i as u32;
            let at = bytes.len();
            rows.push(match self.enricher.apply(&mut cx, &parts.session(*row), &answers) {
                Ok(fields) => {
                    fields.append_to(&mut bytes);
                    Enriched { code: 0, fields: Range::between(at, bytes.len()) }
                }
                Err(rejected) => {
                    Enriched { code: 1 + u64::from(rejected.reason.number()), fields: Range::default() }
                }
            });
        }
        progress::at(parts.sessions.len() as u32, progress::FRAME);
        let mut w = FrameWriter::default();
        w.begin(Kind::Enriched);
        w.section(&rows);
        w.section(&cx.counts);
        w.section(&bytes);
        Ok(w.into_words())
    }
}
