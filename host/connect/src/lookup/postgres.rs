//! Rows of a Postgres table or query, many keys a call.
//!
//! Keys are text. Of a table the key's column decides how they are compared, so that its index serves: text as text, whole
//! numbers and UUIDs as such (a key that is none has no row), anything else by its text. A query says itself how it compares.
//!
//! Invariants: a connection carries one call at a time, and one that failed is not used again; nothing is asked before the first
//! call, so a server that is away holds no start up.

use super::bounds::ROW_BYTES_MAX;
use super::{Fetched, LookupError, Provider};
use crate::ConnectError;
use crate::postgres::{Asking, Connection, Server};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_postgres::Statement;
use tokio_postgres::types::Type;

/// What to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// All columns of a table, which may have a schema before a dot.
    Table(String),
    /// A query whose only parameter `$1` is an array of the keys (`.. = ANY ($1)`).
    Query(String),
}

/// See the module's documentation.
pub struct PostgresProvider {
    server: Server,
    what: What,
    key: String,
    idle: Mutex<Vec<Link>>,
}

/// A connection, ready for calls.
struct Link {
    connection: Connection,
    statement: Statement,
    kind: KeyKind,
}

/// How the key's column is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    Text,
    Whole,
    Uuid,
    /// By its text: no index serves.
    Other,
}

impl KeyKind {
    fn of(name: &str) -> KeyKind {
        match name {
            "smallint" | "integer" | "bigint" => KeyKind::Whole,
            "uuid" => KeyKind::Uuid,
            "text" => KeyKind::Text,
            other if other.starts_with("character varying") => KeyKind::Text,
            _ => KeyKind::Other,
        }
    }

    /// Whether a key can be one of the column's.
    fn may_be(self, key: &str) -> bool {
        match self {
            // No text of Postgres has a NUL.
            KeyKind::Text | KeyKind::Other => !key.contains('\0'),
            KeyKind::Whole => key.parse::<i64>().is_ok_and(|n| n.to_string() == key),
            KeyKind::Uuid => is_uuid(key),
        }
    }

    fn condition(self, column: &str) -> String {
        match self {
            KeyKind::Text => format!("{column} = ANY ($1::text[])"),
            KeyKind::Whole => format!("{column} = ANY ($1::text[]::bigint[])"),
            KeyKind::Uuid => format!("{column} = ANY ($1::text[]::uuid[])"),
            KeyKind::Other => format!("{column}::text = ANY ($1::text[])"),
        }
    }
}

