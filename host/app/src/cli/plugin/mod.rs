//! `plugin`: what the author of a plugin needs from here. One file a command; `project` knows cargo, `component` makes of
//! what cargo built something that the host takes.

mod build;
mod component;
mod project;

use super::out::Failure;
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  tidemill plugin build                    make a component of the crate in this folder
  tidemill plugin build plugins/checkout --out checkout.wasm";

/// Build the plugins that a pipeline runs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct PluginArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::BuildArgs),
}

impl PluginArgs {
    pub(super) fn tells_errors_as_json(&self) -> bool {
        match &self.command {
            Command::Build(a) => a.json,
        }
    }
}

/// Runs the command.
pub(super) fn execute(args: &PluginArgs) -> Result<u8, Failure> {
    match &args.command {
        Command::Build(a) => build::execute(a),
    }
}
