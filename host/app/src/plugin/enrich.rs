//! Enrichers: plugins that add fields to sessions from what the host looks up for them.
//!
//! Two calls a session: what it wants to know, and, when that was looked up, what it makes of it. A session at which the
//! plugin fails is found (by the progress word, else by halving) and answered with the fault; the others are asked again.

use super::CALL_DEADLINE;
use super::budget::{Identity, Warden};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::time::Instant;
use tidemill_connect::lookup::{Answer, bounds};
use tidemill_contract::frame::{Frame, FrameError, FrameWriter, Kind};
use tidemill_contract::rows::{self, answer};
use tidemill_engine::bounds::FIELDS_BYTES;
use tidemill_engine::outbox::SessionRow;
use tidemill_sandbox::{Call, Instance};

/// Sessions in one frame.
const FRAME_SESSIONS: usize = 256;
/// Bytes of the texts and rows in one frame, unless one session alone has more: far below an instance's memory.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Lookups of one session by one enricher: its key, and some of its fields.
pub(crate) const REQUESTS_MAX: usize = 16;

/// A session as an enricher sees it.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    /// The row that the session rule gave.
    pub(crate) row: SessionRow<'a>,
    /// Its fields, with those that earlier enrichers added.
    pub(crate) fields: &'a str,
    /// What was looked up for it: the plugin's number for the lookup, the key, the answer.
    pub(crate) answers: Vec<(u32, &'a str, &'a Answer)>,
}

/// A lookup that an enricher wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The plugin's number for the lookup.
    pub(crate) lookup: u32,
    /// What to look up.
    pub(crate) key: String,
}

/// What an enricher makes of a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its fields, merged into those that it had.
    Fields(String),
    /// One of the plugin's reasons.
    Rejected(String),
    /// The plugin failed at it.
    Fault(String),
}

/// An enricher, for one thread.
pub(crate) struct Enricher {
    instance: Instance,
    warden: Warden,
    /// The host's lookup for each of the plugin's.
    lookups: Vec<usize>,
    reasons: Vec<String>,
    writer: FrameWriter,
    sessions: Vec<rows::Session>,
    answers: Vec<rows::Answer>,
    bytes: Vec<u8>,
}

