//! Two pipelines of two teams in one host, fed over HTTP: one is suspended by its plugin and mended, the other does not notice.
//!
//! The bug family: a neighbour that waits for somebody else's plugin, an acknowledged event that a suspension loses or counts
//! twice, a suspension that only a restart ends, one that nobody can see. What is right is the naive model's table.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use tidemill_tests::api::{Api, instant_ms};
use tidemill_tests::model::{self, Format, Gap, Place, Row, Source, Unit};
use tidemill_tests::plugins::{self, plugin};
use tidemill_tests::{Case, Process, current, latest, same_table, wait_for};

const WAIT_MAX: Duration = Duration::from_secs(60);
const BEGIN_MS: i64 = 1_735_689_600_000;
const WRITE_KEYS: [(&str, &str); 2] = [("bad", "0123456789abcdef"), ("good", "fedcba9876543210")];
/// An hour later somebody comes by, and with that all other sessions have ended.
const CLOSER: &str = "closer";

/// A source that is posted to.
const POSTED: &str = "kind = \"http\"\nlisten = \"127.0.0.1:0\"\nfar_future = \"off\"\nidle = \"60s\"";

/// The config: `bad` runs this component, `good` the rule that ships; both end sessions after 30 silent seconds.
fn configure(case: &Case, guest: &str, bad_source: &str, limits: &str) {
    let inside = |path: std::path::PathBuf| Value::from(path.to_str().unwrap()).to_string();
    let mut t = String::from("[server]\ndata_dir = \"state\"\nlisten = \"127.0.0.1:0\"\nepoch = \"50ms\"\n");
    let _ = writeln!(t, "[plugin.hostile-sessions]\npath = {}", inside(plugin(guest)));
    let gap = inside(plugin("gap-sessions"));
    let _ = writeln!(t, "[plugin.gap-sessions]\npath = {gap}\nconfig = {{ gap = \"30s\" }}");
    for ((name, key), rule) in WRITE_KEYS.into_iter().zip(["hostile-sessions", "gap-sessions"]) {
        let posted = format!("{POSTED}\nwrite_keys = [\"{key}\"]");
        let source = if name == "bad" && !bad_source.is_empty() { bad_source } else { &posted };
        let _ = writeln!(
            t,
            "[source.{name}]\n{source}\nkey = \"u\"\ntime = {{ field = \"t\", unit = \"ms\" }}\nid = \"id\"\n\
             disorder = \"1s\"\n\
             [pipeline.{name}]\nfrom = [\"{name}\"]\nsession = {{ plugin = \"{rule}\" }}\nto = [\"{name}_rows\"]\n\
             dead = \"{name}_dead\"\nlimits = {{ {limits} }}\n\
             [sink.{name}_rows]\nkind = \"file\"\npath = \"{name}_rows.jsonl\"\n\
             [sink.{name}_dead]\nkind = \"file\"\npath = \"{name}_dead.jsonl\"\n",
        );
    }
    case.put("pipeline.toml", t.as_bytes());
    plugins::lend(&case.path("state"));
}

/// A host, and all that was acknowledged by it.
struct Host {
    case: Case,
    process: Process,
    api: Api,
    /// Where events go, with each team's own key.
    teams: Vec<Api>,
    posted: [String; 2],
}

const BAD: usize = 0;
const GOOD: usize = 1;

impl Host {
    fn new(guest: &str, limits: &str) -> Host {
        let case = Case::new();
        configure(&case, guest, "", limits);
        let (process, api, teams) = Host::start(&case);
        Host { case, process, api, teams, posted: Default::default() }
    }

    fn start(case: &Case) -> (Process, Api, Vec<Api>) {
        let process = case.start(&[], &[]);
        let api = Api::of(case, &process);
        let said = process.said_so_far();
        let team = |(name, key): (&str, &str)| {
            let (_, rest) = said.split_once(&format!("source `{name}` takes events at http://"))?;
            let (address, _) = rest.split_once("/v1/events")?;
            Some(Api { address: address.to_owned(), token: key.to_owned() })
        };
        let teams = WRITE_KEYS.into_iter().filter_map(team).collect();
        (process, api, teams)
    }

