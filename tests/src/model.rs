//! The naive batch model: what the sessions of a log are, computed the slow and obvious way.
//!
//! Every run of the binary is compared with it, so it shares no code with the engine: its own parsers, one sort,
//! one pass a key, everything in memory. It sees the bytes of the input and the places of the dead letters only.
//! Its own counts on the real logs are asserted by `tests/real_logs.rs`.

use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How records stand in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Header, then tab-separated cells without quoting; empty surplus cells are allowed.
    Tsv,
    /// Header, then comma-separated cells; quotes may enclose commas, quotes and line ends.
    Csv,
    /// The combined log of Apache and nginx.
    Combined,
}

/// How a time is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Seconds since the Unix epoch.
    Seconds,
    /// Milliseconds since the Unix epoch.
    Millis,
    /// Microseconds since the Unix epoch.
    Micros,
    /// As in a combined log: `17/May/2015:10:05:03 +0000`.
    Clf,
}

/// One source: where its records are and what their parts mean. The harness writes the same values as TOML.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name in the config.
    pub name: String,
    /// File, glob, or `-` for stdin.
    pub path: String,
    /// How records are written.
    pub format: Format,
    /// One field, or several that are the key together.
    pub key: Vec<String>,
    /// Field of the event time.
    pub time: String,
    /// How the time is written.
    pub unit: Unit,
    /// Field that is the event's id; `None`: its position.
    pub id: Option<String>,
    /// A rule's field, and where it is in this source.
    pub fields: Vec<(String, String)>,
    /// How far out of order events may come, ms.
    pub disorder_ms: i64,
    /// Further TOML lines, which the model does not need.
    pub more: String,
}

impl Source {
    /// A file source with position ids and a disorder of 60 s.
    #[must_use]
    pub fn file(name: &str, path: &str, format: Format, key: &str, time: &str, unit: Unit) -> Source {
        Source {
            name: name.into(),
            path: path.into(),
            format,
            key: vec![key.into()],
            time: time.into(),
            unit,
            id: None,
            fields: Vec::new(),
            disorder_ms: 60_000,
            more: String::new(),
        }
    }
}

/// Events whose field has one of the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The rule's field.
    pub field: String,
    /// Its values.
    pub values: Vec<String>,
}

/// The rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Silence that ends a session, ms.
    pub gap_ms: i64,
    /// Whether an event exactly one gap after the last stays.
    pub inclusive: bool,
    /// Longest session, ms from its start.
    pub max_ms: Option<i64>,
    /// Events that begin a session.
    pub start: Option<Match>,
    /// Events that end one.
    pub end: Option<Match>,
}

impl Gap {
    /// Only a gap.
    #[must_use]
    pub fn of_seconds(seconds: i64, inclusive: bool) -> Gap {
        Gap { gap_ms: seconds * 1000, inclusive, max_ms: None, start: None, end: None }
    }
}

/// Where a record stands: file name (without folders) and byte offset after decompression.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// File name without folders.
    pub file: String,
    /// Byte of the record's start.
    pub offset: u64,
}

/// An event as the model sees it.
#[derive(Clone, Debug)]
pub struct Event {
    /// The key as rows show it.
    pub key: String,
    /// ms since the Unix epoch.
    pub time: i64,
    /// Its id's bytes.
    pub id: Vec<u8>,
    /// Where it stands.
    pub place: Place,
    starts: bool,
    ends: bool,
}

/// A session as every sink must show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The key.
    pub key: String,
    /// Time of the first event.
    pub start_ms: i64,
    /// Time of the last event.
    pub end_ms: i64,
    /// Number of events.
    pub events: u64,
    /// Why it closed; `None` while open.
    pub reason: Option<String>,
}

