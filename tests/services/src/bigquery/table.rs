//! Tables as this BigQuery keeps them: their resource as REST shows it, and the newest change of each key.
//!
//! A change holds if its sequence number is greater than that of the key's last one; so a deleted key is remembered with the
//! number of its deletion, until [`Tables::forget_deleted`].

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A row by the names of its columns; those that are null are left out.
pub type Row = Map<String, Value>;

/// Types of columns by the names that REST gives back, with the other names that it takes.
const TYPES: [(&str, &[&str]); 8] = [
    ("STRING", &[]),
    ("BYTES", &[]),
    ("INTEGER", &["INT64"]),
    ("FLOAT", &["FLOAT64"]),
    ("BOOLEAN", &["BOOL"]),
    ("TIMESTAMP", &[]),
    ("JSON", &[]),
    ("NUMERIC", &[]),
];

/// The type as REST gives it back, if there is one of this name.
pub(super) fn canonical(kind: &str) -> Option<&'static str> {
    let kind = kind.to_ascii_uppercase();
    TYPES
        .iter()
        .find(|(name, others)| *name == kind || others.contains(&kind.as_str()))
        .map(|(name, _)| *name)
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) is_required: bool,
}

/// How a change is ordered among those of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// As it arrived.
    Arrival(u64),
    /// By its sequence number, section by section.
    Sections(Vec<u64>),
}

/// What a change makes of its key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    Upsert(Row),
    Delete,
}

/// One table.
pub(super) struct Table {
    /// As REST shows it.
    pub(super) resource: Value,
    pub(super) columns: Vec<Column>,
    /// Names of the columns of the primary key.
    pub(super) key: Vec<String>,
    /// Rises with each change of the schema.
    pub(super) schema_version: u64,
    changes: BTreeMap<String, (Order, Change)>,
    plain: Vec<Row>,
    /// Rows that arrived, whatever became of them.
    pub(super) arrived: u64,
}

impl Table {
    /// Of a resource that was checked.
    pub(super) fn new(resource: Value) -> Table {
        let mut table = Table {
            resource: Value::Null,
            columns: Vec::new(),
            key: Vec::new(),
            schema_version: 0,
            changes: BTreeMap::new(),
            plain: Vec::new(),
            arrived: 0,
        };
        table.put(resource);
        table
    }

    /// Exchanges the resource, not the rows.
    pub(super) fn put(&mut self, resource: Value) {
        let columns = columns_of(&resource);
        self.schema_version += u64::from(columns != self.columns);
        self.columns = columns;
        let key = resource["tableConstraints"]["primaryKey"]["columns"].as_array();
        self.key = key.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        self.resource = resource;
    }

    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name.eq_ignore_ascii_case(name))
    }

    /// The key of a row, as text; none if one of its columns is null.
    pub(super) fn key_of(&self, row: &Row) -> Option<String> {
        let parts: Option<Vec<&Value>> = self.key.iter().map(|name| row.get(name)).collect();
        parts.map(|p| json!(p).to_string())
    }

    /// A change holds if none that is greater or equal came before it.
    pub(super) fn change(&mut self, key: String, order: Order, change: Change) {
        match self.changes.get_mut(&key) {
            Some(held) if held.0 >= order => {}
            Some(held) => *held = (order, change),
            None => {
                self.changes.insert(key, (order, change));
            }
        }
    }

    /// Exchanges the rows that are no changes.
    pub(super) fn load(&mut self, rows: Vec<Row>) {
        self.plain = rows;
    }

    pub(super) fn insert(&mut self, row: Row) {
        self.plain.push(row);
    }

    /// The rows that hold, by key, with columns that the schema has no more.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Row> {
        let changed = self.changes.values().filter_map(|(_, change)| match change {
            Change::Upsert(row) => Some(row),
            Change::Delete => None,
        });
        self.plain.iter().chain(changed)
    }

    /// What readers see, by key; columns that the schema has no more are not seen.
    fn rows(&self) -> Vec<Row> {
        let seen = |row: &Row| -> Row {
            row.iter()
                .filter(|(name, _)| self.column(name).is_some())
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect()
        };
        self.kept().map(seen).collect()
    }
}

/// The columns of a resource that was checked.
fn columns_of(resource: &Value) -> Vec<Column> {
    let fields = resource["schema"]["fields"].as_array();
    let column = |f: &Value| Column {
        name: f["name"].as_str().unwrap_or_default().to_owned(),
        kind: canonical(f["type"].as_str().unwrap_or_default()).unwrap_or("STRING"),
        is_required: f["mode"] == "REQUIRED",
    };
    fields.into_iter().flatten().map(column).collect()
}

/// All that this BigQuery holds.
#[derive(Default)]
pub(super) struct Tables {
    /// `projects/P/datasets/D`, and where it is.
    pub(super) datasets: BTreeMap<String, String>,
    /// `projects/P/datasets/D/tables/T`.
    pub(super) tables: BTreeMap<String, Table>,
    /// Counts what must differ each time: entity tags, orders of arrival.
    pub(super) count: u64,
    /// Keys that stood more than once in one request.
    pub(super) twice_in_a_request: u64,
    /// Queries that were begun, by name.
    pub(super) jobs: BTreeMap<String, super::read::Job>,
    /// How many answers say of a new query that it still runs.
    pub(super) queries_run_for: u64,
}

impl Tables {
    pub(super) fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    pub(super) fn rows(&self, name: &str) -> Vec<Row> {
        self.tables.get(name).map(Table::rows).unwrap_or_default()
    }

    /// As if the time had passed for which deleted keys are remembered.
    pub(super) fn forget_deleted(&mut self) {
        for table in self.tables.values_mut() {
            table.changes.retain(|_, (_, change)| *change != Change::Delete);
        }
    }
}
