//! How a table or a query's result is read: page by page, each row as it is shown over REST into an object.
//!
//! Text stays text, and so do numbers that no JSON number holds (`NUMERIC`, `BIGNUMERIC`), bytes (in base64), dates and times as
//! BigQuery writes them; a `TIMESTAMP` is RFC 3339 in UTC, `JSON` is what it says, a record an object, a repeated column an array.

use super::super::bounds::{CACHE_ENTRY_BYTES, FILE_BYTES_MAX, PAGE_ROWS, READS_MAX, ROW_BYTES_MAX};
use super::{Row, Table};
use crate::ConnectError;
use crate::bigquery::{Client, Dataset};
use serde_json::{Map, Value, json};
use std::collections::hash_map::Entry;

/// What to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// All columns of a table.
    Table(String),
    /// A query in GoogleSQL. Tables without a dataset are those of the lookup's.
    Query(String),
}

/// Where rows come from.
pub(super) struct Source {
    what: What,
    key: String,
    location: Option<String>,
    dataset: String,
    shown: String,
}

/// Rows as they come in.
#[derive(Default)]
pub(super) struct Rows {
    table: Table,
    bytes: usize,
}

/// Nothing of it is used if the table was another at the end.
enum Listed {
    Whole(Table),
    Changed,
}

impl Source {
    pub(super) fn new(dataset: &Dataset, what: What, key: String) -> Source {
        let of = match &what {
            What::Table(table) => format!(", table {table}"),
            What::Query(_) => ", the lookup's query".to_owned(),
        };
        let shown = format!("{}{of}", dataset.place());
        Source { what, key, location: dataset.location.clone(), dataset: dataset.dataset.clone(), shown }
    }

    /// What messages call it.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    fn wrong(&self, why: &str) -> ConnectError {
        ConnectError::Config(format!("{}: {why}", self.shown))
    }

    /// Whether it is there and has the key; a query is only planned.
    pub(super) async fn probe(&self, client: &Client) -> Result<(), ConnectError> {
        match &self.what {
            What::Table(table) => {
                let resource = self.resource(client, table).await?;
                self.columns(&resource["schema"]).map(drop)
            }
            What::Query(query) => {
                let mut job = self.job(query);
                job["dryRun"] = true.into();
                let answer = client.query(&job).await?;
                self.columns(&answer["schema"]).map(drop)
            }
        }
    }

    pub(super) async fn read(&self, client: &Client) -> Result<Table, ConnectError> {
        match &self.what {
            What::Query(query) => self.read_query(client, query).await,
            What::Table(table) => {
                for _ in 0..READS_MAX {
                    if let Listed::Whole(table) = self.list(client, table).await? {
                        return Ok(table);
                    }
                }
                let why = format!("{}: it changed while it was read, {READS_MAX} times", self.shown);
                Err(ConnectError::Unavailable(why))
            }
        }
    }

    async fn resource(&self, client: &Client, table: &str) -> Result<Value, ConnectError> {
        let found = client.table(table).await?;
        let resource = found.ok_or_else(|| self.wrong("there is no such table"))?;
        if !matches!(resource["type"].as_str(), None | Some("TABLE" | "SNAPSHOT")) {
            return Err(self.wrong("it cannot be listed, being no plain table; write a `query` of it"));
        }
        Ok(resource)
    }

    async fn list(&self, client: &Client, table: &str) -> Result<Listed, ConnectError> {
        let before = self.resource(client, table).await?;
        let columns = self.columns(&before["schema"])?;
        let mut rows = Rows::default();
        let mut token = String::new();
        loop {
            let page = client.list(table, PAGE_ROWS, &token).await?;
            self.take(&mut rows, &columns, &page)?;
            match page["pageToken"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut token),
                _ => break,
            }
        }
        let after = self.resource(client, table).await?;
        let same = ["lastModifiedTime", "etag", "schema"].iter().all(|k| before[k] == after[k]);
        Ok(if same { Listed::Whole(rows.table) } else { Listed::Changed })
    }

    fn job(&self, query: &str) -> Value {
        let mut job = json!({
            "query": query,
            "useLegacySql": false,
            "defaultDataset": {"datasetId": self.dataset},
            "maxResults": PAGE_ROWS,
            "formatOptions": {"useInt64Timestamp": true},
        });
        if let Some(location) = &self.location {
            job["location"] = location.as_str().into();
        }
        job
    }

    async fn read_query(&self, client: &Client, query: &str) -> Result<Table, ConnectError> {
        let mut page = client.query(&self.job(query)).await?;
        let job = page["jobReference"].clone();
        let (mut rows, mut columns) = (Rows::default(), None);
        let mut token = String::new();
        loop {
            // It is waited for as long as it runs; each answer, yes or not yet, comes in its time.
            if page["jobComplete"] == true {
                let columns = match &mut columns {
                    Some(columns) => columns,
                    none => none.insert(self.columns(&page["schema"])?),
                };
                self.take(&mut rows, columns, &page)?;
                match page["pageToken"].as_str() {
                    Some(next) if !next.is_empty() => next.clone_into(&mut token),
                    _ => return Ok(rows.table),
                }
            }
            page = client.results(&job, PAGE_ROWS, &token).await?;
        }
    }

    fn columns(&self, schema: &Value) -> Result<Vec<Column>, ConnectError> {
        let columns = Column::all(&schema["fields"]);
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        let Some(key) = columns.iter().find(|c| c.name == self.key) else {
            let why = format!("there is no column `{}`; its columns are {}", self.key, names.join(", "));
            return Err(self.wrong(&why));
        };
        if key.is_repeated || !key.fields.is_empty() || matches!(key.kind.as_str(), "FLOAT" | "JSON") {
            return Err(self.wrong(&format!("the column `{}` cannot be a key: it is {}", self.key, key.kind)));
        }
        Ok(columns)
    }

    /// Takes the rows of a page.
    fn take(&self, rows: &mut Rows, columns: &[Column], page: &Value) -> Result<(), ConnectError> {
        for row in page["rows"].as_array().into_iter().flatten() {
            let cells = row["f"].as_array().map(Vec::as_slice).unwrap_or_default();
            if cells.len() != columns.len() {
                let why = format!("a row has {} cells, its schema {} columns", cells.len(), columns.len());
                return Err(ConnectError::Unavailable(format!("{}: {why}", self.shown)));
            }
            let object = object(columns, cells).map_err(|why| self.wrong(&why))?;
            let key = match object.get(&self.key) {
                Some(Value::String(text)) => text.clone(),
                // As in SQL, it is nobody's.
                None | Some(Value::Null) => continue,
                Some(other) => other.to_string(),
            };
            rows.put(key, Value::Object(object).to_string()).map_err(|why| self.wrong(&why))?;
        }
        Ok(())
    }
}

