//! Sessions and dead letters in Postgres: the table is the model's, whatever becomes of the host, the server and what lies
//! between. `docs/postgres.md` has a table of what may fail and which test is about it.
//!
//! The bug family: an epoch that is taken for delivered because its answer never came, or is delivered twice because it did
//! come, too late; a sink that ends the pipeline where it need only wait, or waits for what will never be; a process that
//! was replaced and writes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};
use tidemill_services::postgres::{self, Database, PASSWORD, USER};
use tidemill_services::proxy::Proxy;
use tidemill_tests::api::Api;
use tidemill_tests::model::{self, Format, Gap, Log, Row, Source, Unit};
use tidemill_tests::postgres::table;
use tidemill_tests::traffic::{Shop, delayed, file_of};
use tidemill_tests::{
    Case, Config, Follower, Outcome, Plugin, Process, RUN_MAX, current, latest, report, same_table, wait_for,
};

const FILE: &str = "in.jsonl";
/// Long enough for whatever has to happen, and much shorter than a run may take.
const SOON: Duration = Duration::from_secs(60);

fn source() -> Source {
    let file = Source::file("web", FILE, Format::Json, "user", "ts", Unit::Millis);
    Source { id: Some("id".into()), disorder_ms: 10_000, ..file }
}

fn config() -> Config {
    let mut config = Config::new(source(), Gap::of_seconds(60, false));
    config.epoch = "10ms".into();
    config.to = r#"["table", "rows"]"#.into();
    config
}

/// The sinks of a case.
struct Sinks<'a> {
    /// As whom and where the server is reached.
    url: String,
    password: &'a str,
    /// Further lines of the sink.
    more: &'a str,
}

impl Sinks<'_> {
    fn of(database: &Database) -> Sinks<'static> {
        Sinks { url: database.url(), password: PASSWORD, more: "timeout = \"5s\"" }
    }
    fn through(database: &Database, proxy: &Proxy) -> Sinks<'static> {
        Sinks { url: database.url_of(USER, &proxy.address()), ..Sinks::of(database) }
    }
}

/// A case with this input; sessions go to the table `sessions`, and to `rows.jsonl`.
fn case_of(bytes: &[u8], config: &Config, sinks: &Sinks<'_>) -> Case {
    let case = Case::new();
    case.put(FILE, bytes);
    configure(&case, config, sinks);
    case
}

fn configure(case: &Case, config: &Config, sinks: &Sinks<'_>) {
    case.put("password", sinks.password.as_bytes());
    case.configure(config);
    let mut text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let _ = writeln!(
        text,
        "\n[sink.table]\nkind = \"postgres\"\nurl = \"{}\"\npassword = \"${{file:{}}}\"\n{}",
        sinks.url,
        case.path("password").display(),
        sinks.more
    );
    std::fs::write(case.path("pipeline.toml"), text).unwrap();
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

/// Both sinks hold the model's rows, and the table no row twice or early.
#[track_caller]
fn same(what: &str, expected: &[Row], case: &Case, database: &Database) {
    let table = table(database, "sessions");
    same_table(&format!("{what}, Postgres"), expected, &current(&table));
    same_table(&format!("{what}, JSON lines"), expected, &current(&latest(case.lines("rows.jsonl"))));
    let early = table.iter().find(|s| s.stage == "early");
    assert!(early.is_none(), "{what}: still early at the end: {early:?}");
    // The last revision of each session in the file is the one in the table, all of it.
    let by_id = |mut list: Vec<tidemill_tests::Stored>| {
        list.retain(|s| s.stage != "retracted");
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list
    };
    let (left, right) = (by_id(latest(case.lines("rows.jsonl"))), by_id(table));
    assert!(left == right, "{what}: revisions differ from those in the file");
}

/// Ends well, has said each absence and return, and shows no password.
#[track_caller]
fn recovers(process: Process, away: &str) -> Outcome {
    let outcome = process.outcome(RUN_MAX);
    outcome.exits(0).says("sink `table` is unavailable").says("sink `table` is back after").says(away);
    silent(&outcome);
    outcome
}

#[track_caller]
fn silent(outcome: &Outcome) {
    assert!(!outcome.said.contains(PASSWORD), "the password is shown:\n{}", outcome.said);
}

/// A way to the server on which an epoch takes some time: so that a run lasts until what a test does to it has happened.
fn slow(database: &Database) -> Proxy {
    let proxy = Proxy::to(&database.server().address());
    proxy.delay(10);
    proxy
}

/// How often a text was said.
fn times(outcome: &Outcome, text: &str) -> usize {
    outcome.said.matches(text).count()
}

/// The rows of a table that has them, or none.
fn rows_in(database: &Database) -> i64 {
    if database.has("sessions") { database.number("SELECT count(*) FROM sessions") } else { 0 }
}

#[test]
fn the_table_is_the_models() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(60_000);
    let case = case_of(&bytes, &config(), &Sinks::of(&database));
    let outcome = case.run();
    outcome.exits(0);
    silent(&outcome);
    same("a run", &model_of(&bytes).1, &case, &database);
    let view = database.number("SELECT count(*) FROM sessions_current");
    assert_eq!(view, database.number("SELECT count(*) FROM sessions WHERE stage <> 'retracted'"));
    // Again: nothing is new, and nothing is written.
    let before = database.ask("SELECT * FROM tidemill_cursor");
    case.run().exits(0).says("nothing to do");
    let after = database.ask("SELECT * FROM tidemill_cursor");
    assert_eq!(before.rsplit('|').next(), after.rsplit('|').next());
    // A table that was dropped has nothing of what its cursor says.
    database.run("DROP TABLE sessions CASCADE");
    case.command(&["check"]).exits(4).says("--resend table");
    case.run().exits(6).says("--resend table");
    case.start(&["--resend", "table"], &[]).outcome(RUN_MAX).exits(0);
    same("sent again", &model_of(&bytes).1, &case, &database);
}

