//! Hostile guests, end to end: each is refused when it is loaded, or contained. The bugs that this is for: a stop that does
//! not stop, a fault that takes good events or another pipeline with it, and a suspension that loses something.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test's helpers fail as tests do"
)]

mod text;

use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};
use tidemill_tests::model::{self, Format, Gap, Place, Row, Source, Unit};
use tidemill_tests::plugins::plugin;
use tidemill_tests::{Case, RUN_MAX, binary, current, latest, same_table, wait_for};

/// Memory of the whole host, whatever a guest does: two lanes' instances of 128 MiB each and the host's own.
const PEAK_BYTES_MAX: u64 = 700 << 20;
const BEGIN_MS: i64 = 1_735_689_600_000;

/// What a test changes in the config of two pipelines: `bad` has the guest, `good` is its neighbour.
struct Host<'a> {
    /// The guest's component.
    component: &'a std::path::Path,
    /// Inside of its config's table.
    config: &'a str,
    /// Inside of the pipeline's limits.
    limits: &'a str,
    /// Further lines of the two sources.
    source: &'a str,
    early: &'a str,
    epoch: &'a str,
}

impl Default for Host<'_> {
    fn default() -> Self {
        let component = std::path::Path::new("");
        Host { component, config: "", limits: "", source: "", early: "\"off\"", epoch: "100ms" }
    }
}

impl Host<'_> {
    fn write(&self, case: &Case) {
        let mut t = format!("[server]\ndata_dir = \"state\"\nepoch = \"{}\"\n", self.epoch);
        let path = Value::from(self.component.to_str().unwrap());
        let _ = writeln!(t, "[plugin.guest]\npath = {path}\nconfig = {{ {} }}", self.config);
        let gap = plugin("gap-sessions");
        let gap = Value::from(gap.to_str().unwrap());
        let _ = writeln!(t, "[plugin.gap]\npath = {gap}\nconfig = {{ gap = \"30s\" }}");
        for (name, rule) in [("bad", "guest"), ("good", "gap")] {
            let _ = writeln!(
                t,
                "[source.{name}]\nkind = \"file\"\npath = \"{name}.jsonl\"\nformat = \"json\"\nkey = \"u\"\n\
                 time = {{ field = \"t\", unit = \"ms\" }}\nid = \"position\"\ndisorder = \"1s\"\n{}\n\
                 [pipeline.{name}]\nfrom = [\"{name}\"]\nsession = {{ plugin = \"{rule}\" }}\nearly = {}\n\
                 to = [\"{name}_rows\"]\ndead = \"{name}_dead\"\nlimits = {{ {} }}\n\
                 [sink.{name}_rows]\nkind = \"file\"\npath = \"{name}_rows.jsonl\"\n\
                 [sink.{name}_dead]\nkind = \"file\"\npath = \"{name}_dead.jsonl\"\n",
                self.source, self.early, self.limits
            );
        }
        case.put("pipeline.toml", t.as_bytes());
    }
}

/// Events of some keys, 5 s apart with a silence of a minute now and then; those at `acts` are told to do something.
fn events(keys: usize, each: usize, acts: &[(usize, usize, &str)]) -> Vec<u8> {
    let mut lines = String::new();
    for i in 0..each {
        for k in 0..keys {
            let t = BEGIN_MS + (i as i64) * 5_000 + (i as i64 / 10) * 60_000 + k as i64;
            let act = acts.iter().find(|(key, event, _)| (*key, *event) == (k, i));
            let act = act.map_or(String::new(), |(_, _, act)| format!(",\"act\":\"{act}\""));
            let _ = writeln!(lines, "{{\"u\":\"k{k}\",\"t\":{t}{act}}}");
        }
    }
    lines.into_bytes()
}

fn source(file: &str) -> Source {
    Source { disorder_ms: 1_000, ..Source::file("s", file, Format::Json, "u", "t", Unit::Millis) }
}

fn sessions(file: &str, bytes: &[u8], dead: &BTreeSet<Place>) -> Vec<Row> {
    let (source, rule) = (source(file), Gap::of_seconds(30, false));
    let mut rows = model::sessions(&model::read(&[(&source, file, bytes)], &rule), dead, &rule);
    rows.sort();
    rows
}

fn rows(case: &Case, name: &str) -> Vec<Row> {
    current(&latest(case.lines(&format!("{name}_rows.jsonl"))))
}

