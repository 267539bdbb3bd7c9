//! What a row says, as BigQuery takes it: fields of Protobuf, each of them always written, since what is left out is null.
//!
//! BigQuery has no instants beyond years 1 to 9999 and no JSON that cannot be read. Neither may cost a row: an instant becomes the
//! first or the last one, JSON that cannot be read a JSON string of the same text.

use super::super::content::Item;
use super::super::owned::int;
use super::super::{bounds, line};
use super::table::{ColumnKind, OwnColumn};
use prost::encoding::{bool, double, int64, string};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use tidemill_engine::outbox::{Revision, SessionRow};
use tidemill_engine::time::EventTime;

/// Years 1 to 9999, in microseconds.
const CALENDAR_US: (i64, i64) = (-62_135_596_800_000_000, 253_402_300_799_999_999);
/// What a row takes within a request beside its bytes, at most.
const FRAME_BYTES: usize = 6;
/// Every row is one: a retraction too, since a deleted key is remembered for some days only.
const UPSERT: &str = "UPSERT";

impl Item<'_> {
    /// What two rows of one request must not have in common.
    fn key(&self) -> ([u8; 16], i64) {
        match self {
            Item::Session(_, row) => (row.id, 0),
            Item::Letter(_, number, _) => ([0; 16], *number),
        }
    }
}

/// Writes rows of one table.
pub(super) struct Writer<'a> {
    pub(super) pipeline: &'a str,
    pub(super) own: &'a [OwnColumn],
}

/// Fields of a row, numbered as they come.
struct Fields {
    number: u32,
    out: Vec<u8>,
}

impl Fields {
    fn text(&mut self, text: &str) {
        self.number += 1;
        // Only a `String` can be given.
        string::encode(self.number, &text.to_owned(), &mut self.out);
    }
    fn whole(&mut self, n: i64) {
        self.number += 1;
        int64::encode(self.number, &n, &mut self.out);
    }
    fn null(&mut self) {
        self.number += 1;
    }
    fn own(&mut self, kind: ColumnKind, value: Option<&Value>) {
        self.number += 1;
        let (n, out) = (self.number, &mut self.out);
        match (kind, value) {
            (ColumnKind::Text, Some(Value::String(text))) => string::encode(n, text, out),
            (ColumnKind::Truth, Some(Value::Bool(b))) => bool::encode(n, b, out),
            (ColumnKind::Whole, Some(Value::Number(v))) => {
                if let Some(v) = v.as_i64() {
                    int64::encode(n, &v, out);
                }
            }
            (ColumnKind::Float, Some(Value::Number(v))) => {
                if let Some(v) = v.as_f64() {
                    double::encode(n, &v, out);
                }
            }
            _ => {}
        }
    }
    fn change(mut self, revision: Revision) -> Vec<u8> {
        self.text(UPSERT);
        self.text(&sequence(revision));
        self.out
    }
}

/// Incarnation and epoch: always two sections, compared as numbers from the left, as revisions are.
fn sequence(revision: Revision) -> String {
    format!("{:x}/{:x}", revision.incarnation, revision.epoch)
}

impl Writer<'_> {
    fn row(&self, item: &Item<'_>) -> Vec<u8> {
        match item {
            Item::Session(revision, row) => self.session(*revision, row),
            Item::Letter(revision, number, letter) => {
                let mut fields = Fields { number: 0, out: Vec::with_capacity(letter.len() + 64) };
                fields.text(self.pipeline);
                fields.whole(int(revision.incarnation));
                fields.whole(int(revision.epoch));
                fields.whole(*number);
                fields.text(&json(&String::from_utf8_lossy(letter)));
                fields.change(*revision)
            }
        }
    }

    fn session(&self, revision: Revision, row: &SessionRow<'_>) -> Vec<u8> {
        let room = 200 + self.pipeline.len() + row.key.len() + row.fields.len();
        let mut fields = Fields { number: 0, out: Vec::with_capacity(room) };
        let id = line::hex_id(row.id);
        // Hex digits are always text.
        fields.text(std::str::from_utf8(&id).unwrap_or_default());
        fields.text(self.pipeline);
        fields.text(row.key);
        fields.whole(instant(row.start));
        fields.whole(instant(row.end));
        fields.whole(int(row.events));
        fields.text(row.stage.name());
        fields.whole(int(revision.incarnation));
        fields.whole(int(revision.epoch));
        match row.reason {
            Some(reason) => fields.text(reason),
            None => fields.null(),
        }
        fields.text(row.plugin);
        fields.text(&json(row.fields));
        if !self.own.is_empty() {
            let value: Value = serde_json::from_str(row.fields).unwrap_or_default();
            for column in self.own {
                fields.own(column.kind, value.get(&column.name));
            }
        }
        fields.change(revision)
    }
}

