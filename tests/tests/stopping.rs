//! Sessions end without a further event, days join, and stages go where they are sent.
//!
//! The bug family: time that only moves with events, so that the last visitor's session never ends, and an end of
//! input that closes what tomorrow's file would have continued. All of it is run by `builtin:gap` and by the component.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::time::{Duration, Instant};
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{Shop, file_of};
use tidemill_tests::{Case, Config, Session, Stored, current, latest, same_sinks, same_table, wait_for};

fn source(path: &str) -> Source {
    let file = Source::file("web", path, Format::Json, "user", "ts", Unit::Millis);
    Source { disorder_ms: 1000, ..file }
}

/// Every line, or none while the last stands there half-written.
fn whole_lines(case: &Case) -> Vec<Stored> {
    let text = std::fs::read_to_string(case.path("rows.jsonl")).unwrap_or_default();
    if text.is_empty() || text.ends_with('\n') { case.lines("rows.jsonl") } else { Vec::new() }
}

#[test]
fn the_last_visitor_of_an_open_pipe_becomes_final() {
    for session in Session::GAPS {
        let mut stdin = source("-");
        stdin.more = "idle = \"1s\"".into();
        let gap = Gap::of_seconds(2, false);
        let case = Case::new();
        let mut config = Config { session, ..Config::new(stdin.clone(), gap.clone()) };
        config.epoch = "100ms".into();
        case.configure(&config);
        let mut process = case.start(&[], &[]);
        let lines: String = (0..5)
            .map(|n| format!("{{\"user\":\"last\",\"ts\":{}}}\n", 1_714_521_600_000i64 + n * 100))
            .collect();
        let expected =
            model::sessions(&model::read(&[(&stdin, "-", lines.as_bytes())], &gap), &BTreeSet::new(), &gap);
        process.stdin().write_all(lines.as_bytes()).unwrap();
        process.stdin().flush().unwrap();
        let piped = Instant::now();
        let looked_at = &case;
        let seen = |stage: &'static str| {
            move || -> Option<Vec<Stored>> {
                let rows = latest(whole_lines(looked_at));
                (rows.len() == 1 && rows[0].stage == stage && rows[0].row.events == 5).then_some(rows)
            }
        };
        let early = wait_for("an early row", Duration::from_secs(2), seen("early"));
        assert_eq!((early[0].row.start_ms, early[0].row.end_ms), (expected[0].start_ms, expected[0].end_ms));
        // Final once gap, disorder and idle have passed; the rest of the time is for slow machines.
        let last = wait_for("a final row", Duration::from_secs(2 + 1 + 1 + 4), seen("final"));
        assert!(piped.elapsed() >= Duration::from_secs(2), "final before the gap has passed");
        same_table("open pipe", &expected, &current(&last));
        assert!(!process.ended(), "the pipe is open, so the run must go on");
        process.outcome(Duration::from_secs(30)).exits(0);
        same_sinks("after the end of the pipe", &expected, &case);
    }
}

/// Rows with their stages but for ids and revisions, which tell how a run went, not what it found.
fn staged(case: &Case) -> Vec<(Row, String)> {
    let mut rows: Vec<_> =
        case.table().into_iter().filter(|s| s.stage != "retracted").map(|s| (s.row, s.stage)).collect();
    rows.sort();
    rows
}

