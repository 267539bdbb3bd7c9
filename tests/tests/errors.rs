//! Bad input and bad circumstances get a clear answer, an exit code that a script can tell apart, and lose nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{Shop, file_of};
use tidemill_tests::trials::pack;
use tidemill_tests::{Case, Config, Outcome, RUN_MAX, binary, current, same_sinks, same_table, wait_for};

fn source(path: &str) -> Source {
    Source::file("web", path, Format::Json, "user", "ts", Unit::Millis)
}

fn gap() -> Gap {
    Gap::of_seconds(60, false)
}

fn shop() -> Vec<u8> {
    file_of(&Shop { seed: 21, events: 5000, users: 200, step_ms: 200, invalid_every: 0 }.lines())
}

fn expected(path: &str, bytes: &[u8]) -> Vec<Row> {
    model::sessions(&model::read(&[(&source(path), path, bytes)], &gap()), &BTreeSet::new(), &gap())
}

/// A case with the shop's traffic in `in.jsonl`.
fn ready() -> (Case, Config) {
    let case = Case::new();
    case.put("in.jsonl", &shop());
    let config = Config::new(source("in.jsonl"), gap());
    case.configure(&config);
    (case, config)
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let (case, mut config) = ready();
    config.sources[0].more = "disordr = \"5s\"".into();
    case.configure(&config);
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let line = 1 + text.lines().position(|l| l.starts_with("disordr")).unwrap();
    let outcome = case.run();
    outcome.exits(4).says("disordr").says("disorder").says(&line.to_string());
    assert!(
        !case.path("state").exists() && !case.path("sessions.db").exists(),
        "opened before all was checked"
    );
}

#[test]
fn a_missing_file_is_named() {
    let case = Case::new();
    case.configure(&Config::new(source("nowhere.jsonl"), gap()));
    case.run().exits(4).says("nowhere.jsonl");
}

#[test]
fn an_unreadable_input_is_named() {
    let case = Case::new();
    // Root may read any file, but nobody reads a folder as one.
    std::fs::create_dir(case.path("folder.jsonl")).unwrap();
    case.configure(&Config::new(source("folder.jsonl"), gap()));
    case.run().exits(4).says("folder.jsonl");
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let (case, mut config) = ready();
    case.put("taken", b"a file stands here");
    config.data_dir = Some(case.path("taken/state"));
    case.configure(&config);
    let outcome = case.run();
    assert!(matches!(outcome.code, Some(4 | 5)), "exit {:?}: {}", outcome.code, outcome.said);
    outcome.says("taken");
    assert!(!case.path("rows.jsonl").exists() || case.lines("rows.jsonl").is_empty(), "rows without a store");
}

#[test]
fn a_truncated_gzip_commits_what_is_before_and_goes_on_when_it_is_whole() {
    let bytes = shop();
    let whole = pack(&bytes);
    let cut = &whole[..whole.len() * 7 / 10];
    let mut readable = Vec::new();
    // The error at the end is the point; what was read before it counts.
    let _ = flate2::read::MultiGzDecoder::new(cut).read_to_end(&mut readable);
    let lines = readable.iter().filter(|b| **b == b'\n').count() as u64;
    assert!(lines > 500 && lines < 5000);
    let case = Case::new();
    case.put("in.jsonl.gz", cut);
    case.configure(&Config::new(source("in.jsonl.gz"), gap()));
    case.run().exits(1).says("in.jsonl.gz");
    let committed: u64 = current(&case.table()).iter().map(|r| r.events).sum();
    let used = committed + case.letters().len() as u64;
    assert_eq!(used, lines, "every line before the end of the cut file is an event or a dead letter");
    assert!(case.table().iter().any(|s| s.stage == "early"), "a broken input must not close sessions");
    // The same file, whole: written over the cut one, as a finished copy does.
    case.put("in.jsonl.gz", &whole);
    case.run().exits(0);
    same_sinks("the whole gzip", &expected("in.jsonl.gz", &bytes), &case);
}

