//! What providers are like: slow, with rows that cannot be used, changed under the host; and two enrichers of one session.
//!
//! The bug family: a healthy row that is lost because another is bad, a service that is well and counts as down, a table that is
//! read anew and not used.

use super::{
    FILE, Policy, each_resolved_once, expected_of, fields_of, lines, profile, service_lookup, source, status,
    table_fields, visitor, visits, visits_case,
};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use tidemill_tests::model::{Gap, Source};
use tidemill_tests::service::Service;
use tidemill_tests::traffic::START_MS;
use tidemill_tests::{Case, Config, RUN_MAX, wait_for};

/// A healthy service with one key a request, as it is by default: enough of them at a time, each with its own time, and one that
/// fails costs no other its answer.
#[test]
fn a_service_that_is_asked_for_one_key_at_a_time_gives_every_row() {
    let (bytes, users) = visits(600);
    let service = Service::new(visitor);
    service.slow(50);
    service.fail_every(10);
    let case = Case::new();
    case.put(FILE, &bytes);
    let url = format!("kind = \"http\"\nurl = \"{}/{{key}}\"\n", service.url());
    let (enrich, lookups) = profile(&case, &url);
    let mut config = Config { enrich, lookups, ..Config::new(source(), Gap::of_seconds(60, false)) };
    config.early = "\"off\"".into();
    case.configure(&config);
    case.run().exits(0);
    assert_eq!(each_resolved_once(&case, Policy::Empty, &expected_of(&config, &bytes)), 0);
    let asked = service.asked();
    assert_eq!((asked.keys_in_call_max, asked.answered, asked.twice_at_once), (1, users, 0));
    assert!((4..=16).contains(&asked.at_once_max), "{} at once", asked.at_once_max);
}

/// Rows that cannot be used, from a table and from a service, and a key at which the whole call fails: each costs its session.
#[test]
fn a_bad_row_costs_its_own_session_and_no_other() {
    let n = 500;
    let (bytes, _) = visits(n);
    for (kind, every) in [("table", 100), ("table", 20), ("rows", 20), ("calls", 100)] {
        let bad = move |key: &str| key[1..].parse::<u64>().unwrap().is_multiple_of(every);
        let case = Case::new();
        case.put(FILE, &bytes);
        let odd = move |key: &str| if kind == "rows" && bad(key) { Some(json!([key])) } else { visitor(key) };
        let service = Service::new(odd);
        let lookup = if kind == "table" {
            let path = case.path("visitors.db");
            let db = rusqlite::Connection::open(&path).unwrap();
            db.execute_batch("CREATE TABLE v (id TEXT PRIMARY KEY, segment TEXT, country TEXT, note TEXT)")
                .unwrap();
            for key in (0..n).map(|i| format!("u{i}")) {
                let row = visitor(&key).or_else(|| bad(&key).then(|| json!({"segment": "long"})));
                let Some(row) = row else { continue };
                let note = "x".repeat(if bad(&key) { 70_000 } else { 1 });
                let row = (&key, row["segment"].as_str().unwrap(), "NL", note);
                db.execute("INSERT INTO v VALUES (?1, ?2, ?3, ?4)", row).unwrap();
            }
            format!("kind = \"sqlite\"\npath = {:?}\ntable = \"v\"\nkey = \"id\"\n", path.to_str().unwrap())
        } else {
            service.fail_at((kind == "calls").then_some("u100"));
            service_lookup(&service, "")
        };
        let (enrich, lookups) = profile(&case, &format!("{lookup}on_failure = \"dead-letter\"\n"));
        let mut config = Config { enrich, lookups, ..Config::new(source(), Gap::of_seconds(60, false)) };
        config.early = "\"off\"".into();
        case.configure(&config);
        case.run().exits(0);
        let expected = expected_of(&config, &bytes);
        let is_lost = |key: &str| if kind == "calls" { key == "u100" } else { bad(key) };
        let lost = expected.iter().filter(|r| is_lost(&r.key)).count();
        assert_eq!(each_resolved_once(&case, Policy::DeadLetter, &expected), lost, "{kind}, one in {every}");
        for l in case.letters() {
            assert!(is_lost(l["key"].as_str().unwrap()), "{kind}, one in {every}: {l}");
        }
    }
}

