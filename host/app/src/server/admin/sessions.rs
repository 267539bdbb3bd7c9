//! Sessions of a pipeline: what its table has, and what is known of a key right now.

use super::super::problem::{Problem, ProblemBody};
use super::answer::{Path, Query, limit, tagged};
use super::{Admin, refused};
use crate::config::plan::{Pipeline, Sink, SinkKind};
use crate::control::RefusalKind;
use crate::rows::{self, Row, RowsError, Want};
use crate::view::event_instant;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tidemill_connect::ConnectError;
use tidemill_engine::lane::KeyLook;
use tidemill_engine::outbox::Stage;
use utoipa::{IntoParams, ToSchema};

/// Rows of one answer.
const LIMIT_MAX: u32 = 1_000;
const LIMIT: u32 = 20;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SessionsQuery {
    /// Only of this key; then also what is known of it now.
    key: Option<String>,
    /// Only of this stage; none: all but the retracted.
    #[param(inline)]
    stage: Option<StageWord>,
    /// At most so many; 20 if nothing is said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum StageWord {
    Early,
    Final,
    Corrected,
    Retracted,
}

impl StageWord {
    fn stage(self) -> Stage {
        match self {
            StageWord::Early => Stage::Early,
            StageWord::Final => Stage::Final,
            StageWord::Corrected => Stage::Corrected,
            StageWord::Retracted => Stage::Retracted,
        }
    }
}

/// Sessions of a pipeline
#[derive(Serialize, ToSchema)]
pub(super) struct Sessions {
    /// What the pipeline knows of the key right now; none: nothing that is open or may still change, or no key was asked for.
    live: Option<Live>,
    /// The sink that the others are read from.
    sink: String,
    /// Latest start first.
    sessions: Vec<Row>,
}

/// A key's sessions in memory
#[derive(Serialize, ToSchema)]
pub(super) struct Live {
    /// The open session, as far as it is folded for good.
    open: Option<Bounds>,
    /// Events that wait, because earlier ones may still come.
    waiting: u64,
    /// Sessions that sinks know and that may still change.
    sent: Vec<Sent>,
}

/// A session's bounds
#[derive(Serialize, ToSchema)]
struct Bounds {
    start: Option<String>,
    end: Option<String>,
    events: u64,
}

/// A session that sinks know
#[derive(Serialize, ToSchema)]
struct Sent {
    start: Option<String>,
    end: Option<String>,
    events: u64,
    stage: &'static str,
}

impl From<KeyLook> for Live {
    fn from(look: KeyLook) -> Live {
        let bounds =
            |(start, end, events)| Bounds { start: event_instant(start), end: event_instant(end), events };
        let sent = |(start, end, events, stage): (_, _, _, Stage)| {
            let Bounds { start, end, events } = bounds((start, end, events));
            Sent { start, end, events, stage: stage.name() }
        };
        Live {
            open: look.open.map(bounds),
            waiting: look.waiting,
            sent: look.sent.into_iter().map(sent).collect(),
        }
    }
}

/// Sessions, latest first
///
/// Read from the first SQLite sink of the pipeline. With a key also what the pipeline has in memory of it.
#[utoipa::path(
    get, path = "/api/v1/pipelines/{name}/sessions", tag = "sessions",
    params(("name" = String, Path, description = "The pipeline's name"), SessionsQuery),
    responses(
        (status = 200, description = "Those that were asked for", body = Sessions),
        (status = 304, description = "As the client has it"),
        (status = 400, description = "The query is wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such pipeline, or none of its sinks can be asked", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Others are asking", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "The table cannot be read", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The pipeline does not answer now", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Query(query): Query<SessionsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let handle = admin.handle(&name)?;
    let limit = limit(query.limit, LIMIT, LIMIT_MAX)?;
    let inner = admin.clone();
    let sessions = admin
        .reading(move || {
            let sink = table(&inner, &name)?;
            let live = match query.key.as_deref().map(|key| handle.look(key)) {
                None => None,
                // What does not run holds nothing in memory.
                Some(Err(r)) if r.kind == RefusalKind::State => None,
                Some(answer) => answer.map_err(refused)?,
            };
            let stage = query.stage.map(StageWord::stage);
            let want = Want { pipeline: Some(name), key: query.key, stage, limit: Some(limit) };
            let sessions = match rows::read(sink, &want) {
                Ok(rows) => rows,
                // Nothing was sent yet.
                Err(RowsError::Sink(ConnectError::Config(_))) => Vec::new(),
                Err(e) => return Err(Problem::internal(e.to_string())),
            };
            Ok(Sessions { live: live.map(Live::from), sink: sink.name.clone(), sessions })
        })
        .await?;
    tagged(&headers, &sessions)
}

/// The first sink of a pipeline that can be asked for a key without reading all of it.
fn table<'a>(admin: &'a Admin, name: &str) -> Result<&'a Sink, Problem> {
    let plan = &admin.plan;
    let sinks = |p: &'a Pipeline| p.to.iter().filter_map(|t| plan.sinks.get(t.sink));
    let mut all = plan.pipelines.iter().filter(|p| p.name == name).flat_map(sinks);
    all.find(|s| matches!(s.kind, SinkKind::Sqlite { .. })).ok_or_else(|| {
        let detail = "the sessions of this pipeline go to no SQLite sink, and only those can be asked here";
        Problem::not_found(detail)
    })
}
