//! Sessions and dead letters in BigQuery: the table is the model's, whatever becomes of the host, the service and what lies
//! between. `docs/bigquery.md` has a table of what may fail and which test is about it; one by one the failures are tested beside
//! the sink, here is the whole.
//!
//! The bug family: an epoch that is taken for delivered because its answer never came; rows that are refused and never told, or
//! told twice; a sink that ends the pipeline where it need only wait, or waits for what will never be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};
use tidemill_services::bigquery::{BigQuery, Fault, Row as Cells, THROTTLED, UNAVAILABLE};
use tidemill_tests::api::Api;
use tidemill_tests::bigquery::{self, sink};
use tidemill_tests::model::{self, Format, Gap, Log, Row, Source, Unit};
use tidemill_tests::traffic::{Shop, delayed, file_of};
use tidemill_tests::{
    Case, Config, Follower, Process, RUN_MAX, Stored, current, latest, report, same_table, wait_for,
};

const FILE: &str = "in.jsonl";
const TABLE: &str = "projects/p/datasets/clicks/tables/sessions";
const LETTERS: &str = "projects/p/datasets/clicks/tables/letters";
/// Long enough for whatever has to happen, and much shorter than a run may take.
const SOON: Duration = Duration::from_secs(60);

fn config() -> Config {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    let source = Source { id: Some("id".into()), disorder_ms: 10_000, ..file };
    let mut config = Config::new(source, Gap::of_seconds(60, false));
    config.epoch = "10ms".into();
    config.to = r#"["table", "rows"]"#.into();
    config
}

fn start() -> BigQuery {
    BigQuery::start("p", "clicks", "EU")
}

const OPEN: &str = "credentials = \"none\"\ntimeout = \"5s\"";

/// A case with this input; sessions go to the table `sessions`, and to `rows.jsonl`.
fn case_of(bytes: &[u8], config: &Config, server: &BigQuery, more: &str) -> Case {
    let case = Case::new();
    case.put(FILE, bytes);
    case.configure(config);
    append(&case, &sink(server, "table", "sessions", more));
    case
}

