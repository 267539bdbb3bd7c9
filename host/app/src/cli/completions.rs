//! `completions`: what a shell needs to complete commands and options.

use super::Args;
use super::out::{self, Failure};
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::io::Write;

const EXAMPLES: &str = "\
Examples:
  tidemill completions bash > ~/.local/share/bash-completion/completions/tidemill
  tidemill completions fish > ~/.config/fish/completions/tidemill.fish";

/// Print what a shell needs to complete commands and options
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Runs the command.
pub(super) fn execute(args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "tidemill", &mut script);
    let mut stdout = out::stdout();
    stdout.write_all(&script)?;
    stdout.flush()?;
    Ok(0)
}