#[test]
fn two_days_held_equal_one_run_over_both() {
    let lines = Shop { seed: 5, events: 20_000, users: 500, step_ms: 200, invalid_every: 50 }.lines();
    let (first, second) = lines.split_at(lines.len() / 2);
    let days = [("days/1.jsonl", file_of(first)), ("days/2.jsonl", file_of(second))];
    let gap = Gap { max_ms: Some(600_000), ..Gap::of_seconds(60, true) };
    for session in Session::GAPS {
        let mut config = Config { session, ..Config::new(source("days/*.jsonl"), gap.clone()) };
        config.end_of_input = "hold".into();

        let one_by_one = Case::new();
        one_by_one.configure(&config);
        one_by_one.put(days[0].0, &days[0].1);
        one_by_one.run().exits(0);
        let open_after_day_one = one_by_one.table().iter().filter(|s| s.stage == "early").count();
        assert!(open_after_day_one > 0, "hold must leave sessions open");
        one_by_one.put(days[1].0, &days[1].1);
        one_by_one.run().exits(0);

        let together = Case::new();
        together.configure(&config);
        days.iter().for_each(|(name, bytes)| together.put(name, bytes));
        together.run().exits(0);
        let (apart, at_once) = (staged(&one_by_one), staged(&together));
        let differ = apart.iter().zip(&at_once).find(|(a, b)| a != b);
        assert!(differ.is_none(), "two runs and one differ first in {differ:?}");
        assert_eq!(apart.len(), at_once.len());
        assert_eq!(one_by_one.letters().len(), together.letters().len());

        // The model closes everything; but for the open sessions' reasons that is the same.
        let s = source("");
        let log = model::read(&[(&s, "1.jsonl", &days[0].1), (&s, "2.jsonl", &days[1].1)], &gap);
        let strip =
            |rows: Vec<Row>| -> Vec<Row> { rows.into_iter().map(|r| Row { reason: None, ..r }).collect() };
        let expected = strip(model::sessions(&log, &BTreeSet::new(), &gap));
        same_table("two days", &expected, &strip(current(&one_by_one.table())));
        for stored in one_by_one.table().iter().filter(|s| s.stage == "final") {
            assert!(stored.row.reason.is_some(), "final without a reason: {stored:?}");
        }
    }
}

fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Bounded input is held against the clock at which it was there, not against the pipeline's first start.
#[test]
fn each_day_is_judged_by_its_own_clock() {
    let mut config = Config::new(source("days/*.jsonl"), Gap::of_seconds(60, false));
    config.end_of_input = "hold".into();
    config.sources[0].more = "far_future = \"1s\"".into();
    let case = Case::new();
    case.configure(&config);
    // Two events of now, and one that no clock allows.
    let day = || {
        let (now, ahead) = (now_ms(), now_ms() + 3_600_000);
        format!(
            "{{\"user\":\"a\",\"ts\":{now}}}\n{{\"user\":\"a\",\"ts\":{now}}}\n{{\"user\":\"far\",\"ts\":{ahead}}}\n"
        )
    };
    let later = || {
        let from = now_ms();
        wait_for("more than `far_future` to pass", Duration::from_secs(10), || {
            (now_ms() > from + 2_000).then_some(())
        });
    };
    let mut days = 0;
    let mut run = |what: &str, arguments: &[&str]| {
        days += 1;
        case.start(arguments, &[]).outcome(Duration::from_secs(60)).exits(0);
        let events: u64 = current(&case.table()).iter().map(|r| r.events).sum();
        assert_eq!(events, 2 * days, "{what}: {:?}", case.letters());
        assert_eq!(case.letters().len() as u64, days, "{what}");
        assert!(case.letters().iter().all(|l| l["reason"] == "far_future"), "{what}");
    };
    case.put("days/1.jsonl", day().as_bytes());
    run("the first day", &[]);
    later();
    case.put("days/2.jsonl", day().as_bytes());
    run("another file", &[]);
    later();
    let grown = std::fs::read_to_string(case.path("days/2.jsonl")).unwrap() + &day();
    case.put("days/2.jsonl", grown.as_bytes());
    run("a file that has grown", &[]);
    // The same for a finished pipeline that is opened again.
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    std::fs::write(case.path("pipeline.toml"), text.replace("\"hold\"", "\"close\"")).unwrap();
    case.run().exits(0);
    later();
    case.put("days/3.jsonl", day().as_bytes());
    run("after the end", &["--reopen"]);
}

