//! Rows of a Bigtable table, many keys a call: one `ReadRows` with a key each, and of each the newest cell of the columns wanted.
//!
//! A row is an object with a member for each column of the config, null where the row has no such cell. A row that has none of
//! them is no row.
//!
//! Invariants: all calls share one connection, and one that failed is not used again; half an answer is none, the whole call fails;
//! nothing is asked before the first call, so a service that is away holds no start up. No secret is in a message.

mod merge;

use self::merge::{Cell, Merge};
use super::bounds::{KEY_BYTES_MAX, RESPONSE_BYTES_MAX, ROW_BYTES_MAX};
use super::{Fetched, LookupError, Provider};
use crate::ConnectError;
use crate::google::{self, Credentials};
use base64::Engine as _;
use googleapis_tonic_google_bigtable_v2::google::bigtable::v2 as api;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub use crate::google::CredentialsFrom;

/// Where Google answers.
pub const ENDPOINT: &str = "https://bigtable.googleapis.com";
/// Stands for the key in a row's key.
pub const KEY: &str = "{key}";
/// What a token is asked for: reading rows.
const SCOPE: &str = "https://www.googleapis.com/auth/bigtable.data.readonly";

/// How much longer than we the service may take a call for wanted.
const DEADLINE_AFTER: Duration = Duration::from_secs(1);

/// Where a table is, and as whom and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The project that holds the instance.
    pub project: String,
    /// The instance that holds the table.
    pub instance: String,
    /// The table.
    pub table: String,
    /// The application profile, by which the service routes; empty: the instance's own.
    pub app_profile: String,
    /// Scheme and host.
    pub endpoint: String,
    /// As whom.
    pub credentials: CredentialsFrom,
}

impl Place {
    fn name(&self) -> String {
        format!("projects/{}/instances/{}/tables/{}", self.project, self.instance, self.table)
    }

    /// What messages call it. No secret.
    fn shown(&self) -> String {
        let host = self.endpoint.split("//").last().unwrap_or_default();
        format!("Bigtable at {host}, table {}", self.name())
    }
}

/// How the bytes of a cell are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellKind {
    /// UTF-8.
    Text,
    /// 8 bytes, big-endian, as Bigtable's own counters are.
    Int64,
    /// 8 bytes, big-endian, IEEE 754. One that is no number in JSON is null.
    Float64,
    /// JSON of any kind.
    Json,
    /// Any bytes, shown in base64.
    Base64,
}

impl CellKind {
    /// With the words for them.
    pub const NAMED: [(&'static str, CellKind); 5] = [
        ("text", CellKind::Text),
        ("int64", CellKind::Int64),
        ("float64", CellKind::Float64),
        ("json", CellKind::Json),
        ("base64", CellKind::Base64),
    ];

    /// The value of a cell, or what it is not.
    fn read(self, bytes: &[u8]) -> Result<Value, &'static str> {
        let eight = || <[u8; 8]>::try_from(bytes).map_err(|_| "no 8 bytes");
        match self {
            CellKind::Text => std::str::from_utf8(bytes).map(Value::from).map_err(|_| "no UTF-8"),
            CellKind::Int64 => eight().map(|b| i64::from_be_bytes(b).into()),
            CellKind::Float64 => eight().map(|b| f64::from_be_bytes(b).into()),
            CellKind::Json => serde_json::from_slice(bytes).map_err(|_| "no JSON"),
            CellKind::Base64 => Ok(base64::engine::general_purpose::STANDARD.encode(bytes).into()),
        }
    }
}

/// A member of the row, and the column that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The member's name.
    pub field: String,
    /// The column's family.
    pub family: String,
    /// Its qualifier within the family.
    pub qualifier: String,
    /// How its cells are read.
    pub kind: CellKind,
}

/// See the module's documentation.
pub struct BigtableProvider {
    shown: String,
    place: Place,
    /// Of a row, with [`KEY`] in it.
    row_key: String,
    columns: Vec<Column>,
    filter: api::RowFilter,
    credentials: Credentials,
    way: Mutex<Way>,
    /// There until it is dropped.
    runtime: Option<Runtime>,
}

/// The connection, if there is one, and how many there were.
#[derive(Default)]
struct Way {
    channel: Option<Channel>,
    number: u64,
}

