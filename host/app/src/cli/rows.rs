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

use super::out::Failure;
use crate::config::{Pipeline, Plan, Sink, SinkKind};

/// One session as it stands; the names of DESIGN 8.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    /// 32 hex digits.
    pub(super) session_id: String,
    /// As a reader sees it.
    pub(super) key: String,
    /// Time of the first event.
    pub(super) start_ms: i64,
    /// Time of the last event.
    pub(super) end_ms: i64,
    /// How many.
    pub(super) events: u64,
    /// `early`, `final`, `corrected`, `retracted`.
    pub(super) stage: String,
    /// With `epoch` the revision.
    pub(super) incarnation: u64,
    /// See `incarnation`.
    pub(super) epoch: u64,
    /// Why it closed.
    pub(super) reason: Option<String>,
    /// The rule.
    pub(super) plugin: String,
    /// The rule's own fields.
    pub(super) fields: Value,
}

impl From<OwnedRow> for Row {
    fn from(r: OwnedRow) -> Row {
        Row {
            session_id: r.session_id,
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

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Failure {
        let code = match e {
            ConnectError::Config(_) => 4,
            ConnectError::Conflict(_) => 6,
            ConnectError::Failed(_) => 1,
            ConnectError::Storage(_) => 5,
        };
        Failure::new(code, e.to_string(), None)
    }
}

/// Which rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Want {
    /// Only of this key.
    pub(super) key: Option<String>,
    /// Only of this stage; none: all but the retracted.
    pub(super) stage: Option<Stage>,
    /// At most so many.
    pub(super) limit: Option<u32>,
}

/// The sinks of a plan that sessions can be read from, each once.
pub(super) fn readable<'a>(plan: &'a Plan, pipelines: &[Pipeline]) -> Vec<&'a Sink> {
    let mut seen: Vec<usize> = Vec::new();
    for target in pipelines.iter().flat_map(|p| &p.to) {
        if !seen.contains(&target.sink) {
            seen.push(target.sink);
        }
    }
    seen.into_iter().filter_map(|i| plan.sinks.get(i)).filter(|s| s.kind != SinkKind::Stdout).collect()
}

/// The rows of a sink, latest start first.
pub(super) fn read(sink: &Sink, want: &Want) -> Result<Vec<Row>, Failure> {
    let mut rows = match &sink.kind {
        SinkKind::Sqlite { path, table } => from_sqlite(path, table, want)?,
        SinkKind::File { path } => from_lines(path, want)?,
        SinkKind::Stdout => {
            let message = format!("sink `{}` writes to standard output: nothing of it is kept", sink.name);
            return Err(Failure::new(4, message, None));
        }
    };
    rows.sort_by(|a, b| (b.start_ms, &b.session_id).cmp(&(a.start_ms, &a.session_id)));
    if let Some(limit) = want.limit {
        rows.truncate(limit as usize);
    }
    Ok(rows)
}

fn from_sqlite(path: &Path, table: &str, want: &Want) -> Result<Vec<Row>, Failure> {
    let reader = SqliteReader::open(path, table)?;
    let stages = want.stage.map_or(vec![Stage::Early, Stage::Final, Stage::Corrected], |s| vec![s]);
    let mut rows = Vec::new();
    for stage in stages {
        let filter = Filter {
            key: want.key.clone(),
            stage: Some(stage),
            limit: want.limit,
            newest_first: true,
            ..Filter::default()
        };
        rows.extend(reader.rows(&filter)?.into_iter().map(Row::from));
    }
    Ok(rows)
}

fn from_lines(path: &Path, want: &Want) -> Result<Vec<Row>, Failure> {
    let mut newest: HashMap<String, Row> = HashMap::new();
    each_line(path, |number, line| {
        let row: Row = serde_json::from_str(line).map_err(|e| {
            Failure::new(4, format!("{}:{number}: this is no session: {e}", path.display()), None)
        })?;
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
pub(super) fn each_line(
    path: &Path,
    mut each: impl FnMut(u64, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let unreadable = |e: std::io::Error| {
        let help = (e.kind() == ErrorKind::NotFound)
            .then(|| "has the pipeline run? `tidemill run FILE.toml`".into());
        Failure::new(4, format!("{} cannot be read: {e}", path.display()), help)
    };
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(unreadable)?);
    let mut line = String::new();
    let mut number = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line).map_err(unreadable)? == 0 || !line.ends_with('\n') {
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
pub(super) fn each_letter(path: &Path, mut each: impl FnMut(Value)) -> Result<(), Failure> {
    each_line(path, |_, line| {
        if let Ok(letter) = serde_json::from_str(line) {
            each(letter);
        }
        Ok(())
    })
}

/// A text member of a dead letter; empty if it has none.
pub(super) fn member<'a>(letter: &'a Value, name: &str) -> &'a str {
    letter.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(id: &str, key: &str, epoch: u64, stage: &str) -> String {
        format!(
            r#"{{"session_id":"{id}","key":"{key}","start_ms":{epoch},"end_ms":9,"events":1,"stage":"{stage}","incarnation":1,"epoch":{epoch},"reason":null,"plugin":"builtin:gap@1","fields":{{}}}}"#
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
