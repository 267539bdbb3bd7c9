//! Numbers, times and foreign text as a person reads them.

/// `1234567` as `1,234,567`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of things: `1 event`, `2 events`.
pub(super) fn counted(n: u64, one: &str) -> String {
    format!("{} {one}{}", count(n), if n == 1 { "" } else { "s" })
}

/// Milliseconds in the two largest units that matter: `350ms`, `12.5s`, `4m 05s`, `2h 10m`, `3d 04h`.
pub(super) fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 if ms.is_multiple_of(1000) => format!("{s}s"),
        1..60 => format!("{s}.{}s", ms % 1000 / 100),
        60..3600 => two(s / 60, 'm', s % 60, 's'),
        3600..86_400 => two(s / 3600, 'h', s % 3600 / 60, 'm'),
        _ => two(s / 86_400, 'd', s % 86_400 / 3600, 'h'),
    }
}

/// Two units; the second only if there is something of it.
fn two(large: u64, large_unit: char, small: u64, small_unit: char) -> String {
    match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small:02}{small_unit}"),
    }
}

/// From one instant to a later one, ms; 0 if it is not later.
pub(super) fn between(start_ms: i64, end_ms: i64) -> u64 {
    u64::try_from(end_ms.saturating_sub(start_ms)).unwrap_or(0)
}

/// An instant as RFC 3339; those that stand for no instant in words.
pub(super) fn instant(ms: i64) -> String {
    match ms {
        i64::MIN => "none yet".to_owned(),
        i64::MAX => "the end".to_owned(),
        _ => jiff::Timestamp::from_millisecond(ms).map_or_else(|_| format!("{ms} ms"), |t| t.to_string()),
    }
}

/// The host's clock, ms since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Text from outside, on one line of at most `max` characters: control characters (a log may hold escape
/// sequences meant for whoever looks at it) are shown, not obeyed.
pub(super) fn foreign(text: &str, max: usize) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i >= max {
            out.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas() {
        let shown: Vec<String> = [0, 7, 999, 1000, 12_345, 1_234_567].map(count).into();
        assert_eq!(shown, ["0", "7", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!((counted(1, "event"), counted(2, "event")), ("1 event".into(), "2 events".into()));
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let shown: Vec<String> =
            [0, 350, 1000, 12_540, 1_800_000, 245_000, 7_800_000, 273_600_000].map(duration).into();
        assert_eq!(shown, ["0ms", "350ms", "1s", "12.5s", "30m", "4m 05s", "2h 10m", "3d 04h"]);
        assert_eq!(between(5, 3), 0);
        assert_eq!(between(i64::MIN, i64::MAX), i64::MAX as u64);
    }

    #[test]
    fn instants_are_rfc_3339() {
        assert_eq!(instant(1_431_857_103_000), "2015-05-17T10:05:03Z");
        assert_eq!(instant(i64::MIN), "none yet");
        assert_eq!(instant(i64::MAX - 1), format!("{} ms", i64::MAX - 1));
    }

    #[test]
    fn foreign_text_cannot_drive_the_terminal() {
        assert_eq!(foreign("a\x1b[31mb\n", 99), "a\\u{1b}[31mb\\n");
        assert_eq!(foreign("käthe", 3), "kät…");
    }
}
