//! A Kafka for measurements: a broker on this machine, topics in it, and who reads one plainly.

use crate::error::{Doing, Failure, Outcome, there};
use crate::figures::of_count;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::Duration;
use tidemill_services::kafka::Broker;

/// Longest that the broker may take for anything.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Partitions of a topic of clicks: more than the machine has cores.
pub(crate) const PARTITIONS: i32 = 4;

/// A broker of our own; it ends with the value.
pub(crate) struct Cluster(Broker);

impl Cluster {
    /// Starts one.
    pub(crate) fn start() -> Outcome<Cluster> {
        there("Kafka", Broker::start()).map(Cluster)
    }

    /// As configs have it.
    pub(crate) fn brokers(&self) -> String {
        self.0.plain()
    }

    /// Makes a topic.
    pub(crate) fn make(&self, topic: &str, partitions: i32) -> Outcome<()> {
        let admin: AdminClient<DefaultClientContext> = self.settings().create().doing(topic)?;
        let options = AdminOptions::new().operation_timeout(Some(WAIT_MAX)).request_timeout(Some(WAIT_MAX));
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let runtime = tokio::runtime::Builder::new_current_thread().build().doing("a runtime")?;
        for made in runtime.block_on(admin.create_topics([&new], &options)).doing(topic)? {
            made.map_err(|(_, code)| Failure::new(format!("making {topic}: {code}")))?;
        }
        Ok(())
    }

    /// Makes a topic of a file's lines, dealt out to its partitions one by one.
    pub(crate) fn fill(&self, topic: &str, lines: &Path) -> Outcome<()> {
        self.make(topic, PARTITIONS)?;
        let mut settings = self.settings();
        let producer: BaseProducer = settings.set("linger.ms", "20").create().doing(topic)?;
        let file = BufReader::new(File::open(lines).doing(lines.display())?);
        for (n, line) in file.lines().enumerate() {
            let line = line.doing(lines.display())?;
            let partition = (n % PARTITIONS as usize) as i32;
            let record: BaseRecord<'_, [u8], str> = BaseRecord::to(topic).partition(partition).payload(&line);
            let mut sent = producer.send(record);
            while let Err((e, again)) = sent {
                if e.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(e).doing(topic);
                }
                producer.poll(Duration::from_millis(10));
                sent = producer.send(again);
            }
            producer.poll(Duration::ZERO);
        }
        producer.flush(WAIT_MAX).doing(topic)
    }

    fn settings(&self) -> ClientConfig {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", self.brokers());
        settings
    }
}

/// Reads a topic to its end and looks at nothing: what the client itself costs, with the settings of tidemill's source.
pub(crate) fn consume(brokers: &str, topic: &str) -> Outcome<()> {
    let mut settings = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("group.id", "plain"),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("isolation.level", "read_committed"),
        ("check.crcs", "true"),
        ("queued.max.messages.kbytes", "1024"),
        ("fetch.queue.backoff.ms", "20"),
        ("fetch.message.max.bytes", "1048576"),
        ("fetch.max.bytes", "16777216"),
        ("enable.partition.eof", "true"),
    ] {
        settings.set(name, value);
    }
    let reader: BaseConsumer = settings.create().doing(topic)?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).doing(topic)?;
    }
    reader.assign(&list).doing(topic)?;
    let (mut ended, mut records, mut bytes) = (0, 0_u64, 0_u64);
    while ended < PARTITIONS {
        match reader.poll(WAIT_MAX) {
            None => return Err(Failure::new(format!("the end of {topic} does not come"))),
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(message) => {
                bytes += message.doing(topic)?.payload_len() as u64;
                records += 1;
            }
        }
    }
    crate::say(&format!("{records} records, {:.1} MiB", of_count(bytes) / f64::from(1 << 20)));
    Ok(())
}
