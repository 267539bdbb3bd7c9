//! Tests of plugins, natively: events at times, and what is to come of them.
//!
//! A scenario does what the host does, in the simplest way: it drops copies and what is late, sorts the rest by time and
//! id, and folds it whole, through the same frames. Then it folds it again in small turns, with the state going
//! through bytes between them, and complains if anything else comes out: then the rule keeps something that is not in
//! its state.

use crate::{
    Desk, Duration, Enricher, EventView, Field, FieldType, Fields, Folder, Judge, Names, Sessionizer, Time,
    Validator,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tidemill_contract::cell::{MISSING_BOOLEAN, MISSING_INTEGER, Text};
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::{self, REASON_END_OF_INPUT, REASON_LIMIT, Range, turn_flags};

const DAY_MS: i64 = 86_400_000;

/// A session that came out of a scenario.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// The key.
    pub key: String,
    /// The time of its first event, ms.
    pub start: i64,
    /// The time of its last event, ms.
    pub end: i64,
    /// The number of its events.
    pub events: u64,
    /// Why it was closed; `open` while it is, `discarded: …` if it is a dead letter.
    pub reason: String,
    /// Its fields, a JSON object.
    pub fields: String,
}

#[derive(Clone, Debug)]
struct Given {
    key: String,
    time: i64,
    id: String,
    cells: Vec<Cell>,
}

#[derive(Clone, Debug)]
enum Cell {
    Word(u64),
    Text(String),
}

/// A session rule, events, and a clock that is moved by hand.
///
/// See the [crate's page](crate) for one in use.
#[derive(Debug)]
pub struct Scenario<R: Sessionizer> {
    config: String,
    key: String,
    arrived: Vec<Given>,
    late: Vec<String>,
    copies: usize,
    disorder: Option<i64>,
    greatest: i64,
    advanced: i64,
    ended: bool,
    rule: std::marker::PhantomData<fn() -> R>,
}

impl<R: Sessionizer> Scenario<R> {
    /// A scenario for a rule under this config (JSON).
    ///
    /// # Panics
    /// If the config is not taken.
    #[track_caller]
    #[must_use]
    pub fn new(config: &str) -> Self {
        let _ = configured::<R::Config, R>(config, R::configure);
        Scenario {
            config: config.into(),
            key: "key".into(),
            arrived: Vec::new(),
            late: Vec::new(),
            copies: 0,
            disorder: None,
            greatest: i64::MIN,
            advanced: i64::MIN,
            ended: false,
            rule: std::marker::PhantomData,
        }
    }