impl Enricher {
    /// The enricher of an instance; `lookups` says which of the host's lookups answers each of the plugin's.
    pub(crate) fn new(instance: Instance, warden: Warden, lookups: Vec<usize>) -> Enricher {
        let reasons = instance.plugin().component().description().reasons.clone();
        Enricher {
            instance,
            warden,
            lookups,
            reasons,
            writer: FrameWriter::default(),
            sessions: Vec::new(),
            answers: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Which plugin it is.
    pub(crate) fn who(&self) -> &Identity {
        &self.warden.who
    }

    /// The host's lookup for one of the plugin's.
    pub(crate) fn lookup(&self, number: u32) -> Option<usize> {
        self.lookups.get(number as usize).copied()
    }

    /// What the enricher wants to know of each session, or its fault there.
    ///
    /// # Errors
    /// If it cannot be called at all, or the fault budget is spent.
    pub(crate) fn requests(
        &mut self,
        subjects: &[Subject<'_>],
    ) -> Result<Vec<Result<Vec<Request>, String>>, String> {
        let mut out = Vec::with_capacity(subjects.len());
        self.all(
            Call::Requests,
            subjects,
            &mut out,
            |e, words, part, out| {
                let answers = read_requests(words, part.len(), e.lookups.len())?;
                out.extend(answers.into_iter().map(Ok));
                Ok(())
            },
            Err,
        )?;
        Ok(out)
    }

    /// What the enricher makes of each session.
    ///
    /// # Errors
    /// If it cannot be called at all, or the fault budget is spent.
    pub(crate) fn apply(&mut self, subjects: &[Subject<'_>]) -> Result<Vec<Verdict>, String> {
        let mut out = Vec::with_capacity(subjects.len());
        self.all(
            Call::Apply,
            subjects,
            &mut out,
            |e, words, part, out| {
                let fields: Vec<&str> = part.iter().map(|s| s.fields).collect();
                read_verdicts(words, &fields, &e.reasons).map(|verdicts| out.extend(verdicts))
            },
            Verdict::Fault,
        )?;
        Ok(out)
    }

    /// Makes a call for all sessions, in frames of bounded size.
    fn all<'s, T>(
        &mut self,
        call: Call,
        subjects: &[Subject<'s>],
        out: &mut Vec<T>,
        read: impl Fn(&Enricher, &[u64], &[Subject<'s>], &mut Vec<T>) -> Result<(), String> + Copy,
        fault: impl Fn(String) -> T + Copy,
    ) -> Result<(), String> {
        let (mut start, mut bytes) = (0, 0);
        for (i, s) in subjects.iter().enumerate() {
            let size = size(s);
            if i > start && (bytes + size > FRAME_BYTES_MAX || i - start >= FRAME_SESSIONS) {
                self.some(call, subjects, start..i, out, read, fault)?;
                (start, bytes) = (i, 0);
            }
            bytes += size;
        }
        let answered = self.some(call, subjects, start..subjects.len(), out, read, fault);
        self.warden.pass_on_log(&mut self.instance);
        answered
    }

    /// Makes a call for some sessions; where it fails, the one at fault is answered with the fault.
    fn some<'s, T>(
        &mut self,
        call: Call,
        subjects: &[Subject<'s>],
        which: Range<usize>,
        out: &mut Vec<T>,
        read: impl Fn(&Enricher, &[u64], &[Subject<'s>], &mut Vec<T>) -> Result<(), String> + Copy,
        fault: impl Fn(String) -> T + Copy,
    ) -> Result<(), String> {
        if which.is_empty() {
            return Ok(());
        }
        let part = &subjects[which.clone()];
        self.write(part);
        let begun = Instant::now();
        let answer = self.instance.call(call, self.writer.end(), CALL_DEADLINE).map(<[u64]>::to_vec);
        self.warden.meter.called(begun);
        let (message, row) = match answer {
            Ok(words) => match read(self, &words, part, out) {
                Ok(()) => return Ok(()),
                Err(why) => (why, None),
            },
            Err(f) if self.warden.failed(&f) => return Err(f.to_string()),
            Err(f) => (f.to_string(), f.progress.map(|p| p.row as usize).filter(|r| *r < part.len())),
        };
        if part.len() == 1 {
            if !self.warden.found(&message) {
                return Err(message);
            }
            out.push(fault(message));
            return Ok(());
        }
        let at = which.start;
        let cuts = match row {
            Some(row) => [at, at + row, at + row + 1, which.end],
            None => [at, at + part.len() / 2, which.end, which.end],
        };
        cuts.windows(2).try_for_each(|w| self.some(call, subjects, w[0]..w[1], out, read, fault))
    }

    fn write(&mut self, part: &[Subject<'_>]) {
        self.sessions.clear();
        self.answers.clear();
        self.bytes.clear();
        let bytes = &mut self.bytes;
        let mut put = |text: &str| {
            let at = bytes.len();
            bytes.extend_from_slice(text.as_bytes());
            rows::Range::between(at, bytes.len())
        };
        for s in part {
            let first = self.answers.len();
            for (lookup, key, answer) in &s.answers {
                let (status, row) = match answer {
                    Answer::Found(row) => (answer::FOUND, put(row)),
                    Answer::NotFound => (answer::NOT_FOUND, rows::Range::default()),
                    Answer::Failed(_) => (answer::FAILED, rows::Range::default()),
                };
                self.answers.push(rows::Answer { lookup: *lookup, status, key: put(key), row });
            }
            self.sessions.push(rows::Session {
                key: put(s.row.key),
                start: s.row.start.ms(),
                end: s.row.end.ms(),
                count: s.row.events,
                reason: put(s.row.reason.unwrap_or_default()),
                fields: put(s.fields),
                answers: rows::Range::between(first, self.answers.len()),
            });
        }
        self.writer.begin(Kind::Sessions);
        self.writer.section(&self.sessions);
        self.writer.section(&self.answers);
        self.writer.section(&self.bytes);
    }
}

/// Takes the frame `requests` for so many sessions, from a plugin with so many lookups.
///
/// # Errors
/// If it is not such a frame, or asks for what may not be asked.
pub(super) fn read_requests(
    words: &[u64],
    sessions: usize,
    lookups: usize,
) -> Result<Vec<Vec<Request>>, String> {
    let malformed = |e: FrameError| format!("the answer is no frame of requests: {e}");
    let frame = Frame::read(words, Kind::Requests).map_err(malformed)?;
    let requests: &[rows::Request] = frame.rows(0).map_err(malformed)?;
    let bytes: &[u8] = frame.rows(1).map_err(malformed)?;
    let mut out: Vec<Vec<Request>> = (0..sessions).map(|_| Vec::new()).collect();
    let mut last = 0;
    for r in requests {
        if r.session < last {
            return Err("requests are not in the order of their sessions".into());
        }
        last = r.session;
        let list = out.get_mut(r.session as usize).ok_or("a request is of no session in the frame")?;
        if r.lookup as usize >= lookups {
            return Err("a request names no lookup that the plugin declared".into());
        }
        let key = r.key.of(bytes).map_err(malformed)?;
        let key = std::str::from_utf8(key).map_err(|_| "a key is not UTF-8")?;
        if key.len() > bounds::KEY_BYTES_MAX {
            return Err(format!("a key has more than {} bytes", bounds::KEY_BYTES_MAX));
        }
        if list.len() == REQUESTS_MAX {
            return Err(format!("more than {REQUESTS_MAX} lookups for one session"));
        }
        // Asking for nothing is no lookup.
        if !key.is_empty() {
            list.push(Request { lookup: r.lookup, key: key.to_owned() });
        }
    }
    Ok(out)
}

/// Takes the frame `enriched` for sessions with these fields, from a plugin with these reasons.
///
/// # Errors
/// If it is not such a frame, or says what cannot be.
pub(super) fn read_verdicts(
    words: &[u64],
    fields: &[&str],
    reasons: &[String],
) -> Result<Vec<Verdict>, String> {
    let malformed = |e: FrameError| format!("the answer is no frame of fields: {e}");
    let frame = Frame::read(words, Kind::Enriched).map_err(malformed)?;
    let enriched: &[rows::Enriched] = frame.rows(0).map_err(malformed)?;
    let _: &[rows::Count] = frame.rows(1).map_err(malformed)?;
    let bytes: &[u8] = frame.rows(2).map_err(malformed)?;
    if enriched.len() != fields.len() {
        return Err(malformed(FrameError::Section(0)));
    }
    let one = |(e, old): (&rows::Enriched, &&str)| match e.code {
        0 => {
            let new = e.fields.of(bytes).map_err(malformed)?;
            let new = std::str::from_utf8(new).map_err(|_| "fields are not UTF-8")?;
            merge(old, new).map(Verdict::Fields)
        }
        code => usize::try_from(code - 1)
            .ok()
            .and_then(|n| reasons.get(n))
            .map(|reason| Verdict::Rejected(reason.clone()))
            .ok_or_else(|| "a session is rejected for no reason that the plugin declared".into()),
    };
    enriched.iter().zip(fields).map(one).collect()
}

fn size(s: &Subject<'_>) -> usize {
    let answers = s.answers.iter().map(|(_, key, answer)| match answer {
        Answer::Found(row) => key.len() + row.len(),
        _ => key.len(),
    });
    s.row.key.len() + s.fields.len() + answers.sum::<usize>()
}

/// One JSON object over another: members keep their order and their text; one that is in both has the new value.
///
/// # Errors
/// If either is no object, or the result is too large for a row.
pub(crate) fn merge(old: &str, new: &str) -> Result<String, String> {
    if new.is_empty() || new == "{}" {
        return Ok(old.to_owned());
    }
    let too_large = |bytes| format!("fields of {bytes} bytes, where {FIELDS_BYTES} are allowed");
    // Before they are read: that takes memory.
    if new.len() > FIELDS_BYTES {
        return Err(too_large(new.len()));
    }
    let read = |text| -> Result<Members<'_>, String> {
        let text = if str::is_empty(text) { "{}" } else { text };
        serde_json::from_str(text).map_err(|e| format!("fields are no JSON object: {e}"))
    };
    let (mut all, new) = (read(old)?.0, read(new)?.0);
    let mut places: HashMap<String, usize> = HashMap::with_capacity(all.len() + new.len());
    for (n, (name, _)) in all.iter().enumerate() {
        places.entry(name.clone()).or_insert(n);
    }
    for (name, value) in new {
        if let Some(member) = places.get(&name).and_then(|n| all.get_mut(*n)) {
            member.1 = value;
        } else {
            places.insert(name.clone(), all.len());
            all.push((name, value));
        }
    }
    let mut out = String::from("{");
    for (name, value) in &all {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(name.as_str()).to_string());
        out.push(':');
        out.push_str(value.get());
    }
    out.push('}');
    if out.len() > FIELDS_BYTES {
        return Err(too_large(out.len()));
    }
    Ok(out)
}

/// The members of an object in order, values as they stand.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        d.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_order_and_text_and_the_new_value_holds() {
        let table = [
            ("{}", "", "{}"),
            ("", "{\"a\":1}", "{\"a\":1}"),
            (
                "{\"b\":1.50,\"a\":{\"x\" : [1]}}",
                "{\"c\":null}",
                "{\"b\":1.50,\"a\":{\"x\" : [1]},\"c\":null}",
            ),
            ("{\"b\":1,\"a\":2}", "{\"b\":\"\\u00fc\",\"z\":3}", "{\"b\":\"\\u00fc\",\"a\":2,\"z\":3}"),
            ("{\"\\u0061\\\"\":1}", "{\"a\\\"\":2}", "{\"a\\\"\":2}"),
            (
                "{\"n\":123456789012345678901234567890}",
                "{\"m\":1}",
                "{\"n\":123456789012345678901234567890,\"m\":1}",
            ),
        ];
        for (old, new, want) in table {
            assert_eq!(merge(old, new).as_deref(), Ok(want));
        }
        assert!(merge("{}", "[1]").unwrap_err().contains("no JSON object"));
        assert!(merge("{}", "{\"a\":1}x").is_err());
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(FIELDS_BYTES));
        assert!(merge("{}", &large).unwrap_err().contains("are allowed"));
    }
}
