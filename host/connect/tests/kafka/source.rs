//! The source: where it starts, what it passes over, where it goes on, and what it says when it cannot.

use crate::world::{
    Admin, DEADLINE, PATIENCE, Transaction, cluster, connect, nothing_comes, produce, produce_texts, read,
    shared, spec, texts,
};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tidemill_connect::ConnectError;
use tidemill_connect::source::KafkaIdentity;
use tidemill_connect::source::kafka::{KafkaSource, KafkaSpec, Start};
use tidemill_connect::source::{Block, Partition as _, Read};
use tidemill_services::kafka::broker;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn only(source: &KafkaSource) -> KafkaIdentity {
    let all = source.partitions().unwrap();
    assert_eq!(all.len(), 1);
    all[0].clone()
}

fn values(of: &[(u64, String)]) -> Vec<&str> {
    of.iter().map(|(_, v)| v.as_str()).collect()
}

#[test]
fn reading_starts_at_the_first_record_the_next_one_or_a_time() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("starts"), 1, &[]);
    produce_texts(broker, &topic, 0, &["a", "b"]);
    std::thread::sleep(Duration::from_millis(20));
    let between = now_ms();
    std::thread::sleep(Duration::from_millis(20));
    produce_texts(broker, &topic, 0, &["c"]);

    let source = connect(broker, &topic);
    let p = [only(&source)];
    let starts = |start| source.starts(&p, start).unwrap();
    assert_eq!(starts(Start::Earliest), [0]);
    assert_eq!(starts(Start::Latest), [3]);
    assert_eq!(starts(Start::Timestamp(0)), [0]);
    assert_eq!(starts(Start::Timestamp(between)), [2]);
    assert_eq!(starts(Start::Timestamp(now_ms() + 3_600_000)), [3], "nothing is as late: the next one");

    let mut latest = source.open(&p[0], 3).unwrap();
    assert!(nothing_comes(&source, &mut latest));
    produce_texts(broker, &topic, 0, &["d"]);
    assert_eq!(read(&source, &mut latest, 1), [(3, "d".to_owned())]);
}

#[test]
fn reading_starts_where_the_group_stands_or_not_at_all() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("committed"), 1, &[]);
    produce_texts(broker, &topic, 0, &["a", "b", "c"]);
    let source = connect(broker, &topic);
    let p = only(&source);
    let nowhere = source.starts(std::slice::from_ref(&p), Start::Committed).unwrap_err();
    assert!(matches!(nowhere, ConnectError::Config(_)), "{nowhere}");
    assert!(nowhere.to_string().contains(&format!("group `group-of-{topic}`")), "{nowhere}");

    source.commit(&[(&p, 2)]);
    let begun = Instant::now();
    let mut found = source.starts(std::slice::from_ref(&p), Start::Committed);
    while found.is_err() {
        assert!(begun.elapsed() < DEADLINE, "{found:?}, {:?}", source.uncommitted());
        found = source.starts(std::slice::from_ref(&p), Start::Committed);
    }
    assert_eq!(found.unwrap(), [2]);
    let mut partition = source.open(&p, 2).unwrap();
    assert_eq!(read(&source, &mut partition, 1), [(2, "c".to_owned())]);
    assert_eq!(source.uncommitted(), None);
}

#[test]
fn records_of_aborted_and_open_transactions_are_passed_over_and_offsets_are_the_topics_own() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("transactions"), 1, &[]);
    produce_texts(broker, &topic, 0, &["first"]);
    let aborted = Transaction::begin(broker, &format!("{topic}-a"));
    aborted.send(&topic, &["never", "ever"]);
    aborted.abort();
    let committed = Transaction::begin(broker, &format!("{topic}-b"));
    committed.send(&topic, &["second"]);
    committed.commit();
    let open = Transaction::begin(broker, &format!("{topic}-c"));
    open.send(&topic, &["third"]);

    let source = connect(broker, &topic);
    let p = only(&source);
    let mut partition = source.open(&p, 0).unwrap();
    // 1 and 2 were aborted, 3 says so; 5 says that 4 is committed.
    assert_eq!(read(&source, &mut partition, 2), [(0, "first".to_owned()), (4, "second".to_owned())]);
    assert!(nothing_comes(&source, &mut partition), "the transaction is open");
    assert_eq!(partition.position(), 6, "the mark is passed");
    open.commit();
    assert_eq!(read(&source, &mut partition, 1), [(6, "third".to_owned())]);
    assert!(nothing_comes(&source, &mut partition));
    assert_eq!(partition.position(), 8);

    // Opened again elsewhere, the client's old position is not taken for the new one.
    drop(partition);
    for (from, then) in [(5, "third"), (1, "second"), (0, "first")] {
        let mut again = source.open(&p, from).unwrap();
        assert_eq!(again.position(), from);
        assert_eq!(read(&source, &mut again, 1)[0].1, then);
        drop(again);
    }
    // And one that finds nothing but a mark is behind it.
    let source = connect(broker, &topic);
    let mut last = source.open(&p, 7).unwrap();
    assert_eq!(last.position(), 7);
    assert!(nothing_comes(&source, &mut last));
    assert_eq!(last.position(), 8);
}