    fn kill_and_start(&mut self) {
        self.process.kill();
        (self.process, self.api, self.teams) = Host::start(&self.case);
    }

    /// Posts lines of a team, all of which must be acknowledged.
    #[track_caller]
    fn post(&mut self, team: usize, lines: &str) {
        let kind = [("content-type", "application/x-ndjson")];
        let answer = self.teams[team].ask("POST", "/v1/events", &kind, lines.as_bytes()).is(202).json();
        assert_eq!(answer["rejected"], json!([]), "{answer}");
        self.posted[team] += lines;
    }

    fn shown(&self, team: usize) -> Value {
        self.api.get(&format!("/api/v1/pipelines/{}", WRITE_KEYS[team].0))
    }

    /// Waits until a pipeline has taken in all that was posted, and committed it.
    fn taken(&self, team: usize) {
        let events = self.posted[team].lines().count();
        wait_for("what was posted to be committed", WAIT_MAX, || {
            (self.shown(team)["counters"]["events"] == events).then_some(())
        });
    }

    fn state(&self, team: usize, wanted: &str) {
        wait_for(wanted, WAIT_MAX, || (self.shown(team)["state"] == wanted).then_some(()));
    }

    fn audit(&self) -> Vec<(String, String)> {
        let shown = self.api.get("/api/v1/pipelines/bad/audit");
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let entries = shown["entries"].as_array().unwrap().iter();
        entries.map(|e| (text(&e["action"]), text(&e["by"]))).collect()
    }

    fn rollback(&self, policy: &str) -> Value {
        let body = json!({ "policy": policy, "message": "back" }).to_string();
        let headers = [("content-type", "application/json"), ("if-match", "*")];
        self.api.ended(self.api.ask("POST", "/api/v1/pipelines/bad/rollback", &headers, body.as_bytes()))
    }

    /// Ends all sessions, and compares a team's table with the model's without the events of these ids, whose letters are
    /// there once each.
    #[track_caller]
    fn is_exact(&mut self, team: usize, dead: &[&str]) {
        let name = WRITE_KEYS[team].0;
        self.post(team, &event("last", CLOSER, BEGIN_MS + 3_600_000, ""));
        self.taken(team);
        let rows = |case: &Case| {
            let rows = latest(case.lines(&format!("{name}_rows.jsonl")));
            rows.into_iter().filter(|s| s.row.key != CLOSER).collect::<Vec<_>>()
        };
        let (log, rule) = (read(&self.posted[team]), Gap::of_seconds(30, false));
        let ids: Vec<Vec<u8>> = dead.iter().map(|id| id.as_bytes().to_vec()).collect();
        let places: BTreeSet<Place> =
            log.events.iter().filter(|e| ids.contains(&e.id)).map(|e| e.place.clone()).collect();
        assert_eq!(places.len(), dead.len());
        let mut want: Vec<Row> = model::sessions(&log, &places, &rule);
        want.retain(|r| r.key != CLOSER);
        wait_for("every session to be final", WAIT_MAX, || {
            let rows = rows(&self.case);
            (rows.len() >= want.len() && rows.iter().all(|s| s.stage != "early")).then_some(())
        });
        same_table(name, &want, &current(&rows(&self.case)));
        let letters =
            || std::fs::read_to_string(self.case.path(&format!("{name}_dead.jsonl"))).unwrap_or_default();
        wait_for("the letters", WAIT_MAX, || (letters().lines().count() >= dead.len()).then_some(()));
        let mut told: Vec<String> = letters()
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .map(|l| format!("{} {}", l["reason"].as_str().unwrap(), l["id"].as_str().unwrap_or_default()))
            .collect();
        told.sort();
        assert_eq!(told, dead.iter().map(|id| format!("plugin_fault {id}")).collect::<Vec<_>>());
    }

    fn stops(self) {
        self.process.terminate();
        self.process.outcome(WAIT_MAX).exits(0);
    }
}

