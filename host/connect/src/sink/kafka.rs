//! A topic of Kafka: session revisions as JSON, keyed by session id, or dead letters; one transaction an epoch.
//!
//! The *mark* says how far the topic is: the epoch, as the offset that a consumer group has committed for partition 0 of the
//! topic, and in that offset's metadata the incarnation that may write. It moves in the transaction of the rows, so rows and
//! mark are there together or not at all, and a reader of committed records sees each revision once.
//!
//! Invariants:
//! - Whatever happens to a transaction, nothing is sent again before the mark was read, by a producer that has ended all
//!   transactions before its own. So it does not matter whether a lost answer was a yes.
//! - Opening fences: producers with the same transactional id write nothing more. An incarnation below the mark's is refused
//!   before it fences anybody, and one that was fenced by a higher one never writes again.
//! - An epoch without rows writes nothing; the mark is renewed before brokers forget it.
//! - Memory: [`QUEUE_KIB`] of messages wait in the client, whatever the epoch's size.

use super::content::{Content, letter_lines};
use super::{Sink, TakenBack, letters, line};
use crate::kafka::{Cluster, EVENTS_MAX, Notes, check_topic};
use crate::{ConnectError, Cursor};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tidemill_engine::outbox::{Outbox, Revision, Stages};

/// Bytes of one message by default: what brokers take by default (`max.message.bytes`, 1,048,588), less the frame around it.
pub const MESSAGE_BYTES_MAX: usize = 1_000_000;
/// Messages on their way: an epoch is sent through this. librdkafka's own bound is a gigabyte.
const QUEUE_KIB: usize = 32 << 10;
/// After so long brokers end a transaction that nobody ends, and let readers go on. Longer than any delivery takes.
const TRANSACTION_MS: u32 = 60_000;
/// Messages between two looks at what became of the earlier ones.
const LOOK_EVERY: usize = 1_000;
/// While the queue is full.
const PACE: Duration = Duration::from_millis(10);
/// Brokers forget a group's offsets after `offsets.retention.minutes` (7 days by default) without a commit.
const MARK_RENEWED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// What a message takes beside key, value and headers, at most.
const FRAME_BYTES: usize = 100;

/// Where a sink writes.
#[derive(Clone, Debug)]
pub struct KafkaTarget {
    /// The cluster.
    pub cluster: Cluster,
    /// The topic, which must be there.
    pub topic: String,
    /// Bytes of one message; not above the topic's own `max.message.bytes`.
    pub message_bytes_max: usize,
}

impl KafkaTarget {
    /// With what brokers take by default.
    #[must_use]
    pub fn new(cluster: Cluster, topic: impl Into<String>) -> KafkaTarget {
        KafkaTarget { cluster, topic: topic.into(), message_bytes_max: MESSAGE_BYTES_MAX }
    }
}

/// See the module's documentation.
pub struct KafkaSink {
    target: KafkaTarget,
    pipeline: String,
    sink: String,
    content: Content,
    /// `None` before `open`.
    incarnation: Option<u64>,
    /// `None` after a failure: the next delivery makes a new one, and reads the mark.
    writer: Option<Writer>,
    cursor: Cursor,
    /// The last epoch of our own incarnation that was delivered; see the sink of SQLite.
    own_epoch: u64,
    /// The mark of a transaction that may have been committed.
    in_doubt: Option<Mark>,
    marked_at: Instant,
    /// Why nothing may be written any more.
    fenced: Option<String>,
}

struct Writer {
    producer: BaseProducer<Notes>,
    group: ConsumerGroupMetadata,
}

/// How far the topic is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mark {
    /// The last epoch that brought rows.
    epoch: u64,
    note: MarkNote,
}

/// What stands beside the offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct MarkNote {
    /// Who may write.
    incarnation: u64,
    /// Who produced the epoch: one of another branch of the log may have the same number.
    epoch_of: u64,
}

impl KafkaSink {
    /// A topic for the revisions with these stages; `pipeline` and `sink` name whose they are.
    #[must_use]
    pub fn sessions(target: KafkaTarget, pipeline: String, sink: String, stages: Stages) -> KafkaSink {
        KafkaSink::new(target, pipeline, sink, Content::Sessions(stages))
    }

    /// A topic of dead letters, each as the epoch holds it, without its line end.
    #[must_use]
    pub fn letters(target: KafkaTarget, pipeline: String, sink: String) -> KafkaSink {
        KafkaSink::new(target, pipeline, sink, Content::Letters)
    }