#[test]
fn reading_goes_on_exactly_where_a_block_ended() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("positions"), 2, &[]);
    // Some blocks: 1,500 records of about a KiB.
    let of = |p: i32| -> Vec<String> { (0..1500).map(|i| format!("{p}-{i}-{}", "x".repeat(1000))).collect() };
    for p in 0..2 {
        let values = of(p);
        produce_texts(broker, &topic, p, &values.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let mut got = [Vec::new(), Vec::new()];
    let mut positions = [0, 0];
    let mut lives = 0;
    let begun = Instant::now();
    while got.iter().any(|g| g.len() < 1500) {
        // A life: one block of each partition, by another consumer each time.
        lives += 1;
        let source = connect(broker, &topic);
        for identity in source.partitions().unwrap() {
            let i = identity.partition as usize;
            if got[i].len() == 1500 {
                continue;
            }
            let mut partition = source.open(&identity, positions[i]).unwrap();
            let mut block = Block::default();
            while partition.read(&mut block).unwrap() != Read::Data {
                assert!(begun.elapsed() < DEADLINE);
                source.wait(Duration::from_millis(200));
            }
            assert!(
                block.bytes.len() < (256 << 10) + 1100,
                "{} bytes are more than a block",
                block.bytes.len()
            );
            got[i].extend(texts(&block));
            positions[i] = block.next_offset;
        }
    }
    assert!(lives > 4, "one block a life, not {lives} lives");
    for (p, got) in got.iter().enumerate() {
        assert!(got.iter().map(|g| g.0).eq(0..1500));
        assert_eq!(values(got), of(p as i32));
    }
}

#[test]
fn a_position_that_the_topic_no_longer_holds_is_an_error() {
    let Some(broker) = shared() else { return };
    let admin = Admin::of(broker);
    let topic = admin.topic(broker.name("range"), 1, &[]);
    produce_texts(broker, &topic, 0, &["a", "b", "c", "d"]);
    let source = connect(broker, &topic);
    let p = only(&source);
    admin.delete_before(&topic, 2);
    assert_eq!(source.starts(std::slice::from_ref(&p), Start::Earliest).unwrap(), [2]);
    let deleted = source.open(&p, 1).err().unwrap();
    assert!(matches!(deleted, ConnectError::Conflict(_)), "{deleted}");
    let told = deleted.to_string();
    assert!(told.contains(&broker.plain()) && told.contains("offset 1") && told.contains("2 to 4"), "{told}");
    let mut kept = source.open(&p, 2).unwrap();
    assert_eq!(values(&read(&source, &mut kept, 2)), ["c", "d"]);
    drop(kept);

    let beyond = source.open(&p, 5).err().unwrap();
    assert!(matches!(beyond, ConnectError::Conflict(_)), "{beyond}");
    assert!(beyond.to_string().contains("made anew"), "{beyond}");
}

#[test]
fn records_deleted_before_they_were_read_end_the_reading() {
    let Some(broker) = shared() else { return };
    let admin = Admin::of(broker);
    let topic = admin.topic(broker.name("vanishing"), 1, &[("segment.bytes", "1048576")]);
    let fat = "x".repeat(100_000);
    // Far more than the client takes beforehand.
    produce_texts(broker, &topic, 0, &[fat.as_str(); 120]);
    let source = connect(broker, &topic);
    let p = only(&source);
    let mut partition = source.open(&p, 0).unwrap();
    read(&source, &mut partition, 1);
    admin.delete_before(&topic, 118);
    let begun = Instant::now();
    let mut block = Block::default();
    let mut last = partition.position();
    let ended = loop {
        assert!(begun.elapsed() < DEADLINE, "it goes on at {last}");
        block.clear();
        match partition.read(&mut block) {
            Ok(Read::Data) => {
                for s in &block.spans {
                    assert_eq!(s.offset, last, "nothing is skipped");
                    last += 1;
                }
            }
            Ok(_) => drop(source.wait(Duration::from_millis(100))),
            Err(e) => break e,
        }
    };
    assert!(last < 118, "the test deletes what was read");
    assert!(matches!(ended, ConnectError::Conflict(_)), "{ended}");
    assert!(ended.to_string().contains(&format!("offset {last}")), "{ended}");
    assert!(matches!(partition.read(&mut block), Err(ConnectError::Conflict(_))), "and so it stays");
}

#[test]
fn partitions_that_are_added_are_found_and_read_from_their_beginning() {
    let Some(broker) = shared() else { return };
    let admin = Admin::of(broker);
    let topic = admin.topic(broker.name("growing"), 1, &[]);
    produce_texts(broker, &topic, 0, &["a"]);
    let source = connect(broker, &topic);
    let mut first = source.open(&only(&source), 0).unwrap();
    assert_eq!(values(&read(&source, &mut first, 1)), ["a"]);

    admin.add_partitions(&topic, 3);
    produce_texts(broker, &topic, 2, &["new"]);
    let begun = Instant::now();
    let mut all = source.partitions().unwrap();
    while all.len() < 3 {
        assert!(begun.elapsed() < DEADLINE, "{all:?}");
        all = source.partitions().unwrap();
    }
    let numbers: Vec<i32> = all.iter().map(|p| p.partition).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let starts = source.starts(&all[1..], Start::Earliest).unwrap();
    assert_eq!(starts, [0, 0]);
    let mut third = source.open(&all[2], 0).unwrap();
    assert_eq!(values(&read(&source, &mut third, 1)), ["new"]);
    produce_texts(broker, &topic, 0, &["b"]);
    assert_eq!(values(&read(&source, &mut first, 1)), ["b"], "the first is read on");
}

#[test]
fn tombstones_are_no_records_and_records_beyond_the_bound_are_cut() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("odd"), 1, &[("max.message.bytes", "10000000")]);
    let long = vec![b'x'; (3 << 20) + 7];
    produce(broker, &topic, 0, &[None, Some(b"a"), Some(b""), Some(&long), Some(b"b"), None]);
    let source = connect(broker, &topic);
    let mut partition = source.open(&only(&source), 0).unwrap();
    let mut spans = Vec::new();
    let mut block = Block::default();
    let begun = Instant::now();
    while partition.position() < 6 {
        assert!(begun.elapsed() < DEADLINE, "only {spans:?}");
        block.clear();
        if partition.read(&mut block).unwrap() == Read::Data {
            spans.extend(block.spans.iter().map(|s| (s.offset, s.len, s.size)));
        } else {
            source.wait(Duration::from_millis(100));
        }
    }
    let kept = 1 << 20;
    assert_eq!(spans, [(1, 1, 1), (2, 0, 0), (3, kept, (3 << 20) + 7), (4, 1, 1)]);
}