/// What the model reads of what was posted.
fn read(lines: &str) -> model::Log {
    let file = Source::file("s", "-", Format::Json, "u", "t", Unit::Millis);
    let source = Source { id: Some("id".into()), disorder_ms: 1_000, ..file };
    model::read(&[(&source, "-", lines.as_bytes())], &Gap::of_seconds(30, false))
}

fn event(id: &str, user: &str, ms: i64, act: &str) -> String {
    let act = if act.is_empty() { String::new() } else { format!(",\"act\":\"{act}\"") };
    format!("{{\"id\":\"{id}\",\"u\":\"{user}\",\"t\":{ms}{act}}}\n")
}

/// Events of some users within half a minute of event time from this second on; nobody is told to do anything.
fn calm(name: &str, from_s: i64) -> String {
    let one = |n: i64| {
        event(&format!("{name}{n}"), &format!("u{}", n % 7), BEGIN_MS + 1_000 * from_s + 700 * n, "")
    };
    (0..40).map(one).collect()
}

/// One event for each of some users, at each of which the rule panics.
fn poison(name: &str, from_s: i64, users: std::ops::Range<i64>) -> String {
    let at = |n: i64| BEGIN_MS + 1_000 * from_s + n;
    users.map(|n| event(&format!("{name}{n}"), &format!("u{n}"), at(n), "trap")).collect()
}

/// A pipeline that is suspended for six faults, of which three are allowed, and to which events go on being posted.
fn suspended(killed: bool) -> Host {
    let mut host = Host::new("hostile-sessions", "faults = 3");
    host.post(BAD, &calm("a", 0));
    host.taken(BAD);
    host.post(BAD, &poison("p", 40, 0..6));
    host.state(BAD, "suspended");
    host.post(BAD, &calm("b", 50));
    if killed {
        host.kill_and_start();
        // It has tried again by itself, with a new budget.
        host.state(BAD, "suspended");
        host.post(BAD, &calm("c", 90));
    }
    assert_eq!(host.shown(BAD)["counters"]["events"], 40, "it reads nothing while it is suspended");
    host
}

#[test]
fn a_mended_version_goes_on_with_all_that_was_accepted_meanwhile() {
    for killed in [false, true] {
        let mut host = suspended(killed);
        let (name, version) = host.api.upload(&plugin("hostile-sessions-2"));
        let done = host.api.ended(host.api.deploy("bad", &name, &version, &json!({}), "migrate"));
        assert_eq!(done["status"], "in_force", "{done}");
        host.state(BAD, "running");
        assert_eq!(host.shown(BAD)["suspended"], Value::Null);
        host.is_exact(BAD, &[]);
        let actions: Vec<String> = host.audit().into_iter().map(|(action, _)| action).collect();
        assert_eq!(actions[..2], ["deploy", "deploy"]);
        host.stops();
    }
}

#[test]
fn a_rollback_goes_on_with_all_that_was_accepted_meanwhile() {
    let stages = ["struck out", "drained", "settled"];
    for (stage, killed) in stages.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let mut host = Host::new("hostile-sessions-2", "faults = 3");
        host.post(BAD, &calm("a", 0));
        host.taken(BAD);
        let (name, version) = host.api.upload(&plugin("hostile-sessions"));
        let policy = if stage == "drained" { "drain" } else { "migrate" };
        host.api.ended(host.api.deploy("bad", &name, &version, &json!({}), policy));
        if stage != "struck out" {
            // The same users go on, so that those who are drained stay so.
            host.post(BAD, &calm("s", 35));
            host.taken(BAD);
        }
        match stage {
            "settled" => host.api.settled("bad"),
            "drained" => wait_for("event time to pass the swap", WAIT_MAX, || {
                let shown = host.shown(BAD);
                let at = instant_ms(&shown["deployments"][1]["from"]);
                (instant_ms(&shown["watermark"]) > at).then_some(())
            }),
            _ => {}
        }
        // Somebody new, whom nothing drains.
        host.post(BAD, &poison("p", 80, 10..16));
        host.state(BAD, "suspended");
        host.post(BAD, &calm("b", 90));
        if killed {
            host.kill_and_start();
            host.state(BAD, "suspended");
        }
        let done = host.rollback("migrate");
        assert_eq!(done["status"], "in_force", "{stage}, killed: {killed}: {done}");
        host.state(BAD, "running");
        let by_hand: Vec<String> =
            host.audit().into_iter().filter(|(_, by)| by == "admin").map(|(action, _)| action).collect();
        assert_eq!(by_hand, ["deploy", "rollback"]);
        host.is_exact(BAD, &[]);
        host.stops();
    }
}

