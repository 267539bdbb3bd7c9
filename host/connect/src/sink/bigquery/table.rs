//! The tables that the sink fills: which columns they have, how they are made, what is there already, and the mark of who may write.
//!
//! The mark is a label of the table: its key is made of pipeline and sink, its value is the incarnation. It says that the table is
//! the one that was written to, and by whom; how far it is the store alone knows.

use crate::bigquery::Schema;
use prost_types::FieldDescriptorProto;
use prost_types::field_descriptor_proto::{Label, Type};
use serde_json::{Value, json};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// The pseudo columns of change capture.
pub(super) const CHANGE_TYPE: &str = "_CHANGE_TYPE";
pub(super) const SEQUENCE: &str = "_CHANGE_SEQUENCE_NUMBER";
/// What a mark's value ends with while nobody knows whether rows are missing.
const LOST: &str = "-lost";

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// `STRING`.
    Text,
    /// `INT64`.
    Whole,
    /// `FLOAT64`.
    Float,
    /// `BOOL`.
    Truth,
    /// `TIMESTAMP`.
    Instant,
    /// `JSON`.
    Json,
}

impl ColumnKind {
    /// Those that a config may ask for, by their names in SQL.
    pub const NAMED: [(&'static str, ColumnKind); 4] = [
        ("STRING", ColumnKind::Text),
        ("INT64", ColumnKind::Whole),
        ("FLOAT64", ColumnKind::Float),
        ("BOOL", ColumnKind::Truth),
    ];

    /// As REST names it, and the other name that it may give back.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            ColumnKind::Text => ("STRING", "STRING"),
            ColumnKind::Whole => ("INTEGER", "INT64"),
            ColumnKind::Float => ("FLOAT", "FLOAT64"),
            ColumnKind::Truth => ("BOOLEAN", "BOOL"),
            ColumnKind::Instant => ("TIMESTAMP", "TIMESTAMP"),
            ColumnKind::Json => ("JSON", "JSON"),
        }
    }

    const fn proto(self) -> Type {
        match self {
            ColumnKind::Text | ColumnKind::Json => Type::String,
            ColumnKind::Whole | ColumnKind::Instant => Type::Int64,
            ColumnKind::Float => Type::Double,
            ColumnKind::Truth => Type::Bool,
        }
    }
}

/// A column of the user's wish, filled from the field of this name of what a rule says of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnColumn {
    /// Of the field and of the column.
    pub name: String,
    /// What it holds; a field that is something else leaves it null.
    pub kind: ColumnKind,
}

/// How a table is made.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TableOptions {
    /// How old what a query sees may be; `None`: what the table has, or nothing.
    pub max_staleness: Option<Duration>,
    /// Columns that rows are clustered by; none: those of the primary key.
    pub clustering: Vec<String>,
    /// Columns beside the usual ones.
    pub columns: Vec<OwnColumn>,
}

struct Column {
    name: String,
    kind: ColumnKind,
    may_be_null: bool,
}

fn column(name: &str, kind: ColumnKind) -> Column {
    Column { name: name.to_owned(), kind, may_be_null: false }
}

fn nullable(name: &str, kind: ColumnKind) -> Column {
    Column { may_be_null: true, ..column(name, kind) }
}

/// The names of the columns of sessions, which a user's own must not have.
pub const SESSION_COLUMNS: [&str; 12] = [
    "session_id",
    "pipeline",
    "key",
    "start_time",
    "end_time",
    "events",
    "stage",
    "incarnation",
    "epoch",
    "reason",
    "plugin",
    "fields",
];

/// What a table holds. The order of its columns is that of the fields of a row.
pub(super) struct Shape {
    columns: Vec<Column>,
    key: &'static [&'static str],
    options: TableOptions,
}

impl Shape {
    /// One row a session.
    pub(super) fn sessions(options: TableOptions) -> Shape {
        use ColumnKind::{Instant, Json, Text, Whole};
        let kinds = [Text, Text, Text, Instant, Instant, Whole, Text, Whole, Whole, Text, Text, Json];
        let may_be_null = |name: &str| matches!(name, "reason" | "fields");
        let usual = SESSION_COLUMNS.into_iter().zip(kinds);
        let usual = usual.map(|(n, k)| if may_be_null(n) { nullable(n, k) } else { column(n, k) });
        let own = options.columns.iter().map(|c| nullable(&c.name, c.kind));
        Shape { columns: usual.chain(own).collect(), key: &["session_id"], options }
    }

