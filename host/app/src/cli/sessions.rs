//! `sessions`: what came out.

use std::collections::BTreeSet;
use std::io::Write;

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tidemill_engine::outbox::Stage;

use super::client::{Ask, Host};
use super::out::{self, Failure};
use super::{ConfigFile, text};
use crate::config::{Pipeline, Plan, Sink, SinkKind};
use crate::rows::{self, Row, Want};

const EXAMPLES: &str = "\
Examples:
  tidemill sessions visits.toml                          the latest sessions as a table
  tidemill sessions visits.toml --key 83.149.9.216       of one key
  tidemill sessions visits.toml --stage early            those that are still open
  tidemill sessions visits.toml --sink live --json | jq  another sink, JSON lines";

/// Characters of a key that a table shows.
const KEY_SHOWN: usize = 60;

/// Show sessions, latest first
///
/// Reads the SQLite or JSON-lines sink of the config, also while a run goes on. Of JSON lines the last revision of
/// a session is shown; retracted sessions are left out unless asked for. With a key, a host that runs is also asked what it
/// holds of it in memory.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SessionsArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Only sessions of this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only this stage: early, final, corrected or retracted
    #[arg(long, value_name = "STAGE", value_parser = stage)]
    stage: Option<Stage>,
    /// At most so many; 0 is all
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
    /// The sink to read (default: the first that takes final sessions)
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

fn stage(word: &str) -> Result<Stage, String> {
    Stage::from_name(word).ok_or_else(|| "stages are early, final, corrected and retracted".to_owned())
}

/// Runs the command.
pub(super) fn execute(args: &SessionsArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let sink = choose(&plan, args.sink.as_deref())?;
    let limit = (args.limit > 0).then_some(args.limit);
    let held = match Host::of(&plan, args.config.path())? {
        Some(host) => ask(&host, &plan, args)?,
        None => Vec::new(),
    };
    let rows =
        rows::read(sink, &Want { key: args.key.clone(), stage: args.stage, limit, ..Want::default() })?;
    let mut stdout = out::stdout();
    if args.json {
        for row in &rows {
            serde_json::to_writer(&mut stdout, row).map_err(std::io::Error::from)?;
            stdout.write_all(b"\n")?;
        }
        stdout.flush()?;
        return Ok(0);
    }
    held.iter().try_for_each(|line| writeln!(stdout, "{line}"))?;
    if rows.is_empty() {
        stdout.flush()?;
        out::note(format!("no such session in sink `{}`", sink.name));
        return Ok(0);
    }
    writeln!(stdout, "{}", table(&rows))?;
    stdout.flush()?;
    let gone: BTreeSet<&str> = rows
        .iter()
        .map(|r| r.pipeline.as_str())
        .filter(|name| plan.pipelines.iter().all(|p| p.name != *name))
        .collect();
    for name in gone {
        let name = text::foreign(name, KEY_SHOWN);
        out::note(format!(
            "this config has no pipeline `{name}`; what it wrote stays until somebody deletes it"
        ));
    }
    if limit.is_some_and(|n| rows.len() >= n as usize) {
        out::note(format!("only the latest {}; --limit 0 shows all", rows.len()));
    }
    Ok(0)
}

/// Says how the host is asked, and what it holds of a key in memory: a line a pipeline.
fn ask(host: &Host, plan: &Plan, args: &SessionsArgs) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    for pipeline in plan.pipelines.iter().filter(|p| is_asked(plan, p)) {
        let mut path = format!("/api/v1/pipelines/{}/sessions", pipeline.name);
        if let Some(key) = &args.key {
            path = format!("{path}?key={}", utf8_percent_encode(key, NON_ALPHANUMERIC));
        }
        out::note(host.curl(&Ask::get(&path)));
        if args.key.is_some() && !args.json {
            let live = &host.ask(&Ask::get(&path))?.body["live"];
            lines.push(format!("{}: {}", pipeline.name, in_memory(live)));
        }
    }
    Ok(lines)
}

/// Whether a pipeline's sessions can be asked for over HTTP.
fn is_asked(plan: &Plan, pipeline: &Pipeline) -> bool {
    let sinks = pipeline.to.iter().filter_map(|t| plan.sinks.get(t.sink));
    sinks.into_iter().any(|s| matches!(s.kind, SinkKind::Sqlite { .. }))
}

/// What a pipeline holds of a key, in words.
fn in_memory(live: &Value) -> String {
    if live.is_null() {
        return "nothing of this key is in memory".to_owned();
    }
    let events = |v: &Value| text::counted(v["events"].as_u64().unwrap_or_default(), "event");
    let at = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    let open = &live["open"];
    let open = match open.is_null() {
        true => String::new(),
        false => {
            format!("open since {}, {} until {}, and ", at(&open["start"]), events(open), at(&open["end"]))
        }
    };
    let waiting = live["waiting"].as_u64().unwrap_or_default();
    format!("in memory {open}{} whose order is not certain yet", text::counted(waiting, "event"))
}

