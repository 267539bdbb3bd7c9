//! How requests are taken apart and answers put together: wrong ones are problem documents, right ones have a strong ETag.

use super::super::problem::Problem;
use crate::store::versions::MESSAGE_BYTES_MAX;
use axum::extract::{FromRequest, FromRequestParts, Path as AxumPath, Query as AxumQuery, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::time::Duration;
use tidemill_sandbox::bounds::CONFIG_BYTES_MAX;
use xxhash_rust::xxh3::xxh3_128;

/// From the request's head to the end of a JSON body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The parameters of a query.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query<T>, Problem> {
        let query = AxumQuery::try_from_uri(&parts.uri);
        query.map(|AxumQuery(q)| Query(q)).map_err(|e| Problem::bad_request(e.body_text()))
    }
}

/// The variable parts of a path.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Problem> {
        let path = AxumPath::from_request_parts(parts, state).await;
        // What cannot be read as a name is the name of nothing.
        path.map(|AxumPath(p)| Path(p)).map_err(|e| Problem::not_found(e.body_text()))
    }
}

/// Bytes of a JSON body: a config, and what stands around it.
const JSON_BYTES_MAX: usize = CONFIG_BYTES_MAX + (64 << 10);

/// A JSON body; without one, or with null, what is the default.
pub(crate) struct JsonOr<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for JsonOr<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<JsonOr<T>, Problem> {
        let headers = request.headers();
        let none = |h: &HeaderMap| {
            !h.contains_key(header::TRANSFER_ENCODING)
                && h.get(header::CONTENT_LENGTH).is_none_or(|n| n.as_bytes() == b"0")
        };
        if none(headers) {
            return Ok(JsonOr(T::default()));
        }
        Json::<Option<T>>::from_request(request, state).await.map(|Json(t)| JsonOr(t.unwrap_or_default()))
    }
}

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Json<T>, Problem> {
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().unwrap_or_default().trim().to_lowercase() != "application/json" {
            let detail = "send the body as application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail));
        }
        let read =
            tokio::time::timeout(BODY_TIMEOUT, Limited::new(request.into_body(), JSON_BYTES_MAX).collect());
        let bytes = match read.await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(e)) if e.is::<LengthLimitError>() => {
                let detail = format!("the body has more than {} KiB", JSON_BYTES_MAX >> 10);
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
            }
            Ok(Err(e)) => return Err(Problem::bad_request(format!("the body ended before its end: {e}"))),
            Err(_) => {
                let detail = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", detail));
            }
        };
        let is_object = bytes.trim_ascii_start().first() == Some(&b'{');
        let no_object = || Problem::bad_request("the body is no JSON object");
        // A record of Rust is an array, too, for whoever reads it; here its fields have names.
        if !is_object && bytes.trim_ascii() != b"null" {
            return Err(no_object());
        }
        serde_json::from_slice(&bytes).map(Json).map_err(|e| match is_object {
            true => Problem::bad_request(format!("the body is not what is taken here: {e}")),
            false => no_object(),
        })
    }
}

/// How many are wanted, between 1 and `max`.
pub(super) fn limit<T: Copy + PartialOrd + From<u8> + Display>(
    given: Option<T>,
    default: T,
    max: T,
) -> Result<T, Problem> {
    let limit = given.unwrap_or(default);
    if (T::from(1)..=max).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::bad_request(format!("`limit` lies between 1 and {max}")))
}

/// What for, in the operator's words: not too many of them.
pub(super) fn check_message(message: &str) -> Result<(), Problem> {
    if message.len() <= MESSAGE_BYTES_MAX {
        return Ok(());
    }
    Err(Problem::bad_request(format!("a message has at most {MESSAGE_BYTES_MAX} bytes")))
}

/// A JSON answer; 304 if the client has it already.
pub(crate) fn tagged(request: &HeaderMap, value: &impl Serialize) -> Result<Response, Problem> {
    let bytes = serde_json::to_vec(value).map_err(|e| Problem::internal(e.to_string()))?;
    let tag = format!("\"{:032x}\"", xxh3_128(&bytes));
    Ok(with_tag(request, &tag, "application/json", bytes))
}

/// An answer whose tag is known; 304 if the client has it already.
pub(crate) fn with_tag(
    request: &HeaderMap,
    tag: &str,
    content_type: &'static str,
    body: impl IntoResponse,
) -> Response {
    let mut response = if names_tag(request, header::IF_NONE_MATCH.as_str(), tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = body.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    };
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    // Nobody in between keeps what only the operator may see.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response
}

/// Whether one of the tags in a header is this one.
pub(crate) fn names_tag(request: &HeaderMap, name: &str, tag: &str) -> bool {
    let lists = request.get_all(name).iter().filter_map(|v| v.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|t| t == "*" || t.trim_start_matches("W/") == tag)
}