#[test]
fn killed_again_and_again_it_is_the_models() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(1_000_000);
    let (log, rows) = model_of(&bytes);
    let mut config = config();
    config.to = r#"["table", "rows"]"#.into();
    let case = case_of(&bytes, &config, &Sinks::of(&database));
    // Letters, too: into a table of their own.
    edit(&case, "dead = \"dead\"", "dead = \"letters\"");
    let text = std::fs::read_to_string(case.path("pipeline.toml")).unwrap();
    let (_, table) = text.split_once("[sink.table]").unwrap();
    let letters = format!("{text}\n[sink.letters]{table}\ntable = \"letters\"\n");
    std::fs::write(case.path("pipeline.toml"), letters).unwrap();
    let mut follower = Follower::default();
    let mut kills = 0;
    for n in 0..8 {
        if !case.killed_after(&mut follower, 1 + 9_000 * (n % 3)) {
            break;
        }
        kills += 1;
    }
    case.run().exits(0);
    same("after kills", &rows, &case, &database);
    let offsets = database.ask("SELECT letter #>> '{position,offset}' FROM letters");
    let mut offsets: Vec<u64> = offsets.lines().map(|l| l.parse().unwrap()).collect();
    offsets.sort_unstable();
    let mut expected: Vec<u64> = log.invalid.iter().map(|(place, _)| place.offset).collect();
    expected.sort_unstable();
    assert!(
        !expected.is_empty() && offsets == expected,
        "{} letters, expected {}",
        offsets.len(),
        expected.len()
    );
    report!("Postgres: {kills} kills, {} rows, {} letters", rows.len(), expected.len());
    assert!(kills >= 3, "only {kills} kills hit: too few events for this machine");
}

/// Down at the start: it waits, says so once, shows it, ends when asked, and goes on when the server is there.
#[test]
fn a_server_that_is_down_at_the_start_is_waited_for() {
    let Some(database) = postgres::database_alone() else { return };
    let bytes = input(20_000);
    let case = case_of(&bytes, &config(), &Sinks::of(&database));
    edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    let server = database.server();
    server.crash();
    let address = server.address();
    case.command(&["check"]).exits(4).says(&address).says("refused");
    let mut process = case.start(&[], &[]);
    process.hears("sink `table` is unavailable", 1, SOON);
    // Asked to end it does, at once, and has lost nothing.
    let begun = Instant::now();
    process.terminate();
    let outcome = process.outcome(SOON);
    outcome.exits(0).says(&address).says("refused");
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?} to stop", begun.elapsed());
    let mut process = case.start(&[], &[]);
    process.hears("sink `table` is unavailable", 1, SOON);
    let status = wait_for("the status to show it", SOON, || {
        let status = case.command(&["status"]);
        status.said.contains("away").then_some(status)
    });
    status.says("sink `table`").says(&address).says("refused");
    server.resume();
    let outcome = recovers(process, &address);
    assert_eq!(times(&outcome, "is unavailable"), 1, "{}", outcome.said);
    same("down at the start", &model_of(&bytes).1, &case, &database);
}

