//! The sink: each revision once for a reader of committed records, whatever happens on the way.

use crate::world::{Admin, PATIENCE, Seen, Transaction, cluster, end, read_committed, shared};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tidemill_connect::sink::kafka::{KafkaSink, KafkaTarget};
use tidemill_connect::sink::{Sink as _, TakenBack};
use tidemill_connect::{ConnectError, Cursor};
use tidemill_engine::outbox::{Outbox, SessionRow, Stage, Stages};
use tidemill_engine::time::EventTime;
use tidemill_services::kafka::{Broker, broker};

/// The number of the request that ends a transaction.
const END_TRANSACTION: u16 = 26;

/// Rows of an epoch, as an epoch record has them: sessions `n`, `n + 1`, …
fn rows(n: u8, count: u8, fields: &str) -> Vec<u8> {
    let mut rows = Vec::new();
    for i in n..n + count {
        let row = SessionRow {
            id: [i; 16],
            key: &format!("visitor {i}"),
            start: EventTime::from_ms(1000),
            end: EventTime::from_ms(2000),
            events: 3,
            stage: Stage::Final,
            reason: Some("gap"),
            plugin: "builtin:gap@1",
            fields,
        };
        row.encode(&mut rows);
    }
    rows
}

fn sink_at(brokers: String, topic: &str) -> KafkaSink {
    KafkaSink::sessions(KafkaTarget::new(cluster(brokers), topic), "visits".into(), "out".into(), Stages::ALL)
}

fn sink(broker: &Broker, topic: &str) -> KafkaSink {
    sink_at(broker.plain(), topic)
}

fn deliver(sink: &mut KafkaSink, incarnation: u64, epoch: u64, rows: &[u8]) -> Result<Cursor, ConnectError> {
    sink.deliver(&Outbox::new(incarnation, epoch, rows, b""))
}

/// Delivers until it works, as the host does with a service that is not there.
fn deliver_in_the_end(sink: &mut KafkaSink, incarnation: u64, epoch: u64, rows: &[u8]) -> Cursor {
    in_the_end(|| deliver(sink, incarnation, epoch, rows))
}

fn in_the_end<T>(mut call: impl FnMut() -> Result<T, ConnectError>) -> T {
    let begun = Instant::now();
    loop {
        match call() {
            Ok(done) => return done,
            Err(ConnectError::Unavailable(why)) => {
                assert!(begun.elapsed() < Duration::from_secs(300), "it stays so: {why}");
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Of each message the session's first byte and the revision.
fn revisions(seen: &[Seen]) -> Vec<(String, String)> {
    seen.iter().map(|s| (s.key.clone().unwrap()[..2].to_owned(), s.headers[0].1.clone())).collect()
}

fn of(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn rows_arrive_once_with_key_json_and_revision() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("rows"), 1, &[]);
    let mut sink = sink(broker, &topic);
    assert_eq!(sink.witness().unwrap(), None);
    assert_eq!(sink.open(7, None).unwrap(), Some(Cursor { epoch: 0, length: 0 }));
    let rows = rows(1, 2, "{\"paid\":true}");
    let cursor = deliver(&mut sink, 7, 3, &rows).unwrap();
    assert_eq!(cursor, Cursor { epoch: 3, length: 3 });
    assert_eq!(deliver(&mut sink, 7, 3, &rows).unwrap(), cursor, "offered again");
    assert_eq!(sink.witness().unwrap(), Some(3));

    let seen = read_committed(broker, &topic);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].key.as_deref(), Some("01".repeat(16).as_str()));
    let header = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    assert_eq!(seen[0].headers, [header("revision", "7/3"), header("stage", "final")]);
    let value: Value = serde_json::from_str(&seen[0].value).unwrap();
    assert_eq!(
        value,
        json!({
            "session_id": "01".repeat(16), "pipeline": "visits", "key": "visitor 1", "start_ms": 1000, "end_ms": 2000,
            "events": 3, "stage": "final", "incarnation": 7, "epoch": 3, "reason": "gap", "plugin": "builtin:gap@1",
            "fields": { "paid": true },
        })
    );
    assert!(!seen[0].value.ends_with('\n'));
}

#[test]
fn an_epoch_without_rows_writes_nothing() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("empty"), 1, &[]);
    let target = KafkaTarget::new(cluster(broker.plain()), &topic);
    let early = Stages::of(&[Stage::Early]);
    let mut sink = KafkaSink::sessions(target, "visits".into(), "out".into(), early);
    sink.open(1, None).unwrap();
    // Not even the mark of a transaction: claiming touches the group alone.
    assert_eq!(deliver(&mut sink, 1, 1, &rows(1, 2, "{}")).unwrap(), Cursor { epoch: 1, length: 0 });
    assert_eq!(end(broker, &topic), 0);
    assert_eq!(sink.witness().unwrap(), Some(0));
}