#[test]
fn a_resume_or_a_restart_goes_on_with_a_new_budget() {
    for killed in [false, true] {
        let mut host = Host::new("hostile-sessions", "faults = 3");
        host.post(BAD, &calm("a", 0));
        // Those that are allowed are found and remembered; the next one is one too many.
        host.post(BAD, &poison("p", 40, 0..3));
        host.taken(BAD);
        host.post(BAD, &poison("p", 40, 3..4));
        host.state(BAD, "suspended");
        host.post(BAD, &calm("b", 50));
        if killed {
            host.kill_and_start();
        } else {
            host.api.ask("POST", "/api/v1/pipelines/bad/resume", &[], b"").is(200);
        }
        host.state(BAD, "running");
        host.is_exact(BAD, &["p0", "p1", "p2", "p3"]);
        let last = host.audit().pop().unwrap();
        let want = if killed { ("deploy", "config") } else { ("resume", "admin") };
        assert_eq!((last.0.as_str(), last.1.as_str()), want);
        if !killed {
            let all = host.api.get("/api/v1/operations");
            let done = &all["operations"][0];
            assert_eq!((&done["kind"], &done["status"]), (&json!("resume"), &json!("in_force")));
        }
        host.stops();
    }
}

/// Bug family: a pipeline that has committed nothing has no version in force, so none can follow.
#[test]
fn a_pipeline_that_is_suspended_in_its_first_epoch_can_be_mended() {
    let case = Case::new();
    let lines = calm("a", 0) + &poison("p", 40, 0..6) + &event("last", CLOSER, BEGIN_MS + 3_600_000, "");
    case.put("in.jsonl", lines.as_bytes());
    let followed = "kind = \"file\"\npath = \"in.jsonl\"\nformat = \"json\"\nfollow = true\nidle = \"60s\"";
    configure(&case, "hostile-sessions", followed, "faults = 3");
    let (process, api, teams) = Host::start(&case);
    let host = Host { case, process, api, teams, posted: Default::default() };
    host.state(BAD, "suspended");
    let now = host.api.get("/api/v1/pipelines/bad/deployment");
    assert_eq!(now["plugin"], "hostile-sessions@1.0.0");
    let (name, version) = host.api.upload(&plugin("hostile-sessions-2"));
    let done = host.api.ended(host.api.deploy("bad", &name, &version, &json!({}), "migrate"));
    assert_eq!(done["status"], "in_force", "{done}");
    let rows = || current(&latest(host.case.lines("bad_rows.jsonl")));
    let want = model::sessions(&read(&lines), &BTreeSet::new(), &Gap::of_seconds(30, false));
    let but_the_last = |mut rows: Vec<Row>| {
        rows.retain(|r| r.key != CLOSER);
        rows
    };
    wait_for("all sessions", WAIT_MAX, || (but_the_last(rows()) == but_the_last(want.clone())).then_some(()));
    host.stops();
}

/// From the post of an event to its row in the neighbour's sink, one after the other.
fn latencies(host: &mut Host, name: &str, mut more: impl FnMut(usize, &Host) -> bool) -> Vec<Duration> {
    let mut all = Vec::new();
    let rows = host.case.path("good_rows.jsonl");
    while more(all.len(), host) {
        let user = format!("{name}{}", all.len());
        let begun = Instant::now();
        host.post(GOOD, &event(&user, &user, BEGIN_MS + all.len() as i64, ""));
        let wanted = format!("\"{user}\"");
        all.push(wait_for("a row of the neighbour", WAIT_MAX, || {
            let rows = std::fs::read_to_string(&rows).unwrap_or_default();
            rows.contains(&wanted).then(|| begun.elapsed())
        }));
    }
    all.sort();
    all
}

