//! Limits at which honest input must not fail. `limits.open_sessions`: what is over it is a letter, what the watermark closes
//! makes room, and nothing waits for ever. The time of a call: a rule that is slow is asked about less at once.
//!
//! The bug family: a run that stands still because it may open no session and closes none, events in neither a session nor
//! a letter, a bound that counts sessions that ended long ago, and a slow rule that is taken for a runaway.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::traffic::START_MS;
use tidemill_tests::{Case, Config, Plugin, Session, current, latest, places, same_table};

const FILE: &str = "in.jsonl";

/// Runs over these lines under a bound and returns the letters' count; whatever is no letter must be in the sinks.
fn bounded(what: &str, lines: &str, open_sessions: u64, early: &str, lateness_ms: i64) -> usize {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let source = Source { disorder_ms: 1_000, ..file };
    let gap = Gap::of_seconds(5, false);
    let case = Case::new();
    case.put(FILE, lines.as_bytes());
    let mut config = Config::new(source.clone(), gap.clone());
    config.early = early.into();
    config.lateness_ms = lateness_ms;
    case.configure(&config);
    let path = case.path("pipeline.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text =
        text.replace("\nsession ", &format!("\nlimits = {{ open_sessions = {open_sessions} }}\nsession "));
    assert!(text.contains("open_sessions"), "the config has no line to put the limit before:\n{text}");
    std::fs::write(&path, text).unwrap();
    case.run().exits(0);
    let letters = case.letters();
    let marked = |l: &serde_json::Value| {
        l["reason"] == "sessions_over_cap" && l["raw"].is_string() && l["key"].is_string()
    };
    assert!(letters.iter().all(marked), "{what}: {:?}", letters.iter().find(|l| !marked(l)));
    let log = model::read(&[(&source, FILE, lines.as_bytes())], &gap);
    let expected = model::sessions(&log, &places(&letters), &gap);
    same_table(&format!("{what}, SQLite"), &expected, &current(&case.table()));
    same_table(&format!("{what}, JSON lines"), &expected, &current(&latest(case.lines("rows.jsonl"))));
    let sessions: BTreeSet<&str> = expected.iter().map(|r| r.key.as_str()).collect();
    assert!(!sessions.is_empty());
    letters.len()
}

#[test]
fn what_would_open_one_session_too_many_is_a_letter() {
    // 3,000 visitors who never leave: nothing closes before the end.
    let mut lines = String::new();
    for n in 0..30_000 {
        let ts = START_MS + n / 10;
        let _ = writeln!(lines, r#"{{"user":"u{}","ts":{ts}}}"#, n % 3_000);
    }
    for early in ["\"off\"", "\"epoch\""] {
        let letters = bounded(early, &lines, 500, early, 0);
        assert!(
            (25_000..=25_100).contains(&letters),
            "{early}: {letters} letters of 2,500 visitors with 10 events each"
        );
    }
}

#[test]
fn sessions_that_have_ended_make_room() {
    // Ten new visitors a second, seven events each within three seconds: never more than some hundred at once, beside
    // those of the records that are read as one block. All in all there are 20,000.
    let mut lines = String::new();
    for second in 0..2_000 {
        for step in 0..7 {
            for user in 0..10 {
                let ts = START_MS + second * 1_000 + step * 100 + user;
                let _ = writeln!(lines, r#"{{"user":"u{second}-{user}","ts":{ts}}}"#);
            }
        }
    }
    for (early, lateness_ms) in [("\"off\"", 0), ("\"epoch\"", 0), ("\"off\"", 2_000), ("\"epoch\"", 2_000)] {
        let what = format!("early {early}, lateness {lateness_ms} ms");
        assert_eq!(bounded(&what, &lines, 4_000, early, lateness_ms), 0, "{what}");
    }
}

/// A third of a millisecond an event, and one key with most of them: a call for all that wait would take half a second, where
/// 25 ms are allowed.
#[test]
fn a_slow_rule_is_no_runaway_even_on_a_hot_key() {
    let mut lines = String::new();
    for n in 0..3_000 {
        let user = if n % 3 == 0 { format!("u{}", n % 50) } else { "hot".into() };
        let _ = writeln!(lines, r#"{{"user":"{user}","ts":{}}}"#, START_MS + 40 * n);
    }
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let source = Source { disorder_ms: 1_000, fields: vec![("kind".into(), "type".into())], ..file };
    let gap = Gap::of_seconds(2, false);
    let case = Case::new();
    case.put(FILE, lines.as_bytes());
    let mut config = Config::new(source.clone(), gap.clone());
    config.session = Session::Plugin(Plugin::new("swap-sessions", "gap = \"2s\", rounds = 300000"));
    case.configure(&config);
    case.run().exits(0);
    assert_eq!(case.letters(), Vec::<serde_json::Value>::new());
    let log = model::read(&[(&source, FILE, lines.as_bytes())], &gap);
    same_table("a slow rule", &model::sessions(&log, &BTreeSet::new(), &gap), &current(&case.table()));
}