    fn new(target: KafkaTarget, pipeline: String, sink: String, content: Content) -> KafkaSink {
        KafkaSink {
            target,
            pipeline,
            sink,
            content,
            incarnation: None,
            writer: None,
            cursor: Cursor::default(),
            own_epoch: 0,
            in_doubt: None,
            marked_at: Instant::now(),
            fenced: None,
        }
    }

    /// The transactional id, and the group of the mark. Unique in a cluster: names have no dots, and the same names with
    /// another topic are another pipeline's, of another installation.
    fn id(&self) -> String {
        format!("tidemill-{}.{}.{}", self.pipeline, self.sink, self.target.topic)
    }

    fn cluster(&self) -> &Cluster {
        &self.target.cluster
    }

    /// Reads marks, and lends a producer its group; commits nothing itself. `settled`: while a transaction that moves the mark
    /// is open, the mark is waited for, else the one before it is read.
    fn consumer(&self, settled: bool) -> Result<BaseConsumer<Notes>, ConnectError> {
        check_topic(&self.target.topic)?;
        let mut settings = self.cluster().settings()?;
        settings
            .set("group.id", self.id())
            .set("enable.auto.commit", "false")
            .set("allow.auto.create.topics", "false")
            .set("isolation.level", if settled { "read_committed" } else { "read_uncommitted" });
        let made = settings.create_with_context(Notes::default());
        made.map_err(|e| self.cluster().failure(&Notes::default(), "cannot be set up", &e))
    }

