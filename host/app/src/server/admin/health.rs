//! What an orchestrator asks, and what the host is.

use super::super::access::Access;
use super::super::problem::{Problem, ProblemBody};
use super::Admin;
use super::answer::Query;
use crate::control::{Handle, State};
use axum::Extension;
use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidemill_contract::FRAME_VERSION;
use utoipa::{IntoParams, ToSchema};

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `alive`: what does not answer is not.
    status: &'static str,
}

/// Whether the process answers at all
///
/// For a liveness probe: a host that waits for its disk or has a suspended pipeline is alive, and starting it again would
/// not help.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, description = "It is alive", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "alive" })
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadyQuery {
    /// Only of this pipeline.
    pipeline: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    /// Always `ready`.
    status: &'static str,
    /// How many pipelines work on nothing.
    halted: usize,
    /// Which, and why (`suspended` or `failed`); only for whoever brings the token.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pipelines: BTreeMap<String, &'static str>,
}

/// Whether requests should come here
///
/// For a readiness probe. A host with several pipelines stays ready while one of them works: the others' traffic must not
/// suffer for one that is suspended. Ask with `pipeline` for a single one.
#[utoipa::path(
    get, path = "/ready", tag = "health", params(ReadyQuery),
    responses(
        (status = 200, description = "It is", body = Ready),
        (status = 400, description = "The query is wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such pipeline", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The store is being recovered, or everything asked for is suspended or has failed",
            body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn ready(
    Shared(admin): Shared<Arc<Admin>>,
    Query(query): Query<ReadyQuery>,
    Extension(access): Extension<Arc<Access>>,
    headers: HeaderMap,
) -> Result<Json<Ready>, Problem> {
    let asked = |h: &&Arc<Handle>| query.pipeline.as_ref().is_none_or(|p| *p == h.name);
    let all: Vec<_> = admin.control.pipelines().iter().filter(asked).map(|h| (&h.name, h.state())).collect();
    if all.is_empty() {
        return Err(Problem::not_found("there is no such pipeline"));
    }
    let not = |kind, detail| Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, detail).retry_after_s(1);
    if admin.opened.get().is_none() || all.iter().any(|(_, state)| *state == State::Starting) {
        return Err(not("recovering", "the store is being recovered"));
    }
    let stands = |state: &State| matches!(state, State::Suspended(_) | State::Failed(_));
    let halted: BTreeMap<String, &'static str> = all
        .iter()
        .filter(|(_, state)| stands(state))
        .map(|(name, state)| ((*name).clone(), state.word()))
        .collect();
    let (count, known) = (halted.len(), access.may_look(&headers));
    let pipelines = if known { halted } else { BTreeMap::new() };
    if count == all.len() {
        let pipelines = pipelines.into_iter().map(|(name, why)| (name, why.into())).collect::<Map<_, _>>();
        let problem = not("halted", "it is suspended or has failed: `tidemill status` says why");
        return Err(problem.with("halted", count).with("pipelines", pipelines));
    }
    Ok(Json(Ready { status: "ready", halted: count, pipelines }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    /// Of the host.
    version: &'static str,
    /// Of this API.
    api: &'static str,
    /// The contract with plugins.
    contract: &'static str,
    /// Version of the frames that pass between host and plugins.
    frames: u32,
}

/// What runs here
#[utoipa::path(
    get, path = "/api/v1/version", tag = "health",
    responses((status = 200, description = "Versions of the host and of what it speaks", body = Version))
)]
pub(super) async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
        api: "v1",
        contract: "tidemill:plugin@0.3.0",
        frames: u32::from(FRAME_VERSION),
    })
}
