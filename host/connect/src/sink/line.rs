//! One session revision as one line of JSON; shared by the sinks that append.
//!
//! Invariants: every line is one complete JSON object, holds no line end but its last byte, and
//! carries the names of the SQLite table (DESIGN 8). Text is escaped as `serde_json` escapes it.
//! Written by hand because a serializer's detours would show in the CPU promise of DESIGN 9.

use tidemill_engine::outbox::{Outbox, Revision, SessionRow, Stages};

/// How much is gathered before it is written: 1 MiB keeps the buffer in the cache and the calls few.
pub(crate) const WRITE_BYTES: usize = 1 << 20;

/// What stands behind a backslash for this byte: 0 where it needs none, `u` for the six-character form.
const ESCAPES: [u8; 256] = {
    let mut t = [0; 256];
    let mut i = 0;
    while i < 0x20 {
        t[i] = b'u';
        i += 1;
    }
    t[0x08] = b'b';
    t[0x09] = b't';
    t[0x0a] = b'n';
    t[0x0c] = b'f';
    t[0x0d] = b'r';
    t[b'"' as usize] = b'"';
    t[b'\\' as usize] = b'\\';
    t
};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends a JSON string with its quotes.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.push(b'"');
    let mut done = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let e = ESCAPES[b as usize];
        if e == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[done..i]);
        done = i + 1;
        if e == b'u' {
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[(b >> 4) as usize], HEX[(b & 15) as usize]]);
        } else {
            out.extend_from_slice(&[b'\\', e]);
        }
    }
    out.extend_from_slice(&bytes[done..]);
    out.push(b'"');
}

/// Appends a number in decimal.
pub(crate) fn put_u64(out: &mut Vec<u8>, mut n: u64) {
    // 20 digits hold u64::MAX.
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn put_i64(out: &mut Vec<u8>, n: i64) {
    if n < 0 {
        out.push(b'-');
    }
    put_u64(out, n.unsigned_abs());
}

/// A session id as 32 hex digits, without an allocation.
pub(crate) fn hex_id(id: [u8; 16]) -> [u8; 32] {
    let mut out = [0; 32];
    for (pair, b) in out.chunks_exact_mut(2).zip(id) {
        pair[0] = HEX[(b >> 4) as usize];
        pair[1] = HEX[(b & 15) as usize];
    }
    out
}

/// The rule's fields as an object on one line. A line end outside of strings is white space to JSON (inside
/// it must be escaped), so a blank in its place changes no value and keeps the line whole.
fn put_fields(out: &mut Vec<u8>, fields: &str) {
    let bytes = fields.trim_ascii().as_bytes();
    if bytes.is_empty() {
        out.extend_from_slice(b"{}");
        return;
    }
    let from = out.len();
    out.extend_from_slice(bytes);
    if memchr::memchr2(b'\n', b'\r', bytes).is_some() {
        for b in &mut out[from..] {
            if matches!(b, b'\n' | b'\r') {
                *b = b' ';
            }
        }
    }
}

/// Appends one revision with its line end.
pub(crate) fn put_session(out: &mut Vec<u8>, pipeline: &str, revision: Revision, row: &SessionRow<'_>) {
    out.extend_from_slice(b"{\"session_id\":\"");
    out.extend_from_slice(&hex_id(row.id));
    out.extend_from_slice(b"\",\"pipeline\":");
    put_text(out, pipeline);
    out.extend_from_slice(b",\"key\":");
    put_text(out, row.key);
    out.extend_from_slice(b",\"start_ms\":");
    put_i64(out, row.start.ms());
    out.extend_from_slice(b",\"end_ms\":");
    put_i64(out, row.end.ms());
    out.extend_from_slice(b",\"events\":");
    put_u64(out, row.events);
    out.extend_from_slice(b",\"stage\":\"");
    out.extend_from_slice(row.stage.name().as_bytes());
    out.extend_from_slice(b"\",\"incarnation\":");
    put_u64(out, revision.incarnation);
    out.extend_from_slice(b",\"epoch\":");
    put_u64(out, revision.epoch);
    out.extend_from_slice(b",\"reason\":");
    match row.reason {
        Some(reason) => put_text(out, reason),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"plugin\":");
    put_text(out, row.plugin);
    out.extend_from_slice(b",\"fields\":");
    put_fields(out, row.fields);
    out.extend_from_slice(b"}\n");
}

/// Hands an epoch's revisions to `write` as whole lines, about [`WRITE_BYTES`] at a time through `buf`;
/// returns the bytes handed over.
pub(crate) fn each_block<E>(
    outbox: &Outbox<'_>,
    pipeline: &str,
    stages: Stages,
    buf: &mut Vec<u8>,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<u64, E> {
    buf.clear();
    let mut total = 0;
    for (revision, row) in outbox.sessions(stages) {
        put_session(buf, pipeline, revision, &row);
        if buf.len() >= WRITE_BYTES {
            write(buf)?;
            total += buf.len() as u64;
            buf.clear();
        }
    }
    if !buf.is_empty() {
        write(buf)?;
        total += buf.len() as u64;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidemill_engine::{outbox::Stage, time::EventTime};

    #[test]
    fn every_character_of_the_first_plane_is_escaped_as_serde_does() {
        let all: String = (0..=0xffff).filter_map(char::from_u32).collect();
        let mut out = Vec::new();
        put_text(&mut out, &all);
        assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&all).unwrap());
    }

    #[test]
    fn fields_with_line_ends_stay_on_one_line() {
        let mut out = Vec::new();
        put_fields(&mut out, "{\r\n  \"a\": \"x\\ny\"\n}\n");
        assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
        let v: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(v, serde_json::json!({"a": "x\ny"}));
    }

    proptest! {
        #[test]
        fn a_line_reads_back(
            key in any::<String>(), reason in any::<Option<String>>(), plugin in any::<String>(),
            start in any::<i64>(), end in any::<i64>(), events in any::<u64>(),
            id in any::<[u8; 16]>(), rev in any::<(u64, u64)>(), field in any::<String>(), stage in 0_usize..4,
        ) {
            let fields = serde_json::json!({ "f": field }).to_string();
            let row = SessionRow {
                id, key: &key, start: EventTime::from_ms(start), end: EventTime::from_ms(end), events,
                stage: Stage::ALL[stage], reason: reason.as_deref(), plugin: &plugin, fields: &fields,
            };
            let mut out = Vec::new();
            put_session(&mut out, "p\"q", Revision { incarnation: rev.0, epoch: rev.1 }, &row);
            prop_assert_eq!(out.iter().position(|b| *b == b'\n'), Some(out.len() - 1));
            let v: serde_json::Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(v, serde_json::json!({
                "session_id": tidemill_engine::outbox::hex(&id), "pipeline": "p\"q", "key": key, "start_ms": start, "end_ms": end,
                "events": events, "stage": row.stage.name(), "incarnation": rev.0, "epoch": rev.1,
                "reason": reason, "plugin": plugin, "fields": { "f": field },
            }));
        }
    }
}