#[test]
fn a_server_that_dies_in_the_middle_loses_and_doubles_nothing() {
    let Some(database) = postgres::database_alone() else { return };
    let bytes = input(150_000);
    let proxy = slow(&database);
    let case = case_of(&bytes, &config(), &Sinks::through(&database, &proxy));
    let mut process = case.start(&[], &[]);
    for n in 1..=3 {
        let before = rows_in(&database);
        wait_for("rows in the table", SOON, || {
            (rows_in(&database) > before || process.ended()).then_some(())
        });
        database.server().crash();
        wait_for("its absence to be said", SOON, || {
            (process.ended() || process.said_so_far().matches("is unavailable").count() >= n).then_some(())
        });
        database.server().resume();
        wait_for("its return to be said", SOON, || {
            (process.ended() || process.said_so_far().matches("is back after").count() >= n).then_some(())
        });
    }
    proxy.delay(0);
    recovers(process, &proxy.address());
    same("died in the middle", &model_of(&bytes).1, &case, &database);
}

/// Cut after any number of bytes: in the greeting, in the middle of rows, before or after the commit.
#[test]
fn half_a_batch_is_no_batch() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(200_000);
    let proxy = Proxy::to(&database.server().address());
    let case = case_of(&bytes, &config(), &Sinks::through(&database, &proxy));
    let mut process = case.start(&[], &[]);
    for n in 1..=25 {
        // From somewhere in the greeting to somewhere among the rows of an epoch.
        proxy.cut_after(Some(60 + n * n * 150));
        wait_for("a cut", SOON, || (proxy.cut() >= n || process.ended()).then_some(()));
        proxy.cut_after(None);
        wait_for("its return", SOON, || {
            (process.ended() || process.said_so_far().matches("is back after").count() as u64 >= n)
                .then_some(())
        });
    }
    recovers(process, &proxy.address());
    assert!(proxy.cut() >= 5, "only {} connections were cut", proxy.cut());
    same("cut", &model_of(&bytes).1, &case, &database);
    report!("Postgres: {} connections cut in the middle", proxy.cut());
}

/// The commit arrives, its answer does not: nobody knows, and it is offered again.
#[test]
fn an_answer_that_never_comes_doubles_nothing() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(200_000);
    let proxy = Proxy::to(&database.server().address());
    let mut sinks = Sinks::through(&database, &proxy);
    sinks.more = "timeout = \"300ms\"";
    let case = case_of(&bytes, &config(), &sinks);
    let mut process = case.start(&[], &[]);
    for n in 1..=4 {
        wait_for("rows in the table", SOON, || (rows_in(&database) > 0 || process.ended()).then_some(()));
        proxy.swallow_answer_to("COMMIT");
        wait_for("an answer to be swallowed", SOON, || {
            (proxy.swallowed() >= n || process.ended()).then_some(())
        });
        wait_for("its return", SOON, || {
            (process.ended() || process.said_so_far().matches("is back after").count() >= n as usize)
                .then_some(())
        });
    }
    recovers(process, "no answer within");
    assert!(proxy.swallowed() >= 2, "only {} answers were swallowed", proxy.swallowed());
    same("answers swallowed", &model_of(&bytes).1, &case, &database);
}

/// Everything vanishes on the way, and nothing is closed: the time for an answer is what ends it.
#[test]
fn a_black_hole_is_noticed_and_left() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(60_000);
    let proxy = Proxy::to(&database.server().address());
    let mut sinks = Sinks::through(&database, &proxy);
    sinks.more = "timeout = \"300ms\"";
    let case = case_of(&bytes, &config(), &sinks);
    let mut process = case.start(&[], &[]);
    wait_for("rows in the table", SOON, || (rows_in(&database) > 0 || process.ended()).then_some(()));
    proxy.hold(true);
    process.hears("sink `table` is unavailable", 1, SOON);
    proxy.hold(false);
    recovers(process, "no answer within");
    same("a black hole", &model_of(&bytes).1, &case, &database);
}