    /// One row a dead letter, named by its place in its epoch.
    pub(super) fn letters(options: TableOptions) -> Shape {
        use ColumnKind::{Json, Text, Whole};
        let columns = vec![
            column("pipeline", Text),
            column("incarnation", Whole),
            column("epoch", Whole),
            column("number", Whole),
            nullable("letter", Json),
        ];
        Shape { columns, key: &["pipeline", "incarnation", "epoch", "number"], options }
    }

    /// The columns of the user's wish.
    pub(super) fn own(&self) -> &[OwnColumn] {
        &self.options.columns
    }

    /// What rows are made of: fields are numbered from 1 on, those of the change come last.
    pub(super) fn schema(&self) -> Schema {
        let columns = self.columns.iter().map(|c| (c.name.as_str(), c.kind.proto()));
        let all = columns.chain([(CHANGE_TYPE, Type::String), (SEQUENCE, Type::String)]);
        let field = |(number, (name, kind)): (i32, (&str, Type))| FieldDescriptorProto {
            name: Some(name.to_owned()),
            number: Some(number),
            label: Some(Label::Optional as i32),
            r#type: Some(kind as i32),
            ..FieldDescriptorProto::default()
        };
        Schema {
            name: Some("TidemillRow".to_owned()),
            field: (1..).zip(all).map(field).collect(),
            ..Schema::default()
        }
    }

    /// A table that is not there yet.
    pub(super) fn resource(
        &self,
        project: &str,
        dataset: &str,
        table: &str,
        label: &str,
        mark: Mark,
    ) -> Value {
        let fields: Vec<Value> = self.columns.iter().map(field).collect();
        let clustering: Vec<&str> = match self.options.clustering.is_empty() {
            true => self.key.to_vec(),
            false => self.options.clustering.iter().map(String::as_str).collect(),
        };
        let mut resource = json!({
            "tableReference": {"projectId": project, "datasetId": dataset, "tableId": table},
            "schema": {"fields": fields},
            "tableConstraints": {"primaryKey": {"columns": self.key}},
            "clustering": {"fields": clustering},
            "labels": {label: mark.shown()},
        });
        if let Some(staleness) = self.options.max_staleness {
            resource["maxStaleness"] = interval(staleness).into();
        }
        resource
    }

    /// Whether rows fit into the table that is there; a user's own columns may stand beside ours if they may be null. Which of
    /// ours are missing and may be null, or what does not fit.
    pub(super) fn check(&self, found: &Value) -> Result<Missing, String> {
        if found["type"].as_str().is_some_and(|t| t != "TABLE") {
            return Err("it is a view or the like".to_owned());
        }
        let fields = fields_of(found);
        let mut missing = Vec::new();
        for (number, column) in self.columns.iter().enumerate() {
            let same = |f: &&Value| f["name"].as_str().is_some_and(|n| n.eq_ignore_ascii_case(&column.name));
            let Some(f) = fields.iter().find(same) else {
                if column.may_be_null {
                    missing.push(number);
                    continue;
                }
                return Err(format!("column `{}` is missing", column.name));
            };
            let (kind, (name, other)) = (f["type"].as_str().unwrap_or_default(), column.kind.names());
            if kind != name && kind != other {
                return Err(format!("column `{}` is {kind}, expected {other}", column.name));
            }
            let mode = f["mode"].as_str().unwrap_or("NULLABLE");
            if mode == "REPEATED" || (mode == "REQUIRED" && column.may_be_null) {
                return Err(format!("column `{}` is {mode} and must be able to be null", column.name));
            }
        }
        let ours = |f: &Value| {
            self.columns.iter().any(|c| f["name"].as_str().is_some_and(|n| n.eq_ignore_ascii_case(&c.name)))
        };
        if let Some(f) = fields.iter().find(|f| f["mode"] == "REQUIRED" && !ours(f)) {
            let name = f["name"].as_str().unwrap_or_default();
            return Err(format!("column `{name}` must be filled and tidemill does not know it"));
        }
        self.check_key(found)?;
        Ok(Missing(missing))
    }

