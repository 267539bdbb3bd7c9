//! What a row says, as Postgres can keep it.
//!
//! Postgres has no NUL character in text, no instants beyond its calendar, and no JSON that its `jsonb` cannot read. None of them
//! may cost a row: a NUL becomes its picture, U+2400; an instant beyond the calendar `infinity`; JSON that cannot be read a JSON
//! string of the same text.

use serde_json::Value;
use std::borrow::Cow;
use std::time::{Duration, SystemTime};
use tidemill_engine::time::EventTime;
use tokio_postgres::types::Timestamp;

/// What stands for a NUL character.
const PICTURE: &str = "\u{2400}";
/// The same as it is escaped in JSON, as long as the NUL's own escape.
const ESCAPED: &[u8] = b"\\u2400";
/// The first and last ms of Postgres' calendar (4714 BC to 294276 AD).
const CALENDAR_MS: std::ops::Range<i64> = -210_866_803_200_000..9_224_318_016_000_000;
/// JSON this deep is read by whatever Postgres has as its stack.
const DEPTH_MAX: usize = 100;

/// Text without NUL characters.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if memchr::memchr(0, text.as_bytes()).is_none() {
        text.into()
    } else {
        text.replace('\0', PICTURE).into()
    }
}

/// An instant, or on which side of the calendar it lies.
pub(super) fn instant(time: EventTime) -> Timestamp<SystemTime> {
    let ms = time.ms();
    let away = Duration::from_millis(ms.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let value = if ms < 0 { epoch.checked_sub(away) } else { epoch.checked_add(away) };
    match value.filter(|_| CALENDAR_MS.contains(&ms)) {
        Some(value) => Timestamp::Value(value),
        None if ms < 0 => Timestamp::NegInfinity,
        None => Timestamp::PosInfinity,
    }
}

/// JSON that `jsonb` takes. Its text stays as it is wherever it can, so that numbers keep their digits.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    if text.trim_ascii().is_empty() {
        return "{}".into();
    }
    if is_plain(text) {
        return text.into();
    }
    match serde_json::from_str::<Value>(text) {
        Ok(value) if has_nul(&value) => without_nul(text).into(),
        Ok(_) => text.into(),
        Err(_) => Value::from(text.replace('\0', PICTURE)).to_string().into(),
    }
}

/// Whether it is JSON without anything that is worth a second look: escapes, exponents, depth.
fn is_plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    let exponent = |w: &[u8]| w[0].is_ascii_digit() && matches!(w[1], b'e' | b'E');
    let opened = bytes.iter().filter(|b| matches!(b, b'[' | b'{')).count();
    opened <= DEPTH_MAX
        && memchr::memmem::find(bytes, b"\\u").is_none()
        && !bytes.windows(2).any(exponent)
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(s) => s.contains('\0'),
        Value::Array(list) => list.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// With each escape of a NUL exchanged: a backslash that is itself escaped begins none.
fn without_nul(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (before, from) = rest.split_at(at);
        out.extend_from_slice(before);
        let is_nul = from.starts_with(b"\\u0000");
        let length = if is_nul { ESCAPED.len() } else { 2.min(from.len()) };
        out.extend_from_slice(if is_nul { ESCAPED } else { &from[..length] });
        rest = &from[length..];
    }
    out.extend_from_slice(rest);
    // Only ASCII was exchanged for ASCII.
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_that_postgres_refuses_is_left() {
        assert_eq!(text("a\0b\0"), "a\u{2400}b\u{2400}");
        assert!(matches!(text("plain ä"), Cow::Borrowed("plain ä")));
        for (given, kept) in [
            (r#"{"a": 1.50}"#, r#"{"a": 1.50}"#),
            (
                r#"{"a":"x\u0000y","b":"\\u0000","\u0000":12345678901234567890123}"#,
                r#"{"a":"x\u2400y","b":"\\u0000","\u2400":12345678901234567890123}"#,
            ),
            (r#"{"a":"\\\u0000\u00e4"}"#, r#"{"a":"\\\u2400\u00e4"}"#),
            (r#"{"a":"\ud800"}"#, r#""{\"a\":\"\\ud800\"}""#),
            (r#"{"a":1e999999}"#, r#""{\"a\":1e999999}""#),
            (r#"{"a":1.5e3}"#, r#"{"a":1.5e3}"#),
            ("no json", r#""no json""#),
            ("", "{}"),
            (" \n", "{}"),
        ] {
            assert_eq!(json(given), kept, "{given}");
        }
        let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
        assert!(json(&deep).starts_with('"'), "deeper than a server's stack");
    }

    #[test]
    fn instants_stay_within_the_calendar() {
        let of = |ms| instant(EventTime::from_ms(ms));
        assert_eq!(of(1_500), Timestamp::Value(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)));
        assert_eq!(of(-1), Timestamp::Value(SystemTime::UNIX_EPOCH - Duration::from_millis(1)));
        assert_eq!(of(i64::MAX), Timestamp::PosInfinity);
        assert_eq!(of(CALENDAR_MS.end), Timestamp::PosInfinity);
        assert_eq!(of(i64::MIN), Timestamp::NegInfinity);
        assert_eq!(of(CALENDAR_MS.start - 1), Timestamp::NegInfinity);
        assert!(matches!(of(CALENDAR_MS.start), Timestamp::Value(_)));
    }

    proptest! {
        #[test]
        fn only_nuls_are_exchanged(a in any::<String>(), b in "[\\\\u0\u{0}\"a]{0,12}") {
            let given = serde_json::json!({ a.clone(): [b, a] });
            let text = given.to_string();
            let kept: Value = serde_json::from_str(&json(&text)).unwrap();
            // By value: each string with its NULs exchanged, and nothing else.
            fn exchange(v: &Value) -> Value {
                match v {
                    Value::String(s) => s.replace('\0', PICTURE).into(),
                    Value::Array(l) => l.iter().map(exchange).collect(),
                    Value::Object(m) => {
                        Value::Object(m.iter().map(|(k, v)| (k.replace('\0', PICTURE), exchange(v))).collect())
                    }
                    other => other.clone(),
                }
            }
            prop_assert_eq!(kept, exchange(&given));
        }
    }
}
