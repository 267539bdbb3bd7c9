//! `dead`: what was not used, and why.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::client::{Ask, Host};
use super::out::{self, BOLD, Failure};
use super::sessions::{align_right, plain_table};
use super::{ConfigFile, text};
use crate::config::{Pipeline, Plan, SinkKind};
use crate::rows::{each_letter, member};
use crate::run;

const EXAMPLES: &str = "\
Examples:
  tidemill dead visits.toml                             counts by reason, then the latest letters
  tidemill dead visits.toml --reason late --limit 100   only one reason
  tidemill dead visits.toml --json | jq .counts";

/// Characters of a record that a table shows.
const RAW_SHOWN: usize = 60;

/// Show dead letters: what was not used, and why
///
/// Reads the file of each pipeline's `dead` sink. A pipeline without one only counts; then the counts are shown.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DeadArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Only letters with this reason
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// At most so many letters, the latest first; 0 is all
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Print one JSON object: counts and letters
    #[arg(long)]
    pub(super) json: bool,
}

/// Counts of all letters, and those that were asked for.
#[derive(Debug, Default)]
struct Letters {
    counts: BTreeMap<String, u64>,
    latest: VecDeque<Value>,
}

impl Letters {
    fn add(&mut self, letter: Value, reason: Option<&str>, limit: usize) {
        let why = member(&letter, "reason").to_owned();
        if reason.is_none_or(|r| r == why) {
            self.latest.push_front(letter);
            if limit > 0 {
                self.latest.truncate(limit);
            }
        }
        *self.counts.entry(why).or_default() += 1;
    }
}

/// Runs the command.
pub(super) fn execute(args: &DeadArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    if let Some(host) = Host::of(&plan, args.config.path())? {
        for pipeline in &plan.pipelines {
            out::note(host.curl(&Ask::get(&asked(&pipeline.name, args))));
        }
    }
    let mut letters = Letters::default();
    let mut ran = false;
    for pipeline in &plan.pipelines {
        ran |= collect(&plan, pipeline, args, &mut letters)?;
    }
    if !ran {
        out::note("nothing has run yet: `tidemill run` with this config");
    }
    if args.json {
        out::print_json(&json!({"counts": letters.counts, "letters": letters.latest}))?;
        return Ok(0);
    }
    show(&letters)?;
    Ok(0)
}

/// What asks a host for the same, as far as it answers: some of each reason.
fn asked(pipeline: &str, args: &DeadArgs) -> String {
    let limit = if args.limit == 0 { 100 } else { args.limit.min(100) };
    let mut path = format!("/api/v1/pipelines/{pipeline}/dead?limit={limit}");
    if let Some(reason) = &args.reason {
        path += &format!("&reason={}", utf8_percent_encode(reason, NON_ALPHANUMERIC));
    }
    path
}

/// The letters of one pipeline; false if there is nothing that could have any.
fn collect(
    plan: &Plan,
    pipeline: &Pipeline,
    args: &DeadArgs,
    letters: &mut Letters,
) -> Result<bool, Failure> {
    if let Some(SinkKind::File { path }) = pipeline.dead.and_then(|i| plan.sinks.get(i)).map(|s| &s.kind) {
        if !path.exists() {
            return Ok(false);
        }
        each_letter(path, |letter| letters.add(letter, args.reason.as_deref(), args.limit))?;
        return Ok(true);
    }
    out::note(format!("pipeline `{}` keeps no dead letters in a file; these are its counts", pipeline.name));
    let Some((_, _, meta)) = run::peek(plan, &pipeline.name)? else { return Ok(false) };
    for (reason, n) in &meta.counters.letters() {
        *letters.counts.entry((*reason).to_owned()).or_default() += n;
    }
    Ok(true)
}

fn show(letters: &Letters) -> Result<(), Failure> {
    let mut stdout = out::stdout();
    let total: u64 = letters.counts.values().sum();
    writeln!(stdout, "{BOLD}{}{BOLD:#}", text::counted(total, "dead letter"))?;
    if total > 0 {
        let mut counts = plain_table(&["reason", "letters"]);
        for (reason, n) in &letters.counts {
            counts.add_row([text::foreign(reason, RAW_SHOWN), text::count(*n)]);
        }
        align_right(&mut counts, &[1]);
        writeln!(stdout, "{counts}")?;
    }
    if !letters.latest.is_empty() {
        writeln!(stdout)?;
        let mut table = plain_table(&["reason", "position", "message", "record"]);
        for letter in &letters.latest {
            table.add_row([
                text::foreign(member(letter, "reason"), RAW_SHOWN),
                text::foreign(&position(letter), RAW_SHOWN),
                text::foreign(member(letter, "message"), RAW_SHOWN),
                text::foreign(what(letter), RAW_SHOWN),
            ]);
        }
        writeln!(stdout, "{table}")?;
    }
    stdout.flush()?;
    Ok(())
}

/// The record, or what stands for it.
fn what(letter: &Value) -> &str {
    ["raw", "raw_base64", "key", "session_id"]
        .map(|name| member(letter, name))
        .into_iter()
        .find(|t| !t.is_empty())
        .unwrap_or_default()
}

/// Where the record stands, as `trace --id` takes it.
pub(super) fn position(letter: &Value) -> String {
    let number = |name: &str| letter.pointer(&format!("/position/{name}")).and_then(Value::as_u64);
    match (number("partition"), number("offset")) {
        (Some(partition), Some(offset)) => format!("{}:{partition}:{offset}", member(letter, "source")),
        _ => member(letter, "source").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_counted_all_and_kept_as_asked() {
        let mut letters = Letters::default();
        for (i, reason) in ["late", "malformed_json", "late", "late"].into_iter().enumerate() {
            letters.add(json!({"reason": reason, "i": i}), Some("late"), 2);
        }
        assert_eq!(
            letters.counts,
            BTreeMap::from([("late".to_owned(), 3), ("malformed_json".to_owned(), 1)])
        );
        assert_eq!(letters.latest.iter().map(|l| l["i"].as_u64()).collect::<Vec<_>>(), [Some(3), Some(2)]);
    }

    #[test]
    fn positions_are_those_that_trace_takes() {
        let letter = json!({"source": "web", "position": {"source": 0, "partition": 2, "offset": 77}});
        assert_eq!(position(&letter), "web:2:77");
        assert_eq!(position(&json!({"source": "web"})), "web");
    }
}
