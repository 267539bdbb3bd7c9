//! Whole tables of real logs equal the naive model's, and both the counts that other programs found.
//!
//! The bug family: a decoder or a watermark that is right for made-up data only. With made-up stand-ins (no
//! `TIDEMILL_TRIALS`) the known counts are not asserted, everything else is. All of it is run by `builtin:gap` and by the
//! component `gap-sessions`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use tidemill_tests::model::{self, Format, Gap, Log, Row, Source, Unit};
use tidemill_tests::{
    Case, Config, Session, current, only_invalid, place_of, places, same_sinks, same_table, trials,
};
use trials::Trial;

fn sum(rows: &[Row]) -> u64 {
    rows.iter().map(|r| r.events).sum()
}

/// Runs one file through the model and the binary, by the built-in rule and by the component; all must agree, the letters
/// being the invalid lines.
fn run_one(trial: &Trial, source: &Source, gap: &Gap) -> (Case, Log, Vec<Row>) {
    let what = format!("{} by {:?}, {gap:?}", trial.file, source.key);
    let plain_name = trial.file;
    let log = model::read(&[(source, plain_name, &trial.plain)], gap);
    let expected = model::sessions(&log, &BTreeSet::new(), gap);
    let [_, component] = Session::GAPS.map(|session| {
        let what = format!("{what}, {session:?}");
        let case = Case::new();
        case.put(trial.file, &trial.packed);
        case.configure(&Config { session, ..Config::new(source.clone(), gap.clone()) });
        case.run().exits(0);
        same_sinks(&what, &expected, &case);
        only_invalid(&what, &log, &case.letters());
        case
    });
    (component, log, expected)
}

/// (gap s, sessions inclusive, sessions exclusive).
type Counts = [(i64, usize, usize)];

fn counted(trial: &Trial, source: &Source, counts: &Counts, events: u64) {
    for (seconds, inclusive, exclusive) in counts {
        for (boundary, count) in [(true, inclusive), (false, exclusive)] {
            let (_, log, rows) = run_one(trial, source, &Gap::of_seconds(*seconds, boundary));
            assert_eq!(sum(&rows), log.events.len() as u64, "true repeats are events");
            if trial.real {
                let what = format!("{} at {seconds} s, inclusive: {boundary}", trial.file);
                assert_eq!((rows.len(), sum(&rows)), (*count, events), "{what}");
            }
        }
    }
}

fn apache(path: &str) -> Source {
    Source::file("web", path, Format::Combined, "host", "time", Unit::Clf)
}

#[test]
fn apache_by_host() {
    let trial = trials::apache();
    let counts = [(300, 3052, 3052), (1800, 3052, 3052), (3600, 2563, 2577)];
    counted(&trial, &apache(trial.file), &counts, 10_000);
    let log = model::read(&[(&apache(trial.file), trial.file, &trial.plain)], &Gap::of_seconds(300, true));
    assert!(log.invalid.is_empty(), "every line is an event");
    let out_of_order = log.events.windows(2).filter(|w| w[1].time < w[0].time).count();
    if trial.real {
        assert_eq!(out_of_order, 4_915, "lines that stand before an earlier one, and yet nothing is late");
    }
    assert!(out_of_order > log.events.len() / 3, "{out_of_order} of {}", log.events.len());
}

#[test]
fn nasa_by_host() {
    let trial = trials::nasa();
    let source = Source::file("nasa", trial.file, Format::Tsv, "host", "time", Unit::Seconds);
    counted(&trial, &source, &[(300, 1387, 1389), (1800, 1004, 1004), (3600, 957, 957)], 9_999);
}

