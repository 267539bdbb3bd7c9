//! From a config file to a checked plan: `load` and `parse` find everything that is wrong with the file by
//! itself, `Plan::probe` what is wrong with the world it names.
//!
//! Invariants: nothing is opened or created here, except that `${file:..}` and the probe read; every problem
//! of a file is reported in one go; a name that is declared counts as declared even if its table is wrong,
//! so that one mistake is one problem.

pub(crate) mod bigquery;
pub(crate) mod bigtable;
mod cycle;
mod diagnose;
#[cfg(test)]
mod fuzz;
pub(crate) mod kafka;
mod listener;
pub(crate) mod lookup;
mod pipeline;
pub(crate) mod plan;
pub(crate) mod postgres;
mod probe;
pub(crate) mod pubsub;
mod raw;
mod references;
pub(crate) mod schema;
mod sink;
mod source;
pub(crate) mod state;

use self::diagnose::Document;
pub(crate) use self::diagnose::{Problems, Spot};
use self::lookup::Lookup;
pub(crate) use self::plan::{
    Change, ChangeKind, Early, EndOfInput, Format, IdSpec, KeySpec, Pipeline, Plan, Rule, Server, Sink,
    SinkKind, Source, SourceKind, Target, compare, fingerprint,
};
pub(crate) use self::raw::duration_ms;
use self::raw::{Entry, Env, Field, Section};
use self::references::{Names, Uses};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the admin API listens if nothing else is said.
const LISTEN: &str = "127.0.0.1:7300";
/// Lanes of one pipeline; more would only split the work of one reader further.
pub(crate) const LANES_MAX: usize = 8;
/// Bounds of `server.epoch`: shorter than a disk's sync makes no sense, longer makes restarts slow.
const EPOCH_MS: std::ops::RangeInclusive<i64> = 10..=60_000;
/// Few files, yet space comes back in small steps, and recovery holds no more than one segment in memory.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Shorter ones would be mostly files; longer ones mostly memory.
const SEGMENT_BYTES_BOUNDS: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;

/// Reads and checks a config file, with the process's environment and the clock as it stands.
pub(crate) fn load(path: &Path) -> Result<Plan, Problems> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path, jiff::Timestamp::now().as_millisecond()),
        Err(e) => {
            let origin = path.display().to_string();
            let mut problems = Problems::new(Arc::new(Document::new(&origin, "")));
            problems.error_of_file(format!("`{origin}` cannot be read: {e}"), None);
            Err(problems)
        }
    }
}

/// Checks a config text. `origin` names it in messages; `now_ms` is the clock, ms since the Unix epoch.
pub(crate) fn parse(text: &str, origin: &Path, now_ms: i64) -> Result<Plan, Problems> {
    parse_with(text, origin, now_ms, &|name| std::env::var(name).ok())
}

fn parse_with(text: &str, origin: &Path, now_ms: i64, env: Env<'_>) -> Result<Plan, Problems> {
    let document = Arc::new(Document::new(&origin.display().to_string(), text));
    let mut problems = Problems::new(document);
    let p = &mut problems;
    let entries = raw::read(text, env, p);
    if p.has_errors() && entries.is_empty() {
        return Err(problems);
    }
    let checked = check(&entries, now_ms, p);
    problems.sort();
    match checked {
        Some(mut plan) if !problems.has_errors() => {
            plan.warnings = problems;
            Ok(plan)
        }
        _ => Err(problems),
    }
}

/// Services that take a client, by the `kind` of what speaks to them.
const SERVICES: [(&str, &str); 5] = [
    ("postgres", "Postgres"),
    ("bigquery", "BigQuery"),
    ("bigtable", "Bigtable"),
    ("kafka", "Kafka"),
    ("pubsub", "Pub/Sub"),
];

/// Notes that this build cannot speak to what is of this kind, `word`; false if it can.
fn is_missing(word: &str, kind: &Field<'_>, p: &mut Problems) -> bool {
    let service = SERVICES.iter().find(|(of, _)| *of == word).filter(|_| !cfg!(feature = "services"));
    if let Some((_, service)) = service {
        let help = "build it with `--features services`, or use a kind without a service".to_owned();
        kind.wrong(format!("this build has no {service}"), help, p);
    }
    service.is_some()
}

