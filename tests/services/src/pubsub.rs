//! A Pub/Sub of one's own: the stand-in of Google's Go library as a process (`go/pubsub`), with what a test may have happen in front
//! of it.

use crate::go::{self, Running};
use crate::{Absent, kafka, or_skip};
use serde_json::{Value, json};
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
    /// How many calls are refused; 0: all.
    pub times: u64,
    /// Each takes so long, ms.
    pub delay_ms: u64,
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
        let (running, address) = Running::start(&program, "-listen", &format!("127.0.0.1:{port}"))?;
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
        let topic = format!("projects/{PROJECT}/topics/{topic}");
        self.told(&json!({ "Do": "topic", "Topic": topic }));
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

    /// What calls meet from now on.
    pub fn fault(&self, fault: &Fault) {
        let fault = json!({
            "Method": fault.method, "Code": fault.code, "Times": fault.times, "DelayMs": fault.delay_ms,
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
