//! A topic of Pub/Sub: session revisions as JSON, or dead letters, a message each.
//!
//! Pub/Sub has no transaction over messages and knows nothing of who published before, so the store alone knows how far the topic
//! is, and what was answered too late or not at all is published again. Each message says by its attribute `event_id` which
//! revision of which session it is, the same whenever it is published, so a reader tells copies, and keeps the greatest revision.
//!
//! Invariants: an epoch is delivered when each of its messages was confirmed; with `ordered`, those of one session are published
//! one after another, whatever fails between; of an epoch one round of messages is in memory. Nobody is fenced: what a process
//! that was replaced still publishes has lower revisions than anything its successor does.

use super::content::{Content, Item};
use super::owned::Standing;
use super::{Sink, TakenBack, bounds, letters, line};
use crate::google::{failure, later};
use crate::pubsub::{Project, Way};
use crate::{ConnectError, Cursor};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as api;
use tidemill_engine::outbox::{Outbox, Revision, Stages};
use tokio::runtime::Runtime;
use tonic::Code;

/// What lets in.
const RIGHTS: &str = "roles/pubsub.publisher` on the topic";

/// A topic, and how it is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Where it is.
    pub project: Project,
    /// Its name; it must be there.
    pub name: String,
    /// Whether a session's id is its messages' ordering key. Messages with different keys cannot go into one request, so this is a
    /// request a session and epoch, and without it one for up to [`bounds::PUBSUB_MESSAGES_AT_ONCE`] messages.
    pub ordered: bool,
}

impl Topic {
    /// What messages call it.
    #[must_use]
    pub fn place(&self) -> String {
        self.project.place("topic", &self.name)
    }

    fn full_name(&self) -> String {
        format!("projects/{}/topics/{}", self.project.project, self.name)
    }
}

/// See the module's documentation.
pub struct PubSubSink {
    topic: Topic,
    pipeline: String,
    content: Content,
    /// `None` before `open`.
    open: Option<Open>,
    /// Dead letters of the last epoch.
    refused: Vec<u8>,
}

struct Open {
    standing: Standing,
    runtime: Runtime,
    /// `None` after a failure: a connection may be dead without knowing it.
    way: Option<Way>,
    /// It has let in, so what refuses now may let in again.
    known: bool,
    /// What of an epoch was confirmed before something failed: that many of its first items.
    there: Option<(Revision, usize)>,
}

/// Messages that are on their way together.
#[derive(Default)]
struct Round {
    /// Each with what tells its session from others.
    messages: Vec<([u8; 16], api::PubsubMessage)>,
    bytes: usize,
    /// Items that this has come of, with those that are refused.
    items: usize,
}

impl PubSubSink {
    /// A topic for the revisions with these stages, of this pipeline.
    #[must_use]
    pub fn sessions(topic: Topic, pipeline: String, stages: Stages) -> PubSubSink {
        PubSubSink::new(topic, pipeline, Content::Sessions(stages))
    }

    /// A topic of dead letters, each as the epoch holds it, without its line end. They have no order.
    #[must_use]
    pub fn letters(topic: Topic, pipeline: String) -> PubSubSink {
        PubSubSink::new(topic, pipeline, Content::Letters)
    }

    fn new(topic: Topic, pipeline: String, content: Content) -> PubSubSink {
        PubSubSink { topic, pipeline, content, open: None, refused: Vec::new() }
    }

    fn runtime(&self) -> Result<Runtime, ConnectError> {
        // A thread of its own, so that the connection answers while no epoch is sent.
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("pubsub")
            .enable_all()
            .build()
            .map_err(|e| ConnectError::Failed(format!("{}: no runtime: {e}", self.topic.place())))
    }

    /// Connects, and looks whether the topic is there, as far as we may look; whether we were let in.
    async fn look(&self) -> Result<(Way, bool), ConnectError> {
        let way = self.topic.project.connect(self.topic.place()).await?;
        let name = self.topic.full_name();
        let request = way.request("topic", &name, api::GetTopicRequest { topic: name.clone() }).await?;
        match way.within(way.publisher().get_topic(request)).await? {
            Ok(_) => Ok((way, true)),
            // The right to publish does not bring the right to look: the first message shows it.
            Err(e) if e.code() == Code::PermissionDenied => Ok((way, false)),
            Err(e) => Err(failure(&way.place, RIGHTS, &e)),
        }
    }

