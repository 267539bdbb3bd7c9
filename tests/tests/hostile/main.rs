//! Hostile guests, end to end: each is refused when it is loaded, or contained. The bugs that this is for: a stop that does
//! not stop, a fault that takes good events or another pipeline with it, and a suspension that loses something.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers fail as tests do"
)]

mod text;

use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};
use tidemill_tests::model::{self, Format, Gap, Place, Row, Source, Unit};
use tidemill_tests::plugins::plugin;
use tidemill_tests::{Case, RUN_MAX, binary, current, latest, report, same_table, wait_for};

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
    report!("peak memory {} MiB", peak >> 20);
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

/// What a suspension may take, and what a neighbour's rows may take more than in calm (DESIGN 9).
const SUSPENDED_MAX: Duration = Duration::from_secs(3);
const NEIGHBOUR_MORE_MAX: Duration = Duration::from_millis(50);
/// A machine that is busy with other tests may take so many times as long as promised, measured by its own calm. What this
/// is for (calls that are not stopped, a lane that waits for another pipeline's) takes tens of times as long, or for ever.
const BUSY: u32 = 3;
/// The pace of the neighbour's events: some hundred of them while the guest runs away.
const PACE: Duration = Duration::from_millis(5);
const CALM_EVENTS: usize = 600;

/// The neighbour's events, each timed from its write to its first row in the sink.
struct Neighbour {
    events: std::fs::File,
    rows: std::fs::File,
    /// Of the sink's file: what is no whole line yet.
    rest: Vec<u8>,
    written: Vec<Instant>,
    seen: Vec<Option<Duration>>,
}

