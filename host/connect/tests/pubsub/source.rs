//! A subscription is pulled into an ingest log.

use super::{project, until};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tidemill_connect::ConnectError;
use tidemill_connect::source::ingest_log::IngestLog;
use tidemill_connect::source::pubsub::Subscription;
use tidemill_connect::source::{Block, Partition as _, Read};
use tidemill_services::proxy::Proxy;
use tidemill_services::pubsub::{DENIED, Fault, PubSub, THROTTLED, UNAVAILABLE, pubsub};

/// The shortest that the service has: what was held by a stream that broke comes again after it.
const LEASE: Duration = Duration::from_secs(10);

fn subscription(address: &str) -> Subscription {
    Subscription {
        project: project(address),
        name: "clicks-sub".to_owned(),
        outstanding_messages: 100,
        outstanding_bytes: 1 << 20,
        lease: LEASE,
    }
}

/// A puller on its own thread, which calls again as the host does.
struct Pulling {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Pulling {
    fn of(subscription: Subscription, log: &Arc<IngestLog>) -> Pulling {
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stops) = (log.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut said = Vec::new();
            while !stops.load(Ordering::Relaxed) {
                let ended = subscription.pull(&log, true, || stops.load(Ordering::Relaxed), || {});
                match ended {
                    Ok(()) => break,
                    Err(ConnectError::Unavailable(why)) => said.push(why),
                    Err(e) => panic!("{e}"),
                }
            }
            said
        });
        Pulling { stop, thread: Some(thread) }
    }

    /// Why the stream broke, each time.
    fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn open(dir: &Path, kept_bytes_max: u64) -> Arc<IngestLog> {
    Arc::new(IngestLog::open(dir, None, kept_bytes_max).unwrap())
}

/// What the log has: key and number of each record, copies taken out by the message's id as the fold does.
fn read(log: &IngestLog) -> (BTreeMap<String, Vec<u64>>, usize) {
    let mut reader = log.reader(log.first());
    let (mut block, mut ids, mut by_key, mut records) =
        (Block::default(), std::collections::BTreeSet::new(), BTreeMap::<_, Vec<u64>>::new(), 0);
    while reader.read(&mut block).unwrap() == Read::Data {
        for span in &block.spans {
            let record: serde_json::Value = serde_json::from_slice(block.record(*span)).unwrap();
            records += 1;
            if ids.insert(record["pubsub_message_id"].as_str().unwrap().to_owned()) {
                let key = record["user"].as_str().unwrap().to_owned();
                by_key.entry(key).or_default().push(record["n"].as_u64().unwrap());
            }
        }
        block.clear();
    }
    (by_key, records)
}

fn publish(service: &PubSub, numbers: std::ops::Range<u64>) {
    let keys = ["ann", "bob", "eve"];
    service.publish(
        "clicks",
        numbers.map(|n| {
            let key = keys[(n % 3) as usize];
            (key, format!(r#"{{"user":"{key}","n":{n}}}"#))
        }),
    );
}

fn assert_whole(log: &IngestLog, count: u64) {
    let (by_key, _) = read(log);
    let mut all: Vec<u64> = by_key.values().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, (0..count).collect::<Vec<_>>());
}

#[test]
fn every_message_is_in_the_log_once_and_in_the_order_of_its_key() {
    let Some(service) = pubsub() else { return };
    service.subscription("clicks", "clicks-sub", true);
    publish(&service, 0..500);
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 1 << 30);
    let pulling = Pulling::of(subscription(service.address()), &log);
    until("all are acknowledged", || service.counts().acked == 500);
    assert_eq!(pulling.end(), Vec::<String>::new());
    assert_whole(&log, 500);
    let (by_key, records) = read(&log);
    assert_eq!((by_key.len(), records), (3, 500), "nothing came twice");
    assert!(by_key.values().all(|numbers| numbers.is_sorted()), "{by_key:?}");
}

#[test]
fn what_was_not_acknowledged_is_pulled_again_after_the_service_was_away() {
    let Some(service) = pubsub() else { return };
    service.subscription("clicks", "clicks-sub", false);
    publish(&service, 0..60);
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 1 << 30);
    for (code, method) in
        [(UNAVAILABLE, "Acknowledge"), (THROTTLED, "StreamingPull"), (DENIED, "Acknowledge")]
    {
        let before = service.counts().met;
        service.fault(&Fault { method, code, times: 2, ..Fault::default() });
        let pulling = Pulling::of(subscription(service.address()), &log);
        until("the fault is met", || service.counts().met > before);
        let said = pulling.end();
        assert!(
            said.iter().any(|s| s.contains("Pub/Sub at 127.0.0.1") && s.contains("p/clicks-sub")),
            "{said:?}"
        );
        service.fault(&Fault::default());
    }
    publish(&service, 60..120);
    let pulling = Pulling::of(subscription(service.address()), &log);
    until("all are acknowledged", || service.counts().acked == 120);
    pulling.end();
    assert_whole(&log, 120);
}

