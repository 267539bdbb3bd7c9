//! Topics of Kafka as a source: each partition of a topic is a partition, each record's offset is its own.
//!
//! One consumer reads all partitions of a source; each has its own queue, so that one that is ahead can wait without holding
//! up the others. The consumer is told what to read (`assign`): no group shares out partitions, and positions are the
//! caller's. What it commits to its group is for the eyes of others, never read back but by [`Start::Committed`].
//!
//! Invariants:
//! - Records of transactions that were aborted or are open are not handed out. Their offsets, and those of the marks that end
//!   transactions, are used up all the same: offsets rise, but not by one.
//! - A position outside of what the topic holds is an error, at open and later. Nothing is ever skipped to go on.
//! - A cluster that cannot be reached is no error while reading: nothing comes, [`KafkaSource::trouble`] says why, and what
//!   was missed comes once it is back. Only what a human must mend (credentials, a deleted topic) ends the reading.
//! - Memory: [`QUEUED_KIB`] and one fetch a partition, however far behind it is.

use super::framing::RECORD_BYTES_MAX;
use super::{Block, KafkaIdentity, Partition, Read, Span};
use crate::ConnectError;
use crate::kafka::{Cluster, Notes, PACE, check_topic, hear, reason};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// About as much as other partitions read at once.
const BLOCK_BYTES: usize = 256 << 10;
/// What waits of one partition: some blocks, so that the next is there while one is decoded. With a fetch each
/// [`BACKOFF_MS`] that is 50 MiB/s a partition, more than a lane folds.
const QUEUED_KIB: usize = 1 << 10;
/// How soon a partition whose queue was full is fetched again. librdkafka's second would limit it to one queue a second.
const BACKOFF_MS: u32 = 20;
/// What one fetch asks for a partition, as it stands in the topic, compressed. A batch that is larger comes whole.
const FETCH_PARTITION_BYTES: usize = 1 << 20;
/// What one fetch asks of a broker for all its partitions.
const FETCH_BYTES: usize = 16 << 20;
/// How long a broker may wait for records to answer with: idle partitions cost two requests a second.
const FETCH_WAIT_MS: u32 = 500;

// A block fits into what waits, and the longest record into a fetch.
const _: () = assert!(BLOCK_BYTES <= QUEUED_KIB << 10 && RECORD_BYTES_MAX <= FETCH_PARTITION_BYTES);

/// What to read.
#[derive(Clone, Debug)]
pub struct KafkaSpec {
    /// Where.
    pub cluster: Cluster,
    /// One topic or several.
    pub topics: Vec<String>,
    /// The consumer group that positions are shown in.
    pub group: String,
}

/// Where reading begins at the first start. Resolved into offsets once: from then on positions are the epoch's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the first record that is kept. Also for partitions that are found later: what is in them is new.
    Earliest,
    /// With the next record that is written.
    Latest,
    /// With the first record that was written then or later, in ms since the Unix epoch, by the topic's own times.
    Timestamp(i64),
    /// Where the group stands, as others have committed it. An error for a partition where it stands nowhere.
    Committed,
}

/// The topics of one source. Clones share one consumer.
#[derive(Clone)]
pub struct KafkaSource(Arc<Shared>);

struct Shared {
    spec: KafkaSpec,
    cluster_id: String,
    consumer: Arc<BaseConsumer<Notes>>,
    bell: Arc<Bell>,
}

impl Drop for Shared {
    /// Closing a consumer waits for commits under way, and with a cluster that cannot be reached that has no end. What they
    /// would say is of no consequence, so somebody else waits; the process does not wait for him.
    fn drop(&mut self) {
        let consumer = self.consumer.clone();
        // Without a thread it is closed here.
        let _ = std::thread::Builder::new().name("kafka-close".into()).spawn(move || {
            // Closed by whoever is last.
            while Arc::strong_count(&consumer) > 1 {
                std::thread::sleep(PACE);
            }
        });
    }
}

