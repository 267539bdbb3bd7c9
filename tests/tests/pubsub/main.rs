//! Messages of Pub/Sub: what was acknowledged is in the table, whatever is killed and whatever lies between. `docs/pubsub.md` has a
//! table of what may fail and which test is about it; one by one the failures are tested beside the source, here is the whole.
//!
//! The bug family: an acknowledgement before the record is durable; a message that comes again and counts twice; a service that is
//! away and taken for silence of the visitors; a row that was published and is not told apart when it is published again.
//!
//! `sink` has what is published, `emulator` asks Google's own where the Cloud SDK is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod emulator;
mod sink;

use std::collections::BTreeSet;
use std::time::Duration;
use tidemill_services::proxy::Proxy;
use tidemill_services::pubsub::{DENIED, Fault, PROJECT, PubSub, THROTTLED, UNAVAILABLE, pubsub};
use tidemill_tests::model::{self, Format, Gap, Row, Source, Unit};
use tidemill_tests::traffic::{START_MS, Shop, Timed, delayed, file_of};
use tidemill_tests::{Case, Outcome, Process, RUN_MAX, current, latest, report, same_table, wait_for};

const TOPIC: &str = "clicks";
const SUBSCRIPTION: &str = "clicks-sub";
/// Long enough for whatever has to happen: a message whose reader was killed comes again when its lease has run out.
const SOON: Duration = Duration::from_secs(150);
/// Whose event ends the others' sessions: long after all of them.
const LAST: &str = "last";
/// More than all traffic: what comes again after a lease is never late.
const DISORDER_MS: i64 = 3_600_000;

/// The subscription's clicks, to a table.
fn configure(case: &Case, address: &str) {
    configure_with(case, address, r#"to = ["sessions"]"#, "");
}

/// To more than that: `to` is the line of the pipeline, `sinks` what it names besides.
fn configure_with(case: &Case, address: &str, to: &str, sinks: &str) {
    let at = |name: &str| case.path(name).display().to_string();
    let text = format!(
        r#"[server]
data_dir = "{state}"
epoch = "20ms"
[source.web]
kind = "pubsub"
project = "{PROJECT}"
subscription = "{SUBSCRIPTION}"
endpoint = "http://{address}"
credentials = "none"
timeout = "2s"
lease = "10s"
outstanding_messages = 100
key = "user"
time = {{ field = "ts", unit = "ms" }}
id = "id"
disorder = "{DISORDER_MS}ms"
idle = "1h"
[pipeline.visits]
from = ["web"]
session = {{ plugin = "builtin:gap", config = {{ gap = "60s", boundary = "exclusive" }} }}
{to}
dead = "dead"
[sink.sessions]
kind = "sqlite"
path = "{db}"
[sink.dead]
kind = "file"
path = "{dead}"
{sinks}"#,
        state = at("state"),
        db = at("sessions.db"),
        dead = at("dead.jsonl"),
    );
    case.put("pipeline.toml", text.as_bytes());
}

fn clicks(events: u64) -> Vec<Timed> {
    let shop = Shop { seed: 41, events, users: 20 + events / 50, step_ms: 20, invalid_every: 0 };
    delayed(&shop.lines(), 42, 10_000, true)
}

fn model_of(clicks: &[Timed]) -> Vec<Row> {
    let source = Source::file("web", "", Format::Json, "user", "ts", Unit::Millis);
    let source = Source { id: Some("id".into()), disorder_ms: DISORDER_MS, ..source };
    let gap = Gap::of_seconds(60, false);
    model::sessions(&model::read(&[(&source, "", &file_of(clicks))], &gap), &BTreeSet::new(), &gap)
}

fn publish(service: &PubSub, clicks: &[Timed]) {
    // Some keys, so that order is kept within each and not between them.
    service.publish(TOPIC, clicks.iter().enumerate().map(|(n, c)| (["a", "b", "c"][n % 3], c.line.clone())));
}

/// All that was published is acknowledged: then comes what ends all sessions.
fn publish_last(service: &PubSub) {
    let month_ms = 30 * 24 * 3_600_000;
    let last = format!(r#"{{"id":"{LAST}","user":"{LAST}","ts":{}}}"#, START_MS + month_ms);
    service.publish(TOPIC, [("a", last)]);
}

#[track_caller]
fn acknowledged(process: &mut Process, service: &PubSub, at_least: u64) {
    wait_for("acknowledgements", SOON, || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        (service.counts().acked >= at_least).then_some(())
    });
}

/// Waits until the model's sessions are certain, and stops then.
#[track_caller]
fn until_same(what: &str, rows: &[Row], case: &Case, mut process: Process) -> Outcome {
    let certain = "SELECT count(*) FROM sessions WHERE stage = 'final' AND key <> 'last'";
    wait_for("all sessions to be certain", RUN_MAX, || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        let found =
            case.has_table().then(|| case.database().query_row(certain, [], |r| r.get::<_, i64>(0)).unwrap());
        (found == Some(rows.len() as i64)).then_some(())
    });
    process.terminate();
    let outcome = process.outcome(SOON);
    outcome.exits(0);
    let found: Vec<Row> = current(&latest(case.table())).into_iter().filter(|r| r.key != LAST).collect();
    same_table(what, rows, &found);
    outcome
}

