//! `POST /v1/events`: takes records over HTTP into the ingest log of a source.
//!
//! The answer is 202 only once the records are durable. A client that gets no answer sends the same records again, with the
//! same ids, and none counts twice.

use super::access::bearer;
use super::bounds::{BODY_BYTES_MAX, BODY_TIMEOUT, PLAIN_BYTES_MAX, RECORDS_MAX};
use super::problem::Problem;
use super::room::{Held, Room};
use super::split::{Records, Rejected, Unsplit, split};
use crate::config::plan::Secret;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http_body_util::BodyExt;
use serde::Serialize;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use subtle::ConstantTimeEq;
use tidemill_connect::source::ingest_log::{IngestLog, Refused};
use tokio::sync::oneshot;

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

/// The inlets of one listener, and the room that they share with those of all others.
#[derive(Debug, Clone)]
pub(crate) struct Inlets {
    inlets: Arc<Vec<Arc<Inlet>>>,
    room: Room,
}

/// With an answer: the source that the request was for.
#[derive(Clone)]
struct AskedOf(Arc<Inlet>);

#[derive(Serialize)]
struct Taken {
    accepted: usize,
    rejected: Vec<Rejected>,
}

/// What a listener of inlets answers.
pub(crate) fn router(inlets: Vec<Arc<Inlet>>, room: Room) -> Router {
    let inlets = Inlets { inlets: Arc::new(inlets), room };
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

async fn events(
    State(Inlets { inlets, room }): State<Inlets>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let inlet = inlet(&inlets, &headers)?;
    let mut answer = take(inlet, &room, &headers, body).await.into_response();
    answer.extensions_mut().insert(AskedOf(inlet.clone()));
    Ok(answer)
}

async fn take(inlet: &Inlet, room: &Room, headers: &HeaderMap, body: Body) -> Result<Response, Problem> {
    let log = inlet.log.get().cloned().ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "recovering", "the store is being recovered: try again")
            .retry_after_s(1)
    })?;
    let encoding = encoding(headers)?;
    let lines = lines(headers)?;
    let mut held = room.hold();
    let bytes = read(body, &mut held).await?;
    let records = if bytes.len() < INLINE_BYTES && encoding == Encoding::Plain {
        unpack_and_split(bytes, encoding, lines)?
    } else {
        // Until there is room for what comes out, nobody else begins.
        let place = room.splitter().await?;
        let records = tokio::task::spawn_blocking(move || {
            // A client that goes away does not make room for the next one before this has ended.
            unpack_and_split(bytes, encoding, lines).map(|records| (records, place))
        });
        let (records, place) = records
            .await
            .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string()))??;
        held.grow_to(records.bytes()).await?;
        drop(place);
        records
    };
    held.grow_to(records.bytes()).await?;
    let answer = Taken { accepted: records.accepted.len(), rejected: records.rejected };
    if answer.accepted > 0 {
        keep(&log, records.accepted, held).await?;
    }
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Appends to the log and waits until it is durable.
async fn keep(log: &IngestLog, records: Vec<Vec<u8>>, held: Held) -> Result<(), Problem> {
    let (told, durable) = oneshot::channel();
    let done = Box::new(move |r| {
        // The records are written, and gone.
        drop(held);
        // A client that went away leaves nobody to tell.
        drop(told.send(r));
    });
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

/// The inlet that a request's write key opens; without a key the one that wants none. A key that is given must fit,
/// wherever any is known.
fn inlet<'a>(inlets: &'a [Arc<Inlet>], headers: &HeaderMap) -> Result<&'a Arc<Inlet>, Problem> {
    let keyed = inlets.iter().any(|i| !i.write_keys.is_empty());
    let given = headers.get(header::AUTHORIZATION).filter(|_| keyed).map(|_| bearer(headers).unwrap_or(""));
    // Every key is compared in the same time, so that none can be guessed piece by piece.
    let opens = |i: &Inlet| {
        let fits = |k: &Secret| given.is_some_and(|g| bool::from(k.reveal().as_bytes().ct_eq(g.as_bytes())));
        i.write_keys.iter().fold(false, |found, k| found | fits(k))
    };
    let found = inlets.iter().find(|i| if given.is_some() { opens(i) } else { i.write_keys.is_empty() });
    found.ok_or_else(|| {
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
            let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding", detail);
            Err(problem.header(header::ACCEPT_ENCODING, "gzip, zstd"))
        }
    }
}

/// Whether the body is one record a line.
fn lines(headers: &HeaderMap) -> Result<bool, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    let kind = kind.to_lowercase();
    let mut parts = kind.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let charset = parts.find_map(|p| p.strip_prefix("charset=")).map(|c| c.trim_matches('"'));
    if let Some(other) = charset.filter(|c| !["utf-8", "utf8", "us-ascii"].contains(c)) {
        let detail = format!("`{other}` is not known here: send UTF-8");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail));
    }
    match kind {
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
    // What is left of the body is no next request.
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail).header(header::CONNECTION, "close")
}

/// The whole body; each piece is kept only once there is room for it.
async fn read(body: Body, held: &mut Held) -> Result<Vec<u8>, Problem> {
    // Who says so does not have to send it first.
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large(BODY_BYTES_MAX));
    }
    tokio::time::timeout(BODY_TIMEOUT, collect(body, held)).await.unwrap_or_else(|_| {
        let detail = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", detail))
    })
}

async fn collect(mut body: Body, held: &mut Held) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Problem::new(StatusCode::BAD_REQUEST, "body", format!("the body ended before its end: {e}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let len = bytes.len() + data.len();
        if len > BODY_BYTES_MAX {
            return Err(too_large(BODY_BYTES_MAX));
        }
        if len > bytes.capacity() {
            // What a client announces counts only when it has come: nobody reserves what he does not send.
            let capacity = len.next_power_of_two().min(BODY_BYTES_MAX);
            held.grow_to(capacity).await?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn unpack_and_split(bytes: Vec<u8>, encoding: Encoding, lines: bool) -> Result<Records, Problem> {
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
    split(&plain, lines).map_err(|e| match e {
        Unsplit::NoRecords(detail) => bad(detail),
        Unsplit::TooMany => {
            let detail = format!("more than {RECORDS_MAX} records: send the events in smaller requests");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-many", detail)
        }
    })
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
fn unpacked(reader: impl Read) -> Result<Vec<u8>, Unpack> {
    let mut plain = Vec::new();
    reader.take(PLAIN_BYTES_MAX as u64 + 1).read_to_end(&mut plain).map_err(Unpack::Broken)?;
    if plain.len() > PLAIN_BYTES_MAX { Err(Unpack::TooLarge) } else { Ok(plain) }
}

async fn preflight() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Lets pages of the origins that a source lists see its answers. Which source it is, a page's key says, and that is not sent
/// with the question whether it may send: there any source's origins do.
async fn cors(State(Inlets { inlets, .. }): State<Inlets>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let asks = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    let asked = response.extensions_mut().remove::<AskedOf>();
    let lists = |i: &Inlet, o: &HeaderValue| i.cors.iter().any(|c| c == "*" || o == c.as_str());
    let allowed = origin.filter(|o| match &asked {
        Some(AskedOf(inlet)) => lists(inlet, o),
        None => inlets.iter().any(|i| lists(i, o)),
    });
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
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