    /// Events that follow have this key.
    pub fn key(&mut self, key: &str) -> &mut Self {
        self.key = key.into();
        self
    }
    /// Events may come this much out of order; what comes later is late. Without this nothing is.
    pub fn disorder(&mut self, by: Duration) -> &mut Self {
        self.disorder = Some(by.millis());
        self
    }
    /// An event arrives whose time is `"10:00"`, `"10:00:05"`, `"10:00:05.250"` or `"1d 10:00"`.
    ///
    /// # Panics
    /// If the fields are not what the rule declared; the host would make a dead letter of it.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn at(&mut self, time: &str, fields: Fields) -> &mut Self {
        let id = format!("{:06}", self.arrived.len());
        self.event(&id, time, &fields)
    }
    /// An event arrives that has an id; one with the same key, time and id is a copy, and dropped.
    #[track_caller]
    pub fn event(&mut self, id: &str, time: &str, fields: &Fields) -> &mut Self {
        let time = parse_time(time);
        let cells = cells(R::Event::FIELDS, fields);
        if self.disorder.is_some_and(|d| time < self.greatest.saturating_sub(d)) || time < self.advanced {
            self.late.push(show_time(time));
            return self;
        }
        if self.arrived.iter().any(|g| g.key == self.key && g.time == time && g.id == id) {
            self.copies += 1;
            return self;
        }
        self.greatest = self.greatest.max(time);
        self.arrived.push(Given { key: self.key.clone(), time, id: id.into(), cells });
        self
    }
    /// Event time goes on to this: timers up to it fire, and older events are late.
    #[track_caller]
    pub fn advance_to(&mut self, time: &str) -> &mut Self {
        self.advanced = self.advanced.max(parse_time(time));
        self
    }
    /// The input ends: every timer fires, and what is still open is closed.
    pub fn end_of_input(&mut self) -> &mut Self {
        self.ended = true;
        self
    }
    /// The times of events that came too late.
    #[must_use]
    pub fn late(&self) -> &[String] {
        &self.late
    }
    /// How many copies were dropped.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// What came out, by key and start: sessions, and rejected events as `rejected: …`.
    ///
    /// # Panics
    /// If the rule does not answer, or answers otherwise when its turns are cut otherwise.
    #[track_caller]
    #[must_use]
    pub fn outcome(&self) -> Vec<Outcome> {
        let whole = self.fold(usize::MAX);
        for size in [1, 3] {
            let cut = self.fold(size);
            assert!(
                whole == cut,
                "the rule gives something else when its turns are cut into {size} event(s), with the state passing \
                 through bytes between them.\n  in one turn:\n{}  cut:\n{}  Whatever it remembers must be in its State \
                 or its timers.",
                show(&whole),
                show(&cut),
            );
        }
        whole
    }

    /// Compares what came out with a table, one session a line:
    /// `10:00:00 .. 10:06:00  3 events  purchase  {"pages":3}`; with several keys, each line begins with its key.
    /// The number of blanks does not matter.
    ///
    /// # Panics
    /// If it is something else.
    #[track_caller]
    pub fn expect(&self, table: &str) {
        let found = show(&self.outcome());
        let plain = |t: &str| -> Vec<String> {
            let lines = t.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.filter(|l| !l.is_empty()).collect()
        };
        assert!(plain(table) == plain(&found), "expected:\n{table}\nfound:\n{found}");
    }
    /// Compares what came out with a file; `TIDEMILL_BLESS=1` writes it.
    ///
    /// # Panics
    /// If it is something else, or cannot be read.
    #[track_caller]
    #[expect(clippy::panic, reason = "a test that fails")]
    pub fn expect_file(&self, path: impl AsRef<std::path::Path>) {
        let path = path.as_ref();
        if std::env::var_os("TIDEMILL_BLESS").is_some() {
            if let Err(e) = std::fs::write(path, show(&self.outcome())) {
                panic!("{}: {e}", path.display());
            }
            return;
        }
        match std::fs::read_to_string(path) {
            Ok(table) => self.expect(&table),
            Err(e) => panic!("{}: {e}; TIDEMILL_BLESS=1 writes it", path.display()),
        }
    }
    /// Runs the same events in other orders of arrival, each event twice, from a seed; the outcome must be the same.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn expect_same_in_any_order(&self, seeds: std::ops::Range<u64>) {
        let expected = show(&self.outcome());
        for seed in seeds {
            let mut other = Scenario::<R>::new(&self.config);
            let mut events: Vec<&Given> = self.arrived.iter().chain(&self.arrived).collect();
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for i in (1..events.len()).rev() {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                events.swap(i, (x % (i as u64 + 1)) as usize);
            }
            for g in events {
                if other.arrived.iter().any(|o| o.key == g.key && o.time == g.time && o.id == g.id) {
                    other.copies += 1;
                } else {
                    other.arrived.push(g.clone());
                }
            }
            (other.advanced, other.ended) = (self.advanced, self.ended);
            let found = show(&other.outcome());
            assert!(found == expected, "seed {seed}: expected:\n{expected}\nfound:\n{found}");
        }
    }

    #[track_caller]
    fn fold(&self, turn_events: usize) -> Vec<Outcome> {
        let rule = configured::<R::Config, R>(&self.config, R::configure);
        let mut folder = Folder::new(rule);
        let mut keys: BTreeMap<&str, Vec<&Given>> = BTreeMap::new();
        for g in &self.arrived {
            keys.entry(&g.key).or_default().push(g);
        }
        let mut all = Vec::new();
        for (key, mut events) in keys {
            events.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
            let size = turn_events.min(events.len().max(1));
            let mut open = None;
            let parts: Vec<&[&Given]> = events.chunks(size).collect();
            for (n, part) in parts.iter().enumerate() {
                let last = n + 1 == parts.len();
                let until = match last {
                    true if self.ended => i64::MAX,
                    true => self.advanced,
                    // What the host knows by then: no event before the last one of this turn.
                    false => part.last().map_or(i64::MIN, |g| g.time - 1),
                };
                open = turn::<R>(&mut folder, key, part, until, last && self.ended, open, &mut all);
            }
            if let Some(o) = open {
                let (start, end, events, fields) = (o.start, o.last, o.count, o.fields);
                all.push(Outcome { key: key.into(), start, end, events, reason: "open".into(), fields });
            }
        }
        all.sort();
        all
    }
}

