//! `status`: how far each pipeline is, from its newest epoch.

use std::io::Write;

use serde_json::{Value, json};

use super::out::{self, BOLD, Failure};
use super::run::listed;
use super::sessions::{align_right, plain_table};
use super::{ConfigFile, text};
use crate::config::{Pipeline, Plan};
use crate::meta::Meta;
use crate::run;
use tidemill_engine::outbox::Stage;

const EXAMPLES: &str = "\
Examples:
  tidemill status visits.toml           epoch, watermark, counters, partitions, sinks
  tidemill status visits.toml --json | jq '.pipelines[].watermark'";

/// Show how far each pipeline is
///
/// Reads the newest committed epoch, also while a run goes on. A sink's cursor is as known when that epoch was
/// sealed: while a pipeline runs, its sinks are further.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// What is stored of a pipeline.
struct Stored {
    epoch: u64,
    incarnation: u64,
    meta: Meta,
}

/// Runs the command.
pub(super) fn execute(args: &StatusArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let mut list: Vec<(&Pipeline, Option<Stored>)> = Vec::new();
    for pipeline in &plan.pipelines {
        let stored = run::peek(&plan, &pipeline.name)?.map(|(epoch, incarnation, meta)| Stored {
            epoch,
            incarnation,
            meta,
        });
        list.push((pipeline, stored));
    }
    if args.json {
        let pipelines: Vec<Value> = list.iter().map(|(p, s)| to_json(&plan, p, s.as_ref())).collect();
        out::print_json(&json!({"pipelines": pipelines}))?;
        return Ok(0);
    }
    let mut stdout = out::stdout();
    for (pipeline, stored) in &list {
        match stored {
            Some(stored) => show(&mut stdout, &plan, pipeline, stored)?,
            None => writeln!(stdout, "{BOLD}{}{BOLD:#}: has never run", pipeline.name)?,
        }
    }
    stdout.flush()?;
    Ok(0)
}

/// A sink with the epoch it has confirmed, and by how many it is behind the newest that has something to send.
fn cursors<'a>(plan: &'a Plan, pipeline: &Pipeline, stored: &Stored) -> Vec<(&'a str, u64, u64)> {
    let sinks = pipeline.to.iter().map(|t| t.sink).chain(pipeline.dead);
    sinks
        .filter_map(|i| plan.sinks.get(i))
        .map(|s| {
            let epoch = stored.meta.cursors.get(&s.name).map_or(0, |c| c.epoch);
            (s.name.as_str(), epoch, stored.meta.outbox_epoch.saturating_sub(epoch))
        })
        .collect()
}

fn to_json(plan: &Plan, pipeline: &Pipeline, stored: Option<&Stored>) -> Value {
    let Some(s) = stored else { return json!({"pipeline": pipeline.name, "ran": false}) };
    let m = &s.meta;
    let partitions: Vec<Value> = m
        .sources
        .iter()
        .flat_map(|source| {
            source.partitions.iter().enumerate().map(|(i, p)| {
                json!({
                    "source": source.name, "partition": i, "path": p.identity.path, "offset": p.offset,
                    "max_time": stamp(p.time.max.ms()), "finished": p.time.finished, "idle": p.time.idle,
                })
            })
        })
        .collect();
    let sinks: Vec<Value> = cursors(plan, pipeline, s)
        .into_iter()
        .map(|(name, epoch, behind)| json!({"sink": name, "epoch": epoch, "lag_epochs": behind}))
        .collect();
    json!({
        "pipeline": pipeline.name, "ran": true, "epoch": s.epoch, "incarnation": s.incarnation,
        "sealed_at": stamp(m.sealed_at_ms), "watermark": stamp(m.watermark.ms()), "finished": m.finished,
        "counters": m.counters, "live_keys": m.live_keys, "suffix_bytes": m.suffix_bytes,
        "partitions": partitions, "sinks": sinks, "hot_keys": m.hot_keys, "decisions": m.decisions,
        "unresolved": m.unresolved, "lookups": m.lookups,
        "suspended": m.suspended,
    })
}

/// RFC 3339, or null where there is no instant.
fn stamp(ms: i64) -> Option<String> {
    jiff::Timestamp::from_millisecond(ms).ok().map(|t| t.to_string())
}

