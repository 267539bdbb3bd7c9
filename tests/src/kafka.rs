//! What stands around the host where it reads topics and writes them: a broker for the tests of one process, and somebody
//! else's producers and readers.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tidemill_services::kafka::Broker;

/// How long anything may take that a test asks the broker for.
const DEADLINE: Duration = Duration::from_secs(120);
/// For who wants to see what is in open transactions, too.
const UNCOMMITTED: &str = "read_uncommitted";

/// The broker that the tests of a process share; none where it cannot be had. It ends with the process.
#[must_use]
pub fn broker() -> Option<&'static Broker> {
    static SHARED: OnceLock<Option<Broker>> = OnceLock::new();
    SHARED.get_or_init(start).as_ref()
}

fn start() -> Option<Broker> {
    let broker = tidemill_services::kafka::broker();
    if broker.is_none() {
        crate::report("skipped, there is no Kafka here: everything about it (Java, and Maven to fetch it)");
    }
    broker
}

fn settings(broker: &Broker) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", broker.plain());
    settings
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn admin(broker: &Broker) -> (AdminClient<DefaultClientContext>, AdminOptions) {
    let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
    (settings(broker).create().unwrap(), options)
}

/// Makes a topic of a name that no other has, and returns that.
#[must_use]
pub fn topic(broker: &Broker, what: &str, partitions: i32) -> String {
    let name = broker.name(what);
    let (admin, options) = admin(broker);
    let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for made in block_on(admin.create_topics([&topic], &options)).unwrap() {
        made.unwrap();
    }
    name
}

/// From now on the topic has so many partitions.
pub fn widen(broker: &Broker, topic: &str, partitions: usize) {
    let (admin, options) = admin(broker);
    let more = NewPartitions::new(topic, partitions);
    for made in block_on(admin.create_partitions([&more], &options)).unwrap() {
        made.unwrap();
    }
}

/// Deletes the records of a partition before an offset.
pub fn delete_before(broker: &Broker, topic: &str, partition: i32, offset: i64) {
    let (admin, options) = admin(broker);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    block_on(admin.delete_records(&list, &options)).unwrap();
}

/// Writes records to a partition and returns when the broker has them.
pub fn produce<'a>(broker: &Broker, topic: &str, partition: i32, values: impl IntoIterator<Item = &'a [u8]>) {
    let producer: BaseProducer = settings(broker).set("linger.ms", "5").create().unwrap();
    for value in values {
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(partition).payload(value);
        let mut sent = producer.send(record);
        while let Err((e, again)) = sent {
            assert!(e.rdkafka_error_code() == Some(rdkafka::error::RDKafkaErrorCode::QueueFull), "{e}");
            producer.poll(Duration::from_millis(10));
            sent = producer.send(again);
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(DEADLINE).unwrap();
}

/// The values of all committed records, partition by partition in their order, with those of their keys.
#[must_use]
pub fn read_committed(broker: &Broker, topic: &str, partitions: i32) -> Vec<(Option<String>, String)> {
    read(broker, topic, partitions, "read_committed")
}

/// How many records were written that are not committed, and never will be once all transactions have ended.
#[must_use]
pub fn aborted(broker: &Broker, topic: &str, partitions: i32) -> usize {
    read(broker, topic, partitions, UNCOMMITTED).len() - read_committed(broker, topic, partitions).len()
}

fn read(broker: &Broker, topic: &str, partitions: i32, level: &str) -> Vec<(Option<String>, String)> {
    let reader: BaseConsumer = settings(broker)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", level)
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut seen = Vec::new();
    for partition in 0..partitions {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        reader.assign(&list).unwrap();
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < DEADLINE, "the end of {topic} does not come");
            match reader.poll(Duration::from_millis(200)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(of))) if of == partition => break,
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(m) => {
                    let m = m.unwrap();
                    seen.push((m.key().map(text), text(m.payload().unwrap_or_default())));
                }
            }
        }
    }
    seen
}

/// The offset behind the last record of a partition, be it committed or not.
#[must_use]
pub fn end(broker: &Broker, topic: &str, partition: i32) -> i64 {
    uncommitted(broker).fetch_watermarks(topic, partition, DEADLINE).unwrap().1
}

fn uncommitted(broker: &Broker) -> BaseConsumer {
    settings(broker).set("isolation.level", UNCOMMITTED).create().unwrap()
}

/// A look at how far a topic is, again and again.
pub struct Ends {
    reader: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl Ends {
    /// Of a topic.
    #[must_use]
    pub fn of(broker: &Broker, topic: &str, partitions: i32) -> Ends {
        Ends { reader: uncommitted(broker), topic: topic.into(), partitions }
    }
    /// How many records and marks of transactions it has, be they committed or not.
    #[must_use]
    pub fn sum(&self) -> i64 {
        let end = |p| self.reader.fetch_watermarks(&self.topic, p, DEADLINE).unwrap().1;
        (0..self.partitions).map(end).sum()
    }
}

/// Where a group stands in the partitions of a topic; `None` where it stands nowhere.
#[must_use]
pub fn committed(broker: &Broker, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let reader: BaseConsumer = settings(broker).set("group.id", group).create().unwrap();
    let mut asked = TopicPartitionList::new();
    for partition in 0..partitions {
        asked.add_partition(topic, partition);
    }
    let found = reader.committed_offsets(asked, DEADLINE).unwrap();
    let of = |p| match found.find_partition(topic, p)?.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    (0..partitions).map(of).collect()
}
