//! Sessions enriched from Bigtable: each row once, with what the table has for its key, whatever becomes of the host, the service
//! and what lies between. `docs/bigtable.md` has a table of what may fail and which test is about it; one by one the failures
//! are tested beside the lookup, here is the whole.
//!
//! The bug family: a session that leaves without what is known of its visitor because the service was away; one that never leaves;
//! memory that grows with an outage; a cause that nobody is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;
use tidemill_services::bigtable::{Bigtable, Cell, DENIED, Fault, THROTTLED, UNAVAILABLE, bigtable};
use tidemill_services::proxy::Proxy;
use tidemill_tests::api::Api;
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::START_MS;
use tidemill_tests::{Case, Config, Plugin, Process, RUN_MAX, current, latest, report, same_table, wait_for};

const FILE: &str = "in.jsonl";
const TABLE: &str = "visitors";
/// Long enough for whatever has to happen, and much shorter than a run may take.
const SOON: Duration = Duration::from_secs(60);
/// Within the 512 MiB that are documented, as `enrich` measures it.
const PEAK_BYTES_MAX: u64 = 320 << 20;

/// What is known of a visitor, if anything is: the segment, and how often they came.
fn known(n: u64) -> Option<(String, i64)> {
    (!n.is_multiple_of(7)).then(|| (format!("s{}", n % 5), n as i64))
}

fn fields_of(n: u64) -> Value {
    match known(n) {
        Some((segment, visits)) => json!({"visitor_segment": segment, "visitor_country": visits}),
        None => json!({}),
    }
}

fn fill(server: &Bigtable, users: u64) {
    server.create(TABLE, &["profile", "stats"]);
    let mut cells = Vec::new();
    for n in 0..users {
        let Some((segment, visits)) = known(n) else { continue };
        let cell = |family: &str, qualifier: &str, value: Vec<u8>| Cell {
            key: format!("visitor#u{n}"),
            family: family.to_owned(),
            qualifier: qualifier.to_owned(),
            value,
            micros: 1_000,
        };
        cells.push(cell("profile", "segment", segment.into_bytes()));
        cells.push(cell("stats", "visits", visits.to_be_bytes().to_vec()));
    }
    server.put(TABLE, &cells);
}

/// So many visits of one event, 100 ms apart, each of another visitor.
fn visits(n: u64) -> Vec<u8> {
    let mut text = String::new();
    for i in 0..n {
        let _ = writeln!(text, "{{\"user\":\"u{i}\",\"ts\":{}}}", START_MS + i as i64 * 100);
    }
    text.into_bytes()
}

/// The lookup, reached at this address.
fn lookup(address: &str, more: &str) -> String {
    format!(
        "kind = \"bigtable\"\nproject = \"p\"\ninstance = \"i\"\ntable = \"{TABLE}\"\nrow_key = \"visitor#{{key}}\"\n\
         columns = {{ segment = \"profile:segment\", country = {{ column = \"stats:visits\", as = \"int64\" }} }}\n\
         credentials = \"none\"\nendpoint = \"http://{address}\"\n{more}\n"
    )
}

/// A case with this input, whose sessions are enriched by visitor.
fn case_of(bytes: &[u8], lookup: &str) -> (Case, Vec<Row>) {
    let case = Case::new();
    case.put(FILE, bytes);
    case.put("campaigns.csv", b"id,channel,budget\nspring,mail,100\n");
    let mut enricher = Plugin::new("profile-enricher", "");
    enricher.lookups = "visitor = \"visitors\", campaign = \"campaigns\"".into();
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let mut config = Config::new(Source { disorder_ms: 1_000, ..file }, Gap::of_seconds(60, false));
    config.early = "\"off\"".into();
    config.epoch = "50ms".into();
    config.enrich = vec![enricher];
    config.lookups = format!(
        "[lookup.campaigns]\nkind = \"file\"\npath = {:?}\nkey = \"id\"\n[lookup.visitors]\n{lookup}",
        case.path("campaigns.csv").to_str().unwrap()
    );
    case.configure(&config);
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let bound = text.replace("\nsession ", "\nlimits = { unresolved_bytes = \"1MiB\" }\nsession ");
    case.put("pipeline.toml", bound.as_bytes());
    let log = model::read(&[(&config.sources[0], FILE, bytes)], &config.gap);
    (case, model::sessions(&log, &BTreeSet::new(), &config.gap))
}

fn number(key: &str) -> u64 {
    key[1..].parse().unwrap()
}

