//! Clicks of a shop as two data sources send them, and what is wrong with some.
//!
//! The app's come as JSON; the web's too, or as Avro in Confluent's frames, by two versions of a schema, as the [`Streams`] take them.
//! Both are out of order within [`DISORDER_MS`], one in ten comes again, by either source, and a visitor's are spread over all
//! partitions.

use crate::streams::Streams;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use tidemill_tests::avro::{framed, long, optional, text};
use tidemill_tests::component::Made;
use tidemill_tests::model::{self, Format, Gap, Log, Row, Source, Unit};
use tidemill_tests::traffic::{Rng, START_MS};

/// How far out of order clicks stand in their partition, and no further.
pub(crate) const DISORDER_MS: i64 = 10_000;
/// Whose click ends the others' sessions: long after all of them, in each partition.
pub(crate) const LAST: &str = "last";
/// Partitions of the web's topic, and of the app's.
pub(crate) const PARTITIONS: [usize; 2] = [3, 2];
/// A schema that no registry has.
pub(crate) const UNKNOWN: u32 = 99;
/// One click in so many is wrong.
const WRONG_EVERY: u64 = 120;
/// From click to click, on average.
const STEP_MS: u64 = 20;

/// What the registry has, by number. The second one's producers also say on what the page was seen.
pub(crate) const SCHEMAS: [(u32, &str); 2] = [
    (
        7,
        r#"{"type":"record","name":"Click","fields":[{"name":"event_id","type":["null","string"]},
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},{"name":"visitor","type":["null","string"]},
        {"name":"what","type":"string"},{"name":"address","type":["null","string"]},{"name":"campaign","type":["null","string"]},
        {"name":"amount","type":["null","double"]}]}"#,
    ),
    (
        8,
        r#"{"type":"record","name":"Click","fields":[{"name":"device","type":"string"},{"name":"event_id","type":["null","string"]},
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},{"name":"visitor","type":["null","string"]},
        {"name":"what","type":"string"},{"name":"address","type":["null","string"]},{"name":"campaign","type":["null","string"]},
        {"name":"amount","type":["null","double"]}]}"#,
    ),
];

/// What is wrong with a click.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The record cannot be read.
    Bytes,
    /// It names a schema that nobody has; the app's only breaks off.
    Schema,
    NoVisitor,
    NoId,
    /// From here on it is an event, and the validator is not content.
    NoAddress,
    Address,
    Kind,
}

const WRONGS: [Wrong; 7] = [
    Wrong::Bytes,
    Wrong::Schema,
    Wrong::NoVisitor,
    Wrong::NoId,
    Wrong::NoAddress,
    Wrong::Address,
    Wrong::Kind,
];

impl Wrong {
    /// Why the record's letter is written.
    fn reason(self, is_avro: bool) -> &'static str {
        match self {
            Wrong::Bytes if is_avro => "malformed_avro",
            Wrong::Schema if is_avro => "unknown_schema",
            Wrong::Bytes | Wrong::Schema => "malformed_json",
            Wrong::NoVisitor | Wrong::NoId => "missing_field",
            Wrong::NoAddress => "rejected: missing_field",
            Wrong::Address => "rejected: bad_url",
            Wrong::Kind => "rejected: unknown_type",
        }
    }
}

#[derive(Clone, Debug)]
struct Click {
    id: String,
    user: String,
    ts: i64,
    kind: &'static str,
    address: Option<String>,
    campaign: Option<String>,
    amount: Option<f64>,
    wrong: Option<Wrong>,
}

/// A dead letter, by what names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Letter {
    /// Of a record that is no event, or that the validator rejected.
    /// Where it was, as its streams tell that.
    Record { place: String, reason: String },
    /// Of a session that the rule discarded.
    Session(Made),
}

/// All that is sent, and what is known of it.
pub(crate) struct Clicks {
    /// Topic by topic, partition by partition.
    parts: Vec<Vec<Vec<u8>>>,
    /// The clicks that are events and not rejected, once each, as JSON lines in the words of the rule.
    valid: Vec<u8>,
    pub(crate) events: u64,
    /// Of records.
    pub(crate) letters: Vec<Letter>,
}

/// How many visitors there are to so many events.
pub(crate) fn users(events: u64) -> u64 {
    200 + events / 25
}

