//! Snapshots: taken while events flow, restored into another directory, and what becomes of the host that they were taken from.
//!
//! The bug family: a snapshot that lacks a segment which was let go while it was taken; rows of the branch that was given up,
//! which stay in a table; a host that writes on after its place was taken; parts that are deleted while a snapshot names them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "snapshots/remote.rs"]
mod remote;

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tidemill_tests::api::Api;
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{Shop, file_of};
use tidemill_tests::{
    Case, Config, Follower, Process, RUN_MAX, binary, current, latest, report, same_sinks, same_table,
    wait_for,
};

const FILE: &str = "in.jsonl";
const SOON: Duration = Duration::from_secs(60);

fn config(data_dir: &Path, end_of_input: &str) -> Config {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let source = Source { id: Some("id".into()), disorder_ms: 10_000, ..file };
    let mut config = Config::new(source, Gap::of_seconds(60, false));
    config.epoch = "10ms".into();
    config.end_of_input = end_of_input.into();
    config.to = r#"["sessions", "rows"]"#.into();
    config.data_dir = Some(data_dir.to_owned());
    config
}

/// Writes the config with a store, and short segments so that they are let go.
fn configure(case: &Case, config: &Config, snapshot: &str) {
    case.configure(config);
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let small = text.replace("epoch = \"10ms\"", "epoch = \"10ms\"\nsegment = \"64KiB\"");
    assert!(small.contains("segment"));
    case.put("pipeline.toml", format!("{small}\n{}", state(case, snapshot)).as_bytes());
}

fn state(case: &Case, snapshot: &str) -> String {
    format!("[state]\nstore = \"file://{}\"\n{snapshot}\n", case.path("store").display())
}

/// Runs `tidemill snapshot`: its exit code, all it said, and its answer.
fn snapshot(case: &Case, arguments: &[&str]) -> (i32, String, Value) {
    let mut command = Command::new(binary());
    command.arg("snapshot").args(arguments).arg("--json").arg(case.path("pipeline.toml"));
    let out = command.env("WRITE_KEY", KEY).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let said = format!("{text}{}", String::from_utf8(out.stderr).unwrap());
    (out.status.code().unwrap(), said, serde_json::from_str(&text).unwrap_or_default())
}

