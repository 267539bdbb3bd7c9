//! Sessions with what is looked up for them: each row once, as its lookup's policy says, whatever the provider and the
//! process go through (SEMANTICS 27).
//!
//! The bug family: a row that leaves twice in two ways, or never; one that keeps waiting for what has been answered; a retraction
//! overtaken by what it retracts; a service that is asked for the same key over and over; memory that grows with an outage.
//! Sizes: `TIDEMILL_ENRICH_SESSIONS` (default 20,000), `TIDEMILL_ENRICH_GONE_MS` (default 1,500).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod providers;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::service::Service;
use tidemill_tests::traffic::{START_MS, Shop, delayed, file_of};
use tidemill_tests::{
    Case, Config, Plugin, Process, RUN_MAX, Session, binary, current, env_number, latest, same_table,
    wait_for,
};

const FILE: &str = "in.jsonl";

fn source() -> Source {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    Source { disorder_ms: 1_000, ..file }
}

/// What is known of a visitor, if anything is.
fn visitor(key: &str) -> Option<Value> {
    let n: u64 = key.bytes().map(u64::from).sum();
    (!n.is_multiple_of(7)).then(|| json!({"segment": format!("s{}", n % 5), "country": "NL", "secret": n}))
}

/// The fields that the enricher makes of it.
fn fields_of(key: &str) -> Value {
    match visitor(key) {
        Some(row) => json!({"visitor_segment": row["segment"], "visitor_country": row["country"]}),
        None => json!({}),
    }
}

/// An enricher by visitor alone, its campaigns in a file that has none.
fn profile(case: &Case, lookup: &str) -> (Vec<Plugin>, String) {
    case.put("campaigns.csv", b"id,channel,budget\nspring,mail,100\n");
    let campaigns = format!(
        "[lookup.campaigns]\nkind = \"file\"\npath = {:?}\nkey = \"id\"\n",
        case.path("campaigns.csv").to_str().unwrap()
    );
    let mut plugin = Plugin::new("profile-enricher", "");
    plugin.lookups = "visitor = \"visitors\", campaign = \"campaigns\"".into();
    (vec![plugin], format!("{campaigns}[lookup.visitors]\n{lookup}\n"))
}

fn service_lookup(service: &Service, more: &str) -> String {
    format!("kind = \"http\"\nurl = \"{}\"\nmethod = \"post\"\n{more}", service.url())
}

/// Every line of the JSON-lines sink as it stands.
fn lines(case: &Case) -> Vec<Value> {
    let text = std::fs::read_to_string(case.path("rows.jsonl")).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Session, key, fields of the SQLite table's rows that hold.
fn table_fields(case: &Case) -> Vec<(String, String, Value)> {
    let db = case.database();
    let mut q = db.prepare("SELECT session_id, key, fields FROM sessions_current").unwrap();
    let rows = q.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, String>(2)?))).unwrap();
    rows.map(|r| r.map(|(id, key, f)| (id, key, serde_json::from_str(&f).unwrap())).unwrap()).collect()
}

fn status(case: &Case) -> Value {
    let out =
        Command::new(binary()).arg("status").arg("--json").arg(case.path("pipeline.toml")).output().unwrap();
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    all["pipelines"][0].clone()
}