fn instant(time: EventTime) -> i64 {
    time.ms().saturating_mul(1_000).clamp(CALENDAR_US.0, CALENDAR_US.1)
}

/// JSON that can be read. Its text stays as it is wherever it can, so that numbers keep their digits.
fn json(text: &str) -> Cow<'_, str> {
    if text.trim_ascii().is_empty() {
        return "{}".into();
    }
    match serde_json::from_str::<Value>(text) {
        Ok(_) => text.into(),
        Err(_) => Value::from(text).to_string().into(),
    }
}

/// What goes into one request.
#[derive(Default)]
pub(super) struct Batch<'a> {
    pub(super) items: Vec<Item<'a>>,
    /// Their rows, until they are sent.
    pub(super) rows: Vec<Vec<u8>>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn push(&mut self, item: Item<'a>, row: Vec<u8>) {
        self.bytes += row.len() + FRAME_BYTES;
        self.items.push(item);
        self.rows.push(row);
    }
}

/// Takes those with these numbers out: the rest, and what is bad.
pub(super) fn part<'a>(items: Vec<Item<'a>>, bad: &[(usize, String)]) -> (Vec<Item<'a>>, Vec<Refused<'a>>) {
    let bad: HashMap<usize, &String> = bad.iter().map(|(number, why)| (*number, why)).collect();
    let (mut rest, mut refused) = (Vec::new(), Vec::new());
    for (number, item) in items.into_iter().enumerate() {
        match bad.get(&number) {
            Some(why) => refused.push(Refused { item, why: (*why).clone() }),
            None => rest.push(item),
        }
    }
    (rest, refused)
}

/// A row that will never be taken.
pub(super) struct Refused<'a> {
    pub(super) item: Item<'a>,
    pub(super) why: String,
}

impl Refused<'_> {
    /// As a dead letter; none if it is one itself.
    pub(super) fn letter(&self, out: &mut Vec<u8>) -> bool {
        self.item.refused(&format!("BigQuery has refused the row: {}", self.why), out)
    }
}

/// Cuts the rows of an epoch into requests: each of bounded size, and no key twice in one.
pub(super) struct Batches<'a, I> {
    items: I,
    writer: Writer<'a>,
    /// The first of the next request.
    next: Option<(Item<'a>, Vec<u8>)>,
    /// Rows that no request can hold.
    pub(super) too_large: Vec<Refused<'a>>,
}

