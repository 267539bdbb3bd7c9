//! A sink that publishes: what was confirmed is there, what was not is there too, and each session's revisions come in their order.

use super::project;
use std::collections::{BTreeMap, BTreeSet};
use tidemill_connect::sink::pubsub::{PubSubSink, Topic};
use tidemill_connect::sink::{Sink, TakenBack};
use tidemill_connect::{ConnectError, Cursor};
use tidemill_engine::outbox::{Outbox, SessionRow, Stage, Stages};
use tidemill_engine::time::EventTime;
use tidemill_services::proxy::Proxy;
use tidemill_services::pubsub::{DENIED, Fault, PubSub, THROTTLED, UNAVAILABLE, pubsub};

const TOPIC: &str = "sessions";

fn topic(address: &str, ordered: bool) -> Topic {
    Topic { project: project(address), name: TOPIC.to_owned(), ordered }
}

fn sink(address: &str) -> PubSubSink {
    PubSubSink::sessions(topic(address, true), "visits".to_owned(), Stages::ALL)
}

fn row(id: u8, fields: &str) -> SessionRow<'_> {
    SessionRow {
        id: [id; 16],
        key: "k",
        start: EventTime::from_ms(0),
        end: EventTime::from_ms(1),
        events: 1,
        stage: Stage::Final,
        reason: None,
        plugin: "p@1",
        fields,
    }
}

/// Rows of these sessions.
fn rows(ids: std::ops::Range<u8>) -> Vec<u8> {
    let mut rows = Vec::new();
    ids.for_each(|id| row(id, "{}").encode(&mut rows));
    rows
}

fn deliver(sink: &mut PubSubSink, epoch: u64, rows: &[u8]) -> Result<Cursor, ConnectError> {
    sink.deliver(&Outbox::new(1, epoch, rows, b""))
}

/// Until it works; what was said before.
#[track_caller]
fn patiently(sink: &mut PubSubSink, epoch: u64, rows: &[u8]) -> Vec<String> {
    let mut said = Vec::new();
    for _ in 0..20 {
        match deliver(sink, epoch, rows) {
            Ok(cursor) => {
                assert_eq!(cursor.epoch, epoch);
                return said;
            }
            Err(ConnectError::Unavailable(why)) => said.push(why),
            Err(e) => panic!("it does not wait: {e:?}"),
        }
    }
    panic!("it waits for ever: {said:?}")
}

/// How often each revision is there; each session's come in their order under its id.
fn seen(service: &PubSub) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut newest = BTreeMap::new();
    for message in service.published(TOPIC) {
        let data: serde_json::Value = serde_json::from_str(&message.data).unwrap();
        let session = data["session_id"].as_str().unwrap().to_owned();
        let event = format!("{session}/{}/{}", data["incarnation"], data["epoch"]);
        assert_eq!((&message.key, &message.attributes["event_id"]), (&session, &event));
        let epoch = data["epoch"].as_u64().unwrap();
        let before = newest.insert(session, epoch).unwrap_or(0);
        assert!(before <= epoch, "{event} comes after epoch {before}");
        *counts.entry(event).or_default() += 1;
    }
    counts
}

#[test]
fn each_revision_is_a_message_with_its_id_in_the_order_of_its_session() {
    let Some(service) = pubsub() else { return };
    service.topic(TOPIC);
    let mut sink = sink(service.address());
    assert_eq!(sink.open(1, None).unwrap(), None);
    for epoch in 1..=4 {
        assert_eq!(deliver(&mut sink, epoch, &rows(0..100)).unwrap(), Cursor { epoch, length: epoch });
        // Offered again, as after a crash between delivery and cursor.
        deliver(&mut sink, epoch, &rows(0..100)).unwrap();
    }
    assert_eq!(deliver(&mut sink, 5, b"").unwrap(), Cursor { epoch: 5, length: 4 });
    let seen = seen(&service);
    assert_eq!(seen.len(), 400);
    assert!(seen.values().all(|n| *n == 1), "nothing failed, so nothing is there twice");
    // A run that knows less sends again, under the same ids.
    sink.open(1, Some(Cursor { epoch: 3, length: 3 })).unwrap();
    deliver(&mut sink, 4, &rows(0..100)).unwrap();
    assert_eq!(service.published(TOPIC).len(), 500);
    let ids: BTreeSet<String> =
        service.published(TOPIC).iter().map(|m| m.attributes["event_id"].clone()).collect();
    assert_eq!(ids.len(), 400);
}