impl BigtableProvider {
    /// Of a table. `row_key` is what a row's key is, with [`KEY`] for the key that is asked for. Nothing is asked yet, but for what
    /// credentials need.
    ///
    /// # Errors
    /// `Config`: the credentials cannot be used. `Failed`: the system gives no thread.
    pub fn new(
        place: Place,
        row_key: String,
        columns: Vec<Column>,
    ) -> Result<BigtableProvider, ConnectError> {
        let shown = place.shown();
        // Whoever was first has chosen the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bigtable")
            .enable_all()
            .build()
            .map_err(|e| ConnectError::Failed(format!("{shown}: no runtime: {e}")))?;
        let credentials = runtime.block_on(async { Credentials::new(&shown, &place.credentials, SCOPE) })?;
        let filter = filter_of(&columns);
        let way = Mutex::default();
        Ok(BigtableProvider {
            shown,
            place,
            row_key,
            columns,
            filter,
            credentials,
            way,
            runtime: Some(runtime),
        })
    }

    /// Whether the service is there, lets us in, and has the table. Families it does not tell to readers.
    ///
    /// # Errors
    /// `Unavailable` if it may work later, else `Config`.
    pub fn probe(&self, timeout: Duration) -> Result<(), ConnectError> {
        match self.call(vec![b"\0".to_vec()], timeout) {
            Ok(_) => Ok(()),
            Err(LookupError::Unavailable(why)) => Err(ConnectError::Unavailable(why)),
            Err(e) => Err(ConnectError::Config(e.to_string())),
        }
    }

    /// The key of a row, if there can be one.
    fn row_key(&self, key: &str) -> Option<Vec<u8>> {
        let row_key = self.row_key.replace(KEY, key).into_bytes();
        (1..=KEY_BYTES_MAX).contains(&row_key.len()).then_some(row_key)
    }

    fn call(
        &self,
        row_keys: Vec<Vec<u8>>,
        timeout: Duration,
    ) -> Result<HashMap<Vec<u8>, Fetched>, LookupError> {
        let Some(runtime) = &self.runtime else { return Err(self.refused("it was left")) };
        runtime.block_on(async {
            let mut number = None;
            let answer = tokio::time::timeout(timeout, self.ask(row_keys, timeout, &mut number)).await;
            let (result, broken) = match answer {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(failure)) => failure,
                Err(_) => (self.late(timeout), true),
            };
            if broken {
                self.leave(number);
            }
            Err(result)
        })
    }

    /// Asks; with a failure, whether the connection is to be left. `number`: of the connection, once there is one.
    async fn ask(
        &self,
        row_keys: Vec<Vec<u8>>,
        timeout: Duration,
        number: &mut Option<u64>,
    ) -> Result<HashMap<Vec<u8>, Fetched>, (LookupError, bool)> {
        let kept = |e: ConnectError| (lookup_error(e), false);
        let headers = self.credentials.headers(&self.shown, timeout).await.map_err(kept)?;
        let channel = self.channel(timeout, number).await.map_err(kept)?;
        let body = api::ReadRowsRequest {
            table_name: self.place.name(),
            app_profile_id: self.place.app_profile.clone(),
            rows_limit: i64::try_from(row_keys.len()).unwrap_or(i64::MAX),
            rows: Some(api::RowSet { row_keys, row_ranges: Vec::new() }),
            filter: Some(self.filter.clone()),
            ..api::ReadRowsRequest::default()
        };
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let routing = format!(
            "table_name={}&app_profile_id={}",
            encoded(&self.place.name()),
            encoded(&self.place.app_profile)
        );
        let mut request = google::request(&self.shown, headers, routing, body).map_err(kept)?;
        // So that the service does not go on for nobody; whoever waits is the first to know.
        request.set_timeout(timeout + DEADLINE_AFTER);
        let mut client = api::bigtable_client::BigtableClient::new(channel)
            .max_decoding_message_size(usize::try_from(RESPONSE_BYTES_MAX).unwrap_or(usize::MAX));
        let failed = |status: &Status| (of_status(&self.shown, status), breaks(status));
        let mut answers = client.read_rows(request).await.map_err(|s| failed(&s))?.into_inner();
        let mut merge = Merge::new(ROW_BYTES_MAX);
        let (mut rows, mut bytes) = (HashMap::new(), 0);
        let wrong = |why: &str| (self.refused(why), true);
        while let Some(answer) = answers.message().await.map_err(|s| failed(&s))? {
            for chunk in answer.chunks {
                let Some(row) = merge.take(chunk).map_err(wrong)? else { continue };
                let fetched = self.row(&row.key, row.cells);
                bytes += row.key.len() + fetched.as_ref().map_or(0, |r| r.as_ref().map_or(0, |r| r.len()));
                if bytes as u64 > RESPONSE_BYTES_MAX {
                    let most = RESPONSE_BYTES_MAX >> 20;
                    return Err((
                        self.refused(&format!("more than {most} MiB of rows in one answer")),
                        false,
                    ));
                }
                rows.insert(row.key, fetched);
            }
        }
        merge.end().map_err(wrong)?;
        Ok(rows)
    }

    fn late(&self, timeout: Duration) -> LookupError {
        LookupError::Unavailable(format!("{}: no answer within {timeout:?}", self.shown))
    }

    fn refused(&self, why: &str) -> LookupError {
        LookupError::Refused(format!("{}: {why}", self.shown))
    }

    fn way(&self) -> std::sync::MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that all share; a new one if there is none.
    async fn channel(&self, timeout: Duration, number: &mut Option<u64>) -> Result<Channel, ConnectError> {
        {
            let way = self.way();
            if let Some(channel) = &way.channel {
                *number = Some(way.number);
                return Ok(channel.clone());
            }
        }
        let channel = google::connect(&self.place.endpoint, &self.shown, timeout).await?;
        let mut way = self.way();
        way.number += 1;
        *number = Some(way.number);
        // Of two that were made at once the later one stays; the other ends with its call.
        way.channel = Some(channel.clone());
        Ok(channel)
    }

    /// The connection of this number is not used again.
    fn leave(&self, number: Option<u64>) {
        let mut way = self.way();
        if number == Some(way.number) {
            way.channel = None;
        }
    }

    fn row(&self, key: &[u8], cells: Result<Vec<Cell>, usize>) -> Fetched {
        let unusable = |why: String| {
            LookupError::Unusable(format!("{}: the row `{}` {why}", self.shown, String::from_utf8_lossy(key)))
        };
        let long = |n: usize| unusable(format!("has {n} bytes, at most {ROW_BYTES_MAX} are taken"));
        let cells = cells.map_err(long)?;
        let mut row = serde_json::Map::new();
        for column in &self.columns {
            let is_it = |c: &&Cell| c.family == column.family && c.qualifier == column.qualifier.as_bytes();
            let value = match cells.iter().find(is_it) {
                None => Value::Null,
                Some(cell) => column.kind.read(&cell.value).map_err(|what| {
                    unusable(format!("has {what} in {}:{}", column.family, column.qualifier))
                })?,
            };
            row.insert(column.field.clone(), value);
        }
        let text = Value::Object(row).to_string();
        if text.len() > ROW_BYTES_MAX { Err(long(text.len())) } else { Ok(Some(text.into())) }
    }
}

