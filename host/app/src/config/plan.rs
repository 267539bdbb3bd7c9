//! The checked plan: plain values that say what will run, what of it the store must remember, and what a
//! difference between the two means.
//!
//! Invariants: a `Plan` exists only if nothing in it is wrong by itself; indices point into the plan's own
//! lists; durations are milliseconds and not negative; debug output shows no secret.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidemill_engine::outbox::{Stage, Stages};

use super::bigquery::Target as BigQueryTarget;
use super::diagnose::{Problems, Spot};
use super::kafka::{Cluster, Topics};
use super::lookup::Lookup;
use super::postgres::Server as PostgresServer;
use super::pubsub::{self, Pulled, Topic};
use super::schema::Schema;
use crate::tls::TlsFiles;

/// A whole config file, checked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Where the process listens and keeps its data.
    pub(crate) server: Server,
    /// Where state is kept besides.
    #[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
    pub(crate) state: Option<State>,
    /// In the order of the file.
    pub(crate) sources: Vec<Source>,
    /// In the order of the file; at least one.
    pub(crate) pipelines: Vec<Pipeline>,
    /// In the order of the file.
    pub(crate) sinks: Vec<Sink>,
    /// In the order of the file.
    pub(crate) lookups: Vec<Lookup>,
    /// Warnings of the check; never errors.
    pub(crate) warnings: Problems,
}

/// `[state]`.
#[cfg_attr(not(feature = "services"), expect(dead_code, reason = "this build has no object stores"))]
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// The object store.
    pub(crate) store: super::state::Location,
    /// Between two snapshots; none: only when somebody asks for one.
    pub(crate) every_ms: Option<i64>,
    /// Snapshots that stay.
    pub(crate) keep: usize,
    /// Epochs leave once the store has them, not once they are durable here.
    pub(crate) remote: bool,
}

/// `[server]`.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// host:port of the admin API.
    pub(crate) listen: String,
    /// Whether the file names it: then it must be had.
    pub(crate) listen_named: bool,
    /// Names under which the admin API is asked, beside addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
    /// What all listeners show; none: they speak plainly.
    pub(crate) tls: Option<TlsFiles>,
    /// Place of `tls`.
    pub(crate) tls_at: Spot,
    /// Whether to speak plainly beyond loopback.
    pub(crate) insecure: bool,
    /// Where epoch segments are kept; relative to the current directory.
    pub(crate) data_dir: PathBuf,
    /// Place of `data_dir`, or of nothing if it is the default.
    pub(crate) data_dir_at: Spot,
    /// Between two barriers.
    pub(crate) epoch_ms: i64,
    /// Length at which a segment of the epoch log is closed. Images of key groups begin once the log is longer.
    pub(crate) segment_bytes: u64,
    /// Lanes of each pipeline; none: as many as the machine has cores to spare.
    pub(crate) lanes: Option<usize>,
}

/// `[source.NAME]`.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its name.
    pub(crate) name: String,
    /// Place of the name.
    pub(crate) at: Spot,
    /// Where records come from.
    pub(crate) kind: SourceKind,
    /// How a record is written.
    pub(crate) format: Format,
    /// What that takes besides.
    pub(crate) schema: Schema,
    /// Whose sessions these are.
    pub(crate) key: KeySpec,
    /// Secret of HMAC-SHA-256 over the key; none: the key stays as it is.
    pub(crate) key_hmac: Option<Secret>,
    /// Where the event time is.
    pub(crate) time: TimeSpec,
    /// What makes two records one event.
    pub(crate) id: IdSpec,
    /// How far past an event's time to wait for earlier ones.
    pub(crate) disorder_ms: i64,
    /// After which silence a live partition stops holding the watermark.
    pub(crate) idle_ms: i64,
    /// How far one partition may be ahead of the slowest.
    pub(crate) drift_ms: i64,
    /// How far an event may be ahead of the clock; none: any distance.
    pub(crate) far_future_ms: Option<i64>,
    /// How long after an event is folded a copy of it is told from a late one.
    pub(crate) dedup_ms: i64,
    /// The name a plugin asks for -> where it is in this source.
    pub(crate) fields: BTreeMap<String, String>,
}

