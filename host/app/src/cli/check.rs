//! `check`: everything that can be known of a config without running it.

use std::io::Write;

use serde_json::{Value, json};

use super::ConfigFile;
use super::out::{self, BOLD, Failure};
use super::text;
use crate::config::{
    self, Change, ChangeKind, Early, EndOfInput, Pipeline, Plan, Problems, Rule, Sink, SinkKind, Source,
    SourceKind, Target, pubsub,
};
use crate::plugin::{Part, Sandbox, unfit};
use crate::run;
use tidemill_engine::outbox::{Stage, Stages};

const EXAMPLES: &str = "\
Examples:
  tidemill check visits.toml            every problem with its line; exit 0 or 4
  tidemill check visits.toml --json     the same for programs";

/// Find everything that is wrong with a config, without running it
///
/// Reads the config, looks at the files and directories it names, loads its plugins and gives them their configs, and compares
/// it with what an earlier run has stored. Nothing is created or changed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Print findings and plan as one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command.
pub(super) fn execute(args: &CheckArgs) -> Result<u8, Failure> {
    let plan = config::load(args.config.path())?;
    let mut problems = plan.warnings.clone();
    problems.extend(plan.probe());
    if !problems.has_errors() {
        plugins(&plan, &mut problems)?;
    }
    let changes = if problems.has_errors() { Vec::new() } else { changes(&plan, &mut problems)? };
    services(&plan, &mut problems);
    if problems.has_errors() {
        return Err(Failure::Config(problems));
    }
    if args.json {
        return tell_json(&plan, &problems, &changes);
    }
    out::tell_problems(&problems);
    let mut stdout = out::stdout();
    writeln!(stdout, "{BOLD}{}{BOLD:#}: this would run", args.config.path().display())?;
    for pipeline in &plan.pipelines {
        for line in describe(&plan, pipeline) {
            writeln!(stdout, "  {line}")?;
        }
    }
    for (_, change) in &changes {
        writeln!(stdout, "  since the last run: {}", change.message)?;
    }
    stdout.flush()?;
    Ok(0)
}

fn tell_json(plan: &Plan, problems: &Problems, changes: &[(String, Change)]) -> Result<u8, Failure> {
    let pipelines: Vec<Value> = plan.pipelines.iter().map(|p| config::fingerprint(p, plan)).collect();
    let changes: Vec<Value> =
        changes.iter().map(|(p, c)| json!({"pipeline": p, "what": c.what, "message": c.message})).collect();
    out::print_json(&json!({
        "ok": true, "problems": problems.to_json(), "pipelines": pipelines, "changes": changes, "exit_code": 0,
    }))?;
    Ok(0)
}

/// What is wrong with the plugins, each at its place: the file, the field of its config, or where it is named.
fn plugins(plan: &Plan, problems: &mut Problems) -> Result<(), Failure> {
    let sandbox = Sandbox::without_cache();
    // A plugin that several pipelines name is wrong once.
    let mut told = Vec::new();
    for (named, error) in plan.pipelines.iter().flat_map(|p| unfit(p, &sandbox)) {
        if error.host {
            return Err(Failure::new(1, error.to_string(), None));
        }
        let file = || (named.path_at, format!("plugin.{}.path", named.name));
        let here = || (named.at, named.key.clone());
        let config = |pointer: &str| named.places.of(pointer).map_or_else(here, |p| (p.at, p.key.clone()));
        let found = match &error.part {
            Part::File => vec![(file(), error.message.clone())],
            Part::Use => vec![(here(), error.message.clone())],
            Part::Config(fields) if fields.is_empty() => vec![(config(""), error.message.clone())],
            Part::Config(fields) => fields.iter().map(|f| (config(&f.path), f.to_string())).collect(),
        };
        for ((at, key), message) in found {
            let message = format!("plugin `{}`: {message}", named.name);
            if !told.contains(&(at, message.clone())) {
                problems.error(at, &key, message.clone(), None);
                told.push((at, message));
            }
        }
    }
    problems.sort();
    Ok(())
}

