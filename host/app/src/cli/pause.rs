//! `pause` and `resume`: whether a pipeline of a host that runs reads.

use super::ConfigFile;
use super::client::{Ask, Host};
use super::out::{self, Failure};
use super::text;
use axum::http::Method;
use std::io::Write;

const EXAMPLES: &str = "\
Examples:
  tidemill pause visits visits.toml     read no more, also after a restart; what is posted is still taken, and waits
  tidemill resume visits visits.toml    go on";

const AFTER_SUSPENSION: &str = "\
Examples:
  tidemill resume visits visits.toml    go on after a pause; or after a suspension, with the rule as it is and a new fault budget

A pipeline whose plugins fail still is suspended again: `tidemill deploy` and `tidemill rollback` put another version in place.";

/// Let a pipeline read no more
///
/// What was read is committed and delivered. It stays so after a restart, until it is resumed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    which: Which,
}

/// Let a pipeline go on after a pause or a suspension
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_SUSPENSION)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs `pause`.
pub(super) fn pause(args: &PauseArgs) -> Result<u8, Failure> {
    ask(&args.which, "pause")
}

/// Runs `resume`.
pub(super) fn resume(args: &ResumeArgs) -> Result<u8, Failure> {
    ask(&args.which, "resume")
}

fn ask(which: &Which, verb: &str) -> Result<u8, Failure> {
    let plan = which.config.load()?;
    let host = Host::needed(&plan, which.config.path())?;
    let path = format!("/api/v1/pipelines/{}/{verb}", which.pipeline);
    let ask = Ask { method: Method::POST, ..Ask::get(&path) };
    out::note(host.curl(&ask));
    let state = host.ask(&ask)?.body;
    let word = |name: &str| text::foreign(state[name].as_str().unwrap_or_default(), 60);
    let mut stdout = out::stdout();
    writeln!(stdout, "{}: {}", word("pipeline"), word("state"))?;
    stdout.flush()?;
    Ok(0)
}
