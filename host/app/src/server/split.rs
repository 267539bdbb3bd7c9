//! A request's body split into records: one JSON object, an array of them, or one a line.
//!
//! Only where records begin and end is decided here, and whether each is a JSON object of a size that is taken; what is
//! in them is the decoder's to judge, once they are in the ingest log.

use super::bounds::RECORDS_MAX;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;
use tidemill_connect::source::ingest_log::RECORD_BYTES_MAX;

/// What a record costs beside its bytes while it waits: its place in a list, and its own piece of memory.
const RECORD_OVERHEAD_BYTES: usize = 48;

/// A body's records, and those that are not taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    /// What is taken, in order.
    pub(crate) accepted: Vec<Vec<u8>>,
    /// What is not.
    pub(crate) rejected: Vec<Rejected>,
}

/// A record that is not taken, as the answer shows it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Rejected {
    /// Its place in the body, from 0.
    pub(crate) index: usize,
    /// Why.
    pub(crate) reason: &'static str,
}

impl Records {
    /// The memory that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.accepted.iter().map(|r| r.capacity() + RECORD_OVERHEAD_BYTES).sum()
    }
}

/// Why nothing of a body is taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unsplit {
    /// It has no records that could be told apart; with what to do about it.
    NoRecords(String),
    /// It has more than `RECORDS_MAX`.
    TooMany,
}

/// The first records of a JSON array, and one more if there are more. A long array of small things would take many times its
/// own size.
struct FirstOf<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for FirstOf<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<FirstOf<'a>, D::Error> {
        struct Few;
        impl<'de> Visitor<'de> for Few {
            type Value = FirstOf<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<FirstOf<'de>, A::Error> {
                let mut first = Vec::new();
                while first.len() <= RECORDS_MAX {
                    let Some(record) = all.next_element()? else { return Ok(FirstOf(first)) };
                    first.push(record);
                }
                // It is an array only if the rest is well-formed too.
                while all.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstOf(first))
            }
        }
        d.deserialize_seq(Few)
    }
}

/// Splits a body. `lines` says that the request calls it one record a line.
pub(crate) fn split(body: &[u8], lines: bool) -> Result<Records, Unsplit> {
    use Unsplit::NoRecords;
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii();
    let records: Vec<&[u8]> = match body.first() {
        None => {
            return Err(NoRecords(
                "the body is empty: send a JSON object, an array of them, or one a line".into(),
            ));
        }
        Some(b'[') if !lines => {
            let FirstOf(all) = serde_json::from_slice(body)
                .map_err(|e| NoRecords(format!("the body begins as a JSON array, but is none: {e}")))?;
            all.into_iter().map(|r| r.get().as_bytes()).collect()
        }
        Some(_) if !lines && is_json(body) => vec![body],
        Some(_) => {
            let all = body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty());
            let all: Vec<&[u8]> = all.take(RECORDS_MAX + 1).collect();
            // One object over several lines that is broken somewhere must not become as many bad records.
            if !lines && !all.first().is_some_and(|l| is_json(l)) {
                return Err(NoRecords("the body is neither JSON nor one JSON object a line".into()));
            }
            all
        }
    };
    if records.len() > RECORDS_MAX {
        return Err(Unsplit::TooMany);
    }
    let mut all = Records::default();
    for (index, record) in records.into_iter().enumerate() {
        match problem(record) {
            None => all.accepted.push(record.to_vec()),
            Some(reason) => all.rejected.push(Rejected { index, reason }),
        }
    }
    Ok(all)
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(text).is_ok()
}

fn problem(record: &[u8]) -> Option<&'static str> {
    if record.len() > RECORD_BYTES_MAX {
        Some("too_large")
    } else if !is_json(record) {
        Some("malformed_json")
    } else if record.first() != Some(&b'{') {
        Some("not_an_object")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str, lines: bool) -> (Vec<String>, Vec<(usize, &'static str)>) {
        let r = split(body.as_bytes(), lines).unwrap();
        let text = |r: &Vec<u8>| String::from_utf8(r.clone()).unwrap();
        (r.accepted.iter().map(text).collect(), r.rejected.iter().map(|r| (r.index, r.reason)).collect())
    }

    #[test]
    fn one_object_an_array_and_lines() {
        let one = |s: &str| (vec![s.to_string()], vec![]);
        assert_eq!(said(r#" {"a": 1} "#, false), one(r#"{"a": 1}"#));
        assert_eq!(said("{\n \"a\": 1\n}\n", false), one("{\n \"a\": 1\n}"));
        let two = (vec![r#"{"a":1}"#.to_string(), r#"{"b":[2]}"#.to_string()], vec![]);
        assert_eq!(said(r#"[{"a":1} , {"b":[2]}]"#, false), two);
        assert_eq!(said("{\"a\":1}\r\n\n{\"b\":[2]}\n", false), two);
        assert_eq!(said("\u{feff}{\"a\":1}\n{\"b\":[2]}", true), two);
        assert_eq!(said("[]", false), (vec![], vec![]));
    }

    #[test]
    fn what_is_no_event_is_named_by_its_place() {
        let (good, bad) = said(r#"[{"a":1}, 7, "x", null, {"b":2}, [1]]"#, false);
        assert_eq!(good.len(), 2);
        assert_eq!(bad, [1, 2, 3, 5].map(|n| (n, "not_an_object")));
        let (good, bad) = said("{\"a\":1}\n{\"a\":\n{\"b\":2}", false);
        assert_eq!((good.len(), bad), (2, vec![(1, "malformed_json")]));
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(RECORD_BYTES_MAX - 8));
        assert_eq!(said(&long, false).0.len(), 1, "at the limit");
        assert_eq!(said(&long.replacen('x', "xx", 1), false).1, [(0, "too_large")]);
        assert_eq!(said("[1]", true).1, [(0, "not_an_object")]);
    }

    #[test]
    fn what_cannot_be_split_says_so() {
        for body in ["", " \n", "[{\"a\":1}", "[{\"a\":1},]", "{\"a\":\n1", "hello", "<a/>"] {
            assert!(split(body.as_bytes(), false).is_err(), "{body}");
        }
        let many = format!("[{}]", vec!["{}"; RECORDS_MAX + 1].join(","));
        assert_eq!(split(many.as_bytes(), false), Err(Unsplit::TooMany));
        assert_eq!(split(vec!["{}"; RECORDS_MAX + 1].join("\n").as_bytes(), true), Err(Unsplit::TooMany));
        let broken = format!("{},", many.trim_end_matches(']'));
        assert!(matches!(split(broken.as_bytes(), false), Err(Unsplit::NoRecords(_))), "no array");
        assert_eq!(said(&vec!["{}"; RECORDS_MAX].join("\n"), true).0.len(), RECORDS_MAX);
    }
}