/// Rung by librdkafka's threads when a queue that was empty has something.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, at_most: Duration) -> bool {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .changed
            .wait_timeout_while(rung, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *rung)
    }
}

impl KafkaSource {
    /// Reaches the cluster and looks the topics up. Reads nothing yet.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers, `Config` if the log-in is refused or a topic is not there.
    pub fn connect(spec: KafkaSpec) -> Result<KafkaSource, ConnectError> {
        spec.topics.iter().try_for_each(|t| check_topic(t))?;
        let mut settings = spec.cluster.settings()?;
        settings
            .set("group.id", &spec.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            .set("check.crcs", "true")
            .set("queued.max.messages.kbytes", QUEUED_KIB.to_string())
            .set("fetch.queue.backoff.ms", BACKOFF_MS.to_string())
            .set("fetch.message.max.bytes", FETCH_PARTITION_BYTES.to_string())
            .set("fetch.max.bytes", FETCH_BYTES.to_string())
            .set("fetch.wait.max.ms", FETCH_WAIT_MS.to_string());
        let failed = |notes: &Notes, doing: &str, e: &KafkaError| spec.cluster.failure(notes, doing, e);
        let consumer: BaseConsumer<Notes> = settings
            .create_with_context(Notes::default())
            .map_err(|e| failed(&Notes::default(), "cannot be set up", &e))?;
        let mut source =
            Shared { cluster_id: String::new(), consumer: Arc::new(consumer), bell: Arc::default(), spec };
        source.partitions()?;
        let id = source.consumer.client().fetch_cluster_id(source.spec.cluster.patience);
        source.cluster_id = id.ok_or_else(|| {
            source.failed("asking for the cluster's id", &KafkaError::MetadataFetch(Code::OperationTimedOut))
        })?;
        Ok(KafkaSource(Arc::new(source)))
    }

    /// All partitions that there are now, by topic and number. Ask again to find new ones.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers, `Config` if a topic is not there (any more).
    pub fn partitions(&self) -> Result<Vec<KafkaIdentity>, ConnectError> {
        self.0.partitions()
    }

    /// All partitions that there are now, asked of the cluster; and if there is trouble, each of them of the broker that has it: if
    /// all answer, the trouble is over, although no record may have come since.
    ///
    /// # Errors
    /// `Unavailable` if somebody does not answer, `Config` if a topic is not there (any more).
    pub fn look(&self) -> Result<Vec<KafkaIdentity>, ConnectError> {
        let notes = self.0.consumer.context();
        let before = notes.events();
        let found = self.0.partitions()?;
        if notes.trouble().is_some() {
            found.iter().try_for_each(|p| self.0.kept(p).map(drop))?;
            notes.forget_unless_new(before);
        }
        Ok(found)
    }

    /// Whether the topic holds what reading goes on with; changes nothing.
    ///
    /// # Errors
    /// As [`KafkaSource::open`].
    pub fn probe(&self, identity: &KafkaIdentity, offset: u64) -> Result<(), ConnectError> {
        self.0.check_cluster(identity)?;
        self.0.check_kept(identity, offset)
    }

    /// Where reading begins in these partitions.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers, `Config` if the group stands nowhere.
    pub fn starts(&self, of: &[KafkaIdentity], start: Start) -> Result<Vec<u64>, ConnectError> {
        match start {
            Start::Earliest => of.iter().map(|p| Ok(self.0.kept(p)?.0)).collect(),
            Start::Latest => of.iter().map(|p| Ok(self.0.kept(p)?.1)).collect(),
            Start::Timestamp(ms) => self.0.starts_at(of, ms),
            Start::Committed => self.0.committed(of),
        }
    }

    /// Opens a partition to read from `offset` on: what [`KafkaSource::starts`] gave, or a position a block gave.
    ///
    /// # Errors
    /// `Conflict` if the topic does not hold that offset any more, or not yet.
    pub fn open(&self, identity: &KafkaIdentity, offset: u64) -> Result<KafkaPartition, ConnectError> {
        self.probe(identity, offset)?;
        let stale = self.0.client_position(identity);
        let consumer = &self.0.consumer;
        let own_queue = consumer.split_partition_queue(&identity.topic, identity.partition);
        let mut queue = own_queue.ok_or_else(|| {
            ConnectError::Failed(format!("Kafka at {}: no queue for {identity}", self.0.spec.cluster.brokers))
        })?;
        let bell = self.0.bell.clone();
        queue.set_nonempty_callback(move || bell.ring());
        // After it has a queue of its own: so nothing of it comes by the queue that all share.
        let doing = || format!("reading {identity} from offset {offset}");
        list(&[(identity, offset)])
            .and_then(|one| consumer.incremental_assign(&one))
            .map_err(|e| self.0.failed(&doing(), &e))?;
        Ok(KafkaPartition {
            queue,
            identity: identity.clone(),
            position: offset,
            stale,
            taken: false,
            failed: None,
            source: self.clone(),
        })
    }

    /// Shows positions in the consumer group, for others to see how far this is. Does not wait; if it fails,
    /// [`KafkaSource::uncommitted`] says why, and nothing else depends on it.
    pub fn commit(&self, positions: &[(&KafkaIdentity, u64)]) {
        if positions.is_empty() {
            return;
        }
        hear(&self.0.consumer);
        if let Some(trouble) = self.trouble() {
            // It would wait for the cluster, and whoever lets go of the source would wait with it.
            return self.0.consumer.context().note_uncommitted(trouble);
        }
        let sent = list(positions).and_then(|l| self.0.consumer.commit(&l, CommitMode::Async));
        if let Err(e) = sent {
            self.0.consumer.context().note_uncommitted(reason(&e));
        }
    }

    /// Why the last commit of positions failed, said once.
    #[must_use]
    pub fn uncommitted(&self) -> Option<String> {
        self.0.consumer.context().take_uncommitted()
    }

    /// What is wrong with the connection, if anything has been since a record last came.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.0.consumer.context().trouble()
    }

