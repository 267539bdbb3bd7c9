//! Every case of `docs/semantics.md`, run as it stands there.
//!
//! The bug family: a page that promises what is not so. A case without steps is a file read to its end; one with steps is a log
//! that grows, and each step's rows must have come before the next events are written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};
use tidemill_tests::api::Api;
use tidemill_tests::{Case, wait_for, workspace};

const DAY_MS: i64 = 1_714_521_600_000;
const STEP_MAX: Duration = Duration::from_secs(20);
const RUN_MAX: Duration = Duration::from_secs(60);

/// What a case says of the pipeline.
struct Options {
    steps: bool,
    source: String,
    rule: String,
    pipeline: String,
}

/// `steps, lateness = "60s", end = { .. }` as lines of the sections that they belong to.
fn options(text: &str) -> Options {
    let mut o = Options { steps: false, source: String::new(), rule: String::new(), pipeline: String::new() };
    let mut rest = text.trim();
    while !rest.is_empty() {
        // A comma inside braces or brackets separates nothing.
        let mut depth = 0;
        let end = rest.char_indices().find(|(_, c)| {
            depth += i32::from("{[".contains(*c)) - i32::from("}]".contains(*c));
            *c == ',' && depth == 0
        });
        let (option, next) = match end {
            Some((at, _)) => (&rest[..at], rest[at + 1..].trim_start()),
            None => (rest, ""),
        };
        let line = format!("{option}\n");
        match option.split(' ').next().unwrap() {
            "steps" => o.steps = true,
            "disorder" | "idle" | "id" => o.source += &line,
            "boundary" | "end" | "start" | "max" => write!(o.rule, ", {option}").unwrap(),
            "early" | "lateness" | "end_of_input" => o.pipeline += &line,
            other => panic!("no case has the option {other}"),
        }
        rest = next;
    }
    let defaults = |lines: &mut String, all: &[(&str, &str)]| {
        for (name, line) in all.iter().filter(|(name, _)| *name != "idle" || text.contains("steps")) {
            if !lines.lines().any(|l| l.split(' ').next() == Some(*name)) {
                *lines += &format!("{line}\n");
            }
        }
    };
    defaults(&mut o.source, &[("disorder", "disorder = \"0s\""), ("idle", "idle = \"1h\"")]);
    defaults(&mut o.pipeline, &[("early", "early = \"off\""), ("lateness", "lateness = \"0s\"")]);
    o
}

fn configure(case: &Case, o: &Options) {
    let follow = if o.steps { "follow = true\n" } else { "" };
    let id = if o.source.contains("id =") { "" } else { "id = \"position\"\n" };
    let text = format!(
        "[server]\ndata_dir = {}\nepoch = \"20ms\"\nlisten = \"127.0.0.1:0\"\n\
         [source.log]\nkind = \"file\"\npath = {}\nformat = \"json\"\nkey = \"user\"\n\
         time = {{ field = \"ts\", unit = \"ms\" }}\n{id}{follow}{}\
         [pipeline.p]\nfrom = [\"log\"]\nto = [\"rows\"]\ndead = \"dead\"\n\
         session = {{ plugin = \"builtin:gap\", config = {{ gap = \"30s\"{} }} }}\n{}\
         [sink.rows]\nkind = \"file\"\npath = {}\n[sink.dead]\nkind = \"file\"\npath = {}\n",
        json!(case.path("state")),
        json!(case.path("log-*.jsonl")),
        o.source,
        o.rule,
        o.pipeline,
        json!(case.path("rows.jsonl")),
        json!(case.path("dead.jsonl")),
    );
    case.put("pipeline.toml", text.as_bytes());
}

fn time_ms(text: &str) -> i64 {
    let parts: Vec<i64> =
        text.split(':').map(|p| p.parse().unwrap_or_else(|_| panic!("no time: {text}"))).collect();
    DAY_MS + 1_000 * (parts[0] * 3_600 + parts[1] * 60 + parts[2])
}

fn clock(ms: &Value) -> String {
    let s = (ms.as_i64().unwrap() - DAY_MS) / 1_000;
    format!("{:02}:{:02}:{:02}", s / 3_600, s / 60 % 60, s % 60)
}