    fn check_key(&self, found: &Value) -> Result<(), String> {
        let key = found["tableConstraints"]["primaryKey"]["columns"].as_array();
        let mut key: Vec<&str> = key.into_iter().flatten().filter_map(Value::as_str).collect();
        key.sort_unstable();
        let mut ours = self.key.to_vec();
        ours.sort_unstable();
        if key == ours {
            return Ok(());
        }
        let columns = self.key.join(", ");
        Err(format!(
            "its primary key is not exactly {columns}: `ALTER TABLE .. ADD PRIMARY KEY ({columns}) NOT ENFORCED`"
        ))
    }

    /// What has to be changed of a table that fits; none if nothing has.
    pub(super) fn patch(&self, found: &Value, missing: &Missing, label: &str, mark: Mark) -> Option<Value> {
        let mut patch = json!({});
        if !missing.0.is_empty() {
            let mut fields = fields_of(found).to_vec();
            fields.extend(missing.0.iter().filter_map(|n| self.columns.get(*n)).map(field));
            patch["schema"] = json!({"fields": fields});
        }
        if found["labels"][label] != mark.shown().as_str() {
            patch["labels"] = json!({label: mark.shown()});
        }
        if let Some(staleness) = self.options.max_staleness
            && found["maxStaleness"].as_str().and_then(seconds) != Some(staleness.as_secs())
        {
            patch["maxStaleness"] = interval(staleness).into();
        }
        patch.as_object().is_some_and(|p| !p.is_empty()).then_some(patch)
    }
}

/// Columns of ours that a table lacks and that may be null.
pub(super) struct Missing(Vec<usize>);

fn fields_of(found: &Value) -> &[Value] {
    found["schema"]["fields"].as_array().map_or(&[], Vec::as_slice)
}

fn field(column: &Column) -> Value {
    let mode = if column.may_be_null { "NULLABLE" } else { "REQUIRED" };
    json!({"name": column.name, "type": column.kind.names().0, "mode": mode})
}

/// An interval as SQL writes it: `years-months days hours:minutes:seconds`.
fn interval(time: Duration) -> String {
    let s = time.as_secs();
    format!("0-0 {} {}:{}:{}", s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60)
}

/// The seconds of an interval without years and months.
fn seconds(interval: &str) -> Option<u64> {
    let rest = interval.strip_prefix("0-0 ")?;
    let (days, time) = rest.split_once(' ')?;
    let mut parts = time.split(':').map(|n| n.parse::<u64>().ok());
    let (h, m, s) = (parts.next()??, parts.next()??, parts.next()??);
    Some(days.parse::<u64>().ok()? * 86_400 + h * 3_600 + m * 60 + s)
}

/// Who may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) incarnation: u64,
    /// The table is not the one that was written to before, and nobody has said yet to go on all the same.
    pub(super) is_lost: bool,
}

impl Mark {
    fn shown(self) -> String {
        format!("{}{}", self.incarnation, if self.is_lost { LOST } else { "" })
    }

    /// The one that a table has.
    pub(super) fn of(found: &Value, label: &str) -> Option<Mark> {
        let text = found["labels"][label].as_str()?;
        let (number, is_lost) = text.strip_suffix(LOST).map_or((text, false), |n| (n, true));
        Some(Mark { incarnation: number.parse().ok()?, is_lost })
    }
}