fn show(to: &mut impl Write, plan: &Plan, pipeline: &Pipeline, s: &Stored) -> Result<(), Failure> {
    let (m, c) = (&s.meta, &s.meta.counters);
    let state = match (&m.suspended, m.finished) {
        (Some(_), _) => "SUSPENDED",
        (None, true) => "finished",
        (None, false) => "not finished",
    };
    writeln!(
        to,
        "{BOLD}{}{BOLD:#}: epoch {}, incarnation {}, sealed {}, {state}",
        pipeline.name,
        text::count(s.epoch),
        s.incarnation,
        text::instant(m.sealed_at_ms)
    )?;
    if let Some(s) = &m.suspended {
        writeln!(
            to,
            "  suspended  {}: plugin `{}`, {}: {}",
            text::instant(s.at_ms),
            s.plugin.name,
            s.plugin.version,
            s.why
        )?;
        writeln!(to, "             first fault: {}", text::foreign(&s.first_fault, 1024))?;
        writeln!(to, "             digest {}", s.plugin.digest)?;
    }
    writeln!(to, "  watermark  {}", text::time(m.watermark))?;
    writeln!(to, "  records    {}, events {}", text::count(c.records), text::count(c.events))?;
    let stages = Stage::ALL.into_iter().zip(c.fold.revisions).map(|(s, n)| (s.name(), n));
    writeln!(to, "  sessions   {}", listed(stages))?;
    writeln!(to, "  dead       {}", listed(c.letters().into_iter()))?;
    for (plugin, totals) in &c.plugins {
        for (name, t) in totals {
            let what =
                if t.bounds.is_empty() { String::new() } else { format!(" in {}", text::count(t.count)) };
            writeln!(to, "  {plugin}    {name} {}{what}", t.sum)?;
        }
    }
    if c.plugin_lines_dropped > 0 {
        writeln!(
            to,
            "  log        {} of its plugins not shown",
            text::counted(c.plugin_lines_dropped, "line")
        )?;
    }
    writeln!(
        to,
        "  live keys  {} of at most {}, waiting events {} bytes",
        text::count(m.live_keys),
        text::count(pipeline.limits.open_sessions),
        text::count(m.suffix_bytes)
    )?;
    if !m.hot_keys.is_empty() {
        let keys: Vec<String> = m.hot_keys.iter().map(|k| text::foreign(k, 60)).collect();
        writeln!(to, "  hot keys   {}", keys.join(", "))?;
    }
    for d in &m.decisions {
        writeln!(to, "  decided    {}: {}", text::instant(d.at_ms), d.what)?;
    }
    let mut partitions = plain_table(&["partition", "file", "next byte", "latest event", ""]);
    for source in &m.sources {
        for (i, p) in source.partitions.iter().enumerate() {
            let state = if p.time.finished {
                "at its end"
            } else if p.time.idle {
                "idle"
            } else {
                ""
            };
            partitions.add_row([
                format!("{}:{i}", source.name),
                text::foreign(&p.identity.path, 60),
                text::count(p.offset),
                text::time(p.time.max),
                state.to_owned(),
            ]);
        }
    }
    align_right(&mut partitions, &[2]);
    writeln!(to, "{partitions}")?;
    let mut sinks = plain_table(&["sink", "confirmed when sealed", "epochs behind"]);
    for (name, epoch, behind) in cursors(plan, pipeline, s) {
        sinks.add_row([name.to_owned(), text::count(epoch), text::count(behind)]);
    }
    align_right(&mut sinks, &[1, 2]);
    writeln!(to, "{sinks}")?;
    show_lookups(to, m)
}

/// What waits for lookups, and what these did.
fn show_lookups(to: &mut impl Write, m: &Meta) -> Result<(), Failure> {
    if m.unresolved > 0 {
        writeln!(to, "  {} wait for their lookups", text::counted(m.unresolved, "revision"))?;
    }
    if m.lookups.is_empty() {
        return Ok(());
    }
    let mut table = plain_table(&[
        "lookup",
        "asked",
        "kept",
        "calls",
        "failed",
        "given up",
        "keys a call",
        "ms a call",
        "",
    ]);
    for (name, l) in &m.lookups {
        let c = &l.counts;
        #[expect(clippy::cast_precision_loss, reason = "shown to one digit")]
        let per_call = |n: u64| format!("{:.1}", n as f64 / c.calls.max(1) as f64);
        table.add_row([
            name.clone(),
            text::count(c.asked),
            text::count(c.cache_hits + c.negative_hits),
            text::count(c.calls),
            text::count(c.failures),
            text::count(c.given_up),
            per_call(c.keys_called),
            per_call(c.call_us / 1000),
            text::foreign(l.trouble.as_deref().unwrap_or_default(), 60),
        ]);
    }
    align_right(&mut table, &[1, 2, 3, 4, 5, 6, 7]);
    writeln!(to, "{table}")?;
    Ok(())
}