#[test]
fn sessions_are_enriched_from_a_file_a_table_a_query_and_a_service() {
    let lines = Shop { seed: 3, events: 6_000, users: 300, step_ms: 200, invalid_every: 0 }.lines();
    let bytes = file_of(&lines);
    let gap = Gap::of_seconds(60, false);
    let log = model::read(&[(&source(), FILE, &bytes)], &gap);
    let expected = model::sessions(&log, &BTreeSet::new(), &gap);
    let keys: BTreeSet<&str> = expected.iter().map(|r| r.key.as_str()).collect();
    let service = Service::new(visitor);
    for kind in ["file", "table", "query", "http"] {
        let case = Case::new();
        case.put(FILE, &bytes);
        let known = || keys.iter().filter_map(|k| Some((*k, visitor(k)?)));
        let path = case.path("visitors");
        let at = format!("path = {:?}\nkey = \"id\"", path.to_str().unwrap());
        let lookup = match kind {
            "file" => {
                let mut csv = String::from("id,segment,country\n");
                known().for_each(|(k, row)| {
                    writeln!(csv, "{k},{},NL", row["segment"].as_str().unwrap()).unwrap();
                });
                std::fs::write(&path, csv).unwrap();
                format!("kind = \"file\"\nformat = \"csv\"\n{at}")
            }
            "http" => service_lookup(&service, ""),
            _ => {
                let db = rusqlite::Connection::open(&path).unwrap();
                db.execute_batch("CREATE TABLE v (id TEXT PRIMARY KEY, segment TEXT, country TEXT)").unwrap();
                for (k, row) in known() {
                    let row = (k, row["segment"].as_str().unwrap(), "NL");
                    db.execute("INSERT INTO v VALUES (?1, ?2, ?3)", row).unwrap();
                }
                let query = "SELECT * FROM v WHERE id IN (SELECT value FROM json_each(?1))";
                let what =
                    if kind == "table" { "table = \"v\"".into() } else { format!("query = \"{query}\"") };
                format!("kind = \"sqlite\"\n{what}\n{at}")
            }
        };
        let (enrich, lookups) = profile(&case, &lookup);
        let config = Config { enrich, lookups, ..Config::new(source(), gap.clone()) };
        case.configure(&config);
        case.run().exits(0);
        same_table(kind, &expected, &current(&case.table()));
        same_table(kind, &expected, &current(&latest(case.lines("rows.jsonl"))));
        for (id, key, fields) in table_fields(&case) {
            assert_eq!(fields, fields_of(&key), "{kind}: {id} of {key}");
        }
        let s = status(&case);
        assert_eq!((&s["finished"], &s["unresolved"]), (&json!(true), &json!(0)), "{kind}: {s}");
        assert!(s["lookups"]["visitors"]["calls"].as_u64().unwrap() > 0, "{kind}: {s}");
        // Again: nothing to do, and nothing changes.
        case.run().exits(0).says("had finished before");
        same_table(kind, &expected, &current(&case.table()));
    }
}

/// A small account of what is unresolved, so that the reader has to wait for the service.
fn bound(case: &Case) {
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let text = text.replace("\nsession ", "\nlimits = { unresolved_bytes = \"1MiB\" }\nsession ");
    case.put("pipeline.toml", text.as_bytes());
}

#[test]
fn corrections_and_retractions_pass_as_without_enrichment() {
    // Late within the lateness, shuffled, with early rows: every kind of revision.
    let lines = Shop { seed: 11, events: 200_000, users: 2_000, step_ms: 20, invalid_every: 0 }.lines();
    let bytes = file_of(&delayed(&lines, 12, 50_000, false));
    let gap = Gap::of_seconds(15, false);
    let service = Service::new(visitor);
    service.slow(3);
    service.fail_every(5);
    let run = |enriched: bool| {
        let case = Case::new();
        case.put(FILE, &bytes);
        let mut config = Config::new(source(), gap.clone());
        config.epoch = "10ms".into();
        config.lateness_ms = 60_000;
        if enriched {
            let lookup = service_lookup(&service, "retries = 20\nbatch = 20\n");
            (config.enrich, config.lookups) = profile(&case, &lookup);
        }
        case.configure(&config);
        bound(&case);
        case.run().exits(0);
        case
    };
    let (plain, enriched) = (run(false), run(true));
    same_table("with and without", &current(&plain.table()), &current(&enriched.table()));
    let all = lines_by_revision(&enriched);
    let of = |stage: &str| all.values().filter(|l| l["stage"] == stage).count();
    let seen = (of("retracted"), of("corrected"), of("early"));
    assert!(seen.0 > 20 && seen.1 > 20 && seen.2 > 100, "too tame to show anything: {seen:?}");
    for l in all.values() {
        if l["stage"] != "retracted" {
            assert_eq!(l["fields"], fields_of(l["key"].as_str().unwrap()), "{l}");
        }
    }
    // Both sinks agree on every session: nothing that was retracted came back, nothing lower overtook.
    let mut table = enriched.table();
    let mut file = latest(enriched.lines("rows.jsonl"));
    table.sort_by(|a, b| a.id.cmp(&b.id));
    file.sort_by(|a, b| a.id.cmp(&b.id));
    let revisions = |l: &[tidemill_tests::Stored]| {
        l.iter().map(|s| (s.id.clone(), s.revision, s.stage.clone())).collect::<Vec<_>>()
    };
    assert_eq!(revisions(&table), revisions(&file));
    assert_eq!(status(&enriched)["unresolved"], 0);
}

