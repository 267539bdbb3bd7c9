//! Which version runs a pipeline: shown with a tag, changed only by whoever has seen it.

use super::super::problem::{Problem, ProblemBody};
use super::answer::{Json, JsonOr, Path, check_message, names_tag, tagged, with_tag};
use super::operations::Shown as ShownOperation;
use super::pipelines::BY;
use super::{Admin, blocking, refused};
use crate::config::duration_ms;
use crate::config::plan::Rule;
use crate::control::Handle;
use crate::schedule::{DRAIN_MAX_MS, RuleSpec, Wish};
use crate::view::{DeploymentView, instant};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tidemill_engine::versions::Policy;
use utoipa::{IntoParams, ToSchema};

/// What becomes of sessions that are open when a version comes into force
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum PolicyWord {
    /// Their state is migrated, and the new version goes on with them.
    #[default]
    Migrate,
    /// The version that they began with goes on with them until they close.
    Drain,
}

impl PolicyWord {
    fn policy(self) -> Policy {
        match self {
            PolicyWord::Migrate => Policy::Migrate,
            PolicyWord::Drain => Policy::Drain,
        }
    }
}

/// A deployment that is wanted
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeploymentWish)]
pub(super) struct Wanted {
    /// The plugin's name.
    plugin: String,
    /// Its version.
    version: String,
    /// What it is configured with; none: what the version in force is, if that is the same plugin, else nothing.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    config: Option<serde_json::Map<String, serde_json::Value>>,
    /// What becomes of open sessions; `migrate` if nothing is said.
    #[serde(default)]
    policy: PolicyWord,
    /// Under `drain`: how long after its place in event time sessions of the version before may go on; what is then still
    /// open ends with reason `limit`. `24h` if nothing is said.
    #[serde(default)]
    #[schema(example = "24h")]
    drain_max: Option<String>,
    /// What for; at most 4,096 bytes.
    #[serde(default)]
    message: String,
}

/// How to go back
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RollbackWish)]
pub(super) struct Back {
    /// What becomes of open sessions if the version before comes as a deployment of its own.
    #[serde(default)]
    policy: PolicyWord,
    /// Under `drain`: how long after its place in event time sessions of the version before may go on; what is then still
    /// open ends with reason `limit`. `24h` if nothing is said.
    #[serde(default)]
    #[schema(example = "24h")]
    drain_max: Option<String>,
    /// What for; at most 4,096 bytes.
    #[serde(default)]
    message: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it is described, and read by `expected`")]
pub(super) struct BackHeader {
    /// The ETag of the deployment that is to be taken back; checked if it is there.
    #[param(rename = "If-Match", required = false)]
    if_match: String,
}

/// Deployments of a pipeline
#[derive(Serialize, ToSchema)]
pub(super) struct Deployments {
    /// Oldest first; the last 64 are kept.
    deployments: Vec<DeploymentView>,
}

/// What operators did to a pipeline
#[derive(Serialize, ToSchema)]
pub(super) struct Audit {
    /// Oldest first; the last 100 on versions are kept, and the last 40 on pauses.
    entries: Vec<AuditEntry>,
}

/// Something that an operator did
#[derive(Serialize, ToSchema)]
pub(super) struct AuditEntry {
    at: Option<String>,
    /// Who: `config` for a changed config file.
    by: String,
    /// `deploy`, `rollback`, `settled`, `pause`, `resume`.
    action: String,
    /// In words.
    what: String,
}

/// What is described as the answer to a change that may not be made now.
#[derive(ToSchema)]
#[schema(as = Refusal)]
#[expect(dead_code, reason = "it is described, and made by `refused`")]
pub(super) struct RefusalBody {
    #[serde(flatten)]
    problem: ProblemBody,
    /// How many open sessions do not fit.
    count: Option<u64>,
    /// The keys of the first of them.
    keys: Option<Vec<String>>,
    /// How far event time has to come until it can be asked again, ms.
    missing_ms: Option<i64>,
}

/// The deployment in force, and what it is called by `If-Match`.
struct InForce {
    number: u32,
    tag: String,
}

/// Numbers begin anew when a pipeline starts over, and then the first start is another.
fn in_force(handle: &Handle) -> Result<(InForce, DeploymentView), Problem> {
    let committed = handle.committed();
    let of = |c: &crate::control::Committed| {
        let d = c.meta.schedule.newest()?;
        let number = d.scheduled.version.0;
        let tag = format!("\"{}-{number}\"", c.meta.first_start_ms);
        Some((InForce { number, tag }, DeploymentView::of(d)))
    };
    committed.as_deref().and_then(of).ok_or_else(|| {
        let detail =
            "the pipeline has committed nothing yet, so no version is in force: try again in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-answer", detail).retry_after_s(1)
    })
}

