//! `trace`: what became of one event: where it stands, how it reads, in which session it is, or why in none.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidemill_connect::source::file;

use super::dead::position;
use super::out::{self, BOLD, Failure};
use super::scan::{self, FOUND_MAX, Found, Target};
use super::{ConfigFile, text};
use crate::config::{IdSpec, Pipeline, Plan, SinkKind, Source, SourceKind};
use crate::meta::{Meta, PartitionMeta};
use crate::rows::{self, Row, Want};
use crate::run;

const EXAMPLES: &str = "\
Examples:
  tidemill trace visits.toml --id e-42                an event by its id (sources with `id = \"FIELD\"`)
  tidemill trace visits.toml --id web:0:11650         a record by its position: source, partition, first byte
  tidemill trace visits.toml --id '[\"s1\",\"7\"]'        an id of several fields
  tidemill trace visits.toml --id e-42 --key u7 --json

`tidemill dead` shows positions, `tidemill status` the numbers of the partitions.";

/// Tell what became of one event
///
/// Finds its record in the files of the sources, decodes it as a run does, and shows the sessions of its key at its
/// time, or its dead letter. Exit code 0 if it was found, 3 if not.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TraceArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The event id, or a position SOURCE:PARTITION:OFFSET
    #[arg(long, value_name = "ID")]
    id: String,
    /// Only events of this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// What the config says and what runs have stored.
struct World<'a> {
    plan: &'a Plan,
    /// Of each pipeline, in order.
    metas: Vec<Option<Meta>>,
}

/// A record that was found, and what became of it.
struct Trace<'a> {
    source: &'a Source,
    partition: Option<usize>,
    path: PathBuf,
    found: Option<Found>,
    offset: u64,
    fates: Vec<Fate<'a>>,
}

/// What one pipeline made of a record.
struct Fate<'a> {
    pipeline: &'a str,
    /// Whether the pipeline has read it; none: not known.
    read: Option<bool>,
    /// The sink and the session in it.
    sessions: Vec<(&'a str, Row)>,
    letters: Vec<Value>,
}

/// Runs the command.
pub(super) fn execute(args: &TraceArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let mut metas = Vec::new();
    for pipeline in &plan.pipelines {
        metas.push(run::peek(&plan, &pipeline.name)?.map(|(_, _, meta)| meta));
    }
    let world = World { plan: &plan, metas };
    let mut traces = match world.position(&args.id) {
        Some((source, partition, offset)) => vec![world.at(source, &partition, offset)],
        None => world.by_id(&args.id)?,
    };
    if let Some(key) = &args.key {
        traces.retain(|t| t.key().is_none_or(|k| k == key));
    }
    for trace in &mut traces {
        world.follow(trace)?;
    }
    traces.retain(|t| t.found.is_some() || t.fates.iter().any(|f| !f.letters.is_empty()));
    let found = !traces.is_empty();
    if args.json {
        let events: Vec<Value> = traces.iter().map(Trace::to_json).collect();
        out::print_json(&json!({"found": found, "id": args.id, "events": events}))?;
    } else {
        let mut stdout = out::stdout();
        if !found {
            writeln!(stdout, "not found: {}", text::foreign(&args.id, 200))?;
        }
        for trace in &traces {
            trace.show(&mut stdout)?;
        }
        stdout.flush()?;
    }
    Ok(if found { 0 } else { 3 })
}

impl<'a> World<'a> {
    /// The pipelines that read a source, with what is stored of it.
    fn readers(&self, source: &Source) -> impl Iterator<Item = (&'a Pipeline, Option<&[PartitionMeta]>)> {
        let name = source.name.clone();
        let index = self.plan.sources.iter().position(|s| s.name == name);
        self.plan
            .pipelines
            .iter()
            .zip(&self.metas)
            .filter(move |(p, _)| index.is_some_and(|i| p.from.contains(&i)))
            .map(move |(p, meta)| {
                let stored = meta.as_ref().and_then(|m| m.sources.iter().find(|s| s.name == name));
                (p, stored.map(|s| s.partitions.as_slice()))
            })
    }

    /// `SOURCE:PARTITION:OFFSET`, if it is one. The source by name or number.
    fn position(&self, id: &str) -> Option<(&'a Source, String, u64)> {
        let (rest, offset) = id.rsplit_once(':')?;
        let (source, partition) = rest.split_once(':')?;
        let offset = offset.parse().ok()?;
        let numbered = || {
            let number: usize = source.parse().ok()?;
            let stored =
                self.metas.iter().flatten().find_map(|m| m.sources.get(number)).map(|s| s.name.as_str());
            let planned = || {
                let index = *self.plan.pipelines.first()?.from.get(number)?;
                self.plan.sources.get(index).map(|s| s.name.as_str())
            };
            stored.or_else(planned)
        };
        let named = |name: &str| self.plan.sources.iter().find(|s| s.name == name);
        named(source).or_else(|| named(numbered()?)).map(|s| (s, partition.to_owned(), offset))
    }

