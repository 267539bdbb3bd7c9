//! Changes under way, and what became of them.

use super::super::problem::{Problem, ProblemBody};
use super::Admin;
use super::answer::{Path, tagged};
use crate::control::{Operation, Standing};
use crate::view::{event_instant, instant};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// A change under way, and what became of it
#[derive(Serialize, ToSchema)]
#[schema(as = Operation)]
pub(super) struct Shown {
    /// Its number, in this start of the process.
    id: u64,
    /// The pipeline.
    pipeline: String,
    /// `deploy`, `rollback` or `resume`.
    kind: &'static str,
    begun_at: Option<String>,
    /// `waiting` for the next barrier, `in_force`, or `refused`.
    status: &'static str,
    /// The deployment that came into force.
    deployment: Option<u32>,
    /// Its place in event time.
    from: Option<String>,
    /// How long an event may have waited for it, ms.
    pause_ms: Option<f64>,
    /// Why it was refused.
    refused: Option<String>,
    /// How many open sessions did not fit.
    count: Option<u64>,
    /// The keys of the first of them.
    keys: Vec<String>,
}

impl Shown {
    pub(super) fn of(operation: &Operation) -> Shown {
        let mut shown = Shown {
            id: operation.id,
            pipeline: operation.pipeline.clone(),
            kind: operation.kind,
            begun_at: instant(operation.begun_at_ms),
            status: "waiting",
            deployment: None,
            from: None,
            pause_ms: None,
            refused: None,
            count: None,
            keys: Vec::new(),
        };
        match operation.standing() {
            Standing::Waiting => {}
            Standing::InForce(f) => {
                shown.status = "in_force";
                shown.deployment = Some(f.version.0);
                shown.from = event_instant(f.from);
                shown.pause_ms = Some(f.pause().as_secs_f64() * 1e3);
            }
            Standing::Refused(r) => {
                shown.status = "refused";
                shown.refused = Some(r.message);
                shown.count = Some(r.count).filter(|n| *n > 0);
                shown.keys = r.keys;
            }
        }
        shown
    }
}

/// Operations
#[derive(Serialize, ToSchema)]
pub(super) struct Operations {
    /// Oldest first; the last 256 of this start of the process are kept.
    operations: Vec<Shown>,
}

/// All operations
#[utoipa::path(
    get, path = "/api/v1/operations", tag = "deployments", responses(
        (status = 200, description = "Oldest first", body = Operations),
        (status = 304, description = "As the client has it"),
    )
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Result<Response, Problem> {
    let operations = admin.control.operations().iter().map(|o| Shown::of(o)).collect();
    tagged(&headers, &Operations { operations })
}

/// What became of an operation
#[utoipa::path(
    get, path = "/api/v1/operations/{id}", tag = "deployments",
    params(("id" = u64, Path, description = "The operation's number")),
    responses(
        (status = 200, description = "As it stands", body = Shown),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is none, or not any more", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let operation = admin.control.operation(id).ok_or_else(|| {
        Problem::not_found(format!(
            "there is no operation {id}: those of this start of the process are kept, for a while"
        ))
    })?;
    tagged(&headers, &Shown::of(&operation))
}
