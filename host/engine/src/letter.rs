//! Dead letters: whatever was not used, with the reason, as one JSON line each.

use crate::bounds::LETTER_RAW_BYTES;
use crate::event::Position;
use crate::outbox::{Revision, SessionRow};
use base64::Engine as _;
use serde::Serialize;
use std::borrow::Cow;

/// A record that was not used.
#[derive(Clone, Debug, Default)]
pub struct RecordLetter<'a> {
    /// Why, as a word: `malformed_json`, `missing_field`, `late`, …
    pub reason: &'a str,
    /// Where: `decode`, `validate`, `time`, `fold`.
    pub stage: &'a str,
    /// The source's name.
    pub source: &'a str,
    /// The partition's name (a path).
    pub partition: &'a str,
    /// Where the record stands.
    pub position: Option<Position>,
    /// Why, for a reader.
    pub message: &'a str,
    /// The fields concerned.
    pub fields: &'a [&'a str],
    /// The key, as rows show it.
    pub key: Option<&'a str>,
    /// Event time, ms.
    pub time_ms: Option<i64>,
    /// The event id, where it is not the position.
    pub id: Option<&'a str>,
    /// `name@version` of the plugin or rule that did not take it.
    pub plugin: Option<&'a str>,
    /// SHA-256 of that plugin's component, in hex.
    pub digest: Option<&'a str>,
    /// Declared fields that are there, where the record itself is no longer at hand.
    pub event: &'a [(&'a str, Cow<'a, str>)],
    /// The record.
    pub raw: Option<&'a [u8]>,
    /// Its length in bytes, where `raw` is only its beginning; 0 where that is all of it.
    pub raw_bytes: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    reason: &'a str,
    stage: &'a str,
    source: &'a str,
    partition: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Position>,
    message: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    fields: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "as_map")]
    event: &'a [(&'a str, Cow<'a, str>)],
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_bytes: Option<u64>,
}

impl RecordLetter<'_> {
    /// Appends the letter as a JSON line. Bytes that are not UTF-8 go as `raw_base64`; a record beyond
    /// [`LETTER_RAW_BYTES`] is cut and its full size given as `raw_bytes`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let kept = self.raw.map(|r| &r[..r.len().min(LETTER_RAW_BYTES)]);
        let text = kept.map(std::str::from_utf8);
        let line = Line {
            kind: "record",
            reason: self.reason,
            stage: self.stage,
            source: self.source,
            partition: self.partition,
            position: self.position,
            message: self.message,
            fields: self.fields,
            key: self.key,
            time_ms: self.time_ms,
            id: self.id,
            plugin: self.plugin,
            digest: self.digest,
            event: self.event,
            raw: text.and_then(Result::ok),
            raw_base64: kept.filter(|_| text.is_some_and(|t| t.is_err())).map(base64),
            raw_bytes: self
                .raw
                .map(|r| self.raw_bytes.max(r.len() as u64))
                .filter(|n| kept.is_some_and(|k| *n > k.len() as u64)),
        };
        push_line(&line, out);
    }
}

/// A session that the rule discarded (SEMANTICS 18).
#[derive(Clone, Debug)]
pub struct SessionLetter<'a> {
    /// Why: one of the rule's codes.
    pub reason: &'a str,
    /// The id that its row would have had.
    pub session_id: &'a str,
    /// The key, as rows show it.
    pub key: &'a str,
    /// Time of the first event, ms.
    pub start_ms: i64,
    /// Time of the last event, ms.
    pub end_ms: i64,
    /// Number of events.
    pub events: u64,
    /// Where the first event's record stands.
    pub first: Position,
    /// Where the last event's record stands.
    pub last: Position,
    /// `name@version` of the rule.
    pub plugin: &'a str,
    /// SHA-256 of its component, in hex; none for what is built in.
    pub digest: Option<&'a str>,
    /// The session's fields, a JSON object.
    pub fields: &'a str,
}