/// The version in force that the client has seen; with `*` it takes any.
fn expected(headers: &HeaderMap, now: &InForce, needed: bool) -> Result<Option<u32>, Problem> {
    let name = header::IF_MATCH.as_str();
    match headers.get(header::IF_MATCH).map(HeaderValue::as_bytes) {
        None if needed => {
            let detail =
                "send `If-Match` with the ETag of the deployment that this one is to follow; `*` for any";
            Err(Problem::new(StatusCode::PRECONDITION_REQUIRED, "if-match", detail))
        }
        None | Some(b"*") => Ok(None),
        // Weak tags do not count here (RFC 9110).
        Some(given) if !given.starts_with(b"W/") && names_tag(headers, name, &now.tag) => {
            Ok(Some(now.number))
        }
        Some(_) => {
            let detail = format!("the deployment in force is {}: look at it, then try again", now.number);
            Err(Problem::new(StatusCode::PRECONDITION_FAILED, "stale", detail))
        }
    }
}

fn wish(policy: PolicyWord, drain_max: Option<&str>, message: String) -> Result<Wish, Problem> {
    let drain_max_ms = match drain_max.map(duration_ms) {
        None => DRAIN_MAX_MS,
        Some(Ok(ms)) if ms > 0 => ms,
        Some(Ok(_)) => return Err(Problem::bad_request("`drain_max` must be longer than nothing")),
        Some(Err(why)) => return Err(Problem::bad_request(format!("`drain_max`: {why}"))),
    };
    Ok(Wish { policy: policy.policy(), drain_max_ms, by: BY.to_owned(), message, back_to: None })
}