impl Rows {
    fn put(&mut self, key: String, row: String) -> Result<(), String> {
        if row.len() > ROW_BYTES_MAX {
            return Err(format!(
                "the row of `{key}` has {} bytes, at most {ROW_BYTES_MAX} are taken",
                row.len()
            ));
        }
        self.bytes += key.len() + row.len() + CACHE_ENTRY_BYTES as usize;
        if self.bytes > FILE_BYTES_MAX {
            return Err(format!(
                "it takes more than {} MiB of memory; a table of this size belongs into Bigtable or Postgres",
                FILE_BYTES_MAX >> 20
            ));
        }
        match self.table.entry(key.into()) {
            // Rows have no order, so neither would be the one that is meant.
            Entry::Occupied(e) => Err(format!("the key `{}` stands in more than one row", e.key())),
            Entry::Vacant(e) => {
                e.insert(Row::from(row));
                Ok(())
            }
        }
    }
}

/// A column of a schema.
struct Column {
    name: String,
    kind: String,
    is_repeated: bool,
    fields: Vec<Column>,
}

impl Column {
    fn all(fields: &Value) -> Vec<Column> {
        let text = |f: &Value, name: &str| f[name].as_str().unwrap_or_default().to_owned();
        let one = |f: &Value| Column {
            name: text(f, "name"),
            kind: text(f, "type"),
            is_repeated: f["mode"] == "REPEATED",
            fields: Column::all(&f["fields"]),
        };
        fields.as_array().into_iter().flatten().map(one).collect()
    }

