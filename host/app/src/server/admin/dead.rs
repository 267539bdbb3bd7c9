//! Dead letters of a pipeline: how many of each reason, and the last of them.
//!
//! Invariant: of a file only its end is read, however long it is.

use super::super::problem::{Problem, ProblemBody};
use super::Admin;
use super::answer::{Path, Query, limit, tagged};
use crate::config::plan::SinkKind;
use crate::rows::member;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Bytes of a file of letters that are read, from its end: four of the longest letters.
const TAIL_BYTES_MAX: u64 = 4 << 20;
/// Letters of one reason in an answer.
const LIMIT_MAX: usize = 100;
const LIMIT: usize = 5;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeadQuery {
    /// Only of this reason.
    reason: Option<String>,
    /// At most so many of each reason; 5 if nothing is said.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// Dead letters of a pipeline
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetters)]
pub(super) struct Dead {
    /// How many since the pipeline's first start, by reason.
    counts: BTreeMap<String, u64>,
    /// The last of each reason that are near the end of the file, latest first.
    #[schema(value_type = Vec<Object>)]
    letters: Vec<Value>,
    /// Whether the whole file was read.
    complete: bool,
}

/// Dead letters: how many of each reason, and the last of them
#[utoipa::path(
    get, path = "/api/v1/pipelines/{name}/dead", tag = "sessions",
    params(("name" = String, Path, description = "The pipeline's name"), DeadQuery),
    responses(
        (status = 200, description = "Those that were asked for; none if they are only counted", body = Dead),
        (status = 304, description = "As the client has it"),
        (status = 400, description = "The query is wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such pipeline", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Others are asking", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "The file cannot be read", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Query(query): Query<DeadQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let handle = admin.handle(&name)?;
    let limit = limit(query.limit, LIMIT, LIMIT_MAX)?;
    let inner = admin.clone();
    let (letters, complete) = admin
        .reading(move || {
            let pipeline = inner.plan.pipelines.iter().find(|p| p.name == name);
            let sink = pipeline.and_then(|p| inner.plan.sinks.get(p.dead?));
            let Some(SinkKind::File { path }) = sink.map(|s| &s.kind) else { return Ok((Vec::new(), true)) };
            let (text, complete) = match tail(path) {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), true)),
                Err(e) => return Err(Problem::internal(format!("{} cannot be read: {e}", path.display()))),
            };
            Ok((latest(&text, query.reason.as_deref(), limit), complete))
        })
        .await?;
    let counts = handle.committed().map_or_else(BTreeMap::new, |c| {
        c.meta.counters.letters().into_iter().map(|(reason, n)| (reason.to_owned(), n)).collect()
    });
    tagged(&headers, &Dead { counts, letters, complete })
}

/// The end of a file, from the start of a line on; whether that is all of it.
fn tail(path: &std::path::Path) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    let skipped = file.metadata()?.len().saturating_sub(TAIL_BYTES_MAX);
    // One byte more, to see whether a line begins there.
    file.seek(SeekFrom::Start(skipped.saturating_sub(1)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if skipped > 0 {
        let begins = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..begins);
    }
    Ok((bytes, skipped == 0))
}

/// The last letters of each reason, latest first. A line that is none is passed over: it is being written.
fn latest(text: &[u8], reason: Option<&str>, limit: usize) -> Vec<Value> {
    let mut taken: HashMap<String, usize> = HashMap::new();
    let mut letters = Vec::new();
    for line in text.rsplit(|b| *b == b'\n') {
        let Ok(letter) = serde_json::from_slice::<Value>(line) else { continue };
        let why = member(&letter, "reason");
        if reason.is_some_and(|r| r != why) {
            continue;
        }
        let n = taken.entry(why.to_owned()).or_default();
        *n += 1;
        if *n <= limit {
            letters.push(letter);
        }
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_of_each_reason_come_first() {
        let lines = ["late 1", "late 2", "malformed 3", "late 4"].map(|l| {
            let (reason, i) = l.split_once(' ').unwrap();
            format!("{{\"reason\":\"{reason}\",\"i\":{i}}}\n")
        });
        let text = lines.concat() + "{\"reason\":\"la";
        let of = |reason, limit| -> Vec<u64> {
            latest(text.as_bytes(), reason, limit).iter().map(|l| l["i"].as_u64().unwrap()).collect()
        };
        assert_eq!(of(None, 2), [4, 3, 2]);
        assert_eq!(of(Some("late"), 1), [4]);
        assert_eq!(of(Some("none"), 9), [0; 0]);
    }

    #[test]
    fn of_a_long_file_only_whole_lines_of_its_end_are_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("{{\"reason\":\"late\",\"raw\":\"{}\"}}\n", "x".repeat(99_970));
        for _ in 0..50 {
            file.write_all(line.as_bytes()).unwrap();
        }
        let (text, complete) = tail(file.path()).unwrap();
        assert!(!complete && text.len() as u64 <= TAIL_BYTES_MAX);
        assert_eq!(text.len() % line.len(), 0, "from the start of a line");
        assert_eq!(latest(&text, None, 100).len(), text.len() / line.len());
        let short = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(short.path(), &line).unwrap();
        assert_eq!(tail(short.path()).unwrap(), (line.into_bytes(), true));
    }
}