fn accepted(operation: &crate::control::Operation) -> Response {
    let location = format!("/api/v1/operations/{}", operation.id);
    let mut response = (StatusCode::ACCEPTED, axum::Json(ShownOperation::of(operation))).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The version in force
///
/// Its ETag is what `If-Match` wants when another is deployed.
#[utoipa::path(
    get, path = "/api/v1/pipelines/{name}/deployment", tag = "deployments",
    params(("name" = String, Path, description = "The pipeline's name")),
    responses(
        (status = 200, description = "The version in force for new events", body = DeploymentView,
            headers(("ETag" = String, description = "What `If-Match` wants"))),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is no such pipeline", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "It has not begun", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (now, view) = in_force(&*admin.handle(&name)?)?;
    Ok(with_tag(&headers, &now.tag, "application/json", axum::Json(view)))
}

/// Deploy a version
///
/// It is loaded, tried on the states of open sessions, and warmed; then it comes into force at the pipeline's next barrier,
/// for events after all that were accepted until then. The operation says when, and for how long nothing was read.
#[utoipa::path(
    put, path = "/api/v1/pipelines/{name}/deployment", tag = "deployments",
    params(
        ("name" = String, Path, description = "The pipeline's name"),
        ("If-Match" = String, Header, description = "The ETag of the deployment that this one is to follow; `*` for any"),
    ),
    request_body(content = Wanted, content_type = "application/json"),
    responses(
        (status = 202, description = "It comes into force at the next barrier", body = ShownOperation,
            headers(("Location" = String, description = "The operation"))),
        (status = 400, description = "The body is wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such pipeline or version", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Two versions are live, states of open sessions do not fit, or the pipeline is in no state for it", body = RefusalBody, content_type = "application/problem+json"),
        (status = 412, description = "Another deployment came in between", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not application/json", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "The plugin cannot be used here, or not with this config", body = ProblemBody, content_type = "application/problem+json"),
        (status = 428, description = "`If-Match` is missing", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "The store cannot be read", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The pipeline does not answer now", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn deploy(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(wanted): Json<Wanted>,
) -> Result<Response, Problem> {
    let handle = admin.handle(&name)?;
    check_message(&wanted.message)?;
    let wish = wish(wanted.policy, wanted.drain_max.as_deref(), wanted.message)?;
    let (now, _) = in_force(&handle)?;
    let expected = expected(&headers, &now, true)?;
    blocking(move || {
        let (plugin, version) = (&wanted.plugin, &wanted.version);
        let kept = admin.versions.get(plugin, version)?.map(|v| v.digest);
        let digest = kept.or_else(|| deployed_before(&handle, &format!("{plugin}@{version}")));
        let digest = digest.ok_or_else(|| {
            Problem::not_found(format!(
                "there is no {plugin}@{version}: bring it with `POST /api/v1/plugins`"
            ))
        })?;
        let config = wanted.config.unwrap_or_else(|| same_config(&handle, &wanted.plugin));
        let name = admin.rule_name(&handle.name).unwrap_or(&wanted.plugin).to_owned();
        let spec = RuleSpec::Plugin { name, digest, config: config.into() };
        let operation = admin.control.deploy(&handle, &spec, wish, expected).map_err(refused)?;
        Ok(accepted(&operation))
    })
    .await
}

impl Admin {
    /// What the config calls the plugin of a pipeline's rule: so do metrics and messages, whichever version is in force.
    fn rule_name(&self, pipeline: &str) -> Option<&str> {
        match &self.plan.pipelines.iter().find(|p| p.name == pipeline)?.rule {
            Rule::Plugin(named) => Some(&named.name),
            Rule::Gap(_) => None,
        }
    }
}

/// The component of a version that the pipeline has had: the config's own are not brought by anybody.
fn deployed_before(handle: &Handle, plugin: &str) -> Option<String> {
    let committed = handle.committed()?;
    let mut all = committed.meta.schedule.deployments.iter().rev();
    all.find(|d| d.scheduled.plugin == plugin)?.scheduled.digest.clone()
}

/// The config of the version in force, if it is of this plugin.
fn same_config(handle: &Handle, plugin: &str) -> serde_json::Map<String, serde_json::Value> {
    let committed = handle.committed();
    let newest = committed.as_ref().and_then(|c| c.meta.schedule.newest());
    match newest.filter(|d| d.scheduled.plugin.split('@').next() == Some(plugin)).map(|d| &d.rule) {
        Some(RuleSpec::Plugin { config, .. }) => config.as_object().cloned().unwrap_or_default(),
        _ => serde_json::Map::new(),
    }
}

/// Go back to the version before
///
/// As if the one in force had never been, while nothing depends on it; else as a deployment of its own.
#[utoipa::path(
    post, path = "/api/v1/pipelines/{name}/rollback", tag = "deployments",
    params(
        ("name" = String, Path, description = "The pipeline's name"),
        BackHeader,
    ),
    request_body(content = Option<Back>, content_type = "application/json"),
    responses(
        (status = 202, description = "It is done, or comes into force at the next barrier", body = ShownOperation,
            headers(("Location" = String, description = "The operation"))),
        (status = 400, description = "The body is wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such pipeline, or nothing to go back to", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "States of open sessions do not fit, or the pipeline is in no state for it", body = RefusalBody, content_type = "application/problem+json"),
        (status = 412, description = "Another deployment came in between", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not application/json", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "The version before cannot be used any more", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The pipeline does not answer now", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn rollback(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    JsonOr(back): JsonOr<Back>,
) -> Result<Response, Problem> {
    let handle = admin.handle(&name)?;
    check_message(&back.message)?;
    let wish = wish(back.policy, back.drain_max.as_deref(), back.message)?;
    let (now, _) = in_force(&handle)?;
    let expected = expected(&headers, &now, false)?;
    blocking(move || {
        let operation = admin.control.rollback(&handle, wish, expected).map_err(refused)?;
        Ok(accepted(&operation))
    })
    .await
}

/// All deployments
#[utoipa::path(
    get, path = "/api/v1/pipelines/{name}/deployments", tag = "deployments",
    params(("name" = String, Path, description = "The pipeline's name")),
    responses(
        (status = 200, description = "Oldest first", body = Deployments),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is no such pipeline", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn history(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let committed = admin.handle(&name)?.committed();
    let all = committed.iter().flat_map(|c| &c.meta.schedule.deployments);
    tagged(&headers, &Deployments { deployments: all.map(DeploymentView::of).collect() })
}

/// What operators did
#[utoipa::path(
    get, path = "/api/v1/pipelines/{name}/audit", tag = "deployments",
    params(("name" = String, Path, description = "The pipeline's name")),
    responses(
        (status = 200, description = "Oldest first", body = Audit),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is no such pipeline", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn audit(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let committed = admin.handle(&name)?.committed();
    let all = committed.iter().flat_map(|c| &c.meta.audit);
    let entry = |e: &crate::meta::Entry| AuditEntry {
        at: instant(e.at_ms),
        by: e.by.clone(),
        action: e.action.clone(),
        what: e.what.clone(),
    };
    tagged(&headers, &Audit { entries: all.map(entry).collect() })
}