    fn mark(&self, consumer: &BaseConsumer<Notes>) -> Result<Option<Mark>, ConnectError> {
        let topic = &self.target.topic;
        let doing = format!("asking how far topic `{topic}` is");
        let failed = |e: &KafkaError| self.cluster().asking_failed(consumer, &doing, e);
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, 0);
        let found = self.cluster().committed(consumer, &asked).map_err(|e| failed(&e))?;
        let Some(one) = found.find_partition(topic, 0) else { return Ok(None) };
        one.error().map_err(|e| failed(&e))?;
        let Offset::Offset(epoch) = one.offset() else { return Ok(None) };
        let note = serde_json::from_str(one.metadata()).map_err(|_| {
            ConnectError::Conflict(format!(
                "Kafka at {}: somebody else has committed offset {epoch} of topic `{topic}` in group `{}`, where this sink \
                 keeps how far it is; delete that group, then `--resend {}` sends again what is still kept",
                self.cluster().brokers,
                self.id(),
                self.sink
            ))
        })?;
        Ok(Some(Mark { epoch: epoch.max(0) as u64, note }))
    }

    /// The mark, read without fencing anybody. The transaction of one who was killed may be open, and only fencing ends it: so
    /// it is not waited for.
    fn look(&self) -> Result<Option<Mark>, ConnectError> {
        let consumer = self.consumer(false)?;
        // A topic is not made by writing to it: nobody would have chosen its partitions and retention.
        self.cluster().look_up(&consumer, &self.target.topic)?;
        self.mark(&consumer)
    }

    fn refuse_if_newer(&self, mark: Option<Mark>, incarnation: u64) -> Result<(), ConnectError> {
        match mark.map(|m| m.note.incarnation).filter(|theirs| *theirs > incarnation) {
            Some(theirs) => Err(ConnectError::Conflict(format!(
                "Kafka at {}: topic `{}` was last written by incarnation {theirs} of pipeline {}, this run is {incarnation}: \
                 another tidemill with another data_dir writes here, or the data_dir was removed; use that data_dir, another \
                 topic, or another name of the sink",
                self.cluster().brokers,
                self.target.topic,
                self.pipeline
            ))),
            None => Ok(()),
        }
    }

    /// Makes a producer, ends all transactions before its own, and reads the mark that is left.
    fn attach(&self, incarnation: u64) -> Result<(Writer, Option<Mark>), ConnectError> {
        self.refuse_if_newer(self.look()?, incarnation)?;
        let producer = self.producer()?;
        let begun = producer.init_transactions(self.cluster().patience);
        begun.map_err(|e| self.send_failed(&producer, "beginning to write", &e))?;
        let consumer = self.consumer(true)?;
        let mark = self.mark(&consumer)?;
        self.refuse_if_newer(mark, incarnation)?;
        let group = consumer.group_metadata().ok_or_else(|| {
            ConnectError::Failed(format!("Kafka at {}: no group to keep the mark in", self.cluster().brokers))
        })?;
        Ok((Writer { producer, group }, mark))
    }

    fn producer(&self) -> Result<BaseProducer<Notes>, ConnectError> {
        let mut settings = self.cluster().settings()?;
        settings
            .set("transactional.id", self.id())
            .set("transaction.timeout.ms", TRANSACTION_MS.to_string())
            .set("message.timeout.ms", self.cluster().patience_ms().to_string())
            .set("message.max.bytes", self.target.message_bytes_max.to_string())
            .set("batch.size", self.target.message_bytes_max.to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string())
            .set("compression.type", "lz4")
            // As Java's producers place keys, so that topics written by both are one.
            .set("partitioner", "murmur2_random");
        let made = settings.create_with_context(Notes::default());
        made.map_err(|e| self.cluster().failure(&Notes::default(), "cannot be set up", &e))
    }

    fn send_failed(&self, producer: &BaseProducer<Notes>, doing: &str, e: &KafkaError) -> ConnectError {
        // Lets the client tell why.
        (0..EVENTS_MAX).for_each(|_| producer.poll(Duration::ZERO));
        self.cluster().failure(producer.context(), doing, e)
    }

    /// One transaction: what `fill` sends, and the mark. On failure nobody knows whether it was committed.
    fn transact(
        &mut self,
        writer: &Writer,
        mark: Mark,
        fill: impl FnOnce(&Self, &BaseProducer<Notes>) -> Result<(), ConnectError>,
    ) -> Result<(), ConnectError> {
        let producer = &writer.producer;
        let topic = &self.target.topic;
        let doing = format!("writing epoch {} to topic `{topic}`", mark.epoch);
        let failed = |e: &KafkaError| self.send_failed(producer, &doing, e);
        producer.context().forget();
        producer.begin_transaction().map_err(|e| failed(&e))?;
        let patience = self.cluster().patience;
        let filled = fill(self, producer).and_then(|()| {
            let offsets = self.mark_as_offset(mark).map_err(|e| failed(&e))?;
            producer
                .send_offsets_to_transaction(&offsets, &writer.group, patience)
                .map_err(|e| failed(&e))?;
            producer.flush(patience).map_err(|e| failed(&e))
        });
        if let Err(e) = filled {
            // So that readers need not wait until the brokers give it up. If this fails too, the next producer does it.
            let _ = producer.abort_transaction(patience);
            return Err(e);
        }
        let committed = producer.commit_transaction(patience);
        if let Err(e) = committed {
            let why = failed(&e);
            match &e {
                KafkaError::Transaction(t) if t.txn_requires_abort() => {
                    let _ = producer.abort_transaction(patience);
                }
                _ => self.in_doubt = Some(mark),
            }
            return Err(why);
        }
        self.marked_at = Instant::now();
        Ok(())
    }

    fn mark_as_offset(&self, mark: Mark) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        let note = serde_json::to_string(&mark.note).unwrap_or_default();
        let mut one = list.add_partition(&self.target.topic, 0);
        one.set_offset(Offset::Offset(i64::try_from(mark.epoch).unwrap_or(i64::MAX)))?;
        one.set_metadata(note);
        Ok(list)
    }

    /// Like [`KafkaSink::transact`] by the writer that there is; after a failure there is none.
    fn write(
        &mut self,
        mark: Mark,
        fill: impl FnOnce(&Self, &BaseProducer<Notes>) -> Result<(), ConnectError>,
    ) -> Result<(), ConnectError> {
        let Some(writer) = self.writer.take() else { return Err(self.not_open()) };
        match self.transact(&writer, mark, fill) {
            Ok(()) => {
                self.writer = Some(writer);
                Ok(())
            }
            Err(ConnectError::Conflict(why)) => Err(self.fenced_or(why, mark.note.incarnation)),
            Err(e) => Err(e),
        }
    }

    /// A producer is fenced by a newer run, or by brokers that gave its transaction up; only the first is for good.
    fn fenced_or(&mut self, why: String, incarnation: u64) -> ConnectError {
        match self.look() {
            Ok(mark) if self.refuse_if_newer(mark, incarnation).is_err() => {
                let theirs = mark.map_or(0, |m| m.note.incarnation);
                let why = format!(
                    "Kafka at {}: incarnation {theirs} of pipeline {} has taken over topic `{}`; this run, {incarnation}, \
                     wrote nothing more",
                    self.cluster().brokers,
                    self.pipeline,
                    self.target.topic
                );
                self.fenced = Some(why.clone());
                ConnectError::Conflict(why)
            }
            Ok(_) => ConnectError::Unavailable(why),
            Err(e) => e,
        }
    }

    fn send_all(&self, producer: &BaseProducer<Notes>, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        match self.content {
            Content::Sessions(stages) => self.send_sessions(producer, outbox, stages),
            Content::Letters => self.send_letters(producer, outbox),
        }
    }

    fn send_sessions(
        &self,
        producer: &BaseProducer<Notes>,
        outbox: &Outbox<'_>,
        stages: Stages,
    ) -> Result<(), ConnectError> {
        let mut value = Vec::new();
        for (i, (revision, row)) in outbox.sessions(stages).enumerate() {
            value.clear();
            line::put_session(&mut value, &self.pipeline, revision, &row);
            let value = value.trim_ascii_end();
            let key = line::hex_id(row.id);
            let fits = value.len() + key.len() + FRAME_BYTES <= self.target.message_bytes_max;
            if !fits {
                let what = format!("session {}", String::from_utf8_lossy(&key));
                return Err(self.too_large(&what, value.len()));
            }
            let headers = headers(revision, Some(row.stage.name()));
            self.send(producer, Some(&key), value, headers)?;
            look_now_and_then(producer, i);
        }
        Ok(())
    }

    fn send_letters(&self, producer: &BaseProducer<Notes>, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        let revision = Revision { incarnation: outbox.incarnation, epoch: outbox.epoch };
        let room = self.target.message_bytes_max.saturating_sub(FRAME_BYTES);
        for (i, letter) in letter_lines(outbox).enumerate() {
            let cut = (letter.len() > room).then(|| letters::cut(letter, room));
            let letter = match &cut {
                None => letter,
                Some(Some(cut)) => cut,
                Some(None) => return Err(self.too_large("a dead letter without its record", letter.len())),
            };
            self.send(producer, None, letter, headers(revision, None))?;
            look_now_and_then(producer, i);
        }
        Ok(())
    }

    fn send(
        &self,
        producer: &BaseProducer<Notes>,
        key: Option<&[u8]>,
        value: &[u8],
        headers: OwnedHeaders,
    ) -> Result<(), ConnectError> {
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&self.target.topic).payload(value).headers(headers);
        record.key = key;
        let begun = Instant::now();
        loop {
            let failed =
                |e| Err(self.send_failed(producer, &format!("writing to topic `{}`", self.target.topic), &e));
            match producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), again))
                    if begun.elapsed() < self.cluster().patience && !producer.context().is_undelivered() =>
                {
                    producer.poll(PACE);
                    record = again;
                }
                Err((e, _)) => return failed(e),
            }
        }
    }

    /// A row is not cut: who reads it would not know what is missing. The epoch stays in the log until it can be sent.
    fn too_large(&self, what: &str, bytes: usize) -> ConnectError {
        ConnectError::Config(format!(
            "Kafka at {}: {what} is a message of {bytes} bytes, and `message_bytes_max` is {}; raise it, and \
             `max.message.bytes` of topic `{}` with it: nothing was written, and this epoch is sent then",
            self.cluster().brokers,
            self.target.message_bytes_max,
            self.target.topic
        ))
    }

    /// The mark beside the store's cursor: it may lie behind the epoch that the store knows, since epochs without rows do not
    /// move it, but not behind the last one that brought rows.
    fn against(&self, own: u64, stored: Option<Cursor>) -> Result<Cursor, ConnectError> {
        let stored = stored.unwrap_or_default();
        if own < stored.length {
            return Err(ConnectError::Conflict(format!(
                "Kafka at {}: topic `{}` stands at epoch {own}, but was known to have epoch {}: it is another one, or was put \
                 back; `--resend {}` sends again what is still kept",
                self.cluster().brokers,
                self.target.topic,
                stored.length,
                self.sink
            )));
        }
        Ok(Cursor { epoch: own.max(stored.epoch), length: own })
    }

    fn not_open(&self) -> ConnectError {
        ConnectError::Failed(format!(
            "Kafka at {}: topic `{}` is not open",
            self.cluster().brokers,
            self.target.topic
        ))
    }

    /// After a failure: whether the transaction in doubt was committed shows in the mark.
    fn attach_again(&mut self, incarnation: u64) -> Result<(), ConnectError> {
        let (writer, mark) = self.attach(incarnation)?;
        if let Some(doubted) = self.in_doubt.take().filter(|d| mark == Some(*d)) {
            self.delivered(doubted.epoch, doubted.epoch, doubted.note);
        }
        self.writer = Some(writer);
        Ok(())
    }

    fn delivered(&mut self, epoch: u64, with_rows: u64, note: MarkNote) {
        self.cursor = Cursor { epoch, length: with_rows };
        if note.epoch_of == note.incarnation {
            self.own_epoch = epoch;
        }
    }
}

