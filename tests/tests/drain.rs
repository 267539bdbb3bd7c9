//! Sessions that are drained go on under the version that they began with, and no longer than somebody allows.
//!
//! The bug family: a version that one busy user keeps alive for ever, so that no other can follow; a session that changes hands
//! in its midst; a bound that depends on when a host happened to look.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::io::Write as _;
use std::time::Duration;
use tidemill_tests::api::{Api, instant_ms};
use tidemill_tests::model::{self, Format, Gap, Source, Unit};
use tidemill_tests::plugins::plugin;
use tidemill_tests::schedule::{self, Policy, Version};
use tidemill_tests::traffic::{START_MS, Shop, Timed, delayed, file_of};
use tidemill_tests::{Case, Config, Plugin, Process, Session, wait_for};

const WAIT_MAX: Duration = Duration::from_secs(120);
const PIPELINE: &str = "/api/v1/pipelines/visits";
const MAX_MS: i64 = 60_000;

fn source() -> Source {
    let file = Source::file("web", "in.jsonl", Format::Json, "user", "ts", Unit::Millis);
    let fields = vec![("kind".into(), "type".into())];
    let more = "follow = true\nidle = \"1s\"".into();
    Source { id: Some("id".into()), fields, disorder_ms: 2_000, more, ..file }
}

fn append(case: &Case, lines: &[Timed]) {
    let path = case.path("in.jsonl");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(&file_of(lines)).unwrap();
}

/// Somebody who never falls silent, among others who come and go; out of order.
fn traffic(seed: u64, events: u64, clicks: i64) -> Vec<Timed> {
    let mut lines = Shop { seed, events, users: 80, step_ms: 50, invalid_every: 0 }.lines();
    for n in 0..clicks {
        let ts = START_MS + 2_000 * n;
        let line = format!("{{\"id\":\"b{n}\",\"user\":\"busy\",\"ts\":{ts},\"type\":\"view\"}}");
        lines.push(Timed { time: ts, line });
    }
    lines.sort_by_key(|l| l.time);
    delayed(&lines, seed, 1_999, true)
}

/// A pipeline with the first version of the rule, and the beginning of its log.
fn case_with(lines: &[Timed]) -> Case {
    let mut config = Config::new(source(), Gap::of_seconds(1, true));
    config.session = Session::Plugin(Plugin::new("swap-sessions", "gap = \"5s\""));
    config.epoch = "50ms".into();
    config.listen = Some("127.0.0.1:0".into());
    let case = Case::new();
    append(&case, lines);
    case.configure(&config);
    case
}

/// Waits until all is read and every session is final, and stops the host.
fn finish(case: &Case, process: Process, api: &Api, events: usize) {
    wait_for("every session to be final", WAIT_MAX, || {
        let shown = api.get(PIPELINE);
        let all = shown["counters"]["events"] == events && shown["live_keys"] == 0;
        (all && case.table().iter().all(|s| s.stage != "early")).then_some(())
    });
    process.terminate();
    process.outcome(WAIT_MAX).exits(0);
}

fn start(case: &Case, events: usize) -> (Process, Api) {
    let process = case.start(&[], &[]);
    let api = Api::of(case, &process);
    wait_for("the events to be read", WAIT_MAX, || {
        (api.get(PIPELINE)["counters"]["events"] == events).then_some(())
    });
    (process, api)
}