fn append(case: &Case, more: &str) {
    let path = case.path("pipeline.toml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str(more);
    std::fs::write(path, text).unwrap();
}

fn edit(case: &Case, from: &str, to: &str) {
    let path = case.path("pipeline.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "the config has no {from}:\n{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

fn input(events: u64) -> Vec<u8> {
    let lines = Shop { seed: 21, events, users: 20 + events / 50, step_ms: 20, invalid_every: 500 }.lines();
    file_of(&delayed(&lines, 22, 10_000, true))
}

fn model_of(bytes: &[u8]) -> (Log, Vec<Row>) {
    let config = config();
    let log = model::read(&[(&config.sources[0], FILE, bytes)], &config.gap);
    let rows = model::sessions(&log, &BTreeSet::new(), &config.gap);
    (log, rows)
}

fn table(server: &BigQuery) -> Vec<Stored> {
    bigquery::table(server, TABLE)
}

/// Both sinks hold the model's rows, and the table no row twice or early.
#[track_caller]
fn same(what: &str, expected: &[Row], case: &Case, server: &BigQuery) {
    let table = table(server);
    same_table(&format!("{what}, BigQuery"), expected, &current(&table));
    same_table(&format!("{what}, JSON lines"), expected, &current(&latest(case.lines("rows.jsonl"))));
    let early = table.iter().find(|s| s.stage == "early");
    assert!(early.is_none(), "{what}: still early at the end: {early:?}");
    let by_id = |mut list: Vec<Stored>| {
        list.retain(|s| s.stage != "retracted");
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list
    };
    let (left, right) = (by_id(latest(case.lines("rows.jsonl"))), by_id(table));
    assert!(left == right, "{what}: revisions differ from those in the file");
    assert_eq!(server.twice_in_a_request(), 0, "{what}: a key stands twice in a request");
}

/// Waits until rows have arrived in the table.
#[track_caller]
fn arrives(process: &mut Process, server: &BigQuery, more_than: u64) {
    wait_for("rows in the table", SOON, || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        (server.arrived(TABLE) > more_than).then_some(())
    });
}

#[test]
fn the_table_is_the_models() {
    let server = start();
    let bytes = input(60_000);
    let case = case_of(&bytes, &config(), &server, &format!("{OPEN}\nmax_staleness = \"10m\""));
    let outcome = case.command(&["check"]);
    outcome.exits(0).says(&server.address()).says("p.clicks").says("table sessions");
    case.run().exits(0);
    same("a run", &model_of(&bytes).1, &case, &server);
    assert_eq!(server.resource(TABLE)["maxStaleness"], "0-0 0 0:10:0");
    // Again: nothing is new, and nothing is written.
    let before = server.arrived(TABLE);
    case.run().exits(0).says("nothing to do");
    assert_eq!(server.arrived(TABLE), before);
    // A table that was dropped has nothing of what was delivered.
    server.drop_table(TABLE);
    case.command(&["check"]).exits(4).says("--resend table");
    case.run().exits(6).says("--resend table");
    case.start(&["--resend", "table"], &[]).outcome(RUN_MAX).exits(0);
    same("sent again", &model_of(&bytes).1, &case, &server);
    // Starting over cannot empty the table, and says what to do.
    case.start(&["--fresh"], &[]).outcome(RUN_MAX).exits(4).says("delete the table");
}

#[test]
fn killed_again_and_again_it_is_the_models() {
    let server = start();
    let bytes = input(500_000);
    let (log, rows) = model_of(&bytes);
    let case = case_of(&bytes, &config(), &server, OPEN);
    // Letters, too: into a table of their own.
    edit(&case, "dead = \"dead\"", "dead = \"letters\"");
    append(&case, &sink(&server, "letters", "letters", OPEN));
    let mut follower = Follower::default();
    let mut kills = 0;
    for n in 0..8 {
        if !case.killed_after(&mut follower, 1 + 9_000 * (n % 3)) {
            break;
        }
        kills += 1;
    }
    case.run().exits(0);
    same("after kills", &rows, &case, &server);
    let offset = |row: &Cells| {
        let letter: serde_json::Value = serde_json::from_str(row["letter"].as_str().unwrap()).unwrap();
        letter["position"]["offset"].as_u64().unwrap()
    };
    let mut offsets: Vec<u64> = server.rows(LETTERS).iter().map(offset).collect();
    offsets.sort_unstable();
    let mut expected: Vec<u64> = log.invalid.iter().map(|(place, _)| place.offset).collect();
    expected.sort_unstable();
    assert!(
        !expected.is_empty() && offsets == expected,
        "{} letters, expected {}",
        offsets.len(),
        expected.len()
    );
    report!("BigQuery: {kills} kills, {} rows, {} letters", rows.len(), expected.len());
    assert!(kills >= 3, "only {kills} kills hit: too few events for this machine");
}

/// Down at the start, dies, breaks, throttles, is slow, keeps answers back: nothing is lost, nothing doubled, each absence said.
#[test]
fn a_service_that_fails_in_every_way_gets_the_models_table() {
    let server = start();
    let bytes = input(300_000);
    let case = case_of(&bytes, &config(), &server, "credentials = \"none\"\ntimeout = \"500ms\"");
    server.down(true);
    server.delay(3);
    let mut process = case.start(&[], &[]);
    process.hears("sink `table` is unavailable", 1, SOON);
    server.down(false);
    process.hears("is back after", 1, SOON);
    let mut absences = 1;
    for fault in [
        Fault::End(UNAVAILABLE),
        Fault::BreakAfter,
        Fault::Answer(THROTTLED),
        Fault::Silence,
        Fault::Late(800),
    ] {
        let arrived = server.arrived(TABLE);
        arrives(&mut process, &server, arrived);
        // Twice: a connection that has broken once may have been idle.
        server.order(fault, 2);
        absences += 1;
        process.hears("is back after", absences, SOON);
    }
    server.down(true);
    process.hears("sink `table` is unavailable", absences + 1, SOON);
    server.down(false);
    server.delay(0);
    let outcome = process.outcome(RUN_MAX);
    outcome.exits(0).says(&server.address()).says("ResourceExhausted").says("no answer within 500ms");
    same("failed in every way", &model_of(&bytes).1, &case, &server);
}

/// Rows that BigQuery refuses are dead letters, each once, whatever is killed; all others are in the table.
#[test]
fn rows_that_are_refused_become_dead_letters_once() {
    let server = start();
    let bytes = input(200_000);
    let (_, rows) = model_of(&bytes);
    let mut config = config();
    config.early = "\"off\"".into();
    let case = case_of(&bytes, &config, &server, OPEN);
    // The one of most sessions, so that its rows are spread over the run and stand at its end.
    let bad = &rows[rows.len() / 2].key;
    server.refuse_rows_with(Some(bad));
    let is_bad = |key: &str| key.contains(bad.as_str());
    let mut follower = Follower::default();
    let mut kills = 0;
    for n in 0..4 {
        kills += u32::from(case.killed_after(&mut follower, 1 + 4_000 * n));
    }
    let outcome = case.run();
    outcome.exits(0);
    let good: Vec<Row> = rows.iter().filter(|r| !is_bad(&r.key)).cloned().collect();
    same_table("all others", &good, &current(&table(&server)));
    let letters = std::fs::read_to_string(case.path("dead.jsonl")).unwrap();
    let letters = letters.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let mut told: Vec<(String, i64)> = letters
        .filter(|l| l["reason"] == "row_refused")
        .map(|l| (l["key"].as_str().unwrap().to_owned(), l["start_ms"].as_i64().unwrap()))
        .collect();
    told.sort();
    let mut expected: Vec<(String, i64)> =
        rows.iter().filter(|r| is_bad(&r.key)).map(|r| (r.key.clone(), r.start_ms)).collect();
    expected.sort();
    assert!(!expected.is_empty() && expected.len() < rows.len() / 2, "{} rows are bad", expected.len());
    assert_eq!(told, expected);
    report!("BigQuery: {} rows refused, {kills} kills", told.len());
    case.command(&["status", "--json"]).says("row_refused");
}

/// As Google's clients show a token: of the metadata server where the host runs at Google. Wrong at the start it ends, later it
/// waits; and no token is shown.
#[test]
fn credentials_are_shown_and_wrong_ones_end_the_start_and_are_waited_for_later() {
    let server = start();
    let bytes = input(100_000);
    let case = case_of(&bytes, &config(), &server, "timeout = \"5s\"");
    let metadata = [("GCE_METADATA_HOST", server.address()), ("HOME", "/nowhere".to_owned())];
    server.demand(Some("another"));
    case.start(&[], &metadata).outcome(SOON).exits(4).says("are the `credentials` right?");
    server.demand(Some("metadata"));
    server.delay(5);
    let mut process = case.start(&[], &metadata);
    arrives(&mut process, &server, 0);
    server.demand(Some("another"));
    server.close_all();
    process.hears("sink `table` is unavailable", 1, SOON);
    server.demand(Some("metadata"));
    process.hears("is back after", 1, SOON);
    server.delay(0);
    let outcome = process.outcome(RUN_MAX);
    outcome.exits(0);
    assert!(!outcome.said.contains("Bearer"), "{}", outcome.said);
    same("credentials", &model_of(&bytes).1, &case, &server);
}

/// What waits for a service that is away is bounded: the sources wait with it.
#[test]
fn a_service_that_stays_away_holds_the_sources_up() {
    let server = start();
    let bytes = input(400_000);
    let case = case_of(&bytes, &config(), &server, OPEN);
    edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    edit(&case, "early = \"epoch\"", "early = \"epoch\"\nlimits = { outbox_bytes = \"1MiB\" }");
    server.delay(5);
    let mut process = case.start(&[], &[]);
    let api = Api::of(&case, &process);
    arrives(&mut process, &server, 0);
    server.down(true);
    process.hears("sink `table` is unavailable", 1, SOON);
    let metric = |name: &str, labels: &str| -> Option<f64> {
        let text = String::from_utf8(api.try_ask("GET", "/metrics", &[], b"")?.body).unwrap();
        let line = text.lines().find(|l| l.starts_with(name) && l.contains(labels))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    // Reading stands still: the same number over many epochs.
    let records = || metric("tidemill_records_total", "");
    let mut last = (records(), Instant::now());
    wait_for("reading to stand still", SOON, || {
        let now = records();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
    let lines = bytes.iter().filter(|b| **b == b'\n').count();
    assert!(last.0.unwrap() < lines as f64, "everything was read: nothing was held up");
    assert_eq!(metric("tidemill_sink_available", "sink=\"table\""), Some(0.0));
    assert!(metric("tidemill_sink_tries_in_vain_total", "sink=\"table\"").unwrap() >= 1.0);
    assert!(metric("tidemill_sink_lag_bytes", "sink=\"table\"").unwrap() > f64::from(1 << 20));
    let status = case.command(&["status"]);
    status.says("away").says("BigQuery at").says(&server.address());
    server.down(false);
    server.delay(0);
    process.outcome(RUN_MAX).exits(0).says("sink `table` is back after");
    same("held up", &model_of(&bytes).1, &case, &server);
}

/// Two hosts on one table: the older ends when it looks, and what it wrote until then holds nothing up.
#[test]
fn a_process_that_was_replaced_writes_no_more() {
    let server = start();
    let mut config = config();
    config.sources[0].path = "-".into();
    config.sources[0].disorder_ms = 0;
    config.to = r#"["table"]"#.into();
    let prepare = || {
        let case = case_of(b"", &config, &server, OPEN);
        edit(&case, "dead = \"dead\"", "");
        edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
        case
    };
    let click = |user: &str, at: u64| format!("{{\"user\":\"{user}\",\"ts\":{at},\"id\":\"{user}{at}\"}}\n");
    let send = |process: &mut Process, user: &str| {
        use std::io::Write as _;
        process.stdin().write_all(click(user, 1_000_000).as_bytes()).unwrap();
    };
    let case = prepare();
    let mut first = case.start(&[], &[]);
    send(&mut first, "a");
    arrives(&mut first, &server, 0);
    // The data directory as it stands, on another machine.
    let other = prepare();
    let copied = Command::new("cp").arg("-r").arg(case.path("state")).arg(other.path("")).status();
    assert!(copied.unwrap().success());
    let mut second = other.start(&[], &[]);
    send(&mut second, "b");
    let keys = || {
        let mut keys: Vec<String> = table(&server).into_iter().map(|s| s.row.key).collect();
        keys.sort();
        keys
    };
    // It may have to send what the copy does not know to be there once more.
    wait_for("both rows", SOON, || (keys() == ["a", "b"]).then_some(()));
    server.close_all();
    send(&mut first, "c");
    first.outcome(SOON).exits(6).says("a newer run of this pipeline has taken over");
    assert_eq!(keys(), ["a", "b"]);
    second.terminate();
    second.outcome(SOON).exits(0);
}

/// What the config may say, and what it may not.
#[test]
fn a_table_that_does_not_fit_is_named_before_anything_is_sent() {
    let server = start();
    let bytes = input(1_000);
    let case = case_of(&bytes, &config(), &server, &format!("{OPEN}\nlocation = \"US\""));
    let made = serde_json::json!({
        "tableReference": {"projectId": "p", "datasetId": "clicks", "tableId": "sessions"},
        "schema": {"fields": [{"name": "session_id", "type": "STRING", "mode": "REQUIRED"}]},
    });
    let (status, answer) = server.ask("POST", "/bigquery/v2/projects/p/datasets/clicks/tables", made);
    assert_eq!(status, 200, "{answer}");
    case.run().exits(4).says("it lies in EU");
    edit(&case, "location = \"US\"", "");
    case.run().exits(4).says("column `pipeline` is missing");
    edit(&case, "dataset = \"clicks\"", "dataset = \"none\"");
    case.run().exits(4).says("Not found: Dataset p:none");
}

const PRODUCTS: &str = "projects/p/datasets/clicks/tables/products";

/// What is known of visitors in a version of the table, which has many pages.
fn load_visitors(server: &BigQuery, version: &str) {
    let row = |n: u64| {
        let row = serde_json::json!({"id": format!("u{n}"), "segment": version, "country": "NL"});
        row.as_object().unwrap().clone()
    };
    server.load(PRODUCTS, (0..500).map(row).collect());
}

/// Sessions are enriched from a table that is kept whole: down at the start, refused in the middle of a refresh, killed, and every
/// session has the row of a whole table, the old one until the new one is there.
#[test]
fn a_table_beside_the_stream_is_read_again_and_used() {
    let server = start();
    let resource = serde_json::json!({
        "tableReference": {"projectId": "p", "datasetId": "clicks", "tableId": "products"},
        "schema": {"fields": [
            {"name": "id", "type": "STRING"}, {"name": "segment", "type": "STRING"}, {"name": "country", "type": "STRING"},
        ]},
    });
    assert_eq!(server.ask("POST", "/bigquery/v2/projects/p/datasets/clicks/tables", resource).0, 200);
    load_visitors(&server, "v1");
    let case = Case::new();
    case.put("campaigns.csv", b"id,channel,budget\nspring,mail,100\n");
    let mut config = config();
    config.to = r#"["rows"]"#.into();
    config.early = "\"off\"".into();
    config.sources[0].more = "follow = true".into();
    let mut enricher = tidemill_tests::Plugin::new("profile-enricher", "");
    enricher.lookups = "visitor = \"visitors\", campaign = \"campaigns\"".into();
    config.enrich = vec![enricher];
    config.lookups = format!(
        "[lookup.campaigns]\nkind = \"file\"\npath = {:?}\nkey = \"id\"\n[lookup.visitors]\nkind = \"bigquery\"\nproject = \"p\"\n\
         dataset = \"clicks\"\ntable = \"products\"\nkey = \"id\"\nrefresh = \"1s\"\non_failure = \"hold\"\ncredentials = \"none\"\n\
         endpoint = \"{}\"\n",
        case.path("campaigns.csv").to_str().unwrap(),
        server.endpoint()
    );
    case.configure(&config);
    edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    // Some visits, which the last event shows to be over.
    let visit = |n: i64| {
        use std::io::Write as _;
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(case.path(FILE)).unwrap();
        let mut say = |user: &str, s: i64| {
            let ts = 1_700_000_000_000 + (n * 600 + s) * 1_000;
            writeln!(log, "{{\"user\":\"{user}\",\"ts\":{ts},\"id\":\"{user}-{n}\"}}").unwrap();
        };
        ["u1", "u250", "u499", "unknown"].into_iter().for_each(|user| say(user, 0));
        say("u0", 300);
    };
    let found = || -> Vec<(String, Option<String>)> {
        let text = std::fs::read_to_string(case.path("rows.jsonl")).unwrap_or_default();
        let lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        let rows = lines.map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let mut rows: Vec<_> = rows
            .map(|l| {
                let segment = l["fields"]["visitor_segment"].as_str().map(str::to_owned);
                (l["key"].as_str().unwrap().to_owned(), segment)
            })
            .filter(|(key, _)| key != "u0")
            .collect();
        rows.sort();
        rows
    };
    let mut wanted = Vec::new();
    let mut want = |version: &str| {
        let known = ["u1", "u250", "u499"].map(|key| (key.to_owned(), Some(version.to_owned())));
        wanted.extend(known);
        wanted.push(("unknown".to_owned(), None));
        wanted.sort();
        wanted.clone()
    };
    server.down(true);
    case.command(&["check"]).exits(4).says("BigQuery at");
    visit(0);
    let mut process = case.start(&[], &[]);
    process.hears("lookup `visitors`: BigQuery at", 1, SOON);
    server.down(false);
    let rows = want("v1");
    wait_for("the first visits", SOON, || (found() == rows).then_some(()));
    // Refused in the middle of a refresh: what was there serves, and it is told, with its age.
    server.refuse_pages(Some((2, 403, "accessDenied")));
    load_visitors(&server, "v2");
    process.hears("its content before is used", 1, SOON);
    visit(1);
    let rows = want("v1");
    wait_for("the second visits", SOON, || (found() == rows).then_some(()));
    let api = Api::of(&case, &process);
    let age = || -> Option<f64> {
        let text = String::from_utf8(api.try_ask("GET", "/metrics", &[], b"")?.body).unwrap();
        let mut lines = text.lines().filter(|l| l.starts_with("tidemill_lookup_age_seconds"));
        lines.find(|l| l.contains("visitors"))?.rsplit(' ').next()?.parse().ok()
    };
    wait_for("its age to rise beyond the interval", SOON, || age().filter(|age| *age > 2.0));
    server.refuse_pages(None);
    process.hears("lookup `visitors` answers again", 2, SOON);
    wait_for("its age to fall", SOON, || age().filter(|age| *age < 2.0));
    visit(2);
    let rows = want("v2");
    wait_for("the third visits", SOON, || (found() == rows).then_some(()));
    // Killed: the table is in memory alone, and is read again.
    process.kill();
    load_visitors(&server, "v3");
    visit(3);
    let process = case.start(&[], &[]);
    let rows = want("v3");
    wait_for("the fourth visits", SOON, || (found() == rows).then_some(()));
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
    assert_eq!(found(), rows);
}
