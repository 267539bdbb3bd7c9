//! Where clicks come from and dead letters go: topics of Kafka, or Pub/Sub.

use crate::clicks::{DISORDER_MS, Letter, PARTITIONS, SCHEMAS, letter};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeMap;
use tidemill_services::kafka::Broker;
use tidemill_services::proxy::Proxy;
use tidemill_services::pubsub::{self, PROJECT, pubsub};
use tidemill_tests::avro::Registry;
use tidemill_tests::kafka;

/// The sources, `web` and `app`, by their places here.
const SOURCES: [&str; 2] = ["web", "app"];

/// See the module's documentation.
pub(crate) trait Streams {
    /// What reports call it.
    fn name(&self) -> &'static str;
    /// What follows `[source.NAME]` but for the fields.
    fn source(&self, topic: usize) -> String;
    /// What follows `[sink.letters]`.
    fn letters(&self) -> String;
    /// Whether records of this source are Avro.
    fn is_avro(&self, topic: usize) -> bool;
    /// Sends records.
    fn send(&self, topic: usize, partition: usize, records: &[Vec<u8>]);
    /// Whether more may be sent without making late what was sent.
    fn is_read(&self) -> bool;
    /// How a letter of it names a record.
    fn place(&self, topic: usize, partition: usize, offset: u64, record: &[u8]) -> String;
    /// What was written to the topic of letters; copies that readers can tell are left out.
    fn written(&self) -> Vec<Letter>;
    /// It goes down.
    fn stop(&self);
    /// It is there again.
    fn start_again(&self);
    /// What readers do not see, and what else was asked, in words.
    fn beyond(&self) -> String;
}

/// Fields of the app's JSON.
const JSON_FIELDS: &str = r#"kind = "/event/type"
type = "/event/type"
url = "page"
user = "/user/id"
campaign = "/utm/campaign"
amount = "/cart/total"
"#;
const JSON_EVENT: &str = r#"key = "/user/id"
time = { field = "ts", unit = "ms" }
id = "/event/id"
"#;

/// Topics of a broker, and a registry of schemas.
pub(crate) struct Kafka<'a> {
    broker: &'a Broker,
    topics: [String; 2],
    letters: String,
    registry: Registry,
}

impl<'a> Kafka<'a> {
    pub(crate) fn on(broker: &'a Broker) -> Kafka<'a> {
        let topic = |what, partitions: usize| kafka::topic(broker, what, partitions as i32);
        Kafka {
            broker,
            topics: [topic("clicks-web", PARTITIONS[0]), topic("clicks-app", PARTITIONS[1])],
            letters: topic("letters", 1),
            registry: Registry::new(&SCHEMAS),
        }
    }

    fn cluster(&self) -> String {
        format!("kind = \"kafka\"\nbrokers = \"{}\"\ntimeout = \"5s\"\n", self.broker.plain())
    }
}

impl Streams for Kafka<'_> {
    fn name(&self) -> &'static str {
        "Kafka"
    }
    fn source(&self, topic: usize) -> String {
        let name = SOURCES[topic];
        let event = if topic == 0 {
            let registry = self.registry.url();
            format!(
                "format = \"avro\"\nregistry = \"{registry}\"\nkey = \"visitor\"\ntime = {{ field = \"at\" }}\nid = \"event_id\"\n"
            )
        } else {
            format!("format = \"json\"\n{JSON_EVENT}")
        };
        let fields = if topic == 0 {
            "kind = \"what\"\ntype = \"what\"\nurl = \"address\"\nuser = \"visitor\"\n"
        } else {
            JSON_FIELDS
        };
        format!(
            "{}topics = \"{}\"\n{event}disorder = \"{DISORDER_MS}ms\"\nidle = \"1h\"\n[source.{name}.fields]\n{fields}",
            self.cluster(),
            self.topics[topic]
        )
    }
    fn letters(&self) -> String {
        format!("{}topic = \"{}\"\n", self.cluster(), self.letters)
    }
    fn is_avro(&self, topic: usize) -> bool {
        topic == 0
    }
    fn send(&self, topic: usize, partition: usize, records: &[Vec<u8>]) {
        let records = records.iter().map(Vec::as_slice);
        kafka::produce(self.broker, &self.topics[topic], partition as i32, records);
    }
    fn is_read(&self) -> bool {
        true
    }
    fn place(&self, topic: usize, partition: usize, offset: u64, _: &[u8]) -> String {
        format!("{}/{partition} {offset}", self.topics[topic])
    }
    fn written(&self) -> Vec<Letter> {
        let place = |l: &Value| format!("{} {}", l["partition"].as_str().unwrap(), l["position"]["offset"]);
        let written = kafka::read_committed(self.broker, &self.letters, 1);
        written.iter().map(|(_, line)| letter(line, place)).collect()
    }
    fn stop(&self) {
        self.broker.stop();
    }
    fn start_again(&self) {
        self.broker.start_again().unwrap();
    }
    fn beyond(&self) -> String {
        format!(
            "{} more letters in transactions that were killed; registry asked {} times",
            kafka::aborted(self.broker, &self.letters, 1),
            self.registry.asked()
        )
    }
}

