//! A rule that is swapped while events flow, through the admin API: what is folded by which version, what is refused, what a
//! crash leaves, and how long it takes.
//!
//! The bug family: an event that two versions fold or none, a final row that a swap rewrites, a swap of which a crash leaves
//! half, a change that is accepted and may not be. `TIDEMILL_SWAP_EVENTS` (default 1,000,000) and `TIDEMILL_SWAPS` (default 4)
//! set the size of the swap under load.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::io::Write as _;
use std::time::Duration;
use tidemill_tests::api::{Api, instant_ms};
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::plugins::plugin;
use tidemill_tests::schedule::{self, Named, Policy, Version, named};
use tidemill_tests::traffic::{Shop, Timed, delayed, file_of};
use tidemill_tests::{Case, Config, Plugin, Process, Session, env_number, wait_for};

const FILE: &str = "in.jsonl";
const DISORDER_MS: i64 = 10_000;
/// A pause that is no pause of a swap any more; the first target is 5 ms.
const PAUSE_MAX_MS: f64 = 250.0;
const RUN_MAX: Duration = Duration::from_secs(300);
const PIPELINE: &str = "visits";

fn source(more: &str) -> Source {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let fields = vec![("kind".into(), "type".into())];
    Source { id: Some("id".into()), fields, disorder_ms: DISORDER_MS, more: more.into(), ..file }
}

fn config(more: &str) -> Config {
    let mut config = Config::new(source(more), Gap::of_seconds(1, true));
    config.session = Session::Plugin(Plugin::new("swap-sessions", "gap = \"20s\""));
    config.epoch = "50ms".into();
    config.listen = Some("127.0.0.1:0".into());
    config
}

fn first() -> Version {
    Version {
        plugin: "swap-sessions@1.0.0".into(),
        from_ms: i64::MIN,
        policy: Policy::Migrate,
        gap_ms: 20_000,
    }
}

/// Compares with the model of one followed file.
fn compare(what: &str, case: &Case, bytes: &[u8], versions: &[Version]) -> Vec<Named> {
    let log = model::read(&[(&source(""), FILE, bytes)], &Gap::of_seconds(1, true));
    schedule::compare(what, case, &log, versions)
}

/// The place in event time of an operation that is in force.
#[track_caller]
fn place(operation: &Value) -> i64 {
    assert_eq!(operation["status"], "in_force", "{operation}");
    instant_ms(&operation["from"])
}

/// Lines that a followed file grows by.
fn append(case: &Case, lines: &[Timed]) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(case.path(FILE)).unwrap();
    file.write_all(&file_of(lines)).unwrap();
}

/// Waits until so many events are folded or wait to be.
fn taken(api: &Api, events: u64) {
    wait_for("the events to be read", RUN_MAX, || {
        let shown = api.get(&format!("/api/v1/pipelines/{PIPELINE}"));
        (shown["counters"]["events"].as_u64() == Some(events)).then_some(())
    });
}

fn stop(process: Process) {
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}

/// Deploys as soon as only one version is live, and waits until it is in force; none if the host has ended.
fn deployed(api: &Api, name: &str, version: &str) -> Option<Value> {
    let wish = json!({ "plugin": name, "version": version, "config": { "gap": "20s" }, "policy": "migrate" });
    let path = format!("/api/v1/pipelines/{PIPELINE}/deployment");
    let headers = [("content-type", "application/json"), ("if-match", "*")];
    let mut answer = api.try_ask("PUT", &path, &headers, wish.to_string().as_bytes())?;
    while answer.status == 409 && answer.json()["type"] == "/problems/swap_pending" {
        answer = api.try_ask("PUT", &path, &headers, wish.to_string().as_bytes())?;
    }
    if answer.status == 409 && answer.json()["type"] == "/problems/state" {
        return None;
    }
    let place = answer.is(202).header("location").unwrap().to_owned();
    loop {
        let operation = api.try_ask("GET", &place, &[], b"")?.json();
        match operation["status"].as_str() {
            Some("in_force") => return Some(operation),
            Some("waiting") => {}
            // Asked for just before the end of the input.
            _ if operation["refused"] == "the pipeline reads no more" => return None,
            _ => panic!("{operation}"),
        }
    }
}