/// Services that lookups would ask and that are not there, or have not what they are asked for. Sinks were asked with what is stored.
fn services(plan: &Plan, problems: &mut Problems) {
    for lookup in &plan.lookups {
        if let Err(e) = config::lookup::probe_service(lookup) {
            problems.error(lookup.at, &format!("lookup.{}", lookup.name), e.to_string(), None);
        }
    }
    problems.sort();
}

/// What differs from what is stored; what cannot be changed becomes a problem of the pipeline's table.
fn changes(plan: &Plan, problems: &mut Problems) -> Result<Vec<(String, Change)>, Failure> {
    let mut free = Vec::new();
    for pipeline in &plan.pipelines {
        let stored = run::peek(plan, &pipeline.name)?;
        let newest = stored.as_ref().map(|(epoch, _, meta)| (*epoch, meta));
        for (what, why) in run::foresee::foresee(plan, pipeline, newest) {
            problems.error(pipeline.at, &what, why, None);
        }
        let Some((_, _, meta)) = stored else { continue };
        for change in config::compare(&meta.fingerprint, &config::fingerprint(pipeline, plan)) {
            if !matches!(change.kind, ChangeKind::Refused | ChangeKind::Resend) {
                free.push((pipeline.name.clone(), change));
            } else {
                problems.error(pipeline.at, &change.what, change.message, None);
            }
        }
    }
    problems.sort();
    Ok(free)
}

/// A pipeline in a few lines: from what, by which rule, to where.
fn describe(plan: &Plan, pipeline: &Pipeline) -> Vec<String> {
    let mut lines = vec![format!("pipeline {}", pipeline.name)];
    lines.extend(
        pipeline.from.iter().filter_map(|i| plan.sources.get(*i)).map(|s| format!("  {}", source(s))),
    );
    if pipeline.from.iter().any(|i| plan.sources.get(*i).is_some_and(|s| s.kind == SourceKind::Stdin)) {
        lines.push(
            "  standard input cannot be read again: a kill loses what was read since the last epoch"
                .to_owned(),
        );
    }
    let rule = match &pipeline.rule {
        Rule::Gap(rule) => {
            let gap = text::duration(rule.gap_ms.unsigned_abs());
            let boundary = if rule.inclusive { "inclusive" } else { "exclusive" };
            let max = rule.max_ms.map(|ms| format!(", at most {}", text::duration(ms.unsigned_abs())));
            format!("builtin:gap {gap} {boundary}{}", max.unwrap_or_default())
        }
        Rule::Plugin(p) => format!("{} ({})", p.name, p.path.display()),
    };
    let early = match pipeline.early {
        Early::Epoch => "early rows at every epoch".to_owned(),
        Early::Every(ms) => format!("early rows every {}", text::duration(ms.unsigned_abs())),
        Early::Off => "no early rows".to_owned(),
    };
    let end = match pipeline.end_of_input {
        EndOfInput::Close => "open sessions close at the end",
        EndOfInput::Hold => "open sessions wait at the end",
    };
    lines.extend(
        pipeline.validate.iter().map(|v| format!("  if   {} ({}) accepts it", v.name, v.path.display())),
    );
    lines.push(format!("  by   {rule}; {early}; {end}"));
    lines.extend(pipeline.enrich.iter().map(|e| {
        let lookups = e.lookups.iter().filter_map(|(_, at)| plan.lookups.get(*at));
        let names: Vec<&str> = lookups.map(|l| l.name.as_str()).collect();
        format!("  with {} ({}) from {}", e.name, e.path.display(), names.join(", "))
    }));
    lines.extend(outputs(plan, pipeline).iter().map(|o| format!("  to   {o}")));
    if pipeline.dead.is_none() {
        lines.push("  dead letters are only counted: no `dead` sink".to_owned());
    }
    lines
}

