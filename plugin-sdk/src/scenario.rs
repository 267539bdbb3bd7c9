//! Tests of plugins, natively: events at times, and what is to come of them.
//!
//! A scenario does what the host does, in the simplest way: it drops copies and what is late, sorts the rest by time and
//! id, and folds it whole, through the same frames. Then it folds it again in small turns, with the state going
//! through bytes between them, and complains if anything else comes out: then the rule keeps something that is not in
//! its state.

mod cells;
mod clock;
mod lookups;
mod verdicts;

pub use self::lookups::Lookups;
pub use self::verdicts::Verdicts;

use self::cells::{Cell, cells, put_cells};
use self::clock::{parse_time, show_time};
use crate::describe::places;
use crate::record::{self, Tested};
use crate::{Duration, EventView, Fields, Folder, Names, Sessionizer, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tidemill_contract::frame::{Frame, FrameWriter, Kind};
use tidemill_contract::rows::{self, REASON_END_OF_INPUT, REASON_LIMIT, Range, turn_flags};

/// A session that came out of a scenario.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::{Outcome, Scenario};
/// # struct Hourly;
/// # #[event] struct Event {}
/// # #[derive(Reason, Clone, Copy)] enum Why { Over }
/// # #[derive(Timer, Clone, Copy)] enum Due { Hour }
/// # impl Sessionizer for Hourly {
/// #     type Config = (); type Event = Event; type State = (); type Reason = Why; type Timer = Due;
/// #     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Hourly) }
/// #     fn open(&self, cx: &mut Context<Self>, _: &Event) { cx.set_timer(Due::Hour, Duration::hours(1)); }
/// #     fn on_event(&self, _: &mut Context<Self>, (): &mut (), _: &Event) -> Decision<Why> { keep() }
/// #     fn on_timer(&self, _: &mut Context<Self>, (): &mut (), _: Due) -> Decision<Why> { close(Why::Over) }
/// # }
/// let mut s = Scenario::<Hourly>::new("{}");
/// s.key("alice").at("1d 10:00", fields! {});
/// let hour = 3_600_000;
/// assert_eq!(s.outcome(), [Outcome {
///     key: "alice".into(), start: 34 * hour, end: 34 * hour, events: 1, reason: "open".into(), fields: "{}".into(),
/// }]);
/// ```
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

/// A session rule, events, and a clock that is moved by hand.
///
/// ```
/// use tidemill_plugin_sdk::prelude::*;
/// use tidemill_plugin_sdk::scenario::Scenario;
/// # struct Hourly;
/// # #[event] struct Event {}
/// # #[derive(Reason, Clone, Copy)] enum Why { Over }
/// # #[derive(Timer, Clone, Copy)] enum Due { Hour }
/// # impl Sessionizer for Hourly {
/// #     type Config = (); type Event = Event; type State = (); type Reason = Why; type Timer = Due;
/// #     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Hourly) }
/// #     fn open(&self, cx: &mut Context<Self>, _: &Event) { cx.set_timer(Due::Hour, Duration::hours(1)); }
/// #     fn on_event(&self, _: &mut Context<Self>, (): &mut (), _: &Event) -> Decision<Why> { keep() }
/// #     fn on_timer(&self, _: &mut Context<Self>, (): &mut (), _: Due) -> Decision<Why> { close(Why::Over) }
/// # }
/// let mut s = Scenario::<Hourly>::new("{}");
/// s.disorder(Duration::minutes(5));
/// s.key("alice").at("10:00", fields! {}).at("10:20", fields! {});
/// s.key("bob").event("b-1", "10:30", &fields! {}).event("b-1", "10:30", &fields! {});
/// s.key("alice").at("10:01", fields! {});
/// assert_eq!((s.copies(), s.late()), (1, &["10:01:00".to_owned()][..]));
/// s.advance_to("11:10");
/// s.expect("
///     alice  10:00:00 .. 10:20:00  2 events  over  {}
///     bob    10:30:00 .. 10:30:00  1 event   open  {}
/// ");
/// s.expect_same_in_any_order(0..50);
/// s.end_of_input();
/// assert_eq!(s.outcome()[1].reason, "over");
/// ```
///
/// A long table may stand in a file beside the test. `TIDEMILL_ACCEPT=1 cargo test` writes what is found there.
///
/// ```
/// # use tidemill_plugin_sdk::prelude::*;
/// # use tidemill_plugin_sdk::scenario::Scenario;
/// # struct Hourly;
/// # #[event] struct Event {}
/// # #[derive(Reason, Clone, Copy)] enum Why { Over }
/// # #[derive(Timer, Clone, Copy)] enum Due { Hour }
/// # impl Sessionizer for Hourly {
/// #     type Config = (); type Event = Event; type State = (); type Reason = Why; type Timer = Due;
/// #     fn configure((): ()) -> Result<Self, Vec<ConfigError>> { Ok(Hourly) }
/// #     fn open(&self, cx: &mut Context<Self>, _: &Event) { cx.set_timer(Due::Hour, Duration::hours(1)); }
/// #     fn on_event(&self, _: &mut Context<Self>, (): &mut (), _: &Event) -> Decision<Why> { keep() }
/// #     fn on_timer(&self, _: &mut Context<Self>, (): &mut (), _: Due) -> Decision<Why> { close(Why::Over) }
/// # }
/// # let file = std::env::temp_dir().join(format!("tidemill-sdk-{}.txt", std::process::id()));
/// # std::fs::write(&file, "10:00:00 .. 10:00:00 1 event over {}")?;
/// let mut s = Scenario::<Hourly>::new("{}");
/// s.at("10:00", fields! {}).end_of_input();
/// s.expect_file(&file);                            // "tests/one-visit.txt", from the crate's folder
/// # std::fs::remove_file(file)?;
/// # Ok::<(), std::io::Error>(())
/// ```
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
    /// Places of the fields that the rule does not read.
    unread: Vec<u32>,
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
        let rule = configured::<R::Config, R>(Tested::sessionizer::<R>(), config, R::configure);
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
            unread: places(&rule.unread(), R::Event::FIELDS),
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
        let cells = cells(R::Event::FIELDS, &self.unread, fields);
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
        let plain = |t: &str| -> String {
            let lines = t.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.filter(|l| !l.is_empty()).map(|l| l + "\n").collect()
        };
        let (expected, plainly) = (plain(table), plain(&found));
        if expected != plainly {
            let diff = similar::TextDiff::from_lines(&expected, &plainly);
            let lines: String = diff.iter_all_changes().map(|l| format!("{} {l}", l.tag())).collect();
            fail(&format!("something else came out (- expected, + found):\n{lines}\nall of it:\n{found}"));
        }
    }
    /// Compares what came out with a file, by a path from the crate's folder; `TIDEMILL_ACCEPT=1` writes it.
    ///
    /// # Panics
    /// If it is something else, or cannot be read.
    #[track_caller]
    pub fn expect_file(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        if std::env::var_os("TIDEMILL_ACCEPT").is_some_and(|v| v == "1") {
            let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            if let Err(e) = folder.and_then(|()| std::fs::write(path, show(&self.outcome()))) {
                fail(&format!("{}: {e}", path.display()));
            }
            return;
        }
        match std::fs::read_to_string(path) {
            Ok(table) => self.expect(&table),
            Err(e) => fail(&format!("{}: {e}; TIDEMILL_ACCEPT=1 writes it", path.display())),
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
        let rule = configured::<R::Config, R>(Tested::sessionizer::<R>(), &self.config, R::configure);
        let mut asked = Asked { folder: Folder::new(rule), config: &self.config };
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
                open = turn(&mut asked, key, part, until, last && self.ended, open, &mut all);
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

/// A rule that is asked, under this config.
struct Asked<'a, R: Sessionizer> {
    folder: Folder<R>,
    config: &'a str,
}

impl<R: Sessionizer> Asked<'_, R> {
    #[track_caller]
    fn fold(&mut self, question: &[u64]) -> Vec<u64> {
        let answer = good(self.folder.fold(question.to_vec()));
        Tested::sessionizer::<R>().call("fold", self.config, question, &answer);
        answer
    }
}

