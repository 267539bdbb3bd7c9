//! A SQLite table of sessions: the embedded default sink.
//!
//! Invariants: one epoch is one transaction, and the cursor moves in it, so a row and the word that it was
//! delivered are durable together. A row changes only for a higher (incarnation, epoch), so any epoch may be
//! offered again in any order. The cursor row names the incarnation that may write; every transaction checks
//! it first, so an older process that still lives writes nothing more. A retraction changes only stage and
//! revision: the row keeps the content last sent.

mod reader;
#[cfg(test)]
mod tests;

pub use reader::{Count, Filter, OwnedRow, SqliteReader};

use super::owned::{Owner, Standing, begins_at, int, quoted};
use super::{Sink, TakenBack, line};
use crate::{ConnectError, Cursor};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tidemill_engine::outbox::{Outbox, Revision, SessionRow, Stage, Stages};

/// How often a lock is tried that SQLite does not wait for.
const LOCK_PACE: Duration = Duration::from_millis(5);
/// How long a statement waits for another program's lock.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// The columns in order, with their types.
const COLUMNS: [(&str, &str); 12] = [
    ("session_id", "TEXT"),
    ("pipeline", "TEXT"),
    ("key", "TEXT"),
    ("start_ms", "INTEGER"),
    ("end_ms", "INTEGER"),
    ("events", "INTEGER"),
    ("stage", "TEXT"),
    ("incarnation", "INTEGER"),
    ("epoch", "INTEGER"),
    ("reason", "TEXT"),
    ("plugin", "TEXT"),
    ("fields", "TEXT"),
];

const CURSOR_TABLE: &str = "CREATE TABLE IF NOT EXISTS tidemill_cursor (
    pipeline TEXT NOT NULL, sink TEXT NOT NULL, table_name TEXT NOT NULL,
    incarnation INTEGER NOT NULL, epoch INTEGER, PRIMARY KEY (pipeline, sink, table_name))";

/// Upserts session revisions into a table of a SQLite file.
pub struct SqliteSink {
    path: PathBuf,
    owner: Owner,
    stages: Stages,
    busy_wait: Duration,
    /// `None` before `open`.
    open: Option<Open>,
}

struct Open {
    db: Connection,
    standing: Standing,
    upsert: String,
    retract: String,
}

impl SqliteSink {
    /// A sink for the revisions with these stages; `pipeline` and `sink` name whose rows and cursor these are.
    #[must_use]
    pub fn new(path: PathBuf, table: String, pipeline: String, sink: String, stages: Stages) -> SqliteSink {
        let owner = Owner { place: path.display().to_string(), table, pipeline, sink };
        SqliteSink { path, owner, stages, busy_wait: BUSY_WAIT, open: None }
    }

    fn connect(&self) -> Result<Connection, ConnectError> {
        check_name(&self.owner.table)?;
        let err = |e| classify(&self.path, self.busy_wait, &e);
        let db = Connection::open(&self.path).map_err(err)?;
        db.busy_timeout(self.busy_wait).map_err(err)?;
        let mode = self.write_ahead(&db).map_err(err)?;
        if mode != "wal" {
            return Err(ConnectError::Config(format!(
                "{}: SQLite cannot keep a write-ahead log here (a network file system?); choose a local path",
                self.path.display()
            )));
        }
        // FULL: an epoch that was confirmed survives a power cut.
        db.execute_batch("PRAGMA synchronous = FULL").map_err(err)?;
        Ok(db)
    }

    /// Sets the journal's mode; what it is now. SQLite does not wait here for whoever does the same in that moment, as the sink
    /// of another pipeline in the same file does.
    fn write_ahead(&self, db: &Connection) -> rusqlite::Result<String> {
        let begun = Instant::now();
        loop {
            match db.query_row("PRAGMA journal_mode = WAL", [], |r| r.get(0)) {
                Err(e)
                    if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                        && begun.elapsed() < self.busy_wait =>
                {
                    std::thread::sleep(LOCK_PACE);
                }
                answer => return answer,
            }
        }
    }