/// A log, read.
#[derive(Default, Debug)]
pub struct Log {
    /// The valid events in file order.
    pub events: Vec<Event>,
    /// Records that are no events, with the reason.
    pub invalid: Vec<(Place, &'static str)>,
}

enum Record {
    Json(HashMap<String, Box<RawValue>>),
    Flat(HashMap<String, String>),
}

fn json_text(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    match text.as_bytes()[0] {
        b'"' => serde_json::from_str::<String>(text).ok().filter(|s| !s.is_empty()),
        b'n' => None,
        _ => Some(text.to_owned()),
    }
}

fn json_at(members: &HashMap<String, Box<RawValue>>, path: &[String]) -> Option<String> {
    let value = members.get(&path[0])?;
    if path.len() == 1 {
        return json_text(value);
    }
    json_at(&serde_json::from_str(value.get()).ok()?, &path[1..])
}

impl Record {
    fn get(&self, path: &str) -> Option<String> {
        match self {
            Record::Flat(cells) => cells.get(path).filter(|c| !c.is_empty()).cloned(),
            Record::Json(members) => {
                let steps: Vec<String> = match path.strip_prefix('/') {
                    Some(rest) => rest.split('/').map(|s| s.replace("~1", "/").replace("~0", "~")).collect(),
                    None => vec![path.to_owned()],
                };
                json_at(members, &steps)
            }
        }
    }
}

/// Cuts a file into records with their offsets; empty lines are none.
#[must_use]
pub fn records(format: Format, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    for at in 0..=bytes.len() {
        if at < bytes.len() && bytes[at] == b'"' && format == Format::Csv {
            quoted = !quoted;
        }
        if at < bytes.len() && (bytes[at] != b'\n' || quoted) {
            continue;
        }
        let mut record = &bytes[start..at];
        if let [head @ .., b'\r'] = record {
            record = head;
        }
        if !record.is_empty() {
            out.push((start as u64, record.to_vec()));
        }
        start = at + 1;
    }
    out
}

fn cells(format: Format, record: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(record).ok()?;
    if format == Format::Tsv {
        return Some(text.split('\t').map(str::to_owned).collect());
    }
    let mut out = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let cell = out.last_mut()?;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            _ => cell.push(c),
        }
    }
    (!quoted).then_some(out)
}

fn flat(header: &[String], cells: Vec<String>) -> Option<Record> {
    if cells.len() < header.len() || cells[header.len()..].iter().any(|c| !c.is_empty()) {
        return None;
    }
    Some(Record::Flat(header.iter().cloned().zip(cells).collect()))
}

fn combined(record: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(record).ok()?;
    let mut parts: Vec<String> = Vec::new();
    let mut rest = text;
    while parts.len() < 9 && !rest.is_empty() {
        let (open, close) = match rest.as_bytes()[0] {
            b'[' => (1, ']'),
            b'"' => (1, '"'),
            _ => (0, ' '),
        };
        let body = &rest[open..];
        let mut end = body.len();
        let mut escaped = false;
        for (i, c) in body.char_indices() {
            if c == close && !escaped {
                end = i;
                break;
            }
            escaped = c == '\\' && !escaped;
        }
        parts.push(body[..end].to_owned());
        let after = body.get(end + open..).unwrap_or_default();
        rest = after.strip_prefix(' ').unwrap_or(after);
    }
    let names = ["host", "ident", "user", "time", "request", "status", "bytes", "referer", "agent"];
    if parts.len() < names.len() {
        return None;
    }
    Some(Record::Flat(names.iter().map(|n| (*n).to_owned()).zip(parts).collect()))
}

/// Days from 1970-01-01 by counting, the slow way.
fn days(year: i64, month: usize, day: i64) -> i64 {
    let leap = |y: i64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    (1970..year).map(|y| if leap(y) { 366 } else { 365 }).sum::<i64>()
        + lengths[..month].iter().sum::<i64>()
        + day
        - 1
}

fn clf_time(text: &str) -> Option<i64> {
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let month = months.iter().position(|m| Some(*m) == text.get(3..6))?;
    let local = ((days(number(7, 11)?, month, number(0, 2)?) * 24 + number(12, 14)?) * 60 + number(15, 17)?)
        * 60
        + number(18, 20)?;
    let sign = if text.get(21..22)? == "-" { -1 } else { 1 };
    let zone = sign * (number(22, 24)? * 60 + number(24, 26)?) * 60;
    Some((local - zone) * 1000)
}

fn time_of(unit: Unit, text: &str) -> Option<i64> {
    match unit {
        Unit::Clf => clf_time(text),
        Unit::Seconds => text.parse::<i64>().ok()?.checked_mul(1000),
        Unit::Millis => text.parse().ok(),
        Unit::Micros => text.parse::<i64>().ok().map(|t| t.div_euclid(1000)),
    }
}