impl Source {
    /// Whether the source has no end by itself (SEMANTICS 5; stdin counts as live until it ends).
    pub(crate) fn is_live(&self) -> bool {
        match &self.kind {
            SourceKind::File { follow, .. } => *follow,
            SourceKind::Stdin | SourceKind::Http(_) | SourceKind::Kafka(_) | SourceKind::PubSub(_) => true,
            SourceKind::Generator(g) => g.events.is_none(),
        }
    }

    /// Its name and how it is posted to, if it is.
    pub(crate) fn http(&self) -> Option<(&str, &Http)> {
        match &self.kind {
            SourceKind::Http(http) => Some((&self.name, http)),
            _ => None,
        }
    }

    /// Bytes that its ingest log keeps for pipelines that lag, if it has one: what comes is kept there, since nobody could read it
    /// again in the same order.
    pub(crate) fn backlog_bytes(&self) -> Option<u64> {
        match &self.kind {
            SourceKind::Http(http) => Some(http.backlog_bytes),
            SourceKind::PubSub(pulled) => Some(pulled.backlog_bytes),
            _ => None,
        }
    }

    /// Where a field that a plugin names is in this source: as mapped, else under its own name.
    pub(crate) fn path_of<'a>(&'a self, field: &'a str) -> &'a str {
        self.fields.get(field).map_or(field, String::as_str)
    }
}

/// Where records come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SourceKind {
    /// Files of a shell pattern.
    File {
        /// The pattern, relative to the current directory.
        pattern: String,
        /// Place of the pattern.
        at: Spot,
        /// Whether the files grow.
        follow: bool,
    },
    /// Standard input.
    Stdin,
    /// Made-up clicks.
    Generator(Generator),
    /// Posted by clients.
    Http(Http),
    /// Topics of Kafka.
    Kafka(Topics),
    /// Pulled from a subscription of Pub/Sub.
    PubSub(Pulled),
}

impl SourceKind {
    /// The word in the config.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            SourceKind::File { .. } => "file",
            SourceKind::Stdin => "stdin",
            SourceKind::Generator(_) => "generator",
            SourceKind::Http(_) => "http",
            SourceKind::Kafka(_) => "kafka",
            SourceKind::PubSub(_) => "pubsub",
        }
    }
}

/// Settings of a source that is posted to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Http {
    /// host:port; sources with the same one share a listener, and their write keys tell them apart.
    pub(crate) listen: String,
    /// Place of it.
    pub(crate) at: Spot,
    /// Who may write; none: anybody who reaches the listener.
    pub(crate) write_keys: Vec<Secret>,
    /// Origins of pages that may write.
    pub(crate) cors: Vec<String>,
    /// Bytes that are kept for pipelines that lag; beyond, clients are asked to come back.
    pub(crate) backlog_bytes: u64,
}

/// Settings of the generator.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Generator {
    /// How many events; none: without end.
    pub(crate) events: Option<u64>,
    /// Events per second; none: as fast as they are taken.
    pub(crate) rate: Option<f64>,
    /// How many users.
    pub(crate) users: u64,
    /// Same seed, same events.
    pub(crate) seed: u64,
    /// Whether users follow stories (browse, buy, come back) rather than click evenly.
    pub(crate) stories: bool,
    /// Time of the first event, ms since the epoch; none: the generator's choice.
    pub(crate) start_ms: Option<i64>,
}

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// JSON lines.
    Json,
    /// Comma-separated with a header.
    Csv,
    /// Tab-separated with a header.
    Tsv,
    /// Combined log format of web servers.
    Combined,
    /// Values of Avro's schemas.
    Avro,
    /// Messages of Protobuf.
    Protobuf,
}

impl Format {
    /// The word in the config.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Combined => "combined",
            Format::Avro => "avro",
            Format::Protobuf => "protobuf",
        }
    }
}

/// Whose sessions these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeySpec {
    /// One field.
    One(String),
    /// Several fields together, at least two.
    Together(Vec<String>),
    /// The first of these that a record has, at least one.
    FirstOf(Vec<String>),
}

/// A string that debug output does not show.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(secret: String) -> Secret {
        Secret(secret)
    }

    /// The secret itself, for the one place that hashes with it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Enough to notice that the secret was changed (65,535 of 65,536 times), too little to guess it by:
    /// this goes into the store, where a longer digest would let a weak secret be tried out.
    fn trace(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.0.as_bytes()) & 0xffff
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the event time is, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeSpec {
    /// The field.
    pub(crate) field: String,
    /// How it is written.
    pub(crate) form: TimeForm,
}

