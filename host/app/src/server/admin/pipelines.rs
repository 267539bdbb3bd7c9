//! Pipelines: which there are, how far they are, and reading paused and resumed.

use super::super::problem::{Problem, ProblemBody};
use super::answer::{Path, tagged};
use super::{Admin, blocking, refused};
use crate::control::{Handle, Refusal, State};
use crate::view::PipelineView;
use axum::Json;
use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Who did it, in the audit: there is one token.
pub(super) const BY: &str = "admin";

#[derive(Serialize, ToSchema)]
pub(super) struct Pipelines {
    /// In the order of the config.
    pipelines: Vec<PipelineView>,
}

/// A pipeline's state
#[derive(Serialize, ToSchema)]
pub(super) struct PipelineState {
    /// Its name.
    pipeline: String,
    /// `running`, `paused`, `starting`.
    state: &'static str,
}

impl Admin {
    /// A pipeline by its name.
    pub(super) fn handle(&self, name: &str) -> Result<Arc<Handle>, Problem> {
        self.control.pipeline(name).cloned().ok_or_else(|| {
            Problem::not_found(format!("there is no pipeline `{name}`; `/api/v1/pipelines` lists them"))
        })
    }

    pub(super) fn view(&self, handle: &Handle) -> PipelineView {
        let state = handle.state();
        let mut view = PipelineView::new(&handle.name, state.word()).measured(&handle.progress.meters);
        if let State::Failed(why) = state {
            view.failure = Some(why);
        }
        let of_plan = self.plan.pipelines.iter().find(|p| p.name == handle.name);
        match (of_plan, handle.committed()) {
            (Some(pipeline), Some(c)) => {
                view.committed(&self.plan, pipeline, (c.epoch, c.incarnation, &c.meta))
            }
            _ => view,
        }
    }
}

/// All pipelines
#[utoipa::path(
    get, path = "/api/v1/pipelines", tag = "pipelines", responses(
        (status = 200, description = "In the order of the config", body = Pipelines),
        (status = 304, description = "As the client has it"),
    )
)]
pub(super) async fn list(Shared(admin): Shared<Arc<Admin>>, headers: HeaderMap) -> Result<Response, Problem> {
    let pipelines = admin.control.pipelines().iter().map(|h| admin.view(h)).collect();
    tagged(&headers, &Pipelines { pipelines })
}

/// One pipeline: what it does, and how far it is
#[utoipa::path(
    get, path = "/api/v1/pipelines/{name}", tag = "pipelines",
    params(("name" = String, Path, description = "The pipeline's name")),
    responses(
        (status = 200, description = "As it is now", body = PipelineView),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is none", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    Shared(admin): Shared<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let handle = admin.handle(&name)?;
    tagged(&headers, &admin.view(&handle))
}

/// Read no more until it is resumed
///
/// Also after a restart. What was read is committed and delivered; what is posted is still taken, and waits.
#[utoipa::path(
    post, path = "/api/v1/pipelines/{name}/pause", tag = "pipelines",
    params(("name" = String, Path, description = "The pipeline's name")),
    responses(
        (status = 200, description = "It reads no more", body = PipelineState),
        (status = 404, description = "There is none", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is not in a state to be paused", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "It does not answer now", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn pause(
    Shared(admin): Shared<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<PipelineState>, Problem> {
    change(&admin, name, |handle| handle.pause(BY)).await
}

/// Go on after a pause or a suspension
#[utoipa::path(
    post, path = "/api/v1/pipelines/{name}/resume", tag = "pipelines",
    params(("name" = String, Path, description = "The pipeline's name")),
    responses(
        (status = 200, description = "It goes on", body = PipelineState),
        (status = 404, description = "There is none", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is not in a state to be resumed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "It does not answer now", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    Shared(admin): Shared<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<PipelineState>, Problem> {
    change(&admin, name, |handle| handle.resume(BY)).await
}

/// Asks a pipeline for something, and says what it is doing then.
async fn change(
    admin: &Admin,
    name: String,
    ask: fn(&Handle) -> Result<(), Refusal>,
) -> Result<Json<PipelineState>, Problem> {
    let handle = admin.handle(&name)?;
    blocking(move || {
        ask(&handle).map_err(refused)?;
        Ok(Json(PipelineState { pipeline: name, state: handle.state().word() }))
    })
    .await
}