impl Clicks {
    /// So many, from a seed, as these streams take them.
    pub(crate) fn new(seed: u64, events: u64, streams: &dyn Streams) -> Clicks {
        let parts = vec![Vec::new(); PARTITIONS.iter().sum()];
        let mut all = Clicks { parts, valid: Vec::new(), events: 0, letters: Vec::new() };
        let mut rng = Rng::new(seed);
        let clicks = made(&mut rng, events);
        clicks.iter().for_each(|click| all.expect(click));
        let mut arrivals = Vec::new();
        for click in &clicks {
            let by_app = rng.one_in(2);
            for copy in 0..1 + u64::from(rng.one_in(10)) {
                let by_app = by_app != (copy > 0 && rng.one_in(4));
                let at = click.ts + rng.below(DISORDER_MS as u64 + 1) as i64;
                arrivals.push((at, arrivals.len(), usize::from(by_app), click));
            }
        }
        arrivals.sort_by_key(|(at, n, ..)| (*at, *n));
        for (_, _, topic, click) in arrivals {
            let partition = rng.below(PARTITIONS[topic] as u64) as usize;
            let is_avro = streams.is_avro(topic);
            let record = if is_avro { as_avro(click, &mut rng) } else { as_json(click) };
            if let Some(wrong) = click.wrong {
                let offset = all.parts[at(topic, partition)].len() as u64;
                let place = streams.place(topic, partition, offset, &record);
                all.letters.push(Letter::Record { place, reason: wrong.reason(is_avro).to_owned() });
            }
            all.parts[at(topic, partition)].push(record);
        }
        all
    }

    /// What the rule has of a click.
    fn expect(&mut self, click: &Click) {
        if click.wrong.is_some() {
            return;
        }
        self.events += 1;
        let Click { id, user, ts, kind, campaign, amount, .. } = click;
        let line =
            json!({"id": id, "user": user, "ts": ts, "kind": kind, "campaign": campaign, "amount": amount});
        self.valid.extend(line.to_string().into_bytes());
        self.valid.push(b'\n');
    }

    /// Sends the `n`th of so many pieces, partition by partition.
    pub(crate) fn send(&self, streams: &dyn Streams, n: usize, of: usize) {
        for (at, part) in self.parts.iter().enumerate() {
            let (topic, partition) = place(at);
            streams.send(topic, partition, &part[part.len() * n / of..part.len() * (n + 1) / of]);
        }
    }

    /// Sends a last click to each partition, long after all others.
    pub(crate) fn send_last(&self, streams: &dyn Streams) {
        let month_ms = 30 * 24 * 3_600_000;
        for n in 0..self.parts.len() {
            let click = Click {
                id: format!("{LAST}{n}"),
                user: LAST.into(),
                ts: START_MS + month_ms,
                kind: "page_view",
                address: Some("/".into()),
                campaign: None,
                amount: None,
                wrong: None,
            };
            let (topic, partition) = place(n);
            let record = if streams.is_avro(topic) { avro_of(&click, None) } else { as_json(&click) };
            streams.send(topic, partition, &[record]);
        }
    }

    /// Records of all topics, with those that come again.
    pub(crate) fn records(&self) -> usize {
        self.parts.iter().map(Vec::len).sum()
    }

    /// The valid events, as the model reads them, and the bytes that it finds them in.
    pub(crate) fn log(&self) -> (Log, &[u8]) {
        let source = Source::file("all", "all", Format::Json, "user", "ts", Unit::Millis);
        let source = Source { id: Some("id".into()), ..source };
        // The gap is not what runs; the model's reader wants one.
        let log = model::read(&[(&source, "all", &self.valid)], &Gap::of_seconds(1, true));
        assert!(log.invalid.is_empty(), "{:?}", log.invalid.first());
        (log, &self.valid)
    }
}

/// Topic and partition of a part.
fn place(part: usize) -> (usize, usize) {
    if part < PARTITIONS[0] { (0, part) } else { (1, part - PARTITIONS[0]) }
}

fn at(topic: usize, partition: usize) -> usize {
    if topic == 0 { partition } else { PARTITIONS[0] + partition }
}

fn made(rng: &mut Rng, events: u64) -> Vec<Click> {
    let mut ts = START_MS;
    let mut make = |n: u64| {
        ts += rng.below(2 * STEP_MS + 1) as i64;
        let kind = match rng.below(20) {
            0..9 => "page_view",
            9..12 => "checkout",
            12 | 13 => "purchase",
            _ => "scroll",
        };
        let wrong = rng.one_in(WRONG_EVERY).then(|| WRONGS[rng.below(WRONGS.len() as u64) as usize]);
        let page = rng.below(5_000);
        Click {
            id: format!("e{n}"),
            user: format!("u{}", rng.zipf(users(events))),
            ts,
            kind: if wrong == Some(Wrong::Kind) { "hover" } else { kind },
            address: match wrong {
                Some(Wrong::NoAddress) => None,
                Some(Wrong::Address) => Some(format!("p {page}")),
                _ => Some(format!("/p/{page}")),
            },
            campaign: rng.one_in(6).then(|| format!("c{}", rng.below(4))),
            amount: (kind == "purchase" && !rng.one_in(4)).then(|| rng.below(30_000) as f64 / 100.0),
            wrong,
        }
    };
    (0..events).map(&mut make).collect()
}