/// How an event time is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TimeForm {
    /// As the format has it: RFC 3339 text, or the combined log's own.
    Standard,
    /// A number since the Unix epoch.
    Unix(TimeUnit),
    /// Text by a strptime format; `zone` (IANA name) for text that names none.
    Text {
        /// The format; none: RFC 3339 that may lack its zone.
        format: Option<String>,
        /// The zone.
        zone: String,
    },
}

/// Unit of a time that is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
}

/// What makes two records one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdSpec {
    /// Where the record stands.
    Position,
    /// The hash of its bytes.
    Content,
    /// These fields, at least one.
    Fields(Vec<String>),
    /// The first of these that a record has, else where it stands.
    FirstOf(Vec<String>),
}

/// `[pipeline.NAME]`.
#[derive(Debug, Clone)]
pub(crate) struct Pipeline {
    /// Its name.
    pub(crate) name: String,
    /// Place of the name.
    pub(crate) at: Spot,
    /// Indices of its sources, at least one.
    pub(crate) from: Vec<usize>,
    /// Judges of its events, in order.
    pub(crate) validate: Vec<PluginUse>,
    /// Where sessions begin and end.
    pub(crate) rule: Rule,
    /// What adds fields to its sessions, in order.
    pub(crate) enrich: Vec<PluginUse>,
    /// When what an epoch sends leaves.
    pub(crate) mode: Mode,
    /// What is sent before a session is final.
    pub(crate) early: Early,
    /// How long after the watermark a session may still be corrected.
    pub(crate) lateness_ms: i64,
    /// What happens when the input is used up.
    pub(crate) end_of_input: EndOfInput,
    /// Where sessions go, at least one.
    pub(crate) to: Vec<Target>,
    /// Index of the sink of dead letters; none: they are only counted.
    pub(crate) dead: Option<usize>,
    /// Bounds.
    pub(crate) limits: Limits,
}

/// Where sessions begin and end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rule {
    /// `builtin:gap`.
    Gap(GapRule),
    /// A component.
    Plugin(PluginUse),
}

/// A plugin in its place in a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginUse {
    /// Its name in `[plugin.NAME]`.
    pub(crate) name: String,
    /// Where it is named.
    pub(crate) at: Spot,
    /// Key path of that place.
    pub(crate) key: String,
    /// The component's file.
    pub(crate) path: PathBuf,
    /// Place of that path.
    pub(crate) path_at: Spot,
    /// Its config, a JSON object.
    pub(crate) config: serde_json::Value,
    /// Places of what stands in the config.
    pub(crate) places: Places,
    /// Enrichers: the plugin's name for a lookup, and the index of the one that answers.
    pub(crate) lookups: Vec<(String, usize)>,
}

/// Where the values of a plugin's config stand in the file: their JSON pointers, and what is to be pointed at.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Places(pub(crate) Vec<(String, Place)>);

/// A value's place and its key path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// Its place.
    pub(crate) at: Spot,
    /// Its key path.
    pub(crate) key: String,
}

impl Places {
    /// Of the value that a JSON pointer names, or of the nearest one around it: the value may be missing.
    pub(crate) fn of(&self, pointer: &str) -> Option<&Place> {
        let mut pointer = pointer;
        loop {
            if let Some((_, place)) = self.0.iter().find(|(p, _)| p == pointer) {
                return Some(place);
            }
            pointer = pointer.rsplit_once('/')?.0;
        }
    }
}

/// Config of `builtin:gap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GapRule {
    /// Silence that ends a session.
    pub(crate) gap_ms: i64,
    /// Whether an event exactly one gap later stays in the session (`inclusive`).
    pub(crate) inclusive: bool,
    /// Longest session.
    pub(crate) max_ms: Option<i64>,
    /// Events that always begin a session.
    pub(crate) start: Option<Match>,
    /// Events that are always the last of one.
    pub(crate) end: Option<Match>,
}

/// True of an event whose field has one of the values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Match {
    /// The field, as the rule names it.
    pub(crate) field: String,
    /// The values, at least one.
    pub(crate) values: Vec<String>,
}

