//! `run`: the pipelines of a config until their input is used up, or until somebody stops them.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use tidemill_engine::versions::Policy;

use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use tidemill_engine::outbox::Stage;

use super::check::{outputs, outputs_json};
use super::out::{self, BOLD, DIM, Failure};
use super::progress::Watch;
use super::{ConfigFile, text};
use crate::config::{Plan, SinkKind};
use crate::control::Control;
use crate::journal::Journal;
use crate::plugin::budget::Suspended;
use crate::progress::Progress;
#[cfg(feature = "services")]
use crate::run::remote::Elsewhere;
use crate::run::{Beside, RunError, RunOptions, Summary, run};
#[cfg(feature = "services")]
use crate::snapshot::{Tails, keeper};

const EXAMPLES: &str = "\
Examples:
  tidemill run visits.toml                    until the input is used up; SIGTERM or Ctrl-C stop it cleanly,
                                              and the next run goes on where this one was
  tidemill run visits.toml --fresh            forget what was stored and start over
  tidemill run visits.toml --reopen           a finished pipeline goes on with new input
  tidemill run visits.toml --resend live      send everything kept to sink `live` again
  tidemill run visits.toml --quiet --json     for scripts: the summary as JSON on stdout, no progress";

/// Run the pipelines of a config
///
/// Nothing leaves before it is stored, so a killed run loses and doubles nothing. A first SIGTERM or SIGINT stops
/// reading, commits and delivers; a second one ends the process at once.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Forget all state and start over; rows of these pipelines are deleted from their sinks
    #[arg(long, conflicts_with_all = ["reopen", "resend"])]
    fresh: bool,
    /// Go on with a pipeline that had finished
    #[arg(long)]
    reopen: bool,
    /// Send what is kept to this sink again (may be given several times)
    #[arg(long, value_name = "SINK")]
    resend: Vec<String>,
    /// What becomes of open sessions if the config asks for another version of the rule
    #[arg(long, value_name = "POLICY", default_value = "migrate")]
    on_change: OnChange,
    /// Print the summary as JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
    /// No progress and no summary on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// What becomes of open sessions at a swap.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum OnChange {
    /// They go over to the new version, their state migrated
    Migrate,
    /// They end under the version they began with
    Drain,
}

impl From<OnChange> for Policy {
    fn from(policy: OnChange) -> Policy {
        match policy {
            OnChange::Migrate => Policy::Migrate,
            OnChange::Drain => Policy::Drain,
        }
    }
}

/// Runs the command.
pub(super) fn execute(args: &RunArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let probed = plan.probe();
    if probed.has_errors() {
        return Err(Failure::Config(probed));
    }
    out::tell_problems(&probed);
    check_resend(&plan, &args.resend)?;
    let options = RunOptions {
        fresh: args.fresh,
        reopen: args.reopen,
        resend: args.resend.clone(),
        policy: args.on_change.into(),
    };
    let stdout_used = plan.sinks.iter().any(|s| s.kind == SinkKind::Stdout);
    let summaries = run_watched(&plan, &options, args.quiet, stdout_used)?;
    if args.json {
        out::print_json(&summary_json(&plan, &summaries)?)?;
    }
    if !args.quiet && !args.json {
        let mut err = anstream::stderr().lock();
        for summary in &summaries {
            // A summary that nobody can read does not undo the run.
            let _ = tell_summary(&mut err, &plan, summary);
        }
    }
    let suspended: Vec<&Summary> = summaries.iter().filter(|s| s.suspended.is_some()).collect();
    if suspended.is_empty() {
        return Ok(0);
    }
    let told: Vec<String> =
        suspended.iter().filter_map(|s| Some(tell_suspended(&s.pipeline, s.suspended.as_ref()?))).collect();
    out::error(&told.join("\n"), Some(SUSPENDED_HELP));
    Ok(1)
}

const SUSPENDED_HELP: &str = "nothing is lost: what was committed is delivered, and reading stands where it was \
committed. Put the plugin's mended or earlier version in its place, or raise `limits.faults`; the next run goes on from \
there, with a new fault budget";

fn tell_suspended(pipeline: &str, s: &Suspended) -> String {
    format!(
        "pipeline `{pipeline}` is suspended: plugin `{}`, {}, digest {}: {}; the first fault was: {}",
        s.plugin.name,
        s.plugin.version,
        s.plugin.digest,
        s.why,
        text::foreign(&s.first_fault, 1024)
    )
}

fn check_resend(plan: &Plan, resend: &[String]) -> Result<(), Failure> {
    let names: Vec<&str> = plan.sinks.iter().map(|s| s.name.as_str()).collect();
    match resend.iter().find(|r| !names.contains(&r.as_str())) {
        None => Ok(()),
        Some(r) => {
            let help = format!("the sinks are {}", names.join(", "));
            Err(Failure::new(2, format!("--resend {r}: there is no such sink"), help))
        }
    }
}