#[track_caller]
fn turn<R: Sessionizer>(
    asked: &mut Asked<'_, R>,
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
    let answer = asked.fold(w.end());
    let frame = good(Frame::read(&answer, Kind::Results));
    let bytes: &[u8] = good(frame.rows(7));
    let results: &[rows::TurnResult] = good(frame.rows(0));
    let closings: &[rows::Closing] = good(frame.rows(1));
    let rejections: &[rows::Rejection] = good(frame.rows(3));
    let result = results[0];
    let text = |r: Range| String::from_utf8_lossy(&bytes[r.at as usize..][..r.len as usize]).into_owned();
    let fields = |r: Range| {
        within("the fields", r.len as usize, rows::FIELDS_BYTES_MAX);
        if r.len == 0 { "{}".into() } else { text(r) }
    };
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
            within("the state", result.end.state.len as usize, rows::STATE_BYTES_MAX);
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

/// In the host it would be a fault, and only where a turn happens to end: here it is one wherever it may.
#[track_caller]
fn within(what: &str, bytes: usize, max: usize) {
    if bytes > max {
        fail(&format!("{what} of a session: {bytes} bytes, where {max} are kept; remember less"));
    }
}

fn noon() -> Time {
    Time(1_767_268_800_000)
}

#[track_caller]
fn configured<C: crate::Config, P>(
    tested: Tested,
    config: &str,
    make: impl FnOnce(C) -> Result<P, Vec<crate::ConfigError>>,
) -> P {
    match record::configure(tested, config, make) {
        Ok(p) => p,
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(|e| format!("\n  {e}")).collect();
            fail(&format!("the config is not taken:{}", lines.concat()))
        }
    }
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