/// When what an epoch sends leaves for the sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Once the epoch is durable.
    ExactlyOnce,
    /// Before, for latency (SEMANTICS 25): after a crash a sink may have rows of an epoch that never was, until they are taken back.
    AtLeastOnce,
}

impl Mode {
    /// As it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Mode::ExactlyOnce => "exactly-once",
            Mode::AtLeastOnce => AT_LEAST_ONCE,
        }
    }

    /// That of the run that this is the fingerprint of.
    pub(crate) fn of(fingerprint: &Value) -> Mode {
        if fingerprint["mode"] == AT_LEAST_ONCE { Mode::AtLeastOnce } else { Mode::ExactlyOnce }
    }
}

const AT_LEAST_ONCE: &str = "at-least-once";

/// What is sent before a session is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Early {
    /// Changes at every barrier.
    Epoch,
    /// Changes at every so many ms, a multiple of the epoch.
    Every(i64),
    /// Nothing.
    Off,
}

/// What happens when the input is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndOfInput {
    /// All sessions close.
    Close,
    /// Open sessions wait for the next run.
    Hold,
}

/// A sink and which revisions it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// Index of the sink.
    pub(crate) sink: usize,
    /// Which revisions.
    pub(crate) stages: Stages,
}

/// Bounds of a pipeline (SEMANTICS 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Events in one key's suffix.
    pub(crate) events_per_key: u64,
    /// Bytes in all suffixes.
    pub(crate) suffix_bytes: u64,
    /// Keys with a session that is open or may still change.
    pub(crate) open_sessions: u64,
    /// How far a sink may lag.
    pub(crate) outbox_bytes: u64,
    /// Bytes of revisions that wait for their lookups.
    pub(crate) unresolved_bytes: u64,
    /// What plugins may fail at.
    pub(crate) faults: FaultLimits,
}

/// How much a pipeline's plugins may fail, all together, before it is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FaultLimits {
    /// Faults that are contained; the next one is too many.
    pub(crate) faults: u64,
    /// How long calls that had to be stopped may run within the window.
    pub(crate) overdue: Duration,
    /// See `overdue`.
    pub(crate) overdue_window: Duration,
}

/// `[sink.NAME]`.
#[derive(Debug, Clone)]
pub(crate) struct Sink {
    /// Its name.
    pub(crate) name: String,
    /// Place of the name.
    pub(crate) at: Spot,
    /// Place of `path`, or of the name if there is none.
    pub(crate) path_at: Spot,
    /// What it is.
    pub(crate) kind: SinkKind,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SinkKind {
    /// Upsert into a table.
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// The table.
        table: String,
    },
    /// JSON lines, appended.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Upsert into a table of a server, or letters into one.
    Postgres {
        /// Where it is.
        server: PostgresServer,
        /// The table, with a schema before a dot if need be.
        table: String,
    },
    /// A topic of Kafka, one message a revision or letter.
    Kafka {
        /// Where it is.
        cluster: Cluster,
        /// The topic.
        topic: String,
        /// Bytes of one message.
        message_bytes_max: usize,
    },
    /// Upsert into a table of BigQuery, or letters into one.
    BigQuery {
        /// Where it is and how it is made.
        target: BigQueryTarget,
    },
    /// Messages of a topic.
    PubSub {
        /// Where it is.
        topic: Topic,
    },
    /// JSON lines on standard output.
    Stdout,
}

impl SinkKind {
    /// Its file, if it has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            SinkKind::Sqlite { path, .. } | SinkKind::File { path } => Some(path),
            SinkKind::Postgres { .. }
            | SinkKind::BigQuery { .. }
            | SinkKind::Kafka { .. }
            | SinkKind::PubSub { .. }
            | SinkKind::Stdout => None,
        }
    }

    fn facts(&self) -> Value {
        match self {
            SinkKind::Sqlite { path, table } => json!({"kind": "sqlite", "path": path, "table": table}),
            SinkKind::File { path } => json!({"kind": "file", "path": path}),
            // Not where it is: a server may move with all that is in it, and its table says itself how far it is.
            SinkKind::Postgres { table, .. } => json!({"kind": "postgres", "table": table}),
            // Nor here: a topic may be mirrored, and the group that says how far it is with it.
            SinkKind::Kafka { topic, .. } => json!({"kind": "kafka", "topic": topic}),
            SinkKind::PubSub { topic } => json!({"kind": "pubsub", "topic": pubsub::full_name(topic)}),
            // Another table is another place; who answers for it is not.
            SinkKind::BigQuery { target } => json!({"kind": "bigquery", "table": target.full_name()}),
            SinkKind::Stdout => json!({"kind": "stdout"}),
        }
    }
}