/// An open session between two turns.
struct Carried {
    state: Vec<u8>,
    timers: Vec<rows::Timer>,
    start: i64,
    last: i64,
    count: u64,
    fields: String,
}

#[track_caller]
fn turn<R: Sessionizer>(
    folder: &mut Folder<R>,
    key: &str,
    events: &[&Given],
    until: i64,
    at_end: bool,
    open: Option<Carried>,
    all: &mut Vec<Outcome>,
) -> Option<Carried> {
    let mut bytes = key.as_bytes().to_vec();
    let mut words = Vec::new();
    for g in events {
        words.push(g.time as u64);
        put_cells(&g.cells, &mut words, &mut bytes);
    }
    let mut row = rows::Turn {
        key: Range::between(0, key.len()),
        until,
        inputs: Range::between(0, events.len()),
        flags: turn_flags::REPORT_OPEN | if at_end { turn_flags::AT_END } else { 0 },
        ..rows::Turn::default()
    };
    if let Some(o) = &open {
        row.flags |= turn_flags::OPEN;
        let at = bytes.len();
        bytes.extend_from_slice(&o.state);
        row.state = Range::between(at, bytes.len());
        row.timers = Range::between(0, o.timers.len());
        (row.open_start, row.open_last, row.open_count) = (o.start, o.last, o.count);
    }
    let mut w = FrameWriter::default();
    w.begin(Kind::Turns);
    w.section(&[row]);
    w.wide_section(&words, events.len());
    w.section(open.as_ref().map_or(&[][..], |o| &o.timers));
    w.section::<u32>(&[]);
    w.section(&bytes);
    let answer = good(folder.fold(w.into_words()));
    let frame = good(Frame::read(&answer, Kind::Results));
    let bytes: &[u8] = good(frame.rows(7));
    let results: &[rows::TurnResult] = good(frame.rows(0));
    let closings: &[rows::Closing] = good(frame.rows(1));
    let rejections: &[rows::Rejection] = good(frame.rows(3));
    let result = results[0];
    let text = |r: Range| String::from_utf8_lossy(&bytes[r.at as usize..][..r.len as usize]).into_owned();
    let fields = |r: Range| if r.len == 0 { "{}".into() } else { text(r) };
    let rejected: BTreeSet<i32> = rejections.iter().map(|r| r.input as i32).collect();
    let time = |i: i32| events[i as usize].time;
    let bounds = |first: i32, last: i32| {
        let inputs = (first.max(0)..=last).filter(|i| !rejected.contains(i)).count() as u64;
        let (start, before) = match (&open, first) {
            (Some(o), rows::CARRIED) => (o.start, o.count),
            _ => (time(first), 0),
        };
        let end = if last >= 0 { time(last) } else { open.as_ref().map_or(0, |o| o.last) };
        (start, end, before + inputs)
    };
    for c in closings {
        let (start, end, events) = bounds(c.first, c.last);
        let name = match c.reason {
            REASON_END_OF_INPUT => "end_of_input",
            REASON_LIMIT => "limit",
            n => R::Reason::NAMES[n as usize],
        };
        let reason = if c.discarded == 1 { format!("discarded: {name}") } else { name.into() };
        all.push(Outcome { key: key.into(), start, end, events, reason, fields: fields(c.fields) });
    }
    for r in rejections {
        let (at, reason) =
            (time(r.input as i32), format!("rejected: {}", R::Reason::NAMES[r.reason as usize]));
        all.push(Outcome { key: key.into(), start: at, end: at, events: 1, reason, fields: "{}".into() });
    }
    match result.end.kind {
        rows::state_kind::NONE => None,
        rows::state_kind::UNCHANGED => open.map(|o| Carried { fields: fields(result.open_fields), ..o }),
        _ => {
            // The last event of the open session: the last that no closing and no rejection took.
            let closed = closings.iter().map(|c| c.last).max().unwrap_or(-1);
            let last = (0..events.len() as i32).rfind(|i| !rejected.contains(i) && *i > closed);
            let (start, end, count) = bounds(result.end.first, last.unwrap_or(-1));
            let timers: &[rows::Timer] = good(frame.rows(4));
            Some(Carried {
                state: good(result.end.state.of(bytes)).to_vec(),
                timers: good(result.end.timers.of(timers)).to_vec(),
                start,
                last: end,
                count,
                fields: fields(result.open_fields),
            })
        }
    }
}

