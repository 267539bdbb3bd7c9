//! A store of objects within the test's process: the XML API that S3 and Cloud Storage share, as far as anybody here uses it.
//!
//! From the documents of both: an object is there whole or not at all; a `PUT` that must not replace anything (`If-None-Match: *` with
//! S3, `x-goog-if-generation-match: 0` with Cloud Storage) is refused with 412 where something is; names are listed in order, in
//! pages; deleting what is not there is fine with S3 and 404 with Cloud Storage; who asks without the access key, or with another one,
//! is refused with 403.

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Names in a page: few, so that every listing of a test has several.
const PAGE: usize = 5;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectFault {
    /// `503 SlowDown`: too many requests; nothing was done.
    Throttled,
    /// `500 InternalError`, and nothing was done.
    Broken,
    /// What was asked for is done, and the connection ends before the answer.
    Unanswered,
    /// What was asked for is done, and the answer comes so much later, ms.
    Late(u64),
}

#[derive(Default)]
struct State {
    /// By bucket and name.
    objects: BTreeMap<String, Bytes>,
    faults: VecDeque<ObjectFault>,
    /// Of every so many requests, the first meets this.
    every: Option<(u64, ObjectFault)>,
    requests: u64,
    met: u64,
    down: bool,
    /// Who is let in; anybody, if nothing is said.
    access_key: Option<String>,
}

/// See the module's documentation. Ends with the value.
pub struct Objects {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Dropped: the server ends.
    _runtime: tokio::runtime::Runtime,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Objects {
    /// Starts one with nothing in it. Every bucket is there.
    #[must_use]
    pub fn start() -> Objects {
        let state = Arc::<Mutex<State>>::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, state.clone()));
        Objects { address, state, _runtime: runtime }
    }

    /// `http://host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All objects as `BUCKET/NAME`, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        locked(&self.state).objects.keys().cloned().collect()
    }

    /// What an object holds, by `BUCKET/NAME`.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<Vec<u8>> {
        locked(&self.state).objects.get(name).map(|bytes| bytes.to_vec())
    }

    /// The next request meets this, after those that were ordered before.
    pub fn order(&self, fault: ObjectFault) {
        locked(&self.state).faults.push_back(fault);
    }

    /// Of every so many requests, one meets this; `None`: none does.
    pub fn order_every(&self, every: Option<(u64, ObjectFault)>) {
        locked(&self.state).every = every;
    }

    /// Faults that requests have met.
    #[must_use]
    pub fn met(&self) -> u64 {
        locked(&self.state).met
    }

    /// Connections end as soon as they are made, or no more.
    pub fn down(&self, down: bool) {
        locked(&self.state).down = down;
    }

    /// Only who shows this access key, or token, comes in; `None`: anybody.
    pub fn demand(&self, access_key: Option<&str>) {
        locked(&self.state).access_key = access_key.map(str::to_owned);
    }
}

async fn serve(listener: tokio::net::TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((socket, _)) = listener.accept().await {
        if locked(&state).down {
            continue;
        }
        let state = state.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| answer(state.clone(), request));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // Broken connections are what tests ask for.
            let _ = server.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

/// Ends the connection.
#[derive(Debug)]
struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the test wants the connection to end")
    }
}

impl std::error::Error for HangUp {}

type Answer = Response<Full<Bytes>>;

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Answer, HangUp> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Err(HangUp) };
    let (fault, answer) = {
        let mut state = locked(&state);
        if state.down {
            return Err(HangUp);
        }
        let fault = state.meet();
        let answer = match fault {
            Some(ObjectFault::Throttled) => error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
            Some(ObjectFault::Broken) => error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            _ => state.answer(&head, body.to_bytes()),
        };
        (fault, answer)
    };
    match fault {
        Some(ObjectFault::Unanswered) => return Err(HangUp),
        Some(ObjectFault::Late(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
        _ => {}
    }
    Ok(answer)
}

fn respond(status: StatusCode, body: Bytes) -> Answer {
    // Both services name the version of what they have.
    let made = Response::builder()
        .status(status)
        .header("etag", format!("\"{}\"", body.len()))
        .header("x-goog-generation", "1")
        .header("last-modified", "Tue, 01 Dec 2026 08:00:00 GMT")
        .body(Full::new(body));
    made.unwrap_or_default()
}

fn error(status: StatusCode, code: &str) -> Answer {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"
    );
    respond(status, text.into())
}