    /// The record at a position. `partition` is a number or a path.
    fn at(&self, source: &'a Source, partition: &str, offset: u64) -> Trace<'a> {
        let stored = self.readers(source).find_map(|(_, partitions)| partitions).unwrap_or_default();
        let files = files(source);
        let number: Option<usize> = partition.parse().ok();
        let path = match number {
            None => Some(PathBuf::from(partition)),
            Some(n) => match stored.get(n) {
                Some(p) => Some(file_of(p, &files)),
                None => files.get(n).cloned(),
            },
        };
        let mut found = Vec::new();
        if let Some(path) = path.as_ref().filter(|p| p.exists()) {
            scan_told(source, path, &Target::Offset(offset), &mut found);
        }
        Trace {
            source,
            partition: number.or_else(|| number_of(path.as_deref()?, stored)),
            path: path.unwrap_or_default(),
            found: found.pop(),
            offset,
            fates: Vec::new(),
        }
    }

    /// The records with an id, in all files of all sources whose records have one.
    fn by_id(&self, id: &str) -> Result<Vec<Trace<'a>>, Failure> {
        let mut traces = Vec::new();
        let with_ids: Vec<&Source> = self.plan.sources.iter().filter(|s| s.id != IdSpec::Position).collect();
        if with_ids.is_empty() {
            let names: Vec<&str> = self.plan.sources.iter().map(|s| s.name.as_str()).collect();
            let help = format!("give one as SOURCE:PARTITION:OFFSET; sources are {}", names.join(", "));
            return Err(Failure::new(
                3,
                format!("`{id}` is no position, and events here are known by position"),
                help,
            ));
        }
        for source in with_ids {
            let Some(target) = target(source, id) else { continue };
            if !matches!(source.kind, SourceKind::File { .. }) {
                out::note(format!("source `{}` is no file: what it sent cannot be read again", source.name));
            }
            let stored = self.readers(source).find_map(|(_, partitions)| partitions).unwrap_or_default();
            for path in files(source) {
                let mut found = Vec::new();
                scan_told(source, &path, &target, &mut found);
                let partition = number_of(&path, stored);
                traces.extend(found.into_iter().map(|f| Trace {
                    source,
                    partition,
                    path: path.clone(),
                    offset: f.offset,
                    found: Some(f),
                    fates: Vec::new(),
                }));
            }
        }
        if traces.len() >= FOUND_MAX {
            out::note(format!("{} records have this id; not all are shown", traces.len()));
            traces.truncate(FOUND_MAX);
        }
        Ok(traces)
    }

    /// Asks every pipeline that reads the record's source what became of it.
    fn follow(&self, trace: &mut Trace<'a>) -> Result<(), Failure> {
        let mut fates = Vec::new();
        for (pipeline, stored) in self.readers(trace.source) {
            let next = trace.partition.and_then(|n| stored?.get(n)).map(|p| p.offset);
            let mut fate = Fate {
                pipeline: &pipeline.name,
                read: next.map(|next| trace.offset < next),
                sessions: Vec::new(),
                letters: self.letters(pipeline, trace)?,
            };
            if let Some(Ok(event)) = trace.found.as_ref().map(|f| &f.event) {
                let want = Want { key: Some(event.key.clone()), ..Want::default() };
                for sink in rows::readable(self.plan, std::slice::from_ref(pipeline)) {
                    if sink.kind.path().is_none_or(|p| !p.exists()) {
                        continue;
                    }
                    let covering = |r: &Row| r.start_ms <= event.time_ms && event.time_ms <= r.end_ms;
                    let rows = rows::read(sink, &want)?.into_iter().filter(covering);
                    fate.sessions.extend(rows.map(|r| (sink.name.as_str(), r)));
                }
            }
            fates.push(fate);
        }
        trace.fates = fates;
        Ok(())
    }