#[test]
fn what_was_sent_and_not_committed_is_sent_again_and_seen_once() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("killed"), 1, &[]);
    let mut first = sink(broker, &topic);
    first.open(1, None).unwrap();
    deliver(&mut first, 1, 1, &rows(1, 1, "{}")).unwrap();
    drop(first);
    // A process that is killed between its rows and its commit: the broker has the rows, nobody ends the transaction.
    let killed = Transaction::begin(broker, &format!("tidemill-visits.out.{topic}"));
    killed.send(&topic, &["half an epoch"]);
    drop(killed);

    let mut second = sink(broker, &topic);
    let cursor = second.open(2, Some(Cursor { epoch: 1, length: 1 })).unwrap();
    assert_eq!(cursor, Some(Cursor { epoch: 1, length: 1 }));
    deliver(&mut second, 1, 2, &rows(2, 2, "{}")).unwrap();
    let seen = read_committed(broker, &topic);
    assert_eq!(revisions(&seen), of(&[("01", "1/1"), ("02", "1/2"), ("03", "1/2")]));
    assert_eq!(end(broker, &topic), 7, "rows, what was given up, and three marks of ends");
}

#[test]
fn what_was_committed_and_never_confirmed_is_known_at_the_next_start() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("recovered"), 1, &[]);
    let mut first = sink(broker, &topic);
    first.open(1, None).unwrap();
    deliver(&mut first, 1, 5, &rows(1, 1, "{}")).unwrap();
    drop(first);
    // The store never heard of epoch 5.
    let mut second = sink(broker, &topic);
    let found = second.open(2, Some(Cursor { epoch: 4, length: 0 })).unwrap();
    assert_eq!(found, Some(Cursor { epoch: 5, length: 5 }));
    deliver(&mut second, 1, 5, &rows(1, 1, "{}")).unwrap();
    assert_eq!(revisions(&read_committed(broker, &topic)), of(&[("01", "1/5")]));
}

#[test]
fn a_run_that_was_taken_over_writes_nothing_more_and_names_who_did() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("zombie"), 1, &[]);
    let mut old = sink(broker, &topic);
    old.open(1, None).unwrap();
    deliver(&mut old, 1, 1, &rows(1, 1, "{}")).unwrap();
    let mut new = sink(broker, &topic);
    new.open(2, Some(Cursor { epoch: 1, length: 1 })).unwrap();
    for _ in 0..2 {
        let fenced = deliver(&mut old, 1, 2, &rows(2, 1, "{}")).unwrap_err();
        assert!(matches!(fenced, ConnectError::Conflict(_)), "{fenced}");
        let told = fenced.to_string();
        assert!(
            told.contains("incarnation 2") && told.contains(&topic) && told.contains(&broker.plain()),
            "{told}"
        );
    }
    // One that starts with a lower incarnation is refused before it takes the topic away from anybody.
    let lower = sink(broker, &topic).open(1, Some(Cursor { epoch: 1, length: 1 })).unwrap_err();
    assert!(
        matches!(lower, ConnectError::Conflict(_)) && lower.to_string().contains("incarnation 2"),
        "{lower}"
    );
    deliver(&mut new, 1, 2, &rows(2, 1, "{}")).unwrap();
    assert_eq!(revisions(&read_committed(broker, &topic)), of(&[("01", "1/1"), ("02", "1/2")]));
}