fn says(headers: &HeaderMap, name: &str, value: &str) -> bool {
    headers.get(name).is_some_and(|v| v == value)
}

impl State {
    fn meet(&mut self) -> Option<ObjectFault> {
        self.requests += 1;
        let due = |(n, fault): (u64, ObjectFault)| self.requests.is_multiple_of(n).then_some(fault);
        let fault = self.faults.pop_front().or_else(|| self.every.and_then(due));
        self.met += u64::from(fault.is_some());
        fault
    }

    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
        self.access_key.as_ref().is_none_or(|key| {
            shown.contains(&format!("Credential={key}/")) || shown == format!("Bearer {key}")
        })
    }

    fn answer(&mut self, head: &http::request::Parts, body: Bytes) -> Answer {
        if !self.lets_in(&head.headers) {
            return error(StatusCode::FORBIDDEN, "InvalidAccessKeyId");
        }
        let path = head.uri.path().trim_matches('/');
        let name = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        match (&head.method, name.contains('/')) {
            (&Method::GET, false) if query.contains_key("list-type") => self.list(&name, &query),
            (&Method::POST, false) if query.contains_key("delete") => self.delete_all(&name, &body),
            (&Method::PUT, true) => self.put(name, &head.headers, body),
            (&Method::GET, true) => match self.objects.get(&name) {
                Some(bytes) => respond(StatusCode::OK, bytes.clone()),
                None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
            },
            (&Method::DELETE, true) => match self.objects.remove(&name) {
                Some(_) => respond(StatusCode::NO_CONTENT, Bytes::new()),
                None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
            },
            _ => error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    fn put(&mut self, name: String, headers: &HeaderMap, body: Bytes) -> Answer {
        let only_new =
            says(headers, "if-none-match", "*") || says(headers, "x-goog-if-generation-match", "0");
        if only_new && self.objects.contains_key(&name) {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        self.objects.insert(name, body);
        respond(StatusCode::OK, Bytes::new())
    }

    fn list(&self, bucket: &str, query: &BTreeMap<String, String>) -> Answer {
        let prefix = format!("{bucket}/{}", query.get("prefix").map_or("", String::as_str));
        let after = query.get("continuation-token").map(|token| format!("{bucket}/{token}"));
        let names = self.objects.iter().filter(|(name, _)| name.starts_with(&prefix));
        let mut rest = names.filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after)).peekable();
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult>");
        let mut last = "";
        for (name, bytes) in rest.by_ref().take(PAGE) {
            last = &name[bucket.len() + 1..];
            let _ = write!(
                text,
                "<Contents><Key>{last}</Key><LastModified>2026-12-01T08:00:00.000Z</LastModified><ETag>\"1\"</ETag>\
                 <Size>{}</Size></Contents>",
                bytes.len()
            );
        }
        if rest.peek().is_some() {
            let _ = write!(
                text,
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
            );
        }
        text.push_str("</ListBucketResult>");
        respond(StatusCode::OK, text.into())
    }

    /// Many at once, as S3 has it.
    fn delete_all(&mut self, bucket: &str, body: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(body);
        let mut answer = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><DeleteResult>");
        for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
            self.objects.remove(&format!("{bucket}/{key}"));
            let _ = write!(answer, "<Deleted><Key>{key}</Key></Deleted>");
        }
        answer.push_str("</DeleteResult>");
        respond(StatusCode::OK, answer.into())
    }
}