    /// Takes the fence and returns the epoch that the cursor row holds.
    fn claim(
        &self,
        tx: &Transaction<'_>,
        incarnation: u64,
        stored: Option<Cursor>,
    ) -> Result<Option<u64>, ConnectError> {
        let err = |e| classify(&self.path, self.busy_wait, &e);
        let who = self.owner.who();
        let row: Option<(i64, Option<i64>)> = tx
            .query_row(
                "SELECT incarnation, epoch FROM tidemill_cursor WHERE pipeline = ?1 AND sink = ?2 AND table_name = ?3",
                who,
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .optional()
            .map_err(err)?;
        if let Some((theirs, _)) = row {
            self.owner.may_claim(theirs, incarnation)?;
        }
        let epoch = begins_at(row.and_then(|r| r.1), stored);
        tx.execute(
            "INSERT INTO tidemill_cursor VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET \
             incarnation = excluded.incarnation, epoch = excluded.epoch",
            params![self.owner.pipeline, self.owner.sink, self.owner.table, int(incarnation), epoch],
        )
        .map_err(err)?;
        Ok(epoch.map(|e| e.max(0) as u64))
    }

    /// The epoch of the cursor row; none if there is no such row, or it is marked as lost.
    fn own_epoch(&self, db: &Connection) -> rusqlite::Result<Option<u64>> {
        if kind_of(db, "tidemill_cursor")?.is_none() {
            return Ok(None);
        }
        let epoch: Option<Option<i64>> = db
            .query_row(
                "SELECT epoch FROM tidemill_cursor WHERE pipeline = ?1 AND sink = ?2 AND table_name = ?3",
                self.owner.who(),
                |r| r.get(0),
            )
            .optional()?;
        Ok(epoch.flatten().map(|e| e.max(0) as u64))
    }

    /// The newest epoch that rows show, where the cursor is gone. A table that has none of our rows shows nothing.
    fn newest_row(&self, db: &Connection) -> rusqlite::Result<Option<u64>> {
        let Owner { table, pipeline, .. } = &self.owner;
        if kind_of(db, table)?.is_none() || check_columns(db, &self.path, table, self.busy_wait).is_err() {
            return Ok(None);
        }
        let sql = format!("SELECT max(epoch) FROM {} WHERE pipeline = ?1", quoted(table));
        let newest: Option<i64> = db.query_row(&sql, [pipeline], |r| r.get(0))?;
        Ok(newest.map(|e| e.max(0) as u64))
    }

    /// One epoch in one transaction, whatever the cursor says.
    fn apply(&mut self, outbox: &Outbox<'_>) -> Result<(), ConnectError> {
        let (path, wait, owner) = (&self.path, self.busy_wait, &self.owner);
        let err = |e| classify(path, wait, &e);
        let Some(open) = &mut self.open else { return Err(owner.not_open()) };
        let tx = open.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(err)?;
        let mine = tx
            .prepare_cached(
                "UPDATE tidemill_cursor SET epoch = ?5 WHERE pipeline = ?1 AND sink = ?2 AND table_name = ?3 \
                 AND incarnation = ?4",
            )
            .and_then(|mut s| {
                s.execute(params![
                    owner.pipeline,
                    owner.sink,
                    owner.table,
                    int(open.standing.incarnation),
                    int(outbox.epoch)
                ])
            })
            .map_err(err)?;
        if mine != 1 {
            return Err(owner.fenced());
        }
        {
            let mut upsert = tx.prepare_cached(&open.upsert).map_err(err)?;
            let mut retract = tx.prepare_cached(&open.retract).map_err(err)?;
            for (revision, row) in outbox.sessions(self.stages) {
                let statement = if row.stage == Stage::Retracted { &mut retract } else { &mut upsert };
                offer(statement, &owner.pipeline, revision, &row).map_err(err)?;
            }
        }
        tx.commit().map_err(err)
    }
}

impl Sink for SqliteSink {
    fn open(&mut self, incarnation: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError> {
        self.open = None;
        let mut db = self.connect()?;
        let err = |e| classify(&self.path, self.busy_wait, &e);
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(err)?;
        create_table(&tx, &self.path, &self.owner.table, self.busy_wait)?;
        let epoch = self.claim(&tx, incarnation, stored)?;
        tx.commit().map_err(err)?;
        let found = epoch.map(|own| self.owner.against(own, stored)).transpose()?;
        self.open = Some(Open {
            db,
            standing: Standing::new(incarnation, found.unwrap_or_default()),
            upsert: statement(&self.owner.table, false),
            retract: statement(&self.owner.table, true),
        });
        Ok(found)
    }

    fn witness(&self) -> Result<Option<u64>, ConnectError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let err = |e| classify(&self.path, self.busy_wait, &e);
        // Not read-only: after a crash the write-ahead log may have to be taken in first.
        let db = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(err)?;
        db.busy_timeout(self.busy_wait).map_err(err)?;
        match self.own_epoch(&db).map_err(err)? {
            None => self.newest_row(&db).map_err(err),
            own => Ok(own),
        }
    }