/// Lines of the file sink by (session, revision); none may be there in two ways.
fn lines_by_revision(case: &Case) -> BTreeMap<(String, u64, u64), Value> {
    let mut all = BTreeMap::new();
    for l in lines(case) {
        let n = |name: &str| l[name].as_u64().unwrap();
        let id = (l["session_id"].as_str().unwrap().to_owned(), n("incarnation"), n("epoch"));
        if let Some(before) = all.insert(id, l.clone()) {
            panic!("there twice:\n{before}\n{l}");
        }
    }
    all
}

/// `n` visits of one event, 100 ms apart, and how many visitors: one in eight comes a second time, half the log later.
fn visits(n: u64) -> (Vec<u8>, u64) {
    long_visits(n, 1)
}

/// The same visits with so many events each, at most 100.
fn long_visits(n: u64, events: i64) -> (Vec<u8>, u64) {
    let user = |i: u64| if i % 4 == 3 && i >= n / 2 { i - n / 2 } else { i };
    let mut text = String::new();
    for i in 0..n {
        for e in 0..events {
            let ts = START_MS + i as i64 * 100 + e;
            let _ = writeln!(text, "{{\"user\":\"u{}\",\"ts\":{ts}}}", user(i));
        }
    }
    (text.into_bytes(), (0..n).map(user).collect::<BTreeSet<u64>>().len() as u64)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Empty,
    Hold,
    DeadLetter,
}

/// Checks that every expected session has come to exactly one end, as the policy says; how many went without an answer.
#[track_caller]
fn each_resolved_once(case: &Case, policy: Policy, expected: &[Row]) -> usize {
    let mark = json!({"lookup_failed": ["visitors"]});
    let all = lines_by_revision(case);
    let ids: BTreeSet<&str> = all.keys().map(|k| k.0.as_str()).collect();
    assert_eq!(ids.len(), all.len(), "{policy:?}: a session has two revisions, though early output is off");
    let mut without = 0;
    for l in all.values() {
        let key = l["key"].as_str().unwrap();
        if l["fields"] == mark {
            assert_eq!(policy, Policy::Empty, "{l}");
            without += 1;
        } else {
            assert_eq!(l["fields"], fields_of(key), "{policy:?}: {l}");
        }
    }
    let letters = case.letters();
    let dead: BTreeSet<&str> = letters.iter().map(|l| l["session_id"].as_str().unwrap()).collect();
    assert_eq!(dead.len(), letters.len(), "{policy:?}: a session has two letters");
    assert!(dead.is_disjoint(&ids), "{policy:?}: a session is a row and a dead letter");
    let mut rows = current(&latest(case.lines("rows.jsonl")));
    for l in &letters {
        assert_eq!(policy, Policy::DeadLetter, "{l}");
        assert_eq!(
            (&l["kind"], &l["reason"], &l["stage"]),
            (&json!("session"), &json!("lookup_failed"), &json!("enrich")),
            "{l}"
        );
        without += 1;
        rows.push(Row {
            key: l["key"].as_str().unwrap().into(),
            start_ms: l["start_ms"].as_i64().unwrap(),
            end_ms: l["end_ms"].as_i64().unwrap(),
            events: l["events"].as_u64().unwrap(),
            reason: l["session_reason"].as_str().map(str::to_owned),
        });
    }
    rows.sort();
    same_table(&format!("{policy:?}: rows and letters"), expected, &rows);
    // The other sink has the same rows.
    let table: HashMap<String, Value> = table_fields(case).into_iter().map(|(id, _, f)| (id, f)).collect();
    assert_eq!(table.len(), all.len(), "{policy:?}");
    for ((id, ..), l) in &all {
        assert_eq!(table[id], l["fields"], "{policy:?}: {id}");
    }
    without
}

