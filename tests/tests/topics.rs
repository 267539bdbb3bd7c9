//! Topics in, topics out: what is in them is the model's, whatever becomes of the host, the broker and the topics.
//! `docs/kafka.md` has a table of what may fail and which test is about it.
//!
//! The bug family: a position that is durable before its records are, or after; a transaction whose end nobody knows that is
//! sent again, or not at all; silence of a cluster that is taken for silence of the visitors; a place in a topic that is left for
//! another without a word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tidemill_services::kafka::{Broker, PASSWORD, USER};
use tidemill_tests::kafka::{self, Ends};
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{START_MS, Shop, delayed};
use tidemill_tests::{
    Case, Follower, Outcome, Process, RUN_MAX, Stored, current, latest, report, same_table, wait_for,
};

/// Long enough for whatever has to happen, and much shorter than a run may take.
const SOON: Duration = Duration::from_secs(120);
/// Whose events end the others' sessions: long after all of them, in each partition.
const LAST: &str = "last";

/// The tests of this file share a broker; one that stops it wants to be alone.
static BROKER: RwLock<()> = RwLock::new(());

fn shared() -> Option<(&'static Broker, RwLockReadGuard<'static, ()>)> {
    let broker = kafka::broker()?;
    Some((broker, BROKER.read().unwrap_or_else(PoisonError::into_inner)))
}

fn alone() -> Option<(&'static Broker, RwLockWriteGuard<'static, ()>)> {
    let broker = kafka::broker()?;
    Some((broker, BROKER.write().unwrap_or_else(PoisonError::into_inner)))
}

/// What is written to the partitions of a topic.
#[derive(Clone)]
struct Clicks(Vec<Vec<String>>);

impl Clicks {
    /// Shop traffic, dealt out to the partitions one by one.
    fn new(events: u64, partitions: usize) -> Clicks {
        let shop = Shop { seed: 31, events, users: 20 + events / 50, step_ms: 20, invalid_every: 500 };
        let mut parts = vec![Vec::new(); partitions];
        for (n, line) in delayed(&shop.lines(), 32, 10_000, true).into_iter().enumerate() {
            parts[n % partitions].push(line.line);
        }
        Clicks(parts)
    }