#[test]
fn a_connection_that_is_cut_or_refused_loses_nothing() {
    let Some(service) = pubsub() else { return };
    service.subscription("clicks", "clicks-sub", true);
    let proxy = Proxy::to(service.address());
    proxy.refuse(true);
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 1 << 30);
    let mut told = subscription(&proxy.address());
    let down = told.pull(&log, false, || false, || {});
    assert!(
        matches!(&down, Err(ConnectError::Unavailable(why)) if why.starts_with("Pub/Sub at")),
        "{down:?}"
    );
    proxy.refuse(false);
    proxy.cut_after(Some(3_000));
    told.outstanding_messages = 10;
    publish(&service, 0..200);
    let pulling = Pulling::of(told, &log);
    until("it is cut", || proxy.cut() > 0);
    proxy.cut_after(None);
    until("all are acknowledged", || service.counts().acked == 200);
    assert!(!pulling.end().is_empty(), "it was cut");
    assert_whole(&log, 200);
}

#[test]
fn while_the_log_is_full_nothing_is_read_on_and_nothing_is_acknowledged() {
    let Some(service) = pubsub() else { return };
    service.subscription("clicks", "clicks-sub", false);
    let dir = tempfile::tempdir().unwrap();
    // Nothing fits after the first batch.
    let log = open(dir.path(), 1);
    publish(&service, 0..1);
    let mut few = subscription(service.address());
    few.outstanding_messages = 5;
    let pulling = Pulling::of(few, &log);
    until("the first is acknowledged", || service.counts().acked == 1);
    publish(&service, 1..300);
    until("one is held", || service.counts().delivered > 1);
    // Whoever read on would have acknowledged or held more by the time that a stop was heard.
    pulling.end();
    assert_eq!(service.counts().acked, 1);
    assert_eq!(read(&log).1, 1);
    let dir = tempfile::tempdir().unwrap();
    let room = open(dir.path(), 1 << 30);
    let pulling = Pulling::of(subscription(service.address()), &room);
    until("all are acknowledged", || service.counts().acked == 300);
    pulling.end();
}

#[test]
fn who_is_not_let_in_is_told_what_to_do() {
    let Some(service) = pubsub() else { return };
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 1 << 30);
    let told = subscription(service.address());
    let refusal = |known| match told.pull(&log, known, || false, || {}) {
        Err(ConnectError::Config(why)) => (true, why),
        Err(ConnectError::Unavailable(why)) => (false, why),
        other => panic!("{other:?}"),
    };
    let (is_config, why) = refusal(false);
    assert!(is_config && why.contains("create it, or name another"), "{why}");
    assert!(!refusal(true).0, "one that was there may be there again");
    service.subscription("clicks", "clicks-sub", false);
    service.fault(&Fault { token: Some("secret".to_owned()), ..Fault::default() });
    let (is_config, why) = refusal(false);
    assert!(is_config && why.contains("are the `credentials` right?") && !why.contains("secret"), "{why}");
    service.fault(&Fault { code: DENIED, ..Fault::default() });
    let (is_config, why) = refusal(false);
    assert!(is_config && why.contains("roles/pubsub.subscriber"), "{why}");
}

/// An acknowledgement that takes long is waited for; one that takes too long is made again, and nothing is lost by it.
#[test]
fn a_slow_service_is_waited_for_and_a_late_answer_is_none() {
    let Some(service) = pubsub() else { return };
    service.subscription("clicks", "clicks-sub", false);
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 1 << 30);
    publish(&service, 0..60);
    service.fault(&Fault { method: "Acknowledge", delay_ms: 300, ..Fault::default() });
    let pulling = Pulling::of(subscription(service.address()), &log);
    until("all are acknowledged", || service.counts().acked == 60);
    assert_eq!(pulling.end(), Vec::<String>::new(), "slow is not away");
    service.fault(&Fault { method: "Acknowledge", delay_ms: 2_500, late: true, ..Fault::default() });
    publish(&service, 60..120);
    let pulling = Pulling::of(subscription(service.address()), &log);
    until("they are acknowledged, which nobody hears", || service.counts().acked > 60);
    let said = pulling.end();
    assert!(said.iter().any(|s| s.contains("no answer within 2s")), "{said:?}");
    service.fault(&Fault::default());
    let pulling = Pulling::of(subscription(service.address()), &log);
    until("all are acknowledged", || service.counts().acked == 120);
    pulling.end();
    assert_whole(&log, 120);
}