#[test]
fn swaps_at_full_load_change_nothing_but_the_version() {
    let events = env_number("TIDEMILL_SWAP_EVENTS", 1_000_000);
    let swaps = env_number("TIDEMILL_SWAPS", 4);
    let lines = Shop { seed: 7, events, users: 400 + events / 100, step_ms: 20, invalid_every: 0 }.lines();
    let bytes = file_of(&delayed(&lines, 7, DISORDER_MS - 1, true));
    let case = Case::new();
    case.put(FILE, &bytes);
    case.configure(&config(""));
    let process = case.start(&[], &[]);
    let api = Api::of(&case, &process);
    let builds = [plugin("swap-sessions-2"), plugin("swap-sessions")].map(|p| api.upload(&p));
    let mut versions = vec![first()];
    let mut pauses: Vec<f64> = Vec::new();
    for n in 0..swaps {
        let (name, version) = &builds[n as usize % 2];
        // On a machine that reads faster than it is asked, the input may be used up before the last swap.
        let Some(operation) = deployed(&api, name, version) else { break };
        versions.push(Version { plugin: format!("{name}@{version}"), from_ms: place(&operation), ..first() });
        pauses.push(operation["pause_ms"].as_f64().unwrap());
    }
    process.outcome(RUN_MAX).exits(0);
    // How many come depends on the machine: one that reads a million events a second has used the default up after three.
    assert!(
        pauses.len() > 1,
        "the input was used up after {} of {swaps} swaps: `TIDEMILL_SWAP_EVENTS` makes it longer",
        pauses.len()
    );
    let places: Vec<i64> = versions[1..].iter().map(|v| v.from_ms).collect();
    eprintln!("{events} events, {} swaps at {places:?}", places.len());
    pauses.sort_by(f64::total_cmp);
    let at = |q: usize| pauses[(pauses.len() - 1) * q / 100];
    eprintln!("pause: p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms", at(50), at(99), at(100));
    assert!(at(99) < PAUSE_MAX_MS, "{pauses:?}");
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    let rows = compare("full load", &case, &bytes, &versions);
    // Each version has closed something, or the swaps prove nothing.
    let closed = |v: &Version| rows.iter().filter(|r| r.plugin == v.plugin).count();
    assert!(versions[..2].iter().all(|v| closed(v) > 100), "too few sessions of some version");
}

#[test]
fn a_different_gap_holds_from_its_place_on_whatever_the_order() {
    let lines = Shop { seed: 8, events: 20_000, users: 200, step_ms: 100, invalid_every: 0 }.lines();
    let lines = delayed(&lines, 8, DISORDER_MS - 1, true);
    let (before, after) = lines.split_at(lines.len() / 2);
    let case = Case::new();
    append(&case, before);
    case.configure(&config("follow = true\nidle = \"1s\""));
    let process = case.start(&[], &[]);
    let api = Api::of(&case, &process);
    taken(&api, before.len() as u64);
    let (name, version) = api.upload(&plugin("swap-sessions-3"));
    let operation = api.ended(api.deploy(PIPELINE, &name, &version, &json!({ "gap": "45s" }), "migrate"));
    let greatest = before.iter().map(|l| l.time).max().unwrap();
    assert_eq!(place(&operation), greatest + 1, "S is one ms after the greatest event time");
    // Two versions are live until W has come there: another deployment has to wait.
    let (other, of) = api.upload(&plugin("swap-sessions-2"));
    let refused = api.deploy(PIPELINE, &other, &of, &json!({ "gap": "1s" }), "migrate");
    if refused.status != 409 {
        // W has passed in between; then it was settled, which is as good, but proves less.
        panic!("{} instead of 409: {}", refused.status, refused.json());
    }
    assert!(refused.json()["missing_ms"].as_i64().unwrap() > 0, "{}", refused.json());
    append(&case, after);
    taken(&api, lines.len() as u64);
    let versions = [
        first(),
        Version {
            plugin: format!("{name}@{version}"),
            from_ms: place(&operation),
            policy: Policy::Migrate,
            gap_ms: 45_000,
        },
    ];
    let bytes = file_of(&lines);
    wait_for("every session to be final", RUN_MAX, || {
        case.table().iter().all(|s| s.stage != "early").then_some(())
    });
    api.settled(PIPELINE);
    stop(process);
    let rows = compare("another gap", &case, &bytes, &versions);
    let of = |v: &Version| rows.iter().filter(|r| r.plugin == v.plugin).count();
    assert!(versions.iter().all(|v| of(v) > 100), "too few sessions of some version");
}

fn event(id: &str, user: &str, ms: i64, kind: &str) -> Timed {
    let ts = tidemill_tests::traffic::START_MS + ms;
    Timed {
        time: ts,
        line: format!("{{\"id\":\"{id}\",\"user\":\"{user}\",\"ts\":{ts},\"type\":\"{kind}\"}}"),
    }
}