/// One slow sink holds no other up: the file is whole long before the table is.
#[test]
fn a_slow_server_holds_no_other_sink_up() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(60_000);
    let (_, rows) = model_of(&bytes);
    let proxy = Proxy::to(&database.server().address());
    let case = case_of(&bytes, &config(), &Sinks::through(&database, &proxy));
    proxy.delay(40);
    let mut process = case.start(&[], &[]);
    wait_for("the file to have everything", SOON, || {
        assert!(!process.ended(), "{}", process.said_so_far());
        // It is being written: only whole lines are read.
        let text = std::fs::read(case.path("rows.jsonl")).unwrap_or_default();
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        case.put("so-far.jsonl", &text[..whole]);
        (current(&latest(case.lines("so-far.jsonl"))) == rows).then_some(())
    });
    let then = rows_in(&database);
    proxy.delay(0);
    process.outcome(RUN_MAX).exits(0);
    assert!((then as usize) < rows.len(), "the table was as quick: nothing is shown");
    same("slow", &rows, &case, &database);
    report!("Postgres: the file had all {} rows when a slow server had {then}", rows.len());
}

/// Too many connections, as a pooler or a role's limit says it.
#[test]
fn a_server_that_throttles_is_tried_again() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(60_000);
    let user = role(&database, "throttled");
    let proxy = slow(&database);
    let sinks = Sinks { url: database.url_of(&user, &proxy.address()), ..Sinks::of(&database) };
    let case = case_of(&bytes, &config(), &sinks);
    let mut process = case.start(&[], &[]);
    wait_for("rows in the table", SOON, || (rows_in(&database) > 0 || process.ended()).then_some(()));
    database.run(&format!("ALTER ROLE {user} CONNECTION LIMIT 0"));
    database.end_connections_of(&user);
    process.hears("sink `table` is unavailable", 1, SOON);
    process.hears("too many connections", 1, SOON);
    database.run(&format!("ALTER ROLE {user} CONNECTION LIMIT -1"));
    proxy.delay(0);
    recovers(process, "(53300)");
    same("throttled", &model_of(&bytes).1, &case, &database);
}

/// A role that may do what the docs say it needs, and nothing else.
fn role(database: &Database, name: &str) -> String {
    let user = format!("{name}_{}", database.name);
    database.run(&format!(
        "CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'; GRANT CREATE, USAGE ON SCHEMA public TO {user}"
    ));
    user
}

#[test]
fn wrong_credentials_are_refused_at_the_start_and_waited_for_later() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(60_000);
    let user = role(&database, "locked");
    let proxy = slow(&database);
    let url = database.url_of(&user, &proxy.address());
    let wrong = Sinks { url: url.clone(), password: "no such word", more: "" };
    let case = case_of(&bytes, &config(), &wrong);
    let address = proxy.address();
    for outcome in [case.command(&["check"]), case.run()] {
        outcome.exits(4).says("password authentication failed").says(&address);
        assert!(!outcome.said.contains("no such word"), "{}", outcome.said);
    }
    configure(&case, &config(), &Sinks { url, ..Sinks::of(&database) });
    let mut process = case.start(&[], &[]);
    wait_for("rows in the table", SOON, || (rows_in(&database) > 0 || process.ended()).then_some(()));
    database.run(&format!("ALTER ROLE {user} PASSWORD 'another'"));
    database.end_connections_of(&user);
    process.hears("password authentication failed", 1, SOON);
    database.run(&format!("ALTER ROLE {user} PASSWORD '{PASSWORD}'"));
    proxy.delay(0);
    recovers(process, "(28P01)");
    same("locked out", &model_of(&bytes).1, &case, &database);
}