/// Reads the files of sources: (source, file name without folders, bytes after decompression).
#[must_use]
pub fn read(files: &[(&Source, &str, &[u8])], rule: &Gap) -> Log {
    let mut log = Log::default();
    for (number, (source, file, bytes)) in files.iter().enumerate() {
        let mut header: Option<Vec<String>> = None;
        for (offset, record) in records(source.format, bytes) {
            let separated = matches!(source.format, Format::Csv | Format::Tsv);
            if separated && header.is_none() {
                header = cells(source.format, &record);
                continue;
            }
            let place = Place { file: (*file).to_owned(), offset };
            let decoded = match source.format {
                Format::Json => serde_json::from_slice(&record).ok().map(Record::Json),
                Format::Combined => combined(&record),
                _ => cells(source.format, &record).and_then(|c| flat(header.as_deref()?, c)),
            };
            let Some(decoded) = decoded else {
                log.invalid.push((place, "malformed"));
                continue;
            };
            let key: Option<Vec<String>> = source.key.iter().map(|k| decoded.get(k)).collect();
            let mut position = (number as u32).to_be_bytes().to_vec();
            position.extend_from_slice(&offset.to_be_bytes());
            let id =
                source.id.as_ref().map_or(Some(position), |path| decoded.get(path).map(String::into_bytes));
            let (Some(mut key), Some(time), Some(id)) = (key, decoded.get(&source.time), id) else {
                log.invalid.push((place, "missing_field"));
                continue;
            };
            let Some(time) = time_of(source.unit, &time) else {
                log.invalid.push((place, "time"));
                continue;
            };
            let matches = |m: &Option<Match>| {
                m.as_ref().is_some_and(|m| {
                    let path = source.fields.iter().find(|(f, _)| *f == m.field).map_or(&m.field, |(_, p)| p);
                    decoded.get(path).is_some_and(|v| m.values.contains(&v))
                })
            };
            let (starts, ends) = (matches(&rule.start), matches(&rule.end));
            let key = if key.len() == 1 { key.remove(0) } else { serde_json::Value::from(key).to_string() };
            log.events.push(Event { key, time, id, place, starts, ends });
        }
    }
    log
}

struct Open {
    start: i64,
    last: i64,
    events: u64,
    silence_at: i64,
    max_at: Option<i64>,
}

impl Open {
    fn row(&self, key: &str, reason: &str) -> Row {
        Row {
            key: key.into(),
            start_ms: self.start,
            end_ms: self.last,
            events: self.events,
            reason: Some(reason.into()),
        }
    }
    /// The first timer: the least by (time, number), where the gap's number is below that of `max`.
    fn due(&self) -> (i64, &'static str) {
        match self.max_at {
            Some(at) if at < self.silence_at => (at, "max"),
            _ => (self.silence_at, "gap"),
        }
    }
}

