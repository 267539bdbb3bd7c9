//! A BigQuery within the test's process: tables over REST, and rows over gRPC with the documented rules of change capture, which
//! no emulator has. Both on one port of this machine.
//!
//! `append` has the rules for rows, `rest` those for tables, `read` those for rows that are read, `table` what readers see, `faults` what a test may have happen.
//! Where the documents leave open what happens, it refuses. Google's own Python client is held against it, too.

mod append;
mod faults;
mod read;
mod rest;
mod table;
#[cfg(test)]
mod tests;

pub use self::append::REQUEST_BYTES_MAX;
pub use self::faults::{Fault, THROTTLED, UNAVAILABLE};
pub use self::read::PAGE_ROWS;
pub use self::table::Row;

use self::append::Connection;
use self::faults::{Faults, locked};
use self::rest::Asked;
use self::table::Tables;
use googleapis_tonic_google_cloud_bigquery_storage_v1::google::cloud::bigquery::storage::v1 as api;
use googleapis_tonic_google_cloud_bigquery_storage_v1::google::rpc;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use prost::bytes::{Buf as _, Bytes};
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Status, Streaming};
use tonic_prost::{ProstCodec, ProstEncoder};

/// Larger requests than may be are read whole, so that it is our rule that refuses them.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Answers on their way to a client.
const ANSWERS: usize = 16;
const SERVICE: &str = "/google.cloud.bigquery.storage.v1.BigQueryWrite/";

struct Shared {
    tables: Mutex<Tables>,
    faults: Faults,
    /// Requests for rows as they came, in the order in which they came.
    requests: Mutex<Vec<Vec<u8>>>,
    /// Connections for rows that were opened.
    streams: std::sync::atomic::AtomicU64,
    /// Rises when all connections are to be closed.
    closed: watch::Sender<u64>,
}

/// See the module's documentation. Ends with the value.
pub struct BigQuery {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Dropped: the server ends.
    _runtime: tokio::runtime::Runtime,
}

impl BigQuery {
    /// Starts one that has this dataset and nothing in it.
    #[must_use]
    pub fn start(project: &str, dataset: &str, location: &str) -> BigQuery {
        let mut tables = Tables::default();
        tables.datasets.insert(format!("projects/{project}/datasets/{dataset}"), location.to_owned());
        let shared = Arc::new(Shared {
            tables: Mutex::new(tables),
            faults: Faults::default(),
            requests: Mutex::default(),
            streams: 0.into(),
            closed: watch::channel(0).0,
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, shared.clone()));
        BigQuery { address, shared, _runtime: runtime }
    }