    /// Waits until something new is there to be read, at most so long; whether it is. What was there before and was left
    /// unread is not new.
    pub fn wait(&self, at_most: Duration) -> bool {
        self.0.bell.wait(at_most)
    }
}

impl Shared {
    fn failed(&self, doing: &str, e: &KafkaError) -> ConnectError {
        self.spec.cluster.asking_failed(&self.consumer, doing, e)
    }

    fn partitions(&self) -> Result<Vec<KafkaIdentity>, ConnectError> {
        let mut found = Vec::new();
        for topic in &self.spec.topics {
            let numbers = self.spec.cluster.look_up(&self.consumer, topic)?;
            found.extend(numbers.into_iter().map(|partition| KafkaIdentity {
                cluster: self.cluster_id.clone(),
                topic: topic.clone(),
                partition,
            }));
        }
        found.sort();
        Ok(found)
    }

    /// Where the client is, marks of transactions included; it may still be where another reader of the partition was.
    fn client_position(&self, p: &KafkaIdentity) -> Option<u64> {
        let all = self.consumer.position().ok()?;
        match all.find_partition(&p.topic, p.partition)?.offset() {
            Offset::Offset(offset) => Some(offset.max(0) as u64),
            _ => None,
        }
    }

    /// The first offset that is kept, and the one that the next record of a finished transaction gets.
    fn kept(&self, p: &KafkaIdentity) -> Result<(u64, u64), ConnectError> {
        let asked = self.consumer.fetch_watermarks(&p.topic, p.partition, self.spec.cluster.patience);
        let (low, high) = asked.map_err(|e| self.failed(&format!("asking which offsets {p} holds"), &e))?;
        Ok((low.max(0) as u64, high.max(0) as u64))
    }