#[test]
fn usagov_by_link_and_by_agent() {
    let trial = trials::usagov();
    let cases: [(&str, &Counts); 2] =
        [("/g", &[(300, 1072, 1072), (1800, 781, 781)]), ("/a", &[(300, 1085, 1086), (1800, 798, 798)])];
    for (key, counts) in cases {
        let source = Source::file("clicks", trial.file, Format::Json, key, "/t", Unit::Seconds);
        counted(&trial, &source, counts, 3_440);
        let (case, log, _) = run_one(&trial, &source, &Gap::of_seconds(300, true));
        let letters = case.letters();
        assert_eq!(letters.len(), log.invalid.len());
        assert!(!trial.real || letters.len() == 120, "{} letters", letters.len());
        for letter in &letters {
            assert_eq!(letter["reason"], "missing_field", "{letter}");
            let fields: Vec<&str> =
                letter["fields"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
            // A heartbeat has neither key nor time: both must be named, by what they are or by where they should be.
            for names in [["key", key], ["time", "/t"]] {
                assert!(fields.iter().any(|f| names.contains(f)), "{names:?} not named in {letter}");
            }
            assert_eq!(fields.len(), 2, "{letter}");
            assert!(letter["raw"].as_str().unwrap().contains("_heartbeat_"), "{letter}");
        }
    }
}

#[test]
fn json_test_suite_as_values_inside_records() {
    let (cases, real) = trials::json_suite();
    // A line cannot hold a newline; the decoder's own unit test has the others.
    let cases: Vec<_> = cases.into_iter().filter(|(_, bytes)| !bytes.contains(&b'\n')).collect();
    let good = |n: usize| format!("{{\"k\":\"good\",\"t\":1,\"v\":{n}}}\n").into_bytes();
    let mut file = Vec::new();
    (0..200).for_each(|n| file.extend(good(n)));
    let mut starts: BTreeMap<u64, &str> = BTreeMap::new();
    for (name, bytes) in &cases {
        starts.insert(file.len() as u64, name);
        file.extend_from_slice(b"{\"k\":\"a\",\"t\":1,\"v\":");
        file.extend_from_slice(bytes);
        file.extend_from_slice(b"}\n");
    }
    (200..400).for_each(|n| file.extend(good(n)));

    for session in Session::GAPS {
        let case = Case::new();
        case.put("suite.jsonl", &file);
        let source = Source::file("suite", "suite.jsonl", Format::Json, "k", "t", Unit::Millis);
        case.configure(&Config { session, ..Config::new(source, Gap::of_seconds(300, true)) });
        case.run().exits(0);

        let letters = case.letters();
        let dead = places(&letters);
        for letter in &letters {
            assert_eq!(letter["reason"], "malformed_json", "{letter}");
            assert!(starts.contains_key(&place_of(letter).offset), "a good event is dead: {letter}");
        }
        let of = |kind: &str| {
            starts.iter().filter(|(_, n)| n.starts_with(kind)).map(|(o, n)| (*o, *n)).collect::<Vec<_>>()
        };
        let is_dead = |offset: u64| dead.iter().any(|p| p.offset == offset);
        let taken: Vec<_> = of("n_").into_iter().filter(|(o, _)| !is_dead(*o)).collect();
        assert!(taken.is_empty(), "must be refused: {taken:?}");
        let refused: Vec<_> = of("y_").into_iter().filter(|(o, _)| is_dead(*o)).collect();
        assert!(refused.is_empty(), "must be taken: {refused:?}");
        if real {
            assert_eq!((of("n_").len(), of("y_").len()), (182, 91), "files without a newline");
        }
        let table = current(&case.table());
        let events: BTreeMap<&str, u64> = table.iter().map(|r| (r.key.as_str(), r.events)).collect();
        assert_eq!(events, BTreeMap::from([("a", (cases.len() - letters.len()) as u64), ("good", 400)]));
    }
}

/// Every way of cutting a log gives the table of the whole, and nothing is late: files are read in step.
#[test]
fn apache_cut_into_files() {
    let trial = trials::apache();
    let gap = Gap::of_seconds(1800, false);
    let whole = apache(trial.file);
    let expected =
        model::sessions(&model::read(&[(&whole, trial.file, &trial.plain)], &gap), &BTreeSet::new(), &gap);
    let source = apache("cut/*.log");

    let lines = model::records(Format::Combined, &trial.plain);
    let hour = |line: &[u8]| {
        let at = line.iter().position(|b| *b == b'[').unwrap();
        line[at + 1..at + 15].to_vec()
    };
    let mut hours: Vec<Vec<u8>> = Vec::new();
    for (_, line) in &lines {
        if !hours.contains(&hour(line)) {
            hours.push(hour(line));
        }
    }
    let by_hash = |n: usize, _: &[u8]| (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize >> 61;
    let by_hour = |_: usize, line: &[u8]| hours.iter().position(|h| *h == hour(line)).unwrap();
    let reverse = |n: usize, line: &[u8]| 999 - by_hour(n, line);
    type Cut<'a> = (&'a str, &'a dyn Fn(usize, &[u8]) -> usize);
    let cuts: [Cut<'_>; 3] = [("by hash", &by_hash), ("by hour", &by_hour), ("by hour in reverse", &reverse)];
    for (what, part_of) in cuts {
        let mut parts: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for (n, (_, line)) in lines.iter().enumerate() {
            let part = parts.entry(part_of(n, line)).or_default();
            part.extend_from_slice(line);
            part.push(b'\n');
        }
        for session in Session::GAPS {
            let case = Case::new();
            for (n, bytes) in &parts {
                case.put(&format!("cut/{n:03}.log"), bytes);
            }
            case.configure(&Config { session, ..Config::new(source.clone(), gap.clone()) });
            case.run().exits(0);
            assert!(case.letters().is_empty(), "{what}, {} files: {:?}", parts.len(), case.letters().first());
            same_sinks(what, &expected, &case);
        }
    }
}

#[test]
fn one_pipeline_over_two_sources_of_different_shape() {
    let trial = trials::apache();
    let text = String::from_utf8(trial.plain.clone()).unwrap();
    // Every other line becomes JSON with nested paths, its time a number.
    let web = apache("web.log");
    let log = model::read(&[(&web, "web.log", &trial.plain)], &Gap::of_seconds(1, true));
    let (mut lines, mut json) = (String::new(), String::new());
    for (n, (line, e)) in text.lines().zip(&log.events).enumerate() {
        if n % 2 == 0 {
            lines += line;
            lines.push('\n');
        } else {
            json += &format!("{{\"who\":{{\"ip\":\"{}\",\"x\":[1]}},\"at\":{{\"ms\":{}}}}}\n", e.key, e.time);
        }
    }
    let app = Source::file("app", "app.jsonl", Format::Json, "/who/ip", "/at/ms", Unit::Millis);
    let gap = Gap::of_seconds(3600, false);
    let files = [(&web, "web.log", lines.as_bytes()), (&app, "app.jsonl", json.as_bytes())];
    let both = model::read(&files, &gap);
    let expected = model::sessions(&both, &BTreeSet::new(), &gap);
    if trial.real {
        assert_eq!(expected.len(), 2577, "two shapes, the same sessions");
    }
    for session in Session::GAPS {
        let case = Case::new();
        case.put("web.log", lines.as_bytes());
        case.put("app.jsonl", json.as_bytes());
        let mut config = Config { session, ..Config::new(web.clone(), gap.clone()) };
        config.sources.push(app.clone());
        case.configure(&config);
        case.run().exits(0);
        same_table("two sources", &expected, &current(&case.table()));
        same_sinks("two sources", &expected, &case);
        assert!(case.letters().is_empty());
    }
}

/// The model is held to the known counts by itself, whatever the binary does.
#[test]
fn the_model_has_the_known_counts() {
    let (a, n, u) = (trials::apache(), trials::nasa(), trials::usagov());
    let clicks = |key: &str| Source::file("c", u.file, Format::Json, key, "/t", Unit::Seconds);
    let nasa = Source::file("n", n.file, Format::Tsv, "host", "time", Unit::Seconds);
    let known: [(&Trial, Source, &Counts, u64); 4] = [
        (&a, apache(a.file), &[(300, 3052, 3052), (1800, 3052, 3052), (3600, 2563, 2577)], 10_000),
        (&n, nasa, &[(300, 1387, 1389), (1800, 1004, 1004), (3600, 957, 957)], 9_999),
        (&u, clicks("/g"), &[(300, 1072, 1072), (1800, 781, 781)], 3_440),
        (&u, clicks("/a"), &[(300, 1085, 1086), (1800, 798, 798)], 3_440),
    ];
    for (trial, source, counts, events) in known {
        for (seconds, inclusive, exclusive) in counts {
            for (boundary, count) in [(true, *inclusive), (false, *exclusive)] {
                let gap = Gap::of_seconds(*seconds, boundary);
                let log = model::read(&[(&source, trial.file, &trial.plain)], &gap);
                let rows = model::sessions(&log, &BTreeSet::new(), &gap);
                assert_eq!(sum(&rows), log.events.len() as u64);
                if trial.real {
                    assert_eq!(
                        (rows.len(), sum(&rows)),
                        (count, events),
                        "{} {:?} {gap:?}",
                        trial.file,
                        source.key
                    );
                }
            }
        }
    }
}
