//! What the source and the sink of Kafka have in common: how a cluster is reached, and whose move it is when it fails.
//!
//! Invariants: every call that asks the cluster is bounded by [`Cluster::patience`]; every failure names the cluster and
//! what was being done; no message shows a password.
//!
//! librdkafka answers a call that failed because of the connection with a time-out, and says why elsewhere: as an event.
//! So events are noted ([`Notes`]) and looked up when a call has failed: "refused the password" instead of "timed out".

use crate::ConnectError;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer of the cluster is waited for by default: beyond a leader's election, short beside a human's patience.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long the first answer of all is waited for before it is asked what the connection has met.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// A broker that is back is found again within a second: librdkafka's own 10 s would look like an outage that goes on.
const RECONNECT_MS_MAX: &str = "1000";
/// Between two questions of the same kind.
pub(crate) const PACE: Duration = Duration::from_millis(50);
/// Events looked at in a row: a source that is read must not be held up by a cluster that complains.
pub(crate) const EVENTS_MAX: usize = 32;
/// The longest name that Kafka gives a topic.
const TOPIC_CHARS_MAX: usize = 249;

/// How to reach a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// `host:port`, several with commas between: each that answers tells of all others.
    pub brokers: String,
    /// `None`: without TLS.
    pub tls: Option<Tls>,
    /// `None`: without a log-in.
    pub login: Option<Login>,
    /// How long each answer is waited for.
    pub patience: Duration,
}

/// Whose certificates are trusted, and which one is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// A PEM file of authorities; `None`: those of this machine.
    pub authorities: Option<PathBuf>,
    /// A PEM file: the client's certificate, if brokers ask for one.
    pub certificate: Option<PathBuf>,
    /// A PEM file: its key.
    pub key: Option<PathBuf>,
}