/// A validator under test; see [`Validator`].
#[derive(Debug)]
pub struct Verdicts<V: Validator> {
    config: String,
    validator: std::marker::PhantomData<fn() -> V>,
}

impl<V: Validator> Verdicts<V> {
    /// Under this config (JSON).
    #[track_caller]
    #[must_use]
    pub fn new(config: &str) -> Self {
        let _ = configured::<V::Config, V>(config, V::configure);
        Verdicts { config: config.into(), validator: std::marker::PhantomData }
    }
    /// The name of the reason for which an event at this instant is rejected, and the message.
    #[track_caller]
    #[must_use]
    pub fn verdict(&self, time: Time, fields: &Fields) -> Option<(&'static str, String)> {
        let validator = configured::<V::Config, V>(&self.config, V::configure);
        let mut bytes = b"key".to_vec();
        let mut words = vec![time.millis() as u64, 3 << 32];
        put_cells(&cells(V::Event::FIELDS, fields), &mut words, &mut bytes);
        let mut w = FrameWriter::default();
        w.begin(Kind::Events);
        w.wide_section(&words, 1);
        w.section(&bytes);
        let answer = good(Judge::new(validator).validate(w.into_words()));
        let frame = good(Frame::read(&answer, Kind::Verdicts));
        let verdicts: &[rows::Verdict] = good(frame.rows(0));
        let message = good(verdicts[0].message.of(good(frame.rows::<u8>(2))));
        let place = (verdicts[0].code as usize).checked_sub(1)?;
        Some((V::Reason::NAMES[place], String::from_utf8_lossy(message).into_owned()))
    }
    /// An event (at noon of 1 January 2026) is accepted.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn accepts(&self, fields: Fields) {
        let found = self.verdict(noon(), &fields);
        assert!(found.is_none(), "{} is rejected: {found:?}", fields.to_json());
    }
    /// An event is rejected for this reason.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn rejects(&self, fields: Fields, reason: &str) {
        let found = self.verdict(noon(), &fields);
        let name = found.as_ref().map(|f| f.0);
        assert!(name == Some(reason), "{}: expected {reason}, found {found:?}", fields.to_json());
    }
}

fn noon() -> Time {
    Time(1_767_268_800_000)
}

/// An enricher under test, with the rows that its lookups find; see [`Enricher`].
#[derive(Debug)]
pub struct Lookups<E: Enricher> {
    config: String,
    rows: BTreeMap<(u32, String), String>,
    enricher: std::marker::PhantomData<fn() -> E>,
}