/// What the store must remember of a pipeline, to be compared with the config at the next start.
pub(crate) fn fingerprint(pipeline: &Pipeline, plan: &Plan) -> Value {
    let sources: serde_json::Map<String, Value> = pipeline
        .from
        .iter()
        .filter_map(|i| plan.sources.get(*i))
        .map(|s| (s.name.clone(), source_facts(s, &pipeline.rule)))
        .collect();
    let sinks: serde_json::Map<String, Value> = pipeline
        .to
        .iter()
        .filter_map(|t| plan.sinks.get(t.sink).map(|s| (s, t.stages)))
        .map(|(s, stages)| {
            let mut facts = s.kind.facts();
            let words: Vec<&str> =
                Stage::ALL.into_iter().filter(|x| stages.has(*x)).map(Stage::name).collect();
            facts["stages"] = json!(words);
            (s.name.clone(), facts)
        })
        .collect();
    let dead = pipeline.dead.and_then(|i| plan.sinks.get(i));
    json!({
        "pipeline": pipeline.name,
        "sources": sources,
        "rule": rule_facts(&pipeline.rule),
        "enrich": enrich_facts(pipeline, plan),
        "lateness_ms": pipeline.lateness_ms,
        "mode": pipeline.mode.word(),
        "early": match pipeline.early {
            Early::Epoch => json!("epoch"),
            Early::Every(ms) => json!({ "every_ms": ms }),
            Early::Off => json!("off"),
        },
        "end_of_input": match pipeline.end_of_input { EndOfInput::Close => "close", EndOfInput::Hold => "hold" },
        "sinks": sinks,
        "dead": dead.map(|s| json!({"name": s.name, "to": s.kind.facts()})),
        "limits": {
            "events_per_key": pipeline.limits.events_per_key,
            "suffix_bytes": pipeline.limits.suffix_bytes,
            "open_sessions": pipeline.limits.open_sessions,
            "outbox_bytes": pipeline.limits.outbox_bytes,
            "unresolved_bytes": pipeline.limits.unresolved_bytes,
            "faults": pipeline.limits.faults.faults,
            "overdue_ms": pipeline.limits.faults.overdue.as_millis() as u64,
            "overdue_window_ms": pipeline.limits.faults.overdue_window.as_millis() as u64,
        },
    })
}

fn source_facts(s: &Source, rule: &Rule) -> Value {
    let time = match &s.time.form {
        TimeForm::Standard => json!({"field": s.time.field}),
        TimeForm::Unix(unit) => json!({
            "field": s.time.field,
            "unit": match unit { TimeUnit::S => "s", TimeUnit::Ms => "ms", TimeUnit::Us => "us" },
        }),
        TimeForm::Text { format, zone } => json!({"field": s.time.field, "format": format, "zone": zone}),
    };
    // Only the fields that the rule reads: mapping others changes nothing that was folded.
    let read: BTreeMap<&str, &str> = match rule {
        Rule::Gap(gap) => [&gap.start, &gap.end]
            .into_iter()
            .flatten()
            .map(|m| (m.field.as_str(), s.path_of(&m.field)))
            .collect(),
        Rule::Plugin(_) => s.fields.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect(),
    };
    let generator = match &s.kind {
        SourceKind::Generator(g) => {
            json!({"users": g.users, "seed": g.seed, "stories": g.stories, "start_ms": g.start_ms})
        }
        _ => Value::Null,
    };
    json!({
        "kind": s.kind.name(),
        "format": s.format.name(),
        "key": match &s.key {
            KeySpec::One(k) => json!(k),
            KeySpec::Together(k) => json!(k),
            KeySpec::FirstOf(k) => json!({ "first_of": k }),
        },
        "key_hmac": s.key_hmac.as_ref().map(Secret::trace),
        "time": time,
        "id": match &s.id {
            IdSpec::Position => json!("position"),
            IdSpec::Content => json!("content"),
            IdSpec::Fields(f) => json!({ "fields": f }),
            IdSpec::FirstOf(f) => json!({ "first_of": f }),
        },
        "disorder_ms": s.disorder_ms,
        "fields": read,
        "generator": generator,
    })
}