/// All sessions of the log but for the events at `dead`, in the order of rows. At the end of input every pending
/// timer fires, so with this rule nothing is ever left for `end_of_input`.
#[must_use]
pub fn sessions(log: &Log, dead: &BTreeSet<Place>, rule: &Gap) -> Vec<Row> {
    /// By (time, id): whether the event starts or ends a session.
    type Sorted<'a> = BTreeMap<(i64, &'a [u8]), (bool, bool)>;
    let mut keys: BTreeMap<&str, Sorted<'_>> = BTreeMap::new();
    for e in log.events.iter().filter(|e| !dead.contains(&e.place)) {
        // The first of several copies counts.
        keys.entry(&e.key).or_default().entry((e.time, &e.id)).or_insert((e.starts, e.ends));
    }
    let mut rows = Vec::new();
    for (key, events) in keys {
        let mut open: Option<Open> = None;
        for ((time, _), (starts, ends)) in events {
            if let Some(o) = open.take_if(|o| o.due().0 <= time) {
                rows.push(o.row(key, o.due().1));
            }
            if starts && let Some(o) = open.take() {
                rows.push(o.row(key, "start"));
            }
            // A timer lies strictly after the event that sets it.
            let after = |t: i64| t.max(time + 1);
            let session = open.get_or_insert_with(|| Open {
                start: time,
                last: time,
                events: 0,
                silence_at: 0,
                max_at: rule.max_ms.map(|m| after(time + m)),
            });
            session.last = time;
            session.events += 1;
            session.silence_at = after(time + rule.gap_ms + i64::from(rule.inclusive));
            if ends && let Some(o) = open.take() {
                rows.push(o.row(key, "end"));
            }
        }
        if let Some(o) = open {
            rows.push(o.row(key, o.due().1));
        }
    }
    rows.sort();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source::file("s", "s.jsonl", Format::Json, "u", "t", Unit::Millis)
    }

    /// (start, end, events, reason) of one key's sessions.
    fn cut(lines: &[(i64, &str)], rule: &Gap) -> Vec<(i64, i64, u64, String)> {
        let mut text = String::new();
        for (t, k) in lines {
            text += &format!("{{\"u\":\"a\",\"t\":{t},\"k\":\"{k}\"}}\n");
        }
        let s = source();
        let log = read(&[(&s, "s.jsonl", text.as_bytes())], rule);
        sessions(&log, &BTreeSet::new(), rule)
            .into_iter()
            .map(|r| (r.start_ms, r.end_ms, r.events, r.reason.unwrap()))
            .collect()
    }

    #[test]
    fn an_event_one_gap_later_starts_anew_or_stays() {
        let lines = [(0, ""), (1000, ""), (1000, ""), (2001, "")];
        let exclusive = cut(&lines, &Gap::of_seconds(1, false));
        assert_eq!(
            exclusive,
            [(0, 0, 1, "gap".into()), (1000, 1000, 2, "gap".into()), (2001, 2001, 1, "gap".into())]
        );
        let inclusive = cut(&lines, &Gap::of_seconds(1, true));
        assert_eq!(inclusive, [(0, 1000, 3, "gap".into()), (2001, 2001, 1, "gap".into())]);
    }

    #[test]
    fn max_start_and_end_close_with_their_own_reasons() {
        let one = |v: &str| Some(Match { field: "k".into(), values: vec![v.into()] });
        let rule = Gap { max_ms: Some(2500), start: one("in"), end: one("out"), ..Gap::of_seconds(1, false) };
        let rows = cut(&[(0, ""), (900, ""), (1800, ""), (2500, "")], &rule);
        assert_eq!(rows, [(0, 1800, 3, "max".into()), (2500, 2500, 1, "gap".into())]);
        let rows = cut(&[(0, ""), (1, "in"), (2, "out"), (3, "")], &rule);
        assert_eq!(rows, [(0, 0, 1, "start".into()), (1, 2, 2, "end".into()), (3, 3, 1, "gap".into())]);
        // Both timers at one time: the gap has the lower number.
        let tie = Gap { max_ms: Some(1000), ..Gap::of_seconds(1, false) };
        assert_eq!(cut(&[(0, "")], &tie), [(0, 0, 1, "gap".into())]);
    }

    #[test]
    fn one_identity_counts_once_and_the_dead_not_at_all() {
        let s = Source { id: Some("i".into()), ..source() };
        let rule = Gap::of_seconds(1, false);
        let text = b"{\"u\":\"a\",\"t\":1,\"i\":7}\n{\"u\":\"a\",\"t\":1,\"i\":7}\n{\"u\":\"a\",\"t\":2,\"i\":7}\n{\"u\":\"\",\"t\":2,\"i\":7}\nno\n";
        let log = read(&[(&s, "s", text)], &rule);
        assert_eq!(log.invalid.iter().map(|i| i.1).collect::<Vec<_>>(), ["missing_field", "malformed"]);
        assert_eq!(sessions(&log, &BTreeSet::new(), &rule)[0].events, 2);
        let dead = BTreeSet::from([log.events[2].place.clone()]);
        assert_eq!(sessions(&log, &dead, &rule)[0].events, 1);
    }

    #[test]
    fn nested_paths_tables_and_log_lines_are_read() {
        let rule = Gap::of_seconds(1, false);
        let s = Source::file("s", "s", Format::Json, "/who/id", "/at", Unit::Seconds);
        assert_eq!(read(&[(&s, "s", b"{\"who\":{\"id\":5},\"at\":2}")], &rule).events[0].key, "5");
        let s = Source::file("s", "s", Format::Csv, "u", "t", Unit::Seconds);
        let log = read(&[(&s, "s", b"u,t,x\r\n\"a,\"\"b\",2,\"line\nend\"\r\nshort\r\n")], &rule);
        assert_eq!((log.events[0].key.as_str(), log.events[0].time, log.invalid.len()), ("a,\"b", 2000, 1));
        let s = Source::file("s", "s", Format::Tsv, "u", "t", Unit::Micros);
        let log = read(&[(&s, "s", b"u\tt\na\t2500\t\t\na\t1\tx\n")], &rule);
        assert_eq!((log.events[0].time, log.invalid.len()), (2, 1));
        let s = Source::file("s", "s", Format::Combined, "host", "time", Unit::Clf);
        let line = b"1.2.3.4 - - [17/May/2015:12:05:03 +0200] \"GET /\\\" HTTP/1.1\" 200 - \"-\" \"no end";
        assert_eq!(read(&[(&s, "s", line)], &rule).events[0].time, 1_431_857_103_000);
    }
}