    /// `http://host:port`, for both services.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }
    /// What readers see of `projects/P/datasets/D/tables/T`.
    #[must_use]
    pub fn rows(&self, table: &str) -> Vec<Row> {
        locked(&self.shared.tables).rows(table)
    }
    /// A sum over what readers see of a table, without a copy of it.
    #[must_use]
    pub fn sum(&self, table: &str, of: impl Fn(&Row) -> u64) -> u64 {
        locked(&self.shared.tables).tables.get(table).map_or(0, |t| t.kept().map(of).sum())
    }
    /// Rows that arrived at a table, whatever became of them.
    #[must_use]
    pub fn arrived(&self, table: &str) -> u64 {
        locked(&self.shared.tables).tables.get(table).map_or(0, |t| t.arrived)
    }
    /// Keys that stood more than once in one request.
    #[must_use]
    pub fn twice_in_a_request(&self) -> u64 {
        locked(&self.shared.tables).twice_in_a_request
    }
    /// The table as REST shows it; null if there is none.
    #[must_use]
    pub fn resource(&self, table: &str) -> Value {
        locked(&self.shared.tables).tables.get(table).map(|t| t.resource.clone()).unwrap_or_default()
    }
    /// Asks for tables as REST does, by method, path and body.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let asked = Asked { method, path, body, if_match: None };
        rest::answer(&mut locked(&self.shared.tables), asked)
    }
    /// Exchanges the resource of a table as no rule allows it: somebody has dropped and made it anew, or only a column.
    pub fn replace(&self, table: &str, change: impl FnOnce(&mut Value)) {
        let mut tables = locked(&self.shared.tables);
        let tag = tables.next();
        if let Some(table) = tables.tables.get_mut(table) {
            let mut resource = table.resource.clone();
            change(&mut resource);
            resource["etag"] = format!("\"{tag}\"").into();
            table.put(resource);
        }
    }
    /// Somebody drops the table.
    pub fn drop_table(&self, table: &str) {
        locked(&self.shared.tables).tables.remove(table);
    }
    /// As if the time had passed for which deleted keys are remembered.
    pub fn forget_deleted(&self) {
        locked(&self.shared.tables).forget_deleted();
    }
    /// Exchanges the rows of a table that nobody's changes made; who lists it meanwhile sees that it is another.
    pub fn load(&self, table: &str, rows: Vec<Row>) {
        let mut tables = locked(&self.shared.tables);
        let tag = tables.next();
        let table = tables.tables.get_mut(table).expect("the table");
        table.load(rows);
        let mut resource = table.resource.clone();
        resource["etag"] = format!("\"{tag}\"").into();
        resource["lastModifiedTime"] = tag.to_string().into();
        table.put(resource);
    }
    /// New queries run for so many answers before they have a result.
    pub fn queries_run_for(&self, answers: u64) {
        locked(&self.shared.tables).queries_run_for = answers;
    }
    /// Every request for tables, and for rows that are read, takes so long.
    pub fn delay_tables(&self, delay_ms: u64) {
        self.shared.faults.rest_delay_ms.store(delay_ms, Ordering::Relaxed);
    }
    /// After so many pages of rows they are refused with this status and reason; `None`: not any more.
    pub fn refuse_pages(&self, after: Option<(u64, u16, &str)>) {
        *locked(&self.shared.faults.pages) = after.map(|(n, status, reason)| (n, status, reason.to_owned()));
    }
    /// Pages of rows that were asked for.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.shared.faults.pages_asked.load(Ordering::Relaxed)
    }
    /// Requests for rows as they came over the wire.
    #[must_use]
    pub fn requests(&self) -> Vec<Vec<u8>> {
        locked(&self.shared.requests).clone()
    }
    /// Lets go of them: a long run has many.
    pub fn forget_requests(&self) {
        locked(&self.shared.requests).clear();
    }
    /// Connections for rows that were opened so far.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// The next requests for rows meet this, so many of them, after what was ordered before.
    pub fn order(&self, fault: Fault, times: u64) {
        self.shared.faults.order(fault, times);
    }
    /// Takes back what was ordered and not met.
    pub fn clear(&self) {
        self.shared.faults.clear();
    }
    /// Requests that met a fault.
    #[must_use]
    pub fn met(&self) -> u64 {
        self.shared.faults.met.load(Ordering::Relaxed)
    }
    /// Closes all connections, and new ones at once; or not any more.
    pub fn down(&self, is_down: bool) {
        self.shared.faults.down.store(is_down, Ordering::Relaxed);
        if is_down {
            self.close_all();
        }
    }
    /// Closes all connections.
    pub fn close_all(&self) {
        self.shared.closed.send_modify(|n| *n += 1);
    }
    /// Every request for rows takes so long.
    pub fn delay(&self, delay_ms: u64) {
        self.shared.faults.delay_ms.store(delay_ms, Ordering::Relaxed);
    }
    /// Requests for tables are answered with this status and reason; `None`: as they should.
    pub fn refuse_tables(&self, with: Option<(u16, &str)>) {
        *locked(&self.shared.faults.rest) = with.map(|(status, reason)| (status, reason.to_owned()));
    }
    /// Only who shows this token comes in; `None`: anybody. The metadata server hands out `metadata`.
    pub fn demand(&self, token: Option<&str>) {
        *locked(&self.shared.faults.token) = token.map(str::to_owned);
    }
    /// Rows that hold this text are bad.
    pub fn refuse_rows_with(&self, text: Option<&str>) {
        *locked(&self.shared.faults.bad_text) = text.map(str::to_owned);
    }
}