/// The whole file. The plan is complete only if no error was noted.
fn check(entries: &[Entry], now_ms: i64, p: &mut Problems) -> Option<Plan> {
    let mut root = Section::new(String::new(), Spot::default(), entries);
    let server = check_server(root.get("server"), p);
    let state = root.get("state").and_then(|f| state::check(&f, p));
    let sources = named(root.get("source"), "[source.web]", p);
    let sinks = named(root.get("sink"), "[sink.sessions]", p);
    let pipelines = named(root.get("pipeline"), "[pipeline.visits]", p);
    let plugins = named(root.get("plugin"), "[plugin.checkout]", p);
    let lookups = named(root.get("lookup"), "[lookup.visitors]", p);
    root.finish(&[], p);
    if pipelines.is_empty() {
        p.error_of_file(
            "there is no pipeline".to_owned(),
            Some("write a [pipeline.visits] with `from`, `session` and `to`".to_owned()),
        );
    }
    let lookup_names = names_of(&lookups);
    let plugins = plugins.into_iter().map(|s| pipeline::check_plugin(s, &lookup_names, p)).collect();
    let names =
        Names { sources: names_of(&sources), sinks: names_of(&sinks), plugins, epoch_ms: server.epoch_ms };
    let sources: Vec<Option<Source>> =
        sources.into_iter().map(|s| source::check_source(s, now_ms, &server, p)).collect();
    listener::check_shared(&sources, p);
    let sinks: Vec<Option<Sink>> = sinks.into_iter().map(|s| sink::check_sink(s, p)).collect();
    let lookups: Vec<Option<Lookup>> = lookups.into_iter().map(|s| lookup::check_lookup(s, p)).collect();
    let mut uses = Uses::default();
    let pipelines: Vec<Option<Pipeline>> =
        pipelines.into_iter().map(|s| pipeline::check_pipeline(s, &names, &mut uses, p)).collect();
    uses.check(&sources, &sinks, p);
    uses.check_groups(&sources, p);
    references::unused(&names, &uses, &sources, &sinks, &pipelines, p);
    lookup::unused(&lookups, &pipelines, p);
    references::check_one_file(&sinks, p);
    Some(Plan {
        server,
        state,
        sources: sources.into_iter().collect::<Option<_>>()?,
        pipelines: pipelines.into_iter().collect::<Option<_>>()?,
        sinks: sinks.into_iter().collect::<Option<_>>()?,
        lookups: lookups.into_iter().collect::<Option<_>>()?,
        warnings: Problems::new(p.document().clone()),
    })
}

fn names_of(sections: &[Section<'_>]) -> Vec<String> {
    sections.iter().map(|s| last(&s.path).to_owned()).collect()
}

/// The name at the end of a key path; names have no dots.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The tables of `[source.NAME]` and the like.
fn named<'a>(field: Option<Field<'a>>, example: &str, p: &mut Problems) -> Vec<Section<'a>> {
    let help = format!("name it: {example}");
    let Some(outer) = field.and_then(|f| f.section(&help, p)) else { return Vec::new() };
    let mut list = Vec::new();
    for e in outer.entries() {
        let path = raw::join(&outer.path, &e.key);
        let plain = e.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if e.key.is_empty() || !plain {
            let help = "use letters, digits, `_` and `-`".to_owned();
            p.error(e.key_at, &path, format!("`{}` cannot be a name", e.key), help);
            continue;
        }
        let field = Field { node: &e.node, key_at: e.key_at, path };
        list.extend(field.section(&help, p));
    }
    list
}

fn check_server(field: Option<Field<'_>>, p: &mut Problems) -> Server {
    let mut server = Server {
        listen: LISTEN.to_owned(),
        listen_named: false,
        hosts: Vec::new(),
        tls: None,
        tls_at: Spot::default(),
        insecure: false,
        data_dir: PathBuf::from("./.tidemill"),
        data_dir_at: Spot::default(),
        epoch_ms: 1000,
        segment_bytes: SEGMENT_BYTES,
        lanes: None,
    };
    let Some(mut s) = field.and_then(|f| f.section("write [server]", p)) else { return server };
    listener::check(&mut s, &mut server, p);
    if let Some(f) = s.get("data_dir")
        && let Some(dir) = f.text(p)
    {
        server.data_dir = PathBuf::from(dir);
        server.data_dir_at = f.node.at;
    }
    if let Some(f) = s.get("epoch")
        && let Some(ms) = f.duration_ms(p)
    {
        server.epoch_ms = ms;
        if !EPOCH_MS.contains(&ms) {
            f.wrong(
                "`server.epoch` must lie between 10ms and 60s".to_owned(),
                "\"1s\" is usual".to_owned(),
                p,
            );
            // Nothing else is to be measured by a wrong epoch.
            server.epoch_ms = 1000;
        }
    }
    if let Some(f) = s.get("segment")
        && let Some(bytes) = f.size_bytes(p)
    {
        server.segment_bytes = bytes;
        if !SEGMENT_BYTES_BOUNDS.contains(&bytes) {
            let wrong = "`server.segment` must lie between 64KiB and 1GiB".to_owned();
            f.wrong(wrong, "\"64MiB\" is usual".to_owned(), p);
        }
    }
    if let Some(f) = s.get("lanes")
        && let Some(lanes) = f.count(1, p)
    {
        server.lanes = usize::try_from(lanes).ok().filter(|n| *n <= LANES_MAX);
        if server.lanes.is_none() {
            let wrong = format!("`server.lanes` must lie between 1 and {LANES_MAX}");
            f.wrong(wrong, "leave it out for one a core, but for that of the reader".to_owned(), p);
        }
    }
    s.finish(&[], p);
    server
}

fn duration(s: &mut Section<'_>, key: &'static str, default_ms: i64, p: &mut Problems) -> i64 {
    s.get(key).and_then(|f| f.duration_ms(p)).unwrap_or(default_ms)
}

#[cfg(test)]
mod tests;