#[test]
fn killed_again_and_again_what_is_pulled_is_the_models() {
    let Some(service) = pubsub() else { return };
    // Exactly once changes which copies come, and nothing of what is counted.
    service.subscription(TOPIC, SUBSCRIPTION, true);
    let clicks = clicks(6_000);
    let rows = model_of(&clicks);
    let case = Case::new();
    configure(&case, service.address());
    case.command(&["check"]).exits(0).says(service.address()).says("p/clicks-sub");
    let pieces = 5;
    let mut copies = 0;
    for n in 0..pieces {
        publish(&service, &clicks[clicks.len() * n / pieces..clicks.len() * (n + 1) / pieces]);
        let before = service.counts().acked;
        let mut process = case.start(&[], &[]);
        acknowledged(&mut process, &service, before + 1 + 300 * (n as u64 % 3));
        process.kill();
        copies = service.counts().delivered - service.counts().acked;
    }
    // What is no event is told, and acknowledged: it would come for ever.
    service.publish(TOPIC, [("a", "no event".to_owned())]);
    let mut process = case.start(&[], &[]);
    acknowledged(&mut process, &service, clicks.len() as u64 + 1);
    publish_last(&service);
    let outcome = until_same("after kills", &rows, &case, process);
    assert!(!outcome.said.contains("unavailable"), "{}", outcome.said);
    let letters = case.letters();
    assert!(!letters.is_empty() && letters.iter().all(|l| l["raw"] == "no event"), "{letters:?}");
    report!("Pub/Sub: {pieces} kills, {} sessions, {copies} messages were held at the last", rows.len());
}

/// Down at the start, dies, throttles, denies, is slow, answers late, is cut: nothing is lost, nothing doubled, each absence said.
#[test]
fn a_service_that_fails_in_every_way_loses_nothing() {
    let Some(service) = pubsub() else { return };
    service.subscription(TOPIC, SUBSCRIPTION, false);
    let clicks = clicks(1_600);
    let rows = model_of(&clicks);
    let proxy = Proxy::to(service.address());
    let case = Case::new();
    configure(&case, &proxy.address());
    proxy.refuse(true);
    publish(&service, &clicks[..200]);
    let mut process = case.start(&[], &[]);
    process.hears("source `web` is unavailable", 1, SOON);
    process.hears("Pub/Sub at", 1, SOON);
    proxy.refuse(false);
    process.hears("is back after", 1, SOON);
    acknowledged(&mut process, &service, 200);
    let refusal = |method, code| Fault { method, code, times: 2, ..Fault::default() };
    let faults = [
        ("Unavailable", refusal("Acknowledge", UNAVAILABLE)),
        ("ResourceExhausted", refusal("Acknowledge", THROTTLED)),
        ("PermissionDenied", refusal("Acknowledge", DENIED)),
        // Acknowledged, and the answer comes when nobody waits any more.
        ("no answer within 2s", Fault { method: "Acknowledge", delay_ms: 2_500, ..Fault::default() }),
    ];
    let mut published = 200;
    for (n, (words, fault)) in faults.into_iter().enumerate() {
        service.fault(&fault);
        publish(&service, &clicks[published..published + 200]);
        published += 200;
        process.hears(words, 1, SOON);
        service.fault(&Fault::default());
        process.hears("is back after", n + 2, SOON);
        acknowledged(&mut process, &service, published as u64);
    }
    // Slow, and then cut in the middle of what it sends.
    proxy.delay(50);
    publish(&service, &clicks[published..published + 200]);
    acknowledged(&mut process, &service, published as u64 + 200);
    proxy.delay(0);
    let cut = proxy.cut();
    proxy.cut_after(Some(2_000));
    publish(&service, &clicks[published + 200..]);
    wait_for("a cut", SOON, || (proxy.cut() > cut).then_some(()));
    proxy.cut_after(None);
    acknowledged(&mut process, &service, clicks.len() as u64);
    publish_last(&service);
    until_same("failed in every way", &rows, &case, process);
    assert_eq!(case.letters().len(), 0);
}

/// Who is not let in, or asks for what is not there, is told at the start what to do.
#[test]
fn a_refusal_at_the_start_ends_it() {
    let Some(service) = pubsub() else { return };
    let case = Case::new();
    configure(&case, service.address());
    case.run().exits(4).says("create it, or name another");
    service.subscription(TOPIC, SUBSCRIPTION, false);
    service.fault(&Fault { token: Some("secret".into()), ..Fault::default() });
    case.run().exits(4).says("are the `credentials` right?");
    service.fault(&Fault { code: DENIED, ..Fault::default() });
    case.run().exits(4).says("roles/pubsub.subscriber");
}