/// Two subscriptions and a topic, with somebody between who breaks connections.
pub(crate) struct PubSub {
    service: pubsub::PubSub,
    proxy: Proxy,
    sent: Cell<u64>,
}

/// What is held by a host that was killed comes again when its lease has run out: clicks of a piece may stand anywhere in it.
const PUBSUB_DISORDER: &str = "2h";
const LETTERS: &str = "letters";
/// Ordering keys of one partition.
const KEYS: usize = 300;

impl PubSub {
    pub(crate) fn start() -> Option<PubSub> {
        let service = pubsub()?;
        let proxy = Proxy::to(service.address());
        SOURCES.iter().for_each(|name| service.subscription(name, &format!("{name}-sub"), true));
        service.topic(LETTERS);
        Some(PubSub { service, proxy, sent: Cell::new(0) })
    }

    fn project(&self) -> String {
        let address = self.proxy.address();
        format!(
            "kind = \"pubsub\"\nproject = \"{PROJECT}\"\ncredentials = \"none\"\nendpoint = \"http://{address}\"\n"
        )
    }
}

impl Streams for PubSub {
    fn name(&self) -> &'static str {
        "Pub/Sub"
    }
    fn source(&self, topic: usize) -> String {
        let name = SOURCES[topic];
        format!(
            "{}subscription = \"{name}-sub\"\nlease = \"10s\"\n{JSON_EVENT}disorder = \"{PUBSUB_DISORDER}\"\nidle = \"1h\"\n\
             [source.{name}.fields]\n{JSON_FIELDS}",
            self.project()
        )
    }
    fn letters(&self) -> String {
        format!("{}topic = \"{LETTERS}\"\n", self.project())
    }
    fn is_avro(&self, _: usize) -> bool {
        false
    }
    fn send(&self, topic: usize, partition: usize, records: &[Vec<u8>]) {
        // The app's with ordering keys, of which each waits for what is acknowledged; the web's without.
        let keys: Vec<String> = (0..KEYS).map(|n| format!("{partition}/{n}")).collect();
        let key = |n: usize| if topic == 0 { "" } else { keys[n % KEYS].as_str() };
        let text = |record: &Vec<u8>| String::from_utf8(record.clone()).unwrap();
        self.service.publish(SOURCES[topic], records.iter().enumerate().map(|(n, r)| (key(n), text(r))));
        self.sent.set(self.sent.get() + records.len() as u64);
    }
    fn is_read(&self) -> bool {
        self.service.counts().acked == self.sent.get()
    }
    /// The same record twice is two messages with one text.
    fn place(&self, _: usize, _: usize, _: u64, record: &[u8]) -> String {
        String::from_utf8(record.to_vec()).unwrap()
    }
    fn written(&self) -> Vec<Letter> {
        // The source has put the message's id in front.
        let place = |l: &Value| {
            let raw = l["raw"].as_str().unwrap();
            let rest =
                raw.split_once("\"pubsub_message_id\":\"").and_then(|(_, rest)| rest.split_once("\","));
            rest.map_or_else(|| raw.to_owned(), |(_, rest)| format!("{{{rest}"))
        };
        let told: BTreeMap<String, String> = self
            .service
            .published(LETTERS)
            .into_iter()
            .map(|m| (m.attributes["event_id"].clone(), m.data))
            .collect();
        let mut letters: Vec<Letter> = told.values().map(|line| letter(line, place)).collect();
        letters.sort();
        // Of a message that comes again after its letter was written there is another.
        letters.dedup_by(|a, b| a == b && matches!(a, Letter::Record { .. }));
        letters
    }
    fn stop(&self) {
        self.proxy.refuse(true);
        self.proxy.close_all();
    }
    fn start_again(&self) {
        self.proxy.refuse(false);
    }
    fn beyond(&self) -> String {
        let counts = self.service.counts();
        let letters = self.service.published(LETTERS).len();
        let copies = counts.delivered - counts.acked.min(counts.delivered);
        format!("{letters} messages of letters, {copies} messages delivered once more")
    }
}
