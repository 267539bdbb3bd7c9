//! Rows over REST: what is documented of listing a table and of a query's result, as far as anybody here uses it. Of SQL it knows
//! `SELECT * FROM table` alone. Pages are small, so that every table has several.

use super::rest::{Answer, error};
use super::table::{Row, Tables};
use serde_json::{Value, json};

/// Rows in a page, however many are asked for.
pub const PAGE_ROWS: usize = 100;

/// A query that was begun: what it saw then.
pub(super) struct Job {
    schema: Value,
    rows: Vec<Row>,
    /// How many more answers say that it still runs.
    runs_for: u64,
}

/// What follows the `?` of a URL.
struct Parameters<'a>(&'a str);

impl Parameters<'_> {
    fn get(&self, name: &str) -> &str {
        let each = self.0.split('&').filter_map(|pair| pair.split_once('='));
        each.into_iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    fn from(&self) -> usize {
        self.get("pageToken").trim_start_matches("at").parse().unwrap_or(0)
    }
}

/// `tabledata.list`.
pub(super) fn list(tables: &Tables, name: &str, query: &str) -> Answer {
    let Some(table) = tables.tables.get(name) else {
        return error(404, "notFound", &format!("Not found: Table {name}"));
    };
    let parameters = Parameters(query);
    if parameters.get("formatOptions.useInt64Timestamp") != "true" {
        return error(400, "invalid", "this one writes instants as whole numbers only");
    }
    let rows = tables.rows(name);
    let mut page = page(&table.resource["schema"], &rows, parameters.from());
    page["kind"] = "bigquery#tableDataList".into();
    (200, page)
}

/// `jobs.query`.
pub(super) fn query(tables: &mut Tables, project: &str, body: &Value) -> Answer {
    let text = body["query"].as_str().unwrap_or_default();
    let dataset = body["defaultDataset"]["datasetId"].as_str().unwrap_or_default();
    let table = text.trim().trim_end_matches(';').strip_prefix("SELECT * FROM ").map(str::trim);
    let Some(table) = table.filter(|_| body["useLegacySql"] == false) else {
        return error(400, "invalidQuery", "Syntax error: this one knows SELECT * FROM table alone");
    };
    let name = format!("projects/{project}/datasets/{dataset}/tables/{table}");
    let Some(found) = tables.tables.get(&name) else {
        return error(
            404,
            "notFound",
            &format!("Not found: Table {project}:{dataset}.{table} was not found"),
        );
    };
    let schema = found.resource["schema"].clone();
    if body["dryRun"] == true {
        return (200, json!({"jobComplete": true, "schema": schema}));
    }
    let job = Job { schema, rows: tables.rows(&name), runs_for: tables.queries_run_for };
    let id = format!("job{}", tables.next());
    let answer = job.answer(project, &id, 0);
    tables.jobs.insert(id, job);
    (200, answer)
}

/// `jobs.getQueryResults`.
pub(super) fn results(tables: &mut Tables, project: &str, id: &str, query: &str) -> Answer {
    let Some(job) = tables.jobs.get_mut(id) else {
        return error(404, "notFound", &format!("Not found: Job {project}:{id}"));
    };
    if Parameters(query).get("location") != "EU" {
        return error(404, "notFound", &format!("Not found: Job {project}:{id} is not there"));
    }
    job.runs_for = job.runs_for.saturating_sub(1);
    (200, job.answer(project, id, Parameters(query).from()))
}

impl Job {
    fn answer(&self, project: &str, id: &str, from: usize) -> Value {
        let is_complete = self.runs_for == 0;
        let mut answer = if is_complete { page(&self.schema, &self.rows, from) } else { json!({}) };
        answer["jobComplete"] = is_complete.into();
        answer["jobReference"] = json!({"projectId": project, "jobId": id, "location": "EU"});
        if is_complete {
            answer["schema"] = self.schema.clone();
        }
        answer
    }
}

fn page(schema: &Value, rows: &[Row], from: usize) -> Value {
    let until = rows.len().min(from + PAGE_ROWS);
    let names: Vec<&str> =
        schema["fields"].as_array().into_iter().flatten().filter_map(|f| f["name"].as_str()).collect();
    let cell = |row: &Row, name: &str| json!({"v": row.get(name).map_or(Value::Null, shown)});
    let row = |row: &Row| json!({"f": names.iter().map(|name| cell(row, name)).collect::<Vec<_>>()});
    let mut page = json!({"totalRows": rows.len().to_string()});
    // An empty list is left out.
    if from < until {
        page["rows"] = rows[from..until].iter().map(row).collect();
    }
    if until < rows.len() {
        page["pageToken"] = format!("at{until}").into();
    }
    page
}

/// As REST shows a value: as text, all but null and lists.
fn shown(value: &Value) -> Value {
    match value {
        Value::Null | Value::String(_) => value.clone(),
        Value::Array(each) => each.iter().map(|v| json!({"v": shown(v)})).collect(),
        other => other.to_string().into(),
    }
}