#[test]
fn a_commit_whose_answer_is_lost_is_found_out_before_anything_is_sent_again() {
    let Some(broker) = broker() else { return };
    let topic = Admin::of(&broker).topic("sessions".into(), 1, &[]);
    let proxy = broker.proxy();
    let mut sink = sink_at(broker.behind_proxy(), &topic);
    sink.open(1, None).unwrap();
    deliver(&mut sink, 1, 1, &rows(1, 1, "{}")).unwrap();

    // The broker commits, and the answer comes after the time-out.
    proxy.keep_answers_from(END_TRANSACTION);
    let begun = Instant::now();
    let unknown = deliver(&mut sink, 1, 2, &rows(2, 1, "{}")).unwrap_err();
    assert!(begun.elapsed() < 5 * PATIENCE, "{:?}", begun.elapsed());
    assert!(matches!(unknown, ConnectError::Unavailable(_)), "{unknown}");
    assert!(unknown.to_string().contains(&broker.behind_proxy()), "{unknown}");
    let still = deliver(&mut sink, 1, 2, &rows(2, 1, "{}")).unwrap_err();
    assert!(matches!(still, ConnectError::Unavailable(_)), "{still}");
    proxy.keep_answers(false);
    assert_eq!(deliver_in_the_end(&mut sink, 1, 2, &rows(2, 1, "{}")), Cursor { epoch: 2, length: 2 });
    let before = end(&broker, &topic);

    // The broker never hears of the commit.
    proxy.vanish_at(END_TRANSACTION);
    let lost = deliver(&mut sink, 1, 3, &rows(3, 1, "{}")).unwrap_err();
    assert!(matches!(lost, ConnectError::Unavailable(_)), "{lost}");
    proxy.refuse(false);
    assert_eq!(deliver_in_the_end(&mut sink, 1, 3, &rows(3, 1, "{}")), Cursor { epoch: 3, length: 3 });

    let seen = read_committed(&broker, &topic);
    assert_eq!(revisions(&seen), of(&[("01", "1/1"), ("02", "1/2"), ("03", "1/3")]));
    assert_eq!(before, 4, "epoch 2 was not sent again");
    assert!(end(&broker, &topic) > before + 2, "epoch 3 was");
}

#[test]
fn a_broker_that_dies_in_the_middle_gets_each_revision_once() {
    let Some(broker) = broker() else { return };
    let topic = Admin::of(&broker).topic("sessions".into(), 1, &[]);
    let mut sink = sink(&broker, &topic);
    in_the_end(|| sink.open(1, None));
    deliver_in_the_end(&mut sink, 1, 1, &rows(1, 1, "{}"));
    // A broker by itself that dies between the decision to commit and its marks may not finish that when it is back.
    assert_eq!(in_the_end(|| sink.witness()), Some(1));
    broker.stop();
    let begun = Instant::now();
    let down = deliver(&mut sink, 1, 2, &rows(2, 1, "{}")).unwrap_err();
    // Some answers are waited for, each as long as that; not one of them without an end.
    assert!(begun.elapsed() < 15 * PATIENCE, "{:?}", begun.elapsed());
    assert!(
        matches!(down, ConnectError::Unavailable(_)) && down.to_string().contains(&broker.plain()),
        "{down}"
    );
    broker.start_again().unwrap();
    deliver_in_the_end(&mut sink, 1, 2, &rows(2, 1, "{}"));
    // It answers, and is still busy with its start: it may take longer than the patience.
    deliver_in_the_end(&mut sink, 1, 3, &rows(3, 1, "{}"));
    let seen = read_committed(&broker, &topic);
    assert_eq!(revisions(&seen), of(&[("01", "1/1"), ("02", "1/2"), ("03", "1/3")]));
}