/// The newest cell of each column: by name and not by pattern, so that no name is read as one.
fn filter_of(columns: &[Column]) -> api::RowFilter {
    use api::row_filter::{Chain, Filter, Interleave};
    let filter = |f: Filter| api::RowFilter { filter: Some(f) };
    let mut names: Vec<(&str, &str)> = columns.iter().map(|c| (&*c.family, &*c.qualifier)).collect();
    // Interleaved, a column that is named twice would come twice.
    names.sort_unstable();
    names.dedup();
    let mut each: Vec<api::RowFilter> = names
        .into_iter()
        .map(|(family, qualifier)| {
            let qualifier = qualifier.as_bytes().to_vec();
            filter(Filter::ColumnRangeFilter(api::ColumnRange {
                family_name: family.to_owned(),
                start_qualifier: Some(api::column_range::StartQualifier::StartQualifierClosed(
                    qualifier.clone(),
                )),
                end_qualifier: Some(api::column_range::EndQualifier::EndQualifierClosed(qualifier)),
            }))
        })
        .collect();
    let wanted = match each.pop() {
        Some(one) if each.is_empty() => one,
        last => {
            each.extend(last);
            filter(Filter::Interleave(Interleave { filters: each }))
        }
    };
    filter(Filter::Chain(Chain { filters: vec![wanted, filter(Filter::CellsPerColumnLimitFilter(1))] }))
}

fn lookup_error(e: ConnectError) -> LookupError {
    match e {
        ConnectError::Unavailable(m) => LookupError::Unavailable(m),
        other => LookupError::Refused(other.to_string()),
    }
}

/// Whose move a status is.
fn of_status(place: &str, status: &Status) -> LookupError {
    lookup_error(google::failure(place, "roles/bigtable.reader` on the instance", status))
}

/// Whether the connection is at fault, or may be.
fn breaks(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Internal | Code::Cancelled | Code::Unknown)
}

impl Provider for BigtableProvider {
    fn fetch(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Fetched>, LookupError> {
        let row_keys: Vec<Option<Vec<u8>>> = keys.iter().map(|k| self.row_key(k)).collect();
        let asked: Vec<Vec<u8>> = row_keys.iter().flatten().cloned().collect();
        // Without any key the service would give the whole table.
        let mut rows = if asked.is_empty() { HashMap::new() } else { self.call(asked, timeout)? };
        let of = |key: Option<Vec<u8>>| key.and_then(|k| rows.remove(&k)).unwrap_or(Ok(None));
        Ok(row_keys.into_iter().map(of).collect())
    }
}

impl Drop for BigtableProvider {
    /// Waits for nothing: a connection whose other end is silent would not end by itself.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(field: &str, name: &str, kind: CellKind) -> Column {
        let (family, qualifier) = name.split_once(':').unwrap();
        Column { field: field.into(), family: family.into(), qualifier: qualifier.into(), kind }
    }

