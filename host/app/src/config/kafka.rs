//! Topics of Kafka, and where a cluster is, for sources and sinks alike: `brokers`, `tls`, `login`, `timeout`.
//!
//! A build without the feature `services` has no client for it: there a [`Cluster`] is a type without values, and the compiler
//! sees that nothing is done with one.

use super::diagnose::{Problems, Spot};
use super::raw::Section;

#[cfg(feature = "services")]
pub(crate) use tidemill_connect::kafka::Cluster;

/// See the module's documentation.
#[cfg(not(feature = "services"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cluster {}

#[cfg(not(feature = "services"))]
impl Cluster {
    /// Where it is, for messages.
    pub(crate) fn address(&self) -> &str {
        match *self {}
    }
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Topics {
    /// Where.
    pub(crate) cluster: Cluster,
    /// At least one, none twice.
    pub(crate) topics: Vec<String>,
    /// Place of `topics`.
    pub(crate) at: Spot,
    /// The consumer group that positions are shown in, and its place; none: one for each pipeline.
    pub(crate) group: Option<(String, Spot)>,
    /// Where a topic is begun that nothing is known of.
    pub(crate) start: Begin,
    /// What the header of a file would name, for formats that have one.
    pub(crate) columns: Option<Vec<String>>,
}

/// Where a topic is begun that nothing is known of.
#[cfg_attr(not(feature = "services"), allow(dead_code, reason = "without a client no topic is begun"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With the first record that is kept.
    Earliest,
    /// With the next record that is written.
    Latest,
    /// Where the group stands.
    Committed,
    /// With the first record that was written then or later, ms since the Unix epoch.
    At(i64),
}

#[cfg(not(feature = "services"))]
pub(super) fn check_source(s: &mut Section<'_>, _: &mut Problems) -> Option<Topics> {
    s.forgive(&["brokers", "topics", "group", "start", "tls", "login", "timeout", "columns"]);
    None
}

#[cfg(not(feature = "services"))]
pub(super) fn check_sink(s: &mut Section<'_>, _: &mut Problems) -> Option<(Cluster, String, usize)> {
    s.forgive(&["brokers", "topic", "tls", "login", "timeout", "message_bytes_max"]);
    None
}

#[cfg(feature = "services")]
pub(super) use self::with_client::{check_sink, check_source};

#[cfg(feature = "services")]
mod with_client {
    use super::super::raw::{Field, Value};
    use super::super::source::instant_ms;
    use super::{Begin, Cluster, Problems, Section, Topics};
    use std::path::PathBuf;
    use std::time::Duration;
    use tidemill_connect::kafka::{Login, Mechanism, PATIENCE, Tls, check_topic};
    use tidemill_connect::sink::kafka::MESSAGE_BYTES_MAX;

    /// How long each answer may be waited for, ms: shorter than the one not even a healthy cluster always answers, longer than
    /// the other the client takes for no time-out.
    const TIMEOUT_MS: std::ops::RangeInclusive<i64> = 100..=50_000;
    /// Bytes of one message, as the client takes them.
    const MESSAGE_BYTES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000;
    /// The longest name of a group that brokers' tools show whole.
    const GROUP_CHARS_MAX: usize = 249;

    /// Reads the keys of a source.
    pub(in super::super) fn check_source(s: &mut Section<'_>, p: &mut Problems) -> Option<Topics> {
        let cluster = check_cluster(s, p);
        let field = s.need("topics", "write `topics = [\"clicks\"]`", p);
        let at = field.as_ref().map_or(s.at, |f| f.node.at);
        let topics = field.and_then(|f| check_topics(&f, p));
        let group = match s.get("group") {
            Some(f) => Some(check_group(&f, p)?),
            None => None,
        };
        let start = check_start(s, group.is_some(), p);
        let columns = match s.get("columns") {
            Some(f) => Some(check_columns(&f, p)?),
            None => None,
        };
        Some(Topics { cluster: cluster?, topics: topics?, at, group, start: start?, columns })
    }

