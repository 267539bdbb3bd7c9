//! `[sink.NAME]`: where sessions and dead letters go.

use super::diagnose::Problems;
use super::last;
use super::plan::{Sink, SinkKind};
use super::raw::Section;
use std::path::PathBuf;

/// Keys that only some kinds of sink have.
const SINK_ONLY: [(&str, &str); 2] =
    [("path", "kind = \"stdout\" has no file"), ("table", "only kind = \"sqlite\" has it")];

pub(super) fn check_sink(mut s: Section<'_>, p: &mut Problems) -> Option<Sink> {
    let name = last(&s.path).to_owned();
    let at = s.at;
    let later = ["bigquery", "spanner", "bigtable", "postgres", "kafka", "pubsub", "http"];
    let kind = s.need("kind", "write `kind = \"sqlite\"`, \"file\" or \"stdout\"", p);
    let kind = kind.and_then(|f| f.word(&["sqlite", "file", "stdout"], &later, p));
    let mut path_at = at;
    let kind = match kind {
        Some("stdout") => Some(SinkKind::Stdout),
        Some(kind) => {
            let example = if kind == "sqlite" {
                "write `path = \"sessions.db\"`"
            } else {
                "write `path = \"out.jsonl\"`"
            };
            let path = s.need("path", example, p);
            path_at = path.as_ref().map_or(at, |f| f.node.at);
            let path = path.and_then(|f| f.text(p)).map(PathBuf::from);
            if kind == "sqlite" {
                let table = check_table(&mut s, p);
                path.map(|path| SinkKind::Sqlite { path, table })
            } else {
                path.map(|path| SinkKind::File { path })
            }
        }
        None => {
            s.forgive(&SINK_ONLY.map(|(key, _)| key));
            None
        }
    };
    s.finish(&SINK_ONLY, p);
    Some(Sink { name, at, path_at, kind: kind? })
}

fn check_table(s: &mut Section<'_>, p: &mut Problems) -> String {
    let default = "sessions".to_owned();
    let Some(f) = s.get("table") else { return default };
    let Some(table) = f.text(p) else { return default };
    let plain = table.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let reserved = table.to_lowercase().starts_with("sqlite_");
    if !plain || table.starts_with(|c: char| c.is_ascii_digit()) || reserved {
        let help = "use letters, digits and `_`, not beginning with a digit or `sqlite_`".to_owned();
        f.wrong(format!("`{}` cannot be a table", f.shown()), help, p);
    }
    table.to_owned()
}