    fn provider(row_key: &str, columns: Vec<Column>) -> BigtableProvider {
        let place = Place {
            project: "p".into(),
            instance: "i".into(),
            table: "t".into(),
            app_profile: String::new(),
            endpoint: "http://127.0.0.1:9".into(),
            credentials: CredentialsFrom::None,
        };
        BigtableProvider::new(place, row_key.into(), columns).unwrap()
    }

    #[test]
    fn cells_are_what_the_config_says() {
        let cases: [(CellKind, &[u8], Result<Value, &str>); 12] = [
            (CellKind::Text, "gün".as_bytes(), Ok("gün".into())),
            (CellKind::Text, b"", Ok("".into())),
            (CellKind::Text, b"\xff", Err("no UTF-8")),
            (CellKind::Int64, &[0, 0, 0, 0, 0, 0, 1, 2], Ok(258.into())),
            (CellKind::Int64, &[0xff; 8], Ok((-1).into())),
            (CellKind::Int64, b"12", Err("no 8 bytes")),
            (CellKind::Float64, &1.5_f64.to_be_bytes(), Ok(1.5.into())),
            (CellKind::Float64, &f64::NAN.to_be_bytes(), Ok(Value::Null)),
            (CellKind::Float64, &[0; 9], Err("no 8 bytes")),
            (CellKind::Json, b"{\"a\":[1]}", Ok(serde_json::json!({"a": [1]}))),
            (CellKind::Json, b"{", Err("no JSON")),
            (CellKind::Base64, b"\xff\0", Ok("/wA=".into())),
        ];
        for (kind, bytes, value) in cases {
            assert_eq!(kind.read(bytes), value, "{kind:?} of {bytes:?}");
        }
    }

    #[test]
    fn a_row_has_every_column_and_what_cannot_be_read_is_named() {
        let p = provider(
            "{key}",
            vec![
                column("b", "f:b", CellKind::Text),
                column("a", "f:n", CellKind::Int64),
                column("again", "f:b", CellKind::Base64),
            ],
        );
        let cell = |q: &str, v: &[u8]| Cell { family: "f".into(), qualifier: q.into(), value: v.to_vec() };
        assert_eq!(
            p.row(b"k", Ok(vec![cell("b", b"x")])),
            Ok(Some(r#"{"a":null,"again":"eA==","b":"x"}"#.into()))
        );
        for (cells, words) in [
            (Ok(vec![cell("n", b"x")]), "the row `k` has no 8 bytes in f:n"),
            (Err(70_000), "has 70000 bytes"),
            // JSON may be longer than what it is made of.
            (Ok(vec![cell("b", &[1; 20_000])]), "bytes, at most"),
        ] {
            let row = p.row(b"k", cells);
            assert!(matches!(&row, Err(LookupError::Unusable(m)) if m.contains(words)), "{row:?}");
        }
    }

    #[test]
    fn keys_that_no_row_can_have_are_not_asked_for() {
        let p = provider("v#{key}", vec![column("b", "f:b", CellKind::Text)]);
        assert_eq!(p.row_key("a").unwrap(), b"v#a");
        assert_eq!(p.row_key(&"x".repeat(KEY_BYTES_MAX)), None);
        assert_eq!(provider("{key}", Vec::new()).row_key(""), None);
        // Nobody is at that port: whoever asked would hear so.
        let long = Arc::from("x".repeat(KEY_BYTES_MAX));
        assert_eq!(p.fetch(&[long], Duration::from_secs(9)), Ok(vec![Ok(None)]));
        let gone = p.fetch(&[Arc::from("a")], Duration::from_secs(9));
        assert!(matches!(&gone, Err(LookupError::Unavailable(m)) if m.contains("127.0.0.1:9")), "{gone:?}");
    }

    #[test]
    fn codes_by_whose_move_it_is() {
        let later =
            |code| matches!(of_status("Bigtable at x", &Status::new(code, "y")), LookupError::Unavailable(_));
        for code in
            [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Aborted, Code::Unknown]
        {
            assert!(later(code), "{code:?}");
        }
        for code in [
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::NotFound,
            Code::InvalidArgument,
            Code::OutOfRange,
        ] {
            assert!(!later(code), "{code:?}");
        }
        assert!(
            !breaks(&Status::new(Code::ResourceExhausted, "")) && breaks(&Status::new(Code::Unavailable, ""))
        );
    }
}
