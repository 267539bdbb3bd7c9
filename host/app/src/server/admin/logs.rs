//! What the host and its plugins have said lately.

use super::super::problem::{Problem, ProblemBody};
use super::Admin;
use super::answer::{Query, limit, tagged};
use crate::journal::{KEPT_MAX, Line};
use crate::view::instant;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

const LIMIT: usize = 100;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Only of this pipeline, and of the host as a whole.
    pipeline: Option<String>,
    /// Only lines after this number.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// The last so many; 100 if nothing is said.
    #[param(minimum = 1, maximum = 2048)]
    limit: Option<usize>,
}

/// A line of the log
#[derive(Serialize, ToSchema)]
pub(super) struct LogLine {
    /// Rises by one with each line of this start of the process, from 1.
    number: u64,
    at: Option<String>,
    /// The pipeline; none: the host as a whole.
    pipeline: Option<String>,
    /// The plugin that says it; none: the host.
    plugin: Option<String>,
    /// `info`, `warn` and `error` of the host; plugins also say `debug` and `trace`.
    level: &'static str,
    /// What. A plugin's words are foreign text.
    text: String,
}

impl From<Line> for LogLine {
    fn from(l: Line) -> LogLine {
        let Line { number, at_ms, pipeline, plugin, level, text } = l;
        LogLine { number, at: instant(at_ms), pipeline, plugin, level, text }
    }
}

/// Lines of the log
#[derive(Serialize, ToSchema)]
pub(super) struct Logs {
    /// Oldest first; the last 2048 of this start of the process are kept.
    lines: Vec<LogLine>,
}

/// What the host and its plugins have said
///
/// The last lines of this start of the process. Ask again with the number of the last one to follow.
#[utoipa::path(
    get, path = "/api/v1/logs", tag = "health", params(LogsQuery), responses(
        (status = 200, description = "Those that were asked for", body = Logs),
        (status = 304, description = "As the client has it"),
        (status = 400, description = "The query is wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such pipeline", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let pipeline = query.pipeline.as_deref();
    if let Some(name) = pipeline {
        admin.handle(name)?;
    }
    let most = limit(query.limit, LIMIT, KEPT_MAX)?;
    let after = u64::try_from(query.after.unwrap_or(0))
        .map_err(|_| Problem::bad_request("`after` is the number of a line, and they begin at 1"))?;
    let lines = admin.control.journal.after(after, pipeline, most);
    tagged(&headers, &Logs { lines: lines.into_iter().map(LogLine::from).collect() })
}