/// A followed file with these events, read.
fn following(lines: &[Timed]) -> (Case, Process, Api) {
    let case = Case::new();
    append(&case, lines);
    case.configure(&config("follow = true\nidle = \"30s\""));
    let process = case.start(&[], &[]);
    let api = Api::of(&case, &process);
    taken(&api, lines.len() as u64);
    (case, process, api)
}

#[test]
fn states_that_do_not_fit_refuse_the_swap_and_name_their_keys() {
    let users = ["ann", "bob", "cleo", "dan", "eve"];
    let odd = |user: &str| ["ann", "cleo", "eve"].contains(&user);
    let lines: Vec<Timed> =
        users.iter().map(|u| event(u, u, 0, if odd(u) { "odd" } else { "even" })).collect();
    let (case, process, api) = following(&lines);
    let gap = json!({ "gap": "20s" });
    let (name, version) = api.upload(&plugin("swap-sessions-3"));
    let refused = api.deploy(PIPELINE, &name, &version, &gap, "migrate").is(409).json();
    let mut keys: Vec<&str> =
        refused["keys"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!((refused["count"].as_u64(), keys), (Some(3), vec!["ann", "cleo", "eve"]), "{refused}");
    let (name, version) = api.upload(&plugin("swap-sessions-4"));
    let refused = api.deploy(PIPELINE, &name, &version, &gap, "migrate").is(409).json();
    assert!(refused["detail"].as_str().unwrap().contains("drain"), "{refused}");
    let wrong = api.deploy(PIPELINE, &name, &version, &json!({ "gap": 5 }), "drain").is(422).json();
    assert!(wrong.to_string().contains("/gap"), "{wrong}");
    let unknown = api.deploy(PIPELINE, &name, "9.9.9", &gap, "drain");
    assert!(matches!(unknown.status, 404 | 422), "{}", unknown.json());
    // Nothing of all that has happened: what was open goes on under the version that it began with.
    let shown = api.get(&format!("/api/v1/pipelines/{PIPELINE}"));
    let live = shown["deployments"].as_array().unwrap();
    assert_eq!((live.len(), &live[0]["plugin"]), (1, &json!("swap-sessions@1.0.0")), "{shown}");
    stop(process);
    drop(case);
}

#[test]
fn a_drained_session_keeps_its_version_and_the_next_one_has_the_new() {
    let (case, process, api) = following(&[event("1", "ann", 0, "x"), event("2", "bob", 0, "x")]);
    let (name, version) = api.upload(&plugin("swap-sessions-4"));
    let gap = json!({ "gap": "20s" });
    let operation = api.ended(api.deploy(PIPELINE, &name, &version, &gap, "drain"));
    let later = [
        // Ann goes on across the swap; Bob comes back after his session has ended.
        event("3", "ann", 15_000, "x"),
        event("4", "ann", 30_000, "x"),
        event("5", "bob", 40_000, "x"),
        event("6", "cleo", 200_000, "x"),
    ];
    append(&case, &later);
    taken(&api, 6);
    api.settled(PIPELINE);
    let of = |key: &str| -> Vec<(i64, String)> {
        let rows = named(&case.table());
        let of_key = rows.into_iter().filter(|r| r.row.key == key);
        of_key.map(|r| (r.row.events as i64, r.plugin)).collect()
    };
    assert!(place(&operation) > later[0].time - 15_000);
    assert_eq!(of("ann"), [(3, "swap-sessions@1.0.0".into())]);
    assert_eq!(of("bob"), [(1, "swap-sessions@1.0.0".into()), (1, "swap-sessions@4.0.0".into())]);
    stop(process);
}

#[test]
fn a_rollback_leaves_no_trace_until_event_time_has_come_there_and_is_a_swap_after() {
    let (case, process, api) = following(&[event("1", "ann", 0, "x")]);
    let (name, version) = api.upload(&plugin("swap-sessions-3"));
    let wish = json!({ "message": "it was wrong" }).to_string();
    let headers = [("content-type", "application/json"), ("if-match", "*")];
    let path = format!("/api/v1/pipelines/{PIPELINE}/rollback");
    let none = api.ask("POST", &path, &headers, wish.as_bytes());
    assert_eq!(none.status, 404, "{}", none.json());
    api.ended(api.deploy(PIPELINE, &name, &version, &json!({ "gap": "2s" }), "migrate"));
    append(&case, &[event("2", "ann", 5_000, "x")]);
    taken(&api, 2);
    // Under version 3 these are two sessions; W has not come to its place, so it never was.
    let back = api.ended(api.ask("POST", &path, &headers, wish.as_bytes()));
    assert_eq!((&back["status"], &back["deployment"]), (&json!("in_force"), &json!(0)), "{back}");
    append(&case, &[event("3", "bob", 100_000, "x")]);
    taken(&api, 3);
    let ann = || -> Vec<(u64, String)> {
        let rows = named(&case.table());
        rows.iter().filter(|r| r.row.key == "ann").map(|r| (r.row.events, r.plugin.clone())).collect()
    };
    wait_for("ann's session", RUN_MAX, || (ann() == [(2, "swap-sessions@1.0.0".into())]).then_some(()));
    // Once it is settled, going back is a swap of its own, which this version's states do not allow.
    api.ended(api.deploy(PIPELINE, &name, &version, &json!({ "gap": "2s" }), "migrate"));
    append(&case, &[event("4", "cleo", 300_000, "x"), event("5", "dan", 600_000, "x")]);
    taken(&api, 5);
    api.settled(PIPELINE);
    let refused = api.ask("POST", &path, &headers, wish.as_bytes()).is(409).json();
    assert!(refused["detail"].as_str().unwrap().contains("drain"), "{refused}");
    let drain = json!({ "policy": "drain", "message": "back" }).to_string();
    let back = api.ended(api.ask("POST", &path, &headers, drain.as_bytes()));
    assert_eq!(back["status"], "in_force", "{back}");
    // The audit is what is committed: the last entry comes with the next epoch.
    let actions = wait_for("the audit", RUN_MAX, || {
        let audit = api.get(&format!("/api/v1/pipelines/{PIPELINE}/audit"));
        let entries = audit["entries"].as_array().unwrap().iter();
        let actions: Vec<String> = entries.map(|e| e["action"].as_str().unwrap().to_owned()).collect();
        (actions.len() >= 6).then_some(actions)
    });
    assert_eq!(actions, ["deploy", "deploy", "rollback", "deploy", "settled", "rollback"]);
    stop(process);
}

#[test]
fn a_clock_that_is_ahead_puts_the_swap_ahead() {
    let now = jiff::Timestamp::now().as_millisecond();
    let at = |id: &str, user: &str, ts: i64| Timed {
        time: ts,
        line: format!("{{\"id\":\"{id}\",\"user\":\"{user}\",\"ts\":{ts},\"type\":\"x\"}}"),
    };
    let ahead = now + 240_000;
    let (_case, process, api) = following(&[at("1", "ann", now), at("2", "bob", ahead)]);
    let (name, version) = api.upload(&plugin("swap-sessions-2"));
    let operation = api.ended(api.deploy(PIPELINE, &name, &version, &json!({ "gap": "20s" }), "migrate"));
    assert_eq!(place(&operation), ahead + 1);
    let shown = api.get(&format!("/api/v1/pipelines/{PIPELINE}"));
    let live = shown["deployments"].as_array().unwrap();
    assert_eq!(
        (live.len(), instant_ms(&live[1]["from"])),
        (2, ahead + 1),
        "status says where it is: {shown}"
    );
    stop(process);
}

/// Bug family: sessions that end as faults where nobody is told, because their states were not tried when the version was.
#[test]
fn a_state_that_became_unfit_after_the_trial_is_a_fault_that_counts() {
    for (users, is_too_many) in [(3, false), (30, true)] {
        let each = |n: i64, ms: i64, kind: &str| -> Vec<Timed> {
            (0..users).map(|u| event(&format!("{n}-{u}"), &format!("u{u}"), ms, kind)).collect()
        };
        let mut lines = each(0, 0, "even");
        lines.push(event("z", "zed", 9_000, "even"));
        let (case, process, api) = following(&lines);
        let (name, version) = api.upload(&plugin("swap-sessions-3"));
        let gap = json!({ "gap": "20s" });
        let operation = api.ended(api.deploy(PIPELINE, &name, &version, &gap, "migrate"));
        assert_eq!(place(&operation), lines.last().unwrap().time + 1, "every state was fit");
        // Late, but not too late: before the swap's place.
        append(&case, &each(1, 500, "odd"));
        append(&case, &[event("far", "far", 60_000, "even")]);
        let metric = || {
            let text = String::from_utf8(api.ask("GET", "/metrics", &[], b"").is(200).body).unwrap();
            let line =
                text.lines().find(|l| l.starts_with("tidemill_plugin_faults_total{")).map(str::to_owned);
            line.and_then(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
        };
        let said = || {
            let lines = api.get("/api/v1/logs?limit=1000");
            let said = lines["lines"].as_array().unwrap().iter();
            said.filter(|l| l.to_string().contains("could not migrate its state")).count()
        };
        let faults = if is_too_many {
            let path = format!("/api/v1/pipelines/{PIPELINE}");
            wait_for("the pipeline to be suspended", RUN_MAX, || {
                (api.get(&path)["state"] == "suspended").then_some(())
            });
            // Those of the same barrier are found before it is abandoned.
            let found = said();
            assert!((21..=30).contains(&found), "{found}");
            assert_eq!(metric(), Some(found as f64), "each once");
            let headers = [("content-type", "application/json"), ("if-match", "*")];
            let back = api.ended(api.ask("POST", &format!("{path}/rollback"), &headers, b"{}"));
            assert_eq!((&back["status"], &back["deployment"]), (&json!("in_force"), &json!(0)), "{back}");
            wait_for("the sessions under the version before", RUN_MAX, || {
                let rows = named(&case.table());
                let mended = rows.iter().filter(|r| r.row.events == 2 && r.plugin == "swap-sessions@1.0.0");
                (mended.count() as i64 == users).then_some(())
            });
            0
        } else {
            wait_for("the sessions to end", RUN_MAX, || (said() == users as usize).then_some(()));
            assert_eq!(metric(), Some(users as f64), "each once");
            users as usize
        };
        let ended = || {
            let rows = named(&case.table());
            rows.iter().filter(|r| r.row.reason.as_deref() == Some("plugin_fault")).count()
        };
        wait_for("the rows", RUN_MAX, || (ended() == faults).then_some(()));
        stop(process);
    }
}

/// Killed right after each step of a swap: asked for, in force, settling, settled. Recovery is on one side of it.
#[test]
fn a_crash_at_each_step_recovers_to_one_side_of_the_swap() {
    let lines = Shop { seed: 9, events: 24_000, users: 200, step_ms: 100, invalid_every: 0 }.lines();
    let lines = delayed(&lines, 9, DISORDER_MS - 1, true);
    let case = Case::new();
    case.configure(&config("follow = true\nidle = \"1s\""));
    let parts: Vec<&[Timed]> = lines.chunks(lines.len() / 6).collect();
    append(&case, parts[0]);
    let mut process = case.start(&[], &[]);
    let mut api = Api::of(&case, &process);
    let builds = [plugin("swap-sessions-2"), plugin("swap-sessions")].map(|p| api.upload(&p));
    let mut read = parts[0].len() as u64;
    taken(&api, read);
    for (step, part) in parts[1..].iter().enumerate() {
        let (name, version) = &builds[step % 2];
        let config = json!({ "gap": format!("{}s", 20 + 5 * step) });
        match step {
            // Its answer is on its way when the process dies.
            0 => {
                drop(api.deploy(PIPELINE, name, version, &config, "migrate").is(202));
            }
            _ => {
                api.ended(api.deploy(PIPELINE, name, version, &config, "migrate"));
                if step > 1 {
                    append(&case, part);
                }
                if step > 2 {
                    api.settled(PIPELINE);
                }
            }
        }
        process.kill();
        if step <= 1 {
            append(&case, part);
        }
        read += part.len() as u64;
        process = case.start(&[], &[]);
        api = Api::of(&case, &process);
        taken(&api, read);
        api.settled(PIPELINE);
    }
    let shown = api.get(&format!("/api/v1/pipelines/{PIPELINE}/deployments"));
    let versions: Vec<Version> = shown["deployments"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|d| d["standing"] != "struck")
        .map(|d| Version {
            plugin: d["plugin"].as_str().unwrap().into(),
            from_ms: if d["from"].is_null() { i64::MIN } else { instant_ms(&d["from"]) },
            policy: Policy::Migrate,
            gap_ms: 1000 * d["config"]["gap"].as_str().unwrap().trim_end_matches('s').parse::<i64>().unwrap(),
        })
        .collect();
    assert!(versions.len() >= 5, "too few swaps came through: {shown}");
    wait_for("every session to be final", RUN_MAX, || {
        case.table().iter().all(|s| s.stage != "early").then_some(())
    });
    stop(process);
    compare("crashes", &case, &file_of(&lines), &versions);
}
