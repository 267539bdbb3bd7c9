//! A request's body split into records: one JSON object, an array of them, or one a line.
//!
//! Only where records begin and end is decided here, and whether each is a JSON object of a size that is taken; what is
//! in them is the decoder's to judge, once they are in the ingest log.

use serde::Serialize;
use serde_json::value::RawValue;
use tidemill_connect::source::ingest_log::RECORD_BYTES_MAX;

/// Records of one request: enough for a batch of any client library, few enough that one request delays no other.
pub(crate) const RECORDS_MAX: usize = 10_000;

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

/// The body has no records that could be told apart; with what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoRecords(pub(crate) String);

/// Splits a body. `lines` says that the request calls it one record a line.
pub(crate) fn split(body: &[u8], lines: bool) -> Result<Records, NoRecords> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii();
    let records: Vec<&[u8]> = match body.first() {
        None => {
            return Err(NoRecords(
                "the body is empty: send a JSON object, an array of them, or one a line".into(),
            ));
        }
        Some(b'[') if !lines => {
            let all: Vec<&RawValue> = serde_json::from_slice(body)
                .map_err(|e| NoRecords(format!("the body begins as a JSON array, but is none: {e}")))?;
            all.into_iter().map(|r| r.get().as_bytes()).collect()
        }
        Some(_) if !lines && is_json(body) => vec![body],
        Some(_) => {
            let all: Vec<&[u8]> =
                body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty()).collect();
            // One object over several lines that is broken somewhere must not become as many bad records.
            if !lines && !all.first().is_some_and(|l| is_json(l)) {
                return Err(NoRecords("the body is neither JSON nor one JSON object a line".into()));
            }
            all
        }
    };
    if records.len() > RECORDS_MAX {
        return Err(NoRecords(format!(
            "{} records in one request: send at most {RECORDS_MAX}",
            records.len()
        )));
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
        assert!(split(many.as_bytes(), false).unwrap_err().0.contains("at most 10000"));
        assert_eq!(said(&vec!["{}"; RECORDS_MAX].join("\n"), true).0.len(), RECORDS_MAX);
    }
}
