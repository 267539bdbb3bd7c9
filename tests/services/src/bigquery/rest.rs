//! Tables over REST: what is documented of getting, creating and patching them, as far as anybody here uses it.

use super::read;
use super::table::{Table, Tables, canonical};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Columns of a primary key, and of clustering.
const KEY_MAX: usize = 16;
const CLUSTERING_MAX: usize = 4;
/// Labels of one table, and characters of a label's key or value.
const LABELS_MAX: usize = 64;
const LABEL_LENGTH_MAX: usize = 63;

/// A request as it arrived.
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    /// With what follows a `?`.
    pub(super) path: &'a str,
    pub(super) body: Value,
    /// The entity tag that must still be there.
    pub(super) if_match: Option<String>,
}

/// Status and body.
pub(super) type Answer = (u16, Value);

/// An error as Google's services write it.
pub(super) fn error(status: u16, reason: &str, message: &str) -> Answer {
    let word = match status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ALREADY_EXISTS",
        412 => "FAILED_PRECONDITION",
        503 => "UNAVAILABLE",
        _ => "INTERNAL",
    };
    let one = json!({"message": message, "domain": "global", "reason": reason});
    (status, json!({"error": {"code": status, "message": message, "status": word, "errors": [one]}}))
}

fn invalid(message: &str) -> Answer {
    error(400, "invalid", message)
}

pub(super) fn answer(tables: &mut Tables, asked: Asked<'_>) -> Answer {
    let (path, query) = asked.path.split_once('?').unwrap_or((asked.path, ""));
    let path = path.trim_start_matches("/bigquery/v2/");
    let parts: Vec<&str> = path.split('/').collect();
    match (asked.method, &parts[..]) {
        ("POST", ["projects", p, "queries"]) => return read::query(tables, p, &asked.body),
        ("GET", ["projects", p, "queries", job]) => return read::results(tables, p, job, query),
        ("GET", [of @ .., "data"]) => return read::list(tables, &of.join("/"), query),
        _ => {}
    }
    let (dataset, table) = match parts[..] {
        ["projects", p, "datasets", d, "tables"] => (format!("projects/{p}/datasets/{d}"), None),
        ["projects", p, "datasets", d, "tables", t] => (format!("projects/{p}/datasets/{d}"), Some(t)),
        _ => return error(404, "notFound", "Not found"),
    };
    if !tables.datasets.contains_key(&dataset) {
        return error(404, "notFound", &format!("Not found: Dataset {}", shown(&dataset)));
    }
    let done = match (asked.method, table) {
        ("GET", Some(table)) => get(tables, &format!("{dataset}/tables/{table}")),
        ("POST", None) => create(tables, &dataset, asked.body),
        ("PATCH", Some(table)) => patch(tables, &format!("{dataset}/tables/{table}"), asked),
        _ => Err(error(404, "notFound", "Not found")),
    };
    done.map_or_else(|refused| refused, |resource| (200, resource))
}

/// `projects/p/datasets/d/tables/t` as `p:d.t`.
fn shown(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').skip(1).step_by(2).collect();
    parts.join(":").replacen(':', "\u{0}", 1).replace(':', ".").replace('\u{0}', ":")
}

fn get(tables: &Tables, name: &str) -> Result<Value, Answer> {
    let table = tables.tables.get(name);
    table
        .map(|t| t.resource.clone())
        .ok_or_else(|| error(404, "notFound", &format!("Not found: Table {}", shown(name))))
}

fn create(tables: &mut Tables, dataset: &str, mut resource: Value) -> Result<Value, Answer> {
    let id = resource["tableReference"]["tableId"].as_str().unwrap_or_default().to_owned();
    if id.is_empty() || !id.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ')) {
        return Err(invalid(&format!("Invalid table ID \"{id}\"")));
    }
    let name = format!("{dataset}/tables/{id}");
    if tables.tables.contains_key(&name) {
        return Err(error(409, "duplicate", &format!("Already Exists: Table {}", shown(&name))));
    }
    check(&mut resource)?;
    stamp(tables, &mut resource, &name);
    tables.tables.insert(name, Table::new(resource.clone()));
    Ok(resource)
}

/// What the service itself writes into a resource.
fn stamp(tables: &mut Tables, resource: &mut Value, name: &str) {
    let dataset = name.split("/tables/").next().unwrap_or_default();
    resource["kind"] = "bigquery#table".into();
    resource["type"] = "TABLE".into();
    resource["id"] = shown(name).into();
    resource["location"] = tables.datasets.get(dataset).cloned().unwrap_or_default().into();
    resource["etag"] = format!("\"{}\"", tables.next()).into();
}

fn patch(tables: &mut Tables, name: &str, asked: Asked<'_>) -> Result<Value, Answer> {
    let before = get(tables, name)?;
    if asked.if_match.is_some_and(|tag| tag != "*" && before["etag"] != tag.as_str()) {
        return Err(error(412, "conditionNotMet", "Precondition Failed"));
    }
    let mut after = before.clone();
    for (key, value) in asked.body.as_object().into_iter().flatten() {
        if key == "labels" {
            merge_labels(&mut after, value);
        } else {
            after[key] = value.clone();
        }
    }
    check(&mut after)?;
    check_change(&before, &after)?;
    stamp(tables, &mut after, name);
    if let Some(table) = tables.tables.get_mut(name) {
        table.put(after.clone());
    }
    Ok(after)
}

