//! Bounds: one key with more events inside the disorder than memory should hold, and many files read in step.
//!
//! The bug family: work for each file that grows with the number of files, an event that is neither in a session nor in a letter, a hot key that spoils its neighbours, memory
//! that grows with the input. `TIDEMILL_HOT_EVENTS` and `TIDEMILL_FILE_EVENTS` (default 300,000 each) set the size. Both
//! are run by `builtin:gap` and by the component `gap-sessions`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{Rng, START_MS, Shop, file_of};
use tidemill_tests::{Case, Config, RUN_MAX, Session, current, env_number, places, same_table};

const FILE: &str = "in.jsonl";
/// HMAC-SHA-256 of `hot` under "a secret of the test", by OpenSSL.
const HOT_HASHED: &str = "d8b40796ec37e41545e1e7f7b072870924732be1e4e84e5eab5563bba26acd20";

fn source(path: &str, disorder_ms: i64) -> Source {
    let file = Source::file("web", path, Format::Json, "user", "ts", Unit::Millis);
    Source { id: Some("id".into()), disorder_ms, ..file }
}

/// One hot key, all of it inside ten minutes, among a hundred quiet ones.
fn hot_log(events: u64) -> Vec<u8> {
    let mut r = Rng::new(3);
    let mut text = String::with_capacity(events as usize * 50);
    for n in 0..events {
        let ts = START_MS + r.below(600_000) as i64;
        let _ = writeln!(text, r#"{{"id":"h{n}","user":"hot","ts":{ts}}}"#);
        if n % 100 == 0 {
            let user = r.below(100);
            let ts = START_MS + r.below(600_000) as i64;
            let _ = writeln!(text, r#"{{"id":"q{n}","user":"quiet{user}","ts":{ts}}}"#);
        }
    }
    text.into_bytes()
}

/// Runs with a cap on one key's events; returns its rows, its letters' count and its peak memory.
fn hot_run(session: &Session, bytes: &[u8], cap: u64) -> (Vec<Row>, usize, u64) {
    let gap = Gap::of_seconds(60, false);
    let source = source(FILE, 600_000);
    let case = Case::new();
    case.put(FILE, bytes);
    let mut config = Config { session: session.clone(), ..Config::new(source.clone(), gap.clone()) };
    config.early = "\"off\"".into();
    case.configure(&config);
    let path = case.path("pipeline.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("\nsession ", &format!("\nlimits = {{ events_per_key = {cap} }}\nsession "));
    assert!(text.contains("events_per_key"), "the config has no line to put the limit before:\n{text}");
    std::fs::write(&path, text).unwrap();
    let (outcome, peak) = case.start(&[], &[]).outcome_and_peak(RUN_MAX);
    outcome.exits(0);
    let letters = case.letters();
    assert!(
        letters.iter().all(|l| l["reason"] == "key_over_cap" && l["key"] == "hot" && l["raw"].is_string())
    );
    let log = model::read(&[(&source, FILE, bytes)], &gap);
    let expected = model::sessions(&log, &places(&letters), &gap);
    let rows = current(&case.table());
    same_table("beside the letters", &expected, &rows);
    (rows, letters.len(), peak)
}

#[test]
fn a_hot_key_over_its_cap_loses_nothing_and_spoils_nobody() {
    let events = env_number("TIDEMILL_HOT_EVENTS", 300_000);
    let bytes = hot_log(events);
    let (cap, above) = (events / 50, events * 2);
    for session in Session::GAPS {
        let (rows, letters, small) = hot_run(&session, &bytes, cap);
        let of_hot: u64 = rows.iter().filter(|r| r.key == "hot").map(|r| r.events).sum();
        assert_eq!(of_hot, cap, "what is under the cap is used");
        assert_eq!(of_hot + letters as u64, events, "sessions and letters sum to the input");
        let (rows, letters, large) = hot_run(&session, &bytes, above);
        assert_eq!(letters, 0);
        assert_eq!(rows.iter().filter(|r| r.key == "hot").map(|r| r.events).sum::<u64>(), events);
        tidemill_tests::report!(
            "hot key, {events} events, {session:?}: peak {} MiB at a cap of {cap}, {} MiB above it",
            small >> 20,
            large >> 20
        );
        // As the README has it: three times what the events take (of which an id of this length has 16 bytes), and the
        // epochs under way.
        let stated = |events: u64| 3 * events * (32 + 16) + (512 << 20);
        assert!(small <= stated(cap) && large <= stated(events), "{small} and {large} bytes");
    }
}

/// One key that brings a third of all events: it is named, as rows show it.
#[test]
fn a_key_with_a_third_of_all_events_is_named_in_log_and_status() {
    for (hashed, name) in [(false, "hot"), (true, HOT_HASHED)] {
        let mut text = String::new();
        for n in 0..60_000_u64 {
            let user = if n % 3 == 0 { "hot".to_owned() } else { format!("u{}", n % 5_003) };
            let _ = writeln!(text, r#"{{"id":"e{n}","user":"{user}","ts":{}}}"#, START_MS + n as i64);
        }
        let case = Case::new();
        case.put(FILE, text.as_bytes());
        case.configure(&Config::new(source(FILE, 10_000), Gap::of_seconds(60, false)));
        if hashed {
            let path = case.path("pipeline.toml");
            let config = std::fs::read_to_string(&path).unwrap();
            let with_secret = config.replacen("\nkey ", "\nkey_hmac = \"a secret of the test\"\nkey ", 1);
            assert_ne!(config, with_secret);
            std::fs::write(&path, with_secret).unwrap();
        }
        let outcome = case.start(&[], &[]).outcome(RUN_MAX);
        outcome.exits(0).says(&format!("key \"{name}\" brings 3"));
        let status = std::process::Command::new(tidemill_tests::binary())
            .args(["status", "--json"])
            .arg(case.path("pipeline.toml"))
            .output()
            .unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let hot = &status["pipelines"][0]["hot_keys"];
        assert_eq!((hot.as_array().unwrap().len(), hot[0]["key"].as_str()), (1, Some(name)), "{hot}");
        assert!((hot[0]["share"].as_f64().unwrap() - 1.0 / 3.0).abs() < 0.04, "{hot}");
    }
}

/// Peak memory of a run over these files, above nothing; the table must be the model's.
fn files_run(session: &Session, files: &[(String, Vec<u8>)], gap: &Gap) -> u64 {
    let source = source("logs/*.jsonl", 10_000);
    let case = Case::new();
    files.iter().for_each(|(name, bytes)| case.put(&format!("logs/{name}"), bytes));
    let mut config = Config { session: session.clone(), ..Config::new(source.clone(), gap.clone()) };
    config.early = "\"off\"".into();
    case.configure(&config);
    let (outcome, peak) = case.start(&[], &[]).outcome_and_peak(RUN_MAX);
    outcome.exits(0);
    assert!(case.letters().is_empty(), "nothing is late when files are read in step");
    let inputs: Vec<(&Source, &str, &[u8])> =
        files.iter().map(|(n, b)| (&source, n.as_str(), b.as_slice())).collect();
    let expected = model::sessions(&model::read(&inputs, gap), &BTreeSet::new(), gap);
    same_table("files", &expected, &current(&case.table()));
    peak
}

#[test]
fn files_cut_by_hour_in_reverse_order_need_no_more_memory_than_one() {
    let events = env_number("TIDEMILL_FILE_EVENTS", 300_000);
    let day_ms = 24 * 3_600_000;
    let step_ms = day_ms / events;
    let lines = Shop { seed: 4, events, users: 20_000, step_ms, invalid_every: 0 }.lines();
    let gap = Gap::of_seconds(60, false);
    let hour = |t: i64| (t - START_MS) / 3_600_000;
    let cut: Vec<(String, Vec<u8>)> = (0..=hour(lines[lines.len() - 1].time))
        .map(|h| (format!("{:02}.jsonl", 99 - h), file_of(lines.iter().filter(|l| hour(l.time) == h))))
        .collect();
    let few = [("one.jsonl".to_owned(), file_of(&lines[..lines.len() / 100]))];
    let whole = [("one.jsonl".to_owned(), file_of(&lines))];
    for session in Session::GAPS {
        let floor = files_run(&session, &few, &gap);
        let (one, by_hour) =
            (files_run(&session, &whole, &gap) - floor, files_run(&session, &cut, &gap) - floor);
        tidemill_tests::report!(
            "{events} events, {session:?}: {} KiB above a small run's in one file, {} KiB by hour",
            one >> 10,
            by_hour >> 10
        );
        // Blocks of the files that are open come on top of what the input needs: 24 of 256 KiB and their batches.
        let slack = 24 << 20;
        assert!(by_hour <= one * 3 / 2 + slack, "{by_hour} bytes by hour, {one} in one file");
    }
}

/// Ten events a file; what a file costs must not depend on how many there are.
#[test]
fn many_small_files_cost_each_what_few_cost() {
    let gap = Gap::of_seconds(60, false);
    let source = source("logs/*.jsonl", 10_000);
    let ticks = |files: i64| {
        let case = Case::new();
        for n in 0..files {
            let event = |e: i64| {
                format!("{{\"id\":\"{n}-{e}\",\"user\":\"u{}\",\"ts\":{}}}\n", n % 50, START_MS + n * 100 + e)
            };
            case.put(&format!("logs/{n:05}.jsonl"), (0..10).map(event).collect::<String>().as_bytes());
        }
        let mut config = Config::new(source.clone(), gap.clone());
        config.end_of_input = "hold".into();
        case.configure(&config);
        let (outcome, first) = case.start(&[], &[]).outcome_and_ticks(RUN_MAX);
        outcome.exits(0);
        assert_eq!(current(&case.table()).iter().map(|r| r.events).sum::<u64>(), files as u64 * 10);
        // And again, when all of them are known.
        let (outcome, again) = case.start(&[], &[]).outcome_and_ticks(RUN_MAX);
        outcome.exits(0);
        (first, again)
    };
    let (few, many) = (ticks(500), ticks(4_000));
    tidemill_tests::report!(
        "500 files of ten events: {few:?} hundredths of a second, 4,000: {many:?} (first run, second run)"
    );
    // Eight times as many. What a start costs anyhow, and the clock's coarseness, is some ten ticks.
    for (few, many) in [(few.0, many.0), (few.1, many.1)] {
        assert!(many <= 2 * 8 * few + 20, "{many} ticks for 4,000 files, {few} for 500");
    }
}