/// Followed files have no end, and time goes on in them also when the one with the events is gone, or never was one.
#[test]
fn an_empty_live_file_does_not_keep_sessions_open() {
    let gap = Gap::of_seconds(2, false);
    let live = Source { more: "follow = true\nidle = \"500ms\"".into(), ..source("live.log") };
    let history = Source { name: "old".into(), ..source("old.log") };
    let lines: String =
        (0..3).map(|n| format!("{{\"user\":\"u\",\"ts\":{}}}\n", 1_714_521_600_000i64 + n * 100)).collect();
    for cut in [true, false] {
        let mut config = Config::new(live.clone(), gap.clone());
        config.epoch = "100ms".into();
        let case = Case::new();
        case.put("live.log", if cut { lines.as_bytes() } else { b"" });
        if !cut {
            config.sources.push(history.clone());
            case.put("old.log", lines.as_bytes());
        }
        case.configure(&config);
        let mut process = case.start(&[], &[]);
        let seen = |stage: &'static str| {
            let case = &case;
            move || {
                let rows = latest(whole_lines(case));
                (rows.len() == 1 && rows[0].stage == stage && rows[0].row.events == 3).then_some(())
            }
        };
        if cut {
            wait_for("an early row", Duration::from_secs(10), seen("early"));
            std::fs::File::options().write(true).open(case.path("live.log")).unwrap().set_len(0).unwrap();
        }
        // Idle, disorder and gap; the rest is for slow machines.
        wait_for(
            if cut { "final after a cut" } else { "final beside an empty file" },
            Duration::from_secs(15),
            seen("final"),
        );
        assert!(!process.ended());
    }
}

/// Time while running counts, however often it is interrupted.
#[test]
fn a_session_ends_in_spite_of_restarts() {
    let gap = Gap::of_seconds(6, false);
    let live = Source { more: "follow = true\nidle = \"300ms\"".into(), ..source("live.log") };
    let mut config = Config::new(live, gap);
    config.epoch = "100ms".into();
    let case = Case::new();
    case.put("live.log", b"{\"user\":\"u\",\"ts\":1714521600000}\n");
    case.configure(&config);
    // Each too short by itself: gap and disorder are seven seconds.
    const RUN: Duration = Duration::from_secs(2);
    let mut runs = 0;
    while !case.lines("rows.jsonl").iter().any(|s| s.stage == "final") {
        runs += 1;
        assert!(runs <= 8, "still open after {} runs of {RUN:?}", runs - 1);
        let (process, begun) = (case.start(&[], &[]), Instant::now());
        wait_for("its time", RUN * 2, || (begun.elapsed() >= RUN).then_some(()));
        process.terminate();
        process.outcome(Duration::from_secs(30)).exits(0);
    }
    assert!(runs >= 3, "final after {runs} runs: sooner than its gap");
}

#[test]
fn stages_go_to_their_sinks() {
    let lines = Shop { seed: 6, events: 150_000, users: 2000, step_ms: 20, invalid_every: 0 }.lines();
    let bytes = file_of(&lines);
    let gap = Gap::of_seconds(30, false);
    let source = source("in.jsonl");
    let expected =
        model::sessions(&model::read(&[(&source, "in.jsonl", &bytes)], &gap), &BTreeSet::new(), &gap);
    for session in Session::GAPS {
        let case = Case::new();
        case.put("in.jsonl", &bytes);
        let mut config = Config { session, ..Config::new(source.clone(), gap.clone()) };
        config.epoch = "10ms".into();
        config.to = r#"[{ sink = "rows", stages = ["early"] },
          { sink = "sessions", stages = ["final", "corrected", "retracted"] }]"#
            .into();
        case.configure(&config);
        case.run().exits(0);

        let table = case.table();
        assert!(
            table.iter().all(|s| s.stage == "final"),
            "in order, so nothing is corrected, and no early row comes here"
        );
        same_table("the final rows", &expected, &current(&table));
        let finals: BTreeMap<&str, &Stored> = table.iter().map(|s| (s.id.as_str(), s)).collect();
        let early = case.lines("rows.jsonl");
        assert!(!early.is_empty(), "no early row");
        for e in &early {
            assert_eq!(e.stage, "early", "{e:?}");
            // Input in order: an early session is a beginning of the final one.
            let f = finals.get(e.id.as_str()).unwrap_or_else(|| panic!("never final: {e:?}"));
            assert_eq!((&e.row.key, e.row.start_ms), (&f.row.key, f.row.start_ms));
            assert!(e.row.events <= f.row.events && e.row.end_ms <= f.row.end_ms, "{e:?} and then {f:?}");
            assert!(e.revision < f.revision, "{e:?} and then {f:?}");
        }
    }
}