    /// The message of an item; what no message can hold is refused instead.
    fn message(&self, item: &Item<'_>) -> Result<([u8; 16], api::PubsubMessage), usize> {
        let mut message = api::PubsubMessage::default();
        let mut put = |name: &str, value: String| message.attributes.insert(name.to_owned(), value);
        put("pipeline", self.pipeline.clone());
        let id = match item {
            Item::Session(revision, row) => {
                let session = tidemill_engine::outbox::hex(&row.id);
                put("revision", shown(*revision));
                put("stage", row.stage.name().to_owned());
                put("event_id", format!("{session}/{}", shown(*revision)));
                line::put_session(&mut message.data, &self.pipeline, *revision, row);
                message.data.truncate(message.data.trim_ascii_end().len());
                if self.topic.ordered {
                    message.ordering_key = session;
                }
                row.id
            }
            Item::Letter(revision, number, line) => {
                put("event_id", format!("{}/{}/{number}", self.pipeline, shown(*revision)));
                let too_long = line.len() > bounds::PUBSUB_MESSAGE_BYTES_MAX;
                let cut = too_long.then(|| letters::cut(line, bounds::PUBSUB_MESSAGE_BYTES_MAX)).flatten();
                message.data = cut.unwrap_or_else(|| line.to_vec());
                [0; 16]
            }
        };
        let bytes = message.data.len();
        if bytes <= bounds::PUBSUB_MESSAGE_BYTES_MAX { Ok((id, message)) } else { Err(bytes) }
    }

    /// The next messages, as many as go together.
    fn round<'a>(
        &self,
        items: &mut std::iter::Peekable<impl Iterator<Item = Item<'a>>>,
        refused: &mut Vec<u8>,
    ) -> Result<Option<Round>, ConnectError> {
        let mut round = Round::default();
        while round.messages.len() < bounds::PUBSUB_MESSAGES_AT_ONCE {
            let Some(item) = items.peek() else { break };
            match self.message(item) {
                Ok((id, message)) => {
                    let bytes = round.bytes + message.data.len();
                    if bytes > bounds::BYTES_AT_ONCE && !round.messages.is_empty() {
                        break;
                    }
                    round.bytes = bytes;
                    round.messages.push((id, message));
                }
                Err(bytes) => self.refuse(item, bytes, refused)?,
            }
            round.items += 1;
            items.next();
        }
        Ok((round.items > 0).then_some(round))
    }

    /// A dead letter of a row that no message can hold.
    fn refuse(&self, item: &Item<'_>, bytes: usize, refused: &mut Vec<u8>) -> Result<(), ConnectError> {
        let most = bounds::PUBSUB_MESSAGE_BYTES_MAX;
        let message = format!("it has {bytes} bytes, and a message of Pub/Sub takes {most}");
        if item.refused(&message, refused) {
            return Ok(());
        }
        let place = self.topic.place();
        Err(ConnectError::Failed(format!(
            "{place}: a dead letter without its record has {bytes} bytes, and a message takes {most}"
        )))
    }

    /// Publishes a round; when it returns without an error, each message was confirmed.
    async fn publish_round(&self, way: &Way, round: Round) -> Result<(), ConnectError> {
        let requests = requests(round.messages, self.topic.ordered);
        let answers = stream::iter(requests).map(|messages| self.publish(way, messages));
        answers.buffer_unordered(bounds::PUBSUB_IN_FLIGHT).try_collect::<()>().await
    }

    async fn publish(&self, way: &Way, messages: Vec<api::PubsubMessage>) -> Result<(), ConnectError> {
        let (topic, sent) = (self.topic.full_name(), messages.len());
        let body = api::PublishRequest { topic: topic.clone(), messages };
        let request = way.request("topic", &topic, body).await?;
        let answer = way.within(way.publisher().publish(request)).await?;
        let confirmed = answer.map_err(|e| failure(&way.place, RIGHTS, &e))?.into_inner().message_ids.len();
        if confirmed == sent {
            return Ok(());
        }
        Err(ConnectError::Unavailable(format!(
            "{}: {confirmed} of {sent} messages were confirmed",
            way.place
        )))
    }

    /// Publishes what of an epoch is not known to be there; `there` counts on, and `refused` goes with it.
    async fn publish_all(
        &self,
        way: &Way,
        outbox: &Outbox<'_>,
        there: &mut usize,
        refused: &mut Vec<u8>,
    ) -> Result<(), ConnectError> {
        let mut items = self.content.items(outbox).skip(*there).peekable();
        loop {
            let told = refused.len();
            let Some(round) = self.round(&mut items, refused)? else { return Ok(()) };
            let items = round.items;
            if let Err(e) = self.publish_round(way, round).await {
                // What this round has refused is refused again with it.
                refused.truncate(told);
                return Err(e);
            }
            *there += items;
        }
    }

    fn not_open(&self) -> ConnectError {
        ConnectError::Failed(format!("{} is not open", self.topic.place()))
    }
}

