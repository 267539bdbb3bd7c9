//! Rows of a SQLite table or query, many keys a call.
//!
//! Invariants: the database is only read; a query that runs past its time is stopped; a connection that failed is not used
//! again.

use super::bounds::ROW_BYTES_MAX;
use super::{LookupError, Provider, Row};
use crate::ConnectError;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Steps of SQLite's machine between two looks at the clock: some 10 µs.
const STEPS_BETWEEN_LOOKS: i32 = 1_000;

/// What to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// All columns of a table.
    Table(String),
    /// A query whose only parameter `?1` is a JSON array of the keys (`.. IN (SELECT value FROM json_each(?1))`).
    Query(String),
}

/// See the module's documentation.
pub struct SqliteProvider {
    path: PathBuf,
    sql: String,
    key: String,
    idle: Mutex<Vec<Connection>>,
}

impl SqliteProvider {
    /// Checks that the database is there and the query can be asked. `key` is the column that holds the key.
    ///
    /// # Errors
    /// `Config`: the file is missing or no database, or there is no such table or column.
    pub fn open(path: &Path, what: &What, key: &str) -> Result<SqliteProvider, ConnectError> {
        let sql = match what {
            What::Table(t) => {
                format!(
                    "SELECT * FROM {} WHERE {} IN (SELECT value FROM json_each(?1))",
                    quoted(t),
                    quoted(key)
                )
            }
            What::Query(q) => q.clone(),
        };
        let provider =
            SqliteProvider { path: path.to_owned(), sql, key: key.to_owned(), idle: Mutex::new(Vec::new()) };
        let wrong = |e: &dyn std::fmt::Display| ConnectError::Config(format!("{}: {e}", path.display()));
        let db = provider.connect().map_err(|e| wrong(&e))?;
        {
            let statement = db.prepare(&provider.sql).map_err(|e| wrong(&e))?;
            if statement.parameter_count() != 1 {
                let n = statement.parameter_count();
                return Err(wrong(&format!(
                    "the query has {n} parameters; it needs one, `?1`, for the keys as a JSON array"
                )));
            }
            provider.key_column(&statement).map_err(|e| wrong(&e))?;
        }
        provider.idle.lock().unwrap_or_else(PoisonError::into_inner).push(db);
        Ok(provider)
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(&self.path, flags)
    }

    fn key_column(&self, statement: &rusqlite::Statement<'_>) -> Result<usize, String> {
        let names: Vec<&str> = statement.column_names().collect();
        let at = names.iter().position(|n| n.eq_ignore_ascii_case(&self.key));
        at.ok_or_else(|| format!("there is no column `{}`; the query gives {}", self.key, names.join(", ")))
    }

    fn ask(&self, db: &Connection, keys: &[Arc<str>]) -> Result<Vec<Option<Row>>, LookupError> {
        let err = |e: rusqlite::Error| self.kind(&e);
        let list = serde_json::to_string(&keys.iter().map(|k| &**k).collect::<Vec<&str>>())
            .map_err(|e| LookupError::Refused(e.to_string()))?;
        let mut statement = db.prepare_cached(&self.sql).map_err(err)?;
        let key = self.key_column(&statement).map_err(LookupError::Refused)?;
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut found: HashMap<String, Row> = HashMap::new();
        let mut rows = statement.query([list]).map_err(err)?;
        while let Some(row) = rows.next().map_err(err)? {
            let mut object = serde_json::Map::new();
            for (i, name) in names.iter().enumerate() {
                object.insert(name.clone(), json(row.get_ref(i).map_err(err)?));
            }
            let of = match row.get_ref(key).map_err(err)? {
                ValueRef::Text(t) => String::from_utf8_lossy(t).into_owned(),
                other => text(&json(other)),
            };
            let row = serde_json::Value::Object(object).to_string();
            if row.len() > ROW_BYTES_MAX {
                return Err(LookupError::Refused(format!(
                    "the row of `{of}` has {} bytes, at most {ROW_BYTES_MAX} are taken",
                    row.len()
                )));
            }
            found.insert(of, row.into());
        }
        Ok(keys.iter().map(|k| found.get(&**k).cloned()).collect())
    }