    fn probe(&self, stored: Option<Cursor>) -> Result<(), ConnectError> {
        check_name(&self.owner.table)?;
        let err = |e| classify(&self.path, self.busy_wait, &e);
        let mut own = None;
        match std::fs::metadata(&self.path) {
            Err(_) => {}
            Ok(m) if !m.is_file() => {
                return Err(ConnectError::Config(format!(
                    "{} is not a regular file, and a database is one; choose another path",
                    self.path.display()
                )));
            }
            // An empty file is an empty database.
            Ok(m) if m.len() == 0 => {}
            Ok(_) => {
                let db =
                    Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(err)?;
                db.busy_timeout(self.busy_wait).map_err(err)?;
                if kind_of(&db, &self.owner.table).map_err(err)?.is_some() {
                    check_columns(&db, &self.path, &self.owner.table, self.busy_wait)?;
                }
                own = self.own_epoch(&db).map_err(err)?;
            }
        }
        self.owner.look(own, stored)
    }

    fn take_back(
        &mut self,
        incarnation: u64,
        cut: u64,
        stored: Option<Cursor>,
    ) -> Result<TakenBack, ConnectError> {
        self.open(incarnation, stored)?;
        let err = |e| classify(&self.path, self.busy_wait, &e);
        let Some(open) = &mut self.open else { return Err(self.owner.not_open()) };
        let tx = open.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(err)?;
        let sql = format!(
            "UPDATE {} SET stage = ?1, incarnation = ?2, epoch = ?3 WHERE pipeline = ?4 AND epoch > ?3 AND stage <> ?1",
            quoted(&self.owner.table)
        );
        let values = params![Stage::Retracted.name(), int(incarnation), int(cut), self.owner.pipeline];
        let rows = tx.execute(&sql, values).map_err(err)?;
        tx.execute(
            "UPDATE tidemill_cursor SET epoch = min(epoch, ?5) WHERE pipeline = ?1 AND sink = ?2 AND table_name = ?3 \
             AND incarnation = ?4",
            params![self.owner.pipeline, self.owner.sink, self.owner.table, int(incarnation), int(cut)],
        )
        .map_err(err)?;
        tx.commit().map_err(err)?;
        // Opened anew by the next run, which reads the cursor again.
        self.open = None;
        Ok(TakenBack::Retracted(rows as u64))
    }

    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError> {
        let Some(open) = &self.open else { return Err(self.owner.not_open()) };
        if open.standing.has(outbox) {
            return Ok(open.standing.cursor);
        }
        let with_rows = outbox.sessions(self.stages).next().is_some();
        if with_rows {
            self.apply(outbox)?;
        }
        let Some(open) = &mut self.open else { return Err(self.owner.not_open()) };
        Ok(open.standing.confirm(outbox, with_rows))
    }