fn enrich_facts(pipeline: &Pipeline, plan: &Plan) -> Value {
    let lookups = |u: &PluginUse| -> serde_json::Map<String, Value> {
        let name = |at: usize| plan.lookups.get(at).map(|l| json!(l.name));
        u.lookups.iter().filter_map(|(asked, at)| Some((asked.clone(), name(*at)?))).collect()
    };
    let one = |u: &PluginUse| json!({"plugin": u.name, "config": u.config, "lookups": lookups(u)});
    pipeline.enrich.iter().map(one).collect()
}

fn rule_facts(rule: &Rule) -> Value {
    let rule = match rule {
        Rule::Gap(rule) => rule,
        Rule::Plugin(p) => return json!({"plugin": p.name, "config": p.config}),
    };
    let matches = |m: &Option<Match>| m.as_ref().map(|m| json!({"field": m.field, "in": m.values}));
    json!({
        "plugin": "builtin:gap",
        "gap_ms": rule.gap_ms,
        "boundary": if rule.inclusive { "inclusive" } else { "exclusive" },
        "max_ms": rule.max_ms,
        "start": matches(&rule.start),
        "end": matches(&rule.end),
    })
}

/// What a difference between store and config means (DESIGN 4, "What wins").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// Takes effect at once.
    Free,
    /// Another version of the rule takes over from a place in event time on.
    Swap,
    /// A sink would lack what was sent: only with `--resend`.
    Resend,
    /// Would make stored sessions meaningless.
    Refused,
}

/// One difference between store and config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Key path in the config.
    pub(crate) what: String,
    /// What it means.
    pub(crate) kind: ChangeKind,
    /// A sentence for the user, with the way out if it is refused.
    pub(crate) message: String,
}

impl Change {
    /// Whether the pipeline may start with it.
    pub(crate) fn stops(&self) -> bool {
        self.kind == ChangeKind::Refused
    }
}

/// Names every difference between what was run and what the config wants now.
pub(crate) fn compare(stored: &Value, new: &Value) -> Vec<Change> {
    let pipeline = new["pipeline"].as_str().unwrap_or_default();
    let mut changes = Vec::new();
    by_name(&stored["sources"], &new["sources"], |name, before, now| match (before, now) {
        (Some(before), Some(now)) => source_changes(pipeline, name, before, now, &mut changes),
        (None, _) => changes.push(free(
            format!("source.{name}"),
            format!("`{name}` is read from now on; its events before the watermark count as late"),
        )),
        (_, None) => changes.push(free(format!("source.{name}"), format!("`{name}` is no longer read"))),
    });
    by_name(&stored["rule"], &new["rule"], |name, before, now| {
        if before.unwrap_or(&Value::Null) != now.unwrap_or(&Value::Null) {
            changes.push(swap(pipeline, name, before, now));
        }
    });
    difference(
        &format!("pipeline.{pipeline}.dead"),
        &stored["dead"]["name"],
        &new["dead"]["name"],
        &mut changes,
    );
    for aspect in ["enrich", "lateness_ms", "mode", "early", "end_of_input"] {
        difference(&format!("pipeline.{pipeline}.{aspect}"), &stored[aspect], &new[aspect], &mut changes);
    }
    by_name(&stored["sinks"], &new["sinks"], |name, before, now| match (before, now) {
        (None, _) => changes.push(free(
            format!("sink.{name}"),
            format!(
                "`{name}` gets what is committed from now on; `--resend {name}` sends what is still kept"
            ),
        )),
        (_, None) => changes.push(free(format!("sink.{name}"), format!("`{name}` gets nothing any more"))),
        (Some(before), Some(now)) => {
            difference(&format!("sink.{name}.stages"), &before["stages"], &now["stages"], &mut changes);
        }
    });
    let sinks = new["sinks"].as_object().into_iter().flat_map(serde_json::Map::keys).map(String::as_str);
    for name in sinks.chain(new["dead"]["name"].as_str()) {
        if let Some(message) = moved(stored, new, name) {
            changes.push(Change { what: format!("sink.{name}"), kind: ChangeKind::Resend, message });
        }
    }
    by_name(&stored["limits"], &new["limits"], |name, before, now| {
        let what = format!("pipeline.{pipeline}.limits.{name}");
        difference(&what, before.unwrap_or(&Value::Null), now.unwrap_or(&Value::Null), &mut changes);
    });
    changes
}

