//! Sessions to a topic: a reader who keeps the greatest revision of each has the model's, whatever is killed, refused or answered
//! too late, and no other sink waits for it.

use super::{SOON, TOPIC as CLICKS, clicks, configure_with, model_of, publish, publish_last};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tidemill_services::proxy::Proxy;
use tidemill_services::pubsub::{DENIED, Fault, PROJECT, PubSub, THROTTLED, UNAVAILABLE, pubsub};
use tidemill_tests::model::Row;
use tidemill_tests::{
    Case, Outcome, Process, RUN_MAX, Stored, current, latest, report, same_table, stored, wait_for,
};

const SESSIONS: &str = "sessions-out";
const LETTERS: &str = "letters-out";

/// The table of `configure`, and the two topics, reached at this address.
fn configure(case: &Case, source: &str, address: &str) {
    let sink = |name: &str, topic: &str| {
        format!(
            "[sink.{name}]\nkind = \"pubsub\"\nproject = \"{PROJECT}\"\ntopic = \"{topic}\"\ncredentials = \"none\"\n\
             endpoint = \"http://{address}\"\ntimeout = \"2s\"\n"
        )
    };
    let sinks = format!("{}{}", sink("topic", SESSIONS), sink("letters", LETTERS));
    configure_with(case, source, r#"to = ["sessions", "topic"]"#, &sinks);
    let path: PathBuf = case.path("pipeline.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("dead = \"dead\"", "dead = \"letters\"");
    // Which nobody writes to any more.
    let from = text.find("[sink.dead]").unwrap();
    let to = text.find("[sink.topic]").unwrap();
    std::fs::write(path, format!("{}{}", &text[..from], &text[to..])).unwrap();
}

/// A Pub/Sub with the clicks and the topics.
fn service() -> Option<PubSub> {
    let service = pubsub()?;
    service.subscription(CLICKS, super::SUBSCRIPTION, true);
    service.topic(SESSIONS);
    service.topic(LETTERS);
    Some(service)
}

/// What a reader has who tells copies by their event id; how many there were.
#[track_caller]
fn read(service: &PubSub) -> (Vec<Stored>, usize) {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut newest = BTreeMap::new();
    let mut copies = 0;
    let mut rows = Vec::new();
    for message in service.published(SESSIONS) {
        let row = stored(&message.data);
        assert_eq!(message.key, row.id, "the ordering key");
        let id = message.attributes["event_id"].clone();
        if let Some(first) = seen.insert(id.clone(), message.data.clone()) {
            assert_eq!(first, message.data, "another message of {id}");
            copies += 1;
            continue;
        }
        let before = newest.insert(row.id.clone(), row.revision);
        assert!(before.is_none_or(|b| b < row.revision), "{id} comes after {before:?}");
        rows.push(row);
    }
    (rows, copies)
}

/// Waits until so many of the model's sessions are certain in the topic, and stops then.
#[track_caller]
fn until_same(what: &str, rows: &[Row], service: &PubSub, case: &Case, mut process: Process) -> Outcome {
    wait_for("all sessions to be certain", RUN_MAX, || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        let table = if case.has_table() { case.table() } else { Vec::new() };
        let certain =
            |all: &[Stored]| all.iter().filter(|s| s.stage == "final" && s.row.key != super::LAST).count();
        (certain(&table) == rows.len() && certain(&latest(read(service).0)) == rows.len()).then_some(())
    });
    process.terminate();
    let outcome = process.outcome(SOON);
    outcome.exits(0);
    let but_last = |all: Vec<Stored>| -> Vec<Row> {
        current(&latest(all)).into_iter().filter(|r| r.key != super::LAST).collect()
    };
    same_table(&format!("{what}, the topic"), rows, &but_last(read(service).0));
    same_table(&format!("{what}, the table"), rows, &but_last(case.table()));
    outcome
}