impl<'a, I: Iterator<Item = Item<'a>>> Batches<'a, I> {
    pub(super) fn new(items: I, writer: Writer<'a>) -> Batches<'a, I> {
        Batches { items, writer, next: None, too_large: Vec::new() }
    }

    /// The same items again, of which fewer are left.
    pub(super) fn anew(&self, items: Vec<Item<'a>>) -> Batch<'a> {
        let mut batch = Batch::default();
        for item in items {
            let row = self.writer.row(&item);
            batch.push(item, row);
        }
        batch
    }

    pub(super) fn next(&mut self) -> Option<Batch<'a>> {
        let mut batch = Batch::default();
        let mut keys = HashSet::new();
        loop {
            let next = self.next.take().or_else(|| {
                let item = self.items.next()?;
                Some((item, self.writer.row(&item)))
            });
            let Some((item, row)) = next else { break };
            if row.len() > bounds::BIGQUERY_ROW_BYTES_MAX {
                let why = format!(
                    "it has {} bytes, and a request takes {}",
                    row.len(),
                    bounds::BIGQUERY_ROW_BYTES_MAX
                );
                self.too_large.push(Refused { item, why });
                continue;
            }
            let is_full = batch.bytes + row.len() > bounds::BYTES_AT_ONCE
                || batch.rows.len() >= bounds::ROWS_AT_ONCE
                || keys.contains(&item.key());
            if is_full && !batch.rows.is_empty() {
                self.next = Some((item, row));
                break;
            }
            keys.insert(item.key());
            batch.push(item, row);
        }
        (!batch.rows.is_empty()).then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::content::row;
    use super::*;

    const REVISION: Revision = Revision { incarnation: 10, epoch: 255 };

    fn batches(rows: &[SessionRow<'_>]) -> (Vec<usize>, usize) {
        let items = rows.iter().map(|r| Item::Session(REVISION, *r));
        let mut batches = Batches::new(items, Writer { pipeline: "p", own: &[] });
        let sizes = std::iter::from_fn(|| batches.next()).map(|b| b.rows.len()).collect();
        (sizes, batches.too_large.len())
    }

    #[test]
    fn sequence_numbers_are_two_sections_in_hexadecimal() {
        assert_eq!(sequence(REVISION), "a/ff");
        assert_eq!(sequence(Revision { incarnation: u64::MAX, epoch: 0 }), "ffffffffffffffff/0");
    }

    #[test]
    fn a_key_stands_once_in_a_request() {
        let (a, b) = (row(1, "{}"), row(2, "{}"));
        assert_eq!(batches(&[a, b, a, b, b]), (vec![2, 2, 1], 0));
        assert_eq!(batches(&[]), (vec![], 0));
    }

    #[test]
    fn requests_are_bounded_and_a_row_that_fits_none_is_refused() {
        let text = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes));
        let half = text(bounds::BYTES_AT_ONCE / 2 - 1_000);
        let over = text(bounds::BYTES_AT_ONCE + 1_000);
        let beyond = text(bounds::BIGQUERY_ROW_BYTES_MAX);
        let rows =
            [row(1, &half), row(2, &half), row(3, &half), row(4, &over), row(5, &beyond), row(6, &half)];
        assert_eq!(batches(&rows), (vec![2, 1, 1, 1], 1));
    }

    #[test]
    fn nothing_that_bigquery_cannot_hold_is_left() {
        assert_eq!(instant(EventTime::from_ms(1)), 1_000);
        assert_eq!(instant(EventTime::from_ms(i64::MAX)), CALENDAR_US.1);
        assert_eq!(instant(EventTime::from_ms(i64::MIN)), CALENDAR_US.0);
        for (given, kept) in [
            (r#"{"a": 1.50}"#, r#"{"a": 1.50}"#),
            (r#"{"a":"\ud800"}"#, r#""{\"a\":\"\\ud800\"}""#),
            ("no json", r#""no json""#),
            (" ", "{}"),
        ] {
            assert_eq!(json(given), kept);
        }
    }

    #[test]
    fn bad_rows_are_taken_out_by_number_and_become_letters() {
        let rows = [row(1, "{}"), row(2, "{}"), row(3, "{}")];
        let items = rows.iter().map(|r| Item::Session(REVISION, *r));
        let mut all = Batches::new(items, Writer { pipeline: "p", own: &[] });
        let first = all.next().unwrap();
        let (rest, refused) = part(first.items, &[(1, "no".into())]);
        assert_eq!((rest.len(), refused.len()), (2, 1));
        let again = all.anew(rest);
        assert_eq!(again.rows, [first.rows[0].clone(), first.rows[2].clone()]);
        let mut out = Vec::new();
        assert!(refused[0].letter(&mut out));
        let letter: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (&letter["reason"], &letter["stage"]),
            (&Value::from("row_refused"), &Value::from("sink"))
        );
        assert_eq!(letter["session_id"], "02".repeat(16));
        assert_eq!(letter["message"], "BigQuery has refused the row: no");
        let own = Refused { item: Item::Letter(REVISION, 0, b"{}"), why: String::new() };
        assert!(!own.letter(&mut out), "a letter has no letter");
    }
}