#[test]
fn a_second_process_on_one_data_directory_is_refused() {
    let case = Case::new();
    let mut config = Config::new(source("-"), gap());
    config.epoch = "50ms".into();
    case.configure(&config);
    let mut first = case.start(&[], &[]);
    let bytes = shop();
    first.stdin().write_all(&bytes).unwrap();
    wait_for("the first process's rows", Duration::from_secs(60), || {
        (!case.lines_so_far().is_empty()).then_some(())
    });
    case.start(&[], &[]).outcome(Duration::from_secs(60)).exits(6).says("state");
    assert!(!first.ended(), "the first process was disturbed");
    first.outcome(RUN_MAX).exits(0);
    same_sinks("the first process", &expected("-", &bytes), &case);
}

/// What of the JSON-lines sink can be read while it is being written.
trait SoFar {
    fn lines_so_far(&self) -> Vec<u8>;
}

impl SoFar for Case {
    fn lines_so_far(&self) -> Vec<u8> {
        std::fs::read(self.path("rows.jsonl")).unwrap_or_default()
    }
}

#[test]
fn a_changed_key_over_old_state_is_refused_and_the_old_one_goes_on() {
    let (case, mut config) = ready();
    config.end_of_input = "hold".into();
    case.configure(&config);
    case.run().exits(0);
    let before = current(&case.table());
    let mut changed = config.clone();
    changed.sources[0].key = vec!["url".into()];
    case.configure(&changed);
    case.run().exits(4).says("key");
    same_table("after the refusal", &before, &current(&case.table()));
    case.configure(&config);
    case.run().exits(0);
}

#[test]
fn a_finished_pipeline_says_so() {
    let (case, _) = ready();
    case.run().exits(0);
    let before = (case.table(), std::fs::read(case.path("rows.jsonl")).unwrap());
    case.run().exits(0).says("finished");
    assert!(
        before == (case.table(), std::fs::read(case.path("rows.jsonl")).unwrap()),
        "a finished run wrote something"
    );
    same_sinks("finished", &expected("in.jsonl", &shop()), &case);
}

#[test]
fn a_locked_database_is_named_and_nothing_is_lost() {
    let (case, _) = ready();
    let holder = case.database();
    holder.execute_batch("PRAGMA journal_mode = DELETE; CREATE TABLE other (x); BEGIN EXCLUSIVE").unwrap();
    case.start(&[], &[]).outcome(Duration::from_secs(120)).exits(6).says("sessions.db").says("locked");
    holder.execute_batch("COMMIT").unwrap();
    drop(holder);
    case.run().exits(0);
    same_sinks("after the lock", &expected("in.jsonl", &shop()), &case);
}

/// What is longer than a record may be is refused whole: its beginning alone might look like another record.
#[test]
fn a_record_that_is_too_long_is_a_letter_and_never_a_stump() {
    const MAX: usize = 1 << 20;
    type Long = fn(usize) -> String;
    let stumps: [(Format, &str, Long); 3] = [
        (Format::Tsv, "ts\tv\tuser\n", |cut| format!("1\t{}\talice", "x".repeat(MAX - cut))),
        (Format::Csv, "ts,v,user\n", |cut| format!("1,{},alice", "x".repeat(MAX - cut))),
        (Format::Json, "", |more| {
            format!("{{\"user\":\"alice\",\"ts\":1,\"v\":\"{}\"}}", "x".repeat(MAX + more * 1000))
        }),
    ];
    for (format, header, long) in stumps {
        let good = match format {
            Format::Tsv => "1\tv\tgood\n",
            Format::Csv => "1,v,good\n",
            _ => "{\"user\":\"good\",\"ts\":1}\n",
        };
        // The first two lose their key's end, the last its beginning too.
        let records: Vec<String> = [4, 6, 3].map(long).into();
        let text = format!("{header}{good}{}\n{good}{}\n{}\n{good}", records[0], records[1], records[2]);
        let case = Case::new();
        case.put("in.log", text.as_bytes());
        case.configure(&Config::new(Source { format, ..source("in.log") }, gap()));
        case.run().exits(0);
        let rows: Vec<(String, u64)> =
            current(&case.table()).into_iter().map(|r| (r.key, r.events)).collect();
        assert_eq!(rows, [("good".to_owned(), 3)], "{format:?}");
        let letters = case.letters();
        assert_eq!(letters.len(), 3, "{format:?}");
        for (letter, record) in letters.iter().zip(&records) {
            assert_eq!(letter["reason"], "record_too_long", "{format:?}");
            assert_eq!(letter["raw_bytes"], record.len(), "{format:?}");
            assert!(letter["raw"] == record[..MAX], "{format:?}: raw is its beginning");
        }
    }
}