async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        if shared.faults.down.load(Ordering::Relaxed) {
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut closed = shared.closed.subscribe();
            let service = hyper::service::service_fn(|request| answer(shared.clone(), request));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                // Broken connections are what tests ask for.
                _ = connection => {}
                _ = closed.changed() => {}
            }
        });
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let Some(call) = path.strip_prefix(SERVICE) else { return Ok(answer_rest(&shared, request).await) };
    let shown = header(request.headers(), "authorization");
    if let Err(refused) = shared.faults.check(shown.as_deref()) {
        return Ok(refused.into_http());
    }
    Ok(match call {
        "AppendRows" => {
            shared.streams.fetch_add(1, Ordering::Relaxed);
            let routing = header(request.headers(), "x-goog-request-params");
            let mut grpc = Grpc::new(RawCodec).max_decoding_message_size(MESSAGE_BYTES_MAX);
            grpc.streaming(Append { shared, routing }, request).await
        }
        "GetWriteStream" => Grpc::new(ProstCodec::default()).unary(GetStream { shared }, request).await,
        _ => Status::unimplemented(format!("{call}: change capture has only the default stream")).into_http(),
    })
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

async fn answer_rest(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let path = head.uri.path();
    if path.ends_with("/service-accounts/default/token") {
        let token =
            serde_json::json!({"access_token": "metadata", "expires_in": 3600, "token_type": "Bearer"});
        return json((200, token));
    }
    if let Err(refused) = shared.faults.check(header(&head.headers, "authorization").as_deref()) {
        return json(rest::error(401, "authError", refused.message()));
    }
    if let Some((status, reason)) = locked(&shared.faults.rest).clone() {
        return json(rest::error(status, &reason, "refused as the test wants it"));
    }
    tokio::time::sleep(Duration::from_millis(shared.faults.rest_delay_ms.load(Ordering::Relaxed))).await;
    if is_page(path)
        && let Some((status, reason)) = shared.faults.refuse_page()
    {
        return json(rest::error(status, &reason, "refused as the test wants it"));
    }
    let asked = Asked {
        method: head.method.as_str(),
        path: head.uri.path_and_query().map_or(path, |both| both.as_str()),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        if_match: header(&head.headers, "if-match"),
    };
    json(rest::answer(&mut locked(&shared.tables), asked))
}

/// Whether it is asked for rows.
fn is_page(path: &str) -> bool {
    path.ends_with("/data") || path.contains("/queries")
}

fn json((status, body): rest::Answer) -> Response<Body> {
    let body = Body::new(Full::new(Bytes::from(body.to_string())));
    let made = Response::builder().status(status).header("content-type", "application/json").body(body);
    made.unwrap_or_default()
}

struct GetStream {
    shared: Arc<Shared>,
}

impl UnaryService<api::GetWriteStreamRequest> for GetStream {
    type Response = api::WriteStream;
    type Future = std::future::Ready<Result<tonic::Response<api::WriteStream>, Status>>;

    fn call(&mut self, request: tonic::Request<api::GetWriteStreamRequest>) -> Self::Future {
        let request = request.into_inner();
        let tables = locked(&self.shared.tables);
        let table = request.name.strip_suffix("/streams/_default").and_then(|name| tables.tables.get(name));
        let Some(table) = table else {
            return std::future::ready(Err(Status::not_found(format!(
                "Requested entity was not found. Entity: {}",
                request.name
            ))));
        };
        let is_full = request.view == api::WriteStreamView::Full as i32;
        std::future::ready(Ok(tonic::Response::new(api::WriteStream {
            name: request.name,
            r#type: api::write_stream::Type::Committed as i32,
            location: table.resource["location"].as_str().unwrap_or_default().to_owned(),
            table_schema: is_full.then(|| append::shown(&table.columns)),
            ..api::WriteStream::default()
        })))
    }
}

/// Decodes nothing: what came is kept as it came.
#[derive(Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = api::AppendRowsResponse;
    type Decode = Vec<u8>;
    type Encoder = ProstEncoder<api::AppendRowsResponse>;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<api::AppendRowsResponse, ()>::raw_encoder(BufferSettings::default())
    }
    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

struct Append {
    shared: Arc<Shared>,
    /// What the client says in its header that its first request names.
    routing: Option<String>,
}