#[test]
fn a_column_that_vanishes_is_named_and_what_may_be_mended_is() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(60_000);
    let proxy = slow(&database);
    let case = case_of(&bytes, &config(), &Sinks::through(&database, &proxy));
    let mut process = case.start(&[], &[]);
    wait_for("rows in the table", SOON, || (rows_in(&database) > 0 || process.ended()).then_some(()));
    // The one that may be null is added again; what stood in it is gone with whoever dropped it.
    database.run("ALTER TABLE sessions DROP COLUMN reason CASCADE");
    let has_reason = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'sessions'::regclass AND attname = 'reason' \
                      AND NOT attisdropped";
    wait_for("the column to be back", SOON, || {
        (database.number(has_reason) == 1 || process.ended()).then_some(())
    });
    database.run("ALTER TABLE sessions RENAME COLUMN events TO clicks");
    process.outcome(RUN_MAX).exits(4).says("column `events` is missing").says(&proxy.address());
    proxy.delay(0);
    case.command(&["check"]).exits(4).says("column `events` is missing");
    database.run("ALTER TABLE sessions RENAME COLUMN clicks TO events");
    database.run("ALTER TABLE sessions ALTER COLUMN epoch TYPE int");
    case.run().exits(4).says("column `epoch` is integer, expected bigint");
    database.run("ALTER TABLE sessions ALTER COLUMN epoch TYPE bigint");
    case.run().exits(0);
    let (_, rows) = model_of(&bytes);
    let without_reason = |rows: Vec<Row>| -> Vec<Row> {
        let mut rows: Vec<Row> = rows.into_iter().map(|r| Row { reason: None, ..r }).collect();
        rows.sort();
        rows
    };
    let table = current(&table(&database, "sessions"));
    same_table("mended", &without_reason(rows), &without_reason(table));
}

#[test]
fn a_table_that_is_not_ours_is_refused() {
    let Some(database) = postgres::database() else { return };
    let ours = "session_id text PRIMARY KEY, pipeline text, key text, start_time timestamptz, end_time timestamptz, \
                events bigint, stage text, incarnation bigint, epoch bigint, plugin text, fields jsonb";
    for (columns, words) in [
        ("id text", "column `session_id` is missing"),
        (&ours.replace("events bigint", "events text"), "column `events` is text, expected bigint"),
        (&ours.replace(" PRIMARY KEY", ""), "no unique key of exactly session_id"),
        (&format!("{ours}, mine text NOT NULL"), "column `mine` must be filled"),
    ] {
        database.run(&format!("DROP TABLE IF EXISTS sessions; CREATE TABLE sessions ({columns})"));
        let case = case_of(&input(100), &config(), &Sinks::of(&database));
        for outcome in [case.command(&["check"]), case.run()] {
            outcome.exits(4).says(words).says(&database.server().address());
        }
    }
    // A user's own columns may stand beside ours, and what may be null may be missing.
    database.run(&format!(
        "DROP TABLE sessions; CREATE TABLE sessions (note text, at timestamptz DEFAULT now(), {ours})"
    ));
    let bytes = input(5_000);
    let case = case_of(&bytes, &config(), &Sinks::of(&database));
    case.run().exits(0);
    same("beside others", &model_of(&bytes).1, &case, &database);
}

/// Two hosts write for one pipeline: of a copied data directory the older process is fenced, and writes nothing more.
#[test]
fn a_process_that_was_replaced_writes_no_more() {
    let Some(database) = postgres::database() else { return };
    let mut config = config();
    config.sources[0].path = "-".into();
    config.sources[0].disorder_ms = 0;
    config.to = r#"["table"]"#.into();
    let case = case_of(b"", &config, &Sinks::of(&database));
    // A file of letters would be another one on another machine.
    edit(&case, "dead = \"dead\"", "");
    edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    let click = |user: &str, at: u64| format!("{{\"user\":\"{user}\",\"ts\":{at},\"id\":\"{user}{at}\"}}\n");
    let mut first = case.start(&[], &[]);
    first.stdin().write_all(click("a", 1_000_000).as_bytes()).unwrap();
    wait_for("the first row", SOON, || (rows_in(&database) == 1).then_some(()));
    // The data directory as it stands, on another machine.
    let other = case_of(b"", &config, &Sinks::of(&database));
    edit(&other, "dead = \"dead\"", "");
    edit(&other, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    let copied = Command::new("cp").arg("-r").arg(case.path("state")).arg(other.path("")).status();
    assert!(copied.unwrap().success());
    let mut second = other.start(&[], &[]);
    second.stdin().write_all(click("b", 1_000_000).as_bytes()).unwrap();
    wait_for("the second's row", SOON, || {
        assert!(!second.ended(), "{}", second.said_so_far());
        (rows_in(&database) == 2).then_some(())
    });
    first.stdin().write_all(click("c", 1_000_000).as_bytes()).unwrap();
    let outcome = first.outcome(SOON);
    outcome.exits(6).says("a newer run of this pipeline has taken over");
    assert_eq!(rows_in(&database), 2);
    assert_eq!(database.ask("SELECT key FROM sessions ORDER BY key"), "a\nb\n");
    second.terminate();
    second.outcome(SOON).exits(0);
}

/// A server that came back from an older copy lacks what was delivered: refused, and what is kept is sent again when asked.
#[test]
fn a_table_that_was_put_back_is_refused_while_it_runs() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(150_000);
    let proxy = slow(&database);
    let case = case_of(&bytes, &config(), &Sinks::through(&database, &proxy));
    let mut process = case.start(&[], &[]);
    wait_for("rows in the table", SOON, || (rows_in(&database) > 0 || process.ended()).then_some(()));
    // As a standby that took over without the last epochs.
    database.run("UPDATE tidemill_cursor SET epoch = 0; DELETE FROM sessions");
    database.end_connections_of(USER);
    let outcome = process.outcome(RUN_MAX);
    outcome.exits(6).says("--resend table").says(&proxy.address());
    proxy.delay(0);
    let again = case.run();
    // A store that had not heard yet how far the table was sends all that it lacks by itself.
    if again.code != Some(0) {
        again.exits(6).says("--resend table");
        case.start(&["--resend", "table"], &[]).outcome(RUN_MAX).exits(0);
    }
    same("sent again", &model_of(&bytes).1, &case, &database);
}