/// A label that is null is taken away.
fn merge_labels(resource: &mut Value, labels: &Value) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if value.is_null() {
            if let Some(have) = resource["labels"].as_object_mut() {
                have.remove(key);
            }
        } else {
            resource["labels"][key] = value.clone();
        }
    }
}

/// What holds of every resource. Brings types into the form in which they are given back.
fn check(resource: &mut Value) -> Result<(), Answer> {
    let fields = resource["schema"]["fields"].as_array_mut();
    let mut names = BTreeSet::new();
    for field in fields.into_iter().flatten() {
        let name = field["name"].as_str().unwrap_or_default().to_owned();
        let kind = field["type"].as_str().unwrap_or_default().to_owned();
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !plain || !begins || name.to_ascii_uppercase().starts_with("_CHANGE_") {
            return Err(invalid(&format!("Invalid field name \"{name}\"")));
        }
        if !names.insert(name.to_ascii_lowercase()) {
            return Err(invalid(&format!("Field {name} already exists in schema")));
        }
        let Some(canonical) = canonical(&kind) else {
            return Err(invalid(&format!("Invalid value for type: {kind} is not a valid value")));
        };
        field["type"] = canonical.into();
        let mode = field["mode"].as_str().unwrap_or("NULLABLE").to_owned();
        if !matches!(mode.as_str(), "NULLABLE" | "REQUIRED" | "REPEATED") {
            return Err(invalid(&format!("Invalid value for mode: {mode} is not a valid value")));
        }
        field["mode"] = mode.into();
    }
    let columns = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_ascii_lowercase).collect()
    };
    let key = columns(&resource["tableConstraints"]["primaryKey"]["columns"]);
    let clustering = columns(&resource["clustering"]["fields"]);
    if key.len() > KEY_MAX || clustering.len() > CLUSTERING_MAX {
        return Err(invalid("too many columns in the primary key or the clustering"));
    }
    if let Some(none) = key.iter().chain(&clustering).find(|c| !names.contains(*c)) {
        return Err(invalid(&format!("The column {none} is not in the schema")));
    }
    check_staleness(&resource["maxStaleness"])?;
    check_labels(&resource["labels"])
}

/// An interval as SQL writes it: `years-months days hours:minutes:seconds`.
fn check_staleness(value: &Value) -> Result<(), Answer> {
    let Some(text) = value.as_str() else { return Ok(()) };
    let parts: Vec<&str> = text.split(' ').collect();
    let numbers = |part: &str, by: char, count: usize| {
        let list: Vec<&str> = part.split(by).collect();
        list.len() == count && list.iter().all(|n| n.parse::<u32>().is_ok())
    };
    let good = matches!(parts[..], [ym, d, hms] if numbers(ym, '-', 2) && numbers(d, '-', 1) && numbers(hms, ':', 3));
    if good {
        Ok(())
    } else {
        Err(invalid(&format!("Invalid value for maxStaleness: {text} is no interval")))
    }
}

fn check_labels(labels: &Value) -> Result<(), Answer> {
    let Some(labels) = labels.as_object() else { return Ok(()) };
    let plain = |c: char| c.is_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    let good = |text: &str| text.chars().count() <= LABEL_LENGTH_MAX && text.chars().all(plain);
    let wrong = labels.iter().find(|(key, value)| {
        let begins = key.starts_with(char::is_lowercase);
        !begins || !good(key) || !value.as_str().is_some_and(good)
    });
    match wrong {
        Some((key, value)) => Err(invalid(&format!("Invalid label {key}: {value}"))),
        None if labels.len() > LABELS_MAX => Err(invalid("too many labels")),
        None => Ok(()),
    }
}

/// Columns stay, with their types; what is new may be null, and what must be there may become able to be null.
fn check_change(before: &Value, after: &Value) -> Result<(), Answer> {
    let fields = |r: &Value| r["schema"]["fields"].as_array().cloned().unwrap_or_default();
    let (old, new) = (fields(before), fields(after));
    let wrong = |what: String| {
        Err(invalid(&format!("Provided Schema does not match Table {}. {what}", before["id"])))
    };
    for was in &old {
        let Some(is) = new.iter().find(|n| n["name"] == was["name"]) else {
            return wrong(format!("Field {} is missing in new schema", was["name"]));
        };
        if is["type"] != was["type"] {
            return wrong(format!(
                "Field {} has changed type from {} to {}",
                was["name"], was["type"], is["type"]
            ));
        }
        if is["mode"] != was["mode"] && !(was["mode"] == "REQUIRED" && is["mode"] == "NULLABLE") {
            return wrong(format!(
                "Field {} has changed mode from {} to {}",
                was["name"], was["mode"], is["mode"]
            ));
        }
    }
    let added = new.iter().find(|n| !old.iter().any(|o| o["name"] == n["name"]) && n["mode"] == "REQUIRED");
    match added {
        Some(field) => {
            wrong(format!("Cannot add required columns to an existing schema. (field: {})", field["name"]))
        }
        None => Ok(()),
    }
}