fn letters(case: &Case, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(case.path(&format!("{name}_dead.jsonl"))).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Where the records of letters out of the fold stand.
fn places(letters: &[Value]) -> BTreeSet<Place> {
    let offset = |l: &Value| l["position"]["offset"].as_u64().unwrap_or_else(|| panic!("no offset in {l}"));
    letters.iter().map(|l| Place { file: "bad.jsonl".into(), offset: offset(l) }).collect()
}

/// `tidemill status --json`, from a process of its own.
fn status(case: &Case, pipeline: &str) -> Value {
    let mut command = Command::new(binary());
    command.args(["status", "pipeline.toml", "--json"]).current_dir(case.path(""));
    let out = command.output().unwrap();
    let all: Value = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
    let list = all["pipelines"].as_array().cloned().unwrap_or_default();
    list.into_iter().find(|p| p["pipeline"] == pipeline).unwrap_or(Value::Null)
}

/// The neighbour has its exact table.
#[track_caller]
fn neighbour_is_exact(case: &Case) {
    let bytes = std::fs::read(case.path("good.jsonl")).unwrap();
    same_table("the neighbour", &sessions("good.jsonl", &bytes, &BTreeSet::new()), &rows(case, "good"));
    assert_eq!(letters(case, "good"), [Value::Null; 0]);
}

#[test]
fn poison_is_taken_out_and_nothing_else() {
    let poison = [
        (3, 7, "trap"),
        (4, 2, "memory"),
        (5, 25, "deep"),
        (6, 11, "arm"),
        (6, 14, "fire"),
        // Without the other event it does no harm.
        (7, 14, "fire"),
        (8, 30, "loop"),
        (9, 12, "slow"),
        (10, 39, "trap"),
    ];
    let others = [(20, 15, "timer"), (21, 15, "output"), (22, 15, "huge"), (23, 15, "flood")];
    let acts: Vec<_> = poison.iter().chain(&others).copied().collect();
    let (bad, good) = (events(40, 60, &acts), events(30, 60, &[]));
    let case = Case::new();
    case.put("bad.jsonl", &bad);
    case.put("good.jsonl", &good);
    Host { component: &plugin("hostile-sessions"), limits: "overdue = \"8s\"", ..Host::default() }
        .write(&case);
    let (outcome, peak) = case.start(&[], &[]).outcome_and_peak(RUN_MAX);
    println!("peak memory {} MiB", peak >> 20);
    outcome.exits(0).says("plugin guest: warn: flood 1").says("of its plugins not shown");
    assert!(outcome.said.matches("flood").count() < 400, "the log is bounded");
    assert!(peak < PEAK_BYTES_MAX, "{peak} bytes");
    neighbour_is_exact(&case);

    let told = letters(&case, "bad");
    let dead = places(&told);
    let at = |k: usize, i: usize| {
        let all = model::records(Format::Json, &bad);
        let offset = all[i * 40 + k].0;
        Place { file: "bad.jsonl".into(), offset }
    };
    let deadly = poison.iter().filter(|(k, _, act)| *k != 7 && *act != "arm");
    let expected: BTreeSet<Place> = deadly.map(|(k, i, _)| at(*k, *i)).collect();
    assert_eq!(dead, expected, "dead-lettered once each: {told:#?}");
    assert_eq!(told.len(), dead.len());
    let counted = status(&case, "bad")["counters"]["dead_by_rule"]["plugin_fault"].clone();
    assert_eq!(counted, 7);
    let floods = status(&case, "bad")["counters"]["plugins"]["guest"]["floods"].clone();
    assert_eq!((&floods["count"], &floods["sum"]), (&1.into(), &1.0.into()));
    let dropped = status(&case, "bad")["counters"]["plugin_lines_dropped"].as_u64().unwrap();
    assert!(dropped > 9_000, "{dropped}");
    for letter in &told {
        assert_eq!(letter["reason"], "plugin_fault");
        assert_eq!(letter["digest"].as_str().map(str::len), Some(64), "{letter}");
    }

    // A timer or fields that fail close their session; the key's other sessions, and all other keys, are as ever.
    let faulty = |r: &Row| ["k20", "k21", "k22"].contains(&r.key.as_str());
    let (closed, rest): (Vec<Row>, Vec<Row>) = rows(&case, "bad").into_iter().partition(faulty);
    let expected = sessions("bad.jsonl", &bad, &dead);
    let expected_rest: Vec<Row> = expected.iter().filter(|r| !faulty(r)).cloned().collect();
    same_table("all other keys", &expected_rest, &rest);
    for key in ["k20", "k21", "k22"] {
        let faults = closed.iter().filter(|r| r.key == key && r.reason.as_deref() == Some("plugin_fault"));
        assert!(faults.count() >= 1, "{key}: {closed:#?}");
        let sum = |rows: &[Row]| rows.iter().filter(|r| r.key == key).map(|r| r.events).sum::<u64>();
        assert_eq!(sum(&closed), sum(&expected), "{key} keeps its events: {closed:#?}");
    }
}

#[test]
fn a_runaway_is_suspended_and_loses_nothing() {
    let acts: Vec<(usize, usize, &str)> = (0..30).map(|n| (n, 20 + n, "trap")).collect();
    let (bad, good) = (events(40, 60, &acts), events(30, 60, &[]));
    let case = Case::new();
    case.put("bad.jsonl", &bad);
    case.put("good.jsonl", &good);
    let component = plugin("hostile-sessions");
    let host = Host { component: &component, ..Host::default() };
    host.write(&case);
    let outcome = case.run();
    outcome.exits(1).says("pipeline `bad` is suspended").says("21 faults, where 20 are allowed");
    outcome.says("hostile-sessions@1.0.0").says("the first fault was: the plugin panicked: told to");
    neighbour_is_exact(&case);
    let s = status(&case, "bad");
    assert_eq!(s["suspended"]["faults"], 21, "{s:#}");
    assert_eq!(s["suspended"]["plugin"]["digest"].as_str().map(str::len), Some(64));
    assert_eq!(s["finished"], false);
    assert_eq!(status(&case, "good")["suspended"], Value::Null);
    // A new start has a new budget, which does not suffice either.
    case.run().exits(1).says("had been suspended").says("21 faults");
    // One that does: everything is there, once.
    Host { limits: "faults = 100", ..host }.write(&case);
    case.run().exits(0).says("had been suspended");
    assert_eq!(status(&case, "bad")["suspended"], Value::Null);
    let told = letters(&case, "bad");
    let dead = places(&told);
    assert_eq!((told.len(), dead.len()), (30, 30));
    same_table("after all", &sessions("bad.jsonl", &bad, &dead), &rows(&case, "bad"));
    neighbour_is_exact(&case);
}

/// Latency of rows in the neighbour's sink, from the write of an event on; so many events, one after the other.
fn latencies(case: &Case, first: usize, count: usize) -> Vec<Duration> {
    let mut file = std::fs::OpenOptions::new().append(true).open(case.path("good.jsonl")).unwrap();
    let now_ms = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let mut all: Vec<Duration> = (first..first + count)
        .map(|n| {
            let begun = Instant::now();
            writeln!(file, "{{\"u\":\"v{n}\",\"t\":{}}}", now_ms()).unwrap();
            let wanted = format!("\"v{n}\"");
            wait_for("a row of the neighbour", Duration::from_secs(60), || {
                let rows = std::fs::read_to_string(case.path("good_rows.jsonl")).unwrap_or_default();
                rows.contains(&wanted).then(|| begun.elapsed())
            })
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_runaway_stops_soon_and_its_neighbour_hardly_feels_it() {
    let case = Case::new();
    case.put("bad.jsonl", b"");
    case.put("good.jsonl", b"");
    let component = plugin("hostile-sessions");
    let source = "follow = true\nidle = \"500ms\"";
    Host { component: &component, source, early: "\"epoch\"", ..Host::default() }.write(&case);
    let process = case.start(&[], &[]);
    latencies(&case, 0, 3);
    let calm = latencies(&case, 10, 40);
    let mut bad = std::fs::OpenOptions::new().append(true).open(case.path("bad.jsonl")).unwrap();
    writeln!(bad, "{{\"u\":\"first\",\"t\":{BEGIN_MS}}}").unwrap();
    wait_for("a row of the pipeline that is to be suspended", Duration::from_secs(60), || {
        (!rows(&case, "bad").is_empty()).then_some(())
    });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let lines: String =
        (0..400).map(|n| format!("{{\"u\":\"k{n}\",\"t\":{now},\"act\":\"loop\"}}\n")).collect();
    let begun = Instant::now();
    bad.write_all(lines.as_bytes()).unwrap();
    let said = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            wait_for("the suspension", Duration::from_secs(30), || {
                process.said_so_far().contains("suspended").then(|| begun.elapsed())
            })
        });
        let storm = latencies(&case, 100, 12);
        (watch.join().unwrap(), storm)
    });
    let (suspended_after, storm) = said;
    let s = wait_for("the mark in status", Duration::from_secs(10), || {
        Some(status(&case, "bad")["suspended"].clone()).filter(|s| !s.is_null())
    });
    let last = |list: &[Duration], part: usize| list[(list.len() * part / 100).min(list.len() - 1)];
    println!(
        "suspended after {suspended_after:.2?}, with {} ms of overdue calls and {} faults; the neighbour's rows: p50 {:.0?}, \
         p99 {:.0?} in calm, p50 {:.0?}, p99 {:.0?} in the storm",
        s["overdue_ms"],
        s["faults"],
        last(&calm, 50),
        last(&calm, 99),
        last(&storm, 50),
        last(&storm, 99)
    );
    println!("first fault: {}", s["first_fault"]);
    assert!(s["first_fault"].as_str().unwrap().contains("was stopped after"), "{s}");
    // A machine that is busy with other tests takes longer; what is wrong here takes for ever.
    assert!(suspended_after < Duration::from_secs(10), "{suspended_after:?}");
    assert!(last(&storm, 99) < Duration::from_secs(5), "{storm:?}");
    let mut stop = Command::new("kill");
    assert!(stop.args(["-TERM", &process.id().to_string()]).status().unwrap().success());
    process.outcome(RUN_MAX).exits(1).says("pipeline `bad` is suspended");
    let early: BTreeSet<String> = rows(&case, "good").into_iter().map(|r| r.key).collect();
    assert_eq!(early.len(), 3 + 40 + 12);
}

