//! What stands around the source and the sink: topics, somebody else's producers and readers.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tidemill_connect::kafka::Cluster;
use tidemill_connect::source::kafka::{KafkaPartition, KafkaSource, KafkaSpec};
use tidemill_connect::source::{Block, Partition as _, Read};
use tidemill_services::kafka::{Broker, broker};

/// How long anything may take that a test waits for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// What clients in tests are set to wait: short, for tests of what never answers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// The broker that tests share which leave it as it is. Dies with the process.
pub(crate) fn shared() -> Option<&'static Broker> {
    static SHARED: OnceLock<Option<Broker>> = OnceLock::new();
    SHARED.get_or_init(broker).as_ref()
}

pub(crate) fn cluster(brokers: impl Into<String>) -> Cluster {
    Cluster { patience: PATIENCE, ..Cluster::new(brokers) }
}

pub(crate) fn spec(broker: &Broker, topic: &str) -> KafkaSpec {
    KafkaSpec {
        cluster: cluster(broker.plain()),
        topics: vec![topic.into()],
        group: format!("group-of-{topic}"),
    }
}

pub(crate) fn connect(broker: &Broker, topic: &str) -> KafkaSource {
    KafkaSource::connect(spec(broker, topic)).unwrap()
}

fn settings(broker: &Broker) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", broker.plain());
    settings
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Somebody who may make and delete.
pub(crate) struct Admin(AdminClient<DefaultClientContext>);

impl Admin {
    pub(crate) fn of(broker: &Broker) -> Admin {
        Admin(settings(broker).create().unwrap())
    }

    fn options() -> AdminOptions {
        AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE))
    }

    /// Makes a topic and returns its name.
    pub(crate) fn topic(&self, name: String, partitions: i32, settings: &[(&str, &str)]) -> String {
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |t, (key, value)| t.set(key, value));
        for made in block_on(self.0.create_topics([&topic], &Self::options())).unwrap() {
            made.unwrap();
        }
        // Made is not known: whoever asks at once is told that there is none.
        let known = || {
            let seen = self.0.inner().fetch_metadata(Some(&name), DEADLINE).unwrap();
            seen.topics().iter().any(|t| t.error().is_none() && t.partitions().len() == partitions as usize)
        };
        let begun = Instant::now();
        while !known() {
            assert!(begun.elapsed() < DEADLINE, "topic {name} does not get known");
        }
        name
    }

    pub(crate) fn add_partitions(&self, topic: &str, to: usize) {
        let more = NewPartitions::new(topic, to);
        for made in block_on(self.0.create_partitions([&more], &Self::options())).unwrap() {
            made.unwrap();
        }
    }

    pub(crate) fn delete_topic(&self, topic: &str) {
        for gone in block_on(self.0.delete_topics(&[topic], &Self::options())).unwrap() {
            gone.unwrap();
        }
    }

    /// Deletes the records of partition 0 before an offset.
    pub(crate) fn delete_before(&self, topic: &str, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(offset)).unwrap();
        block_on(self.0.delete_records(&list, &Self::options())).unwrap();
    }

    pub(crate) fn delete_group(&self, group: &str) {
        for gone in block_on(self.0.delete_groups(&[group], &Self::options())).unwrap() {
            gone.unwrap();
        }
    }
}

/// Writes records without a transaction; a value of `None` is a tombstone.
pub(crate) fn produce(broker: &Broker, topic: &str, partition: i32, values: &[Option<&[u8]>]) {
    let producer: BaseProducer = settings(broker).set("message.max.bytes", "10000000").create().unwrap();
    send(&producer, topic, partition, values);
    producer.flush(DEADLINE).unwrap();
}

