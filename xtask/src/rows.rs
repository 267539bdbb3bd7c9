//! Reading what tidemill and the yardstick write: flat JSON objects, seen from outside.
//!
//! No JSON parser: it would take longer to build than all of xtask. What is read here was written by
//! programs of known habits, and a value that is not found is `None`.

/// The innermost objects of a JSON text that have this field, in order; whatever stands around them.
pub(crate) fn objects_with<'a>(text: &'a str, field: &str) -> Vec<&'a str> {
    let quoted = format!("\"{field}\"");
    let mut found: Vec<&str> = Vec::new();
    let mut found_until = 0;
    let mut begins: Vec<usize> = Vec::new();
    let (mut in_string, mut escaped) = (false, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' if !in_string => begins.push(i),
            b'}' if !in_string => {
                if let Some(begin) = begins.pop()
                    && begin >= found_until
                    && text[begin..i].contains(&quoted)
                {
                    found.push(&text[begin..=i]);
                    found_until = i;
                }
            }
            _ => {}
        }
    }
    found
}

/// The value of a field of a flat object as it stands there: a string without its quotes, still escaped.
pub(crate) fn value<'a>(object: &'a str, field: &str) -> Option<&'a str> {
    let mut rest = object;
    loop {
        let at = rest.find(field)?;
        let before = rest[..at].ends_with('"') && !rest[..at].ends_with("\\\"");
        rest = &rest[at + field.len()..];
        if before
            && let Some(behind) = rest.strip_prefix('"')
            && let Some(value) = behind.trim_start().strip_prefix(':')
        {
            return scalar(value.trim_start());
        }
    }
}

fn scalar(text: &str) -> Option<&str> {
    let Some(text) = text.strip_prefix('"') else {
        let end = text.find([',', '}', ']', '\n', ' ']).unwrap_or(text.len());
        return Some(&text[..end]);
    };
    let mut escaped = false;
    let end = text.bytes().position(|b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    })?;
    Some(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_in_lines_arrays_and_wrappers() {
        let row = |n| format!("{{\"fields\":{{}},\"session_id\":\"{n}\",\"key\":\"a}}\\\"{{\"}}");
        let (a, b) = (row(1), row(2));
        let expected = vec![a.as_str(), b.as_str()];
        let inputs = [format!("{a}\n{b}\n"), format!("[{a},\n {b}]"), format!("{{\"sessions\": [{a},{b}]}}")];
        for text in &inputs {
            assert_eq!(objects_with(text, "session_id"), expected);
        }
        assert!(objects_with(&inputs[0], "other").is_empty());
    }

    #[test]
    fn values_are_found_behind_their_names_only() {
        let row = r#"{"key":"end\"_ms","end_ms": 12,"stage":"final","reason":null,"x":"\\"}"#;
        let get = |name| value(row, name);
        assert_eq!([get("end_ms"), get("stage"), get("reason")], [Some("12"), Some("final"), Some("null")]);
        assert_eq!([get("key"), get("x"), get("final")], [Some(r#"end\"_ms"#), Some(r"\\"), None]);
    }
}