/// Runs with a guest that must not even be loaded.
#[track_caller]
fn refused(what: &str, component: &[u8], config: &str, why: &str) {
    let case = Case::new();
    case.put("guest.wasm", component);
    case.put("bad.jsonl", &events(3, 3, &[]));
    case.put("good.jsonl", &events(3, 3, &[]));
    Host { component: &case.path("guest.wasm"), config, ..Host::default() }.write(&case);
    let outcome = case.run();
    println!("{what}: {}", outcome.said.lines().find(|l| l.contains("guest.wasm")).unwrap_or_default());
    outcome.exits(4).says(why);
    neighbour_is_exact(&case);
}

#[test]
fn what_is_no_plugin_of_ours_is_refused() {
    let bytes = |name: &str| std::fs::read(plugin(name)).unwrap();
    refused("wrong world", &bytes("clickstream-validator"), "", "is a validator");
    refused(
        "wrong frame version",
        &text::sessionizer(9, "i32.const 2048"),
        "",
        "version 9 of the frame layout",
    );
    for import in [
        "wasi:clocks/wall-clock@0.2.0",
        "wasi:random/random@0.2.0",
        "wasi:filesystem/types@0.2.0",
        "wasi:sockets/tcp@0.2.0",
    ] {
        refused(import, &text::importing(import), "", import);
    }
    refused("not WebAssembly", b"#!/bin/sh", "", "not WebAssembly");
    let hostile = bytes("hostile-sessions");
    refused("a static counter", &hostile, "memory = \"static\"", "no pure function");
    refused("depends on the batch", &hostile, "memory = \"place\"", "no pure function");
}