#[track_caller]
fn done(case: &Case, arguments: &[&str]) -> Value {
    let (code, said, answer) = snapshot(case, arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
    answer
}

#[track_caller]
fn refused(case: &Case, arguments: &[&str], code: i32, why: &str) {
    let (found, said, _) = snapshot(case, arguments);
    assert!(
        found == code && said.contains(why),
        "{arguments:?}: exit {found}, not {code} for {why:?}: {said}"
    );
}

fn ids(case: &Case) -> Vec<String> {
    let list = done(case, &["list"]);
    list["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

fn shop(seed: u64, events: u64) -> Vec<u8> {
    file_of(&Shop { seed, events, users: 3_000, step_ms: 20, invalid_every: 0 }.lines())
}

fn model_of(config: &Config, bytes: &[u8]) -> Vec<Row> {
    let log = model::read(&[(&config.sources[0], FILE, bytes)], &config.gap);
    model::sessions(&log, &BTreeSet::new(), &config.gap)
}

/// Snapshots of a run to its end, each taken while it reads on and lets segments go.
fn taken_under_load(case: &Case, end_of_input: &str) -> (Config, Vec<u8>, Vec<Value>) {
    let bytes = shop(31, 400_000);
    let config = config(&case.path("first"), end_of_input);
    case.put(FILE, &bytes);
    configure(case, &config, "");
    let mut follower = Follower::default();
    let mut process = case.start(&[], &[]);
    wait_for("rows", RUN_MAX, || {
        follower.read(&case.path("rows.jsonl"));
        (follower.total > 2_000).then_some(())
    });
    let mut taken = Vec::new();
    while taken.len() < 100 {
        taken.push(done(case, &["create"]));
        if process.ended() {
            break;
        }
    }
    process.outcome(RUN_MAX).exits(0);
    let epoch = |s: &Value| s["pipelines"][0]["epoch"].as_u64().unwrap();
    assert!(taken.iter().map(epoch).is_sorted());
    assert!(epoch(&taken[0]) < epoch(taken.last().unwrap()), "none was taken while it went on: {taken:?}");
    (config, bytes, taken)
}

#[test]
fn a_snapshot_under_load_restored_elsewhere_comes_to_the_same_table() {
    let case = Case::new();
    let (config, bytes, taken) = taken_under_load(&case, "close");
    let whole = model_of(&config, &bytes);
    same_sinks("before", &whole, &case);
    let first = taken[0]["id"].as_str().unwrap();
    let cut = taken[0]["pipelines"][0]["epoch"].as_u64().unwrap();

    // Somewhere else, with the same source and the same sinks.
    let elsewhere = Config { data_dir: Some(case.path("second")), ..config };
    configure(&case, &elsewhere, "");
    let drill = done(&case, &["drill"]);
    assert!(
        drill["recovery_point_ms"].is_u64()
            && drill["recovery_time_ms"].is_u64()
            && drill["epochs"].as_u64() > Some(0)
    );
    assert!(!case.path("second").exists(), "a drill leaves nothing");
    let restored = done(&case, &["restore", "--id", first]);
    let pipeline = &restored["pipelines"][0];
    assert_eq!((&restored["id"], pipeline["epoch"].as_u64()), (&Value::from(first), Some(cut)));
    assert!(pipeline["newest_seen"].as_u64() > Some(cut), "the sinks had seen more: {restored}");
    report!("snapshots: {} under load; epoch {cut} restored of {}", taken.len(), pipeline["newest_seen"]);
    case.run().exits(0);
    same_sinks("restored", &whole, &case);

    // The one whose place was taken is refused, by the store and by its sinks.
    let old = Config { data_dir: Some(case.path("first")), ..elsewhere };
    configure(&case, &old, "");
    refused(&case, &["create"], 6, "has taken the place of this data directory");
    let more = [&bytes[..], &shop(32, 2_000)[..]].concat();
    case.put(FILE, &more);
    // By whoever is asked first: its log lacks an epoch that the sinks have, or its incarnation is behind theirs.
    let outcome = case.start(&["--reopen"], &[]).outcome(RUN_MAX);
    assert!(matches!(outcome.code, Some(5 | 6)), "{outcome:?}");
    same_sinks("after the one that was superseded", &whole, &case);
}

/// The input ends where the snapshot has read up to: what only the branch that was given up had must not come back.
#[test]
fn after_an_older_cut_than_the_sinks_have_seen_no_phantom_row_is_left() {
    let case = Case::new();
    let (config, bytes, taken) = taken_under_load(&case, "hold");
    let elsewhere = Config { data_dir: Some(case.path("second")), ..config };
    configure(&case, &elsewhere, "");
    let rows_before = case.table().len();
    done(&case, &["restore", "--id", taken[0]["id"].as_str().unwrap()]);
    let status =
        Command::new(binary()).args(["status", "--json"]).arg(case.path("pipeline.toml")).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let offset = status["pipelines"][0]["partitions"][0]["offset"].as_u64().unwrap() as usize;
    assert!(0 < offset && offset < bytes.len());
    case.put(FILE, &bytes[..offset]);
    case.run().exits(0);
    let short = Case::new();
    short.put(FILE, &bytes[..offset]);
    short.configure(&Config { data_dir: None, ..elsewhere });
    short.run().exits(0);
    let expected = current(&short.table());
    let retracted = case.table().iter().filter(|s| s.stage == "retracted").count();
    assert!(retracted > 0, "of {rows_before} rows none was taken back");
    same_table("restored, SQLite", &expected, &current(&case.table()));
    same_table("restored, JSON lines", &expected, &current(&latest(case.lines("rows.jsonl"))));
}

const KEY: &str = "0123456789abcdef";

fn configure_http(case: &Case, data_dir: &str, snapshot: &str) {
    let path = |name: &str| Value::from(case.path(name).to_str().unwrap()).to_string();
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        data_dir = {}
        epoch = "50ms"
        {}
        [source.web]
        kind = "http"
        listen = "127.0.0.1:0"
        write_keys = ["${{env:WRITE_KEY}}"]
        key = "user"
        time = {{ field = "ts", unit = "ms" }}
        id = "id"
        disorder = "1h"
        [pipeline.visits]
        from = ["web"]
        session = {{ plugin = "builtin:gap", config = {{ gap = "2s" }} }}
        early = "epoch"
        to = ["sessions"]
        [sink.sessions]
        kind = "sqlite"
        path = {}
        table = "sessions"
        "#,
        path(data_dir),
        state(case, snapshot).replace("[state]", "[state]\n"),
        path("sessions.db"),
    );
    case.put("pipeline.toml", text.as_bytes());
}

/// A host that takes events, and where.
fn listening(case: &Case) -> (Process, Api) {
    let process = case.start(&[], &[("WRITE_KEY", KEY.into())]);
    let address = wait_for("the address", SOON, || {
        let said = process.said_so_far();
        let before = said.split("/v1/events").next().filter(|_| said.contains("/v1/events"))?;
        before.rsplit_once("http://").map(|(_, address)| address.to_owned())
    });
    (process, Api { address, token: KEY.to_owned() })
}

fn post(host: &Api, users: std::ops::Range<u64>) {
    let line = |n: u64| format!("{{\"user\":\"u{n}\",\"id\":\"e{n}\",\"ts\":{}}}\n", 1_780_000_000_000 + n);
    let body: String = users.map(line).collect();
    let kind = [("content-type", "application/x-ndjson")];
    // A host that has just begun asks to come again.
    wait_for("an answer", SOON, || {
        let status = host.try_ask("POST", "/v1/events", &kind, body.as_bytes())?.status;
        assert!(matches!(status, 202 | 503), "{status}");
        (status == 202).then_some(())
    });
}

/// Users with a session, in the table as its readers see it.
fn users(case: &Case) -> BTreeSet<String> {
    if !case.has_table() {
        return BTreeSet::new();
    }
    current(&case.table()).into_iter().map(|row| row.key).collect()
}

fn names(users: std::ops::Range<u64>) -> BTreeSet<String> {
    users.map(|n| format!("u{n}")).collect()
}

/// What clients have posted is in a snapshot too, whether an epoch has it or not; what they post later is what a failure costs.
#[test]
fn what_was_posted_before_a_snapshot_is_in_it() {
    let case = Case::new();
    configure_http(&case, "first", "");
    let (mut process, host) = listening(&case);
    post(&host, 0..500);
    wait_for("rows", SOON, || (users(&case) == names(0..500)).then_some(()));
    // The snapshot comes before the next epoch, or after it.
    post(&host, 500..1_000);
    done(&case, &["create"]);
    post(&host, 1_000..1_500);
    wait_for("rows", SOON, || (users(&case) == names(0..1_500)).then_some(()));
    process.kill();

    configure_http(&case, "second", "");
    done(&case, &["restore"]);
    let (process, host) = listening(&case);
    wait_for("rows of what was posted before", SOON, || (users(&case) == names(0..1_000)).then_some(()));
    post(&host, 1_500..1_600);
    let all: BTreeSet<String> = names(0..1_000).union(&names(1_500..1_600)).cloned().collect();
    wait_for("rows of what is posted now", SOON, || (users(&case) == all).then_some(()));
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}

#[test]
fn by_the_clock_the_newest_are_kept_with_all_their_parts() {
    let case = Case::new();
    configure_http(&case, "first", "snapshot = { every = \"1s\", keep = 2 }");
    let (process, host) = listening(&case);
    let mut seen = BTreeSet::new();
    let mut next = 0;
    wait_for("four snapshots", SOON, || {
        post(&host, next..next + 50);
        next += 50;
        let now = ids(&case);
        assert!(now.len() <= 3, "{now:?}");
        seen.extend(now);
        (seen.len() >= 4).then_some(())
    });
    let metrics = admin(&case).try_ask("GET", "/metrics", &[], b"").unwrap();
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(metrics.contains("tidemill_snapshots_total{result=\"taken\"}"), "{metrics}");
    assert!(metrics.contains("tidemill_snapshot_timestamp_seconds "), "{metrics}");
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
    let kept = ids(&case);
    assert_eq!(kept.len(), 2, "{kept:?}");
    let mut named = BTreeSet::new();
    for id in &kept {
        let text = std::fs::read(case.path(&format!("store/snapshots/{id}.json"))).unwrap();
        let manifest: Value = serde_json::from_slice(&text).unwrap();
        named.extend(
            manifest["parts"].as_array().unwrap().iter().map(|p| p["sha256"].as_str().unwrap().to_owned()),
        );
    }
    let there = std::fs::read_dir(case.path("store/parts")).unwrap();
    let there: BTreeSet<String> = there.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, named);
    done(&case, &["drill"]);
}

/// The admin API of the host that runs.
fn admin(case: &Case) -> Api {
    admin_in(case, "first")
}

/// The same, by the name of its data directory.
fn admin_in(case: &Case, data_dir: &str) -> Api {
    let read = |name: &str| {
        let text =
            wait_for("the address", SOON, || std::fs::read_to_string(case.path(data_dir).join(name)).ok());
        text.trim().to_owned()
    };
    Api { address: read("address").replace("http://", ""), token: read("token") }
}

#[test]
fn a_store_that_is_away_holds_nobody_up_and_a_damaged_part_is_not_restored() {
    let case = Case::new();
    // A file stands where the store's folder would be.
    case.put("store", b"");
    configure_http(&case, "first", "snapshot = { every = \"1s\" }");
    let (process, host) = listening(&case);
    let journal = || {
        let answer = admin(&case).try_ask("GET", "/api/v1/logs", &[], b"").unwrap();
        String::from_utf8(answer.body).unwrap()
    };
    wait_for("the word that it failed", SOON, || {
        journal().contains("no snapshot was taken: file://").then_some(())
    });
    post(&host, 0..100);
    wait_for("rows", SOON, || (users(&case) == names(0..100)).then_some(()));
    std::fs::remove_file(case.path("store")).unwrap();
    wait_for("the word that it works", SOON, || {
        journal().contains("snapshots are taken again").then_some(())
    });
    process.terminate();
    process.outcome(RUN_MAX).exits(0);

    refused(&case, &["restore"], 6, "there is something in this directory");
    configure_http(&case, "second", "");
    refused(&case, &["restore", "--id", "yesterday"], 4, "there is no snapshot `yesterday`");
    let parts: Vec<_> =
        std::fs::read_dir(case.path("store/parts")).unwrap().map(|e| e.unwrap().path()).collect();
    for part in &parts {
        let mut bytes = std::fs::read(part).unwrap();
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        std::fs::write(part, bytes).unwrap();
    }
    for command in ["restore", "drill"] {
        refused(&case, &[command], 1, "other bytes than its name says");
        assert!(!case.path("second").exists(), "{command}");
    }
    for part in &parts {
        std::fs::remove_file(part).unwrap();
    }
    refused(&case, &["restore"], 1, "it is gone");
    assert!(!case.path("second").exists());
}

/// What was uploaded for a snapshot whose host died before it was one; and somebody who takes one meanwhile.
#[test]
fn a_snapshot_that_was_not_finished_leaves_nothing_and_two_do_not_mix() {
    let case = Case::new();
    case.put(FILE, &shop(2, 1_000));
    configure(&case, &config(&case.path("first"), "close"), "");
    refused(&case, &["create"], 4, "nothing has run here yet");
    refused(&case, &["restore"], 4, "there is no snapshot yet");
    case.run().exits(0);
    let orphan = format!("store/parts/{}", "0".repeat(64));
    case.put(&orphan, b"of a snapshot that never was");
    let busy = std::fs::File::create(case.path("first/SNAPSHOT")).unwrap();
    busy.lock().unwrap();
    refused(&case, &["create"], 6, "another snapshot is being taken");
    assert!(case.path(&orphan).exists() && ids(&case).is_empty());
    drop(busy);
    done(&case, &["create"]);
    assert!(!case.path(&orphan).exists());
    assert_eq!(ids(&case).len(), 1);
}

#[test]
fn a_store_is_checked_with_the_rest_of_the_config() {
    let case = Case::new();
    case.put(FILE, &shop(1, 10));
    let check = |more: &str| {
        case.configure(&config(&case.path("first"), "close"));
        let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
        case.put("pipeline.toml", format!("{text}\n{more}\n").as_bytes());
        let out = Command::new(binary()).arg("check").arg(case.path("pipeline.toml")).output().unwrap();
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let wrong = |more: &str, why: &str| {
        let (code, said) = check(more);
        assert!(code == 4 && said.contains(why), "{more}: exit {code}: {said}");
    };
    let (code, said) = check("[state]\nstore = \"s3://bucket/x\"\nsnapshot = { every = \"15m\", keep = 96 }");
    assert_eq!(code, 0, "{said}");
    wrong("[state]", "store");
    wrong("[state]\nstore = \"ftp://x/y\"", "nothing is known of `ftp:`");
    wrong("[state]\nstore = \"s3://b/x\"\noptions = { regoin = \"eu\" }", "no option `regoin`");
    wrong(
        "[state]\nstore = \"s3://b/x\"\noptions = { secret_access_key = \"abc\" }",
        "a secret does not belong",
    );
    wrong("[state]\nstore = \"s3://b/x\"\nsnapshot = { every = \"1ms\" }", "at least 1s");
    wrong("[state]\nstore = \"s3://b/x\"\nsnapshot = { keep = 0 }", "keep");
    wrong("[state]\nstore = \"s3://b/x\"\nsnapshots = {}", "snapshots");
    refused(&case, &["list"], 4, "snapshots");
    check("");
    refused(&case, &["list"], 4, "the config names no object store");
}