fn headers(revision: Revision, stage: Option<&str>) -> OwnedHeaders {
    let revision = format!("{}/{}", revision.incarnation, revision.epoch);
    let headers =
        OwnedHeaders::new_with_capacity(2).insert(Header { key: "revision", value: Some(&revision) });
    match stage {
        Some(stage) => headers.insert(Header { key: "stage", value: Some(stage) }),
        None => headers,
    }
}

/// What became of earlier messages is told as events, which take memory until they are looked at.
fn look_now_and_then(producer: &BaseProducer<Notes>, sent: usize) {
    if sent.is_multiple_of(LOOK_EVERY) {
        producer.poll(Duration::ZERO);
    }
}

impl Sink for KafkaSink {
    fn open(&mut self, incarnation: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError> {
        self.writer = None;
        self.in_doubt = None;
        self.fenced = None;
        self.own_epoch = 0;
        self.incarnation = Some(incarnation);
        let (writer, mark) = self.attach(incarnation)?;
        self.writer = Some(writer);
        let expected = stored.is_some_and(|c| c.epoch > 0);
        if mark.is_none() && expected {
            // Lost; whoever goes on all the same opens again.
            self.cursor = Cursor::default();
            return Ok(None);
        }
        let (epoch, epoch_of) = mark.map_or((0, 0), |m| (m.epoch, m.note.epoch_of));
        let found = self.against(epoch, stored)?;
        // Says that it is ours before anything else is written, so that a lower incarnation is refused from now on.
        self.write(Mark { epoch, note: MarkNote { incarnation, epoch_of } }, |_, _| Ok(()))?;
        self.cursor = found;
        Ok(Some(found))
    }

    fn witness(&self) -> Result<Option<u64>, ConnectError> {
        Ok(self.look()?.map(|m| m.epoch))
    }

    fn probe(&self, stored: Option<Cursor>) -> Result<(), ConnectError> {
        match (self.look()?, stored) {
            (None, Some(c)) if c.epoch > 0 => Err(ConnectError::Conflict(format!(
                "Kafka at {}: group `{}` is gone, and with it the word that topic `{}` has epoch {}; `--resend {}` sends \
                 again what is still kept",
                self.cluster().brokers,
                self.id(),
                self.target.topic,
                c.epoch,
                self.sink
            ))),
            (mark, _) => self.against(mark.map_or(0, |m| m.epoch), stored).map(drop),
        }
    }

    fn take_back(
        &mut self,
        incarnation: u64,
        cut: u64,
        stored: Option<Cursor>,
    ) -> Result<TakenBack, ConnectError> {
        let found = self.open(incarnation, stored)?;
        if found.is_some_and(|c| c.length > cut) {
            let note = MarkNote { incarnation, epoch_of: incarnation };
            self.write(Mark { epoch: cut, note }, |_, _| Ok(()))?;
        }
        // Opened anew by the next run, which reads the mark again.
        self.writer = None;
        self.incarnation = None;
        Ok(TakenBack::Stays)
    }

    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError> {
        if let Some(why) = &self.fenced {
            return Err(ConnectError::Conflict(why.clone()));
        }
        let Some(incarnation) = self.incarnation else { return Err(self.not_open()) };
        if self.writer.is_none() {
            self.attach_again(incarnation)?;
        }
        let ours_and_new = outbox.incarnation == incarnation && outbox.epoch > self.own_epoch;
        if outbox.epoch <= self.cursor.epoch && !ours_and_new {
            return Ok(self.cursor);
        }
        let note = MarkNote { incarnation, epoch_of: outbox.incarnation };
        let mut with_rows = self.cursor.length;
        if self.content.is_in(outbox) {
            self.write(Mark { epoch: outbox.epoch, note }, |sink, producer| sink.send_all(producer, outbox))?;
            with_rows = outbox.epoch;
        } else if self.marked_at.elapsed() > MARK_RENEWED_AFTER {
            self.write(Mark { epoch: outbox.epoch, note }, |_, _| Ok(()))?;
            with_rows = outbox.epoch;
        }
        self.delivered(outbox.epoch, with_rows, note);
        Ok(self.cursor)
    }

    fn delete_all(&mut self) -> Result<(), ConnectError> {
        let mark = self.look()?;
        if mark.is_none_or(|m| m.epoch == 0) {
            return Ok(());
        }
        Err(ConnectError::Config(format!(
            "Kafka at {}: topic `{}` has rows of this pipeline, and a topic's records cannot be deleted one by one; name \
             another topic, or delete this one and its group `{}`",
            self.cluster().brokers,
            self.target.topic,
            self.id()
        )))
    }
}