/// Runs a plan with signals and progress in place.
pub(super) fn run_watched(
    plan: &Plan,
    options: &RunOptions,
    quiet: bool,
    stdout_used: bool,
) -> Result<Vec<Summary>, Failure> {
    let stop =
        stop_at_signals().map_err(|e| Failure::new(1, format!("signals cannot be caught: {e}"), None))?;
    let (journal, lines) = Journal::new();
    let progress: Vec<Arc<Progress>> =
        plan.pipelines.iter().map(|p| Arc::new(Progress::new(&p.name, journal.clone()))).collect();
    let watch = Watch::start(&progress, lines, quiet, stdout_used);
    #[cfg(feature = "services")]
    let tails = Tails::of(plan);
    #[cfg(feature = "services")]
    let elsewhere = tails.as_ref().map(|tails| tails as &dyn Elsewhere);
    #[cfg(not(feature = "services"))]
    let elsewhere = None;
    let beside = Beside { thread: &keep_snapshots(plan), elsewhere };
    let result = run(plan, options, &progress, &journal, &stop, &|line| out::note(line), beside);
    drop(watch);
    result.map_err(|e| failed(&e, &progress))
}

#[cfg(feature = "services")]
fn keep_snapshots(plan: &Plan) -> impl Fn(&Control, &AtomicBool) + Sync {
    |control, done| keeper::run(plan, &control.journal, &control.snapshots, done)
}

/// This build has no object stores.
#[cfg(not(feature = "services"))]
fn keep_snapshots(_: &Plan) -> impl Fn(&Control, &AtomicBool) + Sync {
    |_, _| {}
}

/// The first signal asks the run to stop, the second ends the process.
fn stop_at_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first signal must not find its own mark.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// A run that failed: what of it stands, if it is worth to be said.
fn failed(e: &RunError, progress: &[Arc<Progress>]) -> Failure {
    let committed: Vec<String> = progress
        .iter()
        .filter(|p| p.epoch.load(Relaxed) > 0)
        .map(|p| format!("{} up to epoch {}", p.pipeline, text::count(p.epoch.load(Relaxed))))
        .collect();
    let help = (e.exit_code() == 1 && !committed.is_empty()).then(|| {
        format!(
            "everything before it is committed ({}); the next run goes on from there",
            committed.join(", ")
        )
    });
    Failure::Told { code: e.exit_code(), message: e.to_string(), help }
}

fn summary_json(plan: &Plan, summaries: &[Summary]) -> Result<Value, Failure> {
    let mut list = Vec::new();
    for summary in summaries {
        let mut value = serde_json::to_value(summary).map_err(io::Error::from)?;
        if let Some(pipeline) = plan.pipelines.iter().find(|p| p.name == summary.pipeline) {
            value["outputs"] = outputs_json(plan, pipeline);
        }
        list.push(value);
    }
    let code = u8::from(summaries.iter().any(|s| s.suspended.is_some()));
    Ok(json!({"pipelines": list, "exit_code": code}))
}

/// What a run has done, since the pipeline's first start.
fn tell_summary(to: &mut impl Write, plan: &Plan, summary: &Summary) -> io::Result<()> {
    let c = &summary.counters;
    writeln!(to, "{BOLD}{}{BOLD:#}: {}", summary.pipeline, summary.outcome.words())?;
    for note in &summary.notes {
        writeln!(to, "  {note}")?;
    }
    writeln!(to, "  {} {}", label("records"), text::count(c.records))?;
    writeln!(to, "  {} {}{}", label("events"), text::count(c.events), copies(c.fold.duplicates + c.copies))?;
    let stages = Stage::ALL.into_iter().zip(c.fold.revisions);
    writeln!(to, "  {} {}", label("sessions"), listed(stages.map(|(s, n)| (s.name(), n))))?;
    let letters = c.letters();
    let dead: u64 = letters.values().sum();
    let reasons = listed(letters.into_iter());
    let reasons = if dead > 0 { format!(" ({reasons})") } else { String::new() };
    writeln!(to, "  {} {}{reasons}", label("dead letters"), text::count(dead))?;
    let Some(pipeline) = plan.pipelines.iter().find(|p| p.name == summary.pipeline) else { return Ok(()) };
    for output in outputs(plan, pipeline) {
        writeln!(to, "  {} {output}", label("in"))?;
    }
    Ok(())
}

fn label(word: &str) -> String {
    format!("{DIM}{word:<12}{DIM:#}")
}

fn copies(n: u64) -> String {
    if n == 0 { String::new() } else { format!(" (and {} dropped as copies)", text::count(n)) }
}

/// `early 3, final 1,200`: what is not zero; "none" if all is.
pub(super) fn listed<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> String {
    let list: Vec<String> =
        counts.filter(|(_, n)| *n > 0).map(|(word, n)| format!("{word} {}", text::count(n))).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out() {
        assert_eq!(listed([("early", 0), ("final", 1200)].into_iter()), "final 1,200");
        assert_eq!(listed([("early", 0)].into_iter()), "none");
    }
}
