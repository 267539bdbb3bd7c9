//! The tables that the sink fills, as SQL: which columns they have, what is there already, and the statements of an epoch.

use super::super::owned::quoted;
use crate::ConnectError;
use crate::postgres::Asking;
use tidemill_engine::outbox::Stage;
use tokio_postgres::types::Type;

/// Serializes those who create tables at the same time: a number that only this project uses.
const CREATE_LOCK: i64 = 0x7469_6465_6d69_6c6c;

/// A column.
pub(super) struct Column {
    name: &'static str,
    /// Its type, as `format_type` has it.
    kind: &'static str,
    may_be_null: bool,
}

const fn column(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, may_be_null: false }
}

/// What a table holds.
pub(super) struct Shape {
    columns: &'static [Column],
    key: &'static [&'static str],
    /// The columns of the staging table, after the row's number.
    staged: &'static [(&'static str, Type)],
    has_view: bool,
}

/// One row a session.
pub(super) const SESSIONS: Shape = Shape {
    columns: &[
        column("session_id", "text"),
        column("pipeline", "text"),
        column("key", "text"),
        column("start_time", "timestamp with time zone"),
        column("end_time", "timestamp with time zone"),
        column("events", "bigint"),
        column("stage", "text"),
        column("incarnation", "bigint"),
        column("epoch", "bigint"),
        Column { may_be_null: true, ..column("reason", "text") },
        column("plugin", "text"),
        column("fields", "jsonb"),
    ],
    key: &["session_id"],
    staged: &[
        ("session_id", Type::TEXT),
        ("pipeline", Type::TEXT),
        ("key", Type::TEXT),
        ("start_time", Type::TIMESTAMPTZ),
        ("end_time", Type::TIMESTAMPTZ),
        ("events", Type::INT8),
        ("stage", Type::TEXT),
        ("incarnation", Type::INT8),
        ("epoch", Type::INT8),
        ("reason", Type::TEXT),
        ("plugin", Type::TEXT),
        ("fields", Type::TEXT),
    ],
    has_view: true,
};

/// One row a dead letter, named by its place in its epoch.
pub(super) const LETTERS: Shape = Shape {
    columns: &[
        column("pipeline", "text"),
        column("incarnation", "bigint"),
        column("epoch", "bigint"),
        column("number", "bigint"),
        column("letter", "jsonb"),
    ],
    key: &["epoch", "incarnation", "number", "pipeline"],
    staged: &[
        ("pipeline", Type::TEXT),
        ("incarnation", Type::INT8),
        ("epoch", Type::INT8),
        ("letter", Type::TEXT),
    ],
    has_view: false,
};

/// The names of a table and of what stands beside it, quoted.
pub(super) struct Names {
    pub(super) table: String,
    pub(super) cursor: String,
    view: String,
    /// The view's as a reader knows it.
    view_shown: String,
}

impl Names {
    /// Of `table` or `schema.table`.
    pub(super) fn of(table: &str) -> Names {
        let (schema, name) = match table.split_once('.') {
            Some((schema, name)) => (format!("{}.", quoted(schema)), name),
            None => (String::new(), table),
        };
        let view = format!("{name}_current");
        Names {
            table: format!("{schema}{}", quoted(name)),
            cursor: format!("{schema}tidemill_cursor"),
            view: format!("{schema}{}", quoted(&view)),
            view_shown: view,
        }
    }
}

impl Shape {
    /// Types of a staged row, its number first.
    pub(super) fn types(&self) -> Vec<Type> {
        std::iter::once(Type::INT8).chain(self.staged.iter().map(|(_, t)| t.clone())).collect()
    }

    fn names(&self) -> String {
        self.columns.iter().map(|c| quoted(c.name)).collect::<Vec<_>>().join(", ")
    }

    /// Creates the staging table of this connection.
    pub(super) fn stage(&self) -> String {
        let columns: Vec<String> =
            self.staged.iter().map(|(name, t)| format!("{} {}", quoted(name), t.name())).collect();
        format!(
            "CREATE TEMPORARY TABLE IF NOT EXISTS tidemill_staging (number bigint, {}) ON COMMIT DELETE ROWS",
            columns.join(", ")
        )
    }