/// Every session is there once, with what is known of its visitor.
#[track_caller]
fn all_enriched(what: &str, case: &Case, expected: &[Row]) {
    let lines = case.lines("rows.jsonl");
    assert_eq!(lines.len(), expected.len(), "{what}: rows twice, or missing");
    same_table(what, expected, &current(&latest(case.lines("rows.jsonl"))));
    same_table(&format!("{what}, SQLite"), expected, &current(&case.table()));
    for line in lines {
        let fields: Value = serde_json::from_str(&line.fields).unwrap();
        assert_eq!(fields, fields_of(number(&line.row.key)), "{what}: {}", line.row.key);
    }
}

/// What is wrong with the lookup, as the newest record has it.
fn trouble(case: &Case) -> Option<String> {
    let out = case.command(&["status", "--json"]).said;
    let all: Value = serde_json::from_str(&out).ok()?;
    all["pipelines"][0]["lookups"]["visitors"]["trouble"].as_str().map(str::to_owned)
}

fn lines_so_far(case: &Case) -> usize {
    std::fs::read(case.path("rows.jsonl")).unwrap_or_default().iter().filter(|b| **b == b'\n').count()
}

#[test]
fn sessions_have_what_the_table_has() {
    let Some(server) = bigtable() else { return };
    let n = 5_000;
    fill(&server, n);
    let (case, expected) = case_of(&visits(n), &lookup(server.address(), ""));
    case.command(&["check"]).exits(0);
    case.run().exits(0);
    all_enriched("a run", &case, &expected);
    let counts = server.counts();
    // One call more: of the check.
    assert_eq!((counts.keys, counts.keys_in_call_max), (n + 1, 100), "each visitor once, many in a call");
    assert!(counts.calls <= n / 25, "{} calls", counts.calls);
    report!("Bigtable: {n} sessions by {} calls", counts.calls);
}

/// Down at the start, dies in the middle, breaks off, throttles, is slow, refuses and vanishes, while the host is killed: every
/// session waits for its answer, and gets the right one, once.
#[test]
fn whatever_happens_each_session_waits_and_gets_its_row_once() {
    let Some(server) = bigtable() else { return };
    let n = 30_000;
    fill(&server, n);
    let proxy = Proxy::to(server.address());
    let more = "on_failure = \"hold\"\ntimeout = \"1s\"\nconcurrency = 2";
    let (case, expected) = case_of(&visits(n), &lookup(&proxy.address(), more));
    // Down at the start.
    server.stop();
    case.command(&["check"]).exits(4).says("Bigtable at").says(&proxy.address());
    let mut process = case.start(&[], &[]);
    process.hears("lookup `visitors`: Bigtable at", 1, SOON);
    // So that the run lasts until all has happened.
    let paced = Fault { delay_ms: 60, ..Fault::default() };
    // It has its tables back before anybody asks for them.
    let comes_back = || {
        proxy.refuse(true);
        server.start_again().unwrap();
        server.meet(&paced);
        proxy.refuse(false);
    };
    comes_back();
    process.hears("lookup `visitors` answers again", 1, SOON);
    let mut kills = 0;
    let goes_on = |process: &mut Process| {
        let before = lines_so_far(&case);
        wait_for("more rows", SOON, || (lines_so_far(&case) > before || process.ended()).then_some(()));
    };
    let faults = [
        ("breaks off", Fault { code: UNAVAILABLE, after_rows: Some(20), times: 12, ..paced.clone() }),
        ("breaks off as if that were all", Fault { after_rows: Some(5), times: 12, ..paced.clone() }),
        ("throttles", Fault { code: THROTTLED, times: 12, ..paced.clone() }),
        ("refuses", Fault { code: DENIED, times: 12, ..paced.clone() }),
        ("wants other credentials", Fault { token: Some("hush".into()), ..paced.clone() }),
        ("is too slow", Fault { delay_ms: 1_500, ..Fault::default() }),
    ];
    for (what, fault) in faults {
        goes_on(&mut process);
        let (calls, met) = (proxy.connections(), server.counts().met);
        server.meet(&fault);
        if fault.times > 0 {
            wait_for(what, SOON, || (server.counts().met >= met + 12 || process.ended()).then_some(()));
        } else {
            process.hears("Bigtable at", 1, SOON);
            let words =
                if fault.token.is_some() { "are the `credentials` right?" } else { "no answer within" };
            wait_for(what, SOON, || trouble(&case).filter(|why| why.contains(words)));
        }
        assert!(!process.ended(), "{what}: nothing was left to look up; {calls} connections");
        process.kill();
        kills += 1;
        process = case.start(&[], &[]);
        server.meet(&paced);
    }
    // Dies in the middle, and what lies between swallows everything.
    goes_on(&mut process);
    server.stop();
    process.hears("lookup `visitors`: Bigtable at", 1, SOON);
    comes_back();
    goes_on(&mut process);
    proxy.hold(true);
    assert!(!process.ended(), "nothing was left to look up");
    wait_for("the silence to be told", SOON, || {
        trouble(&case).filter(|why| why.contains("no answer within"))
    });
    proxy.hold(false);
    server.meet(&Fault::default());
    let (outcome, peak) = process.outcome_and_peak(RUN_MAX);
    outcome.exits(0).says("projects/p/instances/i/tables/visitors");
    assert!(!outcome.said.contains("hush"));
    all_enriched("whatever happens", &case, &expected);
    assert!(peak < PEAK_BYTES_MAX, "{} MiB", peak >> 20);
    report!("Bigtable: {n} sessions with {kills} kills and as many failures, peak {} MiB", peak >> 20);
}