    fn check_cluster(&self, p: &KafkaIdentity) -> Result<(), ConnectError> {
        if p.cluster == self.cluster_id {
            return Ok(());
        }
        Err(ConnectError::Conflict(format!(
            "Kafka at {}: is the cluster {}, and {p} was read from the cluster {}: its offsets mean nothing here. \
             Name the brokers of that cluster, give the source another name, or start over with --fresh",
            self.spec.cluster.brokers, self.cluster_id, p.cluster
        )))
    }

    fn check_kept(&self, p: &KafkaIdentity, offset: u64) -> Result<(), ConnectError> {
        let (low, high) = self.kept(p)?;
        if (low..=high).contains(&offset) {
            return Ok(());
        }
        let what = if offset < low {
            format!(
                "those before were deleted before they were read (see `retention.ms` of topic `{}`)",
                p.topic
            )
        } else {
            format!("topic `{}` was deleted and made anew, or has lost records", p.topic)
        };
        Err(self.out_of_range(p, offset, &format!("it holds {low} to {high}: {what}")))
    }

    fn out_of_range(&self, p: &KafkaIdentity, offset: u64, what: &str) -> ConnectError {
        ConnectError::Conflict(format!(
            "Kafka at {}: {p} does not hold offset {offset}, where reading goes on; {what}. Nothing is skipped: start over \
             with --fresh, or read it as another source",
            self.spec.cluster.brokers
        ))
    }

    fn starts_at(&self, of: &[KafkaIdentity], ms: i64) -> Result<Vec<u64>, ConnectError> {
        let doing = "asking for the offsets of a time";
        let asked = list(&of.iter().map(|p| (p, ms.max(0) as u64)).collect::<Vec<_>>());
        let answer =
            asked.and_then(|times| self.consumer.offsets_for_times(times, self.spec.cluster.patience));
        let answer = answer.map_err(|e| self.failed(doing, &e))?;
        let found = |p: &KafkaIdentity| {
            let one = answer.find_partition(&p.topic, p.partition);
            match one.map(|e| e.error().map(|()| e.offset())).transpose() {
                Ok(Some(Offset::Offset(offset))) => Ok(offset.max(0) as u64),
                // Nothing was written since.
                Ok(_) => Ok(self.kept(p)?.1),
                Err(e) => Err(self.failed(doing, &e)),
            }
        };
        of.iter().map(found).collect()
    }

    fn committed(&self, of: &[KafkaIdentity]) -> Result<Vec<u64>, ConnectError> {
        let group = &self.spec.group;
        let doing = format!("asking where group `{group}` stands");
        let asked = list(&of.iter().map(|p| (p, 0)).collect::<Vec<_>>());
        let answer = asked.and_then(|l| self.spec.cluster.committed(&self.consumer, &l));
        let answer = answer.map_err(|e| self.failed(&doing, &e))?;
        let found = |p: &KafkaIdentity| {
            let one = answer.find_partition(&p.topic, p.partition);
            match one.map(|e| e.error().map(|()| e.offset())).transpose() {
                Ok(Some(Offset::Offset(offset))) => Ok(offset.max(0) as u64),
                Ok(_) => Err(ConnectError::Config(format!(
                    "Kafka at {}: group `{group}` has committed no offset of {p}, so there is no place to start at; \
                     start at `earliest`, `latest` or a time",
                    self.spec.cluster.brokers
                ))),
                Err(e) => Err(self.failed(&doing, &e)),
            }
        };
        of.iter().map(found).collect()
    }
}

fn list(positions: &[(&KafkaIdentity, u64)]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for (p, offset) in positions {
        let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
        list.add_partition_offset(&p.topic, p.partition, offset)?;
    }
    Ok(list)
}

/// One partition of a topic, being read.
pub struct KafkaPartition {
    // Before the source: the last clone takes the consumer with it, which must outlive its queues.
    queue: PartitionQueue<Notes>,
    identity: KafkaIdentity,
    /// The offset behind the last record that was taken, tombstones too.
    position: u64,
    /// Where the client was before this was opened: not our position.
    stale: Option<u64>,
    /// A record was taken: from then on the client's position is ours.
    taken: bool,
    /// Came after records that were to be handed out first.
    failed: Option<Code>,
    source: KafkaSource,
}