fn visits_case(service: &Service, policy: Policy, bytes: &[u8], more: &str) -> (Case, Config) {
    let case = Case::new();
    case.put(FILE, bytes);
    let word = match policy {
        Policy::Empty => "empty",
        Policy::Hold => "hold",
        Policy::DeadLetter => "dead-letter",
    };
    let lookup = service_lookup(
        service,
        &format!("on_failure = \"{word}\"\nttl = \"1h\"\nnegative_ttl = \"1h\"\n{more}"),
    );
    let (enrich, lookups) = profile(&case, &lookup);
    let mut config = Config { enrich, lookups, ..Config::new(source(), Gap::of_seconds(60, false)) };
    config.early = "\"off\"".into();
    config.epoch = "50ms".into();
    case.configure(&config);
    (case, config)
}

fn expected_of(config: &Config, bytes: &[u8]) -> Vec<Row> {
    let log = model::read(&[(&config.sources[0], FILE, bytes)], &config.gap);
    model::sessions(&log, &BTreeSet::new(), &config.gap)
}

/// Within the 512 MiB that are documented, and the same for any number of sessions. Of these 64 MiB may wait for the slower
/// sink, 32 MiB be resolved and wait for an epoch, 32 MiB be in work, and 16 MiB are the cache; 100 MiB is the process with its
/// component when nothing waits; the epochs under way bring the rest.
const PEAK_BYTES_MAX: u64 = 320 << 20;

/// The most memory that a process has had so far, bytes; 0 once it has ended.
fn high_water(process: &Process) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
    let kib = text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next());
    kib.map_or(0, |kib| kib.parse::<u64>().unwrap() << 10)
}

