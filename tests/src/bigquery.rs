//! What the tests' BigQuery holds, as they compare it with what others hold.

use crate::{Stored, stored};
use serde_json::Value;
use tidemill_services::bigquery::{BigQuery, Row as Cells};

/// A sink of this name to a table of the dataset `clicks` in the project `p`.
#[must_use]
pub fn sink(server: &BigQuery, name: &str, table: &str, more: &str) -> String {
    format!(
        "\n[sink.{name}]\nkind = \"bigquery\"\nproject = \"p\"\ndataset = \"clicks\"\ntable = \"{table}\"\n\
         endpoint = \"{0}\"\nstorage_endpoint = \"{0}\"\n{more}\n",
        server.endpoint()
    )
}

/// A row of sessions as the other sinks write it.
#[must_use]
pub fn as_line(cells: &Cells) -> Stored {
    let mut line = cells.clone();
    for (from, to) in [("start_time", "start_ms"), ("end_time", "end_ms")] {
        let us = line.remove(from).unwrap().as_i64().unwrap();
        line.insert(to.to_owned(), us.div_euclid(1_000).into());
    }
    let fields = line["fields"].as_str().unwrap();
    line["fields"] = serde_json::from_str(fields).unwrap();
    line.entry("reason").or_insert(Value::Null);
    stored(&Value::Object(line).to_string())
}

/// What readers see of a table of sessions, retracted rows too.
#[must_use]
pub fn table(server: &BigQuery, table: &str) -> Vec<Stored> {
    server.rows(table).iter().map(as_line).collect()
}