#[test]
fn going_back_takes_back_what_the_table_has() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(500_000);
    let mut config = config();
    config.end_of_input = "hold".into();
    let case = case_of(&bytes, &config, &Sinks::of(&database));
    case.run().exits(0);
    let epochs: BTreeSet<i64> = case.lines("rows.jsonl").iter().map(|s| s.revision.1).collect();
    assert!(epochs.len() >= 4, "too few epochs to go back among");
    let cut = *epochs.iter().nth(epochs.len() / 2).unwrap();
    case.command(&["recover", "--to", &cut.to_string(), "--take-back", "--yes", "visits"]).exits(0);
    assert_eq!(database.number(&format!("SELECT count(*) FROM sessions_current WHERE epoch > {cut}")), 0);
    // The input ends where the cut had read up to: rows that only the abandoned branch had must not come back.
    let status = case.command(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.said).unwrap();
    let offset = status["pipelines"][0]["partitions"][0]["offset"].as_u64().unwrap() as usize;
    assert!(0 < offset && offset < bytes.len());
    case.put(FILE, &bytes[..offset]);
    case.run().exits(0);
    let short = postgres::database().unwrap();
    let alone = case_of(&bytes[..offset], &config, &Sinks::of(&short));
    alone.run().exits(0);
    let expected = current(&table(&short, "sessions"));
    same_table("gone back", &expected, &current(&table(&database, "sessions")));
    case.put(FILE, &bytes);
    edit(&case, "\"hold\"", "\"close\"");
    case.run().exits(0);
    same("gone back and on", &model_of(&bytes).1, &case, &database);
}

#[test]
fn starting_over_empties_the_pipelines_own_rows() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(5_000);
    let case = case_of(&bytes, &config(), &Sinks::of(&database));
    case.run().exits(0);
    database.run(
        "INSERT INTO sessions SELECT 'mine', 'another', key, start_time, end_time, events, stage, 9, 9, reason, plugin, fields \
         FROM sessions LIMIT 1",
    );
    case.start(&["--fresh"], &[]).outcome(RUN_MAX).exits(0);
    assert_eq!(database.number("SELECT count(*) FROM sessions WHERE pipeline = 'another'"), 1);
    database.run("DELETE FROM sessions WHERE pipeline = 'another'");
    same("afresh", &model_of(&bytes).1, &case, &database);
    // Nothing is emptied anywhere while the server is away.
    let proxy = Proxy::to(&database.server().address());
    proxy.refuse(true);
    configure(&case, &config(), &Sinks::through(&database, &proxy));
    let before = std::fs::read(case.path("rows.jsonl")).unwrap();
    case.start(&["--fresh"], &[]).outcome(RUN_MAX).exits(1).says(&proxy.address());
    assert!(std::fs::read(case.path("rows.jsonl")).unwrap() == before, "the file was emptied");
}