fn source(s: &Source) -> String {
    let what = match &s.kind {
        SourceKind::File { pattern, follow, .. } => {
            let files = tidemill_connect::source::file::list(pattern).map_or(0, |l| l.len());
            let follow = if *follow { ", followed" } else { "" };
            format!("{pattern} ({}{follow})", text::counted(files as u64, "file"))
        }
        SourceKind::Kafka(t) => {
            let topics = if t.topics.len() == 1 { "topic" } else { "topics" };
            format!("{topics} {} of Kafka at {}", t.topics.join(", "), t.cluster.address())
        }
        SourceKind::PubSub(pulled) => pulled.place(),
        other => other.name().to_owned(),
    };
    let key = match &s.key {
        config::KeySpec::One(field) => field.clone(),
        config::KeySpec::Together(fields) => fields.join(" + "),
        config::KeySpec::FirstOf(fields) => format!("the first of {}", fields.join(", ")),
    };
    let hashed = if s.key_hmac.is_some() { " (hashed)" } else { "" };
    let disorder = text::duration(s.disorder_ms.unsigned_abs());
    format!(
        "from {}: {what}, {}, key {key}{hashed}, time {}, disorder {disorder}",
        s.name,
        s.format.name(),
        s.time.field
    )
}

/// Where a pipeline's sessions and dead letters go.
pub(super) fn outputs(plan: &Plan, pipeline: &Pipeline) -> Vec<String> {
    let sessions = pipeline.to.iter().filter_map(|t| plan.sinks.get(t.sink).map(|s| session_output(t, s)));
    let dead = pipeline
        .dead
        .and_then(|i| plan.sinks.get(i))
        .map(|s| format!("{}: dead letters in {}", s.name, place(s)));
    sessions.chain(dead).collect()
}

fn session_output(target: &Target, sink: &Sink) -> String {
    if target.stages == Stages::ALL {
        return format!("{}: sessions in {}", sink.name, place(sink));
    }
    let stages: Vec<&str> =
        Stage::ALL.into_iter().filter(|s| target.stages.has(*s)).map(Stage::name).collect();
    format!("{}: {} sessions in {}", sink.name, stages.join(", "), place(sink))
}

fn place(sink: &Sink) -> String {
    match &sink.kind {
        SinkKind::Sqlite { path, table } => format!("{} (SQLite, table {table})", path.display()),
        SinkKind::File { path } => format!("{} (JSON lines)", path.display()),
        SinkKind::Postgres { server, table } => format!("{} (table {table})", server.address()),
        SinkKind::Kafka { cluster, topic, .. } => format!("topic {topic} of Kafka at {}", cluster.address()),
        SinkKind::PubSub { topic } => format!("{} (at least once)", topic.place()),
        SinkKind::BigQuery { target } => format!("{} (table {})", target.place(), target.table()),
        SinkKind::Stdout => "standard output (JSON lines, at least once)".to_owned(),
    }
}

/// The same for programs.
pub(super) fn outputs_json(plan: &Plan, pipeline: &Pipeline) -> Value {
    let one = |role: &str, sink: &Sink| {
        let table = match &sink.kind {
            SinkKind::Sqlite { table, .. } | SinkKind::Postgres { table, .. } => Some(table.as_str()),
            SinkKind::BigQuery { target } => Some(target.table()),
            SinkKind::File { .. } | SinkKind::Kafka { .. } | SinkKind::PubSub { .. } | SinkKind::Stdout => {
                None
            }
        };
        let mut shown = json!({"role": role, "sink": sink.name, "path": sink.kind.path(), "table": table});
        match &sink.kind {
            SinkKind::Kafka { topic, .. } => shown["topic"] = json!(topic),
            SinkKind::PubSub { topic } => shown["topic"] = json!(pubsub::full_name(topic)),
            _ => {}
        }
        shown
    };
    let sessions = pipeline.to.iter().filter_map(|t| plan.sinks.get(t.sink)).map(|s| one("sessions", s));
    let dead = pipeline.dead.and_then(|i| plan.sinks.get(i)).map(|s| one("dead", s));
    sessions.chain(dead).collect()
}
