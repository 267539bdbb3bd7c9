//! Reading what came out: session rows from SQLite or JSON lines, dead letters from JSON lines.
//!
//! Invariant: of a session only its greatest revision is seen, and no retracted one unless asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidemill_connect::ConnectError;
use tidemill_connect::sink::sqlite::{Filter, OwnedRow, SqliteReader};
use tidemill_engine::outbox::Stage;

use crate::config::{Pipeline, Plan, Sink, SinkKind};

/// One session as it stands in a sink
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Session)]
pub(crate) struct Row {
    /// 32 hex digits.
    pub(crate) session_id: String,
    /// Whose it is.
    pub(crate) pipeline: String,
    /// As a reader sees it.
    pub(crate) key: String,
    /// Time of the first event.
    pub(crate) start_ms: i64,
    /// Time of the last event.
    pub(crate) end_ms: i64,
    /// How many.
    pub(crate) events: u64,
    /// `early`, `final`, `corrected`, `retracted`.
    pub(crate) stage: String,
    /// With `epoch` the revision.
    pub(crate) incarnation: u64,
    /// See `incarnation`.
    pub(crate) epoch: u64,
    /// Why it closed.
    pub(crate) reason: Option<String>,
    /// The rule.
    pub(crate) plugin: String,
    /// The rule's own fields.
    pub(crate) fields: Value,
}

impl From<OwnedRow> for Row {
    fn from(r: OwnedRow) -> Row {
        Row {
            session_id: r.session_id,
            pipeline: r.pipeline,
            key: r.key,
            start_ms: r.start_ms,
            end_ms: r.end_ms,
            events: r.events.unsigned_abs(),
            stage: r.stage,
            incarnation: r.incarnation.unsigned_abs(),
            epoch: r.epoch.unsigned_abs(),
            reason: r.reason,
            plugin: r.plugin,
            fields: serde_json::from_str(&r.fields).unwrap_or(Value::String(r.fields)),
        }
    }
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowsError {
    /// The sink's own words for it.
    #[error(transparent)]
    Sink(#[from] ConnectError),
    /// A file that cannot be read, or that holds something else.
    #[error("{message}")]
    Unreadable {
        /// What is wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

fn unreadable(message: String) -> RowsError {
    RowsError::Unreadable { message, help: None }
}

/// Which rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Want {
    /// Only of this pipeline, where a table says whose a row is.
    pub(crate) pipeline: Option<String>,
    /// Only of this key.
    pub(crate) key: Option<String>,
    /// Only of this stage; none: all but the retracted.
    pub(crate) stage: Option<Stage>,
    /// At most so many.
    pub(crate) limit: Option<u32>,
}

/// The sinks of a plan that sessions can be read from, each once.
pub(crate) fn readable<'a>(plan: &'a Plan, pipelines: &[Pipeline]) -> Vec<&'a Sink> {
    let mut seen: Vec<usize> = Vec::new();
    for target in pipelines.iter().flat_map(|p| &p.to) {
        if !seen.contains(&target.sink) {
            seen.push(target.sink);
        }
    }
    seen.into_iter().filter_map(|i| plan.sinks.get(i)).filter(|s| s.kind.path().is_some()).collect()
}

/// The rows of a sink, latest start first.
pub(crate) fn read(sink: &Sink, want: &Want) -> Result<Vec<Row>, RowsError> {
    let mut rows = match &sink.kind {
        SinkKind::Sqlite { path, table } => from_sqlite(path, table, want)?,
        SinkKind::File { path } => from_lines(path, want)?,
        SinkKind::Postgres { server, table } => {
            let message = format!("sink `{}` is a table of {}: ask it there", sink.name, server.address());
            let help =
                Some(format!("`SELECT * FROM {table}`, or of `{table}_current` without what was retracted"));
            return Err(RowsError::Unreadable { message, help });
        }
        SinkKind::Kafka { cluster, topic, .. } => {
            let name = &sink.name;
            let message = format!("sink `{name}` is the topic `{topic}` of Kafka at {}", cluster.address());
            let help =
                Some("read it there, committed records only (`isolation.level=read_committed`)".into());
            return Err(RowsError::Unreadable { message, help });
        }
        SinkKind::PubSub { topic } => {
            let message =
                format!("sink `{}` publishes to {}: ask a subscription of it", sink.name, topic.place());
            return Err(RowsError::Unreadable { message, help: None });
        }
        SinkKind::BigQuery { target } => {
            let message = format!("sink `{}` is a table of {}: ask it there", sink.name, target.place());
            let help = Some(format!(
                "`SELECT * FROM `{}``, `WHERE stage <> 'retracted'` without what was retracted",
                target.full_name()
            ));
            return Err(RowsError::Unreadable { message, help });
        }
        SinkKind::Stdout => {
            let name = &sink.name;
            return Err(unreadable(format!(
                "sink `{name}` writes to standard output: nothing of it is kept"
            )));
        }
    };
    rows.sort_by(|a, b| (b.start_ms, &b.session_id).cmp(&(a.start_ms, &a.session_id)));
    if let Some(limit) = want.limit {
        rows.truncate(limit as usize);
    }
    Ok(rows)
}

fn from_sqlite(path: &Path, table: &str, want: &Want) -> Result<Vec<Row>, RowsError> {
    let reader = SqliteReader::open(path, table)?;
    let stages = want.stage.map_or(vec![Stage::Early, Stage::Final, Stage::Corrected], |s| vec![s]);
    let mut rows = Vec::new();
    for stage in stages {
        let filter = Filter {
            pipeline: want.pipeline.clone(),
            key: want.key.clone(),
            stage: Some(stage),
            limit: want.limit,
            newest_first: true,
        };
        rows.extend(reader.rows(&filter)?.into_iter().map(Row::from));
    }
    Ok(rows)
}

fn from_lines(path: &Path, want: &Want) -> Result<Vec<Row>, RowsError> {
    let mut newest: HashMap<String, Row> = HashMap::new();
    each_line(path, |number, line| {
        let row: Row = serde_json::from_str(line)
            .map_err(|e| unreadable(format!("{}:{number}: this is no session: {e}", path.display())))?;
        if want.key.as_ref().is_some_and(|k| *k != row.key) {
            return Ok(());
        }
        let revision = (row.incarnation, row.epoch);
        match newest.get_mut(&row.session_id) {
            Some(known) if (known.incarnation, known.epoch) > revision => {}
            Some(known) => *known = row,
            None => {
                newest.insert(row.session_id.clone(), row);
            }
        }
        Ok(())
    })?;
    let wanted = |r: &Row| match want.stage {
        Some(stage) => r.stage == stage.name(),
        None => r.stage != Stage::Retracted.name(),
    };
    Ok(newest.into_values().filter(wanted).collect())
}

/// Every whole line of a file with its number; one without a line end is still being written.
pub(crate) fn each_line(
    path: &Path,
    mut each: impl FnMut(u64, &str) -> Result<(), RowsError>,
) -> Result<(), RowsError> {
    let cannot = |e: std::io::Error| {
        let help = (e.kind() == ErrorKind::NotFound)
            .then(|| "has the pipeline run? `tidemill run FILE.toml`".into());
        RowsError::Unreadable { message: format!("{} cannot be read: {e}", path.display()), help }
    };
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(cannot)?);
    let mut line = String::new();
    let mut number = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line).map_err(cannot)? == 0 || !line.ends_with('\n') {
            return Ok(());
        }
        number += 1;
        if line.trim_end().is_empty() {
            continue;
        }
        each(number, line.trim_end())?;
    }
}