    fn delete_all(&mut self) -> Result<(), ConnectError> {
        let (path, wait, owner) = (self.path.clone(), self.busy_wait, &self.owner);
        let err = |e| classify(&path, wait, &e);
        let mut own = None;
        let (db, incarnation) = match &mut self.open {
            Some(open) => {
                open.standing.start_over();
                (&mut open.db, Some(open.standing.incarnation))
            }
            None if !path.exists() => return Ok(()),
            None => (own.insert(self.connect()?), None),
        };
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(err)?;
        tx.execute_batch(CURSOR_TABLE).map_err(err)?;
        let who = owner.who();
        let held: Option<i64> = tx
            .query_row(
                "SELECT incarnation FROM tidemill_cursor WHERE pipeline = ?1 AND sink = ?2 AND table_name = ?3",
                who,
                |r| r.get(0),
            )
            .optional()
            .map_err(err)?;
        if incarnation.is_some_and(|i| held != Some(int(i))) {
            return Err(owner.fenced());
        }
        if kind_of(&tx, &owner.table).map_err(err)?.is_some() {
            check_columns(&tx, &path, &owner.table, wait)?;
            let sql = format!("DELETE FROM {} WHERE pipeline = ?1", quoted(&owner.table));
            tx.execute(&sql, [&owner.pipeline]).map_err(err)?;
        }
        tx.execute("DELETE FROM tidemill_cursor WHERE pipeline = ?1 AND sink = ?2 AND table_name = ?3", who)
            .map_err(err)?;
        if let Some(i) = incarnation {
            // An open sink keeps its fence: it goes on with the first epoch.
            tx.execute(
                "INSERT INTO tidemill_cursor VALUES (?1, ?2, ?3, ?4, 0)",
                params![owner.pipeline, owner.sink, owner.table, int(i)],
            )
            .map_err(err)?;
        }
        tx.commit().map_err(err)
    }
}

fn offer(
    s: &mut rusqlite::CachedStatement<'_>,
    pipeline: &str,
    revision: Revision,
    row: &SessionRow<'_>,
) -> rusqlite::Result<usize> {
    let id = line::hex_id(row.id);
    s.execute(params![
        // Hex digits are always text.
        std::str::from_utf8(&id).unwrap_or_default(),
        pipeline,
        row.key,
        row.start.ms(),
        row.end.ms(),
        int(row.events),
        row.stage.name(),
        int(revision.incarnation),
        int(revision.epoch),
        row.reason,
        row.plugin,
        row.fields,
    ])
}

/// The guarded upsert. A plain INSERT, so that a user's `BEFORE INSERT` trigger sees each offer.
fn statement(table: &str, retraction: bool) -> String {
    let names = COLUMNS.map(|(n, _)| format!("\"{n}\"")).join(", ");
    let set = COLUMNS
        .iter()
        .map(|(n, _)| *n)
        .filter(
            |n| if retraction { matches!(*n, "stage" | "incarnation" | "epoch") } else { *n != "session_id" },
        )
        .map(|n| format!("\"{n}\" = excluded.\"{n}\""))
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "INSERT INTO {} AS was ({names}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
         ON CONFLICT(session_id) DO UPDATE SET {set} \
         WHERE (excluded.incarnation, excluded.epoch) > (was.incarnation, was.epoch)",
        quoted(table)
    )
}

fn check_name(table: &str) -> Result<(), ConnectError> {
    let lower = table.to_ascii_lowercase();
    let why = if table.is_empty() {
        "is empty"
    } else if table.contains('\0') {
        "holds a NUL character"
    } else if lower.starts_with("sqlite_") {
        "begins with `sqlite_`, which SQLite keeps for itself"
    } else if lower == "tidemill_cursor" {
        "is the one tidemill keeps its cursors in"
    } else {
        return Ok(());
    };
    Err(ConnectError::Config(format!("the table name `{}` {why}; choose another", table.escape_debug())))
}

/// `table` or `view`; `None` where nothing has the name.
fn kind_of(db: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    db.query_row(
        "SELECT type FROM sqlite_master WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')",
        [name],
        |r| r.get(0),
    )
    .optional()
}