    /// The dead letters of a pipeline that tell of this record.
    fn letters(&self, pipeline: &Pipeline, trace: &Trace<'a>) -> Result<Vec<Value>, Failure> {
        let sink = pipeline.dead.and_then(|i| self.plan.sinks.get(i));
        let Some(SinkKind::File { path }) =
            sink.map(|s| &s.kind).filter(|k| k.path().is_some_and(Path::exists))
        else {
            return Ok(Vec::new());
        };
        let mut letters = Vec::new();
        rows::each_letter(path, |letter| {
            if trace.is_told_by(&letter) {
                letters.push(letter);
            }
        })?;
        Ok(letters)
    }
}

/// The files of a source as they are now.
fn files(source: &Source) -> Vec<PathBuf> {
    match &source.kind {
        SourceKind::File { pattern, .. } => file::list(pattern).unwrap_or_default(),
        SourceKind::Stdin
        | SourceKind::Generator(_)
        | SourceKind::Http(_)
        | SourceKind::Kafka(_)
        | SourceKind::PubSub(_) => Vec::new(),
    }
}

/// Where a stored partition's file is now: it may have been renamed.
fn file_of(partition: &PartitionMeta, files: &[PathBuf]) -> PathBuf {
    let last = PathBuf::from(partition.identity.to_string());
    let is_it = |path: &PathBuf| is_file(partition, path);
    if is_it(&last) { last } else { files.iter().find(|p| is_it(p)).cloned().unwrap_or(last) }
}

/// The number of a file's partition, if a run has given it one.
fn number_of(path: &Path, stored: &[PartitionMeta]) -> Option<usize> {
    stored.iter().position(|p| is_file(p, path))
}

fn is_file(partition: &PartitionMeta, path: &Path) -> bool {
    partition.identity.file().is_some_and(|known| file::same_file(known, path).unwrap_or(false))
}

/// What an id means for a source; none if it cannot be one of its ids.
fn target(source: &Source, id: &str) -> Option<Target> {
    match &source.id {
        IdSpec::Position => None,
        IdSpec::Fields(fields) if fields.len() > 1 => serde_json::from_str::<Vec<Value>>(id)
            .ok()
            .filter(|parts| parts.len() == fields.len())
            .map(|parts| {
                let text = |v: Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                Target::Id(parts.into_iter().map(text).collect())
            }),
        IdSpec::Content | IdSpec::Fields(_) | IdSpec::FirstOf(_) => Some(Target::Id(vec![id.to_owned()])),
    }
}

/// A file that cannot be read to its end is said, and no reason to stop looking.
fn scan_told(source: &Source, path: &Path, target: &Target, found: &mut Vec<Found>) {
    if let Err(e) = scan::scan(source, path, target, found) {
        out::note(e);
    }
}

impl Trace<'_> {
    /// The key of the event in it, if there is one.
    fn key(&self) -> Option<&String> {
        self.found.as_ref()?.event.as_ref().ok().map(|e| &e.key)
    }

    /// As `--id` takes it.
    fn position(&self) -> String {
        match self.partition {
            Some(n) => format!("{}:{n}:{}", self.source.name, self.offset),
            None => format!("{}:{}:{}", self.source.name, self.path.display(), self.offset),
        }
    }

    /// Whether a dead letter is about this record.
    fn is_told_by(&self, letter: &Value) -> bool {
        let number = |name: &str| letter.pointer(&format!("/position/{name}")).and_then(Value::as_u64);
        let same_partition = match self.partition {
            Some(n) => number("partition") == Some(n as u64),
            None => Path::new(rows::member(letter, "partition")) == self.path,
        };
        number("offset") == Some(self.offset)
            && rows::member(letter, "source") == self.source.name
            && same_partition
    }

    fn to_json(&self) -> Value {
        let event = self.found.as_ref().map(|f| match &f.event {
            Ok(e) => {
                json!({"key": e.key, "time_ms": e.time_ms, "time": text::instant(e.time_ms), "raw": f.raw})
            }
            Err((reason, message)) => json!({"reason": reason, "message": message, "raw": f.raw}),
        });
        let pipelines: Vec<Value> = self
            .fates
            .iter()
            .map(|f| {
                let sessions: Vec<Value> =
                    f.sessions.iter().map(|(sink, row)| json!({"sink": sink, "session": row})).collect();
                json!({"pipeline": f.pipeline, "read": f.read, "sessions": sessions, "letters": f.letters})
            })
            .collect();
        json!({
            "source": self.source.name, "partition": self.partition, "path": self.path, "offset": self.offset,
            "position": self.position(), "event": event, "pipelines": pipelines,
        })
    }

    fn show(&self, to: &mut impl Write) -> Result<(), Failure> {
        writeln!(to, "{BOLD}{}{BOLD:#}  {}", self.position(), self.path.display())?;
        match self.found.as_ref().map(|f| (&f.event, f)) {
            Some((Ok(event), _)) => {
                writeln!(to, "  key      {}", text::foreign(&event.key, 200))?;
                writeln!(to, "  time     {}", text::instant(event.time_ms))?;
            }
            Some((Err((reason, message)), f)) => {
                writeln!(to, "  no event {reason}: {}", text::foreign(message, 200))?;
                writeln!(to, "  record   {}", text::foreign(&f.raw, 200))?;
            }
            None => writeln!(to, "  the record is not at hand")?,
        }
        for fate in &self.fates {
            fate.show(to, self.found.as_ref().is_some_and(|f| f.event.is_ok()))?;
        }
        Ok(())
    }
}