#[test]
fn without_order_many_go_together_and_letters_have_ids_of_their_own() {
    let Some(service) = pubsub() else { return };
    service.topic(TOPIC);
    let mut sink = PubSubSink::sessions(topic(service.address(), false), "visits".to_owned(), Stages::ALL);
    sink.open(1, None).unwrap();
    let many: Vec<u8> = (0..30).flat_map(|_| rows(0..100)).collect();
    deliver(&mut sink, 1, &many).unwrap();
    assert_eq!(service.published(TOPIC).len(), 3_000);
    assert!(service.published(TOPIC).iter().all(|m| m.key.is_empty()));
    let mut letters = PubSubSink::letters(topic(service.address(), true), "visits".to_owned());
    letters.open(1, None).unwrap();
    letters.deliver(&Outbox::new(1, 2, b"", b"{\"reason\":\"late\"}\n{\"reason\":\"late\"}\n")).unwrap();
    let published = service.published(TOPIC).split_off(3_000);
    let shown: Vec<_> = published.iter().map(|m| (m.data.as_str(), &*m.attributes["event_id"])).collect();
    assert_eq!(shown, [("{\"reason\":\"late\"}", "visits/1/2/0"), ("{\"reason\":\"late\"}", "visits/1/2/1")]);
    assert!(published.iter().all(|m| m.key.is_empty()), "letters have no order");
}