/// What to say if a sink of this name writes to another place than it did: what was sent before is not there.
pub(crate) fn moved(stored: &Value, new: &Value, sink: &str) -> Option<String> {
    let facts = |of: &Value| {
        let dead = (of["dead"]["name"] == sink).then(|| of["dead"]["to"].clone());
        of["sinks"].get(sink).cloned().or(dead)
    };
    let place = |facts: &Value| {
        // `./s.db` is `s.db`, but what the file system makes of a path is not asked here.
        let path: PathBuf = facts["path"].as_str().map(plain).unwrap_or_default();
        (facts["kind"].clone(), path, facts["table"].clone(), facts["topic"].clone())
    };
    let shown = |facts: &Value| match (facts["path"].as_str(), facts["table"].as_str()) {
        _ if facts["topic"].is_string() => {
            format!("topic {} of Kafka", facts["topic"].as_str().unwrap_or_default())
        }
        (Some(path), Some(table)) => format!("table {table} of {path}"),
        (Some(path), None) => path.to_owned(),
        (None, Some(table)) if facts["kind"] == "bigquery" => format!("table {table} of BigQuery"),
        (None, Some(table)) => format!("table {table} of a Postgres server"),
        (None, None) => "standard output".to_owned(),
    };
    let (before, now) = (facts(stored)?, facts(new)?);
    (place(&before) != place(&now)).then(|| {
        format!(
            "it wrote to {} and is now to write to {}, where what was sent before is missing: put the old place back, \
             `--resend {sink}` sends again what is still kept, or give the new place a new name, and it gets what is \
             committed from now on",
            shown(&before),
            shown(&now)
        )
    })
}

/// A path without its `.` parts.
fn plain(path: &str) -> PathBuf {
    Path::new(path).components().filter(|c| *c != std::path::Component::CurDir).collect()
}

/// Calls `each` for every name that either table has, in order.
fn by_name(stored: &Value, new: &Value, mut each: impl FnMut(&str, Option<&Value>, Option<&Value>)) {
    let names: std::collections::BTreeSet<&String> =
        [stored, new].into_iter().filter_map(Value::as_object).flat_map(serde_json::Map::keys).collect();
    for name in names {
        each(name, stored.get(name), new.get(name));
    }
}

fn source_changes(pipeline: &str, name: &str, before: &Value, now: &Value, changes: &mut Vec<Change>) {
    for aspect in ["kind", "format", "key", "key_hmac", "time", "id", "generator"] {
        if before[aspect] == now[aspect] {
            continue;
        }
        let what = format!("source.{name}.{aspect}");
        let was = match aspect {
            // Neither the secret nor its trace belongs on a screen.
            "key_hmac" => "the hashing of keys".to_owned(),
            "generator" => "what the generator makes".to_owned(),
            _ => {
                format!("`{what}` from {} to {}", shown(aspect, &before[aspect]), shown(aspect, &now[aspect]))
            }
        };
        let message = format!(
            "{was} cannot change under stored sessions: `--fresh` starts `{pipeline}` over, \
             or give the pipeline another name and its sinks another table or path, and both stay apart"
        );
        changes.push(Change { what, kind: ChangeKind::Refused, message });
    }
    if before["fields"] != now["fields"] {
        let message = format!(
            "where the rule's fields are in `{name}` goes from {} to {}: stored events were read the old way; `--fresh` starts \
             `{pipeline}` over, or give the pipeline another name and its sinks another table or path, and both stay apart",
            shown("fields", &before["fields"]),
            shown("fields", &now["fields"])
        );
        changes.push(Change { what: format!("source.{name}.fields"), kind: ChangeKind::Refused, message });
    }
    difference(&format!("source.{name}.disorder_ms"), &before["disorder_ms"], &now["disorder_ms"], changes);
}