/// An event's file and line.
fn event(line: &str) -> (String, String) {
    let (file, line) =
        line.split_once('|').map_or(("a", line), |(f, l)| (f.trim().trim_start_matches("file "), l.trim()));
    let mut words = line.split_whitespace();
    let (ts, user) = (time_ms(words.next().unwrap()), words.next().expect("an event has a user"));
    let mut event = json!({ "ts": ts, "user": user });
    for word in words {
        match word.split_once('=') {
            Some((name, value)) => event[name] = value.into(),
            None => event["type"] = word.into(),
        }
    }
    (format!("log-{file}.jsonl"), event.to_string())
}

/// What the sinks have, as a case writes it: rows in the order in which they were sent, then letters.
fn sent(case: &Case) -> Vec<String> {
    let mut all = Vec::new();
    for row in values(case, "rows.jsonl") {
        let mut line = format!(
            "{} {} {} {} {}",
            row["stage"].as_str().unwrap(),
            row["key"].as_str().unwrap(),
            clock(&row["start_ms"]),
            clock(&row["end_ms"]),
            row["events"]
        );
        if let Some(reason) = row["reason"].as_str().filter(|_| row["stage"] != "retracted") {
            write!(line, " {reason}").unwrap();
        }
        all.push(line);
    }
    for letter in values(case, "dead.jsonl") {
        let raw: Value = serde_json::from_str(letter["raw"].as_str().unwrap()).unwrap();
        all.push(format!(
            "letter {} {} {}",
            letter["reason"].as_str().unwrap(),
            raw["user"].as_str().unwrap(),
            clock(&raw["ts"])
        ));
    }
    all.sort();
    all
}

fn write(case: &Case, events: &[(String, String)]) {
    let mut by_file: BTreeMap<&str, String> = BTreeMap::new();
    for (file, line) in events {
        let text = by_file.entry(file).or_default();
        *text += line;
        text.push('\n');
    }
    by_file.into_iter().for_each(|(file, text)| append(case, file, &text));
}

/// In one piece, so that it is read as one.
fn append(case: &Case, file: &str, text: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(case.path(file)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The lines of a file that is being written.
fn values(case: &Case, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(case.path(file)).unwrap_or_default();
    // The last one may be half there.
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn run(name: &str, header: &str, lines: &[&str]) {
    let o = options(header);
    let case = Case::new();
    configure(&case, &o);
    let mut expected: Vec<String> = Vec::new();
    let mut events = Vec::new();
    let mut process = None;
    // Files of a live source that are there from the start are partitions from the start.
    if o.steps {
        for line in lines.iter().filter(|l| !l.starts_with('=')) {
            append(&case, &event(line).0, "");
        }
    }
    for (n, line) in lines.iter().enumerate() {
        match line.strip_prefix("= ") {
            None => events.push(event(line)),
            Some(row) => expected.push(row.trim_end().to_owned()),
        }
        let step_ends = line.starts_with('=') && lines.get(n + 1).is_none_or(|l| !l.starts_with('='));
        if !step_ends {
            continue;
        }
        write(&case, &events);
        events.clear();
        expected.sort();
        if !o.steps {
            case.run().exits(0);
            assert_eq!(sent(&case), expected, "{name}");
            return;
        }
        let running = process.get_or_insert_with(|| {
            let p = case.start(&[], &[]);
            let _ = Api::of(&case, &p);
            p
        });
        let (mut last, begun) = (Vec::new(), Instant::now());
        wait_for("the step's rows", 2 * STEP_MAX, || {
            last = sent(&case);
            (last == expected || running.ended() || begun.elapsed() > STEP_MAX).then_some(())
        });
        assert_eq!(last, expected, "{name}, after line {} of the case", n + 1);
    }
    let process = process.expect("a case has rows");
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
    assert_eq!(sent(&case), expected, "{name}: nothing more comes");
}

#[test]
fn every_case_of_the_page_is_so() {
    let page = std::fs::read_to_string(workspace().join("docs/semantics.md")).unwrap();
    let mut heading = "";
    let mut ran = 0;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text;
        }
        if let Some(header) = line.strip_prefix("```case") {
            let case: Vec<&str> = lines.by_ref().take_while(|l| *l != "```").collect();
            run(heading, header, &case);
            ran += 1;
        }
    }
    assert!(ran >= 11, "only {ran} cases were found");
}