/// The account of what waits is small, and the reader waits with it: neither memory nor the log grow with the outage.
#[test]
fn a_service_that_stays_away_holds_the_source_up() {
    let Some(server) = bigtable() else { return };
    // Many times what an epoch takes in.
    let n = 200_000;
    fill(&server, n);
    let proxy = Proxy::to(server.address());
    proxy.refuse(true);
    let (case, expected) = case_of(&visits(n), &lookup(&proxy.address(), "on_failure = \"hold\""));
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    case.put("pipeline.toml", text.replace("[server]", "[server]\nlisten = \"127.0.0.1:0\"").as_bytes());
    let mut process = case.start(&[], &[]);
    process.hears("lookup `visitors`: Bigtable at", 1, SOON);
    let api = Api::of(&case, &process);
    let metric = |name: &str, label: &str| -> Option<f64> {
        let text = String::from_utf8(api.try_ask("GET", "/metrics", &[], b"")?.body).unwrap();
        let line = text.lines().find(|l| l.starts_with(name) && l.contains(label))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    // Some wait, and over many tries in vain no more come.
    let mut last = (None, proxy.connections());
    let waiting = wait_for("the reader to wait", SOON, || {
        let now = metric("tidemill_unresolved_revisions", "").filter(|n| *n > 0.0);
        if now != last.0 {
            last = (now, proxy.connections());
        }
        now.filter(|_| proxy.connections() >= last.1 + 3)
    });
    assert!(waiting < n as f64 / 2.0, "{waiting} of {n} wait: the reader does not");
    assert!(metric("tidemill_lookup_failures_total", "lookup=\"visitors\"").unwrap() > 0.0);
    proxy.refuse(false);
    process.outcome(RUN_MAX).exits(0).says("lookup `visitors` answers again");
    all_enriched("stays away", &case, &expected);
    report!("Bigtable: {waiting} of {n} sessions waited while the service was away");
}

/// What does not fit costs its own session: a value that is no number, and then the whole table.
#[test]
fn a_schema_that_changes_costs_what_it_touches() {
    let Some(server) = bigtable() else { return };
    let n = 700;
    fill(&server, n);
    let odd = |n: u64| Cell {
        key: format!("visitor#u{n}"),
        family: "stats".into(),
        qualifier: "visits".into(),
        value: b"many".to_vec(),
        micros: 2_000,
    };
    server.put(TABLE, &[odd(5), odd(350)]);
    let (case, expected) = case_of(&visits(n), &lookup(server.address(), "on_failure = \"dead-letter\""));
    case.run().exits(0);
    let letters = case.letters();
    let lost: BTreeSet<&str> = letters.iter().map(|l| l["key"].as_str().unwrap()).collect();
    assert_eq!((letters.len(), lost), (2, BTreeSet::from(["u5", "u350"])));
    for l in &letters {
        assert_eq!(l["reason"], "lookup_failed");
        assert!(l["message"].as_str().unwrap().contains("has no 8 bytes in stats:visits"), "{l}");
    }
    assert_eq!(case.lines("rows.jsonl").len(), expected.len() - 2);
    // Gone as a whole: every session goes on without, and says so.
    server.drop_table(TABLE);
    let (case, expected) = case_of(&visits(n), &lookup(server.address(), ""));
    case.command(&["check"]).exits(4).says("NotFound").says("create it, or name another");
    case.run().exits(0).says("NotFound");
    let lines = case.lines("rows.jsonl");
    assert_eq!(lines.len(), expected.len());
    let without = json!({"lookup_failed": ["visitors"]});
    assert!(lines.iter().all(|l| serde_json::from_str::<Value>(&l.fields).unwrap() == without));
}