    /// With what ends all sessions.
    fn ended(mut self) -> Clicks {
        let month_ms = 30 * 24 * 3_600_000;
        for (n, part) in self.0.iter_mut().enumerate() {
            part.push(format!(r#"{{"id":"{LAST}{n}","user":"{LAST}","ts":{}}}"#, START_MS + month_ms));
        }
        self
    }

    /// The `n`th of so many pieces, partition by partition.
    fn piece(&self, n: usize, of: usize) -> Clicks {
        let piece = |p: &Vec<String>| p[p.len() * n / of..p.len() * (n + 1) / of].to_vec();
        Clicks(self.0.iter().map(piece).collect())
    }

    fn produce(&self, broker: &Broker, topic: &str) {
        for (n, part) in self.0.iter().enumerate() {
            kafka::produce(broker, topic, n as i32, part.iter().map(String::as_bytes));
        }
    }

    /// The rows that must come out but for the last, and the partitions and offsets of what is no event.
    fn model(&self) -> (Vec<Row>, BTreeSet<(usize, u64)>) {
        let source = Source::file("web", "", Format::Json, "user", "ts", Unit::Millis);
        let source = Source { id: Some("id".into()), ..source };
        let files: Vec<Vec<u8>> = self.0.iter().map(|p| p.join("\n").into_bytes()).collect();
        let names: Vec<String> = (0..files.len()).map(|n| n.to_string()).collect();
        let read: Vec<(&Source, &str, &[u8])> = names
            .iter()
            .zip(&files)
            .map(|(name, bytes)| (&source, name.as_str(), bytes.as_slice()))
            .collect();
        let gap = Gap::of_seconds(60, false);
        let log = model::read(&read, &gap);
        let rows = model::sessions(&log, &BTreeSet::new(), &gap);
        let place = |p: &model::Place| {
            let file: usize = p.file.parse().unwrap();
            let before = &files[file][..p.offset as usize];
            (file, before.iter().filter(|b| **b == b'\n').count() as u64)
        };
        let invalid = log.invalid.iter().map(|(p, _)| place(p)).collect();
        (rows.into_iter().filter(|r| r.key != LAST).collect(), invalid)
    }
}

/// A case that reads these topics; `to` is where sessions go of `sessions` (SQLite), `rows` (JSON lines) and `topic`.
struct Setup<'a> {
    brokers: String,
    topics: &'a str,
    /// Further lines of the source.
    source: &'a str,
    to: &'a str,
    /// The topics of sessions and of letters, if there are any.
    out: Option<(&'a str, &'a str)>,
}

impl<'a> Setup<'a> {
    fn of(broker: &Broker, topics: &'a str) -> Setup<'a> {
        Setup { brokers: broker.plain(), topics, source: "", to: r#""sessions", "rows""#, out: None }
    }

    fn case(&self) -> Case {
        let case = Case::new();
        self.configure(&case);
        case
    }

    fn configure(&self, case: &Case) {
        let Setup { brokers, topics, source, to, .. } = self;
        let at = |name: &str| case.path(name).display().to_string();
        let dead = if self.out.is_some() { "letters" } else { "dead" };
        let mut text = format!(
            r#"[server]
data_dir = "{state}"
epoch = "20ms"
[source.web]
kind = "kafka"
brokers = "{brokers}"
topics = ["{topics}"]
timeout = "5s"
format = "json"
key = "user"
time = {{ field = "ts", unit = "ms" }}
id = "id"
disorder = "10s"
idle = "1h"
{source}
[pipeline.visits]
from = ["web"]
session = {{ plugin = "builtin:gap", config = {{ gap = "60s", boundary = "exclusive" }} }}
to = [{to}]
dead = "{dead}"
[sink.sessions]
kind = "sqlite"
path = "{db}"
[sink.rows]
kind = "file"
path = "{rows}"
"#,
            state = at("state"),
            db = at("sessions.db"),
            rows = at("rows.jsonl"),
        );
        match self.out {
            None => {
                text.push_str(&format!("[sink.dead]\nkind = \"file\"\npath = \"{}\"\n", at("dead.jsonl")));
            }
            Some((topic, letters)) => {
                for (sink, topic) in [("topic", topic), ("letters", letters)] {
                    text.push_str(&format!(
                        "[sink.{sink}]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\ntopic = \"{topic}\"\ntimeout = \"5s\"\n"
                    ));
                }
            }
        }
        case.put("pipeline.toml", text.as_bytes());
    }
}

fn edit(case: &Case, from: &str, to: &str) {
    let path = case.path("pipeline.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "the config has no {from}:\n{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// Sessions in the SQLite table that are certain, but for the last.
fn certain(case: &Case) -> usize {
    if !case.has_table() {
        return 0;
    }
    let count =
        format!("SELECT count(*) FROM sessions WHERE stage IN ('final', 'corrected') AND key <> '{LAST}'");
    case.database().query_row(&count, [], |r| r.get::<_, i64>(0)).unwrap() as usize
}

/// Runs until so many sessions are certain, and stops then.
#[track_caller]
fn until_certain(case: &Case, mut process: Process, sessions: usize) -> Outcome {
    wait_for("all sessions to be certain", RUN_MAX, || {
        let found = certain(case);
        assert!(found <= sessions, "{found} sessions instead of {sessions}");
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        (found == sessions).then_some(())
    });
    process.terminate();
    let outcome = process.outcome(SOON);
    outcome.exits(0);
    outcome
}

fn but_the_last(stored: &[Stored]) -> Vec<Row> {
    current(stored).into_iter().filter(|r| r.key != LAST).collect()
}

/// Partition and offset of each dead letter.
#[track_caller]
fn places<'a>(letters: impl IntoIterator<Item = &'a serde_json::Value>) -> BTreeSet<(usize, u64)> {
    let mut found = BTreeSet::new();
    for letter in letters {
        let partition = letter["partition"].as_str().unwrap().rsplit('/').next().unwrap();
        let offset = letter["position"]["offset"].as_u64().unwrap();
        assert!(found.insert((partition.parse().unwrap(), offset)), "two letters of one record: {letter}");
    }
    found
}

/// The table and the file have the model's rows, each letter is there once.
#[track_caller]
fn same(what: &str, clicks: &Clicks, case: &Case) {
    let (rows, invalid) = clicks.model();
    same_table(&format!("{what}, SQLite"), &rows, &but_the_last(&case.table()));
    same_table(&format!("{what}, JSON lines"), &rows, &but_the_last(&latest(case.lines("rows.jsonl"))));
    assert_eq!(places(&case.letters()), invalid, "{what}: dead letters");
}

#[test]
fn killed_again_and_again_what_is_read_is_the_models() {
    let Some((broker, _shared)) = shared() else { return };
    let clicks = Clicks::new(60_000, 3).ended();
    let (rows, _) = clicks.model();
    let topic = kafka::topic(broker, "clicks", 3);
    let case = Setup::of(broker, &topic).case();
    let mut follower = Follower::default();
    let path = case.path("rows.jsonl");
    let pieces = 7;
    for n in 0..pieces - 1 {
        clicks.piece(n, pieces).produce(broker, &topic);
        follower.read(&path);
        let (incarnation, target) = (follower.incarnation, follower.total + 1 + 900 * (n as u64 % 3));
        let mut process = case.start(&[], &[]);
        wait_for("rows to kill after", RUN_MAX, || {
            follower.read(&path);
            assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
            (follower.incarnation > incarnation && follower.total >= target).then_some(())
        });
        process.kill();
    }
    clicks.piece(pieces - 1, pieces).produce(broker, &topic);
    let outcome = until_certain(&case, case.start(&[], &[]), rows.len());
    same("killed", &clicks, &case);
    assert!(!outcome.said.contains("unavailable"), "{}", outcome.said);
    // Others see how far it has come.
    let ends: Vec<Option<i64>> = (0..3).map(|p| Some(kafka::end(broker, &topic, p))).collect();
    let status = case.command(&["status"]);
    for (p, end) in ends.iter().flatten().enumerate() {
        status.says(&format!("{topic}/{p}"));
        let shown = end.to_string();
        assert!(status.said.replace([',', '_', ' ', '\u{202f}'], "").contains(&shown), "{}", status.said);
    }
    let process = case.start(&[], &[]);
    wait_for("the group to show it", SOON, || {
        (kafka::committed(broker, "tidemill-visits.web", &topic, 3) == ends).then_some(())
    });
    drop(process);
}

#[test]
fn from_topic_to_topic_each_revision_is_seen_once_under_kills() {
    let Some((broker, _shared)) = shared() else { return };
    let clicks = Clicks::new(40_000, 2).ended();
    let (rows, invalid) = clicks.model();
    let topic = kafka::topic(broker, "clicks", 2);
    let (sessions, letters) = (kafka::topic(broker, "sessions", 3), kafka::topic(broker, "letters", 1));
    let out = Some((sessions.as_str(), letters.as_str()));
    let case = Setup { out, to: r#""topic", "rows", "sessions""#, ..Setup::of(broker, &topic) }.case();
    let ends = Ends::of(broker, &sessions, 3);
    let pieces = 11;
    for n in 0..pieces - 1 {
        clicks.piece(n, pieces).produce(broker, &topic);
        // From the first row of a transaction that is open to somewhere among the next ones.
        let target = ends.sum() + [1, 2, 25, 120, 400][n % 5];
        let mut process = case.start(&[], &[]);
        wait_for("rows to kill after", RUN_MAX, || {
            assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
            (ends.sum() >= target).then_some(())
        });
        process.kill();
    }
    clicks.piece(pieces - 1, pieces).produce(broker, &topic);
    until_certain(&case, case.start(&[], &[]), rows.len());

    let seen = kafka::read_committed(broker, &sessions, 3);
    let stored: Vec<Stored> = seen.iter().map(|(_, line)| tidemill_tests::stored(line)).collect();
    let revisions: BTreeSet<_> = stored.iter().map(|s| (s.id.clone(), s.revision)).collect();
    assert_eq!(revisions.len(), stored.len(), "a revision is seen twice");
    for ((key, _), s) in seen.iter().zip(&stored) {
        assert_eq!(key.as_deref(), Some(s.id.as_str()));
    }
    // In the order of a partition a session's revisions rise.
    let mut newest = std::collections::HashMap::new();
    for s in &stored {
        let before = newest.insert(&s.id, s.revision);
        assert!(before.is_none_or(|b| b < s.revision), "{} after {before:?}: {s:?}", s.id);
    }
    same_table("the topic", &rows, &but_the_last(&latest(stored)));
    // The file was cut back after each kill: it has each revision once, and the topic the same ones.
    let text = std::fs::read_to_string(case.path("rows.jsonl")).unwrap();
    let mut expected: Vec<&str> = text.lines().collect();
    let mut lines: Vec<&str> = seen.iter().map(|(_, line)| line.as_str()).collect();
    expected.sort_unstable();
    lines.sort_unstable();
    same_table("each revision", &expected, &lines);
    let written = kafka::read_committed(broker, &letters, 1);
    let written: Vec<serde_json::Value> =
        written.iter().map(|(_, line)| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(places(&written), invalid);
    report!(
        "Kafka to Kafka: {} kills, {} revisions each once, {} rows of transactions that were killed, {} letters",
        pieces - 1,
        lines.len(),
        kafka::aborted(broker, &sessions, 3),
        invalid.len()
    );
}

#[test]
fn a_broker_that_dies_in_the_middle_is_waited_for() {
    let Some((broker, _alone)) = alone() else { return };
    let clicks = Clicks::new(30_000, 2).ended();
    let (rows, _) = clicks.model();
    let topic = kafka::topic(broker, "clicks", 2);
    let (sessions, letters) = (kafka::topic(broker, "sessions", 1), kafka::topic(broker, "letters", 1));
    let out = Some((sessions.as_str(), letters.as_str()));
    let case = Setup { out, to: r#""topic", "rows", "sessions""#, ..Setup::of(broker, &topic) }.case();
    edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    clicks.piece(0, 2).produce(broker, &topic);
    let ends = Ends::of(broker, &sessions, 1);
    let mut process = case.start(&[], &[]);
    wait_for("rows", SOON, || (ends.sum() > 100).then_some(()));
    let quiet = Quiet::new(broker);
    let patient = quiet.case.start(&[], &[]);
    quiet.event(broker, 0);
    broker.stop();
    let stopped = Instant::now();
    process.hears("source `web` is unavailable", 1, SOON);
    let status = wait_for("the status to show it", SOON, || {
        let status = case.command(&["status"]);
        status.said.contains("away       source `web`").then_some(status)
    });
    status.says(&broker.plain());
    // A cluster that is away is no silence either.
    wait_for("some time to pass", SOON, || (stopped.elapsed() > Quiet::SILENCE).then_some(()));
    broker.start_again().unwrap();
    quiet.event(broker, 1);
    drop(patient);
    process.hears("source `web` is back after", 1, SOON);
    clicks.piece(1, 2).produce(broker, &topic);
    until_certain(&case, process, rows.len());
    let stored: Vec<Stored> =
        kafka::read_committed(broker, &sessions, 1).iter().map(|(_, l)| tidemill_tests::stored(l)).collect();
    let revisions: BTreeSet<_> = stored.iter().map(|s| (s.id.clone(), s.revision)).collect();
    assert_eq!(revisions.len(), stored.len(), "a revision is seen twice");
    same_table("the topic", &rows, &but_the_last(&latest(stored)));
    same_table("the table", &rows, &but_the_last(&case.table()));
    // Down at the start, too: asked to end it does, at once.
    broker.stop();
    let mut process = case.start(&[], &[]);
    process.hears("is unavailable", 1, SOON);
    process.terminate();
    process.outcome(SOON).exits(0).says(&broker.plain());
    broker.start_again().unwrap();
}

#[test]
fn a_partition_that_is_added_is_read_from_its_first_record() {
    let Some((broker, _shared)) = shared() else { return };
    let clicks = Clicks::new(8_000, 3).ended();
    let (rows, _) = clicks.model();
    let topic = kafka::topic(broker, "clicks", 2);
    let mut two = clicks.clone();
    two.0.pop();
    // What is not read yet must not be late.
    let before = Clicks(two.0.iter().map(|p| p[..p.len() - 1].to_vec()).collect());
    let case = Setup::of(broker, &topic).case();
    edit(&case, "to = [", "lateness = \"1h\"\nto = [");
    before.produce(broker, &topic);
    let mut process = case.start(&[], &[]);
    wait_for("what is there to be read", SOON, || {
        (case.has_table() && case.table().len() > 10).then_some(())
    });
    kafka::widen(broker, &topic, 3);
    kafka::produce(broker, &topic, 2, clicks.0[2].iter().map(String::as_bytes));
    process.hears(&format!("source `web` has a new partition, {topic}/2"), 1, SOON);
    // Once it is durable where reading began, the next start goes on there.
    wait_for("the partition to be in an epoch", SOON, || {
        case.command(&["status"]).said.contains(&format!("{topic}/2")).then_some(())
    });
    process.kill();
    let process = case.start(&[], &[]);
    for (p, part) in two.0.iter().enumerate() {
        kafka::produce(broker, &topic, p as i32, part.last().map(|l| l.as_bytes()));
    }
    until_certain(&case, process, rows.len());
    same("widened", &clicks, &case);
}

#[test]
fn a_position_that_is_gone_is_an_error_in_words() {
    let Some((broker, _shared)) = shared() else { return };
    let clicks = Clicks::new(2_000, 1);
    let topic = kafka::topic(broker, "clicks", 1);
    let case = Setup::of(broker, &topic).case();
    clicks.piece(0, 2).produce(broker, &topic);
    let process = case.start(&[], &[]);
    wait_for("rows", SOON, || (case.has_table() && !case.table().is_empty()).then_some(()));
    process.terminate();
    process.outcome(SOON).exits(0);
    case.command(&["check"]).exits(0);
    clicks.piece(1, 2).produce(broker, &topic);
    kafka::delete_before(broker, &topic, 0, kafka::end(broker, &topic, 0) - 3);
    let read = clicks.piece(0, 2).0[0].len();
    for outcome in [case.command(&["check"]), case.start(&[], &[]).outcome(SOON)] {
        let gone = format!("{topic}/0 does not hold offset {read}");
        outcome.says("source").says(&gone).says("deleted before they were read").says("--fresh");
        assert!(matches!(outcome.code, Some(4 | 6)), "{outcome:?}");
    }
}

#[test]
fn a_log_in_that_is_refused_is_the_configs_fault_and_shows_no_password() {
    let Some((broker, _shared)) = shared() else { return };
    let clicks = Clicks::new(2_000, 1).ended();
    let (rows, _) = clicks.model();
    let topic = kafka::topic(broker, "clicks", 1);
    clicks.produce(broker, &topic);
    let case = Case::new();
    let login = format!(
        "login = {{ mechanism = \"SCRAM-SHA-512\", user = \"{USER}\", password = \"${{file:{}}}\" }}",
        case.path("password").display()
    );
    case.put("password", b"not-hers");
    Setup { brokers: broker.login(), source: &login, ..Setup::of(broker, &topic) }.configure(&case);
    for outcome in [case.command(&["check"]), case.start(&[], &[]).outcome(SOON)] {
        outcome.exits(4).says("source").says(&broker.login()).says("authentication");
        assert!(!outcome.said.contains("not-hers"), "{}", outcome.said);
    }
    case.put("password", PASSWORD.as_bytes());
    let outcome = until_certain(&case, case.start(&[], &[]), rows.len());
    assert!(!outcome.said.contains(PASSWORD), "{}", outcome.said);
    same("logged in", &clicks, &case);
}

#[test]
fn with_tls_the_authority_that_is_named_is_trusted_and_no_other() {
    let Some((broker, _shared)) = shared() else { return };
    let clicks = Clicks::new(2_000, 1).ended();
    let (rows, _) = clicks.model();
    let topic = kafka::topic(broker, "clicks", 1);
    let (sessions, letters) = (kafka::topic(broker, "sessions", 1), kafka::topic(broker, "letters", 1));
    clicks.produce(broker, &topic);
    let tls = format!("tls = {{ authorities = \"{}\" }}", broker.certificate().display());
    let of = |out| Setup { brokers: broker.tls(), out, ..Setup::of(broker, &topic) };
    let case = Setup { source: "tls = true", ..of(None) }.case();
    case.start(&[], &[]).outcome(SOON).exits(4).says(&broker.tls()).says("certificate");
    // To all of it: the source, and both sinks.
    let out = Some((sessions.as_str(), letters.as_str()));
    let case = Setup { to: r#""sessions", "topic""#, ..of(out) }.case();
    edit(&case, "timeout = \"5s\"", &format!("timeout = \"5s\"\n{tls}"));
    until_certain(&case, case.start(&[], &[]), rows.len());
    same_table("by TLS", &rows, &but_the_last(&case.table()));
    let stored = kafka::read_committed(broker, &sessions, 1);
    let stored: Vec<Stored> = stored.iter().map(|(_, l)| tidemill_tests::stored(l)).collect();
    same_table("by TLS, the topic", &rows, &but_the_last(&latest(stored)));
}

/// Events that are further apart than they may be out of order, with a long silence of the host between: it must not be taken
/// for one of the visitors, after which the later event would come too late.
struct Quiet {
    case: Case,
    topic: String,
}

impl Quiet {
    /// Longer than it takes to pause or to stop, and shorter than [`Quiet::SILENCE`].
    const IDLE: &str = "4s";
    const SILENCE: Duration = Duration::from_secs(6);

    fn new(broker: &Broker) -> Quiet {
        let topic = kafka::topic(broker, "quiet", 1);
        let case = Setup::of(broker, &topic).case();
        edit(&case, "disorder = \"10s\"", "disorder = \"0s\"");
        edit(&case, "idle = \"1h\"", &format!("idle = \"{}\"", Quiet::IDLE));
        edit(&case, "[server]", "[server]\nlisten = \"127.0.0.1:0\"");
        Quiet { case, topic }
    }

    /// Writes the `n`th event and waits until it is in a row.
    fn event(&self, broker: &Broker, n: i64) {
        let line = format!(r#"{{"id":"{n}","user":"u{n}","ts":{}}}"#, START_MS + 100 * n);
        kafka::produce(broker, &self.topic, 0, [line.as_bytes()]);
        self.is_read(n);
    }

    fn is_read(&self, n: i64) {
        wait_for("the event in a row, or a dead letter", SOON, || {
            let is_there = self.case.has_table() && self.case.table().len() == n as usize + 1;
            assert_eq!(self.case.letters().len(), 0, "it came too late: {:?}", self.case.letters());
            is_there.then_some(())
        });
    }
}

#[test]
fn a_pause_is_no_silence() {
    let Some((broker, _shared)) = shared() else { return };
    let quiet = Quiet::new(broker);
    let process = quiet.case.start(&[], &[]);
    quiet.event(broker, 0);
    quiet.case.command(&["pause", "visits"]).exits(0);
    let line = format!(r#"{{"id":"1","user":"u1","ts":{}}}"#, START_MS + 100);
    kafka::produce(broker, &quiet.topic, 0, [line.as_bytes()]);
    let begun = Instant::now();
    wait_for("some time to pass", SOON, || (begun.elapsed() > Quiet::SILENCE).then_some(()));
    quiet.case.command(&["resume", "visits"]).exits(0);
    quiet.is_read(1);
    drop(process);
}

#[test]
fn reading_begins_where_the_config_says() {
    let Some((broker, _shared)) = shared() else { return };
    let topic = kafka::topic(broker, "clicks", 1);
    let line = |n: i64| format!(r#"{{"id":"{n}","user":"u{n}","ts":{}}}"#, START_MS + n);
    let produce = |n: i64| kafka::produce(broker, &topic, 0, [line(n).as_bytes()]);
    (0..3).for_each(produce);
    let keys = |case: &Case| {
        let mut keys: Vec<String> =
            if case.has_table() { case.table().into_iter().map(|s| s.row.key).collect() } else { Vec::new() };
        keys.sort();
        keys
    };
    // The first run says where it is before it has read anything, so the next one does not begin anew.
    let latest = Setup { source: "start = \"latest\"", ..Setup::of(broker, &topic) }.case();
    let process = latest.start(&[], &[]);
    wait_for("its first epoch", SOON, || latest.command(&["status"]).said.contains(&topic).then_some(()));
    drop(process);
    produce(3);
    let process = latest.start(&[], &[]);
    wait_for("the record after the start", SOON, || (keys(&latest) == ["u3"]).then_some(()));
    drop(process);
    let all =
        Setup { source: "start = \"earliest\"\ngroup = \"readers\"", ..Setup::of(broker, &topic) }.case();
    let process = all.start(&[], &[]);
    wait_for("all records", SOON, || (keys(&all).len() == 4).then_some(()));
    let in_group = || kafka::committed(broker, "readers", &topic, 1) == [Some(4)];
    wait_for("the group to show it", SOON, || in_group().then_some(()));
    drop(process);
    produce(4);
    let committed =
        Setup { source: "start = \"committed\"\ngroup = \"readers\"", ..Setup::of(broker, &topic) }.case();
    let process = committed.start(&[], &[]);
    wait_for("what the group has not read", SOON, || (keys(&committed) == ["u4"]).then_some(()));
    drop(process);
    let nowhere =
        Setup { source: "start = \"committed\"\ngroup = \"nobody\"", ..Setup::of(broker, &topic) }.case();
    nowhere.start(&[], &[]).outcome(SOON).exits(4).says("`nobody` has committed no offset");
}