    /// Sends rows into it.
    pub(super) fn copy(&self) -> &'static str {
        "COPY pg_temp.tidemill_staging FROM STDIN BINARY"
    }

    /// Takes staged letters, each once.
    pub(super) fn add(&self, names: &Names) -> String {
        format!(
            "INSERT INTO {} ({}) SELECT pipeline, incarnation, epoch, number, letter::jsonb FROM pg_temp.tidemill_staging \
             ON CONFLICT DO NOTHING",
            names.table,
            self.names()
        )
    }

    /// Takes staged revisions, of each session the greatest, and that only if it is greater than what the table has. Of equal ones
    /// the first, as if they came one by one. With `retraction` those that retract, else the others: a retraction
    /// changes only stage and revision, so the row keeps the content last sent.
    pub(super) fn upsert(&self, names: &Names, retraction: bool) -> String {
        let changed = |name: &str| match retraction {
            true => matches!(name, "stage" | "incarnation" | "epoch"),
            false => name != "session_id",
        };
        let set: Vec<String> = self
            .columns
            .iter()
            .map(|c| c.name)
            .filter(|name| changed(name))
            .map(|name| format!("{0} = excluded.{0}", quoted(name)))
            .collect();
        let selected: Vec<String> = self
            .columns
            .iter()
            .map(|c| if c.kind == "jsonb" { format!("{}::jsonb", quoted(c.name)) } else { quoted(c.name) })
            .collect();
        format!(
            "INSERT INTO {table} AS was ({names}) SELECT {selected} FROM (SELECT DISTINCT ON (session_id) * \
             FROM pg_temp.tidemill_staging WHERE stage {which} '{retracted}' \
             ORDER BY session_id, incarnation DESC, epoch DESC, number) AS staged \
             ON CONFLICT (session_id) DO UPDATE SET {set} \
             WHERE (excluded.incarnation, excluded.epoch) > (was.incarnation, was.epoch)",
            table = names.table,
            names = self.names(),
            selected = selected.join(", "),
            which = if retraction { "=" } else { "<>" },
            retracted = Stage::Retracted.name(),
            set = set.join(", "),
        )
    }

    /// Creates what is missing, in the transaction that is open; whether the table itself was.
    pub(super) async fn create(
        &self,
        asking: &Asking<'_>,
        names: &Names,
        place: &str,
    ) -> Result<bool, ConnectError> {
        let lock = format!("SELECT pg_advisory_xact_lock({CREATE_LOCK})");
        asking.within(asking.client.batch_execute(&lock)).await?;
        if kind_of(asking, &names.cursor).await?.is_none() {
            let sql = format!(
                "CREATE TABLE {} (pipeline text NOT NULL, sink text NOT NULL, table_name text NOT NULL, \
                 incarnation bigint NOT NULL, epoch bigint, PRIMARY KEY (pipeline, sink, table_name))",
                names.cursor
            );
            asking.within(asking.client.batch_execute(&sql)).await?;
        }
        let is_new = kind_of(asking, &names.table).await?.is_none();
        if is_new {
            asking.within(asking.client.batch_execute(&self.definition(names))).await?;
        } else {
            self.mend(asking, names, place).await?;
        }
        if self.has_view {
            self.create_view(asking, names, place).await?;
        }
        Ok(is_new)
    }

    fn definition(&self, names: &Names) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|c| format!("{} {}{}", quoted(c.name), c.kind, if c.may_be_null { "" } else { " NOT NULL" }))
            .collect();
        format!(
            "CREATE TABLE {} ({}, PRIMARY KEY ({}))",
            names.table,
            columns.join(", "),
            self.key.join(", ")
        )
    }

    async fn create_view(&self, asking: &Asking<'_>, names: &Names, place: &str) -> Result<(), ConnectError> {
        match kind_of(asking, &names.view).await? {
            Some('v' | 'm') => Ok(()),
            Some(_) => Err(ConnectError::Config(format!(
                "{place}: `{}` is no view, and tidemill needs that name for its own; rename it or choose another `table`",
                names.view_shown
            ))),
            None => {
                let sql = format!(
                    "CREATE VIEW {} AS SELECT * FROM {} WHERE stage <> '{}'",
                    names.view,
                    names.table,
                    Stage::Retracted.name()
                );
                asking.within(asking.client.batch_execute(&sql)).await
            }
        }
    }

    /// Adds columns that are missing and may be null; anything else that does not fit is refused.
    pub(super) async fn mend(
        &self,
        asking: &Asking<'_>,
        names: &Names,
        place: &str,
    ) -> Result<(), ConnectError> {
        for c in self.check(asking, names, place).await? {
            let sql = format!("ALTER TABLE {} ADD COLUMN {} {}", names.table, quoted(c.name), c.kind);
            asking.within(asking.client.batch_execute(&sql)).await?;
        }
        Ok(())
    }

    /// Whether rows fit into the table that is there; a user's own columns may stand beside ours if they can be left
    /// out. The columns that are missing and may be null.
    pub(super) async fn check(
        &self,
        asking: &Asking<'_>,
        names: &Names,
        place: &str,
    ) -> Result<Vec<&Column>, ConnectError> {
        let wrong = |what: String| {
            Err(ConnectError::Config(format!(
                "{place}: table {} is not one that tidemill can fill: {what}; choose another `table`, or rename or \
                 mend this one",
                names.table
            )))
        };
        match kind_of(asking, &names.table).await? {
            None => return wrong("it is gone".into()),
            Some('r' | 'p') => {}
            Some(_) => return wrong("it is a view or the like".into()),
        }
        let found = columns_of(asking, names).await?;
        let mut missing = Vec::new();
        for column in self.columns {
            match found.iter().find(|f| f.name == column.name) {
                None if column.may_be_null => missing.push(column),
                None => return wrong(format!("column `{}` is missing", column.name)),
                Some(f) if f.kind != column.kind => {
                    return wrong(format!("column `{}` is {}, expected {}", f.name, f.kind, column.kind));
                }
                Some(f) if f.must && column.may_be_null => {
                    return wrong(format!("column `{}` must be able to be null", f.name));
                }
                Some(_) => {}
            }
        }
        let ours = |name: &str| self.columns.iter().any(|c| c.name == name);
        if let Some(f) = found.iter().find(|f| f.must && !f.has_default && !ours(&f.name)) {
            return wrong(format!("column `{}` must be filled and tidemill does not know it", f.name));
        }
        if !self.has_key(asking, names).await? {
            return wrong(format!("it has no unique key of exactly {}", self.key.join(", ")));
        }
        Ok(missing)
    }

    async fn has_key(&self, asking: &Asking<'_>, names: &Names) -> Result<bool, ConnectError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique \
                   AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL \
                   AND $2 = (SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\") FROM pg_attribute a \
                   WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))";
        let row = asking.within(asking.client.query_one(sql, &[&names.table, &self.key])).await?;
        row.try_get(0).map_err(|e| asking.kind(&e))
    }
}

/// A column that is there.
struct Found {
    name: String,
    kind: String,
    must: bool,
    has_default: bool,
}

async fn columns_of(asking: &Asking<'_>, names: &Names) -> Result<Vec<Found>, ConnectError> {
    let sql = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
               a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> '' FROM pg_attribute a \
               WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = asking.within(asking.client.query(sql, &[&names.table])).await?;
    let found = |row: &tokio_postgres::Row| {
        Ok(Found {
            name: row.try_get(0)?,
            kind: row.try_get(1)?,
            must: row.try_get(2)?,
            has_default: row.try_get(3)?,
        })
    };
    rows.iter().map(|row| found(row).map_err(|e| asking.kind(&e))).collect()
}

/// What has the name: `r` a table, `p` a partitioned one, `v` a view, and others; none if nothing has it.
pub(super) async fn kind_of(asking: &Asking<'_>, name: &str) -> Result<Option<char>, ConnectError> {
    let sql = "SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)";
    let row = asking.within(asking.client.query_opt(sql, &[&name])).await?;
    let kind: Option<String> = row.map(|r| r.try_get(0)).transpose().map_err(|e| asking.kind(&e))?;
    Ok(kind.and_then(|k| k.chars().next()))
}