impl<E: Enricher> Lookups<E> {
    /// Under this config (JSON), with no rows.
    #[track_caller]
    #[must_use]
    pub fn new(config: &str) -> Self {
        let _ = configured::<E::Config, E>(config, E::configure);
        Lookups { config: config.into(), rows: BTreeMap::new(), enricher: std::marker::PhantomData }
    }
    /// A lookup finds this row for this key.
    ///
    /// # Panics
    /// If there is no such lookup.
    #[track_caller]
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn row(mut self, lookup: &str, key: &str, row: Fields) -> Self {
        let place = E::Lookup::NAMES.iter().position(|n| *n == lookup);
        let Some(place) = place else { fail(&format!("there is no lookup `{lookup}`")) };
        self.rows.insert((place as u32, key.into()), row.to_json());
        self
    }
    /// The fields that a session of this key, with these fields, is given.
    ///
    /// # Panics
    /// If it is refused instead.
    #[track_caller]
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "reads better at every call")]
    pub fn enrich(&self, key: &str, fields: Fields) -> Fields {
        match self.result(key, &fields) {
            Ok(json) => Fields::from_object(json),
            Err(reason) => fail(&format!("the session is refused: {reason}")),
        }
    }
    /// The fields that a session is given, as JSON, or the name of the reason for which it is refused.
    ///
    /// # Errors
    /// The name of that reason.
    #[track_caller]
    pub fn result(&self, key: &str, fields: &Fields) -> Result<String, &'static str> {
        let enricher = configured::<E::Config, E>(&self.config, E::configure);
        let mut desk = Desk::new(enricher);
        let asked = good(desk.requests(self.frame(key, fields, &[])));
        let frame = good(Frame::read(&asked, Kind::Requests));
        let bytes: &[u8] = good(frame.rows(1));
        let requests: Vec<(u32, String)> = good(frame.rows::<rows::Request>(0))
            .iter()
            .map(|r| (r.lookup, String::from_utf8_lossy(good(r.key.of(bytes))).into_owned()))
            .collect();
        let answer = good(desk.apply(self.frame(key, fields, &requests)));
        let frame = good(Frame::read(&answer, Kind::Enriched));
        let enriched = good(frame.rows::<rows::Enriched>(0))[0];
        match (enriched.code as usize).checked_sub(1) {
            Some(place) => Err(E::Reason::NAMES[place]),
            None => {
                let json = good(enriched.fields.of(good(frame.rows::<u8>(2))));
                Ok(String::from_utf8_lossy(json).into_owned())
            }
        }
    }
    fn frame(&self, key: &str, fields: &Fields, requests: &[(u32, String)]) -> Vec<u64> {
        let mut bytes = Vec::new();
        let mut put = |text: &str| {
            let at = bytes.len();
            bytes.extend_from_slice(text.as_bytes());
            Range::between(at, bytes.len())
        };
        let session = rows::Session {
            key: put(key),
            start: noon().millis(),
            end: noon().millis(),
            count: 1,
            reason: put("end_of_input"),
            fields: put(&fields.to_json()),
            answers: Range::between(0, requests.len()),
        };
        let answers: Vec<rows::Answer> = requests
            .iter()
            .map(|(lookup, key)| match self.rows.get(&(*lookup, key.clone())) {
                Some(row) => {
                    let (key, row) = (put(key), put(row));
                    rows::Answer { lookup: *lookup, status: rows::answer::FOUND, key, row }
                }
                None => {
                    let (key, row) = (put(key), Range::default());
                    rows::Answer { lookup: *lookup, status: rows::answer::NOT_FOUND, key, row }
                }
            })
            .collect();
        let mut w = FrameWriter::default();
        w.begin(Kind::Sessions);
        w.section(&[session]);
        w.section(&answers);
        w.section(&bytes);
        w.into_words()
    }
}

#[track_caller]
fn configured<C: crate::Config, P>(
    config: &str,
    make: impl FnOnce(C) -> Result<P, Vec<crate::ConfigError>>,
) -> P {
    match crate::config::read(config).and_then(make) {
        Ok(p) => p,
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(|e| format!("\n  {e}")).collect();
            fail(&format!("the config is not taken:{}", lines.concat()))
        }
    }
}

#[track_caller]
fn cells(declared: &[Field], fields: &Fields) -> Vec<Cell> {
    let json: Value = good(serde_json::from_str(&fields.to_json()));
    if let Some(extra) =
        json.as_object().and_then(|o| o.keys().find(|k| declared.iter().all(|f| f.name != *k)))
    {
        fail(&format!("the plugin declares no field `{extra}`, so it would not see it"));
    }
    declared.iter().map(|f| cell(f, json.get(f.name).unwrap_or(&Value::Null))).collect()
}

