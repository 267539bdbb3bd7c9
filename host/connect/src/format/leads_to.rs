//! For tests: what each pointer into a value has to lead to.

use super::{Decoder, Kind, Slots};
use serde_json::Value;

/// Every pointer into a value.
pub(super) fn pointers(value: &Value) -> Vec<String> {
    let mut all = Vec::new();
    collect(value, "", &mut all);
    all
}

fn collect(value: &Value, at: &str, all: &mut Vec<String>) {
    if !at.is_empty() {
        all.push(at.to_owned());
    }
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                collect(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| collect(v, &format!("{at}/{i}"), all));
        }
        _ => {}
    }
}

/// Reads the record by a decoder of these paths, and finds what they lead to in the value.
pub(super) fn check_all(decoder: &mut dyn Decoder, paths: &[String], record: &[u8], expected: &Value) {
    let mut out = Slots::default();
    decoder.decode(record, &mut out).unwrap_or_else(|e| panic!("{}: {expected}", e.message));
    for (i, path) in paths.iter().enumerate() {
        let text = std::str::from_utf8(out.get(i, record)).unwrap();
        let (kind, want) = (out.kind(i), expected.pointer(path).unwrap());
        match want {
            Value::Null => assert_eq!(kind, Kind::Missing, "{path}"),
            Value::String(s) if s.is_empty() => assert_eq!(kind, Kind::Missing, "{path}"),
            Value::String(s) => assert_eq!((kind, text), (Kind::Text, s.as_str()), "{path}"),
            other => {
                let kinds = match other {
                    Value::Bool(_) => Kind::Bool,
                    Value::Number(_) => Kind::Number,
                    _ => Kind::Structure,
                };
                assert_eq!(kind, kinds, "{path}");
                let read: Value =
                    serde_json::from_str(text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"));
                assert_eq!(&read, other, "{path}");
            }
        }
    }
}
