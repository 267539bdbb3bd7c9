//! `POST /v1/events`: takes records over HTTP into the ingest log of a source.
//!
//! The answer is 202 only once the records are durable. A client that gets no answer sends the same records again, with the
//! same ids, and none counts twice.

use super::access::bearer;
use super::problem::Problem;
use super::split::{Rejected, split};
use crate::config::plan::Secret;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tidemill_connect::source::ingest_log::{IngestLog, Refused};
use tokio::sync::oneshot;

/// Bytes of a body as it comes.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Bytes of a body after decompression.
const PLAIN_BYTES_MAX: usize = 32 << 20;
/// From the request's head to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// A body below this is split where it was read: handing it to another thread costs more.
const INLINE_BYTES: usize = 64 << 10;

/// A source that takes records over HTTP.
#[derive(Debug)]
pub(crate) struct Inlet {
    /// The source's name.
    pub(crate) source: String,
    /// Who may write; empty: anybody who can reach the listener.
    pub(crate) write_keys: Vec<Secret>,
    /// Pages of these origins may write.
    pub(crate) cors: Vec<String>,
    /// There once the store is recovered.
    pub(crate) log: OnceLock<Arc<IngestLog>>,
}

/// The inlets of one listener.
pub(crate) type Inlets = Arc<Vec<Arc<Inlet>>>;

#[derive(Serialize)]
struct Taken {
    accepted: usize,
    rejected: Vec<Rejected>,
}

/// What a listener of inlets answers.
pub(crate) fn router(inlets: Inlets) -> Router {
    Router::new()
        .route("/v1/events", post(events).options(preflight))
        .fallback(|| async {
            Problem::new(StatusCode::NOT_FOUND, "not-found", "events are posted to /v1/events")
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "events are posted to /v1/events",
            )
        })
        .layer(middleware::from_fn_with_state(inlets.clone(), cors))
        .with_state(inlets)
}

async fn events(State(inlets): State<Inlets>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let inlet = inlet(&inlets, &headers)?;
    let log = inlet.log.get().cloned().ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "recovering", "the store is being recovered: try again")
            .retry_after_s(1)
    })?;
    let encoding = encoding(&headers)?;
    let lines = lines(&headers)?;
    let bytes = read(body).await?;
    let records = if bytes.len() < INLINE_BYTES && encoding == Encoding::Plain {
        unpack_and_split(bytes, encoding, lines)?
    } else {
        tokio::task::spawn_blocking(move || unpack_and_split(bytes, encoding, lines))
            .await
            .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string()))??
    };
    let answer = Taken { accepted: records.accepted.len(), rejected: records.rejected };
    if answer.accepted > 0 {
        keep(&log, records.accepted).await?;
    }
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Appends to the log and waits until it is durable.
async fn keep(log: &IngestLog, records: Vec<Vec<u8>>) -> Result<(), Problem> {
    let (told, durable) = oneshot::channel();
    // A client that went away leaves nobody to tell.
    let done = Box::new(move |r| drop(told.send(r)));
    let kept = match log.append(records, done) {
        Ok(()) => durable.await.unwrap_or_else(|_| Err(Refused::Failed("it has ended".into()))),
        Err(e) => Err(e),
    };
    kept.map_err(|e| match e {
        Refused::Full => {
            let detail = "more is waiting than may: send it again after a while";
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "full", detail).retry_after_s(1)
        }
        Refused::Failed(why) => {
            let detail = format!("the records could not be made durable: {why}");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "storage", detail).retry_after_s(5)
        }
    })
}

