//! The acceptance sentence over seeds: any arrival order and any copies, and the table is the naive model's.
//!
//! The bug family: an event placed, dropped or counted by when it came instead of by when it happened. Logs are the
//! trial logs, re-encoded as JSON lines with their line number as id, and made-up traffic with hot keys. A failing
//! case is named by log, seed and settings. `TIDEMILL_SEEDS` says how many seeds (default 2). Each case is run by
//! `builtin:gap` and by the component `gap-sessions`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;
use tidemill_tests::api::Api;
use tidemill_tests::model::{self, Format, Gap, Match, Source, Unit};
use tidemill_tests::traffic::{Shop, Timed, delayed, file_of};
use tidemill_tests::{
    Case, Config, Session, env_number, identified, only_invalid, place_of, places, same_sinks, trials,
    wait_for,
};

const FILE: &str = "in.jsonl";

fn source(disorder_ms: i64) -> Source {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    Source { id: Some("id".into()), fields: vec![("kind".into(), "type".into())], disorder_ms, ..file }
}

/// A trial log as JSON lines in the order of the log, each with its number as id.
fn encoded(trial: &trials::Trial, from: &Source) -> Vec<Timed> {
    let log = model::read(&[(from, trial.file, &trial.plain)], &Gap::of_seconds(1, true));
    let line = |n: usize, e: &model::Event| {
        let user = serde_json::Value::from(e.key.as_str());
        format!("{{\"id\":{n},\"user\":{user},\"ts\":{},\"type\":\"view\"}}", e.time)
    };
    log.events.iter().enumerate().map(|(n, e)| Timed { time: e.time, line: line(n, e) }).collect()
}

fn rule(seconds: i64, inclusive: bool, whole: bool) -> Gap {
    let plain = Gap::of_seconds(seconds, inclusive);
    if !whole {
        return plain;
    }
    let kind = |v: &str| Some(Match { field: "kind".into(), values: vec![v.into()] });
    Gap { max_ms: Some(seconds * 5000), start: kind("login"), end: kind("purchase"), ..plain }
}

/// Within the disorder: all lateness, early and boundary settings, copies of a tenth of the lines.
fn within_disorder(name: &str, lines: &[Timed], disorder_ms: i64, gap_s: i64, whole_rule: bool) {
    for seed in 0..env_number("TIDEMILL_SEEDS", 2) {
        let bytes = file_of(&delayed(lines, seed, disorder_ms, true));
        for n in 0..8u64 {
            let (late, early, inclusive) = (n & 1 == 1, n & 2 == 2, n & 4 == 4);
            let what = format!("{name}, seed {seed}, lateness {late}, early {early}, inclusive {inclusive}");
            let gap = rule(gap_s, inclusive, whole_rule);
            let source = source(disorder_ms);
            let log = model::read(&[(&source, FILE, &bytes)], &gap);
            let expected = model::sessions(&log, &BTreeSet::new(), &gap);
            assert!(expected.len() > 50, "{what}: too little to compare");
            let mut config = Config::new(source, gap);
            config.lateness_ms = if late { 120_000 } else { 0 };
            config.early = if early { "\"epoch\"".into() } else { "\"off\"".into() };
            // Short epochs, so that even a short log is folded, sent and corrected in many.
            config.epoch = "10ms".into();
            let ids = Session::GAPS.map(|session| {
                let what = format!("{what}, {session:?}");
                let case = Case::new();
                case.put(FILE, &bytes);
                case.configure(&Config { session, ..config.clone() });
                case.run().exits(0);
                only_invalid(&what, &log, &case.letters());
                same_sinks(&what, &expected, &case);
                identified(&case.table())
            });
            // Early revisions fix ids by what has come until then; without them an id is that of the first event.
            assert!(early || ids[0] == ids[1], "{what}: built in and as a component, the ids differ");
        }
    }
}

#[test]
fn apache_shuffled() {
    let trial = trials::apache();
    let lines = encoded(&trial, &Source::file("a", trial.file, Format::Combined, "host", "time", Unit::Clf));
    within_disorder("apache", &lines, 60_000, 3600, false);
}

#[test]
fn nasa_shuffled() {
    let trial = trials::nasa();
    let lines = encoded(&trial, &Source::file("n", trial.file, Format::Tsv, "host", "time", Unit::Seconds));
    within_disorder("nasa", &lines, 60_000, 300, false);
}