    fn value(&self, shown: &Value) -> Result<Value, String> {
        if !self.is_repeated {
            return self.one(shown);
        }
        let each = shown.as_array().into_iter().flatten();
        each.map(|element| self.one(&element["v"])).collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    fn one(&self, shown: &Value) -> Result<Value, String> {
        if shown.is_null() {
            return Ok(Value::Null);
        }
        if !self.fields.is_empty() {
            let cells = shown["f"].as_array().map(Vec::as_slice).unwrap_or_default();
            return object(&self.fields, cells).map(Value::Object);
        }
        let wrong = || format!("column `{}` has {shown}, which is no {}", self.name, self.kind);
        let text = shown.as_str().ok_or_else(wrong)?;
        let read = match self.kind.as_str() {
            "INTEGER" | "INT64" => text.parse::<i64>().ok().map(Value::from),
            // `NaN` and `Infinity` are no numbers of JSON.
            "FLOAT" | "FLOAT64" => text.parse::<f64>().ok().map(Value::from),
            "BOOLEAN" | "BOOL" => text.parse::<bool>().ok().map(Value::from),
            "JSON" => serde_json::from_str(text).ok(),
            "TIMESTAMP" => text.parse::<i64>().ok().and_then(instant),
            _ => Some(text.into()),
        };
        read.ok_or_else(wrong)
    }
}

fn object(columns: &[Column], cells: &[Value]) -> Result<Map<String, Value>, String> {
    columns.iter().zip(cells).map(|(c, cell)| Ok((c.name.clone(), c.value(&cell["v"])?))).collect()
}

/// Of microseconds since 1970.
fn instant(micros: i64) -> Option<Value> {
    jiff::Timestamp::from_microsecond(micros).ok().map(|t| t.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let column = |name: &str, kind: &str| json!({"name": name, "type": kind});
        let mut fields: Vec<Value> =
            ["STRING", "INTEGER", "FLOAT", "BOOLEAN", "TIMESTAMP", "NUMERIC", "JSON"]
                .iter()
                .map(|kind| column(&kind.to_lowercase(), kind))
                .collect();
        fields.push(json!({"name": "list", "type": "INTEGER", "mode": "REPEATED"}));
        fields.push(json!({"name": "record", "type": "RECORD", "fields": [column("a", "STRING"), column("b", "INTEGER")]}));
        Column::all(&Value::Array(fields))
    }

    #[test]
    fn values_are_what_they_are_in_json() {
        let cell = |v: Value| json!({"v": v});
        let cells = [
            cell("x".into()),
            cell("-9223372036854775808".into()),
            cell("1.5E3".into()),
            cell("true".into()),
            cell("1700000000123456".into()),
            cell("12345678901234567890.5".into()),
            cell("{\"a\": [1, null]}".into()),
            cell(json!([{"v": "1"}, {"v": "2"}])),
            cell(json!({"f": [{"v": "y"}, {"v": null}]})),
        ];
        let row = Value::Object(object(&columns(), &cells).unwrap());
        let expected = json!({
            "string": "x", "integer": i64::MIN, "float": 1500.0, "boolean": true,
            "timestamp": "2023-11-14T22:13:20.123456Z", "numeric": "12345678901234567890.5",
            "json": {"a": [1, null]}, "list": [1, 2], "record": {"a": "y", "b": null},
        });
        assert_eq!(row, expected);
        let nothing: Vec<Value> = cells.iter().map(|_| cell(Value::Null)).collect();
        let row = object(&columns(), &nothing).unwrap();
        assert!(row.iter().all(|(k, v)| v.is_null() || (k == "list" && *v == json!([]))), "{row:?}");
        for (kind, text) in [("INTEGER", "1.5"), ("BOOLEAN", "yes"), ("TIMESTAMP", "1.5E9"), ("JSON", "{")] {
            let column = Column::all(&json!([{"name": "c", "type": kind}]));
            let said = column[0].value(&text.into());
            assert!(said.is_err_and(|why| why.contains("column `c`")), "{kind}");
        }
        assert_eq!(
            Column::all(&json!([{"name": "c", "type": "FLOAT"}]))[0].value(&"NaN".into()),
            Ok(Value::Null)
        );
    }

    #[test]
    fn rows_have_bounds_and_keys_of_their_own() {
        let mut rows = Rows::default();
        assert_eq!(rows.put("a".into(), "{}".into()), Ok(()));
        assert!(
            rows.put("a".into(), "{}".into())
                .is_err_and(|why| why.contains("`a` stands in more than one row"))
        );
        let long = "x".repeat(ROW_BYTES_MAX);
        assert!(rows.put("b".into(), format!("{long}x")).is_err_and(|why| why.contains("at most")));
        let most = FILE_BYTES_MAX / (ROW_BYTES_MAX + CACHE_ENTRY_BYTES as usize);
        // The same length without the memory.
        rows.bytes = (most - 1) * (ROW_BYTES_MAX + CACHE_ENTRY_BYTES as usize);
        assert_eq!(rows.put("c".into(), long.clone()), Ok(()));
        let said = (0..9).find_map(|n| rows.put(n.to_string(), long.clone()).err());
        assert!(said.is_some_and(|why| why.contains("more than 256 MiB of memory")));
    }
}