    /// Reads the keys of a sink: where, its topic, and the bytes of a message.
    pub(in super::super) fn check_sink(
        s: &mut Section<'_>,
        p: &mut Problems,
    ) -> Option<(Cluster, String, usize)> {
        let cluster = check_cluster(s, p);
        let topic = s.need("topic", "write `topic = \"sessions\"`", p).and_then(|f| check_name(&f, p));
        let message_bytes_max = match s.get("message_bytes_max") {
            None => MESSAGE_BYTES_MAX,
            Some(f) => {
                let bytes = f.size_bytes(p)?;
                if !MESSAGE_BYTES.contains(&bytes) {
                    let message = format!("`{}` must lie between 1kB and 1GB", f.path);
                    f.wrong(message, "brokers take 1MB if they are told nothing".to_owned(), p);
                    return None;
                }
                usize::try_from(bytes).ok()?
            }
        };
        Some((cluster?, topic?, message_bytes_max))
    }

    fn check_cluster(s: &mut Section<'_>, p: &mut Problems) -> Option<Cluster> {
        let field = s.need("brokers", "write `brokers = \"127.0.0.1:9092\"`", p);
        let brokers = field.as_ref().and_then(|f| check_brokers(f, p));
        let tls = check_tls(s, field.as_ref().zip(brokers.as_ref()), p);
        let login = match s.get("login") {
            Some(f) => check_login(&f, p).map(Some),
            None => Some(None),
        };
        let patience = check_timeout(s, p);
        Some(Cluster { brokers: brokers?.join(","), tls: tls?, login: login?, patience: patience? })
    }

