//! Versions of plugins: brought once, checked before they are kept, never changed.

use super::super::problem::{Problem, ProblemBody};
use super::answer::{Path, Query, check_message, tagged, with_tag};
use super::{Admin, blocking};
use crate::clock::now_ms;
use crate::plugin::TryError;
use crate::store::versions::{Kept, VERSIONS_MAX, Version};
use crate::view::instant;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::sync::Arc;
use std::time::Duration;
use tidemill_sandbox::bounds::COMPONENT_BYTES_MAX;
use tidemill_sandbox::{LoadError, WrongShape};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// From the request's head to the end of the component: 64 MiB over a slow line.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
const WASM: &str = "application/wasm";

/// One version of a plugin
#[derive(Serialize, ToSchema)]
#[schema(as = PluginVersion)]
pub(super) struct Shown {
    name: String,
    #[schema(example = "1.2.0")]
    version: String,
    /// `validator`, `sessionizer` or `enricher`.
    kind: String,
    /// SHA-256 of the component, hex.
    digest: String,
    /// Length of the component.
    bytes: u64,
    /// Who brought it.
    by: String,
    /// When.
    at: Option<String>,
    /// What for, if that was said.
    message: Option<String>,
}

impl From<Version> for Shown {
    fn from(v: Version) -> Shown {
        Shown {
            at: instant(v.at_ms),
            name: v.name,
            version: v.version,
            kind: v.kind,
            digest: v.digest,
            bytes: v.bytes,
            by: v.by,
            message: v.message,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = PluginVersions)]
pub(super) struct Versions {
    /// By name, and then by the time they were brought.
    versions: Vec<Shown>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadQuery {
    /// What this version is for; at most 4,096 bytes.
    #[param(max_length = 1024)]
    message: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it is described, and read by `digests`")]
pub(super) struct DigestHeader {
    /// RFC 9530: `sha-256=:BASE64:` of the body; checked if it is there.
    #[param(rename = "Content-Digest", required = false)]
    content_digest: String,
}

/// What is wrong with a component
#[derive(Serialize, ToSchema)]
struct Wrong {
    /// `import`, `world`, `component`, `description` or `start`.
    kind: &'static str,
    /// What.
    detail: String,
}

/// What is described as the answer to a component that cannot be used.
#[derive(ToSchema)]
#[schema(as = WrongComponent)]
#[expect(dead_code, reason = "it is described, and made by `unfit`")]
pub(super) struct WrongBody {
    #[serde(flatten)]
    problem: ProblemBody,
    /// Everything that is wrong with it.
    errors: Vec<Wrong>,
}

/// The route of uploads.
pub(super) fn upload_route() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(upload))
}

/// Bring a version of a plugin
///
/// The body is a component. Its name and version are read from itself; it is checked, compiled and started once, so that what
/// could not run is refused here. A version is never changed: other bytes need another version.
#[utoipa::path(
    post, path = "/api/v1/plugins", tag = "plugins", params(
        UploadQuery,
        DigestHeader,
    ),
    request_body(content = inline(Vec<u8>), content_type = "application/wasm"),
    responses(
        (status = 201, description = "It is kept from now on", body = Shown, headers(
            ("Location" = String, description = "Where it is"), ("ETag" = String, description = "Its digest"))),
        (status = 200, description = "It was kept before, with these very bytes", body = Shown, headers(
            ("Location" = String, description = "Where it is"), ("ETag" = String, description = "Its digest"))),
        (status = 400, description = "The body does not have the digest that was sent with it, or the request is wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "This version is kept with other bytes", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "More than 64 MiB", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not application/wasm", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "It cannot be used as a plugin", body = WrongBody, content_type = "application/problem+json"),
        (status = 429, description = "Others are being taken in", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "The host failed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "The disk or the store of versions is full", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn upload(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    check_kind(&headers)?;
    let wanted = digests(&headers)?;
    let message = query.message.filter(|m| !m.is_empty());
    check_message(message.as_deref().unwrap_or_default())?;
    let place = admin.uploads.try_acquire().map_err(|_| {
        let detail = "other components are being taken in: try again after a while";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after_s(1)
    })?;
    let bytes = read(&headers, body).await?;
    let inner = admin.clone();
    let kept = blocking(move || keep(&inner, &bytes, &wanted, message)).await?;
    drop(place);
    let (status, version) = match kept {
        Kept::New(v) => (StatusCode::CREATED, v),
        Kept::Same(v) => (StatusCode::OK, v),
        Kept::Other(v) => {
            let detail = format!(
                "{}@{} is kept with other bytes (SHA-256 {}), and a version is never changed: give it another version",
                v.name, v.version, v.digest
            );
            return Err(Problem::new(StatusCode::CONFLICT, "other-digest", detail).with("digest", v.digest));
        }
        Kept::Full => {
            let detail = format!("there are {VERSIONS_MAX} versions, as many as are kept");
            return Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "versions-full", detail));
        }
    };
    let location = format!("/api/v1/plugins/{}/versions/{}", version.name, version.version);
    let tag = tag(&version);
    let mut response = (status, axum::Json(Shown::from(version))).into_response();
    for (name, value) in [(header::LOCATION, location), (header::ETAG, tag)] {
        // Both are made of letters that are checked.
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

fn check_kind(headers: &HeaderMap) -> Result<(), Problem> {
    let of = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?").trim().to_lowercase());
    let wrong = |detail: String| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail);
    if let Some(encoding) = of(header::CONTENT_ENCODING).filter(|e| e != "identity") {
        return Err(wrong(format!("a component is taken as it is, not as {encoding}")));
    }
    match of(header::CONTENT_TYPE).as_deref() {
        Some(WASM) => Ok(()),
        Some(other) => Err(wrong(format!("`{other}` is not a component: send `{WASM}`"))),
        None => Err(wrong(format!("send a component as `{WASM}`"))),
    }
}

/// A digest that the body must have.
enum Wanted {
    Sha256(Vec<u8>),
    Sha512(Vec<u8>),
}

impl Wanted {
    fn check(&self, bytes: &[u8]) -> Result<(), Problem> {
        let (fits, name) = match self {
            Wanted::Sha256(d) => (Sha256::digest(bytes).as_slice() == d, "SHA-256"),
            Wanted::Sha512(d) => (Sha512::digest(bytes).as_slice() == d, "SHA-512"),
        };
        if fits {
            return Ok(());
        }
        let detail =
            format!("the body has another {name} than `Content-Digest` says: it was changed on the way");
        Err(Problem::new(StatusCode::BAD_REQUEST, "digest", detail))
    }
}

/// `Content-Digest: sha-256=:..:`; algorithms that are not known here are passed over, as RFC 9530 wants it.
fn digests(headers: &HeaderMap) -> Result<Vec<Wanted>, Problem> {
    let mut wanted = Vec::new();
    for value in headers.get_all("content-digest") {
        let malformed = || {
            let detail = "`Content-Digest` is malformed: send `sha-256=:BASE64:`";
            Problem::new(StatusCode::BAD_REQUEST, "digest", detail)
        };
        for entry in value.to_str().map_err(|_| malformed())?.split(',') {
            let (name, text) = entry.trim().split_once('=').ok_or_else(malformed)?;
            let text = text.strip_prefix(':').and_then(|t| t.strip_suffix(':')).ok_or_else(malformed)?;
            let digest = BASE64_STANDARD.decode(text).map_err(|_| malformed())?;
            match name {
                "sha-256" => wanted.push(Wanted::Sha256(digest)),
                "sha-512" => wanted.push(Wanted::Sha512(digest)),
                _ => {}
            }
        }
    }
    Ok(wanted)
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let too_large = || {
        let mib = COMPONENT_BYTES_MAX >> 20;
        let detail = format!("a component has at most {mib} MiB; those with an interpreter have about 20");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
            .with("bytes_max", COMPONENT_BYTES_MAX)
    };
    let said = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|n| n > COMPONENT_BYTES_MAX) {
        return Err(too_large());
    }
    match tokio::time::timeout(UPLOAD_TIMEOUT, Limited::new(body, COMPONENT_BYTES_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(Problem::bad_request(format!("the body ended before its end: {e}"))),
        Err(_) => {
            let detail = format!("the body did not come within {} s", UPLOAD_TIMEOUT.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", detail))
        }
    }
}

/// Checks and keeps a component.
fn keep(admin: &Admin, bytes: &[u8], wanted: &[Wanted], message: Option<String>) -> Result<Kept, Problem> {
    wanted.iter().try_for_each(|w| w.check(bytes))?;
    let component = admin.control.sandbox.try_component(bytes).map_err(unfit)?;
    let d = component.description();
    let version = Version {
        name: d.name.clone(),
        version: d.version.clone(),
        kind: component.world().name().to_owned(),
        digest: component.digest().to_string(),
        bytes: bytes.len() as u64,
        by: "admin".to_owned(),
        at_ms: now_ms(),
        message,
    };
    Ok(admin.versions.add(version, bytes)?)
}

fn unfit(e: TryError) -> Problem {
    let e = match e {
        TryError::Engine(e) => return Problem::internal(e.to_string()),
        TryError::Load(e) if e.is_host() => return Problem::internal(e.to_string()),
        TryError::Load(e) => e,
    };
    let detail = e.to_string();
    let list = |kind, all: Vec<String>| all.into_iter().map(|detail| Wrong { kind, detail }).collect();
    let one = |kind| list(kind, vec![detail.clone()]);
    let errors: Vec<Wrong> = match e {
        LoadError::Shape(WrongShape::Imports(imports)) => list("import", imports),
        LoadError::Shape(WrongShape::NoWorld { .. } | WrongShape::SeveralWorlds(_))
        | LoadError::Types { .. } => one("world"),
        LoadError::Description(wrong) => list("description", wrong.0),
        LoadError::Unsteady => one("description"),
        LoadError::Start(_) => one("start"),
        LoadError::Shape(_) | LoadError::Invalid(_) | LoadError::TooLarge { .. } => one("component"),
    };
    let errors = serde_json::to_value(errors).unwrap_or_default();
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "component", detail).with("errors", errors)
}

fn tag(version: &Version) -> String {
    format!("\"{}\"", version.digest)
}

fn no_version(name: &str, version: &str) -> Problem {
    Problem::not_found(format!("there is no {name}@{version}; `/api/v1/plugins` lists what there is"))
}

async fn find(admin: &Arc<Admin>, name: String, version: String) -> Result<Version, Problem> {
    let admin = admin.clone();
    blocking(move || admin.versions.get(&name, &version)?.ok_or_else(|| no_version(&name, &version))).await
}

/// All versions of all plugins
#[utoipa::path(
    get, path = "/api/v1/plugins", tag = "plugins", responses(
        (status = 200, description = "By name, and then by the time they were brought", body = Versions),
        (status = 304, description = "As the client has it"),
        (status = 500, description = "The store cannot be read", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Result<Response, Problem> {
    let all = blocking(move || Ok(admin.versions.all()?)).await?;
    tagged(&headers, &Versions { versions: all.into_iter().map(Shown::from).collect() })
}

/// The versions of one plugin
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}", tag = "plugins",
    params(("name" = String, Path, description = "The plugin's name")),
    responses(
        (status = 200, description = "By the time they were brought", body = Versions),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is none", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "The store cannot be read", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn of_name(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut all = blocking(move || Ok(admin.versions.all()?)).await?;
    all.retain(|v| v.name == name);
    if all.is_empty() {
        return Err(Problem::not_found(format!("there is no plugin `{name}`")));
    }
    tagged(&headers, &Versions { versions: all.into_iter().map(Shown::from).collect() })
}

/// One version of a plugin
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}/versions/{version}", tag = "plugins",
    params(("name" = String, Path, description = "The plugin's name"), ("version" = String, Path, description = "Its version")),
    responses(
        (status = 200, description = "What is known of it", body = Shown, headers(("ETag" = String, description = "Its digest"))),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is none", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "The store cannot be read", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Path((name, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let version = find(&admin, name, version).await?;
    let tag = tag(&version);
    Ok(with_tag(&headers, &tag, "application/json", axum::Json(Shown::from(version))))
}

/// The component of a version
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}/versions/{version}/component", tag = "plugins",
    params(("name" = String, Path, description = "The plugin's name"), ("version" = String, Path, description = "Its version")),
    responses(
        (status = 200, description = "Its bytes", body = inline(Vec<u8>), content_type = "application/wasm", headers(
            ("ETag" = String, description = "Its digest"), ("Content-Digest" = String, description = "The same, as RFC 9530 writes it"))),
        (status = 304, description = "As the client has it"),
        (status = 404, description = "There is none", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "The store cannot be read", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(super) async fn component(
    State(admin): State<Arc<Admin>>,
    Path((name, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let version = find(&admin, name, version).await?;
    let tag = tag(&version);
    let bytes = blocking(move || Ok(admin.versions.component(&version)?)).await?;
    let digest = format!("sha-256=:{}:", BASE64_STANDARD.encode(Sha256::digest(&bytes)));
    let mut response = with_tag(&headers, &tag, WASM, bytes);
    if let Ok(digest) = HeaderValue::from_str(&digest) {
        response.headers_mut().insert("content-digest", digest);
    }
    Ok(response)
}
