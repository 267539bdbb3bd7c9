//! A subscription of Pub/Sub, pulled into an ingest log: a message is acknowledged once its record is durable there.
//!
//! Invariants: nothing is acknowledged before it is durable; messages are appended in the order of delivery, so those of one ordering
//! key are read in theirs; what is held and not yet durable is bounded, and while the log is full nothing is read on and leases are
//! renewed. A message that comes again after its append is a copy: its id is in the record, and the fold tells it.

use super::ingest_log::{Done, IngestLog, RECORD_BYTES_MAX, Refused};
use crate::ConnectError;
use crate::google::{failure, later};
use crate::pubsub::{Project, Way};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as api;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

/// The field that a record gets with Pub/Sub's own id of the message.
pub const ID_FIELD: &str = "pubsub_message_id";
/// What lets in.
const RIGHTS: &str = "roles/pubsub.subscriber`";
/// So often leases are renewed while they last: often enough that one call may fail.
const RENEWALS: u32 = 3;
/// How often a full log is asked again, and a wish to stop looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Acknowledgements of one call: ids have some 200 bytes, and a call may have 512 KiB.
const IDS_MAX: usize = 1_000;

/// A subscription, and how much of it is held at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Where it is.
    pub project: Project,
    /// Its name.
    pub name: String,
    /// Messages that are held and not acknowledged, at most.
    pub outstanding_messages: u32,
    /// Their bytes, at most; one message more may come.
    pub outstanding_bytes: u64,
    /// How long a message is ours before it is given to others, unless that is renewed; 10 s to 10 min, by the service's own rule.
    pub lease: Duration,
}

impl Subscription {
    /// What messages call it.
    #[must_use]
    pub fn place(&self) -> String {
        self.project.place("subscription", &self.name)
    }

    fn full_name(&self) -> String {
        format!("projects/{}/subscriptions/{}", self.project.project, self.name)
    }

    /// Pulls until it is to stop. `heard` is called with each answer that is no failure; `known`: the service has let in before, so that
    /// a refusal may pass.
    ///
    /// # Errors
    /// `Unavailable` if the stream broke: call again, and what was not acknowledged comes again. `Config` if it is refused for good.
    /// `Storage` if the log failed.
    pub fn pull(
        &self,
        log: &IngestLog,
        known: bool,
        stop: impl Fn() -> bool,
        heard: impl Fn(),
    ) -> Result<(), ConnectError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| ConnectError::Failed(format!("{}: no runtime: {e}", self.place())))?;
        let ended = runtime.block_on(async {
            let way = self.project.connect(self.place()).await?;
            Puller::open(self, way, log, heard).await?.run(stop).await
        });
        // Nobody waits for a connection whose other end is silent.
        runtime.shutdown_background();
        if known { ended.map_err(later) } else { ended }
    }
}

/// What is held of messages until they are acknowledged.
#[derive(Default)]
struct Held {
    /// Acknowledgement id and bytes, by the order of delivery.
    by_number: BTreeMap<u64, (String, u64)>,
    bytes: u64,
    next: u64,
}

impl Held {
    fn add(&mut self, id: String, bytes: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.by_number.insert(number, (id, bytes));
        number
    }
    fn id(&self, number: u64) -> Option<String> {
        self.by_number.get(&number).map(|(id, _)| id.clone())
    }
    fn remove(&mut self, number: u64) {
        if let Some((_, bytes)) = self.by_number.remove(&number) {
            self.bytes -= bytes;
        }
    }
}

type Opened = Result<Response<Streaming<api::StreamingPullResponse>>, Status>;

/// The service may begin its answer only when there is a message.
enum Answers {
    Coming(tokio::task::JoinHandle<Opened>),
    There(Box<Streaming<api::StreamingPullResponse>>),
}

struct Puller<'a, H> {
    of: &'a Subscription,
    way: Way,
    log: &'a IngestLog,
    heard: H,
    /// Held open: the stream lasts as long as somebody may ask.
    ask: mpsc::Sender<api::StreamingPullRequest>,
    answers: Answers,
    held: Held,
    /// Records that wait for room in the log.
    waiting: VecDeque<(u64, Vec<u8>)>,
    told: mpsc::UnboundedSender<(Vec<u64>, Result<(), Refused>)>,
    durable: mpsc::UnboundedReceiver<(Vec<u64>, Result<(), Refused>)>,
}