/// A name and a password, by SASL.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// How they are shown to a broker.
    pub mechanism: Mechanism,
    /// The name.
    pub user: String,
    /// Never printed.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("mechanism", &self.mechanism)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// How a password is shown to a broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// As it stands: for connections by TLS.
    Plain,
    /// By a challenge, with SHA-256.
    ScramSha256,
    /// By a challenge, with SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// All, in the order of their names.
    pub const ALL: [Mechanism; 3] = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];
    /// The word that config and brokers use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl Cluster {
    /// A cluster without TLS or a log-in.
    #[must_use]
    pub fn new(brokers: impl Into<String>) -> Cluster {
        Cluster { brokers: brokers.into(), tls: None, login: None, patience: PATIENCE }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.brokers
    }

    /// What every client of it is set to; an error if a file that is named cannot be read, which librdkafka would not name.
    pub(crate) fn settings(&self) -> Result<ClientConfig, ConnectError> {
        let patience_ms = self.patience_ms();
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "tidemill")
            .set("socket.timeout.ms", patience_ms.to_string())
            .set("socket.connection.setup.timeout.ms", patience_ms.max(1000).to_string())
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.max.ms", RECONNECT_MS_MAX)
            .set("security.protocol", self.protocol())
            // What it logs would come before its events, one line a call.
            .set_log_level(RDKafkaLogLevel::Emerg);
        if let Some(login) = &self.login {
            settings
                .set("sasl.mechanism", login.mechanism.name())
                .set("sasl.username", &login.user)
                .set("sasl.password", &login.password);
        }
        if let Some(tls) = &self.tls {
            for path in [&tls.authorities, &tls.certificate, &tls.key].into_iter().flatten() {
                File::open(path).map_err(|e| {
                    ConnectError::Config(format!("Kafka at {}: {}: {e}", self.brokers, path.display()))
                })?;
            }
            // The OpenSSL inside librdkafka knows no folder of this machine; `probe` looks where they usually are.
            let authorities = tls.authorities.as_ref().map_or("probe".into(), |p| p.display().to_string());
            settings.set("ssl.ca.location", authorities);
            if let Some(certificate) = &tls.certificate {
                settings.set("ssl.certificate.location", certificate.display().to_string());
            }
            if let Some(key) = &tls.key {
                settings.set("ssl.key.location", key.display().to_string());
            }
        }
        Ok(settings)
    }

    fn protocol(&self) -> &'static str {
        match (&self.login, &self.tls) {
            (None, None) => "plaintext",
            (None, Some(_)) => "ssl",
            (Some(_), None) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        }
    }

    /// What librdkafka takes for a time-out of a request.
    pub(crate) fn patience_ms(&self) -> u128 {
        self.patience.as_millis().clamp(10, 50_000)
    }

    /// The numbers of a topic's partitions; an error if it is not there.
    pub(crate) fn look_up(
        &self,
        consumer: &BaseConsumer<Notes>,
        topic: &str,
    ) -> Result<Vec<i32>, ConnectError> {
        let failed = |e: &KafkaError| {
            let failure = self.asking_failed(consumer, &format!("looking up topic `{topic}`"), e);
            match failure {
                // A broker that wants TLS or a log-in hangs up without a word.
                ConnectError::Unavailable(why) => {
                    ConnectError::Unavailable(format!("{why}; is it up, and does it want TLS or a log-in?"))
                }
                failure => failure,
            }
        };
        let mut asked = consumer.fetch_metadata(Some(topic), FIRST_PATIENCE.min(self.patience));
        if asked.is_err() {
            // A refused password is known long before the answer is given up.
            hear(consumer);
            if consumer.context().decisive().is_none() {
                asked = consumer.fetch_metadata(Some(topic), self.patience);
            }
        }
        let found = asked.map_err(|e| failed(&e))?;
        let topics = found.topics();
        if let Some(e) = topics.iter().find_map(|t| t.error()) {
            return Err(failed(&KafkaError::MetadataFetch(e.into())));
        }
        Ok(topics.iter().flat_map(|t| t.partitions()).map(|p| p.id()).collect())
    }

    /// The offsets that the consumer's group has committed. A cluster that has just begun to keep the group's offsets, or hands
    /// them to another broker, says so for a moment.
    pub(crate) fn committed(
        &self,
        consumer: &BaseConsumer<Notes>,
        of: &TopicPartitionList,
    ) -> KafkaResult<TopicPartitionList> {
        let begun = Instant::now();
        loop {
            match consumer.committed_offsets(of.clone(), self.patience) {
                Err(e) if is_moving(&e) && begun.elapsed() < self.patience => std::thread::sleep(PACE),
                answer => return answer,
            }
        }
    }

    /// The same as [`Cluster::failure`], after the client was let tell what it knows.
    pub(crate) fn asking_failed(
        &self,
        consumer: &BaseConsumer<Notes>,
        doing: &str,
        e: &KafkaError,
    ) -> ConnectError {
        hear(consumer);
        self.failure(consumer.context(), doing, e)
    }

    /// Says whose move it is that `doing` failed.
    pub(crate) fn failure(&self, notes: &Notes, doing: &str, e: &KafkaError) -> ConnectError {
        let (code, reason) = match notes.cause() {
            Some((code, reason)) if e.rdkafka_error_code().is_none_or(is_vague) => (Some(code), reason),
            _ => (e.rdkafka_error_code(), reason(e)),
        };
        let message = format!("Kafka at {}: {doing}: {reason}", self.brokers);
        match code.map_or(Move::Config, whose_move) {
            Move::Wait => ConnectError::Unavailable(message),
            Move::Config => ConnectError::Config(message),
            Move::Conflict => ConnectError::Conflict(message),
            Move::Report => ConnectError::Failed(message),
        }
    }
}

/// Lets the client tell what happened. Records do not come this way: each partition has a queue of its own.
pub(crate) fn hear(consumer: &BaseConsumer<Notes>) {
    // `None` is no sign that nothing is left: events are looked at inside, one a call.
    for _ in 0..EVENTS_MAX {
        drop(consumer.poll(Duration::ZERO));
    }
}

/// Whether Kafka takes a topic's name; others would not even reach it.
///
/// # Errors
/// `Config`, saying what a name is.
pub fn check_topic(topic: &str) -> Result<(), ConnectError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !topic.is_empty() && topic.len() <= TOPIC_CHARS_MAX && topic.chars().all(plain) {
        return Ok(());
    }
    Err(ConnectError::Config(format!(
        "`{topic}` is no name of a Kafka topic: 1 to {TOPIC_CHARS_MAX} letters, digits, dots, dashes and underscores"
    )))
}