/// The messages of each request. All of one request have one ordering key, and all with one key go into one request.
fn requests(
    mut messages: Vec<([u8; 16], api::PubsubMessage)>,
    ordered: bool,
) -> Vec<Vec<api::PubsubMessage>> {
    if ordered {
        // Stable: a session's revisions stay in their order.
        messages.sort_by_key(|(id, _)| *id);
    }
    let mut requests: Vec<Vec<api::PubsubMessage>> = Vec::new();
    let mut last = None;
    for (id, message) in messages {
        match requests.last_mut().filter(|_| !ordered || last == Some(id)) {
            Some(request) => request.push(message),
            None => requests.push(vec![message]),
        }
        last = Some(id);
    }
    requests
}

fn shown(revision: Revision) -> String {
    format!("{}/{}", revision.incarnation, revision.epoch)
}

impl Sink for PubSubSink {
    fn open(&mut self, incarnation: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError> {
        self.open = None;
        self.refused.clear();
        let runtime = self.runtime()?;
        let (way, known) = runtime.block_on(self.look())?;
        let standing = Standing::new(incarnation, stored.unwrap_or_default());
        self.open = Some(Open { standing, runtime, way: Some(way), known, there: None });
        Ok(stored)
    }

    /// Nothing shows: whoever pulls takes it away.
    fn witness(&self) -> Result<Option<u64>, ConnectError> {
        Ok(None)
    }

    fn probe(&self, _: Option<Cursor>) -> Result<(), ConnectError> {
        self.runtime()?.block_on(self.look()).map(drop)
    }

    fn take_back(&mut self, _: u64, _: u64, _: Option<Cursor>) -> Result<TakenBack, ConnectError> {
        Ok(TakenBack::Stays)
    }

    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError> {
        let Some(mut open) = self.open.take() else { return Err(self.not_open()) };
        let mut refused = std::mem::take(&mut self.refused);
        let done = self.deliver_over(&mut open, outbox, &mut refused);
        self.open = Some(open);
        self.refused = refused;
        done
    }

    fn take_refused(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.refused)
    }

    fn refuses_rows(&self) -> bool {
        matches!(self.content, Content::Sessions(_))
    }

    fn delete_all(&mut self) -> Result<(), ConnectError> {
        Err(ConnectError::Config(format!(
            "{}: messages that were published cannot be taken back; name another topic, or start over in another data_dir",
            self.topic.place()
        )))
    }

    fn at_least_once(&self) -> bool {
        true
    }
}

impl PubSubSink {
    fn deliver_over(
        &self,
        open: &mut Open,
        outbox: &Outbox<'_>,
        refused: &mut Vec<u8>,
    ) -> Result<Cursor, ConnectError> {
        if open.standing.has(outbox) {
            return Ok(open.standing.cursor);
        }
        let epoch = Revision { incarnation: outbox.incarnation, epoch: outbox.epoch };
        let mut there = open.there.take().filter(|(of, _)| *of == epoch).map_or(0, |(_, there)| there);
        if there == 0 {
            refused.clear();
        }
        let with_rows = self.content.is_in(outbox);
        if with_rows {
            let way = open.way.take();
            let published = open.runtime.block_on(async {
                let way = match way {
                    Some(way) => way,
                    None => self.topic.project.connect(self.topic.place()).await?,
                };
                self.publish_all(&way, outbox, &mut there, refused).await.map(|()| way)
            });
            match published {
                Ok(way) => open.way = Some(way),
                Err(e) => {
                    open.there = Some((epoch, there));
                    return Err(if open.known || there > 0 { later(e) } else { e });
                }
            }
            open.known = true;
        }
        Ok(open.standing.confirm(outbox, with_rows))
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::row;
    use super::*;
    use crate::pubsub::CredentialsFrom;
    use std::time::Duration;

    fn sink(ordered: bool) -> PubSubSink {
        let project = Project {
            project: "p".into(),
            endpoint: "http://127.0.0.1:1".into(),
            credentials: CredentialsFrom::None,
            timeout: Duration::from_secs(1),
        };
        PubSubSink::sessions(Topic { project, name: "t".into(), ordered }, "visits".into(), Stages::ALL)
    }

    fn of(incarnation: u64, epoch: u64, id: u8) -> Item<'static> {
        Item::Session(Revision { incarnation, epoch }, row(id, "{}"))
    }