fn create_table(tx: &Transaction<'_>, path: &Path, table: &str, wait: Duration) -> Result<(), ConnectError> {
    let err = |e| classify(path, wait, &e);
    tx.execute_batch(CURSOR_TABLE).map_err(err)?;
    if kind_of(tx, table).map_err(err)?.is_some() {
        check_columns(tx, path, table, wait)?;
    } else {
        let columns = COLUMNS
            .map(|(n, t)| match n {
                "session_id" => format!("\"{n}\" {t} NOT NULL PRIMARY KEY"),
                "reason" => format!("\"{n}\" {t}"),
                _ => format!("\"{n}\" {t} NOT NULL"),
            })
            .join(", ");
        // With a rowid: 4 us a row, and 4 to 9 in a table of 700,000, against 5 to 8 and 14 to 16 without (22 %
        // smaller): random ids touch pages of the narrow index, not of whole rows. 100,000 rows a transaction.
        tx.execute_batch(&format!("CREATE TABLE {} ({columns})", quoted(table))).map_err(err)?;
    }
    let view = format!("{table}_current");
    match kind_of(tx, &view).map_err(err)?.as_deref() {
        Some("view") => Ok(()),
        Some(_) => Err(ConnectError::Config(format!(
            "{}: `{view}` is a table, tidemill needs that name for its view of `{table}`; rename it or choose another \
             `table`",
            path.display()
        ))),
        None => tx
            .execute_batch(&format!(
                "CREATE VIEW {} AS SELECT * FROM {} WHERE stage <> 'retracted'",
                quoted(&view),
                quoted(table)
            ))
            .map_err(err),
    }
}

/// Whether rows fit into the table that is there; a user's own columns may stand beside ours if they can be left out.
fn check_columns(db: &Connection, path: &Path, table: &str, wait: Duration) -> Result<(), ConnectError> {
    let err = |e| classify(path, wait, &e);
    let wrong = |what: String| {
        Err(ConnectError::Config(format!(
            "{}: table `{table}` is not one that tidemill can fill: {what}; choose another `table`, or rename or drop \
             this one",
            path.display()
        )))
    };
    if kind_of(db, table).map_err(err)?.as_deref() == Some("view") {
        return wrong("it is a view".into());
    }
    let mut statement = db
        .prepare("SELECT name, type, pk, \"notnull\", dflt_value IS NOT NULL FROM pragma_table_info(?1)")
        .map_err(err)?;
    let found: Vec<(String, String, i64, bool, bool)> = statement
        .query_map([table], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)))
        .and_then(Iterator::collect)
        .map_err(err)?;
    for (name, kind) in COLUMNS {
        let Some((_, has, pk, ..)) = found.iter().find(|c| c.0.eq_ignore_ascii_case(name)) else {
            return wrong(format!("column `{name}` is missing"));
        };
        if !has.eq_ignore_ascii_case(kind) {
            return wrong(format!("column `{name}` is {has}, expected {kind}"));
        }
        if (*pk > 0) != (name == "session_id") {
            return wrong("its primary key is not `session_id` alone".into());
        }
    }
    for (name, _, pk, not_null, default) in &found {
        let ours = COLUMNS.iter().any(|c| c.0.eq_ignore_ascii_case(name));
        if !ours && (*pk > 0 || (*not_null && !default)) {
            return wrong(format!("column `{name}` must be filled and tidemill does not know it"));
        }
    }
    Ok(())
}

/// SQLite's failures by whose move it is.
fn classify(path: &Path, waited: Duration, e: &rusqlite::Error) -> ConnectError {
    let shown = path.display();
    match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ConnectError::Conflict(format!(
            "{shown}: the database is locked by another program; close it or wait (tidemill retried for {} s)",
            waited.as_secs_f32()
        )),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => ConnectError::Config(format!(
            "{shown} cannot be written ({e}); make the file and its directory writable or choose another path"
        )),
        Some(ErrorCode::CannotOpen) => ConnectError::Config(format!(
            "{shown} cannot be opened; its directory must exist and be writable, for the log beside it too"
        )),
        Some(ErrorCode::NotADatabase) => {
            ConnectError::Config(format!("{shown} is not a SQLite database; choose another path"))
        }
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt) => {
            ConnectError::Storage(format!("{shown}: {e}"))
        }
        Some(ErrorCode::ConstraintViolation) => {
            ConnectError::Failed(format!("{shown}: a constraint or trigger of the table refused a row: {e}"))
        }
        _ => ConnectError::Failed(format!("{shown}: {e}")),
    }
}