#[test]
fn a_sink_that_is_throttled_sends_each_revision_once() {
    let Some(broker) = broker() else { return };
    let topic = Admin::of(&broker).topic("sessions".into(), 1, &[]);
    let mut sink = sink(&broker, &topic);
    sink.open(1, None).unwrap();
    broker.throttle("tidemill", 50_000).unwrap();
    // Digits that do not compress away.
    let digits: String =
        (0..12_000_u64).map(|i| format!("{:x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let fields = format!("{{\"digits\":\"{digits}\"}}");
    let begun = Instant::now();
    for epoch in 1..=8 {
        deliver_in_the_end(&mut sink, 1, epoch, &rows(epoch as u8, 1, &fields));
    }
    assert!(begun.elapsed() > Duration::from_secs(6), "{:?}: the broker did not throttle", begun.elapsed());
    let seen = read_committed(&broker, &topic);
    let expected: Vec<(String, String)> = (1..=8).map(|e| (format!("{e:02}"), format!("1/{e}"))).collect();
    assert_eq!(revisions(&seen), expected);
}

#[test]
fn a_cluster_that_is_down_at_the_start_is_named_within_the_patience() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut sink = sink_at(nobody.clone(), "sessions");
    let begun = Instant::now();
    for e in [sink.open(1, None).unwrap_err(), sink.witness().unwrap_err(), sink.probe(None).unwrap_err()] {
        assert!(matches!(e, ConnectError::Unavailable(_)), "{e}");
        assert!(e.to_string().contains(&nobody) && e.to_string().contains("refused"), "{e}");
    }
    assert!(begun.elapsed() < 6 * PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn a_topic_that_is_not_there_is_not_made() {
    let Some(broker) = shared() else { return };
    let e = sink(broker, "nowhere").open(1, None).unwrap_err();
    assert!(matches!(e, ConnectError::Config(_)) && e.to_string().contains("`nowhere`"), "{e}");
}

#[test]
fn a_row_that_is_too_large_stops_the_sink_and_is_sent_once_it_may_be() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("large"), 1, &[]);
    let small = KafkaTarget { message_bytes_max: 2_000, ..KafkaTarget::new(cluster(broker.plain()), &topic) };
    let mut sink = KafkaSink::sessions(small, "visits".into(), "out".into(), Stages::ALL);
    sink.open(1, None).unwrap();
    let fields = format!("{{\"path\":\"{}\"}}", "x".repeat(2_000));
    let mixed = [rows(1, 1, "{}"), rows(2, 1, &fields)].concat();
    let e = deliver(&mut sink, 1, 1, &mixed).unwrap_err();
    assert!(matches!(e, ConnectError::Config(_)), "{e}");
    let told = e.to_string();
    assert!(told.contains(&"02".repeat(16)) && told.contains("message_bytes_max"), "{told}");
    assert_eq!(read_committed(broker, &topic), []);

    let mut larger = self::sink(broker, &topic);
    larger.open(2, Some(Cursor::default())).unwrap();
    deliver(&mut larger, 1, 1, &mixed).unwrap();
    assert_eq!(revisions(&read_committed(broker, &topic)), of(&[("01", "1/1"), ("02", "1/1")]));
}

#[test]
fn a_topic_that_takes_less_than_the_sink_sends_says_so() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("narrow"), 1, &[("max.message.bytes", "1000")]);
    let mut sink = sink(broker, &topic);
    sink.open(1, None).unwrap();
    let fields: String = (0..2_000).map(|i| format!("{i:x}")).collect();
    let e = deliver(&mut sink, 1, 1, &rows(1, 1, &format!("{{\"f\":\"{fields}\"}}"))).unwrap_err();
    assert!(matches!(e, ConnectError::Config(_)) && e.to_string().contains(&topic), "{e}");
    assert_eq!(read_committed(broker, &topic), []);
}

