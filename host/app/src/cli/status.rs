//! `status`: how far each pipeline is, from its newest epoch.

use std::io::Write;

use serde_json::json;

use super::client::{Ask, Host};
use super::out::{self, BOLD, Failure};
use super::run::listed;
use super::sessions::{align_right, plain_table};
use super::{ConfigFile, text};
use crate::config::{Pipeline, Plan};
use crate::run;
use crate::view::{CommittedView, PipelineView};
use tidemill_engine::hot::HotKey;
use tidemill_engine::outbox::Stage;

const EXAMPLES: &str = "\
Examples:
  tidemill status visits.toml           epoch, watermark, counters, partitions, sinks
  tidemill status visits.toml --json | jq '.pipelines[].watermark'";

/// Show how far each pipeline is
///
/// Asks the host that runs the config, if one answers; else reads the newest committed epoch. A sink's cursor is as known
/// when that epoch was sealed: while a pipeline runs, its sinks are further.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command.
pub(super) fn execute(args: &StatusArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let list = match Host::of(&plan, args.config.path())? {
        Some(host) => running(&host)?,
        None => plan.pipelines.iter().map(|p| stored(&plan, p)).collect::<Result<_, _>>()?,
    };
    if args.json {
        out::print_json(&json!({"pipelines": list}))?;
        return Ok(0);
    }
    let mut stdout = out::stdout();
    for view in &list {
        let limit = plan.pipelines.iter().find(|p| p.name == view.pipeline).map(|p| p.limits.open_sessions);
        match &view.committed {
            Some(c) => show(&mut stdout, view, c, limit)?,
            None => {
                writeln!(stdout, "{BOLD}{}{BOLD:#}: has never run", view.pipeline)?;
                show_away(&mut stdout, view)?;
            }
        }
    }
    stdout.flush()?;
    Ok(0)
}

/// The pipelines as the host that runs them shows them.
fn running(host: &Host) -> Result<Vec<PipelineView>, Failure> {
    let mut body = host.ask(&Ask::get("/api/v1/pipelines"))?.body;
    serde_json::from_value(body["pipelines"].take())
        .map_err(|e| Failure::new(1, format!("the host is of another version: {e}"), None))
}

/// A pipeline as its store has it.
fn stored(plan: &Plan, pipeline: &Pipeline) -> Result<PipelineView, Failure> {
    let view = PipelineView::new(&pipeline.name, "stored");
    Ok(match run::peek(plan, &pipeline.name)? {
        Some((epoch, incarnation, meta)) => view.committed(plan, pipeline, (epoch, incarnation, &meta)),
        None => view,
    })
}

/// An instant of a view, as tables show it.
fn shown(instant: Option<&String>) -> String {
    at(instant).map_or_else(|| "-".to_owned(), |t| text::instant(t.as_millisecond()))
}

fn at(instant: Option<&String>) -> Option<jiff::Timestamp> {
    instant?.parse().ok()
}

fn show(
    to: &mut impl Write,
    view: &PipelineView,
    m: &CommittedView,
    open_sessions: Option<u64>,
) -> Result<(), Failure> {
    let c = &m.counters;
    let state = match (view.state.as_str(), &m.suspended, m.finished) {
        ("suspended", ..) | ("stored", Some(_), _) => "SUSPENDED",
        ("failed", ..) => "FAILED",
        (_, _, true) => "finished",
        ("stored", None, false) => "not finished",
        (live, ..) => live,
    };
    writeln!(
        to,
        "{BOLD}{}{BOLD:#}: epoch {}, incarnation {}, sealed {}, {state}",
        view.pipeline,
        text::count(m.epoch),
        m.incarnation,
        shown(m.sealed_at.as_ref())
    )?;
    if let Some(why) = &view.failure {
        writeln!(to, "  failed     {}", text::foreign(why, 1024))?;
    }
    show_away(to, view)?;
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
    writeln!(to, "  watermark  {}", shown(m.watermark.as_ref()))?;
    show_versions(to, m)?;
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
        open_sessions.map_or_else(|| "?".to_owned(), text::count),
        text::count(m.suffix_bytes)
    )?;
    if !m.keys_over_cap.is_empty() {
        let keys: Vec<String> = m.keys_over_cap.iter().map(|k| text::foreign(k, 60)).collect();
        writeln!(to, "  over cap   {}", keys.join(", "))?;
    }
    if !m.hot_keys.is_empty() {
        let hot =
            |k: &HotKey| format!("{} ({:.0} % of its lane)", text::foreign(&k.key, 60), k.share * 100.0);
        let keys: Vec<String> = m.hot_keys.iter().map(hot).collect();
        writeln!(to, "  hot keys   {}", keys.join(", "))?;
    }
    for d in &m.decisions {
        writeln!(to, "  decided    {}: {}", text::instant(d.at_ms), d.what)?;
    }
    let mut partitions = plain_table(&["partition", "of", "next record at", "latest event", ""]);
    for p in &m.partitions {
        let state = if p.finished {
            "at its end"
        } else if p.idle {
            "idle"
        } else {
            ""
        };
        partitions.add_row([
            format!("{}:{}", p.source, p.partition),
            text::foreign(&p.path, 60),
            text::count(p.offset),
            shown(p.max_time.as_ref()),
            state.to_owned(),
        ]);
    }
    align_right(&mut partitions, &[2]);
    writeln!(to, "{partitions}")?;
    let mut sinks = plain_table(&["sink", "confirmed when sealed", "epochs behind"]);
    for s in &m.sinks {
        sinks.add_row([s.sink.clone(), text::count(s.epoch), text::count(s.lag_epochs)]);
    }
    align_right(&mut sinks, &[1, 2]);
    writeln!(to, "{sinks}")?;
    show_lookups(to, m)
}

/// Sinks and sources that cannot be used now.
fn show_away(to: &mut impl Write, view: &PipelineView) -> Result<(), Failure> {
    let sinks = view.sinks_away.iter().map(|s| ("sink", &s.sink, &s.since, &s.why));
    let sources = view.sources_away.iter().map(|s| ("source", &s.source, &s.since, &s.why));
    for (what, name, since, why) in sinks.chain(sources) {
        let (since, why) = (shown(since.as_ref()), text::foreign(why, 1024));
        writeln!(to, "  away       {what} `{name}` since {since}, tried again: {why}")?;
    }
    if let Some(s) = &view.store_away {
        let (since, why) = (shown(s.since.as_ref()), text::foreign(&s.why, 1024));
        writeln!(to, "  away       the object store since {since}, tried again, and nothing leaves: {why}")?;
    }
    Ok(())
}

/// Which versions of the rule are live, and what a swap still waits for.
fn show_versions(to: &mut impl Write, m: &CommittedView) -> Result<(), Failure> {
    for d in &m.deployments {
        let since =
            d.from.as_ref().map_or_else(String::new, |t| format!(" from event time {}", shown(Some(t))));
        writeln!(to, "  version    {}{since}, deployment {} by {}", d.plugin, d.number, d.by)?;
    }
    if let [_, newer] = m.deployments.as_slice()
        && let (Some(from), Some(w)) = (at(newer.from.as_ref()), at(m.watermark.as_ref()))
    {
        let missing = text::duration(text::between(w.as_millisecond(), from.as_millisecond()));
        writeln!(
            to,
            "             a swap: the newer one takes over when the watermark has come {missing} further"
        )?;
    }
    Ok(())
}

/// What waits for lookups, and what these did.
fn show_lookups(to: &mut impl Write, m: &CommittedView) -> Result<(), Failure> {
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