    fn kind(&self, e: &rusqlite::Error) -> LookupError {
        let text = format!("{}: {e}", self.path.display());
        match e.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => {
                LookupError::Unavailable(format!("{text} (it took too long)"))
            }
            Some(ErrorCode::Unknown | ErrorCode::TypeMismatch | ErrorCode::NotADatabase) | None => {
                LookupError::Refused(text)
            }
            Some(_) => LookupError::Unavailable(text),
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn json(value: ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::Null => serde_json::Value::Null,
        ValueRef::Integer(n) => n.into(),
        ValueRef::Real(n) => n.into(),
        ValueRef::Text(t) => String::from_utf8_lossy(t).into(),
        // JSON has no bytes: as SQLite itself writes them, in hex.
        ValueRef::Blob(b) => tidemill_engine::outbox::hex(b).into(),
    }
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Provider for SqliteProvider {
    fn fetch(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Option<Row>>, LookupError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut db = idle.map_or_else(|| self.connect(), Ok).map_err(|e| self.kind(&e))?;
        let until = Instant::now() + timeout;
        db.busy_timeout(timeout)
            .and_then(|()| db.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || Instant::now() > until)))
            .map_err(|e| self.kind(&e))?;
        let rows = self.ask(&db, keys)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(db);
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "CREATE TABLE v (id INTEGER PRIMARY KEY, segment TEXT, rate REAL, raw BLOB);
             INSERT INTO v VALUES (1, 'gold', 0.5, x'beef'), (22, NULL, 2, NULL);",
        )
        .unwrap();
        (dir, path)
    }

    fn keys(list: &[&str]) -> Vec<Arc<str>> {
        list.iter().map(|k| Arc::from(*k)).collect()
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn rows_of_a_table_and_of_a_query() {
        let (_dir, path) = database();
        let p = SqliteProvider::open(&path, &What::Table("v".into()), "ID").unwrap();
        let rows = p.fetch(&keys(&["22", "x", "1"]), LONG).unwrap();
        let texts: Vec<Option<&str>> = rows.iter().map(|r| r.as_deref()).collect();
        assert_eq!(
            texts,
            [
                Some(r#"{"id":22,"rate":2.0,"raw":null,"segment":null}"#),
                None,
                Some(r#"{"id":1,"rate":0.5,"raw":"beef","segment":"gold"}"#)
            ]
        );
        let sql = "SELECT 'u' || id AS who, upper(segment) AS s FROM v WHERE 'u' || id IN (SELECT value FROM json_each(?1))";
        let p = SqliteProvider::open(&path, &What::Query(sql.into()), "who").unwrap();
        let rows = p.fetch(&keys(&["u1"]), LONG).unwrap();
        assert_eq!(rows[0].as_deref(), Some(r#"{"s":"GOLD","who":"u1"}"#));
    }

    #[test]
    fn what_cannot_be_asked_is_said_at_once() {
        let (dir, path) = database();
        let table = |t: &str| What::Table(t.into());
        let says =
            |path: &Path, what: &What, key: &str, words: &str| match SqliteProvider::open(path, what, key) {
                Err(ConnectError::Config(m)) => assert!(m.contains(words), "{m}"),
                other => panic!("{:?}", other.err()),
            };
        says(&dir.path().join("none.db"), &table("v"), "id", "unable to open");
        says(&path, &table("w"), "id", "no such table");
        says(
            &path,
            &What::Query("SELECT id FROM v WHERE id = ?1".into()),
            "who",
            "no column `who`; the query gives id",
        );
        says(&path, &What::Query("SELECT id FROM v".into()), "id", "has 0 parameters");
        assert!(!dir.path().join("none.db").exists(), "it is only read");
    }

    #[test]
    fn a_query_that_runs_too_long_is_stopped() {
        let (_dir, path) = database();
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) \
                   SELECT count(*) AS id FROM n, json_each(?1)";
        let p = SqliteProvider::open(&path, &What::Query(sql.into()), "id").unwrap();
        let begun = Instant::now();
        match p.fetch(&keys(&["1"]), Duration::from_millis(30)) {
            Err(LookupError::Unavailable(m)) => assert!(m.contains("too long"), "{m}"),
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