impl<'a, H: Fn()> Puller<'a, H> {
    async fn open(
        of: &'a Subscription,
        way: Way,
        log: &'a IngestLog,
        heard: H,
    ) -> Result<Puller<'a, H>, ConnectError> {
        let (ask, requests) = mpsc::channel(2);
        let first = api::StreamingPullRequest {
            subscription: of.full_name(),
            stream_ack_deadline_seconds: seconds(of.lease),
            max_outstanding_messages: i64::from(of.outstanding_messages),
            max_outstanding_bytes: i64::try_from(of.outstanding_bytes).unwrap_or(i64::MAX),
            ..api::StreamingPullRequest::default()
        };
        // There is room: it is the first.
        let _ = ask.try_send(first);
        let request = way.request("subscription", &of.full_name(), ReceiverStream::new(requests)).await?;
        let mut client = way.subscriber();
        let coming = tokio::spawn(async move { client.streaming_pull(request).await });
        let (told, durable) = mpsc::unbounded_channel();
        Ok(Puller {
            of,
            way,
            log,
            heard,
            ask,
            answers: Answers::Coming(coming),
            held: Held::default(),
            waiting: VecDeque::new(),
            told,
            durable,
        })
    }

    async fn run(&mut self, stop: impl Fn() -> bool) -> Result<(), ConnectError> {
        let ended = match self.go_on(stop).await {
            Ok(()) => self.settle().await,
            broken => broken,
        };
        // What is left is let go, if that still can be said: it comes again at once, and not only when its lease has run out.
        let _ = self.lease(0).await;
        ended
    }

    async fn go_on(&mut self, stop: impl Fn() -> bool) -> Result<(), ConnectError> {
        let mut look = tokio::time::interval(LOOK);
        let mut renew = tokio::time::interval(self.of.lease / RENEWALS);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop() {
            let reads = self.has_room();
            tokio::select! {
                biased;
                Some(done) = self.durable.recv() => self.acknowledge(done).await?,
                _ = renew.tick() => self.renew().await?,
                answer = next(&mut self.answers), if reads => self.take(answer)?,
                _ = look.tick() => {}
            }
            self.append()?;
        }
        Ok(())
    }

    /// Whether more may be read.
    fn has_room(&self) -> bool {
        self.waiting.is_empty()
            && self.held.by_number.len() < self.of.outstanding_messages as usize
            && self.held.bytes < self.of.outstanding_bytes
    }

    fn take(
        &mut self,
        answer: Result<Option<api::StreamingPullResponse>, Status>,
    ) -> Result<(), ConnectError> {
        let answer = answer.map_err(|e| failure(&self.way.place, RIGHTS, &e))?;
        let Some(answer) = answer else {
            return Err(ConnectError::Unavailable(format!("{}: the stream was closed", self.way.place)));
        };
        (self.heard)();
        for received in answer.received_messages {
            let message = received.message.unwrap_or_default();
            let record = record(&message.message_id, message.data);
            let number = self.held.add(received.ack_id, record.len() as u64);
            self.waiting.push_back((number, record));
        }
        Ok(())
    }

    /// Appends what waits, all together, or leaves it where it is while the log is full.
    fn append(&mut self) -> Result<(), ConnectError> {
        if self.waiting.is_empty() || self.log.is_full() {
            return Ok(());
        }
        let (numbers, records): (Vec<u64>, Vec<Vec<u8>>) = self.waiting.drain(..).unzip();
        let (told, of_these) = (self.told.clone(), numbers.clone());
        // Nobody listens any more when the stream has ended: the messages come again.
        let done: Done = Box::new(move |kept| drop(told.send((of_these, kept))));
        match self.log.append(records.clone(), done) {
            Ok(()) => Ok(()),
            Err(Refused::Full) => {
                self.waiting.extend(numbers.into_iter().zip(records));
                Ok(())
            }
            Err(e) => Err(self.failed(&e)),
        }
    }

    async fn acknowledge(&mut self, done: (Vec<u64>, Result<(), Refused>)) -> Result<(), ConnectError> {
        let (mut numbers, mut kept) = done;
        loop {
            kept.map_err(|e| self.failed(&e))?;
            if numbers.len() >= IDS_MAX {
                break;
            }
            let Ok(more) = self.durable.try_recv() else { break };
            numbers.extend(more.0);
            kept = more.1;
        }
        for numbers in numbers.chunks(IDS_MAX) {
            let ack_ids = numbers.iter().filter_map(|n| self.held.id(*n)).collect();
            let body = api::AcknowledgeRequest { subscription: self.of.full_name(), ack_ids };
            let request = self.way.request("subscription", &self.of.full_name(), body).await?;
            let answer = self.way.within(self.way.subscriber().acknowledge(request)).await?;
            // A subscription that delivers exactly once says so if an id is no longer ours: that message comes again, a copy.
            answer.map(drop).or_else(|e| self.bear(&e, "acknowledgements were refused"))?;
            numbers.iter().for_each(|n| self.held.remove(*n));
        }
        Ok(())
    }

    /// What a failed call means for what is held: leases that have run out are no failure of the stream.
    fn bear(&self, status: &Status, what: &str) -> Result<(), ConnectError> {
        match failure(&self.way.place, RIGHTS, status) {
            ConnectError::Config(why)
                if matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) =>
            {
                Err(ConnectError::Unavailable(format!("{why}: {what}, and their messages come again")))
            }
            e => Err(e),
        }
    }

    /// Keeps what is held ours.
    async fn renew(&mut self) -> Result<(), ConnectError> {
        self.lease(seconds(self.of.lease)).await?;
        // Says that somebody is here. While earlier ones wait to be sent nothing more has to be said.
        let _ = self.ask.try_send(api::StreamingPullRequest::default());
        Ok(())
    }

    /// From now on what is held is ours for so long.
    async fn lease(&self, seconds: i32) -> Result<(), ConnectError> {
        let ids: Vec<String> = self.held.by_number.values().map(|(id, _)| id.clone()).collect();
        for ids in ids.chunks(IDS_MAX) {
            let body = api::ModifyAckDeadlineRequest {
                subscription: self.of.full_name(),
                ack_ids: ids.to_vec(),
                ack_deadline_seconds: seconds,
            };
            let request = self.way.request("subscription", &self.of.full_name(), body).await?;
            let answer = self.way.within(self.way.subscriber().modify_ack_deadline(request)).await?;
            answer.map(drop).or_else(|e| self.bear(&e, "leases were not renewed"))?;
        }
        Ok(())
    }

    /// Acknowledges what the log has taken.
    async fn settle(&mut self) -> Result<(), ConnectError> {
        while self.held.by_number.len() > self.waiting.len() {
            let Some(done) = self.durable.recv().await else { break };
            self.acknowledge(done).await?;
        }
        Ok(())
    }

    fn failed(&self, why: &Refused) -> ConnectError {
        ConnectError::Storage(format!("{}: {why}", self.way.place))
    }
}