/// The provider is slow, fails every tenth call, and is gone for a while; the process is killed again and again.
#[test]
fn every_row_is_resolved_once_whatever_the_service_and_the_process_go_through() {
    let n = env_number("TIDEMILL_ENRICH_SESSIONS", 20_000);
    let gone = Duration::from_millis(env_number("TIDEMILL_ENRICH_GONE_MS", 1_500));
    let (bytes, users) = visits(n);
    for policy in [Policy::Empty, Policy::Hold, Policy::DeadLetter] {
        let service = Service::new(visitor);
        service.slow(20);
        service.fail_every(10);
        // A call that is given up while the service, on a busy machine, still has it would count as two at once.
        let more = "retries = 2\ncache = \"16MiB\"\ntimeout = \"60s\"\n";
        let (case, config) = visits_case(&service, policy, &bytes, more);
        bound(&case);
        let begun = Instant::now();
        let (mut kills, mut peak) = (0, 0);
        let mut process = case.start(&[], &[]);
        let kill_at = |process: &mut Process, share: u64, peak: &mut u64| {
            let answered = || service.asked().by_key.len() as u64 * 100 / users >= share;
            wait_for("the service to be asked", RUN_MAX, || (answered() || process.ended()).then_some(()));
            *peak = (*peak).max(high_water(process));
            // Where an outage was enough for all that was left, there is nothing left to kill.
            process.kill();
            wait_for("the service to be idle", RUN_MAX, || service.is_idle().then_some(()));
        };
        for share in [10, 30] {
            kill_at(&mut process, share, &mut peak);
            kills += 1;
            process = case.start(&[], &[]);
        }
        // Gone, then killed while it is gone, and gone for a while still.
        let answered = || service.asked().by_key.len() as u64 * 100 / users >= 45;
        wait_for("the service to be asked", RUN_MAX, || answered().then_some(()));
        service.gone(true);
        let since = Instant::now();
        wait_for("half of the outage", RUN_MAX, || (since.elapsed() > gone / 2).then_some(()));
        peak = peak.max(high_water(&process));
        process.kill();
        kills += 1;
        process = case.start(&[], &[]);
        wait_for("the end of the outage", RUN_MAX, || (since.elapsed() > gone).then_some(()));
        service.gone(false);
        kill_at(&mut process, 60, &mut peak);
        kills += 1;
        let (outcome, last) = case.start(&[], &[]).outcome_and_peak(RUN_MAX);
        outcome.exits(0);
        let peak = peak.max(last);

        let without = each_resolved_once(&case, policy, &expected_of(&config, &bytes));
        let asked = service.asked();
        tidemill_tests::report!(
            "{policy:?}: {n} sessions of {users} visitors in {:.1} s with {kills} kills, {without} without an answer; \
             {} calls of {:.1} keys, {} keys answered; peak {} MiB",
            begun.elapsed().as_secs_f64(),
            asked.calls,
            asked.keys as f64 / asked.calls as f64,
            asked.by_key.values().sum::<u64>(),
            peak >> 20
        );
        if policy == Policy::Hold {
            assert_eq!(without, 0);
        }
        assert_eq!(asked.twice_at_once, 0, "a key is under way once");
        assert!(asked.at_once_max <= 4, "{} calls at once", asked.at_once_max);
        assert!(asked.keys_in_call_max <= 100, "{} keys in a call", asked.keys_in_call_max);
        assert!(
            asked.keys / asked.calls >= 25,
            "calls are not filled: {} keys in {}",
            asked.keys,
            asked.calls
        );
        // A process asks again for what it had not committed, and what it knew is gone with it; but not over and over.
        let most = asked.by_key.values().max().copied().unwrap_or_default();
        assert!(most <= kills + 1, "a key was answered {most} times");
        assert!(peak < PEAK_BYTES_MAX, "{} MiB", peak >> 20);
        assert_eq!(status(&case)["finished"], true);
    }
}

#[test]
fn a_key_is_asked_for_once() {
    let (bytes, users) = visits(4_000);
    let service = Service::new(visitor);
    service.slow(2);
    let (case, config) = visits_case(&service, Policy::Empty, &bytes, "");
    case.run().exits(0);
    assert_eq!(each_resolved_once(&case, Policy::Empty, &expected_of(&config, &bytes)), 0);
    let asked = service.asked();
    assert_eq!(
        (asked.by_key.len() as u64, asked.keys),
        (users, users),
        "each visitor once, although a fifth came twice"
    );
    let l = &status(&case)["lookups"]["visitors"];
    assert_eq!((l["asked"].as_u64(), l["calls"].as_u64()), (Some(4_000), Some(asked.calls)), "{l}");
    let others =
        ["cache_hits", "negative_hits", "joined"].iter().map(|c| l[c].as_u64().unwrap()).sum::<u64>();
    assert_eq!(others, 4_000 - users, "{l}");
}

#[test]
fn what_is_held_is_kept_at_a_stop_and_goes_out_once_when_the_service_is_back() {
    let (bytes, _) = visits(2_000);
    let service = Service::new(visitor);
    service.gone(true);
    let (case, config) = visits_case(&service, Policy::Hold, &bytes, "timeout = \"100ms\"\n");
    let process = case.start(&[], &[]);
    wait_for("all to wait for the service", RUN_MAX, || {
        (case.path("state").exists() && status(&case)["unresolved"] == 2_000).then_some(())
    });
    assert_eq!(status(&case)["finished"], false, "it is not finished while something waits");
    process.terminate();
    let outcome = process.outcome(Duration::from_secs(25));
    outcome.exits(0).says("2000 revisions wait for their lookups");
    assert_eq!(lines(&case).len(), 0);
    // Told apart from a finished one: new input is refused as it would be then.
    let status_now = status(&case);
    assert_eq!((&status_now["finished"], &status_now["unresolved"]), (&json!(false), &json!(2_000)));
    service.gone(false);
    case.run().exits(0).says("finished: all input used");
    assert_eq!(each_resolved_once(&case, Policy::Hold, &expected_of(&config, &bytes)), 0);
    let incarnations: BTreeSet<u64> =
        lines(&case).iter().map(|l| l["incarnation"].as_u64().unwrap()).collect();
    assert_eq!(incarnations, BTreeSet::from([1]), "a row keeps the revision of the epoch that produced it");
    assert_eq!(status(&case)["finished"], true);
    // More input after the end is not read unasked.
    let more = [bytes, b"{\"user\":\"new\",\"ts\":1914521600000}\n".to_vec()].concat();
    case.put(FILE, &more);
    case.run().exits(6).says("--reopen");
}