#[test]
fn killed_again_and_again_readers_of_the_topic_have_the_models_sessions() {
    let Some(service) = service() else { return };
    let clicks = clicks(6_000);
    let rows = model_of(&clicks);
    let case = Case::new();
    configure(&case, service.address(), service.address());
    case.command(&["check"]).exits(0).says("topic p/sessions-out");
    let pieces = 6;
    for n in 0..pieces {
        publish(&service, &clicks[clicks.len() * n / pieces..clicks.len() * (n + 1) / pieces]);
        let target = service.published(SESSIONS).len() + [1, 40, 7][n % 3];
        let mut process = case.start(&[], &[]);
        wait_for("rows to kill after", SOON, || {
            assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
            (service.published(SESSIONS).len() >= target).then_some(())
        });
        process.kill();
    }
    service.publish(CLICKS, [("a", "no event".to_owned())]);
    let mut process = case.start(&[], &[]);
    super::acknowledged(&mut process, &service, clicks.len() as u64 + 1);
    publish_last(&service);
    let outcome = until_same("after kills", &rows, &service, &case, process);
    outcome.says("sink `topic` gets each row at least once");
    let letters = service.published(LETTERS);
    let ids: BTreeSet<&String> = letters.iter().map(|l| &l.attributes["event_id"]).collect();
    let raw = |l: &str| serde_json::from_str::<Value>(l).unwrap()["raw"].clone();
    assert!(!ids.is_empty() && letters.iter().all(|l| raw(&l.data) == "no event"), "{letters:?}");
    let (revisions, copies) = read(&service);
    report!(
        "Pub/Sub to Pub/Sub: {pieces} kills, {} revisions, {copies} of them published again",
        revisions.len()
    );
}

/// Down at the start, dies, throttles, denies, answers too late, is slow, is cut: every row is there, and the table has it at once.
#[test]
fn a_topic_that_fails_in_every_way_loses_nothing_and_holds_no_other_sink_up() {
    let Some(service) = service() else { return };
    let clicks = clicks(1_600);
    let rows = model_of(&clicks);
    let proxy = Proxy::to(service.address());
    let case = Case::new();
    configure(&case, service.address(), &proxy.address());
    proxy.refuse(true);
    let mut published = 0;
    let mut next = |n: usize| {
        publish(&service, &clicks[published..published + n]);
        published += n;
        published as u64
    };
    next(200);
    let mut process = case.start(&[], &[]);
    process.hears("sink `topic` is unavailable", 1, SOON);
    process.hears("Pub/Sub at", 1, SOON);
    proxy.refuse(false);
    process.hears("sink `topic` is back after", 1, SOON);
    super::acknowledged(&mut process, &service, 200);
    let events = || case.table().iter().map(|s| s.row.events).sum::<u64>();
    let refusal = |code| Fault { method: "Publish", code, ..Fault::default() };
    let faults = [
        ("Unavailable", refusal(UNAVAILABLE)),
        ("ResourceExhausted", refusal(THROTTLED)),
        ("roles/pubsub.publisher", refusal(DENIED)),
        ("no answer within 2s", Fault { method: "Publish", delay_ms: 2_500, late: true, ..Fault::default() }),
    ];
    for (n, (words, fault)) in faults.into_iter().enumerate() {
        let before = events();
        service.fault(&fault);
        let sent = next(200);
        process.hears(words, 1, SOON);
        // The table does not wait for it.
        super::acknowledged(&mut process, &service, sent);
        wait_for("the table to go on", SOON, || (events() > before).then_some(()));
        service.fault(&Fault::default());
        process.hears("sink `topic` is back after", n + 2, SOON);
    }
    service.fault(&Fault { method: "Publish", delay_ms: 100, ..Fault::default() });
    let sent = next(200);
    super::acknowledged(&mut process, &service, sent);
    service.fault(&Fault::default());
    let cut = proxy.cut();
    proxy.cut_after(Some(3_000));
    let sent = next(clicks.len() - sent as usize);
    wait_for("a cut", SOON, || (proxy.cut() > cut).then_some(()));
    proxy.cut_after(None);
    super::acknowledged(&mut process, &service, sent);
    publish_last(&service);
    until_same("failed in every way", &rows, &service, &case, process);
    assert!(read(&service).1 > 0, "some were published again");
}

/// Who may not publish, or names a topic that is not there, is told at the start what to do.
#[test]
fn a_topic_that_is_refused_at_the_start_ends_it() {
    let Some(service) = pubsub() else { return };
    service.subscription(CLICKS, super::SUBSCRIPTION, false);
    let case = Case::new();
    configure(&case, service.address(), service.address());
    for outcome in [case.command(&["check"]), case.start(&[], &[]).outcome(SOON)] {
        outcome.exits(4).says("topic p/").says("create it, or name another");
    }
    service.topic(SESSIONS);
    service.topic(LETTERS);
    service.fault(&Fault { method: "GetTopic", token: Some("secret".into()), ..Fault::default() });
    case.start(&[], &[]).outcome(SOON).exits(4).says("are the `credentials` right?");
    // Only the first row shows who may look and not publish, or neither.
    service.fault(&Fault { method: "GetTopic", code: DENIED, ..Fault::default() });
    publish(&service, &clicks(400));
    let mut process = case.start(&[], &[]);
    wait_for("rows", Duration::from_secs(60), || {
        assert!(!process.ended(), "it has ended:\n{}", process.said_so_far());
        (!service.published(SESSIONS).is_empty()).then_some(())
    });
}