#[test]
fn a_team_does_not_notice_that_another_teams_plugin_runs_away() {
    let mut host = Host::new("hostile-sessions", "overdue = \"1s\"");
    latencies(&mut host, "warm", |n, _| n < 5);
    let quiet = latencies(&mut host, "calm", |n, _| n < 100);
    let loops: String =
        (0..400).map(|n| event(&format!("l{n}"), &format!("k{n}"), BEGIN_MS, "loop")).collect();
    host.post(BAD, &loops);
    let begun = Instant::now();
    let mut after = None;
    let storm = latencies(&mut host, "storm", |n, host| {
        if after.is_none() && host.shown(BAD)["state"] == "suspended" {
            after = Some(begun.elapsed());
        }
        after.is_none() || n < 100
    });
    let at = |list: &[Duration], q: usize| list[(list.len() - 1) * q / 100];
    let ratio = at(&storm, 99).as_secs_f64() / at(&quiet, 99).as_secs_f64();
    tidemill_tests::report!(
        "accepted to row of the neighbour: p50 {:.1?}, p99 {:.1?} in calm; p50 {:.1?}, p99 {:.1?} beside a runaway, which is \
         suspended after {:.1?}: p99 {ratio:.2} times",
        at(&quiet, 50),
        at(&quiet, 99),
        at(&storm, 50),
        at(&storm, 99),
        after.unwrap()
    );
    // DESIGN 9 has 50 ms on a machine of its own; what is wrong here takes as long as the runaway's calls.
    assert!(at(&storm, 99) < at(&quiet, 99) + Duration::from_millis(500), "{storm:?}");

    // Whoever looks sees which of the two it is.
    let ready = |query: &str| host.api.ask("GET", &format!("/ready{query}"), &[], b"");
    let halted = ready("?pipeline=bad").is(503).json();
    assert_eq!(
        (&halted["type"], &halted["pipelines"]["bad"]),
        (&json!("/problems/halted"), &json!("suspended"))
    );
    assert_eq!(ready("?pipeline=good").is(200).json()["halted"], 0);
    assert_eq!(ready("").is(200).json()["pipelines"], json!({ "bad": "suspended" }));
    let why = host.shown(BAD)["suspended"].clone();
    assert_eq!(why["plugin"]["version"], "hostile-sessions@1.0.0", "{why}");
    assert!(why["overdue_ms"].as_u64() > Some(900), "{why}");
    assert_eq!(
        (&host.shown(GOOD)["suspended"], &host.shown(GOOD)["state"]),
        (&Value::Null, &json!("running"))
    );
    let metrics = String::from_utf8(host.api.ask("GET", "/metrics", &[], b"").is(200).body).unwrap();
    for line in [
        "tidemill_pipeline_state{pipeline=\"bad\",state=\"suspended\"} 1",
        "tidemill_pipeline_state{pipeline=\"bad\",state=\"running\"} 0",
        "tidemill_pipeline_state{pipeline=\"good\",state=\"running\"} 1",
        "tidemill_pipeline_state{pipeline=\"good\",state=\"suspended\"} 0",
        "tidemill_plugin_faults_total{pipeline=\"good\",plugin=\"gap-sessions\"} 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
    }
    let stops = "tidemill_plugin_deadline_stops_total{pipeline=\"bad\",plugin=\"hostile-sessions\"} ";
    let stops = metrics.lines().find_map(|l| l.strip_prefix(stops)).unwrap();
    assert!(stops.parse::<f64>().unwrap() > 0.0, "{stops}");
    // Its team's events are taken all the same, and the neighbour has its exact table.
    host.post(BAD, &calm("b", 0));
    host.is_exact(GOOD, &[]);
    host.process.terminate();
    host.process.outcome(WAIT_MAX).exits(1).says("pipeline `bad` is suspended");
}