enum Move {
    /// The same may work later.
    Wait,
    Config,
    Conflict,
    Report,
}

/// Errors that say only that something went wrong with the connection, or with what came before.
fn is_vague(code: Code) -> bool {
    matches!(
        code,
        Code::OperationTimedOut
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::RequestTimedOut
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::WaitingForCoordinator
            | Code::State
            | Code::Fail
            | Code::Fatal
            | Code::PurgeQueue
            | Code::PurgeInflight
    )
}

/// Whether a group's offsets are on their way to the broker that keeps them.
fn is_moving(e: &KafkaError) -> bool {
    matches!(
        e.rdkafka_error_code(),
        Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
    )
}

/// Errors of a connection that stay until a human does something.
fn is_decisive(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism | Code::SSL
    )
}

fn whose_move(code: Code) -> Move {
    match code {
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SSL
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SecurityDisabled
        | Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::InvalidGroupId
        | Code::InvalidTransactionTimeout
        | Code::InvalidArgument
        | Code::InvalidConfig
        | Code::PolicyViolation
        | Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidRecord
        | Code::UnsupportedFeature
        | Code::UnsupportedVersion
        | Code::UnsupportedCompressionType => Move::Config,
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TransactionCoordinatorFenced
        | Code::AutoOffsetReset
        | Code::OffsetOutOfRange
        | Code::LogTruncation
        | Code::NonEmptyGroup => Move::Conflict,
        Code::BadMessage
        | Code::BadCompression
        | Code::CriticalSystemResource
        | Code::FileSystem
        | Code::NotImplemented
        | Code::ReadOnly => Move::Report,
        // What a cluster says while it elects, restarts, is full or slow; and what is new to this list. Trying again costs
        // little, and shows.
        _ => Move::Wait,
    }
}

/// What an error says, without the names that librdkafka gives its codes.
pub(crate) fn reason(e: &KafkaError) -> String {
    match e {
        KafkaError::Transaction(e) => e.string(),
        // Not the value: it may be a secret.
        KafkaError::ClientConfig(_, what, key, _) => format!("{what} ({key})"),
        KafkaError::ClientCreation(what)
        | KafkaError::AdminOpCreation(what)
        | KafkaError::Seek(what)
        | KafkaError::PauseResume(what)
        | KafkaError::Subscription(what) => what.clone(),
        _ => e.rdkafka_error_code().map_or_else(|| e.to_string(), words),
    }
}

fn words(code: Code) -> String {
    let shown = code.to_string();
    let inside = shown.split_once(" (").and_then(|(_, rest)| rest.strip_suffix(')'));
    let inside = inside.unwrap_or(&shown);
    inside.trim_start_matches("Local: ").trim_start_matches("Broker: ").to_owned()
}

/// What a client was told beside its calls.
#[derive(Default)]
pub(crate) struct Notes(Mutex<Said>);

#[derive(Default)]
struct Said {
    /// The last event; one that only a human can mend is not replaced by a consequence of it.
    event: Option<(Code, String)>,
    /// How many there were.
    events: u64,
    /// Why the first message of a transaction was not taken.
    undelivered: Option<(Code, String)>,
    /// Why the last commit of positions failed.
    uncommitted: Option<String>,
}

impl Notes {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before something else is tried: what was said before does not explain it.
    pub(crate) fn forget(&self) {
        let mut said = self.said();
        said.event = None;
        said.undelivered = None;
    }

    /// How many events there were: for [`Notes::forget_unless_new`].
    pub(crate) fn events(&self) -> u64 {
        self.said().events
    }

    /// All is well again, unless there was an event since there were so many.
    pub(crate) fn forget_unless_new(&self, events: u64) {
        let mut said = self.said();
        if said.events == events {
            said.event = None;
        }
    }

    fn cause(&self) -> Option<(Code, String)> {
        let said = self.said();
        let event = said.event.clone().filter(|(code, _)| *code != Code::AllBrokersDown);
        said.undelivered.clone().filter(|(code, _)| !is_vague(*code)).or(event)
    }