impl Fate<'_> {
    fn show(&self, to: &mut impl Write, is_event: bool) -> Result<(), Failure> {
        writeln!(to, "  pipeline {}", self.pipeline)?;
        for (sink, r) in &self.sessions {
            writeln!(
                to,
                "    session {}  {} to {}, {}, {} ({}), revision {}/{}, in sink {sink}",
                r.session_id,
                text::instant(r.start_ms),
                text::instant(r.end_ms),
                text::counted(r.events, "event"),
                r.stage,
                r.reason.as_deref().unwrap_or("open"),
                r.incarnation,
                r.epoch,
            )?;
        }
        for letter in &self.letters {
            let member = |name| text::foreign(rows::member(letter, name), 200);
            writeln!(
                to,
                "    dead letter {} ({}): {}",
                member("reason"),
                position(letter),
                member("message")
            )?;
        }
        if self.sessions.is_empty() && self.letters.is_empty() {
            writeln!(to, "    {}", self.nothing(is_event))?;
        }
        Ok(())
    }

    /// Why there is neither session nor letter.
    fn nothing(&self, is_event: bool) -> &'static str {
        match (self.read, is_event) {
            (None, _) => "has not read this file",
            (Some(false), _) => "has not read so far yet",
            (Some(true), false) => "was read and refused; no dead letter of it is kept",
            (Some(true), true) => "was read; no sink that can be read shows its session (yet)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const CONFIG: &str = r#"[source.web]
kind = "file"
path = "PATH"
format = "json"
key = "u"
time = { field = "t", unit = "ms" }
id = "e"
[pipeline.visits]
from = ["web"]
session = { plugin = "builtin:gap", config = { gap = "30m" } }
to = ["out"]
[sink.out]
kind = "file"
path = "out.jsonl"
"#;

    #[test]
    fn records_are_found_by_id_and_by_position() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            "{\"u\":\"a\",\"t\":5,\"e\":\"x\"}",
            "{\"u\":\"b\",\"t\":6,\"e\":\"y\"}",
            "{\"t\":7,\"e\":\"y\"}\n",
        ];
        log.write_all(lines.join("\n").as_bytes()).unwrap();
        let text = CONFIG.replace("PATH", log.path().to_str().unwrap());
        let plan = config::parse(&text, Path::new("t"), 0).unwrap();
        let world = World { plan: &plan, metas: vec![None] };
        let found = world.by_id("y").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].key().map(String::as_str), Some("b"));
        let refused = found[1].found.as_ref().unwrap().event.as_ref().unwrap_err();
        assert_eq!(refused.0, "missing_field");
        let (source, partition, offset) = world.position(&format!("web:0:{}", found[0].offset)).unwrap();
        let at = world.at(source, &partition, offset);
        assert_eq!(at.found.unwrap().event.unwrap(), scan::Event { key: "b".to_owned(), time_ms: 6 });
        assert!(world.at(source, "0", 3).found.is_none());
        assert!(world.position("y").is_none() && world.position("other:0:1").is_none());
        assert_eq!(world.position("0:0:1").map(|(s, ..)| s.name.as_str()), Some("web"));
    }

    #[test]
    fn letters_are_known_by_their_position() {
        let plan = config::parse(&CONFIG.replace("PATH", "x"), Path::new("t"), 0).unwrap();
        let mut trace = Trace {
            source: &plan.sources[0],
            partition: Some(1),
            path: PathBuf::from("b.log"),
            found: None,
            offset: 9,
            fates: Vec::new(),
        };
        let letter = json!({"source": "web", "partition": "b.log", "position": {"source": 0, "partition": 1, "offset": 9}});
        assert!(trace.is_told_by(&letter));
        trace.partition = None;
        assert!(trace.is_told_by(&letter));
        trace.offset = 8;
        assert!(!trace.is_told_by(&letter));
    }
}