#[derive(Serialize)]
struct SessionLine<'a> {
    kind: &'static str,
    reason: &'a str,
    stage: &'static str,
    message: &'static str,
    session_id: &'a str,
    key: &'a str,
    start_ms: i64,
    end_ms: i64,
    events: u64,
    first: Position,
    last: Position,
    plugin: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    fields: Option<&'a serde_json::value::RawValue>,
}

impl SessionLetter<'_> {
    /// Appends the letter as a JSON line.
    pub fn write(&self, out: &mut Vec<u8>) {
        let line = SessionLine {
            kind: "session",
            reason: self.reason,
            stage: "fold",
            message: "the rule discarded the session",
            session_id: self.session_id,
            key: self.key,
            start_ms: self.start_ms,
            end_ms: self.end_ms,
            events: self.events,
            first: self.first,
            last: self.last,
            plugin: self.plugin,
            digest: self.digest,
            fields: serde_json::from_str(self.fields).ok(),
        };
        push_line(&line, out);
    }
}

/// A revision that came to nothing between commit and delivery (SEMANTICS 27).
#[derive(Clone, Debug)]
pub struct RevisionLetter<'a> {
    /// Why: `lookup_failed`, `plugin_fault`, or one of the enricher's reasons; `row_refused`.
    pub reason: &'a str,
    /// Where: `enrich` or `sink`.
    pub stage: &'static str,
    /// For a reader.
    pub message: &'a str,
    /// `name@version` and component's digest of the enricher whose turn it was.
    pub enricher: Option<(&'a str, &'a str)>,
    /// Which revision it is.
    pub revision: Revision,
    /// What would have been sent.
    pub row: SessionRow<'a>,
}

#[derive(Serialize)]
struct RevisionLine<'a> {
    kind: &'static str,
    reason: &'a str,
    stage: &'static str,
    message: &'a str,
    session_id: &'a str,
    key: &'a str,
    start_ms: i64,
    end_ms: i64,
    events: u64,
    session_stage: &'static str,
    session_reason: Option<&'a str>,
    incarnation: u64,
    epoch: u64,
    plugin: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    enricher: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    fields: Option<&'a serde_json::value::RawValue>,
}

impl RevisionLetter<'_> {
    /// Appends the letter as a JSON line.
    pub fn write(&self, out: &mut Vec<u8>) {
        let row = &self.row;
        let line = RevisionLine {
            kind: "session",
            reason: self.reason,
            stage: self.stage,
            message: self.message,
            session_id: &crate::outbox::hex(&row.id),
            key: row.key,
            start_ms: row.start.ms(),
            end_ms: row.end.ms(),
            events: row.events,
            session_stage: row.stage.name(),
            session_reason: row.reason,
            incarnation: self.revision.incarnation,
            epoch: self.revision.epoch,
            plugin: row.plugin,
            enricher: self.enricher.map(|e| e.0),
            digest: self.enricher.map(|e| e.1),
            fields: serde_json::from_str(row.fields).ok(),
        };
        push_line(&line, out);
    }
}

fn push_line(line: &impl Serialize, out: &mut Vec<u8>) {
    // Writing plain data into memory has no error to report.
    if serde_json::to_writer(&mut *out, line).is_ok() {
        out.push(b'\n');
    }
}

fn as_map<S: serde::Serializer>(event: &[(&str, Cow<'_, str>)], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(event.iter().map(|(name, value)| (name, value)))
}

fn base64(b: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_are_text_or_base64() {
        let mut out = Vec::new();
        RecordLetter { reason: "late", raw: Some(b"a\"b"), ..Default::default() }.write(&mut out);
        RecordLetter { reason: "late", raw: Some(b"\xff\x00"), ..Default::default() }.write(&mut out);
        let lines: Vec<serde_json::Value> = out
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        assert_eq!(lines[0]["raw"], "a\"b");
        assert_eq!(lines[1]["raw_base64"], "/wA=");
        assert_eq!(base64(b"abc"), "YWJj");
        assert_eq!(base64(b"a"), "YQ==");
    }
}