/// Every dead letter in a file. A line that is none is passed over: the file is there to be looked at.
pub(crate) fn each_letter(path: &Path, mut each: impl FnMut(Value)) -> Result<(), RowsError> {
    each_line(path, |_, line| {
        if let Ok(letter) = serde_json::from_str(line) {
            each(letter);
        }
        Ok(())
    })
}

/// A text member of a dead letter; empty if it has none.
pub(crate) fn member<'a>(letter: &'a Value, name: &str) -> &'a str {
    letter.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(id: &str, key: &str, epoch: u64, stage: &str) -> String {
        format!(
            r#"{{"session_id":"{id}","pipeline":"p","key":"{key}","start_ms":{epoch},"end_ms":9,"events":1,"stage":"{stage}","incarnation":1,"epoch":{epoch},"reason":null,"plugin":"builtin:gap@1","fields":{{}}}}"#
        )
    }

    #[test]
    fn of_json_lines_the_greatest_revision_counts() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            line("a", "u1", 2, "final"),
            line("a", "u1", 1, "early"),
            line("b", "u1", 3, "retracted"),
            line("c", "u2", 4, "early"),
        ];
        // The last line is cut: somebody is writing it.
        write!(file, "{}\n{{\"session_id\":\"d", lines.join("\n")).unwrap();
        let ids = |want: &Want| -> Vec<String> {
            let sink = Sink {
                name: "s".to_owned(),
                at: crate::config::Spot::default(),
                path_at: crate::config::Spot::default(),
                kind: SinkKind::File { path: file.path().to_owned() },
            };
            read(&sink, want).unwrap().into_iter().map(|r| r.session_id).collect()
        };
        assert_eq!(ids(&Want::default()), ["c", "a"]);
        assert_eq!(ids(&Want { stage: Some(Stage::Retracted), ..Want::default() }), ["b"]);
        assert_eq!(ids(&Want { key: Some("u1".to_owned()), ..Want::default() }), ["a"]);
        assert_eq!(ids(&Want { limit: Some(1), ..Want::default() }), ["c"]);
    }
}