#[test]
fn a_broker_that_dies_and_comes_back_is_read_on() {
    let Some(broker) = broker() else { return };
    let topic = Admin::of(&broker).topic("clicks".into(), 1, &[]);
    produce_texts(&broker, &topic, 0, &["a", "b"]);
    let source = connect(&broker, &topic);
    let p = only(&source);
    let mut partition = source.open(&p, 0).unwrap();
    assert_eq!(values(&read(&source, &mut partition, 2)), ["a", "b"]);
    let other = connect(&broker, &topic);
    let mut read_by_other = other.open(&p, 0).unwrap();
    read(&other, &mut read_by_other, 2);
    other.commit(&[(&p, 1)]);

    broker.stop();
    let begun = Instant::now();
    let mut block = Block::default();
    while source.trouble().is_none() {
        assert!(begun.elapsed() < DEADLINE, "nobody notices");
        assert_eq!(partition.read(&mut block).unwrap(), Read::Pending, "an outage is no error");
        source.wait(Duration::from_millis(100));
    }
    let down = source.partitions().unwrap_err();
    assert!(matches!(down, ConnectError::Unavailable(_)), "{down}");
    assert!(down.to_string().contains(&broker.plain()), "{down}");
    // Told, not waited for.
    source.commit(&[(&p, 2)]);
    // Whoever ends while it is down is not held up.
    let begun = Instant::now();
    other.commit(&[(&p, 2)]);
    drop(read_by_other);
    drop(other);
    assert!(begun.elapsed() < 2 * PATIENCE, "{:?}", begun.elapsed());

    broker.start_again().unwrap();
    produce_texts(&broker, &topic, 0, &["c"]);
    assert_eq!(read(&source, &mut partition, 1), [(2, "c".to_owned())]);
    assert_eq!(source.trouble(), None);
}

