//! A rule that discards, splits and closes by events, under everything at once: shuffled, doubled, early output, lateness,
//! kill -9. The table, and the letters of discarded sessions, are those of a model that runs the same component.
//!
//! The bug family: what has been sent and turns out otherwise. A session that was sent early and is then merged with
//! another, or discarded, must be retracted; a discarded one is a dead letter once, whatever was killed in between.
//! `TIDEMILL_SEEDS` (default 2), `TIDEMILL_CRASH_EVENTS` (default 80,000) and `TIDEMILL_CRASH_KILLS` (default 4) set the size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::collections::BTreeSet;
use tidemill_tests::component::{Made, Sessionizer};
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{Rng, Visits, delayed, file_of};
use tidemill_tests::{
    Case, Config, Follower, Plugin, Session, Stored, env_number, latest, place_of, places, same_table,
};

const FILE: &str = "in.jsonl";
const DISORDER_MS: i64 = 10_000;

fn source() -> Source {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let fields = vec![("kind".into(), "type".into())];
    Source { id: Some("id".into()), fields, disorder_ms: DISORDER_MS, ..file }
}

fn made(stored: &[Stored]) -> Vec<Made> {
    let current = stored.iter().filter(|s| s.stage != "retracted");
    let mut rows: Vec<Made> =
        current.map(|s| Made { row: s.row.clone(), fields: s.fields.clone() }).collect();
    rows.sort();
    rows
}

/// The discarded sessions that the letters tell of; each session id once.
fn discarded(letters: &[Value]) -> Vec<Made> {
    let mut ids = BTreeSet::new();
    let mut rows: Vec<Made> = letters
        .iter()
        .map(|l| {
            assert!(ids.insert(l["session_id"].as_str().unwrap()), "two letters for one session: {l}");
            let number = |name: &str| l[name].as_i64().unwrap_or_else(|| panic!("no {name} in {l}"));
            let row = Row {
                key: l["key"].as_str().unwrap().into(),
                start_ms: number("start_ms"),
                end_ms: number("end_ms"),
                events: number("events") as u64,
                reason: l["reason"].as_str().map(str::to_owned),
            };
            Made { row, fields: l["fields"].to_string() }
        })
        .collect();
    rows.sort();
    rows
}

/// What became of sessions that were sent and then taken back.
#[derive(Default, Debug)]
struct TakenBack {
    /// They are part of a longer one.
    merged: usize,
    /// They are part of one that was discarded.
    discarded: usize,
    /// Something else: cut elsewhere, most likely.
    other: usize,
}

fn taken_back(lines: &[Stored], kept: &[Made], discarded: &[Made]) -> TakenBack {
    let within = |r: &Row, of: &[Made]| {
        let from = of.partition_point(|m| m.row.key < r.key);
        let same_key = of[from..].iter().take_while(|m| m.row.key == r.key);
        same_key
            .map(|m| &m.row)
            .any(|m| m.start_ms <= r.start_ms && r.end_ms <= m.end_ms && m.events > r.events)
    };
    let mut count = TakenBack::default();
    for s in lines.iter().filter(|s| s.stage == "retracted") {
        if within(&s.row, kept) {
            count.merged += 1;
        } else if within(&s.row, discarded) {
            count.discarded += 1;
        } else {
            count.other += 1;
        }
    }
    count
}