    /// Whether a message of the transaction at hand was not taken.
    pub(crate) fn is_undelivered(&self) -> bool {
        self.said().undelivered.is_some()
    }

    /// An event that will not mend itself.
    pub(crate) fn decisive(&self) -> Option<KafkaError> {
        let said = self.said();
        said.event.as_ref().filter(|(code, _)| is_decisive(*code)).map(|(code, _)| KafkaError::Global(*code))
    }

    /// What is wrong with the connection.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.said().event.as_ref().map(|(_, reason)| reason.clone())
    }

    /// Why the last commit of positions failed; asked once.
    pub(crate) fn take_uncommitted(&self) -> Option<String> {
        self.said().uncommitted.take()
    }

    pub(crate) fn note_uncommitted(&self, why: String) {
        self.said().uncommitted = Some(why);
    }
}

impl ClientContext for Notes {
    // librdkafka's log is for whoever debugs librdkafka; what matters comes as an event too.
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut said = self.said();
        said.events += 1;
        let replaced = match &said.event {
            // That all are down follows from what was said of each.
            Some((held, _)) => is_decisive(code) || !(is_decisive(*held) || code == Code::AllBrokersDown),
            None => true,
        };
        if replaced {
            said.event = Some((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Notes {
    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let of_one = || offsets.elements().iter().find_map(|e| e.error().err());
        if let Some(e) = result.err().or_else(of_one) {
            self.note_uncommitted(reason(&e));
        }
    }
}

impl ProducerContext for Notes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((e, _)) = result
            && let Some(code) = e.rdkafka_error_code()
        {
            let mut said = self.said();
            if said.undelivered.is_none() {
                said.undelivered = Some((code, reason(e)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_shown_nowhere() {
        let login = Login { mechanism: Mechanism::Plain, user: "alice".into(), password: "hush".into() };
        let cluster = Cluster { login: Some(login), ..Cluster::new("k:9092") };
        assert!(!format!("{cluster:?}").contains("hush"));
        assert!(format!("{cluster:?}").contains("alice"));
    }

    #[test]
    fn what_was_said_of_the_connection_explains_a_time_out() {
        let cluster = Cluster::new("k:9092");
        let notes = Notes::default();
        let timed_out = KafkaError::MetadataFetch(Code::OperationTimedOut);
        let plain = cluster.failure(&notes, "asking", &timed_out);
        assert_eq!(plain.to_string(), "Kafka at k:9092: asking: Timed out");
        assert!(matches!(plain, ConnectError::Unavailable(_)));

        notes.error(KafkaError::Global(Code::SaslAuthenticationFailed), "wrong password");
        notes.error(KafkaError::Global(Code::AllBrokersDown), "1/1 brokers are down");
        let refused = cluster.failure(&notes, "asking", &timed_out);
        assert_eq!(refused.to_string(), "Kafka at k:9092: asking: wrong password");
        assert!(matches!(refused, ConnectError::Config(_)));

        // What a call says itself, it says better.
        let unknown = cluster.failure(&notes, "asking", &KafkaError::MetadataFetch(Code::OffsetOutOfRange));
        assert!(matches!(unknown, ConnectError::Conflict(_)), "{unknown}");

        let before = notes.events();
        notes.error(KafkaError::Global(Code::AllBrokersDown), "1/1 brokers are down");
        notes.forget_unless_new(before);
        assert!(notes.trouble().is_some(), "what was said since is not forgotten");
        notes.forget_unless_new(notes.events());
        assert_eq!(notes.trouble(), None);
        assert!(matches!(cluster.failure(&notes, "asking", &timed_out), ConnectError::Unavailable(_)));
    }

    #[test]
    fn names_of_topics() {
        for good in ["clicks", "a.b_c-9", &"x".repeat(249)] {
            check_topic(good).unwrap();
        }
        for bad in ["", "a b", "a/b", "a\0b", "käthe", &"x".repeat(250)] {
            assert!(matches!(check_topic(bad), Err(ConnectError::Config(_))), "{bad}");
        }
    }
}