fn as_json(click: &Click) -> Vec<u8> {
    let is_not = |wrong| click.wrong != Some(wrong);
    let mut line = format!(
        r#"{{"event":{{"type":"{}","id":{}}},"ts":{}"#,
        click.kind,
        if is_not(Wrong::NoId) { json!(click.id) } else { Value::Null },
        click.ts
    );
    if is_not(Wrong::NoVisitor) {
        let _ = write!(line, r#","user":{{"id":"{}"}}"#, click.user);
    }
    if let Some(address) = &click.address {
        let _ = write!(line, r#","page":"{address}""#);
    }
    if let Some(campaign) = &click.campaign {
        let _ = write!(line, r#","utm":{{"campaign":"{campaign}","medium":"mail"}}"#);
    }
    if let Some(amount) = click.amount {
        let _ = write!(line, r#","cart":{{"total":{amount:.2}}}"#);
    }
    if !matches!(click.wrong, Some(Wrong::Bytes | Wrong::Schema)) {
        line.push('}');
    }
    line.into_bytes()
}

fn as_avro(click: &Click, rng: &mut Rng) -> Vec<u8> {
    match click.wrong {
        Some(Wrong::Bytes) => framed(SCHEMAS[0].0, &[0xff; 3]),
        Some(Wrong::Schema) => {
            let [_, _, _, _, _, value @ ..] = &avro_of(click, None)[..] else { unreachable!() };
            framed(UNKNOWN, value)
        }
        _ => avro_of(click, rng.one_in(2).then_some("phone")),
    }
}

/// By the second schema, if there is a device to name.
fn avro_of(click: &Click, device: Option<&str>) -> Vec<u8> {
    let is_not = |wrong| click.wrong != Some(wrong);
    let value = [
        device.map(text).unwrap_or_default(),
        optional(is_not(Wrong::NoId).then(|| text(&click.id))),
        long(click.ts),
        optional(is_not(Wrong::NoVisitor).then(|| text(&click.user))),
        text(click.kind),
        optional(click.address.as_deref().map(text)),
        optional(click.campaign.as_deref().map(text)),
        optional(click.amount.map(|a| a.to_le_bytes().to_vec())),
    ];
    framed(SCHEMAS[usize::from(device.is_some())].0, &value.concat())
}

/// A letter as it stands in the topic; `place` says where its record was.
#[track_caller]
pub(crate) fn letter(line: &str, place: impl FnOnce(&Value) -> String) -> Letter {
    let l: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("a letter is no JSON: {e}: {line}"));
    let text = |name: &str| l[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}")).to_owned();
    let number = |name: &str| l[name].as_i64().unwrap_or_else(|| panic!("no {name} in {line}"));
    let reason = text("reason");
    if reason == "unknown_schema" {
        let named = format!("schema {UNKNOWN}");
        assert!(text("message").contains(&named), "no word of {named}: {line}");
    }
    if l["kind"] == "session" {
        let (start_ms, end_ms) = (number("start_ms"), number("end_ms"));
        let row =
            Row { key: text("key"), start_ms, end_ms, events: number("events") as u64, reason: Some(reason) };
        return Letter::Session(Made { row, fields: l["fields"].to_string() });
    }
    let reason = if l["stage"] == "validate" { format!("rejected: {reason}") } else { reason };
    Letter::Record { place: place(&l), reason }
}

/// How many letters of each reason, in words.
pub(crate) fn reasons<'a>(letters: impl IntoIterator<Item = &'a Letter>) -> String {
    let mut counts = BTreeMap::new();
    for letter in letters {
        let reason = match letter {
            Letter::Record { reason, .. } => reason.clone(),
            Letter::Session(made) => {
                format!("sessions: {}", made.row.reason.as_deref().unwrap_or_default())
            }
        };
        *counts.entry(reason).or_insert(0_u64) += 1;
    }
    counts.iter().map(|(reason, n)| format!("{reason} {n}")).collect::<Vec<_>>().join(", ")
}