/// Bug family: a bad version that cannot be got rid of, because a visitor of the one before keeps clicking.
#[test]
fn a_rollback_comes_at_once_although_sessions_are_still_drained() {
    for (policy, killed) in [("migrate", false), ("migrate", true), ("drain", false), ("drain", true)] {
        let lines = traffic(22, 9_000, 225);
        let (before, after) = lines.split_at(lines.len() / 3);
        let (between, after) = after.split_at(after.len() / 2);
        let case = case_with(before);
        let (mut process, mut api) = start(&case, before.len());
        let (name, version) = api.upload(&plugin("swap-sessions-2"));
        let from = |operation: &Value| {
            assert_eq!(operation["status"], "in_force", "{operation}");
            instant_ms(&operation["from"])
        };
        let swap = from(&api.ended(api.deploy("visits", &name, &version, &json!({ "gap": "3s" }), "drain")));
        append(&case, between);
        wait_for("event time to pass the swap", WAIT_MAX, || {
            let shown = api.get(PIPELINE);
            let read = shown["counters"]["events"] == before.len() + between.len();
            (read && instant_ms(&shown["watermark"]) > swap + 10_000).then_some(())
        });
        let live = |api: &Api| api.get(PIPELINE)["deployments"].as_array().unwrap().len();
        assert_eq!(live(&api), 2, "somebody is still drained");
        let wish = json!({ "policy": policy }).to_string();
        let headers = [("content-type", "application/json")];
        let back =
            from(&api.ended(api.ask("POST", &format!("{PIPELINE}/rollback"), &headers, wish.as_bytes())));
        assert!(back > swap + 10_000);
        wait_for("what is committed", WAIT_MAX, || (live(&api) == 3).then_some(()));
        let pending = api.deploy("visits", &name, &version, &json!({ "gap": "3s" }), "drain").is(409).json();
        assert_eq!(pending["type"], "/problems/swap_pending", "{pending}");
        append(&case, after);
        if killed {
            process.kill();
            (process, api) = start(&case, lines.len());
        }
        api.settled("visits");
        finish(&case, process, &api, lines.len());
        let of = |build: &str, from_ms: i64, policy: Policy, gap_ms: i64| Version {
            plugin: format!("swap-sessions@{build}"),
            from_ms,
            policy,
            gap_ms,
        };
        let day = Policy::Drain(86_400_000);
        let versions = [
            of("1.0.0", i64::MIN, Policy::Migrate, 5_000),
            of("2.0.0", swap, day, 3_000),
            of("1.0.0", back, if policy == "drain" { day } else { Policy::Migrate }, 5_000),
        ];
        let log = model::read(&[(&source(), "in.jsonl", &file_of(&lines))], &Gap::of_seconds(1, true));
        let rows = schedule::compare("rolled back", &case, &log, &versions);
        let of = |plugin: &str| rows.iter().filter(|r| r.plugin.ends_with(plugin)).count();
        assert!(of("@1.0.0") > 100 && of("@2.0.0") > 20, "too few sessions of some version");
        let busy: Vec<_> = rows.iter().filter(|r| r.row.key == "busy").collect();
        assert!(matches!(busy[..], [one] if one.row.events == 225), "{busy:?}");
    }
}

#[test]
fn what_is_drained_for_too_long_ends_there_whatever_the_order() {
    for killed in [false, true] {
        let lines = traffic(21, 8_000, 200);
        let (before, after) = lines.split_at(lines.len() / 3);
        let case = case_with(before);
        let (mut process, mut api) = start(&case, before.len());
        let (name, version) = api.upload(&plugin("swap-sessions-4"));
        let wish = |max: &str| {
            let config = json!({ "gap": "5s" });
            let wish = json!({ "plugin": name, "version": version, "config": config, "policy": "drain", "drain_max": max });
            let headers = [("content-type", "application/json"), ("if-match", "*")];
            api.ask("PUT", &format!("{PIPELINE}/deployment"), &headers, wish.to_string().as_bytes())
        };
        for wrong in ["0s", "soon", "-1h", ""] {
            let answer = wish(wrong).is(400).json();
            assert!(answer["detail"].as_str().unwrap().contains("drain_max"), "{answer}");
        }
        let from = instant_ms(&api.ended(wish("60s"))["from"]);
        let live = api.get(PIPELINE)["deployments"].clone();
        assert_eq!(instant_ms(&live[1]["drained_by"]), from + MAX_MS, "status says how long: {live}");
        append(&case, after);
        if killed {
            process.kill();
            (process, api) = start(&case, lines.len());
        }
        api.settled("visits");
        let first = Version {
            plugin: "swap-sessions@1.0.0".into(),
            from_ms: i64::MIN,
            policy: Policy::Migrate,
            gap_ms: 5_000,
        };
        let newer = Version {
            plugin: format!("{name}@{version}"),
            from_ms: from,
            policy: Policy::Drain(MAX_MS),
            gap_ms: 5_000,
        };
        finish(&case, process, &api, lines.len());
        let log = model::read(&[(&source(), "in.jsonl", &file_of(&lines))], &Gap::of_seconds(1, true));
        let rows = schedule::compare("drained", &case, &log, &[first, newer]);
        let ended = rows.iter().filter(|r| r.row.reason.as_deref() == Some("limit"));
        assert!(ended.clone().any(|r| r.row.key == "busy" && r.plugin == "swap-sessions@1.0.0"), "{rows:?}");
    }
}