#[test]
fn answers_that_are_no_answers_suspend() {
    let lie = "(i64.store (i32.const 4096) (i64.const 8000)) i32.const 2048";
    let section = "(i64.store (i32.const 4112) (i64.const 0x100000100000)) i32.const 2048";
    let nothing = "i32.const 2048";
    let place = "(i32.store (i32.const 2052) (i32.const 0x0fff0000)) i32.const 2048";
    for (what, fold, why) in [
        ("lying length", lie, "but it says 8000"),
        ("malformed section", section, "no frame of results"),
        ("fewer answers than turns", nothing, "no frame of results"),
        ("outside memory", place, "outside the plugin's memory"),
    ] {
        let case = Case::new();
        case.put("guest.wasm", &text::sessionizer(text::FRAME_VERSION, fold));
        case.put("bad.jsonl", &events(30, 3, &[]));
        case.put("good.jsonl", &events(30, 30, &[]));
        Host { component: &case.path("guest.wasm"), ..Host::default() }.write(&case);
        let begun = Instant::now();
        case.run().exits(1).says("pipeline `bad` is suspended").says(why);
        println!("{what}: over after {:.2?}", begun.elapsed());
        neighbour_is_exact(&case);
        assert_eq!(rows(&case, "bad"), [], "{what}");
    }
}