/// As Postgres writes one: other ways to write it are other keys.
fn is_uuid(key: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    key.len() == 36
        && key
            .bytes()
            .enumerate()
            .all(|(at, b)| if matches!(at, 8 | 13 | 18 | 23) { b == b'-' } else { hex(b) })
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl PostgresProvider {
    /// Of a table or query. `key` is the column that holds the key. Nothing is asked yet.
    #[must_use]
    pub fn new(server: Server, what: What, key: String) -> PostgresProvider {
        PostgresProvider { server, what, key, idle: Mutex::default() }
    }

    /// Whether the server is there, and has what is to be looked up.
    ///
    /// # Errors
    /// `Unavailable` if it is not there, `Config` if it has no such table or column, or does not let us in.
    pub fn probe(&self) -> Result<(), ConnectError> {
        let link = self.connect()?;
        self.idle().push(link);
        Ok(())
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Link, ConnectError> {
        let connection = self.server.connect()?;
        let prepared = connection.run(async |asking| {
            let (sql, kind) = self.sql(asking).await?;
            let statement = asking.within(asking.client.prepare_typed(&sql, &[Type::TEXT_ARRAY])).await?;
            Ok((statement, kind))
        });
        match prepared {
            Ok((statement, kind)) => Ok(Link { connection, statement, kind }),
            Err(e) => Err(connection.hang_up(e)),
        }
    }

    async fn sql(&self, asking: &Asking<'_>) -> Result<(String, KeyKind), ConnectError> {
        let key = quoted(&self.key);
        let select = format!("SELECT row_to_json(r)::text, r.{key}::text FROM");
        match &self.what {
            What::Query(query) => {
                let query = query.trim().trim_end_matches(';');
                Ok((format!("{select} ({query}) AS r"), KeyKind::Other))
            }
            What::Table(table) => {
                let table = table.split('.').map(quoted).collect::<Vec<_>>().join(".");
                let kind = self.kind_of_key(asking, &table).await?;
                Ok((format!("{select} {table} AS r WHERE {}", kind.condition(&format!("r.{key}"))), kind))
            }
        }
    }

    async fn kind_of_key(&self, asking: &Asking<'_>, table: &str) -> Result<KeyKind, ConnectError> {
        let sql = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a \
                   WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let rows = asking.within(asking.client.query(sql, &[&table])).await?;
        let text =
            |row: &tokio_postgres::Row, at: usize| row.try_get::<_, String>(at).map_err(|e| asking.kind(&e));
        let columns = rows.iter().map(|r| Ok((text(r, 0)?, text(r, 1)?))).collect::<Result<Vec<_>, _>>()?;
        let at = self.server.address();
        if columns.is_empty() {
            return Err(ConnectError::Config(format!("{at}: there is no table {table}")));
        }
        let found = columns.iter().find(|c| c.0 == self.key);
        found.map(|c| KeyKind::of(&c.1)).ok_or_else(|| {
            let names: Vec<&str> = columns.iter().map(|c| c.0.as_str()).collect();
            ConnectError::Config(format!(
                "{at}: table {table} has no column `{}`; its columns are {}",
                self.key,
                names.join(", ")
            ))
        })
    }

    fn ask(&self, link: &Link, keys: &[Arc<str>]) -> Result<Vec<Fetched>, ConnectError> {
        let asked: Vec<&str> = keys.iter().map(|k| &**k).filter(|k| link.kind.may_be(k)).collect();
        let mut found: HashMap<String, Fetched> = HashMap::new();
        if !asked.is_empty() {
            link.connection.run(async |asking| {
                for row in asking.within(asking.client.query(&link.statement, &[&asked])).await? {
                    let err = |e: tokio_postgres::Error| asking.kind(&e);
                    let (json, of): (String, Option<String>) =
                        (row.try_get(0).map_err(err)?, row.try_get(1).map_err(err)?);
                    let Some(of) = of else { continue };
                    let fetched = self.row(&of, json);
                    found.insert(of, fetched);
                }
                Ok(())
            })?;
        }
        Ok(keys.iter().map(|k| found.remove(&**k).unwrap_or(Ok(None))).collect())
    }

    fn row(&self, of: &str, json: String) -> Fetched {
        if json.len() <= ROW_BYTES_MAX {
            return Ok(Some(json.into()));
        }
        let (at, n) = (self.server.address(), json.len());
        Err(LookupError::Unusable(format!(
            "{at}: the row of `{of}` has {n} bytes, at most {ROW_BYTES_MAX} are taken"
        )))
    }
}

fn lookup_error(e: ConnectError) -> LookupError {
    match e {
        ConnectError::Unavailable(m) => LookupError::Unavailable(m),
        other => LookupError::Refused(other.to_string()),
    }
}

impl Provider for PostgresProvider {
    /// The time for an answer is the server's, with which it was made.
    fn fetch(&self, keys: &[Arc<str>], _: Duration) -> Result<Vec<Fetched>, LookupError> {
        let idle = self.idle().pop().filter(|link| !link.connection.is_closed());
        let link = idle.map_or_else(|| self.connect(), Ok).map_err(lookup_error)?;
        match self.ask(&link, keys) {
            Ok(rows) => {
                self.idle().push(link);
                Ok(rows)
            }
            Err(e) => Err(lookup_error(link.connection.hang_up(e))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_asked_for_where_it_can_be_one() {
        for (kind, may, may_not) in [
            ("text", "anything", "with\0nul"),
            ("character varying(20)", "anything", "\0"),
            ("integer", "-12", "012"),
            ("bigint", "9223372036854775807", "9223372036854775808"),
            ("uuid", "0123abcd-0000-4000-8000-00000000000f", "0123ABCD-0000-4000-8000-00000000000F"),
            ("date", "2026-11-30", "\0"),
        ] {
            let kind = KeyKind::of(kind);
            assert!(kind.may_be(may) && !kind.may_be(may_not), "{kind:?}");
        }
    }
}