impl Neighbour {
    fn of(case: &Case) -> Neighbour {
        let open = |name: &str| std::fs::OpenOptions::new().append(true).open(case.path(name)).unwrap();
        let rows = wait_for("the neighbour's sink", Duration::from_secs(60), || {
            std::fs::File::open(case.path("good_rows.jsonl")).ok()
        });
        Neighbour {
            events: open("good.jsonl"),
            rows,
            rest: Vec::new(),
            written: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn write(&mut self) {
        let line = format!("{{\"u\":\"v{}\",\"t\":{}}}\n", self.written.len(), now_ms());
        self.written.push(Instant::now());
        self.seen.push(None);
        self.events.write_all(line.as_bytes()).unwrap();
    }

    /// Looks at what came into the sink.
    fn look(&mut self) {
        self.rows.read_to_end(&mut self.rest).unwrap();
        let whole = self.rest.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        for line in
            self.rest.drain(..whole).collect::<Vec<u8>>().split(|b| *b == b'\n').filter(|l| !l.is_empty())
        {
            let row: Value = serde_json::from_slice(line).unwrap();
            let n: usize = row["key"].as_str().unwrap()[1..].parse().unwrap();
            self.seen[n].get_or_insert_with(|| self.written[n].elapsed());
        }
    }

    /// Writes events until `done` (it is told how many) says so, and gives their latencies once all are there, sorted.
    fn until(&mut self, mut done: impl FnMut(usize) -> bool) -> Vec<Duration> {
        let (first, begun) = (self.written.len(), Instant::now());
        wait_for("the end of the phase", Duration::from_secs(60), || {
            let due = begun.elapsed().as_millis() / PACE.as_millis();
            (self.written.len() - first..=usize::try_from(due).unwrap()).for_each(|_| self.write());
            self.look();
            done(self.written.len() - first).then_some(())
        });
        wait_for("the neighbour's rows", Duration::from_secs(60), || {
            self.look();
            self.seen.iter().all(Option::is_some).then_some(())
        });
        let mut latencies: Vec<Duration> = self.seen[first..].iter().flatten().copied().collect();
        latencies.sort();
        latencies
    }
}

fn now_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
}

/// The value that so many of a hundred do not exceed.
fn percentile(sorted: &[Duration], part: usize) -> Duration {
    sorted[(sorted.len() * part).div_ceil(100) - 1]
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
    let mut neighbour = Neighbour::of(&case);
    neighbour.until(|written| written >= 50);
    let mut bad = std::fs::OpenOptions::new().append(true).open(case.path("bad.jsonl")).unwrap();
    writeln!(bad, "{{\"u\":\"first\",\"t\":{BEGIN_MS}}}").unwrap();
    wait_for("a row of the pipeline that is to be suspended", Duration::from_secs(60), || {
        (!rows(&case, "bad").is_empty()).then_some(())
    });
    let calm = neighbour.until(|written| written >= CALM_EVENTS);

    let lines: String =
        (0..400).map(|n| format!("{{\"u\":\"k{n}\",\"t\":{},\"act\":\"loop\"}}\n", now_ms())).collect();
    let begun = Instant::now();
    bad.write_all(lines.as_bytes()).unwrap();
    let mut suspended_after = None;
    let storm = neighbour.until(|_| {
        if process.said_so_far().contains("suspended") {
            suspended_after = Some(begun.elapsed());
        }
        suspended_after.is_some()
    });
    let suspended_after = suspended_after.unwrap();
    let s = wait_for("the mark in status", Duration::from_secs(10), || {
        Some(status(&case, "bad")["suspended"].clone()).filter(|s| !s.is_null())
    });
    let [calm_50, calm_99] = [50, 99].map(|part| percentile(&calm, part));
    let [storm_50, storm_99] = [50, 99].map(|part| percentile(&storm, part));
    let stopped_ms = stopped_after_ms(s["first_fault"].as_str().unwrap());
    report!(
        "a runaway: a call stopped after {stopped_ms} ms, the pipeline suspended after {suspended_after:.2?}, with {} ms of overdue \
         calls and {} faults; its neighbour's rows: p50 {calm_50:.0?}, p99 {calm_99:.0?} of {} in calm, p50 {storm_50:.0?}, p99 {storm_99:.0?} of {} meanwhile",
        s["overdue_ms"],
        s["faults"],
        calm.len(),
        storm.len()
    );
    assert!(storm.len() >= 200, "{} events prove nothing", storm.len());
    // Promised are 50 ms and 3 s; what a busy machine adds shows in the calm phase too, whose rows take an epoch at most.
    assert!(stopped_ms < 50.0 * f64::from(BUSY), "{stopped_ms} ms");
    assert!(suspended_after < SUSPENDED_MAX + 10 * calm_99, "{suspended_after:?}, in calm p99 {calm_99:?}");
    for (calm, storm) in [(calm_50, storm_50), (calm_99, storm_99)] {
        assert!(storm < BUSY * (calm + NEIGHBOUR_MORE_MAX), "{storm:?}, and {calm:?} in calm");
    }
    process.terminate();
    process.outcome(RUN_MAX).exits(1).says("pipeline `bad` is suspended");
    let early: BTreeSet<String> = rows(&case, "good").into_iter().map(|r| r.key).collect();
    assert_eq!(early.len(), neighbour.written.len());
}

/// Of "… was stopped after 25.3 ms, where …".
fn stopped_after_ms(fault: &str) -> f64 {
    let number = fault.split("was stopped after ").nth(1).and_then(|rest| rest.split(' ').next());
    number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no time in {fault}"))
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
    report!("{what}: {}", outcome.said.lines().find(|l| l.contains("guest.wasm")).unwrap_or_default());
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
    // On a busy machine all keys but one may be too slow alone, and its company is then what is made up.
    refused("fails in company", &hostile, "memory = \"company\"", "it answers alone in a new instance, and");
    let idle = text::sessionizer(text::FRAME_VERSION, &text::answers_calls_of(12));
    refused("answers in company alone", &idle, "", "it fails alone in a new instance");
    let other = text::describing("plugin_fault");
    refused("a reason of the host's own", &other, "", "reason \"plugin_fault\" is one of the host's own");
    for memory in ["asked", "answered", "company"] {
        refused_enricher(memory);
    }
}

/// An enricher that keeps something between calls is not loaded either.
#[track_caller]
fn refused_enricher(memory: &str) {
    let case = Case::new();
    case.put("bad.jsonl", &events(3, 3, &[]));
    case.put("good.jsonl", &events(3, 3, &[]));
    case.put("visitors.csv", b"id,segment\n1,gold\n");
    Host { component: &plugin("gap-sessions"), config: "gap = \"30s\"", ..Host::default() }.write(&case);
    let rude = Value::from(plugin("rude-enricher").to_str().unwrap());
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let text = text.replace("from = [\"bad\"]\n", "from = [\"bad\"]\nenrich = [\"rude\"]\n");
    let more = format!(
        "{text}\n[plugin.rude]\npath = {rude}\nconfig = {{ memory = \"{memory}\" }}\nlookups = {{ visitor = \"visitors\" }}\n\
         [lookup.visitors]\nkind = \"file\"\npath = \"visitors.csv\"\nkey = \"id\"\n"
    );
    case.put("pipeline.toml", more.as_bytes());
    let outcome = case.run();
    report!("enricher, {memory}: {}", outcome.said.lines().find(|l| l.contains("rude")).unwrap_or_default());
    outcome.exits(4).says("no pure function");
    // Whether what is kept is seen or not: without it the same enricher is taken.
    case.put("pipeline.toml", more.replace(memory, "none").as_bytes());
    case.run().exits(0);
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
        report!("{what}: over after {:.2?}", begun.elapsed());
        neighbour_is_exact(&case);
        assert_eq!(rows(&case, "bad"), [], "{what}");
    }
}