/// Nobody asks while the file changes: a broken one shows all the same, and the next session has the row of the mended one.
#[test]
fn a_file_that_is_rewritten_in_place_is_used_by_the_next_session() {
    let case = Case::new();
    let table = |segment: &str| format!("id,segment,country\nann,{segment},NL\n");
    case.put("visitors.csv", table("old").as_bytes());
    let file = case.path("visitors.csv");
    let at = format!("path = {:?}\nkey = \"id\"\nttl = \"1h\"", file.to_str().unwrap());
    let (enrich, lookups) = profile(&case, &format!("kind = \"file\"\n{at}"));
    let source = Source { more: "follow = true".into(), ..source() };
    let mut config = Config { enrich, lookups, ..Config::new(source, Gap::of_seconds(60, false)) };
    config.epoch = "50ms".into();
    config.early = "\"off\"".into();
    case.configure(&config);
    // A visit of ann, which the next one's time shows to be over.
    let visit = |n: i64| {
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(case.path(FILE)).unwrap();
        for (user, s) in [("ann", 0), ("bob", 120)] {
            writeln!(log, "{{\"user\":\"{user}\",\"ts\":{}}}", START_MS + (n * 600 + s) * 1_000).unwrap();
        }
    };
    let segments = || -> Vec<Value> {
        let rows = lines(&case).into_iter().filter(|l| l["key"] == "ann");
        rows.map(|l| l["fields"]["visitor_segment"].clone()).collect()
    };
    let trouble = || status(&case)["lookups"]["visitors"]["trouble"].as_str().map(str::to_owned);
    visit(0);
    let process = case.start(&[], &[]);
    wait_for("the first visit", RUN_MAX, || (segments() == ["old"]).then_some(()));
    std::fs::write(&file, "id,segment,country\nann\n").unwrap();
    wait_for("the broken file to show", RUN_MAX, || trouble().filter(|t| t.contains("record 1")));
    std::fs::write(&file, table("new")).unwrap();
    wait_for("the mended file to be read", RUN_MAX, || trouble().is_none().then_some(()));
    visit(1);
    wait_for("the second visit", RUN_MAX, || (segments() == ["old", "new"]).then_some(()));
    process.terminate();
    process.outcome(RUN_MAX).exits(0);
}

/// Two enrichers that add fields of the same names: the later one's hold, and what only the first had stays.
#[test]
fn of_two_fields_of_one_name_the_later_holds() {
    let (bytes, _) = visits(50);
    let service = Service::new(visitor);
    let (case, config) = visits_case(&service, Policy::Empty, &bytes, "");
    let mut csv = String::from("id,segment\n");
    (0..50).filter(|i| i % 2 == 0).for_each(|i| writeln!(csv, "u{i},later").unwrap());
    case.put("later.csv", csv.as_bytes());
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let path = text.lines().find(|l| l.starts_with("path = ") && l.contains("profile")).unwrap();
    let file = case.path("later.csv");
    let again = format!(
        "[plugin.again]\n{path}\nlookups = {{ visitor = \"later\", campaign = \"campaigns\" }}\n\
         [lookup.later]\nkind = \"file\"\npath = {:?}\nkey = \"id\"\n",
        file.to_str().unwrap()
    );
    let text = text.replace("enrich = [\"profile-enricher\"]", "enrich = [\"profile-enricher\", \"again\"]");
    case.put("pipeline.toml", format!("{text}\n{again}").as_bytes());
    case.run().exits(0);
    let rows = table_fields(&case);
    assert_eq!(rows.len(), expected_of(&config, &bytes).len());
    for (_, key, fields) in rows {
        let mut want = fields_of(&key);
        if key[1..].parse::<u64>().unwrap() % 2 == 0 {
            want["visitor_segment"] = json!("later");
        }
        assert_eq!(fields, want, "{key}");
    }
}
