//! A BigQuery, a sink to it, and epochs to send.

use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tidemill_connect::bigquery::{CredentialsFrom, Dataset};
use tidemill_connect::sink::Sink as _;
use tidemill_connect::sink::bigquery::{BigQuerySink, TableOptions};
use tidemill_connect::{ConnectError, Cursor};
use tidemill_engine::outbox::{Outbox, SessionRow, Stage, Stages};
use tidemill_engine::time::EventTime;
use tidemill_services::bigquery::{BigQuery, Row};

pub(crate) const TABLE: &str = "projects/p/datasets/clicks/tables/sessions";
/// How long the sink waits for an answer, where nothing is to come too late.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);
/// Where something is.
pub(crate) const IMPATIENT: Duration = Duration::from_millis(300);

pub(crate) fn bigquery() -> BigQuery {
    BigQuery::start("p", "clicks", "EU")
}

pub(crate) fn dataset(server: &BigQuery, timeout: Duration) -> Dataset {
    Dataset {
        project: "p".into(),
        dataset: "clicks".into(),
        location: None,
        tables_endpoint: server.endpoint(),
        rows_endpoint: server.endpoint(),
        credentials: CredentialsFrom::None,
        timeout,
    }
}

pub(crate) fn sink_of(dataset: Dataset, options: TableOptions) -> BigQuerySink {
    BigQuerySink::sessions(dataset, "sessions".into(), options, "visits".into(), "table".into(), Stages::ALL)
}

pub(crate) fn sink(server: &BigQuery, timeout: Duration) -> BigQuerySink {
    sink_of(dataset(server, timeout), TableOptions::default())
}

/// One that is open for this incarnation, and new.
pub(crate) fn opened(server: &BigQuery, timeout: Duration) -> BigQuerySink {
    let mut sink = sink(server, timeout);
    sink.open(1, None).unwrap();
    sink
}

/// Rows of an epoch: number of the session, events, stage.
pub(crate) struct Epoch {
    pub(crate) incarnation: u64,
    pub(crate) epoch: u64,
    rows: Vec<u8>,
    letters: Vec<u8>,
}

impl Epoch {
    pub(crate) fn new(incarnation: u64, epoch: u64) -> Epoch {
        Epoch { incarnation, epoch, rows: Vec::new(), letters: Vec::new() }
    }
    pub(crate) fn row(self, id: u32, events: u64, stage: Stage) -> Epoch {
        self.row_with(id, events, stage, "{}")
    }
    pub(crate) fn row_with(mut self, id: u32, events: u64, stage: Stage, fields: &str) -> Epoch {
        let mut bytes = [0; 16];
        bytes[12..].copy_from_slice(&id.to_be_bytes());
        SessionRow {
            id: bytes,
            key: &format!("user{id}"),
            start: EventTime::from_ms(1_000),
            end: EventTime::from_ms(2_000),
            events,
            stage,
            reason: (stage != Stage::Early).then_some("gap"),
            plugin: "builtin:gap@1",
            fields,
        }
        .encode(&mut self.rows);
        self
    }
    /// Final rows of these sessions, each with so many events.
    pub(crate) fn rows(ids: std::ops::Range<u32>, epoch: u64, events: u64) -> Epoch {
        ids.fold(Epoch::new(1, epoch), |e, id| e.row(id, events, Stage::Final))
    }
    /// The same, large enough for several requests.
    pub(crate) fn large(ids: std::ops::Range<u32>, epoch: u64) -> Epoch {
        let fields = format!("{{\"text\":\"{}\"}}", "x".repeat(100_000));
        ids.fold(Epoch::new(1, epoch), |e, id| e.row_with(id, epoch, Stage::Final, &fields))
    }
    pub(crate) fn letter(mut self, letter: &str) -> Epoch {
        self.letters.extend_from_slice(letter.as_bytes());
        self.letters.push(b'\n');
        self
    }
    pub(crate) fn outbox(&self) -> Outbox<'_> {
        Outbox::new(self.incarnation, self.epoch, &self.rows, &self.letters)
    }
    pub(crate) fn to(&self, sink: &mut BigQuerySink) -> Result<Cursor, ConnectError> {
        sink.deliver(&self.outbox())
    }
}

/// Until it works; what was said before.
#[track_caller]
pub(crate) fn patiently(sink: &mut BigQuerySink, epoch: &Epoch) -> Vec<String> {
    let mut said = Vec::new();
    for _ in 0..20 {
        match epoch.to(sink) {
            Ok(cursor) => {
                assert_eq!(cursor.epoch, epoch.epoch);
                return said;
            }
            Err(ConnectError::Unavailable(why)) => said.push(why),
            Err(e) => panic!("it does not wait: {e:?}"),
        }
    }
    panic!("it waits for ever: {said:?}")
}

/// Events of each session that readers see, by its number.
pub(crate) fn seen(server: &BigQuery) -> BTreeMap<u32, u64> {
    let one = |row: &Row| {
        let id = row["session_id"].as_str().unwrap();
        (u32::from_str_radix(&id[24..], 16).unwrap(), row["events"].as_u64().unwrap())
    };
    let rows = server.rows(TABLE);
    let seen: BTreeMap<u32, u64> = rows.iter().map(one).collect();
    assert_eq!(seen.len(), rows.len(), "a session stands twice");
    seen
}

pub(crate) fn all(ids: std::ops::Range<u32>, events: u64) -> BTreeMap<u32, u64> {
    ids.map(|id| (id, events)).collect()
}

/// The letters that a sink has left.
pub(crate) fn refused(sink: &mut BigQuerySink) -> Vec<Value> {
    let text = String::from_utf8(sink.take_refused()).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}
