//! Reads a table of sessions for the command line, also while a run writes it.
//!
//! Opens the file read-only and never creates, changes or locks anything that a writer would wait for.

use super::super::owned::quoted;
use super::{BUSY_WAIT, check_columns, check_name, classify, kind_of};
use crate::ConnectError;
use rusqlite::{Connection, OpenFlags, types::ToSql};
use std::path::{Path, PathBuf};
use tidemill_engine::outbox::Stage;

/// Which rows to read, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this pipeline's.
    pub pipeline: Option<String>,
    /// Only this key's.
    pub key: Option<String>,
    /// Only this stage's; `None` is all, retracted ones too.
    pub stage: Option<Stage>,
    /// At most so many.
    pub limit: Option<u32>,
    /// Latest start first, else earliest first.
    pub newest_first: bool,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRow {
    /// 32 hex digits.
    pub session_id: String,
    /// Whose row this is.
    pub pipeline: String,
    /// The key as a reader sees it.
    pub key: String,
    /// Time of the first event, ms since the Unix epoch.
    pub start_ms: i64,
    /// Time of the last event, ms since the Unix epoch.
    pub end_ms: i64,
    /// Number of events.
    pub events: i64,
    /// `early`, `final`, `corrected` or `retracted`.
    pub stage: String,
    /// First half of the revision.
    pub incarnation: i64,
    /// Second half of the revision.
    pub epoch: i64,
    /// Why the session closed; `None` while it is open.
    pub reason: Option<String>,
    /// `name@version` of the rule in force.
    pub plugin: String,
    /// JSON object of the rule's own fields.
    pub fields: String,
}

/// How many sessions have this stage and close reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The stage's word.
    pub stage: String,
    /// The close reason; `None` while open.
    pub reason: Option<String>,
    /// Number of sessions.
    pub sessions: i64,
}

/// A read-only view of one table.
pub struct SqliteReader {
    db: Connection,
    path: PathBuf,
    table: String,
}

impl SqliteReader {
    /// Opens the file; `Config` where it, the table or a column is missing.
    pub fn open(path: &Path, table: &str) -> Result<SqliteReader, ConnectError> {
        check_name(table)?;
        let err = |e| classify(path, BUSY_WAIT, &e);
        if !path.exists() {
            return Err(ConnectError::Config(format!(
                "{} does not exist; has the pipeline run?",
                path.display()
            )));
        }
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(err)?;
        db.busy_timeout(BUSY_WAIT).map_err(err)?;
        if kind_of(&db, table).map_err(err)?.is_none() {
            return Err(ConnectError::Config(format!("{} has no table `{table}`", path.display())));
        }
        check_columns(&db, path, table, BUSY_WAIT)?;
        Ok(SqliteReader { db, path: path.to_path_buf(), table: table.to_owned() })
    }

    /// The rows that the filter lets through.
    pub fn rows(&self, filter: &Filter) -> Result<Vec<OwnedRow>, ConnectError> {
        let order = if filter.newest_first { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT session_id, pipeline, \"key\", start_ms, end_ms, events, stage, incarnation, epoch, reason, plugin, \
             fields FROM {} WHERE (?1 IS NULL OR pipeline = ?1) AND (?2 IS NULL OR \"key\" = ?2) \
             AND (?3 IS NULL OR stage = ?3) ORDER BY start_ms {order}, session_id {order} LIMIT ?4",
            quoted(&self.table)
        );
        // A negative limit is none.
        let limit = filter.limit.map_or(-1, i64::from);
        let stage = filter.stage.map(Stage::name);
        let values: [&dyn ToSql; 4] = [&filter.pipeline, &filter.key, &stage, &limit];
        self.db
            .prepare(&sql)
            .and_then(|mut s| {
                s.query_map(values.as_slice(), |r| {
                    Ok(OwnedRow {
                        session_id: r.get(0)?,
                        pipeline: r.get(1)?,
                        key: r.get(2)?,
                        start_ms: r.get(3)?,
                        end_ms: r.get(4)?,
                        events: r.get(5)?,
                        stage: r.get(6)?,
                        incarnation: r.get(7)?,
                        epoch: r.get(8)?,
                        reason: r.get(9)?,
                        plugin: r.get(10)?,
                        fields: r.get(11)?,
                    })
                })?
                .collect()
            })
            .map_err(|e| classify(&self.path, BUSY_WAIT, &e))
    }

    /// Counts by stage and reason, in their order.
    pub fn summary(&self) -> Result<Vec<Count>, ConnectError> {
        let sql = format!(
            "SELECT stage, reason, count(*) FROM {} GROUP BY 1, 2 ORDER BY 1, 2",
            quoted(&self.table)
        );
        self.db
            .prepare(&sql)
            .and_then(|mut s| {
                s.query_map([], |r| Ok(Count { stage: r.get(0)?, reason: r.get(1)?, sessions: r.get(2)? }))?
                    .collect()
            })
            .map_err(|e| classify(&self.path, BUSY_WAIT, &e))
    }
}