impl<H> Drop for Puller<'_, H> {
    fn drop(&mut self) {
        if let Answers::Coming(coming) = &self.answers {
            coming.abort();
        }
    }
}

fn seconds(lease: Duration) -> i32 {
    i32::try_from(lease.as_secs()).unwrap_or(i32::MAX)
}

/// The next answer. Nothing is lost if it is not waited for to the end.
async fn next(answers: &mut Answers) -> Result<Option<api::StreamingPullResponse>, Status> {
    if let Answers::Coming(coming) = answers {
        let opened = coming.await.map_err(|e| Status::unavailable(e.to_string()))?;
        *answers = Answers::There(Box::new(opened?.into_inner()));
    }
    match answers {
        Answers::There(answers) => answers.message().await,
        Answers::Coming(_) => Ok(None),
    }
}

/// The record of a message: its data, with its id as the first field of a JSON object. What is no object stays as it is, and is found
/// to be none where records are decoded; what is too long for the log is cut, and found to be no JSON.
fn record(id: &str, mut data: Vec<u8>) -> Vec<u8> {
    let begin = data.iter().position(|b| !b.is_ascii_whitespace());
    if let Some(at) = begin.filter(|at| data[*at] == b'{') {
        let id = serde_json::Value::from(id);
        let is_empty = data[at + 1..].iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'}');
        let field = format!("\"{ID_FIELD}\":{id}{}", if is_empty { "" } else { "," });
        data.splice(at + 1..at + 1, field.into_bytes());
    } else if data.is_empty() {
        // A message of attributes alone.
        data = b"null".to_vec();
    }
    data.truncate(RECORD_BYTES_MAX);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_id_of_its_message() {
        let of = |data: &str| String::from_utf8(record("7", data.into())).unwrap();
        assert_eq!(of(r#"{"a":1}"#), r#"{"pubsub_message_id":"7","a":1}"#);
        assert_eq!(of(" { } "), r#" {"pubsub_message_id":"7" } "#);
        assert_eq!(of("[1]"), "[1]");
        assert_eq!(of(""), "null");
        assert_eq!(record("7", vec![b'{'; RECORD_BYTES_MAX + 9]).len(), RECORD_BYTES_MAX);
    }
}