/// One session waits while the log goes on by many segments: all that it needs is kept, and without it they go.
#[test]
fn the_log_is_kept_for_what_waits() {
    // Enough events for a round of images and more, however quick the machine: an epoch ends after some 32,000.
    let n = 60_000;
    let (bytes, _) = long_visits(n, 20);
    for waits in [false, true] {
        let service = Service::new(visitor);
        service.slow(10);
        service.fail_at(waits.then_some("u5"));
        let (case, mut config) = visits_case(&service, Policy::Hold, &bytes, "");
        config.epoch = "10ms".into();
        case.configure(&config);
        let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
        case.put("pipeline.toml", text.replace("[server]", "[server]\nsegment = \"256KiB\"").as_bytes());
        bound(&case);
        let mut process = case.start(&[], &[]);
        let sent = n as usize - usize::from(waits);
        wait_for("all other sessions to be sent", RUN_MAX, || (lines_so_far(&case) == sent).then_some(()));
        if waits {
            let told = || {
                status(&case)["lookups"]["visitors"]["trouble"].as_str().is_some_and(|t| t.contains("503"))
            };
            wait_for("the status to say what is wrong", RUN_MAX, || told().then_some(()));
            process.kill();
        } else {
            process.outcome(RUN_MAX).exits(0);
        }
        // A segment has the name of its first epoch.
        let first = case.segments()[0].file_stem().unwrap().to_string_lossy().parse::<u64>().unwrap();
        service.fail_at(None);
        case.run().exits(0);
        assert_eq!(each_resolved_once(&case, Policy::Hold, &expected_of(&config, &bytes)), 0);
        let of_u5 = lines(&case).into_iter().find(|l| l["key"] == "u5").unwrap()["epoch"].as_u64().unwrap();
        assert_eq!(
            first <= of_u5,
            waits,
            "the log begins with epoch {first}, and epoch {of_u5} has the session"
        );
    }
}

fn lines_so_far(case: &Case) -> usize {
    std::fs::read(case.path("rows.jsonl")).unwrap_or_default().iter().filter(|b| **b == b'\n').count()
}

#[test]
fn without_its_enricher_a_pipeline_sends_what_waited() {
    let (bytes, _) = visits(500);
    let service = Service::new(visitor);
    service.gone(true);
    let (case, mut config) = visits_case(&service, Policy::Hold, &bytes, "timeout = \"100ms\"\n");
    let expected = expected_of(&config, &bytes);
    let mut process = case.start(&[], &[]);
    wait_for("all to wait for the service", RUN_MAX, || {
        (case.path("state").exists() && status(&case)["unresolved"] == expected.len()).then_some(())
    });
    process.kill();
    config.enrich.clear();
    config.lookups.clear();
    case.configure(&config);
    case.run().exits(0).says("enrich");
    same_table("what waited", &expected, &current(&case.table()));
    assert!(table_fields(&case).iter().all(|(_, _, f)| *f == json!({})));
}

