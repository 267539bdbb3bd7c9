//! A dead letter that is larger than a message may be: its record is cut, and its size told, as the engine does with records
//! that are larger than its own bound. What the record was stands at the source, at the position that the letter names.

use serde_json::{Map, Value};

/// Of base64 only whole groups mean anything: 4 characters, 3 bytes.
const GROUP_CHARS: usize = 4;
const GROUP_BYTES: usize = 3;

/// The letter with less of its record, so that it fits into `room` bytes; `None` if it does not even without.
pub(super) fn cut(letter: &[u8], room: usize) -> Option<Vec<u8>> {
    let mut letter: Map<String, Value> = serde_json::from_slice(letter).ok()?;
    let name = ["raw", "raw_base64"].into_iter().find(|n| letter.contains_key(*n))?;
    let Some(Value::String(raw)) = letter.remove(name) else { return None };
    let whole = if name == "raw" { raw.len() } else { raw.len() / GROUP_CHARS * GROUP_BYTES };
    letter.entry("raw_bytes").or_insert_with(|| whole.into());
    let mut kept = raw.len().min(room);
    loop {
        letter.insert(name.into(), Value::String(beginning(&raw, kept, name).into()));
        let text = serde_json::to_vec(&letter).ok()?;
        let Some(excess) = text.len().checked_sub(room).filter(|e| *e > 0) else { return Some(text) };
        if kept == 0 {
            return None;
        }
        // Escapes make text longer than its bytes, never shorter: taking this much away is at most too much.
        kept = kept.saturating_sub(excess);
    }
}

fn beginning<'a>(raw: &'a str, bytes: usize, name: &str) -> &'a str {
    let bytes =
        if name == "raw" { raw.floor_char_boundary(bytes) } else { bytes / GROUP_CHARS * GROUP_CHARS };
    raw.get(..bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cut_to(letter: &Value, room: usize) -> Option<Value> {
        let text = cut(&serde_json::to_vec(letter).unwrap(), room)?;
        assert!(text.len() <= room);
        Some(serde_json::from_slice(&text).unwrap())
    }

    #[test]
    fn a_letter_keeps_all_but_the_end_of_its_record() {
        let letter = json!({ "kind": "record", "reason": "late", "raw": "ä\"".repeat(500) });
        let short = cut_to(&letter, 300).unwrap();
        assert_eq!(
            (&short["kind"], &short["reason"], &short["raw_bytes"]),
            (&json!("record"), &json!("late"), &json!(1500))
        );
        let raw = short["raw"].as_str().unwrap();
        assert!(raw.len() > 100 && "ä\"".repeat(500).starts_with(raw), "{raw}");
    }

    #[test]
    fn a_size_that_is_told_already_stays() {
        let letter = json!({ "reason": "late", "raw": "x".repeat(500), "raw_bytes": 9_000 });
        assert_eq!(cut_to(&letter, 100).unwrap()["raw_bytes"], 9_000);
    }

    #[test]
    fn bytes_that_are_no_text_end_with_a_whole_group() {
        let letter = json!({ "reason": "late", "raw_base64": "AAAA".repeat(100) });
        let short = cut_to(&letter, 201).unwrap();
        assert_eq!(short["raw_bytes"], 300);
        let raw = short["raw_base64"].as_str().unwrap();
        assert!(raw.len() > 100 && raw.len().is_multiple_of(4), "{}", raw.len());
    }

    #[test]
    fn a_letter_that_is_too_large_without_its_record_stays_whole() {
        assert_eq!(cut(b"{\"message\":\"0123456789\",\"raw\":\"x\"}", 20), None);
        assert_eq!(cut(b"{\"message\":\"0123456789\"}", 10), None);
    }
}
