//! `[sink.NAME]`: where sessions and dead letters go.

use super::diagnose::Problems;
use super::plan::{Sink, SinkKind};
use super::raw::{Field, Section};
use super::{bigquery, kafka, last, postgres, pubsub};
use std::path::PathBuf;
use std::time::Duration;

/// Keys that only some kinds of sink have.
const SINK_ONLY: [(&str, &str); 22] = [
    ("path", "only kind = \"sqlite\" and \"file\" have it"),
    ("table", "only kind = \"sqlite\", \"postgres\" and \"bigquery\" have it"),
    ("url", "only kind = \"postgres\" has it"),
    ("password", "only kind = \"postgres\" has it"),
    ("sslmode", "only kind = \"postgres\" has it"),
    ("sslrootcert", "only kind = \"postgres\" has it"),
    ("timeout", "only kind = \"postgres\", \"bigquery\", \"kafka\" and \"pubsub\" have it"),
    ("brokers", "only kind = \"kafka\" has it"),
    ("topic", "only kind = \"kafka\" and \"pubsub\" have it"),
    ("ordered", "only kind = \"pubsub\" has it"),
    ("tls", "only kind = \"kafka\" has it"),
    ("login", "only kind = \"kafka\" has it"),
    ("message_bytes_max", "only kind = \"kafka\" has it"),
    ("project", "only kind = \"bigquery\" and \"pubsub\" have it"),
    ("dataset", "only kind = \"bigquery\" has it"),
    ("location", "only kind = \"bigquery\" has it"),
    ("max_staleness", "only kind = \"bigquery\" has it"),
    ("clustering", "only kind = \"bigquery\" has it"),
    ("columns", "only kind = \"bigquery\" has it"),
    ("credentials", "only kind = \"bigquery\" and \"pubsub\" have it"),
    ("endpoint", "only kind = \"bigquery\" and \"pubsub\" have it"),
    ("storage_endpoint", "only kind = \"bigquery\" has it"),
];
/// How long one answer of a service may take, ms, by default: a slow statement under load, and no longer than a stop waits.
const TIMEOUT_MS: i64 = 30_000;
/// Shorter than this not even a healthy service always answers.
const TIMEOUT_MS_MIN: i64 = 100;
/// Longer than this nobody wants to wait for one that is gone.
const TIMEOUT_MS_MAX: i64 = 3_600_000;

pub(super) fn check_sink(mut s: Section<'_>, p: &mut Problems) -> Option<Sink> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let later = ["spanner", "bigtable", "http"];
    let kind = s.need("kind", "write `kind = \"sqlite\"`, \"file\" or \"stdout\"", p);
    let word = kind.as_ref().and_then(|f| {
        f.word(&["sqlite", "file", "postgres", "bigquery", "kafka", "pubsub", "stdout"], &later, p)
    });
    let word = word.filter(|w| !kind.as_ref().is_some_and(|f| super::is_missing(w, f, p)));
    let mut path_at = at;
    let kind = match word {
        Some("stdout") => Some(SinkKind::Stdout),
        Some("postgres") => check_postgres(&mut s, p),
        Some("kafka") => {
            let checked = kafka::check_sink(&mut s, p);
            checked.map(|(cluster, topic, message_bytes_max)| SinkKind::Kafka {
                cluster,
                topic,
                message_bytes_max,
            })
        }
        Some("pubsub") => {
            let timeout = check_timeout(&mut s, p);
            pubsub::check_sink(&mut s, timeout, p).map(|topic| SinkKind::PubSub { topic })
        }
        Some("bigquery") => {
            let timeout = check_timeout(&mut s, p);
            bigquery::check(&mut s, timeout, p).map(|target| SinkKind::BigQuery { target })
        }
        Some(kind) => {
            let example = if kind == "sqlite" {
                "write `path = \"sessions.db\"`"
            } else {
                "write `path = \"out.jsonl\"`"
            };
            let path = s.need("path", example, p);
            path_at = path.as_ref().map_or(at, |f| f.node.at);
            let path = path.and_then(|f| f.text(p)).map(PathBuf::from);
            if kind == "sqlite" {
                let table = s.get("table").map_or_else(default_table, |f| check_table(&f, p));
                path.map(|path| SinkKind::Sqlite { path, table })
            } else {
                path.map(|path| SinkKind::File { path })
            }
        }
        None => {
            s.forgive(&SINK_ONLY.map(|(key, _)| key));
            None
        }
    };
    s.finish(&SINK_ONLY, p);
    Some(Sink { name, at, path_at, kind: kind? })
}

fn check_postgres(s: &mut Section<'_>, p: &mut Problems) -> Option<SinkKind> {
    let timeout = check_timeout(s, p);
    let server = postgres::check(s, timeout, p);
    let table = s.get("table").map_or_else(default_table, |f| check_table_in_schema(&f, p));
    Some(SinkKind::Postgres { server: server?, table })
}

fn check_timeout(s: &mut Section<'_>, p: &mut Problems) -> Option<Duration> {
    let ms = s.get("timeout").map_or(Some(TIMEOUT_MS), |f| {
        let ms = f.duration_ms(p)?;
        if !(TIMEOUT_MS_MIN..=TIMEOUT_MS_MAX).contains(&ms) {
            let message = format!("`{}` must lie between {TIMEOUT_MS_MIN}ms and 1h", f.path);
            f.wrong(message, "\"30s\" is usual".to_owned(), p);
            return None;
        }
        Some(ms)
    });
    ms.map(|ms| Duration::from_millis(ms.unsigned_abs()))
}

fn default_table() -> String {
    "sessions".to_owned()
}

fn check_table(f: &Field<'_>, p: &mut Problems) -> String {
    let Some(table) = f.text(p) else { return default_table() };
    let reserved = table.to_lowercase().starts_with("sqlite_");
    if !is_name(table) || reserved {
        let help = "use letters, digits and `_`, not beginning with a digit or `sqlite_`".to_owned();
        f.wrong(format!("`{}` cannot be a table", f.shown()), help, p);
    }
    table.to_owned()
}

/// A table, or a schema and a table with a dot between.
fn check_table_in_schema(f: &Field<'_>, p: &mut Problems) -> String {
    let Some(text) = f.text(p) else { return default_table() };
    let (schema, table) = text.split_once('.').map_or((None, text), |(s, t)| (Some(s), t));
    let reserved = table.eq_ignore_ascii_case("tidemill_cursor");
    // With `_current` behind it, it must still be a name that Postgres does not cut off.
    let too_long = table.len() > 55 || schema.is_some_and(|s| s.len() > 63);
    if !is_name(table) || !schema.is_none_or(is_name) || reserved || too_long {
        let help = "use up to 55 letters, digits and `_`, not beginning with a digit; a schema may stand before it, with a dot \
                    between; `tidemill_cursor` is taken"
            .to_owned();
        f.wrong(format!("`{}` cannot be a table", f.shown()), help, p);
    }
    text.to_owned()
}

fn is_name(text: &str) -> bool {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    plain && !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit())
}