impl KafkaPartition {
    /// Where reading goes on: beyond the last block's `next_offset`, where tombstones or marks of transactions follow it. Ask
    /// between reads, once all that was read is safe. To keep the lesser would be right too, until the topic deletes what lies
    /// between: then it would be missed, although nothing of it is.
    #[must_use]
    pub fn position(&self) -> u64 {
        let client = self.source.0.client_position(&self.identity);
        client
            .filter(|c| self.taken || Some(*c) != self.stale)
            .map_or(self.position, |c| c.max(self.position))
    }

    /// What identifies it.
    #[must_use]
    pub fn identity(&self) -> &KafkaIdentity {
        &self.identity
    }

    fn failure(&self, code: Code) -> ConnectError {
        let shared = &self.source.0;
        if matches!(code, Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation) {
            // Said with what it holds now, if it can be asked.
            let asked = shared.check_kept(&self.identity, self.position);
            return asked.err().filter(|e| matches!(e, ConnectError::Conflict(_))).unwrap_or_else(|| {
                shared.out_of_range(
                    &self.identity,
                    self.position,
                    "records were deleted or lost while it was being read",
                )
            });
        }
        shared.failed(&format!("reading {}", self.identity), &KafkaError::MessageConsumption(code))
    }

    /// Takes what waits, until the block is full; the error that ended it.
    fn fill(&mut self, block: &mut Block) -> Option<Code> {
        while block.bytes.len() < BLOCK_BYTES {
            match self.queue.poll(Duration::ZERO)? {
                Ok(message) => {
                    self.position = message.offset().max(0) as u64 + 1;
                    self.taken = true;
                    append(block, &message);
                }
                Err(e) => return Some(e.rdkafka_error_code().unwrap_or(Code::Unknown)),
            }
        }
        None
    }
}

/// A record without a value is a tombstone: it says that a key is no more, which is no event.
fn append(block: &mut Block, message: &BorrowedMessage<'_>) {
    if let Some(value) = message.payload() {
        let kept = &value[..value.len().min(RECORD_BYTES_MAX)];
        block.spans.push(Span {
            at: block.bytes.len() as u32,
            len: kept.len() as u32,
            offset: message.offset().max(0) as u64,
            size: value.len() as u64,
        });
        block.bytes.extend_from_slice(kept);
    }
}

/// Errors that end the reading of a partition; of others the client says that it tries again.
fn ends_reading(code: Code) -> bool {
    matches!(
        code,
        Code::AutoOffsetReset
            | Code::OffsetOutOfRange
            | Code::LogTruncation
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::BadMessage
            | Code::BadCompression
            | Code::NotImplemented
    )
}

impl Partition for KafkaPartition {
    fn read(&mut self, block: &mut Block) -> Result<Read, ConnectError> {
        if let Some(code) = self.failed {
            return Err(self.failure(code));
        }
        self.failed = self.fill(block).filter(|code| ends_reading(*code));
        block.next_offset = self.position;
        if !block.spans.is_empty() {
            self.source.0.consumer.context().forget();
            return Ok(Read::Data);
        }
        hear(&self.source.0.consumer);
        if let Some(e) = self.source.0.consumer.context().decisive() {
            return Err(self.source.0.failed(&format!("reading {}", self.identity), &e));
        }
        match self.failed {
            Some(code) => Err(self.failure(code)),
            None => Ok(Read::Pending),
        }
    }

    /// Records of a topic have no header.
    fn header(&self) -> Option<&[u8]> {
        None
    }
}

impl Drop for KafkaPartition {
    fn drop(&mut self) {
        let Ok(one) = list(&[(&self.identity, 0)]) else { return };
        // Not read any more; if that cannot be said, the consumer is on its way out too.
        let _ = self.source.0.consumer.incremental_unassign(&one);
    }
}