/// The label of a pipeline's sink: a name of theirs may have letters that a label must not have.
pub(super) fn label(pipeline: &str, sink: &str) -> String {
    format!("tidemill_{:016x}", xxh3_64(format!("{pipeline}\0{sink}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { incarnation: 7, is_lost: false };

    fn shape() -> Shape {
        Shape::sessions(TableOptions {
            max_staleness: Some(Duration::from_secs(600)),
            clustering: Vec::new(),
            columns: vec![OwnColumn { name: "total".into(), kind: ColumnKind::Float }],
        })
    }

    fn made() -> Value {
        shape().resource("p", "d", "t", "l", MARK)
    }

    #[test]
    fn a_table_that_was_made_fits_and_needs_no_change() {
        let shape = shape();
        let missing = shape.check(&made()).unwrap();
        assert!(missing.0.is_empty() && shape.patch(&made(), &missing, "l", MARK).is_none());
        assert_eq!(made()["maxStaleness"], "0-0 0 0:10:0");
        assert_eq!(made()["clustering"]["fields"], json!(["session_id"]));
        // Other names of the same types.
        let mut other = made();
        other["schema"]["fields"][5]["type"] = "INT64".into();
        assert!(shape.check(&other).unwrap().0.is_empty());
    }

    #[test]
    fn what_may_be_null_is_added_and_nothing_else_is_changed() {
        let shape = shape();
        let mut found = made();
        let fields = found["schema"]["fields"].as_array_mut().unwrap();
        fields.retain(|f| !matches!(f["name"].as_str().unwrap(), "reason" | "total"));
        fields.push(json!({"name": "note", "type": "STRING"}));
        let before = fields.clone();
        let missing = shape.check(&found).unwrap();
        let patch = shape.patch(&found, &missing, "l", MARK).unwrap();
        let after = patch["schema"]["fields"].as_array().unwrap();
        assert_eq!(after[..before.len()], before[..]);
        let added: Vec<(&Value, &Value)> =
            after[before.len()..].iter().map(|f| (&f["name"], &f["mode"])).collect();
        assert_eq!(added, [(&json!("reason"), &json!("NULLABLE")), (&json!("total"), &json!("NULLABLE"))]);
        assert_eq!(patch.as_object().unwrap().len(), 1);
        let next = Mark { incarnation: 8, is_lost: true };
        found["maxStaleness"] = "0-0 0 0:20:0".into();
        let patch = shape.patch(&made(), &shape.check(&made()).unwrap(), "l", next).unwrap();
        assert_eq!(patch, json!({"labels": {"l": "8-lost"}}));
        let patch = shape.patch(&found, &shape.check(&made()).unwrap(), "l", MARK).unwrap();
        assert_eq!(patch, json!({"maxStaleness": "0-0 0 0:10:0"}));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (change, words) in [
            (&(|t: &mut Value| t["type"] = "VIEW".into()) as &dyn Fn(&mut Value), "it is a view"),
            (&|t| drop(t["schema"]["fields"].as_array_mut().unwrap().remove(0)), "`session_id` is missing"),
            (&|t| t["schema"]["fields"][5]["type"] = "STRING".into(), "`events` is STRING, expected INT64"),
            (&|t| t["schema"]["fields"][9]["mode"] = "REQUIRED".into(), "`reason` is REQUIRED"),
            (&|t| t["schema"]["fields"][0]["mode"] = "REPEATED".into(), "`session_id` is REPEATED"),
            (
                &|t| {
                    let more = json!({"name": "note", "type": "STRING", "mode": "REQUIRED"});
                    t["schema"]["fields"].as_array_mut().unwrap().push(more);
                },
                "`note` must be filled",
            ),
            (&|t| t["tableConstraints"] = Value::Null, "ADD PRIMARY KEY (session_id) NOT ENFORCED"),
            (&|t| t["tableConstraints"]["primaryKey"]["columns"] = json!(["key"]), "its primary key"),
        ] {
            let mut found = made();
            change(&mut found);
            let why = shape().check(&found).err().unwrap_or_default();
            assert!(why.contains(words), "{why}, expected {words}");
        }
    }

    #[test]
    fn marks_and_intervals_come_back_as_they_were_written() {
        for mark in [MARK, Mark { incarnation: u64::MAX, is_lost: true }] {
            assert_eq!(Mark::of(&json!({"labels": {"l": mark.shown()}}), "l"), Some(mark));
        }
        assert_eq!(Mark::of(&json!({"labels": {"l": "x"}}), "l"), None);
        for s in [0, 59, 600, 3_600, 86_399, 90_061] {
            assert_eq!(seconds(&interval(Duration::from_secs(s))), Some(s));
        }
        assert_ne!(label("a", "b"), label("a\u{0}b", ""));
        assert!(label("Größe", "x").len() <= 63);
    }
}