    #[test]
    fn a_message_says_which_revision_it_is() {
        let (_, message) = sink(true).message(&of(10, 7, 0xab)).unwrap();
        let id = "ab".repeat(16);
        assert_eq!(message.ordering_key, id);
        let attribute = |name: &str| message.attributes[name].as_str();
        assert_eq!(attribute("event_id"), format!("{id}/10/7"));
        assert_eq!(
            (attribute("revision"), attribute("stage"), attribute("pipeline")),
            ("10/7", "final", "visits")
        );
        let data: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
        assert_eq!((&data["session_id"], &data["epoch"]), (&id.into(), &7.into()));
        assert!(sink(false).message(&of(10, 7, 1)).unwrap().1.ordering_key.is_empty());
    }

    #[test]
    fn a_request_has_one_session_and_a_session_one_request() {
        let of_round = |sink: &PubSubSink| {
            let mut items = [of(1, 1, 2), of(1, 1, 1), of(1, 2, 2), of(1, 3, 2)].into_iter().peekable();
            let round = sink.round(&mut items, &mut Vec::new()).unwrap().unwrap();
            assert_eq!(round.items, 4);
            requests(round.messages, sink.topic.ordered)
                .into_iter()
                .map(|r| r.iter().map(|m| m.attributes["event_id"][30..].to_owned()).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        assert_eq!(of_round(&sink(true)), [vec!["01/1/1"], vec!["02/1/1", "02/1/2", "02/1/3"]]);
        assert_eq!(of_round(&sink(false)), [["02/1/1", "01/1/1", "02/1/2", "02/1/3"]]);
    }

    #[test]
    fn what_no_message_holds_is_refused_and_a_round_is_bounded() {
        let huge = format!("\"{}\"", "x".repeat(bounds::PUBSUB_MESSAGE_BYTES_MAX));
        let half = format!("\"{}\"", "x".repeat(bounds::BYTES_AT_ONCE / 2));
        let revision = Revision { incarnation: 1, epoch: 1 };
        let rows = [(1, half.as_str()), (2, &huge), (3, &half), (4, "{}")];
        let mut items = rows.iter().map(|(id, f)| Item::Session(revision, row(*id, f))).peekable();
        let (sink, mut refused) = (sink(true), Vec::new());
        let mut rounds = Vec::new();
        while let Some(round) = sink.round(&mut items, &mut refused).unwrap() {
            rounds.push((round.items, round.messages.len()));
        }
        assert_eq!(rounds, [(2, 1), (2, 2)]);
        let letter: serde_json::Value = serde_json::from_slice(&refused).unwrap();
        assert_eq!(
            (&letter["reason"], &letter["session_id"]),
            (&"row_refused".into(), &"02".repeat(16).into())
        );
        let many = (0..2_500).map(|n| Item::Letter(revision, n, b"{}"));
        let (mut many, mut counts) = (many.peekable(), Vec::new());
        let letters = PubSubSink::letters(sink.topic.clone(), "visits".into());
        while let Some(round) = letters.round(&mut many, &mut refused).unwrap() {
            assert_eq!(requests(round.messages, false).len(), 1);
            counts.push(round.items);
        }
        assert_eq!(counts, [1_000, 1_000, 500]);
        let huge = Item::Letter(revision, 0, huge.as_bytes());
        assert!(letters.round(&mut [huge].into_iter().peekable(), &mut refused).is_err());
    }
}
