//! Times of day, as scenarios write them.

use super::fail;

const DAY_MS: i64 = 86_400_000;

#[track_caller]
pub(super) fn parse_time(text: &str) -> i64 {
    let bad = || -> i64 {
        fail(&format!("{text:?} is no time; write \"10:00\", \"10:00:05.250\" or \"1d 10:00\""))
    };
    let (days, clock) = match text.split_once("d ") {
        Some((d, rest)) => (Some(d), rest),
        None => (None, text),
    };
    // Digits alone, so many at most; what a number's own reader takes beside them (+, NaN, 1e3) is no time.
    let number = |text: &str, digits: std::ops::RangeInclusive<usize>, below: i64| {
        let plain = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i64>().ok().filter(|n| plain && *n < below).unwrap_or_else(bad)
    };
    let days = days.map_or(0, |d| number(d, 1..=6, i64::MAX));
    let parts: Vec<&str> = clock.split(':').collect();
    let (h, m, s) = match parts[..] {
        [h, m] => (h, m, "0"),
        [h, m, s] => (h, m, s),
        _ => return bad(),
    };
    let (s, fraction) = match s.split_once('.') {
        Some((_, "")) => return bad(),
        Some(both) => both,
        None => (s, "0"),
    };
    let ms = number(&format!("{fraction:0<3}"), 3..=3, 1000);
    let (h, m, s) = (number(h, 1..=2, 24), number(m, 2..=2, 60), number(s, 1..=2, 60));
    days * DAY_MS + ((h * 60 + m) * 60 + s) * 1000 + ms
}

pub(super) fn show_time(ms: i64) -> String {
    let (days, ms) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    let days = if days == 0 { String::new() } else { format!("{days}d ") };
    let (s, rest) = (ms / 1000, ms % 1000);
    let rest = if rest == 0 { String::new() } else { format!(".{rest:03}") };
    format!("{days}{:02}:{:02}:{:02}{rest}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_what_is_none_is_said() {
        for (text, ms) in [
            ("00:00", 0),
            ("9:05", 32_700_000),
            ("10:00:05", 36_005_000),
            ("10:00:05.25", 36_005_250),
            ("23:59:59.999", DAY_MS - 1),
            ("12d 00:00", 12 * DAY_MS),
        ] {
            assert_eq!(parse_time(text), ms, "{text}");
            assert_eq!(parse_time(&show_time(ms)), ms, "{text}");
        }
        for text in [
            "10:75",
            "10:5",
            "24:00",
            "NaN:00",
            "10:00:00:99",
            "10",
            "",
            "10:00:60",
            "1e1:00",
            "-1:00",
            "10:+5",
            "10:00:00.1234",
            "10:00:00.",
            "x 10:00",
            "d 10:00",
            "10:00 ",
        ] {
            let said = std::panic::catch_unwind(|| parse_time(text)).unwrap_err();
            let said = said.downcast_ref::<String>().cloned().unwrap_or_default();
            assert!(said.contains("is no time; write \"10:00\""), "{text:?}: {said}");
        }
    }
}
