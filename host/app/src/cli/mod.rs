//! The commands: what a user types, and what comes back. One file a command; none of them knows how a run works.
//!
//! Invariants: what was asked for goes to stdout, everything else to stderr; stdout is locked only while a command
//! prints, never while a pipeline runs (a sink may write there); a closed stdout ends any command quietly.

mod check;
mod client;
mod completions;
mod dead;
mod deploy;
mod guess;
mod histogram;
mod logs;
mod measure;
mod out;
mod pause;
mod plugin;
mod progress;
mod recover;
mod run;
mod scan;
mod sessionize;
mod sessions;
#[cfg(feature = "services")]
mod snapshot;
mod status;
mod text;
mod token;
mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::out::Failure;
use crate::config::{self, Plan};

const EXAMPLES: &str = "\
Examples:
  tidemill sessionize access.log.gz            sessions of an access log, no config file
  tidemill check visits.toml                   everything that is wrong with a config, at once
  tidemill run visits.toml                     run it; stop it at any time, it goes on where it was
  tidemill sessions visits.toml --limit 5      look at what came out
  tidemill dead visits.toml                    what was not used, and why
  tidemill trace visits.toml --id e-42         what became of one event
  tidemill plugin build plugins/checkout       make a component of a plugin's crate

Exit codes: 0 done, 1 a source or sink failed, 2 usage, 3 not found or different, 4 config or input,
5 store damaged or full, 6 locked or in conflict.";

/// Click streams in, sessions out: exact, crash-safe, on one machine.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Sessions(sessions::SessionsArgs),
    Dead(dead::DeadArgs),
    Status(status::StatusArgs),
    Logs(logs::LogsArgs),
    Recover(recover::RecoverArgs),
    Deploy(deploy::DeployArgs),
    Rollback(deploy::RollbackArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    #[cfg(feature = "services")]
    Snapshot(snapshot::SnapshotArgs),
    Trace(trace::TraceArgs),
    Measure(measure::MeasureArgs),
    Sessionize(sessionize::SessionizeArgs),
    Token(token::TokenArgs),
    Completions(completions::CompletionsArgs),
    Plugin(plugin::PluginArgs),
}

impl Command {
    /// Whether an error is to be told on stdout too, as one JSON object. Commands that print JSON lines do not:
    /// their reader takes every line for a row.
    fn tells_errors_as_json(&self) -> bool {
        match self {
            Command::Run(a) => a.json,
            Command::Check(a) => a.json,
            Command::Dead(a) => a.json,
            Command::Status(a) => a.json,
            Command::Recover(a) => a.json,
            Command::Deploy(a) => a.json,
            Command::Rollback(a) => a.json,
            #[cfg(feature = "services")]
            Command::Snapshot(a) => a.tells_errors_as_json(),
            Command::Trace(a) => a.json,
            Command::Sessionize(a) => a.json,
            Command::Plugin(a) => a.tells_errors_as_json(),
            Command::Sessions(_)
            | Command::Logs(_)
            | Command::Pause(_)
            | Command::Resume(_)
            | Command::Measure(_)
            | Command::Token(_)
            | Command::Completions(_) => false,
        }
    }

    fn execute(&self) -> Result<u8, Failure> {
        match self {
            Command::Run(a) => run::execute(a),
            Command::Check(a) => check::execute(a),
            Command::Sessions(a) => sessions::execute(a),
            Command::Dead(a) => dead::execute(a),
            Command::Status(a) => status::execute(a),
            Command::Logs(a) => logs::execute(a),
            Command::Recover(a) => recover::execute(a),
            #[cfg(feature = "services")]
            Command::Snapshot(a) => snapshot::execute(a),
            Command::Trace(a) => trace::execute(a),
            Command::Measure(a) => measure::execute(a),
            Command::Sessionize(a) => sessionize::execute(a),
            Command::Token(a) => token::execute(a),
            Command::Completions(a) => completions::execute(a),
            Command::Deploy(a) => deploy::deploy(a),
            Command::Rollback(a) => deploy::rollback(a),
            Command::Pause(a) => pause::pause(a),
            Command::Resume(a) => pause::resume(a),
            Command::Plugin(a) => plugin::execute(a),
        }
    }
}

/// A config file on the command line.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The config file (TOML)
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
}

impl ConfigFile {
    /// The plan in it; warnings go to stderr.
    fn load(&self) -> Result<Plan, Failure> {
        let plan = config::load(&self.file)?;
        out::tell_problems(&plan.warnings);
        Ok(plan)
    }

    fn path(&self) -> &Path {
        &self.file
    }
}

/// The whole program.
pub(crate) fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Help that nobody reads to its end is no failure.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    match args.command.execute() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => ExitCode::from(failure.tell(args.command.tells_errors_as_json())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        let mut all: Vec<clap::Command> = Args::command().get_subcommands().cloned().collect();
        while let Some(command) = all.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("tidemill "), "{}", command.get_name());
            all.extend(command.get_subcommands().cloned());
        }
    }
}