type Answers = ReceiverStream<Result<api::AppendRowsResponse, Status>>;

impl StreamingService<Vec<u8>> for Append {
    type Response = api::AppendRowsResponse;
    type ResponseStream = Answers;
    type Future = std::future::Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Vec<u8>>>) -> Self::Future {
        let (to, answers) = mpsc::channel(ANSWERS);
        let (shared, routing) = (self.shared.clone(), self.routing.clone());
        tokio::spawn(async move {
            if let Err(status) = append(&shared, routing, request.into_inner(), &to).await {
                // Whoever has hung up does not want to know.
                let _ = to.send(Err(status)).await;
            }
        });
        std::future::ready(Ok(tonic::Response::new(ReceiverStream::new(answers))))
    }
}

async fn append(
    shared: &Shared,
    mut routing: Option<String>,
    mut requests: Streaming<Vec<u8>>,
    to: &mpsc::Sender<Result<api::AppendRowsResponse, Status>>,
) -> Result<(), Status> {
    let mut connection = Connection::default();
    let closed = *shared.closed.borrow();
    while let Some(bytes) = requests.message().await? {
        tokio::time::sleep(Duration::from_millis(shared.faults.delay_ms.load(Ordering::Relaxed))).await;
        if let Some(routing) = routing.take() {
            check_routing(&routing, &bytes)?;
        }
        // What has come over a connection that was closed since is not taken.
        if *shared.closed.borrow() != closed {
            return Err(Status::unavailable("the connection was closed"));
        }
        let fault = shared.faults.meet();
        let answer = match fault {
            Some(Fault::End(code)) => return Err(Status::new(code.into(), "as the test wants it")),
            Some(Fault::Answer(code)) => {
                let message = "as the test wants it".to_owned();
                let error = rpc::Status { code, message, details: Vec::new() };
                let response = Some(api::append_rows_response::Response::Error(error));
                api::AppendRowsResponse { response, ..api::AppendRowsResponse::default() }
            }
            _ => {
                locked(&shared.requests).push(bytes.clone());
                take(shared, &mut connection, &bytes)?
            }
        };
        match fault {
            Some(Fault::BreakAfter) => return Err(Status::unavailable("the connection breaks")),
            Some(Fault::Silence) => {}
            _ => {
                if let Some(Fault::Late(ms)) = fault {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
                if to.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn take(
    shared: &Shared,
    connection: &mut Connection,
    bytes: &[u8],
) -> Result<api::AppendRowsResponse, Status> {
    if let Some(text) = locked(&shared.faults.bad_text).clone()
        && let Ok(request) = api::AppendRowsRequest::decode(bytes)
        && let Some(refused) = bad_rows(&request, &text)
    {
        connection.note(&request)?;
        return Ok(refused);
    }
    connection.take(&mut locked(&shared.tables), bytes)
}

/// The answer that names the rows with this text, if there are any.
fn bad_rows(request: &api::AppendRowsRequest, text: &str) -> Option<api::AppendRowsResponse> {
    let Some(api::append_rows_request::Rows::ProtoRows(data)) = &request.rows else { return None };
    let has = |row: &[u8]| row.windows(text.len()).any(|w| w == text.as_bytes());
    let bad: Vec<api::RowError> = data
        .rows
        .as_ref()?
        .serialized_rows
        .iter()
        .enumerate()
        .filter(|(_, row)| has(row))
        .map(|(index, _)| api::RowError {
            index: index as i64,
            code: api::row_error::RowErrorCode::FieldsError as i32,
            message: "the row is bad, as the test wants it".to_owned(),
        })
        .collect();
    (!bad.is_empty()).then(|| append::refused_rows(request.write_stream.clone(), bad))
}

/// The header that leads a request to its region has to name the stream of the first request.
fn check_routing(routing: &str, bytes: &[u8]) -> Result<(), Status> {
    let request =
        api::AppendRowsRequest::decode(bytes).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let named = routing.strip_prefix("write_stream=").unwrap_or(routing).replace("%2F", "/");
    if named == request.write_stream {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "x-goog-request-params names {named}, the first request {}",
        request.write_stream
    )))
}