    fn check_brokers(f: &Field<'_>, p: &mut Problems) -> Option<Vec<String>> {
        let mut brokers = Vec::new();
        for element in f.elements() {
            for broker in element.text(p)?.split(',').map(str::trim) {
                let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty());
                if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) || broker.contains("://") {
                    let help = "write a host and a port: \"kafka-1:9092\"".to_owned();
                    element.wrong(format!("`{}` is no broker", element.shown()), help, p);
                    return None;
                }
                brokers.push(broker.to_owned());
            }
        }
        if brokers.is_empty() {
            f.wrong(format!("`{}` names nobody", f.path), None, p);
            return None;
        }
        Some(brokers)
    }

    /// Where nothing is said, this machine may be reached without encryption, and no other.
    fn check_tls(
        s: &mut Section<'_>,
        brokers: Option<(&Field<'_>, &Vec<String>)>,
        p: &mut Problems,
    ) -> Option<Option<Tls>> {
        let Some(field) = s.get("tls") else {
            let (at, brokers) = brokers?;
            if brokers.iter().all(|b| is_local(b)) {
                return Some(None);
            }
            let help = "write `tls = true`, or `tls = { authorities = \"ca.pem\" }` if the authority is your own, or `tls = false` if \
                 the network is yours alone";
            let message =
                "the `brokers` are beyond this machine, where anybody on the way can read along".to_owned();
            at.wrong(message, help.to_owned(), p);
            return None;
        };
        if let Value::Table(_) = field.node.value {
            let mut table = field.section("", p)?;
            let mut path = |key| match table.get(key) {
                None => Some(None),
                Some(f) => f.text(p).map(|path| Some(PathBuf::from(path))),
            };
            let tls = Tls {
                authorities: path("authorities")?,
                certificate: path("certificate")?,
                key: path("key")?,
            };
            for (key, other) in [("certificate", &tls.key), ("key", &tls.certificate)] {
                if other.is_some() {
                    table.need(key, "a certificate and its key go together", p);
                }
            }
            table.finish(&[], p);
            return Some(Some(tls));
        }
        Some(field.boolean(p)?.then(Tls::default))
    }

    fn is_local(broker: &str) -> bool {
        let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
    }

    fn check_login(f: &Field<'_>, p: &mut Problems) -> Option<Login> {
        let help =
            "write `login = { mechanism = \"SCRAM-SHA-512\", user = \"..\", password = \"${env:..}\" }`";
        let mut table = f.section(help, p)?;
        let words = Mechanism::ALL.map(Mechanism::name);
        let mechanism = table.need("mechanism", "write `mechanism = \"SCRAM-SHA-512\"`", p);
        let mechanism = mechanism.and_then(|f| f.word(&words, &["GSSAPI", "OAUTHBEARER"], p));
        let user = table.need("user", "write `user = \"tidemill\"`", p).and_then(|f| f.text(p));
        let password = table.need("password", "write `password = \"${env:KAFKA_PASSWORD}\"`", p);
        let password = password.and_then(|f| check_password(&f, p));
        table.finish(&[], p);
        let mechanism = mechanism?;
        let mechanism = Mechanism::ALL.into_iter().find(|m| m.name() == mechanism)?;
        Some(Login { mechanism, user: user?.to_owned(), password: password?.to_owned() })
    }

    fn check_password<'a>(f: &Field<'a>, p: &mut Problems) -> Option<&'a str> {
        let password = f.text(p)?;
        if f.shown().contains("${") {
            return Some(password);
        }
        let help = "write `password = \"${env:KAFKA_PASSWORD}\"` or \"${file:PATH}\"".to_owned();
        f.wrong("a password does not belong into this file".to_owned(), help, p);
        None
    }

    fn check_timeout(s: &mut Section<'_>, p: &mut Problems) -> Option<Duration> {
        let Some(f) = s.get("timeout") else { return Some(PATIENCE) };
        let ms = f.duration_ms(p)?;
        if !TIMEOUT_MS.contains(&ms) {
            f.wrong(format!("`{}` must lie between 100ms and 50s", f.path), "\"10s\" is usual".to_owned(), p);
            return None;
        }
        Some(Duration::from_millis(ms.unsigned_abs()))
    }

    fn check_topics(f: &Field<'_>, p: &mut Problems) -> Option<Vec<String>> {
        let mut topics = Vec::new();
        for element in f.elements() {
            let topic = check_name(&element, p)?;
            if topics.contains(&topic) {
                element.wrong(format!("`{}` stands here twice", element.shown()), None, p);
                return None;
            }
            topics.push(topic);
        }
        if topics.is_empty() {
            f.wrong(format!("`{}` names no topic", f.path), None, p);
            return None;
        }
        Some(topics)
    }

    fn check_name(f: &Field<'_>, p: &mut Problems) -> Option<String> {
        let name = f.text(p)?;
        match check_topic(name) {
            Ok(()) => Some(name.to_owned()),
            Err(e) => {
                f.wrong(e.to_string(), None, p);
                None
            }
        }
    }

    fn check_group(f: &Field<'_>, p: &mut Problems) -> Option<(String, super::Spot)> {
        let group = f.text(p)?;
        if group.chars().count() > GROUP_CHARS_MAX {
            f.wrong(format!("a group's name has at most {GROUP_CHARS_MAX} characters"), None, p);
            return None;
        }
        Some((group.to_owned(), f.node.at))
    }

    fn check_start(s: &mut Section<'_>, has_group: bool, p: &mut Problems) -> Option<Begin> {
        let Some(f) = s.get("start") else { return Some(Begin::Earliest) };
        let word = match &f.node.value {
            Value::Text { value, .. } if !value.starts_with(|c: char| c.is_ascii_digit()) => value.as_str(),
            _ => return instant_ms(&f, p).map(Begin::At),
        };
        if word == "committed" && !has_group {
            let help = "write `group = \"..\"`: the group that somebody has read with".to_owned();
            f.wrong("nobody but this pipeline commits in its own group".to_owned(), help, p);
            return None;
        }
        match f.word(&["earliest", "latest", "committed"], &[], p)? {
            "latest" => Some(Begin::Latest),
            "committed" => Some(Begin::Committed),
            _ => Some(Begin::Earliest),
        }
    }

    fn check_columns(f: &Field<'_>, p: &mut Problems) -> Option<Vec<String>> {
        let mut names = Vec::new();
        for element in f.elements() {
            let name = element.text(p)?;
            if name.contains([',', '"', '\t', '\r', '\n']) {
                let help = "without commas, quotes, tabs and line ends".to_owned();
                element.wrong(format!("`{}` cannot be a column", element.shown()), help, p);
                return None;
            }
            names.push(name.to_owned());
        }
        Some(names)
    }
}