/// Runs with kills and compares; says what was seen on the way.
fn visits(what: &str, seed: u64, delay_ms: i64, lateness_ms: i64) {
    let events = env_number("TIDEMILL_CRASH_EVENTS", 80_000);
    let kills = env_number("TIDEMILL_CRASH_KILLS", 4);
    let users = 400 + events / 40;
    let lines = Visits { seed, events, users, step_ms: 4, invalid_every: 400 }.lines();
    let bytes = file_of(&delayed(&lines, seed, delay_ms, true));
    // The gap is not what runs; the model's reader wants one.
    let no_gap = Gap::of_seconds(1, true);
    let log = model::read(&[(&source(), FILE, &bytes)], &no_gap);

    let case = Case::new();
    case.put(FILE, &bytes);
    let mut config = Config::new(source(), no_gap);
    config.session = Session::Plugin(Plugin::new("checkout-sessions", r#"idle = "4s""#));
    config.epoch = "10ms".into();
    config.lateness_ms = lateness_ms;
    case.configure(&config);
    let (mut rng, mut follower, mut killed) = (Rng::new(seed), Follower::default(), 0);
    while killed < kills && case.killed_after(&mut follower, rng.below(events / (4 * kills))) {
        killed += 1;
    }
    assert!(killed > 0 || kills == 0, "{what}: never killed");
    case.run().exits(0);

    let (of_sessions, of_records): (Vec<Value>, Vec<Value>) =
        case.letters().into_iter().partition(|l| l["kind"] == "session");
    let dead = places(&of_records);
    let invalid: BTreeSet<_> = log.invalid.iter().map(|(place, _)| place.clone()).collect();
    assert!(invalid.is_subset(&dead), "{what}: an invalid line has no letter");
    let late: Vec<&Value> = of_records.iter().filter(|l| !invalid.contains(&place_of(l))).collect();
    assert!(late.iter().all(|l| l["reason"] == "late"), "{what}: {:?}", late.first());
    assert_eq!(late.is_empty(), delay_ms <= DISORDER_MS + lateness_ms, "{what}: {} late", late.len());

    let mut component = Sessionizer::new("checkout-sessions", r#"{"idle":"4s"}"#);
    let (kept, gone) = component.sessions(&log, &bytes, &dead, &source().fields);
    for reason in ["purchase", "campaign", "idle"] {
        let some = kept.iter().any(|m| m.row.reason.as_deref() == Some(reason));
        assert!(some, "{what}: no session ends by {reason}; the case proves nothing");
    }
    assert!(gone.len() > 50, "{what}: {} discarded sessions prove nothing", gone.len());
    let lines = case.lines("rows.jsonl");
    for (sink, stored) in [("SQLite", case.table()), ("JSON lines", latest(lines.clone()))] {
        same_table(&format!("{what}, {sink}"), &kept, &made(&stored));
        let early = stored.iter().find(|s| s.stage == "early");
        assert!(early.is_none(), "{what}, {sink}: still early at the end: {early:?}");
    }
    same_table(&format!("{what}, letters"), &gone, &discarded(&of_sessions));
    let back = taken_back(&lines, &kept, &gone);
    assert!(back.merged > 0 && back.discarded > 0, "{what}: {back:?} prove nothing");
    let corrected = lines.iter().filter(|s| s.stage == "corrected").count();
    assert!(lateness_ms == 0 || corrected > 0, "{what}: nothing was corrected");
    tidemill_tests::report!(
        "{what}: {} events, {killed} kills, {} sessions, {} discarded, {} late, {corrected} corrected; taken back: {back:?}",
        log.events.len(),
        kept.len(),
        gone.len(),
        late.len(),
    );
}

#[test]
fn visits_within_the_disorder() {
    for seed in 0..env_number("TIDEMILL_SEEDS", 2) {
        visits(&format!("within, seed {seed}"), seed, DISORDER_MS, 0);
    }
}

#[test]
fn visits_within_the_lateness() {
    for seed in 0..env_number("TIDEMILL_SEEDS", 2) {
        visits(&format!("lateness, seed {seed}"), seed, 2 * DISORDER_MS, DISORDER_MS);
    }
}

#[test]
fn visits_beyond_disorder_and_lateness() {
    for seed in 0..env_number("TIDEMILL_SEEDS", 2) {
        visits(&format!("beyond, seed {seed}"), seed, 4 * DISORDER_MS, DISORDER_MS);
    }
}
