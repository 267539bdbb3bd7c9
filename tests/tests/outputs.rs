//! What a pipeline writes to is its own, and nothing else is: not a stranger's file, not its own input.
//!
//! The bug family: a file that is emptied because its path stands in a config, a pipeline that reads what it writes, a
//! `check` that lets pass what the run then refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::process::{Command, Stdio};
use std::time::Duration;
use tidemill_tests::model::{Format, Gap, Source, Unit};
use tidemill_tests::{Case, Config, Outcome, RUN_MAX, binary, current};

const EVENTS: &str = "{\"k\":\"a\",\"t\":1000}\n{\"k\":\"a\",\"t\":2000}\n{\"k\":\"b\",\"t\":3000}\n";

fn config(path: &str) -> Config {
    let source = Source::file("web", path, Format::Json, "k", "t", Unit::Millis);
    let mut config = Config::new(source, Gap::of_seconds(60, false));
    config.end_of_input = "hold".into();
    config
}

/// A case with the events in `in.jsonl`.
fn ready() -> Case {
    let case = Case::new();
    case.put("in.jsonl", EVENTS.as_bytes());
    case.configure(&config("in.jsonl"));
    case
}

/// Replaces one text of the config by another.
fn edit(case: &Case, from: &str, to: &str) {
    let path = case.path("pipeline.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "the config has no {from}:\n{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

fn fresh(case: &Case) -> Outcome {
    case.start(&["--fresh"], &[]).outcome(RUN_MAX)
}

fn check(case: &Case) -> Outcome {
    let mut command = Command::new(binary());
    command.arg("check").arg(case.path("pipeline.toml")).current_dir(case.path(""));
    let out = command.stdin(Stdio::null()).output().unwrap();
    let said = [out.stdout, out.stderr].map(|b| String::from_utf8(b).unwrap()).concat();
    Outcome { code: out.status.code(), said }
}

#[test]
fn starting_over_empties_nothing_that_the_pipeline_did_not_write() {
    for sink in ["rows.jsonl", "dead.jsonl"] {
        let case = ready();
        case.put(sink, b"precious\n");
        for _ in 0..2 {
            fresh(&case).exits(6).says(sink).says("did not write");
            assert_eq!(std::fs::read(case.path(sink)).unwrap(), b"precious\n");
        }
        check(&case).exits(4).says(sink).says("did not write");
        std::fs::remove_file(case.path(sink)).unwrap();
        check(&case).exits(0);
        fresh(&case).exits(0);
        let rows = std::fs::read(case.path("rows.jsonl")).unwrap();
        // Its own it does empty, and writes them anew.
        fresh(&case).exits(0);
        let again = std::fs::read(case.path("rows.jsonl")).unwrap();
        assert_eq!(
            rows.iter().filter(|b| **b == b'\n').count(),
            again.iter().filter(|b| **b == b'\n').count()
        );
        // Somebody has put another file there, shorter than what was written.
        case.put("rows.jsonl", b"precious\n");
        let before = (current(&case.table()), case.letters());
        fresh(&case).exits(6).says("rows.jsonl").says("holds 9 bytes");
        check(&case).exits(4).says("rows.jsonl").says("holds 9 bytes");
        assert_eq!(std::fs::read(case.path("rows.jsonl")).unwrap(), b"precious\n");
        assert!(
            before == (current(&case.table()), case.letters()),
            "refused, and yet another sink was emptied"
        );
    }
}

#[test]
fn a_sink_that_moves_touches_nothing_at_its_new_place() {
    let case = ready();
    case.run().exits(0);
    let mut precious = vec![b'x'; 1 << 20];
    precious.push(b'\n');
    case.put("other.jsonl", &precious);
    edit(&case, "rows.jsonl", "other.jsonl");
    for arguments in [vec![], vec!["--resend", "rows"], vec!["--fresh"]] {
        let outcome = case.start(&arguments, &[]).outcome(RUN_MAX);
        outcome.exits(6).says("other.jsonl");
        assert!(std::fs::read(case.path("other.jsonl")).unwrap() == precious, "{arguments:?}: touched");
    }
    check(&case).exits(4).says("--resend rows").says("other.jsonl");
    // Nothing stands at the new place: what is kept is sent again.
    edit(&case, "other.jsonl", "new.jsonl");
    case.run().exits(6).says("--resend rows");
    case.start(&["--resend", "rows"], &[]).outcome(RUN_MAX).exits(0);
    assert_eq!(case.lines("new.jsonl"), case.lines("rows.jsonl"));
    // Back again: the table is asked in the same way.
    edit(&case, "new.jsonl", "./new.jsonl");
    edit(&case, "table = \"sessions\"", "table = \"visits\"");
    check(&case).exits(4).says("table visits");
    case.run().exits(6).says("table visits").says("--resend sessions");
}

#[test]
fn no_source_reads_what_a_sink_writes() {
    for (pattern, sink) in [
        ("in.jsonl", "in.jsonl"),
        ("*.jsonl", "rows.jsonl"),
        ("in.jsonl", "./link.jsonl"),
        ("*", "sessions.db-wal"),
        ("here/*.jsonl", "rows.jsonl"),
    ] {
        let case = ready();
        std::os::unix::fs::symlink(case.path("in.jsonl"), case.path("link.jsonl")).unwrap();
        std::os::unix::fs::symlink(case.path(""), case.path("here")).unwrap();
        case.configure(&config(pattern));
        if !sink.starts_with("sessions") && sink != "rows.jsonl" {
            edit(&case, "/dead.jsonl", &format!("/{sink}"));
        }
        let name = sink.trim_start_matches("./");
        for outcome in [check(&case), case.run(), fresh(&case)] {
            outcome.exits(4).says("which the sink").says(&format!("/{pattern}\""));
        }
        assert_eq!(std::fs::read_to_string(case.path("in.jsonl")).unwrap(), EVENTS, "{pattern}, {name}");
    }
    // Beside each other is fine.
    let case = ready();
    case.put("in/1.jsonl", EVENTS.as_bytes());
    case.configure(&config("in/*.jsonl"));
    check(&case).exits(0);
    case.run().exits(0);
}

#[test]
fn check_says_what_a_run_would_refuse() {
    let refused = |case: &Case, code: i32, what: &str| {
        let before = case.segments().len();
        check(case).exits(4).says(what);
        case.run().exits(code).says(what);
        assert_eq!(before, case.segments().len());
    };
    let case = ready();
    case.put("sessions.db", &[b'x'; 4096]);
    refused(&case, 4, "not a SQLite database");

    let case = ready();
    case.database().execute_batch("CREATE TABLE sessions (x)").unwrap();
    refused(&case, 4, "column `session_id` is missing");

    let case = ready();
    edit(&case, &case.path("rows.jsonl").display().to_string(), "/dev/null");
    refused(&case, 4, "not a regular file");

    // The state goes, the rows stay.
    for to in [r#"["sessions"]"#, r#"["rows"]"#] {
        let case = Case::new();
        case.put("in.jsonl", EVENTS.as_bytes());
        case.configure(&Config { to: to.into(), ..config("in.jsonl") });
        case.run().exits(0);
        check(&case).exits(0);
        edit(&case, &case.path("state").display().to_string(), &case.path("elsewhere").display().to_string());
        let what = if to.contains("rows") { "did not write" } else { "data_dir" };
        refused(&case, 6, what);
    }

    let case = ready();
    case.run().exits(0);
    // As long as its head, and shorter than what was read: as a copy that broke off.
    let long: String = (0..100).map(|n| format!("{{\"k\":\"a\",\"t\":{}}}\n", 10_000 + n)).collect();
    let case_long = Case::new();
    case_long.put("in.jsonl", long.as_bytes());
    case_long.configure(&config("in.jsonl"));
    case_long.run().exits(0);
    case_long.put("in.jsonl", &long.as_bytes()[..1500]);
    refused(&case_long, 6, "in.jsonl");
    drop(case);
}

#[test]
fn a_pipe_in_place_of_a_file_is_refused_and_not_waited_for() {
    let case = ready();
    std::fs::remove_file(case.path("in.jsonl")).unwrap();
    assert!(Command::new("mkfifo").arg(case.path("in.jsonl")).status().unwrap().success());
    let max = Duration::from_secs(20);
    case.start(&[], &[]).outcome(max).exits(4).says("in.jsonl").says("stdin");
    check(&case).exits(4).says("stdin");
}

/// As the advice has it: another name, and another table and path.
#[test]
fn another_name_and_other_places_keep_both_apart() {
    let case = ready();
    case.run().exits(0);
    let before = (case.table(), std::fs::read(case.path("rows.jsonl")).unwrap());
    edit(&case, "key = \"k\"", "key = \"t\"");
    case.run().exits(4).says("another name").says("another table or path");
    edit(&case, "pipeline.visits", "pipeline.others");
    check(&case).exits(4).says("rows.jsonl");
    edit(&case, "/rows.jsonl", "/others.jsonl");
    edit(&case, "/dead.jsonl", "/others-dead.jsonl");
    edit(&case, "table = \"sessions\"", "table = \"others\"");
    check(&case).exits(0);
    case.run().exits(0);
    assert!(before == (case.table(), std::fs::read(case.path("rows.jsonl")).unwrap()));
    let lines = std::fs::read_to_string(case.path("others.jsonl")).unwrap();
    assert!(!lines.is_empty() && lines.lines().all(|l| l.contains("\"pipeline\":\"others\"")), "{lines}");
}

/// One table may hold several pipelines' rows; whose they are is to be seen.
#[test]
fn rows_of_a_pipeline_that_is_gone_are_marked() {
    let case = ready();
    edit(&case, "to = [\"sessions\", \"rows\"]", "to = [\"sessions\"]");
    case.run().exits(0);
    edit(&case, "pipeline.visits", "pipeline.others");
    edit(&case, "/dead.jsonl", "/others-dead.jsonl");
    case.run().exits(0);
    let mut command = Command::new(binary());
    let out = command.arg("sessions").arg(case.path("pipeline.toml")).output().unwrap();
    let said = [out.stdout, out.stderr].map(|b| String::from_utf8(b).unwrap()).concat();
    assert!(
        said.contains("visits") && said.contains("others") && said.contains("no pipeline `visits`"),
        "{said}"
    );
}

/// A pipe is another one at each run; whoever looks before running is told.
#[test]
fn check_says_that_a_pipe_cannot_be_read_again() {
    let case = ready();
    check(&case).exits(0);
    assert!(!check(&case).said.contains("cannot be read again"));
    case.configure(&config("-"));
    check(&case).exits(0).says("standard input cannot be read again");
}
