//! A Pub/Sub of one's own: the stand-in of Google's Go library as a process (`go/pubsub`), with what a test may have happen in front
//! of it.
//!
//! [`emulator`] is the one that Google's Cloud SDK brings, where that is installed.

use crate::go::{self, Emulator, Running};
use crate::{Absent, kafka, or_skip};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The project that it has.
pub const PROJECT: &str = "p";
/// `UNAVAILABLE`.
pub const UNAVAILABLE: i32 = 14;
/// `RESOURCE_EXHAUSTED`: too many requests.
pub const THROTTLED: i32 = 8;
/// `PERMISSION_DENIED`.
pub const DENIED: i32 = 7;
/// Messages that are published by one order.
const MESSAGES_PER_ORDER: usize = 2_000;

/// What calls meet. By default nothing.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// The method, as `Acknowledge`; empty: all.
    pub method: &'static str,
    /// They are refused with this code, if it is not 0.
    pub code: i32,
    /// So many calls pass before one is refused.
    pub after: u64,
    /// How many calls are refused; 0: all.
    pub times: u64,
    /// Each takes so long, ms.
    pub delay_ms: u64,
    /// What takes so long is the answer, after the call has done what it does.
    pub late: bool,
    /// Only who shows this token comes in.
    pub token: Option<String>,
}

/// What has come to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were acknowledged.
    pub acked: u64,
    /// Messages that were sent out, each as often as it was.
    pub delivered: u64,
    /// Calls that were refused.
    pub met: u64,
}

/// A message that somebody has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// What it says.
    pub data: String,
    /// Its ordering key.
    pub key: String,
    /// Its attributes.
    pub attributes: std::collections::BTreeMap<String, String>,
}

/// See the module's documentation. Ends with the value.
pub struct PubSub {
    address: String,
    running: Mutex<Running>,
}

/// A stand-in, or `None` where it cannot be had: see [`or_skip`].
#[must_use]
pub fn pubsub() -> Option<PubSub> {
    or_skip("PubSub", PubSub::start())
}

/// The emulator of Google's Cloud SDK, or `None` where that is not installed, which no wish for services changes: it cannot be
/// fetched by itself. What is published to it and pulled from it goes through the same front as the stand-in; it does not count.
///
/// # Panics
/// If it is there and does not start.
#[must_use]
pub fn emulator() -> Option<(PubSub, Emulator)> {
    let Some(program) = go::in_sdk("platform/pubsub-emulator/bin/cloud-pubsub-emulator") else {
        eprintln!(
            "skipped: no emulator of Pub/Sub of Google's Cloud SDK here (gcloud components install pubsub-emulator)"
        );
        return None;
    };
    let front = or_skip("PubSub", go::program("pubsub"))?;
    let port = || kafka::listen().and_then(|l| l.local_addr()).unwrap().port();
    let address = format!("127.0.0.1:{}", port());
    let (host, number) = address.split_once(':').unwrap();
    let arguments = [format!("--host={host}"), format!("--port={number}")];
    let emulator = Emulator::start(&program, &arguments, "listening on");
    let listen = format!("127.0.0.1:{}", port());
    let service = PubSub::run(&front, &["-listen", &listen, "-behind", &address]).unwrap();
    Some((service, emulator))
}

impl PubSub {
    /// Builds it if need be, starts it, and waits until it listens.
    ///
    /// # Errors
    /// If it cannot be had, or does not start.
    pub fn start() -> Result<PubSub, Absent> {
        let broken = |e: std::io::Error| Absent::Broken(e.to_string());
        let program = go::program("pubsub")?;
        // One that nobody else gets: below those that clients are given.
        let port = kafka::listen().and_then(|l| l.local_addr()).map_err(broken)?.port();
        PubSub::run(&program, &["-listen", &format!("127.0.0.1:{port}")])
    }

    fn run(program: &Path, arguments: &[&str]) -> Result<PubSub, Absent> {
        let (running, address) = Running::start(program, arguments)?;
        if address.is_empty() {
            return Err(Absent::Broken("it ended before it listened".to_owned()));
        }
        Ok(PubSub { address, running: Mutex::new(running) })
    }

    /// host:port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes a topic and a subscription to it, which keeps the order of keys.
    pub fn subscription(&self, topic: &str, subscription: &str, exactly_once: bool) {
        self.topic(topic);
        let topic = format!("projects/{PROJECT}/topics/{topic}");
        let subscription = format!("projects/{PROJECT}/subscriptions/{subscription}");
        self.told(&json!({
            "Do": "subscription", "Topic": topic, "Subscription": subscription, "Ordered": true,
            "ExactlyOnce": exactly_once,
        }));
    }

    /// Publishes records, each with its ordering key.
    pub fn publish<'a>(&self, topic: &str, records: impl IntoIterator<Item = (&'a str, String)>) {
        let topic = format!("projects/{PROJECT}/topics/{topic}");
        let messages: Vec<Value> =
            records.into_iter().map(|(key, data)| json!({ "Text": data, "Key": key })).collect();
        for part in messages.chunks(MESSAGES_PER_ORDER) {
            self.told(&json!({ "Do": "publish", "Topic": topic, "Messages": part }));
        }
    }

    /// Makes a topic.
    pub fn topic(&self, topic: &str) {
        self.told(&json!({ "Do": "topic", "Topic": format!("projects/{PROJECT}/topics/{topic}") }));
    }

    /// What a subscription has now, up to a thousand; they are acknowledged.
    #[must_use]
    pub fn pull(&self, subscription: &str) -> Vec<Published> {
        let subscription = format!("projects/{PROJECT}/subscriptions/{subscription}");
        messages(&self.say(&json!({ "Do": "pull", "Subscription": subscription })))
    }

    /// What was published to a topic, in the order in which it came.
    #[must_use]
    pub fn published(&self, topic: &str) -> Vec<Published> {
        let all =
            self.say(&json!({ "Do": "published", "Topic": format!("projects/{PROJECT}/topics/{topic}") }));
        messages(&all)
    }

    /// What calls meet from now on.
    pub fn fault(&self, fault: &Fault) {
        let fault = json!({
            "Method": fault.method, "Code": fault.code, "After": fault.after, "Times": fault.times, "DelayMs": fault.delay_ms, "Late": fault.late,
            "Token": fault.token.clone().unwrap_or_default(),
        });
        self.told(&json!({ "Do": "fault", "Fault": fault }));
    }

    /// What has come to pass.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let all = self.say(&json!({ "Do": "counts" }));
        let of = |name: &str| all[name].as_u64().unwrap();
        Counts { acked: of("acked"), delivered: of("delivered"), met: of("met") }
    }

    fn told(&self, order: &Value) {
        assert_eq!(self.say(order), "ok");
    }

    fn say(&self, order: &Value) -> Value {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).order(order)
    }
}

fn messages(all: &Value) -> Vec<Published> {
    let of = |m: &Value| Published {
        data: m["Text"].as_str().unwrap().to_owned(),
        key: m["Key"].as_str().unwrap().to_owned(),
        // Of a message without any it is null.
        attributes: serde_json::from_value(m["Attributes"].clone()).unwrap_or_default(),
    };
    all.as_array().unwrap_or_else(|| panic!("{all}")).iter().map(of).collect()
}