pub(crate) fn produce_texts(broker: &Broker, topic: &str, partition: i32, values: &[&str]) {
    let values: Vec<Option<&[u8]>> = values.iter().map(|v| Some(v.as_bytes())).collect();
    produce(broker, topic, partition, &values);
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, values: &[Option<&[u8]>]) {
    for value in values {
        let mut record: BaseRecord<'_, str, [u8]> = BaseRecord::to(topic).partition(partition).key("k");
        record.payload = *value;
        let mut sent = producer.send(record);
        while let Err((_, again)) = sent {
            producer.poll(Duration::from_millis(10));
            sent = producer.send(again);
        }
    }
}

/// Somebody's producer with an open transaction.
pub(crate) struct Transaction(BaseProducer);

impl Transaction {
    pub(crate) fn begin(broker: &Broker, id: &str) -> Transaction {
        let producer: BaseProducer = settings(broker).set("transactional.id", id).create().unwrap();
        producer.init_transactions(DEADLINE).unwrap();
        producer.begin_transaction().unwrap();
        Transaction(producer)
    }

    /// Returns when the broker has the records.
    pub(crate) fn send(&self, topic: &str, values: &[&str]) {
        let values: Vec<Option<&[u8]>> = values.iter().map(|v| Some(v.as_bytes())).collect();
        send(&self.0, topic, 0, &values);
        self.0.flush(DEADLINE).unwrap();
    }

    pub(crate) fn commit(self) {
        self.0.commit_transaction(DEADLINE).unwrap();
    }

    pub(crate) fn abort(self) {
        self.0.abort_transaction(DEADLINE).unwrap();
    }
}

/// A message as a reader of committed records sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) key: Option<String>,
    pub(crate) value: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// All committed records of partition 0.
pub(crate) fn read_committed(broker: &Broker, topic: &str) -> Vec<Seen> {
    let reader: BaseConsumer = settings(broker)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    reader.assign(&list).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut seen = Vec::new();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < DEADLINE, "the end of {topic} does not come");
        match reader.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return seen,
            Some(m) => {
                let m = m.unwrap();
                let headers = m.headers().map_or_else(Vec::new, |h| {
                    h.iter().map(|h| (h.key.to_owned(), text(h.value.unwrap_or_default()))).collect()
                });
                seen.push(Seen {
                    key: m.key().map(text),
                    value: text(m.payload().unwrap_or_default()),
                    headers,
                });
            }
        }
    }
}

/// The offset behind the last record or mark of partition 0.
pub(crate) fn end(broker: &Broker, topic: &str) -> i64 {
    let reader: BaseConsumer = settings(broker).create().unwrap();
    reader.fetch_watermarks(topic, 0, DEADLINE).unwrap().1
}

/// A record that was read: its offset and its text.
pub(crate) type Got = (u64, String);

/// Reads until `n` records have come, within the deadline, and not more than are there by then.
pub(crate) fn read(source: &KafkaSource, partition: &mut KafkaPartition, n: usize) -> Vec<Got> {
    let mut got = Vec::new();
    let mut block = Block::default();
    let begun = Instant::now();
    while got.len() < n {
        assert!(begun.elapsed() < DEADLINE, "{n} records do not come, only {got:?}; {:?}", source.trouble());
        block.clear();
        match partition.read(&mut block).unwrap() {
            Read::Data => got.extend(texts(&block)),
            Read::Pending => drop(source.wait(Duration::from_millis(200))),
            Read::End => panic!("a topic has no end"),
        }
    }
    got
}

pub(crate) fn texts(block: &Block) -> Vec<Got> {
    let text = |s| String::from_utf8(block.record(s).to_vec()).unwrap();
    block.spans.iter().map(|s| (s.offset, text(*s))).collect()
}

/// Whether nothing comes for as long as two fetches take.
pub(crate) fn nothing_comes(source: &KafkaSource, partition: &mut KafkaPartition) -> bool {
    let begun = Instant::now();
    let mut block = Block::default();
    while begun.elapsed() < Duration::from_millis(1200) {
        block.clear();
        if partition.read(&mut block).unwrap() == Read::Data {
            return false;
        }
        source.wait(Duration::from_millis(100));
    }
    true
}
