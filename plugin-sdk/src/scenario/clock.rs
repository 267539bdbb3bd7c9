//! Times of day, as scenarios write them.

use super::fail;

const DAY_MS: i64 = 86_400_000;

#[track_caller]
pub(super) fn parse_time(text: &str) -> i64 {
    let bad = || -> i64 {
        fail(&format!("{text:?} is no time; write \"10:00\", \"10:00:05.250\" or \"1d 10:00\""))
    };
    let (days, clock) = match text.split_once("d ") {
        Some((d, rest)) => (d.parse().unwrap_or_else(|_| bad()), rest),
        None => (0, text),
    };
    let mut parts = clock.split(':');
    let mut part = || parts.next().map(|p| p.parse::<f64>().unwrap_or_else(|_| bad() as f64));
    let (h, m, s) = (part(), part(), part());
    let (Some(h), Some(m)) = (h, m) else { return bad() };
    days * DAY_MS + ((h * 3600.0 + m * 60.0 + s.unwrap_or(0.0)) * 1000.0).round() as i64
}

pub(super) fn show_time(ms: i64) -> String {
    let (days, ms) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    let days = if days == 0 { String::new() } else { format!("{days}d ") };
    let (s, rest) = (ms / 1000, ms % 1000);
    let rest = if rest == 0 { String::new() } else { format!(".{rest:03}") };
    format!("{days}{:02}:{:02}:{:02}{rest}", s / 3600, s / 60 % 60, s % 60)
}