#[track_caller]
fn cell(field: &Field, value: &Value) -> Cell {
    let missing = value.is_null() || value.as_str() == Some("");
    if missing && field.required {
        fail(&format!(
            "`{}` is required: the host would make a dead letter `missing_field` of this",
            field.name
        ));
    }
    let wrong = || -> Cell {
        fail(&format!("`{}` is {value}: the host would make a dead letter `wrong_type` of this", field.name))
    };
    let text = |t: &str| match field.symbols.iter().position(|s| *s == t) {
        Some(n) => Cell::Word(Text::Symbol(n as u32).word()),
        None => Cell::Text(t.into()),
    };
    match (field.field_type, value) {
        (FieldType::Text | FieldType::String, _) if missing => Cell::Word(Text::Missing.word()),
        (FieldType::Text | FieldType::String, Value::String(t)) => text(t),
        (FieldType::Text, Value::Number(_) | Value::Bool(_)) => text(&value.to_string()),
        (FieldType::Integer, _) if missing => Cell::Word(MISSING_INTEGER as u64),
        (FieldType::Integer, v) => v.as_i64().map_or_else(wrong, |n| Cell::Word(n as u64)),
        (FieldType::Number, _) if missing => Cell::Word(f64::NAN.to_bits()),
        (FieldType::Number, v) => v.as_f64().map_or_else(wrong, |n| Cell::Word(n.to_bits())),
        (FieldType::Boolean, _) if missing => Cell::Word(MISSING_BOOLEAN),
        (FieldType::Boolean, v) => v.as_bool().map_or_else(wrong, |b| Cell::Word(u64::from(b))),
        _ => wrong(),
    }
}

fn put_cells(cells: &[Cell], words: &mut Vec<u64>, bytes: &mut Vec<u8>) {
    for c in cells {
        words.push(match c {
            Cell::Word(w) => *w,
            Cell::Text(t) => {
                let at = bytes.len() as u32;
                bytes.extend_from_slice(t.as_bytes());
                Text::Range { at, len: t.len() as u32 }.word()
            }
        });
    }
}

#[track_caller]
fn parse_time(text: &str) -> i64 {
    let bad = || -> i64 {
        fail(&format!("{text:?} is no time; write \"10:00\", \"10:00:05.250\" or \"1d 10:00\""))
    };
    let (days, clock) = match text.split_once("d ") {
        Some((d, rest)) => (d.parse().unwrap_or_else(|_| bad()), rest),
        None => (0, text),
    };
    let mut parts = clock.split(':');
    let mut part = || parts.next().map(|p| p.parse::<f64>().unwrap_or_else(|_| bad() as f64));
    let (h, m, s) = (part(), part(), part());
    let (Some(h), Some(m)) = (h, m) else { return bad() };
    days * DAY_MS + ((h * 3600.0 + m * 60.0 + s.unwrap_or(0.0)) * 1000.0).round() as i64
}

fn show_time(ms: i64) -> String {
    let (days, ms) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    let days = if days == 0 { String::new() } else { format!("{days}d ") };
    let (s, rest) = (ms / 1000, ms % 1000);
    let rest = if rest == 0 { String::new() } else { format!(".{rest:03}") };
    format!("{days}{:02}:{:02}:{:02}{rest}", s / 3600, s / 60 % 60, s % 60)
}

fn show(all: &[Outcome]) -> String {
    let keys: BTreeSet<&str> = all.iter().map(|o| o.key.as_str()).collect();
    let mut out = String::new();
    for o in all {
        let key = if keys.len() > 1 { format!("{}  ", o.key) } else { String::new() };
        let s = if o.events == 1 { "" } else { "s" };
        let (from, to) = (show_time(o.start), show_time(o.end));
        out += &format!("    {key}{from} .. {to}  {} event{s}  {}  {}\n", o.events, o.reason, o.fields);
    }
    out
}

#[track_caller]
fn good<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(v) => v,
        Err(e) => fail(&format!("the plugin does not answer: {e}")),
    }
}

#[track_caller]
#[expect(clippy::panic, reason = "a test that fails")]
fn fail(message: &str) -> ! {
    panic!("{message}")
}