#[test]
fn usagov_shuffled() {
    let trial = trials::usagov();
    let lines = encoded(&trial, &Source::file("u", trial.file, Format::Json, "/a", "/t", Unit::Seconds));
    within_disorder("usagov", &lines, 30_000, 300, false);
}

#[test]
fn hot_keys_with_the_whole_rule_and_invalid_lines() {
    let shop = Shop { seed: 11, events: 30_000, users: 800, step_ms: 200, invalid_every: 100 };
    within_disorder("shop", &shop.lines(), 20_000, 60, true);
}

/// Bug family: a field that is decoded and kept for every event, although the config makes no use of it. A copy with another value
/// of it then is another event's.
#[test]
fn a_field_that_the_config_makes_no_use_of_is_not_looked_for() {
    for (whole, session) in [false, true].into_iter().flat_map(|w| Session::GAPS.map(|s| (w, s))) {
        let case = Case::new();
        let line = |kind: &str| format!("{{\"id\":1,\"user\":\"a\",\"ts\":1000,\"type\":\"{kind}\"}}\n");
        case.put(FILE, (line("view") + &line("click")).as_bytes());
        let what = format!("{session:?}, whole rule: {whole}");
        let mut config = Config::new(source(0), rule(60, false, whole));
        (config.session, config.listen) = (session, Some("127.0.0.1:0".into()));
        config.sources[0].more = "follow = true".into();
        case.configure(&config);
        let process = case.start(&[], &[]);
        let api = Api::of(&case, &process);
        let conflicts = wait_for("the copy", Duration::from_secs(60), || {
            let text = String::from_utf8(api.ask("GET", "/metrics", &[], b"").is(200).body).unwrap();
            let of = |name: &str| {
                let line = text.lines().find(|l| l.starts_with(name))?;
                line.rsplit_once(' ')?.1.parse::<f64>().ok()
            };
            of("tidemill_duplicates_total").filter(|n| *n > 0.0).and_then(|_| of("tidemill_conflicts_total"))
        });
        assert_eq!(conflicts > 0.0, whole, "{what}");
    }
}

/// Beyond the disorder: what the frontier has passed is a letter, the rest is the model's, and nothing is called late
/// that came in time. With lateness, sessions that were final are corrected on the way.
#[test]
fn beyond_disorder_late_lines_are_letters_and_the_rest_is_exact() {
    let shop = Shop { seed: 12, events: 240_000, users: 800, step_ms: 200, invalid_every: 0 };
    for seed in 0..env_number("TIDEMILL_SEEDS", 2) {
        for (lateness_ms, session) in [0, 15_000].into_iter().flat_map(|l| Session::GAPS.map(|s| (l, s))) {
            let what = format!("seed {seed}, lateness {lateness_ms} ms, {session:?}");
            let (gap, source) = (rule(10, seed % 2 == 0, true), source(10_000));
            let bytes = file_of(&delayed(&shop.lines(), seed, 60_000, true));
            let log = model::read(&[(&source, FILE, &bytes)], &gap);
            let case = Case::new();
            case.put(FILE, &bytes);
            let mut config = Config::new(source, gap.clone());
            config.lateness_ms = lateness_ms;
            config.session = session;
            config.epoch = "10ms".into();
            case.configure(&config);
            case.run().exits(0);
            let letters = case.letters();
            let dead = places(&letters);
            let mut greatest = i64::MIN;
            let mut may_be_late = BTreeSet::new();
            for e in &log.events {
                if greatest > i64::MIN && e.time < greatest - 10_000 - lateness_ms {
                    may_be_late.insert(e.place.clone());
                }
                greatest = greatest.max(e.time);
            }
            for letter in &letters {
                assert_eq!(letter["reason"], "late", "{what}: {letter}");
                assert!(may_be_late.contains(&place_of(letter)), "{what}: not late: {letter}");
            }
            assert!(!letters.is_empty(), "{what}: nothing was late; the case proves nothing");
            same_sinks(&what, &model::sessions(&log, &dead, &gap), &case);
            if lateness_ms > 0 {
                let corrected = case.lines("rows.jsonl").iter().any(|s| s.stage == "corrected");
                assert!(corrected, "{what}: nothing was corrected; the case proves nothing");
            }
        }
    }
}