/// Traps, loops, breaches: the session at fault is a dead letter, the others go on; and enrichers stand in their order.
#[test]
fn an_enricher_that_fails_at_a_session_costs_that_session() {
    let rude = ["trap-in-requests", "too-many", "trap-in-apply", "endless", "huge", "unwanted"];
    let mut text = String::new();
    for i in 0..600 {
        let user =
            rude.get(i / 100).filter(|_| i % 100 == 50).map_or_else(|| format!("u{i}"), |r| (*r).to_owned());
        let _ = writeln!(text, "{{\"user\":\"{user}\",\"ts\":{}}}", START_MS + i as i64 * 100);
    }
    let service = Service::new(visitor);
    let (case, mut config) = visits_case(&service, Policy::Empty, text.as_bytes(), "");
    let mut second = Plugin::new("rude-enricher", "");
    second.lookups = "visitor = \"visitors\"".into();
    config.enrich.push(second);
    case.configure(&config);
    case.run().exits(0);
    let reasons: BTreeMap<String, (String, String)> = case
        .letters()
        .iter()
        .map(|l| {
            let text = |name: &str| l[name].as_str().unwrap().to_owned();
            (text("key"), (text("reason"), text("message")))
        })
        .collect();
    let mut wanted = rude.to_vec();
    wanted.sort_unstable();
    assert_eq!(reasons.keys().map(String::as_str).collect::<Vec<_>>(), wanted);
    let says = [
        ("trap-in-requests", "plugin_fault", "I will not ask at "),
        ("too-many", "plugin_fault", "more than 16 lookups"),
        ("trap-in-apply", "plugin_fault", "I will not answer at "),
        ("endless", "plugin_fault", "stopped after"),
        ("huge", "plugin_fault", "are allowed"),
        ("unwanted", "unwanted", "rejected the session"),
    ];
    for (key, reason, words) in says {
        let (r, message) = &reasons[key];
        assert!(r == reason && message.contains(words), "{key}: {r}: {message}");
    }
    let rows = table_fields(&case);
    assert_eq!(rows.len(), 600 - rude.len());
    for (_, key, fields) in rows {
        let mut want = fields_of(&key);
        // The second enricher saw what the first had added.
        want["rude"] = json!(want["visitor_segment"].as_str().unwrap_or_default());
        assert_eq!(fields, want, "{key}");
    }
}

#[test]
fn an_enricher_that_fails_everywhere_suspends_its_pipeline_and_loses_nothing() {
    let mut text = String::new();
    for i in 0..30 {
        let _ = writeln!(text, "{{\"user\":\"trap-in-apply\",\"ts\":{}}}", START_MS + i * 100_000);
    }
    let service = Service::new(visitor);
    let (case, mut config) = visits_case(&service, Policy::Empty, text.as_bytes(), "");
    let mut rude = Plugin::new("rude-enricher", "");
    rude.lookups = "visitor = \"visitors\"".into();
    config.enrich = vec![rude];
    case.configure(&config);
    case.run().exits(1).says("suspended");
    let s = status(&case);
    assert_eq!((&s["finished"], s["unresolved"].as_u64()), (&json!(false), Some(30)), "{s}");
    assert_eq!((lines(&case).len(), case.letters().len()), (0, 0), "nothing of it was committed");
    config.enrich.clear();
    case.configure(&config);
    case.run().exits(0);
    same_table("without the enricher", &expected_of(&config, text.as_bytes()), &current(&case.table()));
}

#[test]
fn lookups_that_do_not_fit_are_said_before_anything_runs() {
    let (bytes, _) = visits(10);
    let service = Service::new(visitor);
    let (case, mut config) = visits_case(&service, Policy::Empty, &bytes, "");
    config.enrich[0].lookups = "visitor = \"visitors\"".into();
    case.configure(&config);
    case.run().exits(4).says("asks for the lookup `campaign`");
    config.enrich[0].lookups = "visitor = \"visitors\", campain = \"campaigns\"".into();
    case.configure(&config);
    case.run().exits(4).says("asks for no lookup `campain`");
    config.enrich = vec![Plugin { lookups: String::new(), ..Plugin::new("gap-sessions", "gap = \"1m\"") }];
    config.session = Session::Builtin;
    case.configure(&config);
    case.run().exits(4).says("is a sessionizer");
    assert!(!case.path("sessions.db").exists() || case.table().is_empty());
}