fn swap(pipeline: &str, name: &str, before: Option<&Value>, now: Option<&Value>) -> Change {
    let value = |v: Option<&Value>| shown(name, v.unwrap_or(&Value::Null));
    let key = name.trim_end_matches("_ms");
    Change {
        what: format!("pipeline.{pipeline}.session.{key}"),
        kind: ChangeKind::Swap,
        message: format!(
            "`{key}` of the session rule goes from {} to {}: the next start swaps it, for events after all that were read",
            value(before),
            value(now)
        ),
    }
}

fn free(what: String, message: String) -> Change {
    Change { what, kind: ChangeKind::Free, message }
}

/// A difference that takes effect at once; a fact that is a duration has a name with its unit.
fn difference(fact: &str, before: &Value, now: &Value, changes: &mut Vec<Change>) {
    if before != now {
        let what = fact.trim_end_matches("_ms");
        let message = format!("`{what}` goes from {} to {}", shown(fact, before), shown(fact, now));
        changes.push(free(what.to_owned(), message));
    }
}

/// A fact as the config has it.
fn shown(fact: &str, value: &Value) -> String {
    match (value, value.as_u64(), value.as_object()) {
        (Value::Null, ..) => "nothing".to_owned(),
        (_, Some(ms), _) if fact.ends_with("_ms") => duration(ms),
        (.., Some(table)) if !table.is_empty() => {
            let one = |(name, value): (&String, &Value)| {
                format!("{} = {}", name.trim_end_matches("_ms"), shown(name, value))
            };
            format!("{{ {} }}", table.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        (other, ..) => other.to_string(),
    }
}

/// A duration as one writes it: in the largest unit that it is a whole number of.
fn duration(ms: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let (n, unit) = units.into_iter().find(|(n, _)| ms >= *n && ms.is_multiple_of(*n)).unwrap_or((1, "ms"));
    format!("\"{}{unit}\"", ms / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_shown_as_the_config_has_them() {
        for (fact, value, expected) in [
            ("gap_ms", json!(5000), "\"5s\""),
            ("source.web.disorder_ms", json!(90_000), "\"90s\""),
            ("x_ms", json!(1_800_000), "\"30m\""),
            ("x_ms", json!(7_200_000), "\"2h\""),
            ("x_ms", json!(1500), "\"1500ms\""),
            ("x_ms", json!(0), "\"0ms\""),
            ("events", json!(5000), "5000"),
            ("early", json!({"every_ms": 20_000}), "{ every = \"20s\" }"),
            ("key", json!(["a", "b"]), "[\"a\",\"b\"]"),
            ("max_ms", Value::Null, "nothing"),
        ] {
            assert_eq!(shown(fact, &value), expected, "{fact}");
        }
    }

    #[test]
    fn a_sink_has_moved_if_its_place_is_another() {
        let of = |sinks: Value| json!({"sinks": sinks, "dead": {"name": "dead", "to": {"kind": "file", "path": "d"}}});
        let file = |path: &str| of(json!({"s": {"kind": "file", "path": path, "stages": ["final"]}}));
        let table = |t: &str| of(json!({"s": {"kind": "sqlite", "path": "a", "table": t}}));
        let topic = |t: &str| of(json!({"s": {"kind": "kafka", "topic": t}}));
        assert_eq!(moved(&file("a"), &file("./a"), "s"), None);
        assert!(moved(&file("a"), &file("b"), "s").is_some_and(|m| m.contains("--resend s")));
        assert!(moved(&table("t"), &table("u"), "s").is_some_and(|m| m.contains("table u of a")));
        assert!(moved(&file("a"), &table("t"), "s").is_some());
        assert_eq!(moved(&topic("t"), &topic("t"), "s"), None);
        assert!(moved(&topic("t"), &topic("u"), "s").is_some_and(|m| m.contains("topic u of Kafka")));
        assert_eq!(moved(&file("a"), &file("a"), "new"), None, "there was none");
        let other = json!({"sinks": {}, "dead": {"name": "dead", "to": {"kind": "file", "path": "e"}}});
        assert!(moved(&file("a"), &other, "dead").is_some());
    }
}
