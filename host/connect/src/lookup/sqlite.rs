//! Rows of a SQLite table or query, many keys a call.
//!
//! Keys are text. A column without a type compares text with numbers by kind, so of a table a key that is a number is asked for
//! as one, too; an index on the column serves both. A query says itself how it compares.
//!
//! Invariants: the database is only read; a query that runs past its time is stopped; a connection that failed is not used
//! again.

use super::bounds::ROW_BYTES_MAX;
use super::{Fetched, LookupError, Provider};
use crate::ConnectError;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde_json::Value;
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
    /// Whether keys that are numbers are asked for as such, too.
    numbers: bool,
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
        let provider = SqliteProvider {
            path: path.to_owned(),
            sql,
            key: key.to_owned(),
            numbers: matches!(what, What::Table(_)),
            idle: Mutex::new(Vec::new()),
        };
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

    fn ask(&self, db: &Connection, keys: &[Arc<str>]) -> Result<Vec<Fetched>, LookupError> {
        let err = |e: rusqlite::Error| self.kind(&e);
        let texts = keys.iter().map(|k| Value::from(&**k));
        let numbers = keys.iter().filter(|_| self.numbers).filter_map(|k| number(k));
        let list = Value::from_iter(texts.chain(numbers)).to_string();
        let mut statement = db.prepare_cached(&self.sql).map_err(err)?;
        let key = self.key_column(&statement).map_err(LookupError::Refused)?;
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut found: HashMap<String, Fetched> = HashMap::new();
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
            let row = Value::Object(object).to_string();
            let fetched = if row.len() > ROW_BYTES_MAX {
                let (path, n) = (self.path.display(), row.len());
                let why =
                    format!("{path}: the row of `{of}` has {n} bytes, at most {ROW_BYTES_MAX} are taken");
                Err(LookupError::Unusable(why))
            } else {
                Ok(Some(row.into()))
            };
            found.insert(of, fetched);
        }
        Ok(keys.iter().map(|k| found.remove(&**k).unwrap_or(Ok(None))).collect())
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

/// The number that a key is, if it stands for one as SQLite and JSON write it.
fn number(key: &str) -> Option<Value> {
    let number: serde_json::Number = key.parse().ok()?;
    (number.to_string() == key).then_some(Value::Number(number))
}

fn json(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => n.into(),
        ValueRef::Real(n) => n.into(),
        ValueRef::Text(t) => String::from_utf8_lossy(t).into(),
        // JSON has no bytes: as SQLite itself writes them, in hex.
        ValueRef::Blob(b) => tidemill_engine::outbox::hex(b).into(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Provider for SqliteProvider {
    fn fetch(&self, keys: &[Arc<str>], timeout: Duration) -> Result<Vec<Fetched>, LookupError> {
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
        let texts: Vec<Option<&str>> = rows.iter().map(|r| r.as_ref().unwrap().as_deref()).collect();
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
        assert_eq!(rows[0].as_ref().unwrap().as_deref(), Some(r#"{"s":"GOLD","who":"u1"}"#));
    }

    /// A key is found by its text, whatever its column holds, and through the column's index.
    #[test]
    fn keys_are_found_in_columns_of_every_type() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.db");
        let db = Connection::open(&path).unwrap();
        for (table, kind) in [("none", ""), ("int", "INTEGER"), ("text", "TEXT"), ("num", "NUMERIC")] {
            db.execute_batch(&format!(
                "CREATE TABLE {table} (id {kind}, n); CREATE INDEX {table}_id ON {table} (id);
                 INSERT INTO {table} VALUES (7, 1), ('x', 2), (-12, 3), (1.5, 4), ('007', 5);"
            ))
            .unwrap();
            let p = SqliteProvider::open(&path, &What::Table(table.into()), "id").unwrap();
            let rows = p.fetch(&keys(&["7", "x", "-12", "1.5", "8", "7.0"]), LONG).unwrap();
            let n = |f: &Fetched| {
                let row: Value = serde_json::from_str(f.as_ref().unwrap().as_ref()?).unwrap();
                row["n"].as_i64()
            };
            // A number column takes '007' for the number 7; which of the two rows holds is the table's own affair.
            let seven = if ["int", "num"].contains(&table) { n(&rows[0]) } else { Some(1) };
            let found: Vec<Option<i64>> = rows.iter().map(n).collect();
            assert_eq!(found, [seven, Some(2), Some(3), Some(4), None, None], "{table}");
            assert!(found[0].is_some(), "{table}");
            let plan: String =
                db.query_row(&format!("EXPLAIN QUERY PLAN {}", p.sql), ["[\"7\",7]"], |r| r.get(3)).unwrap();
            assert!(plan.contains(&format!("USING INDEX {table}_id")), "{table}: {plan}");
        }
    }

    #[test]
    fn a_row_that_is_too_long_fails_its_key_alone() {
        let (_dir, path) = database();
        let db = Connection::open(&path).unwrap();
        db.execute("UPDATE v SET segment = ?1 WHERE id = 22", ["x".repeat(ROW_BYTES_MAX)]).unwrap();
        let p = SqliteProvider::open(&path, &What::Table("v".into()), "id").unwrap();
        let rows = p.fetch(&keys(&["22", "1", "3"]), LONG).unwrap();
        let [Err(LookupError::Unusable(why)), Ok(Some(_)), Ok(None)] = &*rows else { panic!("{rows:?}") };
        assert!(why.contains("the row of `22` has"), "{why}");
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