#[test]
fn letters_arrive_as_they_are_or_with_less_of_their_record() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("letters"), 1, &[]);
    let target =
        KafkaTarget { message_bytes_max: 2_000, ..KafkaTarget::new(cluster(broker.plain()), &topic) };
    let mut sink = KafkaSink::letters(target, "visits".into(), "dead".into());
    sink.open(1, None).unwrap();
    let small = json!({ "kind": "record", "reason": "late", "raw": "a" }).to_string();
    let large = json!({ "kind": "record", "reason": "late", "raw": "b".repeat(5_000) }).to_string();
    let letters = format!("{small}\n{large}\n");
    let cursor = sink.deliver(&Outbox::new(1, 4, b"", letters.as_bytes())).unwrap();
    assert_eq!(cursor, Cursor { epoch: 4, length: 4 });
    let seen = read_committed(broker, &topic);
    assert_eq!(seen.len(), 2);
    assert_eq!((&seen[0].value, &seen[0].key), (&small, &None));
    assert_eq!(seen[0].headers, [("revision".to_owned(), "1/4".to_owned())]);
    let cut: Value = serde_json::from_str(&seen[1].value).unwrap();
    assert_eq!(cut["raw_bytes"], 5_000);
    assert!(cut["raw"].as_str().unwrap().len() > 1_000);
}

#[test]
fn a_mark_that_is_gone_or_behind_is_not_passed_over() {
    let Some(broker) = shared() else { return };
    let admin = Admin::of(broker);
    let topic = admin.topic(broker.name("marks"), 1, &[]);
    let mut sink = sink(broker, &topic);
    sink.open(1, None).unwrap();
    deliver(&mut sink, 1, 3, &rows(1, 1, "{}")).unwrap();
    let behind = sink.probe(Some(Cursor { epoch: 9, length: 9 })).unwrap_err();
    assert!(
        matches!(behind, ConnectError::Conflict(_)) && behind.to_string().contains("--resend out"),
        "{behind}"
    );
    sink.probe(Some(Cursor { epoch: 9, length: 3 })).unwrap();
    drop(sink);

    admin.delete_group(&format!("tidemill-visits.out.{topic}"));
    let known = Some(Cursor { epoch: 3, length: 3 });
    let mut sink = self::sink(broker, &topic);
    let lost = sink.probe(known).unwrap_err();
    assert!(matches!(lost, ConnectError::Conflict(_)) && lost.to_string().contains("--resend out"), "{lost}");
    assert_eq!(sink.open(2, known).unwrap(), None);
    // As `--resend` opens it.
    assert_eq!(sink.open(2, Some(Cursor::default())).unwrap(), Some(Cursor::default()));
}

#[test]
fn going_back_takes_the_mark_back_and_leaves_the_rows() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("back"), 1, &[]);
    let mut old = sink(broker, &topic);
    old.open(1, None).unwrap();
    deliver(&mut old, 1, 3, &rows(1, 1, "{}")).unwrap();
    deliver(&mut old, 1, 5, &rows(2, 1, "{}")).unwrap();
    let at_cut = Some(Cursor { epoch: 3, length: 3 });
    assert_eq!(old.take_back(2, 3, at_cut).unwrap(), TakenBack::Stays);
    assert_eq!(old.witness().unwrap(), Some(3));

    let mut new = sink(broker, &topic);
    assert_eq!(new.open(3, at_cut).unwrap(), at_cut);
    deliver(&mut new, 3, 4, &rows(3, 1, "{}")).unwrap();
    let seen = read_committed(broker, &topic);
    assert_eq!(revisions(&seen), of(&[("01", "1/3"), ("02", "1/5"), ("03", "3/4")]));
}

#[test]
fn starting_over_is_refused_where_rows_would_stay() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("fresh"), 1, &[]);
    let mut sink = sink(broker, &topic);
    sink.open(1, Some(Cursor::default())).unwrap();
    sink.delete_all().unwrap();
    deliver(&mut sink, 1, 1, &rows(1, 1, "{}")).unwrap();
    let e = sink.delete_all().unwrap_err();
    assert!(matches!(e, ConnectError::Config(_)) && e.to_string().contains(&topic), "{e}");
}