#[test]
fn a_topic_that_is_refused_or_not_there_is_named_and_later_waited_for() {
    let Some(service) = pubsub() else { return };
    let mut sink = sink(service.address());
    let config = |done: Result<Option<Cursor>, ConnectError>| match done {
        Err(ConnectError::Config(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(config(sink.open(1, None)).contains("create it, or name another"));
    assert!(matches!(sink.probe(None), Err(ConnectError::Config(_))));
    service.topic(TOPIC);
    sink.probe(None).unwrap();
    service.fault(&Fault { token: Some("secret".to_owned()), ..Fault::default() });
    let why = config(sink.open(1, None));
    assert!(why.contains("are the `credentials` right?") && !why.contains("secret"), "{why}");
    // Who may publish need not be allowed to look.
    service.fault(&Fault { method: "GetTopic", code: DENIED, ..Fault::default() });
    sink.open(1, None).unwrap();
    service.fault(&Fault { code: DENIED, ..Fault::default() });
    match deliver(&mut sink, 1, &rows(0..1)) {
        Err(ConnectError::Config(why)) => {
            assert!(why.contains("grant `roles/pubsub.publisher` on the topic"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    service.fault(&Fault::default());
    deliver(&mut sink, 1, &rows(0..1)).unwrap();
    // It has let in: what is refused now may be granted again.
    service.fault(&Fault { method: "Publish", code: DENIED, times: 2, ..Fault::default() });
    let said = patiently(&mut sink, 2, &rows(0..1));
    assert!(said.len() == 2 && said[0].contains("roles/pubsub.publisher"), "{said:?}");
    assert_eq!(sink.take_back(2, 1, None).unwrap(), TakenBack::Stays);
    let kept = sink.delete_all();
    assert!(matches!(&kept, Err(ConnectError::Config(m)) if m.contains("another topic")), "{kept:?}");
    assert!(sink.at_least_once() && sink.witness().unwrap().is_none());
}

#[test]
fn a_service_that_is_away_throttles_or_answers_too_late_gets_every_revision() {
    let Some(service) = pubsub() else { return };
    service.topic(TOPIC);
    let proxy = Proxy::to(service.address());
    let mut sink = sink(&proxy.address());
    proxy.refuse(true);
    let down = sink.open(1, None);
    assert!(
        matches!(&down, Err(ConnectError::Unavailable(why)) if why.starts_with("Pub/Sub at") && why.contains("topic p/sessions")),
        "{down:?}"
    );
    proxy.refuse(false);
    sink.open(1, None).unwrap();
    let faults = [
        ("Unavailable", Fault { code: UNAVAILABLE, times: 3, ..Fault::default() }),
        ("ResourceExhausted", Fault { code: THROTTLED, times: 3, ..Fault::default() }),
        // It has them, and nobody hears so: they come again.
        ("no answer within 2s", Fault { delay_ms: 2_500, late: true, times: 0, ..Fault::default() }),
    ];
    let mut epoch = 0;
    for (words, fault) in faults {
        epoch += 1;
        service.fault(&Fault { method: "Publish", ..fault });
        let first = deliver(&mut sink, epoch, &rows(0..20));
        assert!(matches!(&first, Err(ConnectError::Unavailable(why)) if why.contains(words)), "{first:?}");
        service.fault(&Fault::default());
        patiently(&mut sink, epoch, &rows(0..20));
    }
    // Slow is not away.
    service.fault(&Fault { method: "Publish", delay_ms: 300, ..Fault::default() });
    epoch += 1;
    assert_eq!(patiently(&mut sink, epoch, &rows(0..20)), Vec::<String>::new());
    service.fault(&Fault::default());
    // Cut in the middle of an epoch.
    proxy.cut_after(Some(4_000));
    epoch += 1;
    let cut = deliver(&mut sink, epoch, &rows(0..200));
    assert!(matches!(&cut, Err(ConnectError::Unavailable(_))), "{cut:?}");
    proxy.cut_after(None);
    patiently(&mut sink, epoch, &rows(0..200));
    let seen = seen(&service);
    assert_eq!(seen.len(), 4 * 20 + 200);
    assert!(seen.values().any(|n| *n > 1), "some came again");
}

/// Of an epoch with several rounds those that were confirmed are not published again.
#[test]
fn what_of_an_epoch_was_confirmed_is_not_published_again() {
    let Some(service) = pubsub() else { return };
    service.topic(TOPIC);
    let mut sink = PubSubSink::sessions(topic(service.address(), false), "visits".to_owned(), Stages::ALL);
    sink.open(1, None).unwrap();
    let many: Vec<u8> = (0..30).flat_map(|_| rows(0..100)).collect();
    let epoch = |sink: &mut PubSubSink| sink.deliver(&Outbox::new(1, 1, &many, b""));
    // The first of three requests goes through.
    service.fault(&Fault { method: "Publish", code: UNAVAILABLE, after: 1, times: 1, ..Fault::default() });
    assert!(matches!(epoch(&mut sink), Err(ConnectError::Unavailable(_))));
    assert_eq!(service.published(TOPIC).len(), 1_000);
    epoch(&mut sink).unwrap();
    assert_eq!(service.published(TOPIC).len(), 3_000);
}

/// Bug family: a dead letter of a part that was published is forgotten when the next part fails twice.
#[test]
fn a_row_that_no_message_holds_is_told_once_however_often_the_rest_fails() {
    let Some(service) = pubsub() else { return };
    service.topic(TOPIC);
    let mut sink = PubSubSink::sessions(topic(service.address(), false), "visits".to_owned(), Stages::ALL);
    sink.open(1, None).unwrap();
    let mut all = Vec::new();
    let huge = format!("\"{}\"", "x".repeat(10_000_000));
    row(200, &huge).encode(&mut all);
    (0..20).for_each(|_| all.extend(rows(0..100)));
    let epoch = |sink: &mut PubSubSink| sink.deliver(&Outbox::new(1, 1, &all, b""));
    // The first of its requests goes through, and the second fails again and again.
    service.fault(&Fault { method: "Publish", code: UNAVAILABLE, after: 1, times: 3, ..Fault::default() });
    for _ in 0..3 {
        assert!(matches!(epoch(&mut sink), Err(ConnectError::Unavailable(_))));
    }
    epoch(&mut sink).unwrap();
    assert_eq!(service.published(TOPIC).len(), 2_000);
    let told = sink.take_refused();
    let letter: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert_eq!((&letter["reason"], &letter["session_id"]), (&"row_refused".into(), &"c8".repeat(16).into()));
}