/// The inlet that a request's write key opens.
fn inlet<'a>(inlets: &'a Inlets, headers: &HeaderMap) -> Result<&'a Arc<Inlet>, Problem> {
    let given = bearer(headers);
    // Every key is compared in the same time, so that none can be guessed piece by piece.
    let opens = |i: &Inlet| {
        let fits = |k: &Secret| given.is_some_and(|g| bool::from(k.reveal().as_bytes().ct_eq(g.as_bytes())));
        i.write_keys.iter().fold(false, |found, k| found | fits(k))
    };
    let open = |i: &&Arc<Inlet>| i.write_keys.is_empty();
    inlets.iter().find(|i| opens(i)).or_else(|| inlets.iter().find(open)).ok_or_else(|| {
        let detail = if given.is_some() {
            "this write key is not known here"
        } else {
            "send a write key: `Authorization: Bearer KEY`"
        };
        Problem::new(StatusCode::UNAUTHORIZED, "write-key", detail).challenge()
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encoding {
    Plain,
    Gzip,
    Zstd,
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
    let name = headers.get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap_or("?").trim().to_lowercase());
    match name.as_deref() {
        None | Some("identity" | "") => Ok(Encoding::Plain),
        Some("gzip" | "x-gzip") => Ok(Encoding::Gzip),
        Some("zstd") => Ok(Encoding::Zstd),
        Some(other) => {
            let detail = format!("`{other}` is not known here: send gzip, zstd or neither");
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding", detail))
        }
    }
}

/// Whether the body is one record a line.
fn lines(headers: &HeaderMap) -> Result<bool, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    let kind = kind.split(';').next().unwrap_or_default().trim().to_lowercase();
    match kind.as_str() {
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
            Ok(true)
        }
        // What a browser's beacon can send without asking first.
        "application/json" | "text/plain" => Ok(false),
        other => {
            let detail =
                format!("`{other}` is not known here: send application/json or application/x-ndjson");
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail))
        }
    }
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("more than {} MiB: send the events in smaller requests", limit >> 20);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match read {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large(BODY_BYTES_MAX)),
        Ok(Err(e)) => {
            Err(Problem::new(StatusCode::BAD_REQUEST, "body", format!("the body ended before its end: {e}")))
        }
        Err(_) => {
            let detail = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", detail))
        }
    }
}

fn unpack_and_split(bytes: Bytes, encoding: Encoding, lines: bool) -> Result<super::split::Records, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "body", detail);
    let plain = match encoding {
        Encoding::Plain => bytes,
        Encoding::Gzip => unpacked(flate2::read::MultiGzDecoder::new(&*bytes)).map_err(|e| e.of("gzip"))?,
        Encoding::Zstd => {
            let reader = zstd::stream::read::Decoder::new(&*bytes);
            let reader = reader.map_err(|e| bad(format!("the body is not zstd: {e}")))?;
            unpacked(reader).map_err(|e| e.of("zstd"))?
        }
    };
    split(&plain, lines).map_err(|e| bad(e.0))
}

enum Unpack {
    TooLarge,
    Broken(std::io::Error),
}

impl Unpack {
    fn of(self, what: &str) -> Problem {
        match self {
            Unpack::TooLarge => too_large(PLAIN_BYTES_MAX),
            Unpack::Broken(e) => {
                Problem::new(StatusCode::BAD_REQUEST, "body", format!("the body is not whole {what}: {e}"))
            }
        }
    }
}

/// A small body may unpack to an endless one: no more is unpacked than is taken.
fn unpacked(reader: impl Read) -> Result<Bytes, Unpack> {
    let mut plain = Vec::new();
    reader.take(PLAIN_BYTES_MAX as u64 + 1).read_to_end(&mut plain).map_err(Unpack::Broken)?;
    if plain.len() > PLAIN_BYTES_MAX { Err(Unpack::TooLarge) } else { Ok(plain.into()) }
}

async fn preflight() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Lets pages of the listed origins see the answer, and ask before they send.
async fn cors(State(inlets): State<Inlets>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let asks = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    let allowed =
        origin.filter(|o| inlets.iter().any(|i| i.cors.iter().any(|c| c == "*" || o == c.as_str())));
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if asks {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
            let named = HeaderValue::from_static("authorization, content-type, content-encoding");
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, named);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
        }
    }
    response
}

#[cfg(test)]
#[path = "ingest_tests.rs"]
mod tests;