/// Postgres has no NUL in text: a key that has one costs no row.
#[test]
fn what_postgres_cannot_hold_is_held_in_another_way() {
    let Some(database) = postgres::database() else { return };
    let lines = "{\"user\":\"a\\u0000b\",\"ts\":1000,\"id\":\"1\"}\n{\"user\":\"\\u00e4'\\\\\",\"ts\":2000,\"id\":\"2\"}\n";
    let case = case_of(lines.as_bytes(), &config(), &Sinks::of(&database));
    case.run().exits(0);
    let rows = database.ask("SELECT key, start_time, events, fields FROM sessions ORDER BY start_time");
    assert_eq!(rows, "a\u{2400}b|1970-01-01 00:00:01+00|1|{}\n\u{e4}'\\|1970-01-01 00:00:02+00|1|{}\n");
}

/// What waits for a server that is away is bounded: the sources wait with it.
#[test]
fn a_server_that_stays_away_holds_the_sources_up() {
    let Some(database) = postgres::database() else { return };
    let bytes = input(400_000);
    let proxy = slow(&database);
    let case = case_of(&bytes, &config(), &Sinks::through(&database, &proxy));
    edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    edit(&case, "early = \"epoch\"", "early = \"epoch\"\nlimits = { outbox_bytes = \"1MiB\" }");
    let mut process = case.start(&[], &[]);
    let api = Api::of(&case, &process);
    wait_for("rows in the table", SOON, || (rows_in(&database) > 0 || process.ended()).then_some(()));
    proxy.refuse(true);
    proxy.close_all();
    process.hears("sink `table` is unavailable", 1, SOON);
    let metric = |name: &str, labels: &str| -> Option<f64> {
        let text = String::from_utf8(api.try_ask("GET", "/metrics", &[], b"")?.body).unwrap();
        let line = text.lines().find(|l| l.starts_with(name) && l.contains(labels))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    let records = || metric("tidemill_records_total", "");
    // Reading stands still: the same number over many epochs.
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
    assert_eq!(metric("tidemill_sink_available", "sink=\"rows\""), Some(1.0));
    assert!(metric("tidemill_sink_tries_in_vain_total", "sink=\"table\"").unwrap() >= 1.0);
    assert!(metric("tidemill_sink_lag_bytes", "sink=\"table\"").unwrap() > f64::from(1 << 20));
    proxy.refuse(false);
    proxy.delay(0);
    recovers(process, &proxy.address());
    same("held up", &model_of(&bytes).1, &case, &database);
}

/// Lookups out of a table by text, by number and by a query, of a server that is down at the start, dies in the middle, refuses and
/// vanishes: every session waits for its answer, and gets the right one.
#[test]
fn a_lookup_waits_for_a_server_that_is_away() {
    let Some(database) = postgres::database() else { return };
    let lines: String = (0..3_000)
        .map(|n| format!("{{\"user\":\"{}\",\"ts\":{},\"id\":\"{n}\"}}\n", n % 600, 1_000_000 + n * 50))
        .collect();
    let known = |key: i64| (key % 7 != 0).then(|| format!("s{}", key % 5));
    let rows: Vec<String> =
        (0..600).filter_map(|k| Some(format!("({k}, '{k}', '{}', 'NL')", known(k)?))).collect();
    database.run(&format!(
        "CREATE TABLE visitors (number int PRIMARY KEY, id text UNIQUE, segment text, country text); \
         INSERT INTO visitors VALUES {}",
        rows.join(", ")
    ));
    for what in [
        "table = \"visitors\"\nkey = \"id\"",
        "table = \"public.visitors\"\nkey = \"number\"",
        "query = \"SELECT * FROM visitors WHERE id = ANY ($1);\"\nkey = \"id\"",
    ] {
        let proxy = Proxy::to(&database.server().address());
        let case = Case::new();
        case.put(FILE, lines.as_bytes());
        case.put("campaigns.csv", b"id,channel,budget\nspring,mail,100\n");
        let mut enricher = Plugin::new("profile-enricher", "");
        enricher.lookups = "visitor = \"visitors\", campaign = \"campaigns\"".into();
        let mut config = config();
        config.to = r#"["rows"]"#.into();
        config.enrich = vec![enricher];
        config.lookups = format!(
            "[lookup.campaigns]\nkind = \"file\"\npath = {:?}\nkey = \"id\"\n[lookup.visitors]\nkind = \"postgres\"\nurl = \"{}\"\n\
             password = \"${{env:LOOKUP}}\"\n{what}\non_failure = \"hold\"\ntimeout = \"300ms\"\n",
            case.path("campaigns.csv").to_str().unwrap(),
            database.url_of(USER, &proxy.address())
        );
        case.configure(&config);
        let environment = [("LOOKUP", PASSWORD.to_owned())];
        proxy.refuse(true);
        let mut process = case.start(&[], &environment);
        let tried = |n: u64| wait_for("a try", SOON, || (proxy.connections() >= n).then_some(()));
        tried(3);
        proxy.refuse(false);
        proxy.hold(true);
        tried(proxy.connections() + 2);
        proxy.hold(false);
        proxy.cut_after(Some(400));
        wait_for("a cut", SOON, || (proxy.cut() >= 2 || process.ended()).then_some(()));
        proxy.cut_after(None);
        let outcome = process.outcome(RUN_MAX);
        outcome.exits(0);
        silent(&outcome);
        let (_, rows) = model_of(lines.as_bytes());
        let lines = latest(case.lines("rows.jsonl"));
        same_table(what, &rows, &current(&lines));
        for s in lines {
            let fields: serde_json::Value = serde_json::from_str(&s.fields).unwrap();
            let expected = match known(s.row.key.parse().unwrap()) {
                Some(segment) => serde_json::json!({"visitor_segment": segment, "visitor_country": "NL"}),
                None => serde_json::json!({}),
            };
            assert_eq!(fields, expected, "{what}: {}", s.row.key);
        }
    }
}

/// What passes is encrypted as the config wants it, and a server that cannot show who it is is refused.
#[test]
fn what_passes_is_encrypted_as_the_config_wants_it() {
    let authority = |name: &str| {
        let mut of = rcgen::CertificateParams::new(Vec::new()).unwrap();
        of.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        of.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        (of.self_signed(&key).unwrap().pem(), rcgen::Issuer::new(of, key))
    };
    let ((ours, issuer), (theirs, _)) = (authority("ours"), authority("theirs"));
    let key = rcgen::KeyPair::generate().unwrap();
    let of = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = of.signed_by(&key, &issuer).unwrap().pem();
    let Some(database) = postgres::database_with_tls(&certificate, &key.serialize_pem()) else { return };
    let Some(plain) = postgres::database() else { return };
    let bytes = input(2_000);
    let (_, rows) = model_of(&bytes);
    let port = database.server().address().rsplit(':').next().unwrap().to_owned();
    let run = |database: &Database, address: &str, more: &str| {
        database.run("DROP TABLE IF EXISTS sessions, tidemill_cursor CASCADE");
        let case = Case::new();
        case.put("ours.pem", ours.as_bytes());
        case.put("theirs.pem", theirs.as_bytes());
        let more = more.replace("PEM", case.path("").to_str().unwrap());
        case.put(FILE, &bytes);
        configure(
            &case,
            &config(),
            &Sinks { url: database.url_of(USER, address), password: PASSWORD, more: &more },
        );
        let outcome = case.run();
        silent(&outcome);
        if outcome.code == Some(0) {
            same_table(&more, &rows, &current(&table(database, "sessions")));
        }
        outcome
    };
    let (named, by_number) = (format!("localhost:{port}"), format!("127.0.0.1:{port}"));
    // Nobody gets in who does not encrypt.
    let data = database.ask("SHOW hba_file");
    let hba = std::fs::read_to_string(data.trim()).unwrap();
    std::fs::write(data.trim(), hba.replace("\nhost ", "\nhostssl ")).unwrap();
    database.run("SELECT pg_reload_conf()");
    wait_for("the server to want encryption", SOON, || {
        let outcome = run(&database, &named, "sslmode = \"disable\"");
        (outcome.code == Some(4)).then(|| outcome.says("no encryption").code)
    });
    for mode in ["sslmode = \"prefer\"", "sslmode = \"require\"", ""] {
        run(&database, &by_number, mode).exits(0);
    }
    run(&database, &named, "sslrootcert = \"PEM/ours.pem\"").exits(0);
    run(&database, &named, "sslrootcert = \"PEM/theirs.pem\"").exits(4).says("certificate").says(&named);
    run(&database, &by_number, "sslrootcert = \"PEM/ours.pem\"")
        .exits(4)
        .says("certificate")
        .says(&by_number);
    run(&database, &named, "sslrootcert = \"PEM/none.pem\"").exits(4).says("none.pem");
    run(&plain, &plain.server().address(), "sslmode = \"require\"").exits(4).says("TLS");
}