#[test]
fn a_partition_that_waits_takes_bounded_memory_and_a_slow_broker_is_waited_for() {
    let Some(broker) = broker() else { return };
    let topic = Admin::of(&broker).topic("clicks".into(), 1, &[]);
    let fat = "x".repeat(100_000);
    produce_texts(&broker, &topic, 0, &[fat.as_str(); 200]);
    let proxy = broker.proxy();
    let source =
        KafkaSource::connect(KafkaSpec { cluster: cluster(broker.behind_proxy()), ..spec(&broker, &topic) });
    let source = source.unwrap();
    let mut partition = source.open(&only(&source), 0).unwrap();
    // As one that is ahead of the others: opened and not read. Waits until no more comes.
    let begun = Instant::now();
    let mut taken = 0;
    while taken < 1 << 20 || taken != proxy.answered_bytes() {
        assert!(begun.elapsed() < DEADLINE, "{taken}");
        taken = proxy.answered_bytes();
        std::thread::sleep(Duration::from_secs(1));
    }
    // Of 20 MB: what may wait, and the fetch that went beyond it.
    assert!(taken < 3 << 20, "{taken} bytes");

    proxy.keep_answers(true);
    let mut got = Vec::new();
    let mut block = Block::default();
    let begun = Instant::now();
    // Longer than the client waits for an answer.
    while begun.elapsed() < 2 * PATIENCE {
        block.clear();
        if partition.read(&mut block).unwrap() == Read::Data {
            got.extend(texts(&block));
        }
        source.wait(Duration::from_millis(100));
    }
    assert!(got.len() < 50, "{} records without an answer", got.len());
    proxy.keep_answers(false);
    got.extend(read(&source, &mut partition, 200 - got.len()));
    assert!(got.iter().map(|g| g.0).eq(0..200), "each once, in order");
}

#[test]
fn a_source_that_is_throttled_reads_all() {
    let Some(broker) = broker() else { return };
    let topic = Admin::of(&broker).topic("clicks".into(), 1, &[]);
    let fat = "x".repeat(100_000);
    produce_texts(&broker, &topic, 0, &[fat.as_str(); 60]);
    broker.throttle("tidemill", 500_000).unwrap();
    let source = connect(&broker, &topic);
    let mut partition = source.open(&only(&source), 0).unwrap();
    let begun = Instant::now();
    assert!(read(&source, &mut partition, 60).iter().map(|g| g.0).eq(0..60));
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}: the broker did not throttle", begun.elapsed());
}

#[test]
fn a_cluster_that_is_down_is_named_within_the_patience() {
    // Listened on by nobody: the port was free a moment ago.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let down =
        KafkaSpec { cluster: cluster(nobody.to_string()), topics: vec!["clicks".into()], group: "g".into() };
    let begun = Instant::now();
    let e = KafkaSource::connect(down).err().unwrap();
    assert!(begun.elapsed() < 2 * PATIENCE, "{:?}", begun.elapsed());
    assert!(matches!(e, ConnectError::Unavailable(_)), "{e}");
    let told = e.to_string();
    assert!(told.contains(&nobody.to_string()) && told.contains("refused"), "{told}");
}

#[test]
fn a_service_that_takes_connections_and_never_answers_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let spec =
        KafkaSpec { cluster: cluster(address.clone()), topics: vec!["clicks".into()], group: "g".into() };
    let begun = Instant::now();
    let e = KafkaSource::connect(spec).err().unwrap();
    assert!(begun.elapsed() < 2 * PATIENCE, "{:?}", begun.elapsed());
    assert!(matches!(e, ConnectError::Unavailable(_)) && e.to_string().contains(&address), "{e}");
}

#[test]
fn a_topic_that_is_not_there_is_the_configs_fault() {
    let Some(broker) = shared() else { return };
    let e = KafkaSource::connect(spec(broker, "nowhere")).err().unwrap();
    assert!(matches!(e, ConnectError::Config(_)) && e.to_string().contains("`nowhere`"), "{e}");
    let e = KafkaSource::connect(spec(broker, "no such name")).err().unwrap();
    assert!(matches!(e, ConnectError::Config(_)), "{e}");
}

#[test]
fn a_partition_of_another_cluster_is_refused() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("moved"), 1, &[]);
    let source = connect(broker, &topic);
    let moved = KafkaIdentity { cluster: "another".into(), ..only(&source) };
    let e = source.open(&moved, 0).err().unwrap();
    assert!(matches!(e, ConnectError::Conflict(_)) && e.to_string().contains("another"), "{e}");
}

#[test]
fn a_topic_that_is_deleted_while_it_is_read_ends_the_reading() {
    let Some(broker) = shared() else { return };
    let admin = Admin::of(broker);
    let topic = admin.topic(broker.name("deleted"), 1, &[]);
    produce_texts(broker, &topic, 0, &["a"]);
    let source = connect(broker, &topic);
    let mut partition = source.open(&only(&source), 0).unwrap();
    assert_eq!(values(&read(&source, &mut partition, 1)), ["a"]);
    admin.delete_topic(&topic);
    let begun = Instant::now();
    let mut block = Block::default();
    let ended = loop {
        assert!(begun.elapsed() < DEADLINE, "it waits for a topic that is gone");
        match partition.read(&mut block) {
            Ok(read) => assert_eq!(read, Read::Pending),
            Err(e) => break e,
        }
        source.wait(Duration::from_millis(100));
    };
    assert!(matches!(ended, ConnectError::Config(_)) && ended.to_string().contains(&topic), "{ended}");
}