/// The named sink, or the first that takes final sessions and can be read.
fn choose<'a>(plan: &'a Plan, name: Option<&str>) -> Result<&'a Sink, Failure> {
    let readable = rows::readable(plan, &plan.pipelines);
    let names: Vec<&str> = readable.iter().map(|s| s.name.as_str()).collect();
    let found = match name {
        Some(name) => readable.iter().find(|s| s.name == name),
        None => readable.iter().find(|s| takes_final(plan, s)).or(readable.first()),
    };
    let Some(sink) = found else {
        let message = match name {
            Some(name) => format!("`{name}` is no sink that sessions can be read from"),
            None => "no sink of this config keeps sessions that could be read".to_owned(),
        };
        let help = (!names.is_empty()).then(|| format!("there is {}", names.join(", ")));
        return Err(Failure::new(if name.is_some() { 2 } else { 4 }, message, help));
    };
    if name.is_none() && names.len() > 1 {
        out::note(format!("reading sink `{}`; --sink chooses another of {}", sink.name, names.join(", ")));
    }
    Ok(sink)
}

fn takes_final(plan: &Plan, sink: &Sink) -> bool {
    let name_of = |i: usize| plan.sinks.get(i).map(|s| &s.name);
    sink.kind.path().is_some()
        && plan
            .pipelines
            .iter()
            .flat_map(|p| &p.to)
            .any(|t| name_of(t.sink) == Some(&sink.name) && t.stages.has(Stage::Final))
}

/// Sessions as a table.
pub(super) fn table(rows: &[Row]) -> Table {
    let head = ["key", "start", "duration", "events", "stage", "reason", "revision", "session", "pipeline"];
    // Of one pipeline alone its name says nothing.
    let several = rows.iter().any(|r| r.pipeline != rows[0].pipeline);
    let columns = if several { head.len() } else { head.len() - 1 };
    let mut table = plain_table(&head[..columns]);
    for row in rows {
        let cells = [
            text::foreign(&row.key, KEY_SHOWN),
            text::instant(row.start_ms),
            text::duration(text::between(row.start_ms, row.end_ms)),
            text::count(row.events),
            row.stage.clone(),
            row.reason.clone().unwrap_or_else(|| "open".to_owned()),
            format!("{}/{}", row.incarnation, row.epoch),
            row.session_id.clone(),
            text::foreign(&row.pipeline, KEY_SHOWN),
        ];
        table.add_row(&cells[..columns]);
    }
    align_right(&mut table, &[2, 3]);
    table
}

/// A table with a line below its head and nothing else to draw.
pub(super) fn plain_table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(head.iter().copied());
    table
}

/// Numbers stand right.
pub(super) fn align_right(table: &mut Table, columns: &[usize]) {
    for i in columns {
        if let Some(column) = table.column_mut(*i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_in_memory_is_said_in_a_line() {
        assert_eq!(in_memory(&Value::Null), "nothing of this key is in memory");
        let open = json!({"start": "a", "end": "b", "events": 3});
        assert_eq!(
            in_memory(&json!({"open": open, "waiting": 1})),
            "in memory open since a, 3 events until b, and 1 event whose order is not certain yet"
        );
        assert_eq!(
            in_memory(&json!({"open": null, "waiting": 2})),
            "in memory 2 events whose order is not certain yet"
        );
    }

    #[test]
    fn a_table_of_sessions() {
        let row = Row {
            session_id: "00ff".to_owned(),
            pipeline: "p".to_owned(),
            key: "u\x1b1".to_owned(),
            start_ms: 1_431_857_103_000,
            end_ms: 1_431_857_223_000,
            events: 1200,
            stage: "final".to_owned(),
            incarnation: 1,
            epoch: 5,
            reason: None,
            plugin: String::new(),
            fields: serde_json::Value::Null,
        };
        let other = Row { pipeline: "before".to_owned(), ..row.clone() };
        let both = table(&[row.clone(), other]).to_string();
        assert!(both.contains("pipeline") && both.contains("before"), "{both}");
        let shown = table(&[row]).to_string();
        assert!(!shown.contains("pipeline"), "{shown}");
        assert!(shown.contains("u\\u{1b}1") && shown.contains("2m") && shown.contains("1,200"), "{shown}");
        assert!(shown.contains("open") && shown.contains("1/5"), "{shown}");
        assert_eq!(shown.lines().count(), 3, "{shown}");
    }
}