/// `sessionize` with these arguments in the case's folder; its folders for the time being are in `tmp`.
fn sessionize(case: &Case, arguments: &[&str]) -> Outcome {
    std::fs::create_dir_all(case.path("tmp")).unwrap();
    let mut command = Command::new(binary());
    command.arg("sessionize").args(arguments).current_dir(case.path("")).env("TMPDIR", case.path("tmp"));
    let out = command.stdin(Stdio::null()).output().unwrap();
    let said = [out.stdout, out.stderr].map(|b| String::from_utf8(b).unwrap()).concat();
    assert_eq!(std::fs::read_dir(case.path("tmp")).unwrap().count(), 0, "something is left behind");
    Outcome { code: out.status.code(), said }
}

#[test]
fn sessionize_shows_what_it_could_read() {
    let case = Case::new();
    let whole = pack(&shop());
    case.put("in.jsonl.gz", &whole[..whole.len() * 7 / 10]);
    let flags = ["in.jsonl.gz", "--key", "user", "--time", "ts", "--unit", "ms", "--gap", "60s"];
    let outcome = sessionize(&case, &flags);
    outcome.exits(1).says("the longest sessions").says("stopped before the end").says("nothing is kept");
    assert!(!outcome.said.contains("goes on from there"), "{}", outcome.said);
    assert_eq!(outcome.said.matches("cannot be read beyond").count(), 1, "said twice: {}", outcome.said);
    case.put("empty.log", b"");
    sessionize(&case, &["empty.log"]).exits(4).says("is empty");
}

#[test]
fn a_failed_run_says_once_why() {
    let case = Case::new();
    let whole = pack(&shop());
    case.put("in.jsonl.gz", &whole[..whole.len() * 7 / 10]);
    case.configure(&Config::new(source("in.jsonl.gz"), gap()));
    let outcome = case.run();
    outcome.exits(1);
    assert_eq!(outcome.said.matches("cannot be read beyond").count(), 1, "{}", outcome.said);
}

#[test]
fn an_output_is_not_offered_in_place_of_a_missing_input() {
    let case = Case::new();
    case.put("rows.jsonl", b"");
    case.configure(&Config::new(source("row.jsonl"), gap()));
    let outcome = case.run();
    outcome.exits(4).says("row.jsonl");
    assert!(!outcome.said.contains("did you mean"), "{}", outcome.said);
}

#[test]
fn a_byte_order_mark_and_padding_cost_no_record() {
    let line = "{\"user\":\"u\",\"ts\":1000}\n";
    let case = Case::new();
    case.put("in.jsonl", format!("\u{feff}{line}{line}").as_bytes());
    case.configure(&Config::new(source("in.jsonl"), gap()));
    case.run().exits(0);
    assert_eq!(case.letters(), Vec::<serde_json::Value>::new());
    assert_eq!(current(&case.table())[0].events, 2);
    let case = Case::new();
    case.put("in.jsonl.gz", &[pack(line.as_bytes()), vec![0; 5000]].concat());
    case.configure(&Config::new(source("in.jsonl.gz"), gap()));
    case.run().exits(0);
    assert_eq!(current(&case.table())[0].events, 1);
}
